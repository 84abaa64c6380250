//! Copies, digests and tar archives of directories.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use sha2::{Digest, Sha256};
use tar::{Builder, EntryType};
use walkdir::WalkDir;

/// The source of this file. Cache keys include it, because a change may change the output of these functions.
pub const SOURCE: &[u8] = include_bytes!("file_tree.rs");

/// Copies everything below `from` into the directory `to`, except for devices and sockets. `keep` decides by the path relative to
/// `from`; if it rejects a directory, everything below is skipped.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy(from: &Path, to: &Path, keep: impl Fn(&Path) -> bool) -> io::Result<()> {
    let relative = |path: &Path| path.strip_prefix(from).unwrap_or(path).to_owned();
    fs::create_dir_all(to)?;
    let entries = WalkDir::new(from)
        .min_depth(1)
        .into_iter()
        .filter_entry(|entry| keep(&relative(entry.path())));
    for entry in entries {
        let entry = entry?;
        let target = to.join(relative(entry.path()));
        let kind = entry.file_type();
        if kind.is_dir() {
            fs::create_dir(&target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Removes the contents of a directory but keeps the directory. Does nothing if it does not exist.
///
/// # Errors
/// When a file cannot be removed.
pub fn empty(folder: &Path) -> io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Returns a digest of names, file types, permissions and contents below a directory. Owners and times do not count.
///
/// # Errors
/// When a file cannot be read.
pub fn digest(folder: &Path) -> io::Result<String> {
    let mut sum = HashWriter(Sha256::new());
    let mut tar = Builder::new(&mut sum);
    append(&mut tar, folder)?;
    tar.finish()?;
    drop(tar);
    Ok(format!("sha256:{}", hex::encode(sum.0.finalize())))
}

/// Returns a short digest of the content of each file below a directory, by its path relative to the directory. The digest of a symlink
/// is that of its target's path.
///
/// # Errors
/// When a file cannot be read.
pub fn digests(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut digests = BTreeMap::new();
    for entry in WalkDir::new(folder).min_depth(1) {
        let entry = entry?;
        let mut sum = HashWriter(Sha256::new());
        if entry.path_is_symlink() {
            sum.0
                .update(fs::read_link(entry.path())?.as_os_str().as_encoded_bytes());
        } else if entry.file_type().is_file() {
            let is_executable = entry.metadata()?.mode() & 0o111 != 0;
            sum.0.update([u8::from(is_executable)]);
            io::copy(&mut File::open(entry.path())?, &mut sum)?;
        } else {
            continue;
        }
        let path = entry.path().strip_prefix(folder).unwrap_or(entry.path());
        let digest = hex::encode(sum.0.finalize());
        digests.insert(path.display().to_string(), digest[..16].to_owned());
    }
    Ok(digests)
}

/// Writes a file, readable by everybody or with the permissions that it had: readers see the whole file, or the one before.
///
/// # Errors
/// When the file cannot be written.
pub fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(text)?;
    // Temporary files are only readable by their owner.
    let permissions = match fs::metadata(path) {
        Ok(known) => known.permissions(),
        Err(_) => fs::Permissions::from_mode(0o644),
    };
    file.as_file().set_permissions(permissions)?;
    file.persist(path)?;
    Ok(())
}

/// Appends everything below a directory to a tar archive, sorted by name, owned by root and without times.
///
/// # Errors
/// When a file cannot be read, or the tar cannot be written.
pub fn append<W: Write>(tar: &mut Builder<W>, folder: &Path) -> io::Result<()> {
    for entry in WalkDir::new(folder).min_depth(1).sort_by_file_name() {
        let entry = entry?;
        let data = entry.metadata()?;
        let path = entry
            .path()
            .strip_prefix(folder)
            .map_err(io::Error::other)?;
        let mut header = header(0, data.mode() & 0o7777);
        let kind = data.file_type();
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, path, io::empty())?;
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            tar.append_link(&mut header, path, fs::read_link(entry.path())?)?;
        } else if kind.is_file() {
            header.set_size(data.len());
            tar.append_data(&mut header, path, File::open(entry.path())?)?;
        }
    }
    Ok(())
}

/// Returns a reproducible tar header: owned by root, with the modification time 0.
#[must_use]
pub fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

struct HashWriter(Sha256);

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn sample(names: [&str; 3], mode: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("left/out/deep")).expect("folders");
        fs::write(folder.path().join("left/out/deep/file"), "no").expect("a file");
        for name in names {
            let file = folder.path().join(name);
            fs::write(&file, name).expect("a file");
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("rights");
        }
        symlink("a", folder.path().join("link")).expect("a link");
        folder
    }

    #[test]
    fn digest_depends_on_names_permissions_and_contents() {
        let of = |folder: &tempfile::TempDir| digest(folder.path()).expect("a digest");
        let one = of(&sample(["a", "b", "c"], 0o700));
        assert_eq!(
            one,
            of(&sample(["c", "b", "a"], 0o700)),
            "the order of creation"
        );
        assert_ne!(one, of(&sample(["a", "b", "c"], 0o755)), "permissions");
        assert_ne!(one, of(&sample(["a", "b", "d"], 0o700)), "a name");
        let other = sample(["a", "b", "c"], 0o700);
        fs::write(other.path().join("a"), "another").expect("a file");
        assert_ne!(one, of(&other), "content");
    }

    #[test]
    fn copy_contains_everything_that_is_not_excluded() {
        let (from, to) = (
            sample(["a", "b", "c"], 0o750),
            tempfile::tempdir().expect("a folder"),
        );
        let (all, some) = (to.path().join("all"), to.path().join("some"));
        copy(from.path(), &all, |_| true).expect("copied");
        assert_eq!(
            digest(&all).expect("a digest"),
            digest(from.path()).expect("a digest")
        );
        copy(from.path(), &some, |path| !path.starts_with("left/out")).expect("copied");
        assert!(some.join("left").is_dir() && !some.join("left/out").exists());
        empty(&some).expect("emptied");
        assert_eq!(fs::read_dir(&some).expect("still there").count(), 0);
    }
}
