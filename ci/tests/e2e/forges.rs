//! Where there is no forge: the script of `ci/docs/other-forges.md`, run by a real cron in the environment that cron gives.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::provision::{Package, Probe, UTIL_LINUX};
use serde_json::Value;

use crate::harness::{Ended, git};
use crate::installed::install;
use crate::workflow::{Forge, cargo_home, kept};

const CRON: Package = Package {
    name: "cron",
    purpose: "runs the documentation's script in the tests",
    probe: Probe::Program("cron"),
};
/// Read when the test runs: the lint of this repository is given no documentation.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/other-forges.md");

/// The page's block of this language that has these words.
fn block(language: &str, words: &str) -> String {
    let page = std::fs::read_to_string(PAGE).unwrap();
    page.split(&format!("```{language}\n"))
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .find(|block| block.contains(words))
        .unwrap_or_else(|| panic!("no block of {language} with {words}"))
        .to_owned()
}

/// A host that has what the forge's runner had left on its disk: its clone, its home, its caches.
pub fn a_cron_host_checks_main(forge: &Forge) {
    install(&[CRON, UTIL_LINUX]);
    let home = forge.path("home");
    let clone = home.join("infrastructure-lab");
    let (from, to) = (
        forge.project.path().to_str().unwrap(),
        clone.to_str().unwrap(),
    );
    git(Path::new("/"), &["clone", "--quiet", from, to]);
    forge.restore_into(&clone);
    let bin = home.join(".cargo/bin");
    if !bin.exists() {
        symlink(cargo_home().join("bin"), bin).unwrap();
    }
    let script = forge.path("check-main");
    std::fs::write(&script, block("sh", "#!/bin/sh")).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();

    // The documentation's own line, each minute, with what this machine needs beside it.
    let (said, code) = (forge.path("said"), forge.path("code"));
    let line = block("crontab", "flock")
        .lines()
        .last()
        .unwrap()
        .replace("17 3 * * *", "* * * * *")
        .replace("/usr/local/bin/check-main", script.to_str().unwrap());
    let mut tab = format!("MAILTO=\"\"\nHOME={}\n", home.display());
    for (name, value) in kept() {
        if name != "PATH" {
            tab += &format!("{name}={}\n", value.to_str().unwrap());
        }
    }
    // Once: the next minute comes before it has ended.
    let (when, command) = line.split_at("* * * * * ".len());
    tab += &format!(
        "{when}mkdir {} 2>/dev/null && {{ {command} > {} 2>&1; echo $? > {}; }}\n",
        forge.path("once").display(),
        said.display(),
        code.display()
    );
    let tabs = forge.path("tabs");
    std::fs::create_dir(&tabs).unwrap();
    std::fs::write(tabs.join("root"), tab).unwrap();
    std::fs::set_permissions(tabs.join("root"), PermissionsExt::from_mode(0o600)).unwrap();

    // In a namespace: this machine's own tables and daemon are none of the test's business, nor is what it has a login do, which a
    // sandbox may not let happen.
    let login = forge.path("login");
    let permits =
        ["auth", "account", "session"].map(|kind| format!("{kind} required pam_permit.so\n"));
    std::fs::write(&login, permits.concat()).unwrap();
    let started = "set -e; mount -t tmpfs none /run; mount --bind \"$1\" /var/spool/cron/crontabs
        mount --bind \"$2\" /etc/pam.d/cron; exec cron -f";
    let cron = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            started,
            "sh",
        ])
        .arg(&tabs)
        .arg(&login)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut cron = Ended(cron);
    let mut comes = |file: &Path, seconds| {
        let begun = Instant::now();
        while !file.exists() {
            assert!(cron.0.try_wait().unwrap().is_none(), "cron has ended");
            assert!(
                begun.elapsed() < Duration::from_secs(seconds),
                "{} does not come; {:?}",
                file.display(),
                std::fs::read_to_string(&said)
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    comes(&forge.path("once"), 180);
    comes(&code, 900);
    drop(cron);
    let said = std::fs::read_to_string(said).unwrap();
    assert_eq!(std::fs::read_to_string(code).unwrap().trim(), "0", "{said}");
    assert_eq!(said, "", "no mail means that all is well");
    let report = std::fs::read_to_string(clone.join("target/ci/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["verdict"]["passed"], true);
    assert_eq!(report["event"], "local");
    assert_eq!(report["publish"], Value::Null);
    assert_eq!(report["commit"], git(&clone, &["rev-parse", "HEAD"]));
}
