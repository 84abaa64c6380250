//! The stand-in for the images of PostgreSQL and Redis: Debian's packages of both, with the interface of the images.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::debian;
use super::made::{StandIn, blocking, ca_bundle, keep, key_of};
use common::failure::Failure;
use common::file_tree;
use common::progress::Progress;
use common::provision::Consent;

const PACKAGES: &[&str] = &["ca-certificates", "postgresql", "redis-server"];
/// Directories that the packages' installation fills.
const EMPTIED: [&str; 2] = ["var/lib/postgresql", "var/lib/redis"];
const FOLDER: &str = "/usr/local/bin";
const POSTGRES: &str = "start-postgres";
const REDIS: &str = "start-redis";

/// A server that replaces a released image.
#[derive(Clone, Debug)]
pub struct Server {
    pub image: StandIn,
    /// The path of the start script.
    pub command: String,
}

/// Returns the start script for the server of the released image `image`, or `None` if that image has no stand-in.
pub(super) fn command(image: &str) -> Option<String> {
    let repository = image.split(['@']).next().unwrap_or(image);
    let name = repository.rsplit('/').next()?.split(':').next()?;
    let script = match name {
        "postgres" | "postgresql" => POSTGRES,
        "redis" | "valkey" => REDIS,
        _ => return None,
    };
    Some(format!("{FOLDER}/{script}"))
}

/// Builds the root file system with both servers.
pub(super) async fn image(
    consent: Consent<'_>,
    progress: &dyn Progress,
) -> Result<StandIn, Failure> {
    let certificates = ca_bundle()?;
    let key = key_of(&[
        include_bytes!("servers.rs"),
        include_bytes!("debian.rs"),
        file_tree::SOURCE,
        include_bytes!("postgres.sh"),
        include_bytes!("redis.sh"),
        &certificates,
    ]);
    keep(
        "servers",
        &format!("servers-{}-{key}", debian::VERSION),
        "the stand-in image of PostgreSQL and Redis (about a minute)",
        &[],
        progress,
        |root| async move {
            debian::build(&root, PACKAGES, &certificates, consent, progress).await?;
            blocking(move || complete(&root)).await
        },
    )
    .await
}

fn complete(root: &Path) -> io::Result<()> {
    for folder in EMPTIED {
        file_tree::empty(&root.join(folder))?;
    }
    for (name, script) in [
        (POSTGRES, include_str!("postgres.sh")),
        (REDIS, include_str!("redis.sh")),
    ] {
        let file = root.join(FOLDER.trim_start_matches('/')).join(name);
        fs::write(&file, script)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_server_by_the_name_of_its_image() {
        for image in [
            "docker.io/library/postgres:17.5",
            "postgres@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "registry.example.com:5000/bitnami/postgresql:17",
        ] {
            assert!(command(image).unwrap().ends_with(POSTGRES), "{image}");
        }
        assert!(
            command("docker.io/library/redis:8.0")
                .unwrap()
                .ends_with(REDIS)
        );
        for image in [
            "docker.io/library/mysql:9",
            "docker.io/postgres/other:1",
            "",
        ] {
            assert_eq!(command(image), None, "{image}");
        }
    }
}
