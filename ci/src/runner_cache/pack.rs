//! A packed part of the cache: a tar archive, compressed with Zstandard, that contains only files and directories below known
//! names.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

use eyre::{WrapErr as _, bail, ensure};
use tar::EntryType;

use common::digest;

/// The largest unpacked size. A larger part is assumed to be an attempt to fill the disk.
const MOST_UNPACKED: u64 = 32 << 30;
/// The compression level. A higher one takes longer than transferring the additional bytes.
pub(super) const LEVEL: i32 = 3;

/// The extended header fields that an entry may have: those of a plain file.
const EXTENSIONS: [&str; 7] = ["gid", "gname", "mtime", "path", "size", "uid", "uname"];

/// The expected properties of a packed part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    /// The SHA-256 of its file, in hexadecimal digits.
    pub sha256: &'a str,
    /// The size of its file.
    pub bytes: u64,
    /// The total size of the files in it.
    pub unpacked: u64,
    /// The names that are allowed at its top.
    pub tops: &'a [&'a str],
}

/// Checks that `file` is complete, has the expected properties, and contains no path or link that leads outside. All entries are
/// checked before any is unpacked.
///
/// # Errors
/// When a check fails.
pub(super) fn check(file: &Path, expected: &Expected<'_>) -> eyre::Result<()> {
    let data = file.symlink_metadata().wrap_err("its file is missing")?;
    ensure!(data.is_file(), "its file is not a regular file");
    ensure!(
        data.len() >= expected.bytes,
        "its file is truncated: {} of {} bytes",
        data.len(),
        expected.bytes
    );
    ensure!(
        data.len() == expected.bytes,
        "its file is larger than recorded: {} bytes instead of {}",
        data.len(),
        expected.bytes
    );
    ensure!(
        expected.unpacked <= MOST_UNPACKED,
        "its recorded content of {} bytes exceeds the limit",
        expected.unpacked
    );
    let sum = digest::sha256_of_file(file)?;
    ensure!(
        sum.strip_prefix("sha256:") == Some(expected.sha256),
        "its file is damaged: the digest is {sum}"
    );
    let mut sum = 0;
    for_each_entry(File::open(file)?, |entry| {
        sum += entry.size();
        ensure!(
            sum <= expected.unpacked,
            "its content is larger than the recorded {} bytes",
            expected.unpacked
        );
        check_entry(entry, expected.tops)
    })?;
    ensure!(
        sum == expected.unpacked,
        "its content has {sum} bytes instead of the recorded {}",
        expected.unpacked
    );
    Ok(())
}

/// Calls `look` for each entry of a packed part.
fn for_each_entry(
    packed: impl Read,
    mut look: impl FnMut(&mut tar::Entry<'_, &mut dyn Read>) -> eyre::Result<()>,
) -> eyre::Result<()> {
    let mut plain = zstd::Decoder::new(packed)?;
    let plain: &mut dyn Read = &mut plain;
    let mut archive = tar::Archive::new(plain);
    for entry in archive.entries()? {
        look(&mut entry?)?;
    }
    Ok(())
}

/// Checks that the entry is a file or directory below one of `tops`, with no extended header that another tar implementation
/// might interpret differently.
fn check_entry(entry: &mut tar::Entry<'_, &mut dyn Read>, tops: &[&str]) -> eyre::Result<()> {
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let key = extension.key()?;
            ensure!(
                EXTENSIONS.contains(&key),
                "it contains an unknown extended header: {key}"
            );
        }
    }
    let path = entry.path()?;
    let name = path.display();
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::Directory => {}
        EntryType::Symlink | EntryType::Link => bail!("it contains a link: {name}"),
        other => bail!("it contains an entry that is not a file: {name} ({other:?})"),
    }
    ensure!(
        path.components()
            .all(|part| matches!(part, Component::Normal(_))),
        "it contains a path that leads outside: {name}"
    );
    let top = path.iter().next().unwrap_or_default();
    ensure!(
        tops.iter().any(|known| top == *known),
        "it contains an unexpected path: {name}"
    );
    Ok(())
}

/// Packs all files of a directory into `to`; returns their total size.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn pack(folder: &Path, to: &Path) -> io::Result<u64> {
    let mut tar = tar::Builder::new(zstd::Encoder::new(File::create(to)?, LEVEL)?);
    let mut unpacked = 0;
    for entry in walkdir::WalkDir::new(folder)
        .min_depth(1)
        .sort_by_file_name()
    {
        let entry = entry?;
        let path = entry
            .path()
            .strip_prefix(folder)
            .map_err(io::Error::other)?;
        if entry.file_type().is_file() {
            let mut file = File::open(entry.path())?;
            unpacked += file.metadata()?.len();
            tar.append_file(path, &mut file)?;
        }
    }
    tar.into_inner()?.finish()?.flush()?;
    Ok(unpacked)
}

/// Unpacks a part, which must have passed [`check`], into a directory.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn unpack(file: &Path, to: &Path) -> io::Result<()> {
    tar::Archive::new(zstd::Decoder::new(File::open(file)?)?).unpack(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPS: &[&str] = &["target", "src"];

    /// Packs the entries that `fill` adds, and checks them against their actual properties.
    fn pack_and_check(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> eyre::Result<()> {
        let mut tar = tar::Builder::new(Vec::new());
        fill(&mut tar);
        let plain = tar.into_inner().unwrap();
        let mut unpacked = 0;
        for entry in tar::Archive::new(&plain[..]).entries().unwrap() {
            unpacked += entry.unwrap().size();
        }
        check_bytes(&zstd::encode_all(&plain[..], LEVEL).unwrap(), |it| {
            it.unpacked = unpacked;
        })
    }

    /// Checks `packed`; `change` may set expected properties that differ from the actual ones.
    fn check_bytes<'a>(packed: &[u8], change: impl FnOnce(&mut Expected<'a>)) -> eyre::Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("packed");
        std::fs::write(&file, packed).unwrap();
        let actual = digest::sha256(packed);
        let mut expected = Expected {
            sha256: "",
            bytes: packed.len() as u64,
            unpacked: 0,
            tops: TOPS,
        };
        change(&mut expected);
        let sum = actual.strip_prefix("sha256:").unwrap();
        if expected.sha256.is_empty() {
            return check(
                &file,
                &Expected {
                    sha256: sum,
                    ..expected
                },
            );
        }
        check(&file, &expected)
    }

    /// Adds an entry with a path that the library itself would reject.
    fn add_raw(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, path: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_link_name("target/elsewhere").unwrap();
        }
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }

    fn packed() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        add_raw(&mut tar, EntryType::Directory, "src/", b"");
        add_raw(&mut tar, EntryType::Regular, "src/main.rs", b"fn main() {}");
        zstd::encode_all(&tar.into_inner().unwrap()[..], LEVEL).unwrap()
    }

    #[track_caller]
    fn assert_rejected(result: eyre::Result<()>, why: &str) {
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn accepts_files_and_directories_below_known_names() {
        pack_and_check(|tar| {
            add_raw(tar, EntryType::Directory, "target/debug/", b"");
            add_raw(tar, EntryType::Regular, "target/debug/api", b"1234");
            add_raw(tar, EntryType::Regular, "src/a/b.rs", b"");
        })
        .unwrap();
        check_bytes(&packed(), |it| it.unpacked = 12).unwrap();
    }

    #[test]
    fn rejects_paths_and_links_that_lead_outside() {
        for path in ["../etc/passwd", "target/../../etc/passwd", "/etc/passwd"] {
            assert_rejected(
                pack_and_check(|tar| add_raw(tar, EntryType::Regular, path, b"x")),
                "leads outside",
            );
        }
        for kind in [EntryType::Symlink, EntryType::Link] {
            assert_rejected(
                pack_and_check(|tar| add_raw(tar, kind, "target/debug", b"")),
                "it contains a link: target/debug",
            );
        }
        for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
            assert_rejected(
                pack_and_check(|tar| add_raw(tar, kind, "target/device", b"")),
                "not a file",
            );
        }
        assert_rejected(
            pack_and_check(|tar| add_raw(tar, EntryType::Regular, "lock", b"")),
            "an unexpected path: lock",
        );
    }

    #[test]
    fn rejects_ambiguous_extended_headers() {
        let extended = |key: &str| {
            pack_and_check(|tar| {
                tar.append_pax_extensions([(key, b"elsewhere".as_slice())])
                    .unwrap();
                add_raw(tar, EntryType::Regular, "target/sparse", b"x");
            })
        };
        assert_rejected(extended("GNU.sparse.name"), "GNU.sparse.name");
        assert_rejected(extended("linkpath"), "linkpath");
        extended("uname").unwrap();
    }

    #[test]
    fn rejects_damaged_truncated_and_enlarged_files() {
        let whole = packed();
        let size = |it: &mut Expected<'_>| it.unpacked = 12;
        let length = whole.len() as u64;
        assert_rejected(
            check_bytes(&whole[..whole.len() / 2], |it| {
                size(it);
                it.bytes = length;
            }),
            "truncated",
        );
        assert_rejected(
            check_bytes(&[&whole[..], b"more"].concat(), |it| {
                size(it);
                it.bytes = length;
            }),
            "larger than recorded",
        );
        let sum = digest::sha256(&whole);
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            let result = check_bytes(&damaged, |it| {
                size(it);
                it.sha256 = sum.strip_prefix("sha256:").unwrap();
            });
            assert_rejected(result, "damaged");
        }
        // Also if the digest matches the truncated file.
        for end in 1..whole.len() {
            assert!(check_bytes(&whole[..end], size).is_err(), "{end}");
        }
    }

    #[test]
    fn rejects_content_of_another_size() {
        assert_rejected(
            check_bytes(&packed(), |it| it.unpacked = 11),
            "is larger than",
        );
        assert_rejected(
            check_bytes(&packed(), |it| it.unpacked = 13),
            "instead of the recorded 13",
        );
        assert_rejected(
            check_bytes(&packed(), |it| it.unpacked = u64::MAX),
            "exceeds the limit",
        );
    }

    #[test]
    fn rejects_a_decompression_bomb_early() {
        let zeros = vec![0; 64 << 20];
        let mut tar = tar::Builder::new(Vec::new());
        add_raw(&mut tar, EntryType::Regular, "target/bomb", &zeros);
        let bomb = zstd::encode_all(&tar.into_inner().unwrap()[..], LEVEL).unwrap();
        assert!(bomb.len() < 64 << 10);
        assert_rejected(
            check_bytes(&bomb, |it| it.unpacked = 4096),
            "is larger than",
        );
    }

    #[test]
    fn unpacks_what_it_packs() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::create_dir_all(from.join("src/a")).unwrap();
        std::fs::write(from.join("src/a/b"), "content").unwrap();
        let file = folder.path().join("packed");
        assert_eq!(pack(&from, &file).unwrap(), 7);
        let bytes = std::fs::read(&file).unwrap();
        check_bytes(&bytes, |it| it.unpacked = 7).unwrap();
        unpack(&file, &to).unwrap();
        assert_eq!(
            std::fs::read_to_string(to.join("src/a/b")).unwrap(),
            "content"
        );
    }
}
