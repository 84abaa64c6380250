//! What of a volume in which cargo works is worth carrying to another runner: what its last run has used, and nothing else.
//!
//! Cargo never removes what it does not need any more. But it says, with `--message-format=json`, every file of every unit that a run
//! needed, also of those that were fresh; the rest of a unit bears the same hash in its name.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use eyre::{OptionExt as _, WrapErr as _};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Where the volume is when cargo works in it.
const VOLUME: &str = "/work";
/// Lists the files and folders of a volume: path, kind, length, time, mode and inode, each closed by a zero.
pub const LISTING: &str = r"find . -mindepth 1 -printf '%P\0%y\0%s\0%T@\0%m\0%i\0'";

/// A file or folder of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path below the volume.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    folder: bool,
    time: String,
    mode: String,
    inode: String,
}

impl File {
    /// Whether it is a file, and somewhere below `folder`.
    #[must_use]
    pub fn is_file_below(&self, folder: &str) -> bool {
        !self.folder && self.path.starts_with(folder)
    }
}

/// Reads what [`LISTING`] has written. Links, sockets and the like are passed over: nothing of cargo's is one.
///
/// # Errors
/// When it is something else.
pub fn listing(text: &[u8]) -> eyre::Result<Vec<File>> {
    let mut fields = text.split(|byte| *byte == 0);
    let mut files = Vec::new();
    while let Some(path) = fields.next().filter(|path| !path.is_empty()) {
        let mut text = || {
            let field = fields.next().ok_or_eyre("the listing ends too early")?;
            Ok::<_, eyre::Report>(std::str::from_utf8(field)?.to_owned())
        };
        let kind = text()?;
        let file = File {
            path: PathBuf::from(OsStr::from_bytes(path)),
            bytes: text()?.parse().wrap_err("a length is no number")?,
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

/// The digest of a list of files: names, lengths, times and rights.
#[must_use]
pub fn digest(files: &[File]) -> String {
    let mut sum = Sha256::new();
    for file in files {
        sum.update(file.path.as_os_str().as_bytes());
        // A folder's length is the disk's own business.
        let bytes = if file.folder { 0 } else { file.bytes };
        sum.update(format!("\0{bytes}\0{}\0{}\0", file.time, file.mode));
    }
    hex::encode(sum.finalize())
}

/// The length of all of them together.
#[must_use]
pub fn bytes(files: &[File]) -> u64 {
    let plain = files.iter().filter(|file| !file.folder);
    plain.map(|file| file.bytes).sum()
}

/// The paths, each closed by a zero.
#[must_use]
pub fn names(files: &[File]) -> Vec<u8> {
    files
        .iter()
        .flat_map(|file| file.path.as_os_str().as_bytes().iter().copied().chain([0]))
        .collect()
}

/// What is worth carrying of a volume in which cargo has worked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Worth {
    /// What it has made of the packages of others.
    pub dependencies: Vec<File>,
    /// What it has made of the workspace, and the sources that it has made it of.
    pub workspace: Vec<File>,
}

/// One line of what cargo says of a run.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    package_id: String,
    #[serde(default)]
    filenames: Vec<PathBuf>,
    out_dir: Option<PathBuf>,
}

/// Whose a unit is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Others,
    Workspace,
}

/// What cargo has used, as it says itself in `messages`; nothing where it has said nothing: the sources alone are worth nothing.
///
/// # Errors
/// When a line is not one of cargo's.
pub fn worth(files: &[File], messages: &str) -> eyre::Result<Worth> {
    if messages.is_empty() {
        return Ok(Worth::default());
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
            serde_json::from_str(line).wrap_err("this is not what cargo says of a run")?;
        let owner = if message.package_id.starts_with("path+") {
            Owner::Workspace
        } else {
            Owner::Others
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
            // A program is also called by its name alone, which is a hard link.
            let twin = || hash_of(by_inode.get(by_path.get(path)?)?);
            if let Some(hash) = hash_of(path).or_else(twin) {
                units.insert(hash, owner);
            }
        }
    }
    let mut worth = Worth::default();
    let mut inodes = BTreeSet::new();
    // What bears the hash in its own name comes first: the other names of it cargo makes again.
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
            None => is_kept(&file.path).then_some(Owner::Workspace),
        };
        // The times of a folder count only among the sources, where a build script may look at them.
        if file.folder && !file.path.starts_with("src") {
            continue;
        }
        match owner {
            Some(Owner::Others) => worth.dependencies.push(file.clone()),
            Some(Owner::Workspace) => worth.workspace.push(file.clone()),
            None => {}
        }
    }
    for files in [&mut worth.dependencies, &mut worth.workspace] {
        files.sort_by(|a, b| a.path.cmp(&b.path));
    }
    Ok(worth)
}

/// The hash that cargo has put into the name of a unit's file, or of the folder that it is in:
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

/// What belongs to no unit: the sources, and what rustc said of itself. Not what it keeps to compile a crate by parts: that is large,
/// and helps with the few crates that have changed.
fn is_kept(path: &Path) -> bool {
    let names: Vec<_> = path.iter().filter_map(OsStr::to_str).collect();
    matches!(
        &*names,
        ["src", ..] | ["links" | "used"] | ["target", ".rustc_info.json"]
    )
}

/// What is worth carrying of cargo's home: the packages that `lockfile` names, as they were downloaded, with what the registry's index
/// says of them. What cargo unpacks it unpacks again.
///
/// # Errors
/// When the lockfile is not valid.
pub fn worth_of_home(files: &[File], lockfile: &str) -> eyre::Result<Vec<File>> {
    #[derive(Deserialize)]
    struct Lock {
        #[serde(default)]
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let lock: Lock = toml::from_str(lockfile).wrap_err("Cargo.lock is not valid")?;
    let (mut crates, mut names) = (BTreeSet::new(), BTreeSet::new());
    for Package { name, version } in lock.package {
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

    /// A listing of files, by path and inode.
    fn files(paths: &[(&str, &str)]) -> Vec<File> {
        let text: String = paths
            .iter()
            .map(|(path, inode)| format!("{path}|f|10|{}.5|644|{inode}|", path.len()))
            .collect();
        barred(&text).unwrap()
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
    fn what_was_used_is_carried_and_what_was_not_is_stale() {
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
        let worth = worth(&all, &messages.concat()).unwrap();
        assert_eq!(
            paths(&worth.dependencies),
            [
                "target/debug/.fingerprint/serde-0123456789abcdef/lib-serde",
                "target/debug/build/ring-1111111111111111/build_script_build-1111111111111111",
                "target/debug/build/ring-2222222222222222/out/libring.a",
                "target/debug/deps/libserde-0123456789abcdef.rlib",
                "target/debug/deps/serde-0123456789abcdef.d",
            ]
        );
        assert_eq!(
            paths(&worth.workspace),
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
    fn where_cargo_said_nothing_its_work_is_not_carried() {
        let all = files(&[
            ("src/lib.rs", "1"),
            ("target/debug/deps/libserde-0123456789abcdef.rlib", "2"),
        ]);
        assert_eq!(worth(&all, "").unwrap(), Worth::default());
        assert!(worth(&all, "error: nonsense").is_err());
    }

    /// A listing in which a bar stands for the zero.
    fn barred(text: &str) -> eyre::Result<Vec<File>> {
        listing(text.replace('|', "\0").as_bytes())
    }

    #[test]
    fn a_listing_that_is_none_is_an_error_and_a_link_is_passed_over() {
        for text in ["a", "a|f|", "a|f|x|1.0|644|1|", "a|f|1|"] {
            assert!(barred(text).is_err(), "{text:?}");
        }
        let some = barred("a|l|1|1.0|777|1|b c\n|d|1|1.0|755|2|").unwrap();
        assert_eq!(paths(&some), ["b c\n"]);
        assert_eq!(names(&some), b"b c\n\0");
        assert_eq!(bytes(&some), 0);
    }

    #[test]
    fn the_digest_changes_with_a_name_a_time_a_length_and_a_mode() {
        let one = |text: &str| digest(&barred(text).unwrap());
        let base = one("a|f|1|2.5|644|7|");
        assert_eq!(base, one("a|f|1|2.5|644|8|"), "an inode tells nothing");
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
    fn of_cargos_home_the_locked_packages_are_carried() {
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
        let worth = worth_of_home(&all, lock).unwrap();
        assert_eq!(
            paths(&worth),
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
