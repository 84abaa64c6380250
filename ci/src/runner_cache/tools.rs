//! cargo-auditable, which is compiled once for each toolchain image, kept on this machine and saved in the caches.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::cache::Cache;
use super::pack;
use super::store::Part;
use common::failure::{Failure, OrFail};
use common::pins;
use common::progress::Progress;
use common::provision;
use common::scratch;

/// The name of the program in its part.
const PROGRAM: &str = "cargo-auditable";

/// Returns the path of the program for the toolchain `key`. Unless this machine already has it, the program is restored from the
/// caches, or else built by `compile` at the given path.
///
/// # Errors
/// Those of `compile`, or when the cache directory cannot be written (exit code 3).
pub(crate) async fn program(
    cache: Option<&Cache>,
    key: &str,
    progress: &dyn Progress,
    compile: impl AsyncFnOnce(&Path) -> Result<(), Failure>,
) -> Result<PathBuf, Failure> {
    let name = format!("cargo-auditable-{}-{key}", pins::CARGO_AUDITABLE);
    let kept = provision::cache_root()?.join(name);
    let what = format!(
        "compiling cargo-auditable {} (about a minute, the first time only)",
        pins::CARGO_AUDITABLE
    );
    provision::build_once(&kept, progress, &what, async |target| {
        if cache.is_some_and(|cache| cache.restore_tool(key, &target)) {
            return Ok(());
        }
        progress.begin(&what);
        let begun = Instant::now();
        compile(&target).await?;
        progress.done(&what, begun.elapsed());
        Ok(())
    })
    .await?;
    if let Some(cache) = cache {
        cache.record_tool(key.to_owned(), &kept);
    }
    Ok(kept)
}

impl Cache {
    /// Restores the program for the toolchain `key` to `to`; returns false if the cache has no intact copy.
    fn restore_tool(&self, key: &str, to: &Path) -> bool {
        let Some(entry) = self.store.find(&self.of, Part::Tool, key) else {
            return false;
        };
        let unpack = || -> eyre::Result<()> {
            let blob = self.store.blob(entry, &[PROGRAM])?;
            let folder = scratch::folder()?;
            pack::unpack(&blob, folder.path())?;
            std::fs::copy(folder.path().join(PROGRAM), to)?;
            Ok(())
        };
        match tokio::task::block_in_place(unpack) {
            Ok(()) => {
                self.state()
                    .restored
                    .insert(Part::Tool, entry.cached_part());
                true
            }
            Err(why) => {
                self.ignore(&Part::Tool, format!("{why:#}"));
                false
            }
        }
    }

    /// Records that this run uses `program` for the toolchain `key`.
    fn record_tool(&self, key: String, program: &Path) {
        self.state().tool = Some((key, program.to_owned()));
    }

    /// Packs the program that this run used, unless the cache already has it.
    pub(super) fn add_tool(&self) {
        let Some((key, program)) = self.state().tool.take() else {
            return;
        };
        let name = Part::Tool.to_string();
        let was_damaged = self.state().ignored.iter().any(|it| it.part == name);
        if !was_damaged && self.store.find(&self.of, Part::Tool, &key).is_some() {
            let mut state = self.state();
            state.unchanged.push(Part::Tool);
            state.used.push((Part::Tool, key));
            return;
        }
        let pack = || -> Result<_, Failure> {
            let cannot = "cannot pack cargo-auditable";
            let folder = scratch::folder().or_environment(cannot)?;
            std::fs::copy(&program, folder.path().join(PROGRAM)).or_environment(cannot)?;
            let file = self.unfinished_file("tool")?;
            let unpacked = pack::pack(folder.path(), &file).or_environment(cannot)?;
            let entry = self
                .entry(Part::Tool, &key, String::new(), &file, unpacked)
                .or_environment(cannot)?;
            Ok((entry, file))
        };
        match tokio::task::block_in_place(pack) {
            Ok(new) => self.state().new.push(new),
            Err(failure) => self.report_failure("cannot save cargo-auditable", &failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::model::event::Domain;
    use common::progress::Silent;

    fn cache(folder: &Path) -> Cache {
        let of = "acme/shop".to_owned();
        let commit = "4f2a91c".to_owned();
        Cache::open(folder, Domain::Local, of, commit, Arc::new(Silent))
    }

    /// Ends a run that used `program`; returns the parts that it saved.
    async fn save(cache: Cache, program: &Path) -> Vec<String> {
        cache.record_tool("key".to_owned(), program);
        let report = cache.close(&BTreeMap::new(), |_| String::new()).await;
        report.saved.into_iter().map(|it| it.part).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn restores_an_intact_program_and_replaces_a_damaged_one() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (store, program, restored) = (at("cache"), at("program"), at("restored"));
        std::fs::write(&program, "the program").unwrap();

        assert!(!cache(&store).restore_tool("key", &restored));
        assert_eq!(save(cache(&store), &program).await, ["tool"]);
        assert!(!cache(&store).restore_tool("another key", &restored));
        assert!(cache(&store).restore_tool("key", &restored));
        assert_eq!(std::fs::read(&restored).unwrap(), b"the program");
        assert_eq!(save(cache(&store), &program).await, [""; 0]);

        for blob in std::fs::read_dir(store.join("blobs")).unwrap().flatten() {
            let mut bytes = std::fs::read(blob.path()).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(blob.path(), bytes).unwrap();
        }
        std::fs::remove_file(&restored).unwrap();
        let damaged = cache(&store);
        assert!(!damaged.restore_tool("key", &restored));
        assert!(!restored.exists());
        assert_eq!(damaged.state().ignored[0].part, "tool");
        assert_eq!(save(damaged, &program).await, ["tool"]);
        assert!(cache(&store).restore_tool("key", &restored));
    }
}
