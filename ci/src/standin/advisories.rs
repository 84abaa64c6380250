//! A small vulnerability database in place of Trivy's: real advisories for well-known crates, built with Trivy's own tool.
//! A scan with this database tests the gate, but does not replace a scan with the full database.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::made::{blocking, is_kept, keep_folder, key_of};
use super::tools::{TRIVY, build_key};
use common::failure::{Failure, OrFail};
use common::progress::Progress;
use common::provision;
use common::scratch;

/// One advisory per line, in the OSV format. Identifiers, versions and severities are from GitHub's advisory database (CC BY
/// 4.0); the texts are our own.
const ADVISORIES: &str = include_str!("advisories/osv.jsonl");
/// The date on which GitHub last changed one of the advisories.
const ADVISORIES_DATED: &str = "2024-09-09";

/// A vulnerability database for Trivy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvisoryDb {
    /// A directory with `trivy.db` and `metadata.json`, which Trivy expects as `db` in its cache directory.
    pub dir: PathBuf,
    /// The digest of `trivy.db`.
    pub digest: String,
    /// The date of the newest advisory.
    pub dated: String,
}

/// The fields of an advisory that determine its path.
#[derive(Deserialize)]
struct Advisory {
    id: String,
    published: String,
}

/// Builds the stand-in for Trivy's vulnerability database.
///
/// # Errors
/// When trivy-db cannot be built or fails (exit code 3).
pub(super) async fn advisories(progress: &dyn Progress) -> Result<AdvisoryDb, Failure> {
    let key = key_of(&[
        include_bytes!("advisories.rs"),
        ADVISORIES.as_bytes(),
        build_key(&TRIVY)?.as_bytes(),
    ]);
    let name = format!("advisories-{ADVISORIES_DATED}-{key}");
    // Builds the programs first, because progress output does not nest.
    if !is_kept(&name)? {
        provision::build_go_tools(&TRIVY, progress).await?;
    }
    let what = "the stand-in advisory database (a few seconds)";
    let dir = keep_folder("advisories-", &name, what, progress, |target| async move {
        let builder = provision::build_go_tools(&TRIVY, progress)
            .await?
            .join("trivy-db");
        build(&builder, &target, progress).await
    })
    .await?;
    let file = dir.join("trivy.db");
    let content = blocking(move || fs::read(file)).await?;
    Ok(AdvisoryDb {
        digest: common::digest::sha256(&content),
        dir,
        dated: ADVISORIES_DATED.to_owned(),
    })
}

async fn build(builder: &Path, target: &Path, progress: &dyn Progress) -> Result<(), Failure> {
    let cannot = "cannot write the advisories";
    let scratch = scratch::folder().or_environment(cannot)?;
    write_advisories(scratch.path()).or_environment(cannot)?;
    let driver = scratch.path().join("no-packages");
    write_driver(&driver).or_environment(cannot)?;
    fs::create_dir(target).or_environment(cannot)?;
    let mut command = provision::command(builder);
    command
        .args(["build", "--only-update", "ghsa", "--cache-dir"])
        .arg(scratch.path())
        .arg("--output-dir")
        .arg(target)
        .current_dir(scratch.path())
        // trivy-db lists Go's standard library at startup and fails without Go; this driver lists nothing.
        .env("GOPACKAGESDRIVER", &driver);
    provision::run(command, "trivy-db build", progress).await?;
    let metadata = serde_json::json!({
        "Version": 2,
        "NextUpdate": format!("{ADVISORIES_DATED}T00:00:00Z"),
        "UpdatedAt": format!("{ADVISORIES_DATED}T00:00:00Z"),
        "DownloadedAt": format!("{ADVISORIES_DATED}T00:00:00Z"),
    });
    fs::write(target.join("metadata.json"), metadata.to_string()).or_environment(cannot)
}

/// Writes the directories that trivy-db reads: GitHub's advisory database, and an empty one for CocoaPods.
fn write_advisories(cache: &Path) -> std::io::Result<()> {
    fs::create_dir_all(cache.join("cocoapods-specs/Specs"))?;
    for line in ADVISORIES.lines() {
        let advisory: Advisory = serde_json::from_str(line)?;
        let month = advisory
            .published
            .get(..7)
            .unwrap_or_default()
            .replace('-', "/");
        let folder = cache
            .join("ghsa/advisories/github-reviewed")
            .join(month)
            .join(&advisory.id);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("{}.json", advisory.id)), line)?;
    }
    Ok(())
}

fn write_driver(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, "#!/bin/sh\necho '{}'\n")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn all() -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).expect("each line is an advisory");
        ADVISORIES.lines().map(parse).collect()
    }

    #[test]
    fn every_advisory_has_the_fields_that_trivy_db_reads() {
        let advisories = all();
        assert!(advisories.len() >= 10);
        for advisory in &advisories {
            let text = |path: &str| {
                advisory
                    .pointer(path)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            assert!(text("/id").starts_with("GHSA-"), "{advisory}");
            assert!(
                ["MODERATE", "HIGH", "CRITICAL"].contains(&text("/database_specific/severity"))
            );
            assert_eq!(text("/affected/0/package/ecosystem"), "crates.io");
            assert_eq!(text("/affected/0/ranges/0/type"), "ECOSYSTEM");
            assert!(!text("/summary").is_empty() && !text("/details").is_empty());
        }
    }

    #[test]
    fn date_is_that_of_the_newest_advisory() {
        let advisories = all();
        let newest = advisories
            .iter()
            .filter_map(|advisory| advisory["modified"].as_str()?.get(..10))
            .max();
        assert_eq!(newest, Some(ADVISORIES_DATED));
    }

    #[test]
    fn writes_advisories_where_trivy_db_reads_them() {
        let folder = tempfile::tempdir().expect("a folder");
        write_advisories(folder.path()).expect("written");
        let regex =
            "ghsa/advisories/github-reviewed/2022/03/GHSA-m5pq-gvj9-9vr8/GHSA-m5pq-gvj9-9vr8.json";
        assert!(folder.path().join(regex).is_file());
        assert!(folder.path().join("cocoapods-specs/Specs").is_dir());
    }
}
