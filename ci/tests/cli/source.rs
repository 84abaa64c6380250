//! Finding the commit to build, in all kinds of git checkouts.

use std::path::Path;

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

#[test]
fn rejects_a_submodule_by_name() {
    let project = Project::new("submodule");
    let nested = project.path().join("vendored");
    std::fs::create_dir(&nested).unwrap();
    git(&nested, &["init", "--quiet"]);
    git(
        &nested,
        &["commit", "--quiet", "--allow-empty", "--message", "inner"],
    );
    project.commit("a repository in the repository");
    ci(&project, &[])
        .run()
        .refuses(2, "vendored is a git submodule")
        .says("hint: Vendor the files or depend on a released crate");
    project.write("new.txt", "and uncommitted changes\n");
    ci(&project, &[])
        .run()
        .refuses(2, "vendored is a git submodule");
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
