//! The whole pipeline, on one screen.

use generativity::make_guard;

use crate::model::record::Published;
use crate::model::step::Step;
use crate::run::execution::Run;
use crate::source::checkout::Checkout;
use crate::source::snapshot::Snapshot;
use crate::source::sources::Source;
use crate::steps::verified::{Evidence, Verified};
use crate::steps::{build, custom, fmt, lint, publish, scan, smoke, test};
use crate::trust::authority::Permit;
use crate::trust::kind::Kind;

/// Runs the requested steps. Independent steps run concurrently; publishing requires the evidence of every gate.
pub async fn run<K: Kind>(
    run: &Run<K>,
    checkout: Checkout,
    snapshot: Snapshot,
    permit: Option<Permit<K::Registry>>,
) -> Option<Published> {
    make_guard!(this_run);
    make_guard!(this_image);
    let source = &Source::new(this_run, checkout, snapshot);

    let (tested, formatted, (linted, gated), (image, scanned, smoked)) = tokio::join!(
        run.step(Step::Test, Some(source), test::run),
        run.step(Step::Fmt, Some(source), fmt::run),
        async {
            let linted = run.step(Step::Lint, Some(source), lint::run).await;
            // Gates come second, because they use what clippy has compiled.
            let gated = match custom::without_gates(&run.context, source) {
                Some(none) => Some(none),
                None => run.step(Step::Custom, Some(source), custom::run).await,
            };
            (linted, gated)
        },
        async {
            let image = run
                .step(Step::Build, Some((source, this_image)), build::run)
                .await;
            let input = || image.as_ref().map(|image| (source, image));
            let (scanned, smoked) = tokio::join!(
                run.step(Step::Scan, input(), scan::run),
                run.step(Step::Smoke, input(), smoke::run),
            );
            (image, scanned, smoked)
        },
    );

    let Some(permit) = permit else {
        run.skip(Step::Publish, "only a push to main publishes");
        return None;
    };
    let evidence = || {
        Some(Evidence {
            tested: tested?,
            formatted: formatted?,
            linted: linted?,
            gated: gated?,
            image: image?,
            scanned: scanned?,
            smoked: smoked?,
        })
    };
    let verified = evidence().map(Verified::new);
    run.step(
        Step::Publish,
        verified.map(|verified| (verified, permit)),
        publish::run,
    )
    .await
}
