//! The first run on a machine where nothing is made yet: what can be made at once is, and each part's time is told.

use ci::image::archive;
use serde_json::Value;

use crate::embedded::short_folder;
use crate::harness::{Ci, Project};
use crate::provisioned::provisioned;

/// A part of the preparation: when it began and ended, in milliseconds of the same clock.
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

/// The part whose description has these words.
fn part(report: &Value, words: &str) -> Span {
    let parts = report["prepared"].as_array().unwrap();
    let found = parts
        .iter()
        .find(|part| part["what"].as_str().unwrap().contains(words));
    span(found.unwrap_or_else(|| panic!("nothing about {words} in {parts:#?}")))
}

#[test]
fn what_does_not_wait_for_each_other_is_made_at_the_same_time_and_once() {
    // On an empty machine the compilers' caches are cold, too: once is enough. So is compiling cargo-auditable.
    let shared = provisioned();
    let cache = short_folder();
    shared.copy_auditable_to(cache.path());
    let engine = EngineOf(cache.path().to_str().unwrap().to_owned());
    let project = Project::new("first-start");
    let scan = || {
        project
            .ci(&["scan", "--engine", "embedded"])
            .env("LAB_CI_CACHE_DIR", &engine.0)
    };
    let first = scan().run().exits(0).report;
    let toolchain = part(&first, "the Rust stand-in image");
    let built = part(&first, "building dagger-engine");
    let trivy = part(&first, "building trivy");
    assert!(
        toolchain.start < built.end,
        "the toolchain does not wait for the engine: {first:#}"
    );
    let step = |name: &str| {
        let steps = first["steps"].as_array().unwrap();
        span(steps.iter().find(|step| step["name"] == name).unwrap())
    };
    assert!(
        trivy.start < step("scan").start,
        "the scanner does not wait for the scan: {first:#}"
    );
    assert!(part(&first, "starting the embedded engine").start >= built.end);
    let digest = archive::read_digest(&project.path().join("target/ci/image.tar")).unwrap();

    // What there is is not made again.
    let second = scan().run().exits(0).report;
    assert_eq!(second["prepared"], serde_json::json!([]), "{second:#}");
    assert_eq!(second["digest"], digest);
    engine.down();
    let third = scan().run().exits(0).report;
    let parts = third["prepared"].as_array().unwrap();
    assert_eq!(parts.len(), 1, "{parts:#?}");
    part(&third, "starting the embedded engine");
}

/// The embedded engine of one cache directory; it ends with this value.
struct EngineOf(String);

impl EngineOf {
    fn down(&self) {
        Ci::new(std::path::Path::new("/"), &["engine", "down"])
            .env("LAB_CI_CACHE_DIR", &self.0)
            .run()
            .exits(0);
    }
}

impl Drop for EngineOf {
    fn drop(&mut self) {
        Ci::new(std::path::Path::new("/"), &["engine", "down"])
            .env("LAB_CI_CACHE_DIR", &self.0)
            .run();
    }
}
