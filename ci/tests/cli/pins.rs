//! Versions in the files of other tools match `pins.rs`, and Renovate finds all of them.

use std::path::{Path, PathBuf};

use common::pins;
use regex::Regex;
use serde_json::Value;

const PINS: &str = "ci/common/src/pins.rs";

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).unwrap()
}

fn read_renovate_settings() -> Value {
    serde_json::from_str(&read(".github/renovate.json")).unwrap()
}

/// The dependencies that Renovate's custom managers find in a file: name, version, digest.
fn find_pins(file: &str) -> Vec<[String; 3]> {
    let settings = read_renovate_settings();
    let managers = settings["customManagers"].as_array().unwrap();
    let mut found = Vec::new();
    for manager in managers {
        let pattern = manager["managerFilePatterns"][0].as_str().unwrap();
        if !Regex::new(pattern.trim_matches('/'))
            .unwrap()
            .is_match(file)
        {
            continue;
        }
        let text = manager["matchStrings"][0].as_str().unwrap();
        for captures in Regex::new(text).unwrap().captures_iter(&read(file)) {
            let group = |name| captures.name(name).map_or("", |it| it.as_str()).to_owned();
            assert!(manager["datasourceTemplate"].is_string() || !group("datasource").is_empty());
            found.push(["depName", "currentValue", "currentDigest"].map(group));
        }
    }
    found
}

/// Every pinned version and image in `pins.rs`.
fn read_pins() -> Vec<String> {
    Regex::new("(?m)^(?:pub const [^\"]*|    )\"([^\"]+)\"[;,]$")
        .unwrap()
        .captures_iter(&read(PINS))
        .map(|captures| captures[1].to_owned())
        .collect()
}

#[test]
fn renovate_finds_every_pin_and_its_version() {
    let mut found: Vec<_> = find_pins(PINS)
        .into_iter()
        .map(|[name, version, digest]| match digest.as_str() {
            "" if name.contains('.') => format!("{name}:{version}"),
            "" => version,
            sum if sum.starts_with("sha256:") => format!("{name}:{version}@{sum}"),
            commit => format!("{name}@{commit} # {version}"),
        })
        .collect();
    let mut pinned = read_pins();
    assert!(pinned.len() >= 20, "{pinned:?}");
    for pin in [pins::DAGGER, pins::TRIVY_IMAGE, pins::ACTIONS[0]] {
        assert!(pinned.iter().any(|it| it == pin), "{pin}");
    }
    let constants = read(PINS).matches("\npub const ").count();
    assert_eq!(pinned.len(), constants - 1 + pins::ACTIONS.len());
    found.sort();
    pinned.sort();
    assert_eq!(found, pinned);
}

#[test]
fn renovate_finds_the_digest_of_an_image() {
    let settings = read_renovate_settings();
    let images = settings["customManagers"].as_array().unwrap();
    let images = images
        .iter()
        .find(|manager| manager["datasourceTemplate"] == "docker")
        .unwrap();
    let sum = format!("sha256:{}", "0a".repeat(32));
    let text = format!("pub const X: &str = \"{}@{sum}\";", pins::RUST_IMAGE);
    let regex = Regex::new(images["matchStrings"][0].as_str().unwrap()).unwrap();
    let undigested = pins::RUST_IMAGE.split('@').next().unwrap();
    let text = text.replace(pins::RUST_IMAGE, undigested);
    let found = regex.captures(&text).unwrap();
    assert_eq!(&found["currentDigest"], sum);
    assert_eq!(
        format!("{}:{}", &found["depName"], &found["currentValue"]),
        undigested
    );
}

#[test]
fn image_tags_match_the_tool_versions() {
    for (image, version) in [
        (pins::DAGGER_IMAGE, format!(":v{}", pins::DAGGER)),
        (pins::RUST_IMAGE, format!(":{}-bookworm", pins::RUST)),
        (pins::TRIVY_IMAGE, format!(":{}", pins::TRIVY)),
        (pins::CRANE_IMAGE, format!(":v{}", pins::CRANE)),
    ] {
        let image = image.split('@').next().unwrap();
        assert!(image.ends_with(&version), "{image} {version}");
    }
}

#[test]
fn tool_files_match_the_pins() {
    for (file, line) in [
        (
            "rust-toolchain.toml",
            format!("channel = \"{}\"", pins::RUST),
        ),
        (
            "ci/Cargo.toml",
            format!("dagger-sdk = \"={}\"", pins::DAGGER),
        ),
        (".ci/run", format!(" just@{}", pins::JUST)),
    ] {
        let text = read(file);
        assert!(text.lines().any(|it| it.ends_with(&line)), "{file}: {line}");
    }
    assert_eq!(
        find_pins(".ci/run"),
        // Once as a wheel, and once as a crate for machines without venv.
        [
            ["just", pins::JUST, ""].map(str::to_owned),
            ["just", pins::JUST, ""].map(str::to_owned)
        ]
    );
}

#[test]
fn workflows_use_exactly_the_pinned_actions() {
    let mut used = Vec::new();
    for workflow in std::fs::read_dir(path(".github/workflows")).unwrap() {
        let text = std::fs::read_to_string(workflow.unwrap().path()).unwrap();
        used.extend(
            text.lines()
                .filter_map(|line| line.split_once("uses: "))
                .map(|(_, action)| action.to_owned()),
        );
    }
    for action in &used {
        assert!(pins::ACTIONS.contains(&action.as_str()), "{action}");
    }
    for action in pins::ACTIONS {
        assert!(used.iter().any(|it| it == action), "{action} is not used");
    }
}

#[test]
fn justfile_patterns_find_every_version() {
    let justfile = read("justfile");
    let lookups = Regex::new("replace_regex\\(pins, '([^']+)', '\\$1'\\)").unwrap();
    let pinned = read(PINS);
    let mut count = 0;
    for lookup in lookups.captures_iter(&justfile) {
        let version = Regex::new(&lookup[1]).unwrap().replace(&pinned, "$1");
        assert!(version.len() < 20, "{} matches no pin", &lookup[1]);
        count += 1;
    }
    assert_eq!(count, 6);
}

#[test]
fn renovate_groups_dagger_and_excludes_the_compromised_trivy() {
    let settings = read_renovate_settings();
    let group = |name: &str| {
        let rules = settings["packageRules"].as_array().unwrap();
        rules.iter().find(|rule| rule["groupName"] == name).unwrap()
    };
    let names = group("dagger")["matchDepNames"].to_string();
    let parts = ["dagger-sdk", "dagger/dagger", "registry.dagger.io/engine"];
    for part in [
        &parts[..],
        &["dagger.io/dagger", "github.com/dagger/dagger"],
    ]
    .concat()
    {
        assert!(names.contains(&format!("\"{part}\"")), "{part}");
    }
    let allowed = group("trivy")["allowedVersions"].as_str().unwrap();
    let excluded = Regex::new(allowed.trim_start_matches('!').trim_matches('/')).unwrap();
    assert!(excluded.is_match("0.69.4") && excluded.is_match("v0.69.5"));
    assert!(!excluded.is_match(pins::TRIVY));
}
