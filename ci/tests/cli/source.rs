//! Finding the commit to build, in all kinds of git checkouts.

use std::path::Path;

use ci::source::checkout::Checkout;
use ci::source::snapshot::Place;
use common::progress::Silent;
use serde_json::Value;

use crate::harness::{Outcome, Project, git};
use crate::{Assertions, ci, ci_in};

#[test]
fn rejects_a_directory_outside_a_repository() {
    let folder = tempfile::tempdir().unwrap();
    ci_in(folder.path(), &[])
        .run()
        .refuses(2, "is not in a git working tree")
        .says("hint: Run ci in a git checkout");
}

#[test]
fn rejects_a_repository_without_commits() {
    let folder = tempfile::tempdir().unwrap();
    git(folder.path(), &["init", "--quiet"]);
    ci_in(folder.path(), &[])
        .run()
        .refuses(2, "has no commit yet")
        .says("hint: Create a commit first");
}

#[test]
fn rejects_the_git_directory() {
    let project = Project::new("inside");
    ci_in(&project.path().join(".git"), &[])
        .run()
        .refuses(2, "is not in a git working tree");
}

#[test]
fn rejects_a_bare_repository() {
    let project = Project::new("bare");
    let folder = tempfile::tempdir().unwrap();
    let bare = folder.path().join("bare.git");
    clone(&project, &["--bare"], &bare);
    ci_in(&bare, &[])
        .run()
        .refuses(2, "is not in a git working tree");
}

fn clone(project: &Project, options: &[&str], to: &Path) {
    let url = format!("file://{}", project.path().display());
    let arguments = [
        &["clone", "--quiet"],
        options,
        &[&url, to.to_str().unwrap()],
    ]
    .concat();
    git(project.path(), &arguments);
}

/// Asserts that the run used this commit, with a clean working tree, and failed only because the engine is missing.
#[track_caller]
fn is_clean_at(outcome: Outcome, sha: &str) -> Outcome {
    let outcome = outcome.finds_no_engine();
    assert_eq!(outcome.report["commit"], sha);
    assert_eq!(outcome.report["clean"], true);
    let tag = outcome.report["tag"].as_str().unwrap();
    assert!(tag.len() >= 4 && sha.starts_with(tag), "{tag} of {sha}");
    outcome
}

#[test]
fn accepts_a_path_with_a_space() {
    let project = Project::new("space");
    assert!(project.path().to_str().unwrap().contains(' '));
    is_clean_at(
        ci(&project, &[]).run(),
        &project.git(&["rev-parse", "HEAD"]),
    );
}

#[test]
fn accepts_a_shallow_clone() {
    let project = Project::new("shallow");
    let head = project.commit("a second one");
    let folder = tempfile::tempdir().unwrap();
    let shallow = folder.path().join("shallow");
    clone(&project, &["--depth", "1"], &shallow);
    assert_eq!(git(&shallow, &["rev-list", "--count", "HEAD"]), "1");
    is_clean_at(ci_in(&shallow, &[]).run(), &head);
}

#[test]
fn accepts_a_detached_head() {
    let project = Project::new("detached");
    let first = project.git(&["rev-parse", "HEAD"]);
    project.commit("a second one");
    project.git(&["checkout", "--quiet", "--detach", &first]);
    is_clean_at(ci(&project, &[]).run(), &first);
}

#[test]
fn uses_the_commit_of_a_worktree() {
    let project = Project::new("worktree");
    let first = project.git(&["rev-parse", "HEAD"]);
    project.commit("a second one");
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    project.git(&[
        "worktree",
        "add",
        "--quiet",
        "--detach",
        tree.to_str().unwrap(),
        &first,
    ]);
    is_clean_at(ci_in(&tree, &[]).run(), &first);
}

#[test]
fn runs_the_whole_repository_from_a_subdirectory() {
    let project = Project::new("subdirectory");
    project.write("ci.toml", "repository = \"from/file\"\n");
    let head = project.commit("settings at the top");
    ci_in(&project.path().join("api/src"), &[])
        .run()
        .finds_no_engine();
    assert!(!project.path().join("api/src/target").exists());
    let report = std::fs::read_to_string(project.path().join("target/ci/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["commit"], head.as_str());
    assert_eq!(report["verdict"]["exit_code"], 3);
    let image = report["image"].as_str().unwrap();
    assert!(image.contains("/from/file:"), "{image}");
}

#[test]
fn marks_uncommitted_changes_in_the_tag() {
    let project = Project::new("dirty");
    project.write("new.txt", "not yet committed\n");
    let outcome = ci(&project, &[]).run().finds_no_engine();
    assert_eq!(outcome.report["clean"], false);
    let tag = outcome.report["tag"].as_str().unwrap();
    assert!(tag.ends_with("-dirty"), "{tag}");
}

#[test]
fn ignores_the_git_variables_of_a_hook() {
    let (project, other) = (Project::new("hook"), Project::new("other"));
    let head = project.commit("a second one");
    let other_git = other.path().join(".git");
    let outcome = ci(&project, &[])
        .env("GIT_DIR", other_git.to_str().unwrap())
        .env("GIT_WORK_TREE", other.path().to_str().unwrap())
        .run();
    is_clean_at(outcome, &head);
}

/// A project with the submodule `vendor/dep`, which has the submodule `deep` itself, and the folder of their origins.
fn project_with_submodules(name: &str) -> (Project, tempfile::TempDir) {
    let origins = tempfile::tempdir().unwrap();
    let origin = |name: &str| {
        let folder = origins.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        git(&folder, &["init", "--quiet"]);
        std::fs::write(folder.join("file.txt"), format!("{name}\n")).unwrap();
        folder
    };
    let commit = |folder: &Path| {
        git(folder, &["add", "."]);
        git(folder, &["commit", "--quiet", "--message", "a file"]);
    };
    let deep = origin("deep");
    commit(&deep);
    let dep = origin("dep");
    add_submodule(&dep, &deep, "deep");
    commit(&dep);
    let project = Project::new(name);
    add_submodule(project.path(), &dep, "vendor/dep");
    update_submodules(project.path());
    project.commit("a submodule");
    (project, origins)
}

fn add_submodule(folder: &Path, url: &Path, path: &str) {
    let url = url.to_str().unwrap();
    let allow = "protocol.file.allow=always";
    git(
        folder,
        &["-c", allow, "submodule", "--quiet", "add", url, path],
    );
}

fn update_submodules(folder: &Path) {
    let update = ["submodule", "--quiet", "update", "--init", "--recursive"];
    let allow = ["-c", "protocol.file.allow=always"];
    git(folder, &[&allow[..], &update].concat());
}

#[test]
fn takes_submodules_at_their_commit() {
    let (project, _origins) = project_with_submodules("submodules");
    let files = || {
        let checkout = Checkout::discover(project.path()).unwrap();
        let snapshot = checkout.snapshot(Place::Temporary, &Silent).unwrap();
        assert!(snapshot.missing().is_empty());
        let read = |name: &str| std::fs::read_to_string(snapshot.path().join(name)).ok();
        let names = ["file.txt", "deep/file.txt", "new.txt"];
        let contents = names.map(|name| read(&format!("vendor/dep/{name}")));
        (
            checkout.is_clean(),
            contents.map(Option::unwrap_or_default).join("|"),
        )
    };
    assert_eq!(files(), (true, "dep\n|deep\n|".to_owned()));
    // A change somewhere else does not change them.
    project.write("other.txt", "");
    assert_eq!(files(), (false, "dep\n|deep\n|".to_owned()));
    std::fs::remove_file(project.path().join("other.txt")).unwrap();
    // Git does not see this edit, so the files are those of the commit.
    let dep = project.path().join("vendor/dep");
    git(&dep, &["update-index", "--assume-unchanged", "file.txt"]);
    project.write("vendor/dep/file.txt", "edited\n");
    assert_eq!(files(), (true, "dep\n|deep\n|".to_owned()));
    // Edits that it sees make the tree dirty, and the files are those on the disk.
    project.write("vendor/dep/deep/file.txt", "edited\n");
    project.write("vendor/dep/new.txt", "new\n");
    assert_eq!(files(), (false, "edited\n|edited\n|new\n".to_owned()));
    // As is another commit.
    git(&dep.join("deep"), &["checkout", "--quiet", "."]);
    git(&dep, &["update-index", "--no-assume-unchanged", "file.txt"]);
    git(&dep, &["add", "file.txt", "new.txt"]);
    git(&dep, &["commit", "--quiet", "--message", "another commit"]);
    assert_eq!(files(), (false, "edited\n|deep\n|new\n".to_owned()));
}

#[test]
fn takes_the_submodules_of_a_worktree_from_the_main_one() {
    let (project, _origins) = project_with_submodules("submodules-of-worktree");
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    let add = ["worktree", "add", "--quiet", "--detach"];
    project.git(&[&add[..], &[tree.to_str().unwrap()]].concat());
    assert!(!tree.join("vendor/dep/file.txt").exists());
    let snapshot = Checkout::discover(&tree)
        .unwrap()
        .snapshot(Place::Temporary, &Silent)
        .unwrap();
    let deep = snapshot.path().join("vendor/dep/deep/file.txt");
    assert_eq!(std::fs::read_to_string(deep).unwrap(), "deep\n");
}

#[test]
fn refuses_a_missing_submodule_unless_paths_exclude_it() {
    let (project, _origins) = project_with_submodules("missing-submodule");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    clone(&project, &[], &copy);
    let missing = "submodule vendor/dep is not checked out, and it is part of the sources of";
    ci_in(&copy, &[])
        .run()
        .refuses(2, &format!("{missing} test, fmt, lint, build"))
        .says("hint: Run `git submodule update --init --recursive`.");
    let doctor = ci_in(&copy, &["doctor"]).run().exits(3);
    assert!(doctor.stdout.contains(missing), "{}", doctor.stdout);
    ci_in(&copy, &["init"])
        .run()
        .exits(0)
        .says(&format!("to do    {missing}"));

    let excluded = r#"["**", "!vendor/**"]"#;
    let paths = ["test", "fmt", "lint"].map(|step| format!("{step} = {excluded}\n"));
    let paths = format!("[paths]\n{}", paths.concat());
    std::fs::write(copy.join("ci.toml"), &paths).unwrap();
    ci_in(&copy, &["fmt"]).run().finds_no_engine();
    ci_in(&copy, &[])
        .run()
        .refuses(2, &format!("{missing} build\n"))
        .says("in [paths] of ci.toml: build = [\"**\", \"!vendor/dep/**\"].");
    std::fs::write(copy.join("ci.toml"), format!("{paths}build = {excluded}\n")).unwrap();
    ci_in(&copy, &[]).run().finds_no_engine();

    // Without the nested one, only that is missing.
    let update = ["submodule", "--quiet", "update", "--init"];
    let allow = ["-c", "protocol.file.allow=always"];
    git(&copy, &[&allow[..], &update].concat());
    std::fs::remove_file(copy.join("ci.toml")).unwrap();
    ci_in(&copy, &[])
        .run()
        .refuses(2, "submodule vendor/dep/deep is not checked out");
    update_submodules(&copy);
    ci_in(&copy, &[]).run().finds_no_engine();
}

#[test]
fn rejects_another_repository_by_name() {
    let project = Project::new("nested");
    let nested = project.path().join("nested");
    std::fs::create_dir(&nested).unwrap();
    git(&nested, &["init", "--quiet"]);
    git(
        &nested,
        &["commit", "--quiet", "--allow-empty", "--message", "inner"],
    );
    ci(&project, &[])
        .run()
        .refuses(2, "nested is another git repository")
        .says("hint: Add it to .gitignore, or make it a submodule");
    // Git accepts it with a warning, and nobody else gets its files.
    project.commit("a repository in the repository");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    clone(&project, &[], &copy);
    ci_in(&copy, &[])
        .run()
        .refuses(2, "nested is a commit of another repository")
        .says("git rm --cached nested");
}

#[test]
fn suggests_installing_git_if_it_is_missing() {
    let project = Project::new("no-git");
    let empty = tempfile::tempdir().unwrap();
    ci(&project, &[])
        .env("PATH", empty.path().to_str().unwrap())
        .run()
        .refuses(3, "cannot run git")
        .says("hint: Install git");
}
