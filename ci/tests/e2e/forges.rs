//! Checks main without a forge: runs the script of `ci/docs/other-forges.md` with a real cron.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use common::provision::{Package, Probe, UTIL_LINUX, find_program};
use serde_json::Value;

use crate::harness::{KillOnDrop, git, with_own_mounts};
use crate::installed::{install, write_executable};
use crate::workflow::{Forge, runner_environment};

const CRON: Package = Package {
    name: "cron",
    purpose: "runs the documentation's script in the tests",
    probe: Probe::Program("cron"),
};
/// Read at run time, because the lint step gets no documentation files.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/other-forges.md");

/// The code block of the page in this language that contains these words.
fn code_block(language: &str, words: &str) -> String {
    let page = std::fs::read_to_string(PAGE).unwrap();
    page.split(&format!("```{language}\n"))
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .find(|block| block.contains(words))
        .unwrap_or_else(|| panic!("no {language} block contains {words}"))
        .to_owned()
}

/// Sets up a host with a clone, a home and the caches that the forge's runner has saved, and lets cron run the script on it.
pub fn check_main_with_cron(forge: &Forge) {
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
        // Without rustup, cargo is not in its own home directory.
        let cargo = find_program("cargo").unwrap();
        symlink(cargo.parent().unwrap(), bin).unwrap();
    }
    let script = forge.path("check-main");
    write_executable(&script, &code_block("sh", "#!/bin/sh"));

    // The line from the documentation, but each minute and with the settings that this machine needs.
    let (output, code) = (forge.path("output"), forge.path("code"));
    let line = code_block("crontab", "flock")
        .lines()
        .last()
        .unwrap()
        .replace("17 3 * * *", "* * * * *")
        .replace("/usr/local/bin/check-main", script.to_str().unwrap());
    let mut tab = format!("MAILTO=\"\"\nHOME={}\n", home.display());
    for (name, value) in runner_environment() {
        if name != "PATH" {
            tab += &format!("{name}={}\n", value.to_str().unwrap());
        }
    }
    // Only once, because the script takes longer than a minute.
    let (when, command) = line.split_at("* * * * * ".len());
    tab += &format!(
        "{when}mkdir {} 2>/dev/null && {{ {command} > {} 2>&1; echo $? > {}; }}\n",
        forge.path("once").display(),
        output.display(),
        code.display()
    );
    let tabs = forge.path("tabs");
    std::fs::create_dir(&tabs).unwrap();
    std::fs::write(tabs.join("root"), tab).unwrap();
    std::fs::set_permissions(tabs.join("root"), PermissionsExt::from_mode(0o600)).unwrap();

    // A mount namespace hides this machine's crontabs and cron daemon, and its PAM configuration, which a sandbox may not permit.
    let login = forge.path("login");
    let permits =
        ["auth", "account", "session"].map(|kind| format!("{kind} required pam_permit.so\n"));
    std::fs::write(&login, permits.concat()).unwrap();
    let started = "set -e; mount -t tmpfs none /run; mount --bind \"$1\" /var/spool/cron/crontabs
        mount --bind \"$2\" /etc/pam.d/cron; exec cron -f";
    let cron = with_own_mounts(started)
        .arg(&tabs)
        .arg(&login)
        .spawn()
        .unwrap();
    let mut cron = KillOnDrop(cron);
    let mut wait_for = |file: &Path, seconds| {
        let begun = Instant::now();
        while !file.exists() {
            assert!(cron.0.try_wait().unwrap().is_none(), "cron exited");
            assert!(
                begun.elapsed() < Duration::from_secs(seconds),
                "{} was not created; {:?}",
                file.display(),
                std::fs::read_to_string(&output)
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    wait_for(&forge.path("once"), 180);
    wait_for(&code, 900);
    drop(cron);
    let output = std::fs::read_to_string(output).unwrap();
    assert_eq!(
        std::fs::read_to_string(code).unwrap().trim(),
        "0",
        "{output}"
    );
    assert_eq!(output, "", "cron sends mail only if there is output");
    let report = std::fs::read_to_string(clone.join("target/ci/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["verdict"]["passed"], true);
    assert_eq!(report["event"], "local");
    assert_eq!(report["publish"], Value::Null);
    assert_eq!(report["commit"], git(&clone, &["rev-parse", "HEAD"]));
}
