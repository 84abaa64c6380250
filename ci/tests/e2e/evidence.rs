//! The evidence types accept correct code and reject code that bypasses a gate.
//!
//! Each file in `compile-fail` tries to bypass a gate and has the expected compiler errors in its `.snap` file.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use cargo_metadata::camino::Utf8PathBuf;
use cargo_metadata::{Message, TargetKind};
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
    let libraries = libraries();
    let folder = "tests/e2e/compile-fail";
    let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() > 10, "{names:?}");
    insta::with_settings!({
        snapshot_path => "compile-fail",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        for name in names {
            let errors = compile(&format!("{folder}/{name}.rs"), &libraries);
            insta::assert_snapshot!(name, errors);
        }
    });
}

/// The libraries of this test run, by crate name. With them, nothing is compiled again, whereas trybuild would compile all
/// dependencies in a directory of its own.
fn libraries() -> BTreeMap<String, Utf8PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    // The arguments of `just test`.
    cargo.args([
        "test",
        "--workspace",
        "--locked",
        "--features",
        "api/e2e,ci/e2e",
    ]);
    let cargo = cargo
        .args(["--no-run", "--message-format=json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // Some build scripts read these variables, and would run again.
    for (name, _) in std::env::vars_os() {
        let of_this_test = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
        if of_this_test
            .iter()
            .any(|start| name.as_encoded_bytes().starts_with(start.as_bytes()))
        {
            cargo.env_remove(name);
        }
    }
    let output = cargo.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut libraries = BTreeMap::new();
    let mut artifacts: Vec<_> = Message::parse_stream(&*output.stdout)
        .filter_map(|message| match message.unwrap() {
            Message::CompilerArtifact(it) if it.target.kind == [TargetKind::Lib] => Some(it),
            _ => None,
        })
        .collect();
    // A build script can have the same crate with fewer features.
    artifacts.sort_by_key(|it| it.features.len());
    for artifact in artifacts {
        let library = artifact
            .filenames
            .into_iter()
            .find(|it| it.extension() == Some("rlib"));
        if let Some(library) = library {
            libraries.insert(artifact.target.name, library);
        }
    }
    libraries
}

/// Compiles a file, and returns the errors.
fn compile(file: &str, libraries: &BTreeMap<String, Utf8PathBuf>) -> String {
    let mut rustc = Command::new("rustc");
    rustc.args([
        "--edition",
        "2024",
        "--emit",
        "metadata",
        "--crate-name",
        "attempt",
        "-Awarnings",
    ]);
    rustc.args(["--out-dir", env!("CARGO_TARGET_TMPDIR"), file]);
    // The libraries of the workspace itself are one folder above.
    let dependencies = libraries["serde"].parent().unwrap();
    rustc.arg(format!("-Ldependency={dependencies}"));
    for name in ["ci", "common", "generativity", "serde", "serde_json"] {
        rustc.arg(format!("--extern={name}={}", libraries[name]));
    }
    let output = rustc
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{file} compiles: {errors}");
    // Lines of the sources change, and the place of other crates depends on the machine.
    let lines = regex::Regex::new(r"(-->|:::) (ci/\S+?):\d+:\d+").unwrap();
    let elsewhere = regex::Regex::new(r"(-->|:::) /\S+").unwrap();
    let errors = lines.replace_all(&errors, "$1 $2");
    elsewhere
        .replace_all(&errors, "$1 another crate")
        .into_owned()
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
