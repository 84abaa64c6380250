//! Whatever git is asked about: a clear error, or the right commit.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Outcome, Project, git};
use crate::{Ends, ci, ci_in};

#[test]
fn a_folder_without_a_repository_refuses() {
    let folder = tempfile::tempdir().unwrap();
    ci_in(folder.path(), &[])
        .run()
        .refuses(2, "is not in a git working tree")
        .says("hint: Run ci in a checkout");
}

#[test]
fn a_repository_without_a_commit_refuses() {
    let folder = tempfile::tempdir().unwrap();
    git(folder.path(), &["init", "--quiet"]);
    ci_in(folder.path(), &[])
        .run()
        .refuses(2, "has no commit yet")
        .says("hint: Commit something first");
}

#[test]
fn inside_of_the_git_folder_there_is_nothing_to_build() {
    let project = Project::new("inside");
    ci_in(&project.path().join(".git"), &[])
        .run()
        .refuses(2, "is not in a git working tree");
}

#[test]
fn a_bare_repository_has_nothing_to_build() {
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

/// It got as far as the engine, with this commit and nothing changed against it.
#[track_caller]
fn is_at(outcome: Outcome, sha: &str) -> Outcome {
    let outcome = outcome.misses_the_engine();
    assert_eq!(outcome.report["commit"], sha);
    assert_eq!(outcome.report["clean"], true);
    let tag = outcome.report["tag"].as_str().unwrap();
    assert!(tag.len() >= 4 && sha.starts_with(tag), "{tag} of {sha}");
    outcome
}

#[test]
fn a_path_with_a_space_runs() {
    let project = Project::new("space");
    assert!(project.path().to_str().unwrap().contains(' '));
    is_at(
        ci(&project, &[]).run(),
        &project.git(&["rev-parse", "HEAD"]),
    );
}

#[test]
fn a_shallow_clone_runs() {
    let project = Project::new("shallow");
    let head = project.commit("a second one");
    let folder = tempfile::tempdir().unwrap();
    let shallow = folder.path().join("shallow");
    clone(&project, &["--depth", "1"], &shallow);
    assert_eq!(git(&shallow, &["rev-list", "--count", "HEAD"]), "1");
    is_at(ci_in(&shallow, &[]).run(), &head);
}

#[test]
fn a_detached_head_runs() {
    let project = Project::new("detached");
    let first = project.git(&["rev-parse", "HEAD"]);
    project.commit("a second one");
    project.git(&["checkout", "--quiet", "--detach", &first]);
    is_at(ci(&project, &[]).run(), &first);
}

#[test]
fn a_worktree_runs_at_its_own_commit() {
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
    is_at(ci_in(&tree, &[]).run(), &first);
}

#[test]
fn in_a_subdirectory_the_whole_repository_runs_and_the_report_is_at_its_top() {
    let project = Project::new("subdirectory");
    project.write("ci.toml", "repository = \"from/file\"\n");
    let head = project.commit("settings at the top");
    ci_in(&project.path().join("api/src"), &[])
        .run()
        .misses_the_engine();
    assert!(!project.path().join("api/src/target").exists());
    let report = std::fs::read_to_string(project.path().join("target/ci/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["commit"], head.as_str());
    assert_eq!(report["verdict"]["exit_code"], 3);
    let image = report["image"].as_str().unwrap();
    assert!(image.contains("/from/file:"), "{image}");
}

#[test]
fn uncommitted_changes_show_in_the_tag() {
    let project = Project::new("dirty");
    project.write("new.txt", "not yet committed\n");
    let outcome = ci(&project, &[]).run().misses_the_engine();
    assert_eq!(outcome.report["clean"], false);
    let tag = outcome.report["tag"].as_str().unwrap();
    assert!(tag.ends_with("-dirty"), "{tag}");
}

#[test]
fn a_hooks_environment_does_not_lead_to_another_repository() {
    let (project, other) = (Project::new("hook"), Project::new("other"));
    let head = project.commit("a second one");
    let there = other.path().join(".git");
    let outcome = ci(&project, &[])
        .env("GIT_DIR", there.to_str().unwrap())
        .env("GIT_WORK_TREE", other.path().to_str().unwrap())
        .run();
    is_at(outcome, &head);
}

#[test]
fn a_submodule_refuses_by_its_name() {
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
        .says("hint: Submodules are not part of the commit's own content");
    project.write("new.txt", "and uncommitted changes\n");
    ci(&project, &[])
        .run()
        .refuses(2, "vendored is a git submodule");
}

#[test]
fn without_git_the_remedy_is_named() {
    let project = Project::new("no-git");
    let empty = tempfile::tempdir().unwrap();
    ci(&project, &[])
        .env("PATH", empty.path().to_str().unwrap())
        .run()
        .refuses(3, "cannot run git")
        .says("hint: Install git");
}
