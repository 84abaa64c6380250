//! What has to stand where its own tool looks for it is what `pins.rs` says, and the bot sees all of it.

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

fn bot() -> Value {
    serde_json::from_str(&read(".github/renovate.json")).unwrap()
}

/// What the bot's own managers find in a file: name, version, digest.
fn found(file: &str) -> Vec<[String; 3]> {
    let bot = bot();
    let managers = bot["customManagers"].as_array().unwrap();
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
        for one in Regex::new(text).unwrap().captures_iter(&read(file)) {
            let group = |name| one.name(name).map_or("", |it| it.as_str()).to_owned();
            assert!(manager["datasourceTemplate"].is_string() || !group("datasource").is_empty());
            found.push(["depName", "currentValue", "currentDigest"].map(group));
        }
    }
    found
}

/// Every string in `pins.rs` that is a pin.
fn pinned() -> Vec<String> {
    Regex::new("(?m)^(?:pub const [^\"]*|    )\"([^\"]+)\"[;,]$")
        .unwrap()
        .captures_iter(&read(PINS))
        .map(|one| one[1].to_owned())
        .collect()
}

#[test]
fn the_bot_sees_every_pin_and_its_version() {
    let mut found: Vec<_> = found(PINS)
        .into_iter()
        .map(|[name, version, digest]| match digest.as_str() {
            "" if name.contains('.') => format!("{name}:{version}"),
            "" => version,
            sum if sum.starts_with("sha256:") => format!("{name}:{version}@{sum}"),
            commit => format!("{name}@{commit} # {version}"),
        })
        .collect();
    let mut pinned = pinned();
    assert!(pinned.len() >= 20, "{pinned:?}");
    for some in [pins::DAGGER, pins::TRIVY_IMAGE, pins::ACTIONS[0]] {
        assert!(pinned.iter().any(|it| it == some), "{some}");
    }
    let constants = read(PINS).matches("\npub const ").count();
    assert_eq!(pinned.len(), constants - 1 + pins::ACTIONS.len());
    found.sort();
    pinned.sort();
    assert_eq!(found, pinned);
}

#[test]
fn a_digest_is_seen_where_an_image_has_one() {
    let bot = bot();
    let images = bot["customManagers"].as_array().unwrap();
    let images = images
        .iter()
        .find(|manager| manager["datasourceTemplate"] == "docker")
        .unwrap();
    let sum = format!("sha256:{}", "0a".repeat(32));
    let text = format!("pub const X: &str = \"{}@{sum}\";", pins::RUST_IMAGE);
    let regex = Regex::new(images["matchStrings"][0].as_str().unwrap()).unwrap();
    let undigested = pins::RUST_IMAGE.split('@').next().unwrap();
    let text = text.replace(pins::RUST_IMAGE, undigested);
    let seen = regex.captures(&text).unwrap();
    assert_eq!(&seen["currentDigest"], sum);
    assert_eq!(
        format!("{}:{}", &seen["depName"], &seen["currentValue"]),
        undigested
    );
}

#[test]
fn each_image_is_of_the_version_of_its_tool() {
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
fn the_files_that_tools_read_say_what_the_pins_say() {
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
        found(".ci/run"),
        // As a wheel, and for machines without venv as a crate.
        [
            ["just", pins::JUST, ""].map(str::to_owned),
            ["just", pins::JUST, ""].map(str::to_owned)
        ]
    );
}

#[test]
fn the_workflows_use_the_pinned_actions_and_no_others() {
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
fn the_justfile_finds_each_version_that_it_looks_for() {
    let justfile = read("justfile");
    let looks = Regex::new("replace_regex\\(pins, '([^']+)', '\\$1'\\)").unwrap();
    let pinned = read(PINS);
    let mut count = 0;
    for one in looks.captures_iter(&justfile) {
        let version = Regex::new(&one[1]).unwrap().replace(&pinned, "$1");
        assert!(version.len() < 20, "{} is not there", &one[1]);
        count += 1;
    }
    assert_eq!(count, 6);
}

#[test]
fn the_bot_keeps_dagger_in_one_piece_and_away_from_the_compromised_trivy() {
    let bot = bot();
    let group = |name: &str| {
        let rules = bot["packageRules"].as_array().unwrap();
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
    let never = Regex::new(allowed.trim_start_matches('!').trim_matches('/')).unwrap();
    assert!(never.is_match("0.69.4") && never.is_match("v0.69.5"));
    assert!(!never.is_match(pins::TRIVY));
}
