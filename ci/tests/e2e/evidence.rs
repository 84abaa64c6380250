//! The evidence types accept correct code and reject code that bypasses a gate.
//!
//! Each file in `compile-fail` tries to bypass a gate and has the expected compiler errors in its `.stderr` file.

use ci::model::image_name::{LoopbackRegistry, Registry};
use ci::run::execution::StepContext;
use ci::steps::build::Image;
use ci::steps::custom::Gated;
use ci::steps::fmt::Formatted;
use ci::steps::lint::Linted;
use ci::steps::publish;
use ci::steps::scan::Scanned;
use ci::steps::smoke::Smoked;
use ci::steps::test::Tested;
use ci::steps::verified::{Evidence, Verified};
use ci::trust::authority::{Credential, Permit};
use ci::trust::kind::{Genuine, StandIn};

#[test]
fn bypassing_a_gate_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/e2e/compile-fail/*.rs");
}

/// Compiles, and so proves that an image with all evidence can be published.
#[expect(
    dead_code,
    clippy::too_many_arguments,
    reason = "compiled, but not called"
)]
async fn publishing_with_all_evidence_compiles<'run, 'img>(
    step: &StepContext<'_, Genuine>,
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    gated: Gated<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    scanned: Scanned<'img, Genuine>,
    smoked: Smoked<'img, Genuine>,
    permit: Permit<Registry>,
) {
    let verified = Verified::new(Evidence {
        tested,
        formatted,
        linted,
        gated,
        image,
        scanned,
        smoked,
    });
    let _ = publish::run(step, (verified, permit)).await;
}

/// Compiles, and so proves that an image made with stand-ins can be published to a loopback registry.
#[expect(dead_code, reason = "compiled, but not called")]
async fn publishing_stand_ins_to_loopback_compiles(
    step: &StepContext<'_, StandIn>,
    verified: Verified<'_, '_, StandIn>,
    permit: Permit<LoopbackRegistry>,
) {
    let _ = publish::run(step, (verified, permit)).await;
}

#[test]
fn debug_output_hides_the_token() {
    let credential = Credential {
        user: "somebody".into(),
        token: "ghs_not-a-real-one".to_owned().into(),
    };
    let text = format!("{credential:?} {credential:#?}");
    assert!(
        text.contains("somebody") && !text.contains("ghs_"),
        "{text}"
    );
}
