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
    let tag = git(folders[0].path(), &["rev-parse", "--short=7", "HEAD"]);
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

/// Creates many commits on top of `project`; returns their SHAs.
fn create_commits(project: &Project) -> Vec<String> {
    let marks = project.path().join(".git/marks");
    let mut child = Command::new("git")
        .args(["fast-import", "--quiet", "--force"])
        .arg(format!("--export-marks={}", marks.display()))
        .current_dir(project.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = std::io::BufWriter::new(child.stdin.take().unwrap());
    for number in 1..=COMMITS {
        write!(
            input,
            "commit refs/heads/last\nmark :{number}\ncommitter test <test@example.com> {} +0000\ndata 1\nx\nfrom refs/heads/main^0\n\n",
            1_700_000_000 + number
        )
        .unwrap();
    }
    drop(input);
    assert!(child.wait().unwrap().success());
    let marks = std::fs::read_to_string(marks).unwrap();
    let shas = marks
        .lines()
        .map(|line| line.split_once(' ').unwrap().1.to_owned());
    shas.collect()
}

/// With so many commits on each side, 2^28 short SHAs of 7 digits leave no pair in one of 400 attempts. The attempts are always
/// the same.
const COMMITS: u32 = 40_000;

#[test]
fn only_one_of_two_different_images_gets_the_tag() {
    // Two commits whose SHAs start with the same seven digits, and so have the same tag.
    let projects = ["race-different", "race-other"].map(Project::new);
    projects[1].commit("another history");
    let [mine, theirs] = [create_commits(&projects[0]), create_commits(&projects[1])];
    let by_start: HashMap<&str, &String> = theirs.iter().map(|sha| (&sha[..7], sha)).collect();
    let (my_sha, their_sha) = mine
        .iter()
        .find_map(|sha| Some((sha, *by_start.get(&sha[..7])?)))
        .expect("no pair of commits with the same short SHA");
    projects[0].git(&["branch", "same", my_sha]);
    projects[1].git(&["branch", "same", their_sha]);
    let folders = [clone(&projects[0], "same"), clone(&projects[1], "same")];
    let tag = my_sha[..7].to_owned();
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
