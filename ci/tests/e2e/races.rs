//! Two publishers of one tag at the same time: held back until the worst has happened.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::faults::{Fault, Proxy, Stage, Who, meeting, once};
use crate::harness::{Ci, Outcome, Project, git};

/// The look at the tag, and its being set.
const LOOK: Stage = (Who::Ci, "GET", "/manifests/TAG");
const SET: Stage = (Who::Crane, "PUT", "/manifests/TAG");

/// Clones `branch` of a project, with nothing else in it.
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

/// Publishes from both at once.
fn race(project: &Project, proxy: &Proxy, folders: [&Path; 2]) -> [Outcome; 2] {
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
fn two_publishers_of_one_image_both_succeed() {
    let project = Project::new("race-equal");
    let proxy = Proxy::new();
    let folders = [(); 2].map(|()| clone(&project, "main"));
    let tag = git(folders[0].path(), &["rev-parse", "--short", "HEAD"]);
    // Both find no tag, twice, before either goes on.
    proxy.rule(&tag, &[meeting(LOOK), meeting(LOOK)]);
    let runs = race(&project, &proxy, [folders[0].path(), folders[1].path()]);
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
    assert_eq!(proxy.struck(), 4);
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

/// Many commits on top of `project`, each on a branch of its own: SHA by branch.
fn commits(project: &Project) -> HashMap<String, String> {
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
fn of_two_publishers_of_different_images_exactly_one_succeeds_and_the_other_names_both() {
    // Two commits whose SHAs begin alike.
    let projects = ["race-different", "race-other"].map(Project::new);
    projects[1].commit("another history");
    let [mine, theirs] = [commits(&projects[0]), commits(&projects[1])];
    let by_start: HashMap<&str, &String> = theirs
        .iter()
        .map(|(branch, sha)| (&sha[..4], branch))
        .collect();
    let (my_branch, their_branch) = mine
        .iter()
        .find_map(|(branch, sha)| Some((branch, *by_start.get(&sha[..4])?)))
        .expect("among so many there is a pair");
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
    // Once both set the tag at the same moment, once one is as late as it may be: the other has long been through then.
    for late in [Duration::ZERO, Duration::from_secs(3)] {
        let proxy = Proxy::new();
        let rules = [meeting(LOOK), meeting(LOOK), once(SET, Fault::Late(late))];
        proxy.rule(&tag, &rules);
        let runs = race(&projects[0], &proxy, [folders[0].path(), folders[1].path()]);
        assert_eq!(proxy.struck(), 5);
        let there = proxy.registry.digest(projects[0].repository(), &tag);
        let digests = runs
            .clone()
            .map(|run| run.report["digest"].as_str().unwrap().to_owned());
        assert_ne!(digests[0], digests[1]);
        let [winner, loser] = if digests[0] == there { [0, 1] } else { [1, 0] };
        assert_eq!(digests[winner], there);
        let [won, lost] = [winner, loser].map(|index| runs[index].clone());
        assert_eq!(won.exits(0).report["publish"]["digest"], there.as_str());
        lost.exits(4)
            .says("is there already, as the image of another commit")
            .says(&digests[winner])
            .says(&digests[loser])
            .publishes_nothing();
    }
}
