//! Two runs that publish the same tag at the same time, delayed to provoke the worst order of their requests.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::faults::{Client, Fault, Proxy, Stage, apply_once, rendezvous};
use crate::harness::{Ci, Outcome, Project, git};

/// The requests that read and set the tag.
const GET_TAG: Stage = (Client::Ci, "GET", "/manifests/TAG");
const PUT_TAG: Stage = (Client::Crane, "PUT", "/manifests/TAG");

/// Clones only `branch` of a project.
fn clone(project: &Project, branch: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new()
        .prefix("ci test race ")
        .tempdir()
        .unwrap();
    let from = format!("file://{}", project.path().display());
    git(
        folder.path(),
        &[
            "clone",
            "--quiet",
            "--single-branch",
            "--branch",
            branch,
            &from,
            ".",
        ],
    );
    git(folder.path(), &["config", "core.abbrev", "4"]);
    folder
}

/// Publishes from both folders at the same time.
fn publish_from_both(project: &Project, proxy: &Proxy, folders: [&Path; 2]) -> [Outcome; 2] {
    std::thread::scope(|scope| {
        let publish = |folder| {
            let ci = Ci::new(folder, &["publish", "--registry", &proxy.address])
                .env("LAB_CI_REPOSITORY", project.repository());
            scope.spawn(|| ci.run())
        };
        folders.map(publish).map(|run| run.join().unwrap())
    })
}

#[test]
fn both_publishers_of_the_same_image_succeed() {
    let project = Project::new("race-equal");
    let proxy = Proxy::new();
    let folders = [(); 2].map(|()| clone(&project, "main"));
    let tag = git(folders[0].path(), &["rev-parse", "--short", "HEAD"]);
    // Both runs find no tag, twice, before either continues.
    proxy.set_rules(&tag, &[rendezvous(GET_TAG), rendezvous(GET_TAG)]);
    let runs = publish_from_both(&project, &proxy, [folders[0].path(), folders[1].path()]);
    let digest = proxy.registry.digest(project.repository(), &tag);
    for run in runs {
        let run = run.exits(0);
        assert_eq!(run.report["digest"], digest.as_str());
        assert_eq!(run.report["publish"]["digest"], digest.as_str());
        assert_eq!(
            run.report["publish"]["referrers"].as_array().unwrap().len(),
            2
        );
    }
    assert_eq!(proxy.applied(), 4);
    let list = proxy.registry.index(
        project.repository(),
        &ci::image::attestations::fallback_tag(&digest),
    );
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    for kind in [
        ci::image::attestations::CYCLONEDX,
        ci::image::attestations::IN_TOTO,
    ] {
        let listed = list["manifests"].as_array().unwrap().iter();
        assert!(
            listed.filter(|it| it["artifactType"] == kind).count() > 0,
            "{list:#}"
        );
    }
}

/// Creates many commits on top of `project`, each on its own branch; returns the SHA of each branch.
fn create_commits(project: &Project) -> HashMap<String, String> {
    let mut child = Command::new("git")
        .args(["fast-import", "--quiet"])
        .current_dir(project.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for number in 0..1500 {
        write!(
            input,
            "commit refs/heads/c{number}\ncommitter test <test@example.com> {} +0000\ndata 1\nx\nfrom refs/heads/main^0\n\n",
            1_700_000_000 + number
        )
        .unwrap();
    }
    drop(input);
    assert!(child.wait().unwrap().success());
    let refs = project.git(&[
        "for-each-ref",
        "--format=%(objectname) %(refname:short)",
        "refs/heads/c*",
    ]);
    refs.lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(sha, branch)| (branch.to_owned(), sha.to_owned()))
        .collect()
}

#[test]
fn only_one_of_two_different_images_gets_the_tag() {
    // Two commits whose SHAs start with the same four digits, and so have the same tag.
    let projects = ["race-different", "race-other"].map(Project::new);
    projects[1].commit("another history");
    let [mine, theirs] = [create_commits(&projects[0]), create_commits(&projects[1])];
    let by_start: HashMap<&str, &String> = theirs
        .iter()
        .map(|(branch, sha)| (&sha[..4], branch))
        .collect();
    let (my_branch, their_branch) = mine
        .iter()
        .find_map(|(branch, sha)| Some((branch, *by_start.get(&sha[..4])?)))
        .expect("no pair of commits with the same short SHA");
    let folders = [
        clone(&projects[0], my_branch),
        clone(&projects[1], their_branch),
    ];
    let tag = git(folders[0].path(), &["rev-parse", "--short", "HEAD"]);
    assert_eq!(tag.len(), 4);
    assert_eq!(
        git(folders[1].path(), &["rev-parse", "--short", "HEAD"]),
        tag
    );
    // First, both runs set the tag at the same moment. Then one sets it long after the other has finished.
    for delay in [Duration::ZERO, Duration::from_secs(3)] {
        let proxy = Proxy::new();
        let rules = [
            rendezvous(GET_TAG),
            rendezvous(GET_TAG),
            apply_once(PUT_TAG, Fault::Delay(delay)),
        ];
        proxy.set_rules(&tag, &rules);
        let runs = publish_from_both(&projects[0], &proxy, [folders[0].path(), folders[1].path()]);
        assert_eq!(proxy.applied(), 5);
        let published = proxy.registry.digest(projects[0].repository(), &tag);
        let digests = runs
            .clone()
            .map(|run| run.report["digest"].as_str().unwrap().to_owned());
        assert_ne!(digests[0], digests[1]);
        let [winner, loser] = if digests[0] == published {
            [0, 1]
        } else {
            [1, 0]
        };
        assert_eq!(digests[winner], published);
        let [won, lost] = [winner, loser].map(|index| runs[index].clone());
        assert_eq!(won.exits(0).report["publish"]["digest"], published.as_str());
        lost.exits(4)
            .says("already exists as the image of another commit")
            .says(&digests[winner])
            .says(&digests[loser])
            .publishes_nothing();
    }
}
