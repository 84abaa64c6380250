//! The files of a run, in all kinds of checkouts: the same on every machine, whether the tree is clean or dirty.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use ci::source::checkout::Checkout;
use ci::source::snapshot::{Place, Snapshot};
use common::failure::{ExitCode, Failure};
use common::progress::{LastNotice, Silent};

use crate::harness::{Project, git};

type Files = BTreeMap<String, (u32, Vec<u8>)>;

/// The files of the checkout in `folder`, with mode and content: the same whether or not an earlier run has left some.
fn files(folder: &Path) -> Result<Files, Failure> {
    let checkout = Checkout::discover(folder)?;
    let files = |place| checkout.snapshot(place, &Silent).map(|it| read(&it));
    let (temporary, kept) = (files(Place::Temporary), files(Place::Kept));
    let message = |failure: &Failure| failure.message.clone();
    assert_eq!(
        temporary.as_ref().map_err(message),
        kept.as_ref().map_err(message)
    );
    temporary
}

fn read(snapshot: &Snapshot) -> Files {
    let mut files = Files::new();
    for entry in walkdir::WalkDir::new(snapshot.path()) {
        let entry = entry.unwrap();
        if entry.file_type().is_dir() {
            continue;
        }
        let name = entry.path().strip_prefix(snapshot.path()).unwrap();
        let content = if entry.path_is_symlink() {
            let target = std::fs::read_link(entry.path()).unwrap();
            target.into_os_string().into_encoded_bytes()
        } else {
            std::fs::read(entry.path()).unwrap()
        };
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        files.insert(name.to_str().unwrap().to_owned(), (mode, content));
    }
    files
}

/// The files of a project, which must be the same from git's objects and, apart from a new file, from the disk.
#[track_caller]
fn files_of(project: &Project) -> Files {
    let clean = files(project.path()).unwrap();
    project.write("new file", "");
    let mut dirty = files(project.path()).unwrap();
    std::fs::remove_file(project.path().join("new file")).unwrap();
    assert!(dirty.remove("new file").is_some());
    assert_eq!(clean, dirty);
    clean
}

fn text<'a>(files: &'a Files, name: &str) -> &'a str {
    std::str::from_utf8(&files[name].1).unwrap()
}

#[test]
fn applies_attributes_and_no_settings_of_this_machine() {
    let project = Project::new("attributes");
    project.write(
        ".gitattributes",
        "* text=auto\n*.crlf text eol=crlf\nstamp ident\nwide text working-tree-encoding=UTF-16LE\narchived export-subst\nunknown filter=of-nobody\n",
    );
    project.write("lines.crlf", "one\r\ntwo\r\n");
    project.write("lines.txt", "one\ntwo\n");
    project.write("stamp", "$Id$\n");
    project.write("archived", "$Format:%H$\n");
    project.write("unknown", "as it is\n");
    std::fs::write(project.path().join("wide"), "h\0i\0").unwrap();
    std::os::unix::fs::symlink("lines.txt", project.path().join("link")).unwrap();
    project.commit("attributes");
    let before = files_of(&project);
    assert_eq!(text(&before, "lines.crlf"), "one\r\ntwo\r\n");
    assert_eq!(text(&before, "lines.txt"), "one\ntwo\n");
    assert_eq!(text(&before, "archived"), "$Format:%H$\n");
    assert_eq!(text(&before, "unknown"), "as it is\n");
    assert_eq!(text(&before, "link"), "lines.txt");
    assert_eq!(before["wide"].1, b"h\0i\0");
    let stamp = text(&before, "stamp");
    assert!(stamp.starts_with("$Id: ") && stamp.len() > 40, "{stamp}");

    for (key, value) in [("core.autocrlf", "true"), ("core.eol", "crlf")] {
        project.git(&["config", key, value]);
    }
    project.write(".git/info/attributes", "*.txt eol=crlf\n");
    project.git(&["rm", "--quiet", "--cached", "-r", "."]);
    project.git(&["reset", "--quiet", "--hard"]);
    let on_disk = project.read("lines.txt");
    assert_eq!(on_disk, "one\r\ntwo\r\n", "the settings have an effect");
    assert_eq!(files_of(&project), before);
}

#[test]
fn refuses_filters_that_it_cannot_apply() {
    let project = Project::new("filters");
    project.write(".gitattributes", "secret/* filter=vault\n");
    project.write("secret/key", "encrypted\n");
    project.commit("a filter");
    project.git(&["config", "filter.vault.clean", "cat"]);
    // A filter that this machine does not apply changes nothing.
    assert_eq!(text(&files_of(&project), "secret/key"), "encrypted\n");
    for (key, value) in [
        ("filter.vault.smudge", "tr a-z b-za"),
        ("filter.vault.required", "true"),
    ] {
        project.git(&["config", key, value]);
        let failure = files(project.path()).unwrap_err();
        assert_eq!(failure.code, ExitCode::Usage, "{key}");
        let message = failure.to_string();
        assert!(
            message.contains("secret/key needs the git filter vault"),
            "{message}"
        );
        project.git(&["config", "--unset", key]);
    }
}

#[test]
fn replaces_pointers_of_git_lfs_and_never_ships_one() {
    let project = Project::new("lfs");
    project.write(
        ".gitattributes",
        "*.bin filter=lfs diff=lfs merge=lfs -text\n",
    );
    let stored = project.add_to_lfs("assets/logo.bin", "the whole logo");
    project.write("assets/plain.bin", "committed without Git LFS");
    project.commit("a large file");
    let found = files_of(&project);
    assert_eq!(text(&found, "assets/logo.bin"), "the whole logo");
    assert_eq!(
        text(&found, "assets/plain.bin"),
        "committed without Git LFS"
    );
    assert_eq!(found["assets/logo.bin"].0, 0o644);

    // A worktree shares the store. A changed file is taken from the disk.
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    project.git(&[
        "worktree",
        "add",
        "--quiet",
        "--detach",
        other.to_str().unwrap(),
    ]);
    assert_eq!(
        text(&files(&other).unwrap(), "assets/logo.bin"),
        "the whole logo"
    );
    std::fs::write(other.join("assets/logo.bin"), "a new logo").unwrap();
    assert_eq!(
        text(&files(&other).unwrap(), "assets/logo.bin"),
        "a new logo"
    );

    std::fs::write(&stored, "a damaged logo").unwrap();
    let failure = files(project.path()).unwrap_err();
    assert_eq!(failure.code, ExitCode::Environment);
    assert!(failure.to_string().contains("damaged"), "{failure}");
    std::fs::remove_file(&stored).unwrap();
    let failure = files(project.path()).unwrap_err();
    assert_eq!(failure.code, ExitCode::Usage);
    let message = failure.to_string();
    assert!(
        message.contains("assets/logo.bin is in Git LFS (filter lfs)"),
        "{message}"
    );
}

#[test]
fn sees_files_that_are_not_checked_out() {
    let project = Project::new("sparse");
    project.write("docs/guide.md", "a guide\n");
    project.write("docs/other.md", "another\n");
    project.commit("documentation");
    let whole = files(project.path()).unwrap();
    project.git(&["sparse-checkout", "set", "api"]);
    assert!(!project.path().join("docs").exists());
    // Clean, as a commit; dirty, as the working tree with what it leaves out.
    assert_eq!(files(project.path()).unwrap(), whole);
    project.write("api/new.txt", "");
    let mut dirty = files(project.path()).unwrap();
    assert!(dirty.remove("api/new.txt").is_some());
    assert_eq!(dirty, whole);
    project.git(&["sparse-checkout", "disable"]);

    // Without the mark, a missing file is deleted.
    std::fs::remove_file(project.path().join("docs/guide.md")).unwrap();
    let dirty = files(project.path()).unwrap();
    assert!(!dirty.contains_key("docs/guide.md") && dirty.contains_key("docs/other.md"));
}

#[test]
fn ignored_files_are_never_uploaded() {
    let project = Project::new("ignored");
    let before = files_of(&project);
    for number in 0..100 {
        project.write(&format!("target/{number}"), "ignored\n");
    }
    project.write(".git/info/exclude", "*.log\n");
    project.write("api/service.log", "ignored\n");
    assert_eq!(files_of(&project), before);
}

#[test]
fn sees_the_disk_whatever_the_index_says() {
    let project = Project::new("index");
    project.write("assumed.txt", "before\n");
    project.write("staged.txt", "before\n");
    project.commit("two files");
    project.git(&["update-index", "--assume-unchanged", "assumed.txt"]);
    project.write("assumed.txt", "edited\n");
    project.write("staged.txt", "staged\n");
    project.git(&["add", "staged.txt"]);
    project.write("staged.txt", "edited\n");
    for split in [false, true] {
        if split {
            project.git(&["update-index", "--split-index"]);
        }
        let dirty = files(project.path()).unwrap();
        for name in ["assumed.txt", "staged.txt"] {
            assert_eq!(text(&dirty, name), "edited\n", "{name}, split: {split}");
        }
    }
    let index = project.git(&["diff", "--cached", "--name-only"]);
    assert_eq!(
        index, "staged.txt",
        "the repository's own index is unchanged"
    );
}

#[test]
fn fetches_the_missing_objects_of_a_partial_clone_at_once() {
    let project = Project::new("partial");
    for number in 0..50 {
        project.write(&format!("docs/{number}.md"), &format!("page {number}\n"));
    }
    project.commit("documentation");
    project.git(&["config", "uploadpack.allowFilter", "true"]);
    project.git(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
    let whole = files(project.path()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", project.path().display());
    for filter in ["blob:none", "tree:0"] {
        let clone = folder.path().join(filter.replace(':', "-"));
        git(
            folder.path(),
            &[
                "clone",
                "--quiet",
                "--sparse",
                &format!("--filter={filter}"),
                &url,
                clone.to_str().unwrap(),
            ],
        );
        git(&clone, &["sparse-checkout", "set", "api"]);
        let notice = LastNotice::default();
        let checkout = Checkout::discover(&clone).unwrap();
        assert!(checkout.is_clean());
        checkout.snapshot(Place::Temporary, &notice).unwrap();
        let notice = notice.into_text();
        assert!(
            notice.contains("partial: fetching ") && notice.ends_with("from origin"),
            "{filter}: {notice}"
        );
        assert_eq!(files(&clone).unwrap(), whole, "{filter}");
    }
    // Without its remote, the clone says what it lacks.
    let clone = folder.path().join("alone");
    git(
        folder.path(),
        &[
            "clone",
            "--quiet",
            "--sparse",
            "--filter=blob:none",
            &url,
            clone.to_str().unwrap(),
        ],
    );
    git(
        &clone,
        &["remote", "set-url", "origin", "file:///nonexistent"],
    );
    let failure = files(&clone).unwrap_err();
    assert_eq!(failure.code, ExitCode::Environment);
    assert!(failure.to_string().contains("missing objects"), "{failure}");
}

#[test]
fn names_the_files_that_make_a_tree_dirty() {
    let project = Project::new("changes");
    project.write("a.txt", "");
    project.git(&["mv", ".gitignore", "moved"]);
    let checkout = Checkout::discover(project.path()).unwrap();
    assert_eq!(checkout.changes, ["moved", "a.txt"]);
    for number in 0..9 {
        project.write(&format!("b{number}.txt"), "");
    }
    let checkout = Checkout::discover(project.path()).unwrap();
    assert_eq!(checkout.changes.len(), 6);
    assert_eq!(checkout.changes[5], "…");
}

#[test]
fn notices_an_edit_in_the_second_of_the_commit() {
    let project = Project::new("racy");
    for number in 0..20 {
        project.write("file.txt", &format!("before {number:02}\n"));
        project.commit("before");
        // The same size, and most likely the same second.
        project.write("file.txt", &format!("edited {number:02}\n"));
        let dirty = files(project.path()).unwrap();
        assert_eq!(text(&dirty, "file.txt"), format!("edited {number:02}\n"));
    }
}

#[test]
fn kept_files_are_corrected_and_otherwise_not_touched() {
    let project = Project::new("kept");
    for name in ["same", "edited", "gone", "changed"] {
        project.write(name, "old");
    }
    project.commit("files");
    let snapshot = || {
        let checkout = Checkout::discover(project.path()).unwrap();
        checkout.snapshot(Place::Kept, &Silent).unwrap()
    };
    let first = snapshot();
    let folder = first.path().to_owned();
    let inode = |name: &str| std::fs::metadata(folder.join(name)).unwrap().ino();
    // Another run at the same time has files of its own.
    let other = snapshot();
    assert_ne!(other.path(), folder);
    assert_eq!(read(&other), read(&first));
    drop((first, other));

    let before = inode("same");
    std::fs::write(folder.join("edited"), "odd").unwrap();
    std::fs::write(folder.join("more"), "odd").unwrap();
    std::fs::remove_file(folder.join("gone")).unwrap();
    project.write("changed", "new");
    project.commit("a change");
    let second = snapshot();
    assert_eq!(second.path(), folder);
    assert_eq!(inode("same"), before);
    let files = read(&second);
    for (name, content) in [
        ("same", "old"),
        ("edited", "old"),
        ("gone", "old"),
        ("changed", "new"),
    ] {
        assert_eq!(text(&files, name), content, "{name}");
    }
    assert!(!files.contains_key("more"));
    drop(second);

    // What a killed run has left.
    std::fs::write(folder.parent().unwrap().join("index.lock"), "").unwrap();
    std::fs::write(folder.parent().unwrap().join("index"), "not an index").unwrap();
    assert_eq!(read(&snapshot()), files);
}
