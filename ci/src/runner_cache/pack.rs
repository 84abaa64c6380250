//! A packed part of the cache: a tar archive, compressed with Zstandard, of nothing but files and folders below known names.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

use eyre::{WrapErr as _, bail, ensure};
use tar::EntryType;

use common::digest;

/// No part of a cache is as large: what says that it is has been made to fill somebody's disk.
const MOST_UNPACKED: u64 = 32 << 30;
/// How hard to compress: more takes longer than the runner's store takes to carry the rest.
pub const LEVEL: i32 = 3;

/// What an entry may say beside its header: what a plain file has.
const EXTENSIONS: [&str; 7] = ["gid", "gname", "mtime", "path", "size", "uid", "uname"];

/// What a packed part is known to be.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The SHA-256 of its file, in hexadecimal digits.
    pub sha256: &'a str,
    /// The length of its file.
    pub bytes: u64,
    /// The length of all files in it.
    pub unpacked: u64,
    /// What may be at its top.
    pub tops: &'a [&'a str],
}

/// Whether `file` is what is expected, whole, and nothing in it leads elsewhere. Everything is looked at before anything of it is
/// unpacked.
///
/// # Errors
/// Why it is not.
pub fn check(file: &Path, expected: &Expected<'_>) -> eyre::Result<()> {
    let data = file.symlink_metadata().wrap_err("it is not there")?;
    ensure!(data.is_file(), "it is not a file");
    ensure!(
        data.len() >= expected.bytes,
        "it is truncated: {} of {} bytes",
        data.len(),
        expected.bytes
    );
    ensure!(
        data.len() == expected.bytes,
        "it is larger than it says: {} bytes, not {}",
        data.len(),
        expected.bytes
    );
    ensure!(
        expected.unpacked <= MOST_UNPACKED,
        "it says that it has {} bytes in it, which is too much",
        expected.unpacked
    );
    let sum = digest::sha256_of_file(file)?;
    ensure!(
        sum.strip_prefix("sha256:") == Some(expected.sha256),
        "it is damaged: it has the digest {sum}"
    );
    let mut sum = 0;
    entries(File::open(file)?, |entry| {
        sum += entry.size();
        ensure!(
            sum <= expected.unpacked,
            "there is more in it than the {} bytes that it says",
            expected.unpacked
        );
        plain(entry, expected.tops)
    })?;
    ensure!(
        sum == expected.unpacked,
        "there are {sum} bytes in it, not the {} that it says",
        expected.unpacked
    );
    Ok(())
}

/// Goes through the entries of a packed part.
fn entries(
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

/// It is a file or a folder below one of `tops`, and says nothing of itself that another reader might take for more.
fn plain(entry: &mut tar::Entry<'_, &mut dyn Read>, tops: &[&str]) -> eyre::Result<()> {
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let key = extension.key()?;
            ensure!(
                EXTENSIONS.contains(&key),
                "there is an extension in it that is not known: {key}"
            );
        }
    }
    let path = entry.path()?;
    let name = path.display();
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::Directory => {}
        EntryType::Symlink | EntryType::Link => bail!("there is a link in it: {name}"),
        other => bail!("there is something in it that is no file: {name} ({other:?})"),
    }
    ensure!(
        path.components()
            .all(|part| matches!(part, Component::Normal(_))),
        "there is a path in it that leads out: {name}"
    );
    let top = path.iter().next().unwrap_or_default();
    ensure!(
        tops.iter().any(|known| top == *known),
        "there is something in it that does not belong there: {name}"
    );
    Ok(())
}

/// Packs everything in a folder into `to`; returns the length of all files in it.
///
/// # Errors
/// When something cannot be read or written.
pub fn pack(folder: &Path, to: &Path) -> io::Result<u64> {
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

/// Unpacks what [`check`] has found well into a folder of this machine.
///
/// # Errors
/// When it cannot be read or written.
pub fn unpack(file: &Path, to: &Path) -> io::Result<()> {
    tar::Archive::new(zstd::Decoder::new(File::open(file)?)?).unpack(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPS: &[&str] = &["target", "src"];

    /// Packs what `fill` puts into an archive, and checks it as somebody who was told the truth about it.
    fn checked(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> eyre::Result<()> {
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

    /// Checks these bytes; `change` says something else of them than the truth.
    fn check_bytes<'a>(packed: &[u8], change: impl FnOnce(&mut Expected<'a>)) -> eyre::Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("packed");
        std::fs::write(&file, packed).unwrap();
        let truth = digest::sha256(packed);
        let mut expected = Expected {
            sha256: "",
            bytes: packed.len() as u64,
            unpacked: 0,
            tops: TOPS,
        };
        change(&mut expected);
        let sum = truth.strip_prefix("sha256:").unwrap();
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

    /// An entry with a path that the library itself would not write.
    fn raw(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, path: &str, content: &[u8]) {
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
        raw(&mut tar, EntryType::Directory, "src/", b"");
        raw(&mut tar, EntryType::Regular, "src/main.rs", b"fn main() {}");
        zstd::encode_all(&tar.into_inner().unwrap()[..], LEVEL).unwrap()
    }

    #[track_caller]
    fn refused(result: eyre::Result<()>, why: &str) {
        let said = format!("{:#}", result.unwrap_err());
        assert!(said.contains(why), "{said}");
    }

    #[test]
    fn files_and_folders_below_the_known_names_are_taken() {
        checked(|tar| {
            raw(tar, EntryType::Directory, "target/debug/", b"");
            raw(tar, EntryType::Regular, "target/debug/api", b"1234");
            raw(tar, EntryType::Regular, "src/a/b.rs", b"");
        })
        .unwrap();
        check_bytes(&packed(), |it| it.unpacked = 12).unwrap();
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for path in ["../etc/passwd", "target/../../etc/passwd", "/etc/passwd"] {
            refused(
                checked(|tar| raw(tar, EntryType::Regular, path, b"x")),
                "leads out",
            );
        }
        for kind in [EntryType::Symlink, EntryType::Link] {
            refused(
                checked(|tar| raw(tar, kind, "target/debug", b"")),
                "there is a link in it: target/debug",
            );
        }
        for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
            refused(
                checked(|tar| raw(tar, kind, "target/device", b"")),
                "no file",
            );
        }
        refused(
            checked(|tar| raw(tar, EntryType::Regular, "lock", b"")),
            "does not belong there: lock",
        );
    }

    #[test]
    fn what_two_readers_might_understand_in_two_ways_is_refused() {
        let extended = |key: &str| {
            checked(|tar| {
                tar.append_pax_extensions([(key, b"elsewhere".as_slice())])
                    .unwrap();
                raw(tar, EntryType::Regular, "target/sparse", b"x");
            })
        };
        refused(extended("GNU.sparse.name"), "GNU.sparse.name");
        refused(extended("linkpath"), "linkpath");
        extended("uname").unwrap();
    }

    #[test]
    fn what_is_damaged_truncated_or_grown_is_refused() {
        let whole = packed();
        let right = |it: &mut Expected<'_>| it.unpacked = 12;
        let length = whole.len() as u64;
        refused(
            check_bytes(&whole[..whole.len() / 2], |it| {
                right(it);
                it.bytes = length;
            }),
            "truncated",
        );
        refused(
            check_bytes(&[&whole[..], b"more"].concat(), |it| {
                right(it);
                it.bytes = length;
            }),
            "larger than it says",
        );
        let sum = digest::sha256(&whole);
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            let result = check_bytes(&damaged, |it| {
                right(it);
                it.sha256 = sum.strip_prefix("sha256:").unwrap();
            });
            refused(result, "damaged");
        }
        // Also where somebody has put its own digest beside it.
        for end in 1..whole.len() {
            assert!(check_bytes(&whole[..end], right).is_err(), "{end}");
        }
    }

    #[test]
    fn there_is_as_much_in_it_as_it_says() {
        refused(check_bytes(&packed(), |it| it.unpacked = 11), "more in it");
        refused(check_bytes(&packed(), |it| it.unpacked = 13), "not the 13");
        refused(
            check_bytes(&packed(), |it| it.unpacked = u64::MAX),
            "too much",
        );
    }

    #[test]
    fn a_small_file_that_would_fill_the_disk_is_refused_before_it_does() {
        let zeros = vec![0; 64 << 20];
        let mut tar = tar::Builder::new(Vec::new());
        raw(&mut tar, EntryType::Regular, "target/bomb", &zeros);
        let bomb = zstd::encode_all(&tar.into_inner().unwrap()[..], LEVEL).unwrap();
        assert!(bomb.len() < 64 << 10);
        refused(check_bytes(&bomb, |it| it.unpacked = 4096), "more in it");
    }

    #[test]
    fn what_is_packed_is_unpacked() {
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
