//! Selects the files of a cargo volume that are saved for another runner: those that the last run used.
//!
//! Cargo never removes stale files. But with `--message-format=json` it lists the output files of every unit that a run needed,
//! fresh or not, and all other files of a unit have the same hash in their names.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use eyre::{OptionExt as _, WrapErr as _};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::model::lockfile::{Lockfile, Package};

/// The mount point of the volume when cargo runs.
const VOLUME: &str = "/work";
/// Lists the entries of a volume: path, type, size, time, mode and inode, each terminated by a zero byte.
pub(crate) const LISTING: &str = r"find . -mindepth 1 -printf '%P\0%y\0%s\0%T@\0%m\0%i\0'";

/// A file or directory of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// The path relative to the volume.
    pub path: PathBuf,
    /// The size.
    pub bytes: u64,
    folder: bool,
    time: String,
    mode: String,
    inode: String,
}

impl File {
    /// Whether this is a file below `folder`.
    #[must_use]
    pub(crate) fn is_file_below(&self, folder: &str) -> bool {
        !self.folder && self.path.starts_with(folder)
    }
}

/// Parses the output of [`LISTING`]. Links, sockets and the like are skipped: cargo creates none.
///
/// # Errors
/// When the format is invalid.
pub(crate) fn parse_listing(text: &[u8]) -> eyre::Result<Vec<File>> {
    let mut fields = text.split(|byte| *byte == 0);
    let mut files = Vec::new();
    while let Some(path) = fields.next().filter(|path| !path.is_empty()) {
        let mut text = || {
            let field = fields.next().ok_or_eyre("the listing is truncated")?;
            Ok::<_, eyre::Report>(std::str::from_utf8(field)?.to_owned())
        };
        let kind = text()?;
        let file = File {
            path: PathBuf::from(OsStr::from_bytes(path)),
            bytes: text()?.parse().wrap_err("invalid size in the listing")?,
            folder: kind == "d",
            time: text()?,
            mode: text()?,
            inode: text()?,
        };
        if matches!(kind.as_str(), "f" | "d") {
            files.push(file);
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The digest of a list of files: paths, sizes, times and modes.
#[must_use]
pub(crate) fn digest(files: &[File]) -> String {
    let mut sum = Sha256::new();
    for file in files {
        sum.update(file.path.as_os_str().as_bytes());
        // The size of a directory depends on the file system.
        let bytes = if file.folder { 0 } else { file.bytes };
        sum.update(format!("\0{bytes}\0{}\0{}\0", file.time, file.mode));
    }
    hex::encode(sum.finalize())
}

/// The total size of the files.
#[must_use]
pub(crate) fn bytes(files: &[File]) -> u64 {
    let plain = files.iter().filter(|file| !file.folder);
    plain.map(|file| file.bytes).sum()
}

/// The paths, each terminated by a zero byte.
#[must_use]
pub(crate) fn names(files: &[File]) -> Vec<u8> {
    files
        .iter()
        .flat_map(|file| file.path.as_os_str().as_bytes().iter().copied().chain([0]))
        .collect()
}

/// The files of a cargo volume that are saved.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// The build output of dependencies.
    pub dependencies: Vec<File>,
    /// The sources and the build output of the workspace.
    pub workspace: Vec<File>,
}

/// A line of cargo's JSON messages.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    package_id: String,
    #[serde(default)]
    filenames: Vec<PathBuf>,
    out_dir: Option<PathBuf>,
}

/// The kind of package that a unit belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Dependency,
    Workspace,
}

/// Selects the files that cargo used according to its JSON `messages`. Without messages nothing is selected: the sources alone
/// are useless.
///
/// # Errors
/// When a line is not a JSON message of cargo.
pub(crate) fn select_used(files: &[File], messages: &str) -> eyre::Result<Selection> {
    if messages.is_empty() {
        return Ok(Selection::default());
    }
    let by_inode: BTreeMap<_, _> = files
        .iter()
        .filter(|file| hash_of(&file.path).is_some())
        .map(|file| (&*file.inode, &file.path))
        .collect();
    let by_path: BTreeMap<_, _> = files.iter().map(|it| (&*it.path, &*it.inode)).collect();
    let mut units = BTreeMap::new();
    for line in messages.lines() {
        let message: Message =
            serde_json::from_str(line).wrap_err("invalid JSON message of cargo")?;
        let owner = if message.package_id.starts_with("path+") {
            Owner::Workspace
        } else {
            Owner::Dependency
        };
        if !matches!(
            &*message.reason,
            "compiler-artifact" | "build-script-executed"
        ) {
            continue;
        }
        for path in message.filenames.iter().chain(&message.out_dir) {
            let Ok(path) = path.strip_prefix(VOLUME) else {
                continue;
            };
            // A program also has a name without a hash, which is a hard link.
            let linked = || hash_of(by_inode.get(by_path.get(path)?)?);
            if let Some(hash) = hash_of(path).or_else(linked) {
                units.insert(hash, owner);
            }
        }
    }
    let mut selection = Selection::default();
    let mut inodes = BTreeSet::new();
    // Of several hard links, the one with the hash in its name is saved: cargo creates the others again.
    let (named, others): (Vec<_>, Vec<_>) = files.iter().partition(|file| {
        let name = file.path.file_name().map(Path::new);
        name.is_some_and(|name| hash_of(&Path::new("target/deps").join(name)).is_some())
    });
    for file in named.into_iter().chain(others) {
        if !file.folder && !inodes.insert(&*file.inode) {
            continue;
        }
        let owner = match hash_of(&file.path) {
            Some(hash) => units.get(&hash).copied(),
            None => belongs_to_no_unit(&file.path).then_some(Owner::Workspace),
        };
        // The times of directories matter only among the sources, where a build script may read them.
        if file.folder && !file.path.starts_with("src") {
            continue;
        }
        match owner {
            Some(Owner::Dependency) => selection.dependencies.push(file.clone()),
            Some(Owner::Workspace) => selection.workspace.push(file.clone()),
            None => {}
        }
    }
    for files in [&mut selection.dependencies, &mut selection.workspace] {
        files.sort_by(|a, b| a.path.cmp(&b.path));
    }
    Ok(selection)
}

/// The hash that cargo puts into the name of a unit's file or its directory:
/// `target/debug/deps/libserde-0123456789abcdef.rlib`, `target/debug/build/serde-0123456789abcdef/out/private.rs`.
fn hash_of(path: &Path) -> Option<String> {
    let mut parts = path.iter();
    if parts.next()? != "target" {
        return None;
    }
    let parts: Vec<_> = parts.collect();
    let at = parts.iter().position(|part| {
        ["deps", "build", ".fingerprint"]
            .iter()
            .any(|it| part == it)
    })?;
    let name = parts.get(at + 1)?.to_str()?;
    let stem = name.split('.').next().unwrap_or(name);
    let (_, hash) = stem.rsplit_once('-')?;
    (hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit())).then(|| hash.to_owned())
}

/// Whether the file is saved although it belongs to no unit: the sources and rustc's version. Incremental compilation data is not
/// saved: it is large, and only helps with the few crates that have changed.
fn belongs_to_no_unit(path: &Path) -> bool {
    let names: Vec<_> = path.iter().filter_map(OsStr::to_str).collect();
    matches!(
        &*names,
        ["src", ..] | ["links" | "used"] | ["target", ".rustc_info.json"]
    )
}

/// Selects the files of cargo's home that are saved: the downloaded packages of `lockfile` and their entries in the registry
/// index. Cargo unpacks the packages again.
///
/// # Errors
/// When the lockfile is invalid.
pub(crate) fn select_from_home(files: &[File], lockfile: &str) -> eyre::Result<Vec<File>> {
    let lockfile = Lockfile::parse(lockfile).wrap_err("invalid Cargo.lock")?;
    let (mut crates, mut names) = (BTreeSet::new(), BTreeSet::new());
    for Package { name, version, .. } in lockfile.packages {
        crates.insert(format!("{name}-{version}.crate"));
        names.insert(name.to_lowercase());
    }
    let keep = |file: &&File| {
        let parts: Vec<_> = file.path.iter().filter_map(OsStr::to_str).collect();
        !file.folder
            && match &*parts {
                ["registry", "cache", _, name] => crates.contains(*name),
                ["registry", "index", _, "config.json"] | ["git", "db", ..] => true,
                ["registry", "index", _, ".cache", .., name] => names.contains(*name),
                _ => false,
            }
    };
    Ok(files.iter().filter(keep).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a listing of files with these paths and inodes.
    fn files(paths: &[(&str, &str)]) -> Vec<File> {
        let text: String = paths
            .iter()
            .map(|(path, inode)| format!("{path}|f|10|{}.5|644|{inode}|", path.len()))
            .collect();
        parse_barred(&text).unwrap()
    }

    fn paths(files: &[File]) -> Vec<&str> {
        files.iter().map(|it| it.path.to_str().unwrap()).collect()
    }

    const OTHERS: &str = "registry+https://github.com/rust-lang/crates.io-index#serde@1.0.0";
    const OURS: &str = "path+file:///work/src/api#1.2.3";

    fn artifact(package: &str, names: &[&str]) -> String {
        let names: Vec<_> = names
            .iter()
            .map(|it| format!("/work/target/{it}"))
            .collect();
        format!(
            "{}\n",
            serde_json::json!({ "reason": "compiler-artifact", "package_id": package, "filenames": names, "fresh": true })
        )
    }

    #[test]
    fn selects_used_files_and_skips_stale_ones() {
        let all = files(&[
            ("lock", "1"),
            ("links", "2"),
            ("used", "3"),
            ("src/api/src/main.rs", "4"),
            ("target/.rustc_info.json", "5"),
            ("target/CACHEDIR.TAG", "6"),
            (
                "target/debug/.fingerprint/serde-0123456789abcdef/lib-serde",
                "7",
            ),
            (
                "target/debug/.fingerprint/serde-aaaaaaaaaaaaaaaa/lib-serde",
                "8",
            ),
            (
                "target/debug/build/ring-1111111111111111/build-script-build",
                "9",
            ),
            (
                "target/debug/build/ring-1111111111111111/build_script_build-1111111111111111",
                "9",
            ),
            (
                "target/debug/build/ring-2222222222222222/out/libring.a",
                "10",
            ),
            (
                "target/debug/build/ring-3333333333333333/out/libring.a",
                "11",
            ),
            ("target/debug/deps/libserde-0123456789abcdef.rlib", "12"),
            ("target/debug/deps/serde-0123456789abcdef.d", "13"),
            ("target/debug/deps/libserde-aaaaaaaaaaaaaaaa.rlib", "14"),
            ("target/debug/deps/api-4444444444444444", "15"),
            ("target/debug/deps/api-4444444444444444.d", "16"),
            ("target/debug/deps/api-5555555555555555", "17"),
            ("target/debug/api", "15"),
            ("target/debug/incremental/api-2bx/s-1/query-cache.bin", "18"),
            ("target/tmp/left-by-a-test", "19"),
        ]);
        let messages = [
            artifact(OTHERS, &["debug/deps/libserde-0123456789abcdef.rlib"]),
            artifact(
                OTHERS,
                &["debug/build/ring-1111111111111111/build-script-build"],
            ),
            format!(
                "{}\n",
                serde_json::json!({ "reason": "build-script-executed", "package_id": OTHERS, "out_dir": "/work/target/debug/build/ring-2222222222222222/out" })
            ),
            artifact(OURS, &["debug/api"]),
            "{\"reason\":\"build-finished\",\"success\":true}\n".to_owned(),
        ];
        let selection = select_used(&all, &messages.concat()).unwrap();
        assert_eq!(
            paths(&selection.dependencies),
            [
                "target/debug/.fingerprint/serde-0123456789abcdef/lib-serde",
                "target/debug/build/ring-1111111111111111/build_script_build-1111111111111111",
                "target/debug/build/ring-2222222222222222/out/libring.a",
                "target/debug/deps/libserde-0123456789abcdef.rlib",
                "target/debug/deps/serde-0123456789abcdef.d",
            ]
        );
        assert_eq!(
            paths(&selection.workspace),
            [
                "links",
                "src/api/src/main.rs",
                "target/.rustc_info.json",
                "target/debug/deps/api-4444444444444444",
                "target/debug/deps/api-4444444444444444.d",
                "used",
            ]
        );
    }

    #[test]
    fn selects_nothing_without_messages() {
        let all = files(&[
            ("src/lib.rs", "1"),
            ("target/debug/deps/libserde-0123456789abcdef.rlib", "2"),
        ]);
        assert_eq!(select_used(&all, "").unwrap(), Selection::default());
        assert!(select_used(&all, "error: nonsense").is_err());
    }

    /// Parses a listing with bars instead of zero bytes.
    fn parse_barred(text: &str) -> eyre::Result<Vec<File>> {
        parse_listing(text.replace('|', "\0").as_bytes())
    }

    #[test]
    fn rejects_an_invalid_listing_and_skips_links() {
        for text in ["a", "a|f|", "a|f|x|1.0|644|1|", "a|f|1|"] {
            assert!(parse_barred(text).is_err(), "{text:?}");
        }
        let some = parse_barred("a|l|1|1.0|777|1|b c\n|d|1|1.0|755|2|").unwrap();
        assert_eq!(paths(&some), ["b c\n"]);
        assert_eq!(names(&some), b"b c\n\0");
        assert_eq!(bytes(&some), 0);
    }

    #[test]
    fn digest_changes_with_path_time_size_and_mode() {
        let one = |text: &str| digest(&parse_barred(text).unwrap());
        let base = one("a|f|1|2.5|644|7|");
        assert_eq!(base, one("a|f|1|2.5|644|8|"), "the inode is ignored");
        for other in [
            "b|f|1|2.5|644|7|",
            "a|f|2|2.5|644|7|",
            "a|f|1|2.6|644|7|",
            "a|f|1|2.5|755|7|",
        ] {
            assert_ne!(base, one(other), "{other:?}");
        }
    }

    #[test]
    fn selects_locked_packages_from_cargo_home() {
        let lock = r#"
version = 4

[[package]]
name = "serde"
version = "1.0.0"

[[package]]
name = "Inflector"
version = "0.11.4-rc.1"
"#;
        let all = files(&[
            (".package-cache", "1"),
            ("git/db/thing-1/HEAD", "2"),
            ("git/checkouts/thing-1/2/Cargo.toml", "3"),
            ("registry/cache/index.crates.io-1/serde-1.0.0.crate", "4"),
            ("registry/cache/index.crates.io-1/serde-0.9.0.crate", "5"),
            (
                "registry/cache/index.crates.io-1/Inflector-0.11.4-rc.1.crate",
                "6",
            ),
            ("registry/index/index.crates.io-1/config.json", "7"),
            ("registry/index/index.crates.io-1/.cache/se/rd/serde", "8"),
            (
                "registry/index/index.crates.io-1/.cache/in/fl/inflector",
                "9",
            ),
            ("registry/index/index.crates.io-1/.cache/ra/nd/rand", "10"),
            (
                "registry/src/index.crates.io-1/serde-1.0.0/src/lib.rs",
                "11",
            ),
            ("bin/left-by-a-build-script", "12"),
        ]);
        let selection = select_from_home(&all, lock).unwrap();
        assert_eq!(
            paths(&selection),
            [
                "git/db/thing-1/HEAD",
                "registry/cache/index.crates.io-1/Inflector-0.11.4-rc.1.crate",
                "registry/cache/index.crates.io-1/serde-1.0.0.crate",
                "registry/index/index.crates.io-1/.cache/in/fl/inflector",
                "registry/index/index.crates.io-1/.cache/se/rd/serde",
                "registry/index/index.crates.io-1/config.json",
            ]
        );
    }
}
