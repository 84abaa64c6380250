//! What `ci build` hands out: the archive, and the image in a container runtime.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::harness::Project;

/// Stands in for docker where an image is loaded and named, and is the real one, if any, for the rest.
const DOCKER: &str = r#"#!/bin/sh
here=$(dirname "$0")
case "$1" in
version) echo 'a client and a server' ;;
load) cp "$3" "$here/loaded.tar" ;;
tag) echo "$2 $3" >"$here/tagged" ;;
*) PATH=${PATH#"$here:"} exec docker "$@" ;;
esac
"#;

#[test]
fn the_built_archive_is_copied_and_loaded_under_its_name() {
    let project = Project::new("archive");
    let programs = tempfile::tempdir().unwrap();
    let docker = programs.path().join("docker");
    std::fs::write(&docker, DOCKER).unwrap();
    std::fs::set_permissions(&docker, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    // A client without its daemon fails here.
    let real = Command::new("docker")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success());
    let mut ci = project
        .ci(&["build", "--load", "--output", "target/copy.tar"])
        .env("PATH", &format!("{}:{path}", programs.path().display()));
    // What stands in for docker runs no engine.
    if !real && std::env::var_os("LAB_CI_ENGINE").is_none() {
        ci = ci.env("LAB_CI_ENGINE", "embedded");
    }
    let run = ci.run().exits(0);
    let image = run.report["image"].as_str().unwrap();
    assert!(run.stderr.contains(&format!("{image} is in docker")));
    let archive = project.path().join("target/ci/image.tar");
    let built = std::fs::read(&archive).unwrap();
    assert!(std::fs::read(project.path().join("target/copy.tar")).unwrap() == built);
    assert!(std::fs::read(programs.path().join("loaded.tar")).unwrap() == built);
    assert_eq!(
        std::fs::read_to_string(programs.path().join("tagged")).unwrap(),
        format!(
            "{} {image}\n",
            ci::oci::read_config_digest(&archive).unwrap()
        )
    );
}
