//! A small vulnerability database in place of Trivy's: real advisories of well-known crates, built by Trivy's own tool.
//! It stands in for a download, not for knowledge: a scan against it can prove that the gate works, and little else.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::made::{blocking, is_kept, keep_folder, key_of};
use super::tools::{TRIVY, state};
use common::failure::{Failure, OrFail};
use common::progress::Progress;
use common::provision;

/// In the OSV format, one advisory a line; identifiers, versions and severities as in GitHub's advisory database
/// (CC BY 4.0), the words are ours.
const ADVISORIES: &str = include_str!("advisories/osv.jsonl");
/// The day of the last change of the advisories, by GitHub's word.
pub const ADVISORIES_DATED: &str = "2024-09-09";

/// A database that Trivy reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvisoryDb {
    /// Holds `trivy.db` and `metadata.json`: Trivy wants it as `db` in its cache directory.
    pub dir: PathBuf,
    /// The digest of `trivy.db`.
    pub digest: String,
    /// The day that its advisories are of.
    pub dated: String,
}

/// What of an advisory its place among the others depends on.
#[derive(Deserialize)]
struct Advisory {
    id: String,
    published: String,
}

/// The stand-in for Trivy's vulnerability database.
///
/// # Errors
/// When its builder cannot be built here or fails.
pub async fn advisories(narrator: &dyn Progress) -> Result<AdvisoryDb, Failure> {
    let key = key_of(&[
        include_bytes!("advisories.rs"),
        ADVISORIES.as_bytes(),
        state(&TRIVY)?.as_bytes(),
    ]);
    let name = format!("advisories-{ADVISORIES_DATED}-{key}");
    // Built before and not within: the narrator hears of one preparation at a time.
    if !is_kept(&name)? {
        provision::go_tools(&TRIVY, narrator).await?;
    }
    let what = "the stand-in advisory database (a few seconds)";
    let dir = keep_folder("advisories-", &name, what, narrator, |target| async move {
        let builder = provision::go_tools(&TRIVY, narrator)
            .await?
            .join("trivy-db");
        build(&builder, &target, narrator).await
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

async fn build(builder: &Path, target: &Path, narrator: &dyn Progress) -> Result<(), Failure> {
    let cannot = "cannot write the advisories";
    let scratch = tempfile::tempdir().or_environment(cannot)?;
    lay_out(scratch.path()).or_environment(cannot)?;
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
        // It lists Go's standard library as it starts, and fails where there is no Go: here it has nothing to list.
        .env("GOPACKAGESDRIVER", &driver);
    provision::run(command, "trivy-db build", narrator).await?;
    let metadata = serde_json::json!({
        "Version": 2,
        "NextUpdate": format!("{ADVISORIES_DATED}T00:00:00Z"),
        "UpdatedAt": format!("{ADVISORIES_DATED}T00:00:00Z"),
        "DownloadedAt": format!("{ADVISORIES_DATED}T00:00:00Z"),
    });
    fs::write(target.join("metadata.json"), metadata.to_string()).or_environment(cannot)
}

/// The folders that trivy-db reads: those of GitHub's advisory database, and an empty one of CocoaPods.
fn lay_out(cache: &Path) -> std::io::Result<()> {
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
    fn every_advisory_has_what_the_builder_reads() {
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
    fn the_date_is_that_of_the_newest() {
        let advisories = all();
        let newest = advisories
            .iter()
            .filter_map(|advisory| advisory["modified"].as_str()?.get(..10))
            .max();
        assert_eq!(newest, Some(ADVISORIES_DATED));
    }

    #[test]
    fn they_lie_where_the_builder_looks() {
        let folder = tempfile::tempdir().expect("a folder");
        lay_out(folder.path()).expect("written");
        let regex =
            "ghsa/advisories/github-reviewed/2022/03/GHSA-m5pq-gvj9-9vr8/GHSA-m5pq-gvj9-9vr8.json";
        assert!(folder.path().join(regex).is_file());
        assert!(folder.path().join("cocoapods-specs/Specs").is_dir());
    }
}
