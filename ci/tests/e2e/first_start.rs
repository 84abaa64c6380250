//! The first run on a machine where nothing is provisioned: independent parts are provisioned concurrently, and the report has
//! the time of each part.

use ci::image::archive;
use serde_json::Value;

use crate::embedded::short_folder;
use crate::harness::{Ci, Project};
use crate::provisioned::provision;

/// Start and end of a provisioned part, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: i64,
    end: i64,
}

fn span(part: &Value) -> Span {
    let start: jiff::Timestamp = part["start"].as_str().unwrap().parse().unwrap();
    let start = start.as_millisecond();
    Span {
        start,
        end: start + part["duration_ms"].as_i64().unwrap(),
    }
}

/// The provisioned part whose description contains these words.
fn find_part(report: &Value, words: &str) -> Span {
    let parts = report["prepared"].as_array().unwrap();
    let found = parts
        .iter()
        .find(|part| part["what"].as_str().unwrap().contains(words));
    span(found.unwrap_or_else(|| panic!("nothing about {words} in {parts:#?}")))
}

#[test]
fn provisions_independent_parts_concurrently_and_once() {
    // The programs were compiled before, so the compilers' caches are warm; the compiled cargo-auditable is copied.
    let shared = provision();
    let cache = short_folder();
    shared.copy_auditable_to(cache.path());
    let engine = EmbeddedEngine(cache.path().to_str().unwrap().to_owned());
    let project = Project::new("first-start");
    let scan = || {
        project
            .ci(&["scan", "--engine", "embedded"])
            .env("LAB_CI_CACHE_DIR", &engine.0)
    };
    let first = scan().run().exits(0).report;
    let toolchain = find_part(&first, "the Rust stand-in image");
    let built = find_part(&first, "building dagger-engine");
    let trivy = find_part(&first, "building trivy");
    assert!(
        toolchain.start < built.end,
        "the toolchain waited for the engine: {first:#}"
    );
    let step = |name: &str| {
        let steps = first["steps"].as_array().unwrap();
        span(steps.iter().find(|step| step["name"] == name).unwrap())
    };
    assert!(
        trivy.start < step("scan").start,
        "the scanner waited for the scan: {first:#}"
    );
    assert!(find_part(&first, "starting the embedded engine").start >= built.end);
    let digest = archive::read_digest(&project.path().join("target/ci/image.tar")).unwrap();

    // Existing parts are not provisioned again.
    let second = scan().run().exits(0).report;
    assert_eq!(second["prepared"], serde_json::json!([]), "{second:#}");
    assert_eq!(second["digest"], digest);
    engine.down();
    let third = scan().run().exits(0).report;
    let parts = third["prepared"].as_array().unwrap();
    assert_eq!(parts.len(), 1, "{parts:#?}");
    find_part(&third, "starting the embedded engine");
}

/// The embedded engine of a cache directory. It is stopped on drop.
struct EmbeddedEngine(String);

impl EmbeddedEngine {
    fn down(&self) {
        Ci::new(std::path::Path::new("/"), &["engine", "down"])
            .env("LAB_CI_CACHE_DIR", &self.0)
            .run()
            .exits(0);
    }
}

impl Drop for EmbeddedEngine {
    fn drop(&mut self) {
        Ci::new(std::path::Path::new("/"), &["engine", "down"])
            .env("LAB_CI_CACHE_DIR", &self.0)
            .run();
    }
}
