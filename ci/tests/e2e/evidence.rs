//! What the types of evidence forbid does not compile, and what they are for does.
//!
//! Each file in `compile-fail` is a way around a gate, beside what the compiler says to it.

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
fn no_way_around_a_gate_compiles() {
    trybuild::TestCases::new().compile_fail("tests/e2e/compile-fail/*.rs");
}

/// The way through the gates: that this compiles is the test.
#[expect(
    dead_code,
    clippy::too_many_arguments,
    reason = "it is compiled, not called"
)]
async fn the_way_through_the_gates_compiles<'run, 'img>(
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

/// And that of stand-ins, which ends on loopback.
#[expect(dead_code, reason = "it is compiled, not called")]
async fn stand_ins_go_to_loopback(
    step: &StepContext<'_, StandIn>,
    verified: Verified<'_, '_, StandIn>,
    permit: Permit<LoopbackRegistry>,
) {
    let _ = publish::run(step, (verified, permit)).await;
}

#[test]
fn a_token_is_not_in_what_is_printed_for_debugging() {
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
