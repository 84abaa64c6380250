//! Finds out where a service listens that does not answer on its port.
//!
//! Nothing can be run in the container of a running service. So the image is started once more, in a container of the toolchain's
//! image that has the files of the service's image in a directory, and whose list of sockets can be read.

use dagger_sdk::Container;
use serde::Deserialize;

use super::build::Image;
use super::workspace;
use crate::image::archive;
use crate::run::execution::StepContext;
use crate::trust::kind::Kind;

/// Starts the service below `/image`, and lists the listening sockets as soon as there are any, or after five seconds. The container
/// itself has some before.
const SCRIPT: &str = r#"
sockets() { cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == "0A" { print $2 }' | sort; }
sockets > /before
env -i "$@" >/dev/null 2>&1 &
for try in $(seq 50); do
  sleep 0.1
  sockets | comm -13 /before - > /sockets
  [ ! -s /sockets ] || break
  kill -0 $! 2>/dev/null || break
done
"#;

/// The parts of an image's configuration that are needed to start it.
#[derive(Debug, Deserialize)]
struct ImageConfig {
    config: Config,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    user: String,
    entrypoint: Vec<String>,
    #[serde(default)]
    cmd: Vec<String>,
}

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    port: u16,
    /// Whether only the service's own container can connect.
    loopback: bool,
}

/// What to change so that the service listens on `port` on all addresses; `None` if it does so or cannot be examined. `container` is
/// the imported image, with its environment for the smoke test and its backing services.
pub(super) async fn advice<K: Kind>(
    step: &StepContext<'_, K>,
    image: &Image<'_, '_, K>,
    container: &Container,
    port: u16,
) -> Option<String> {
    // The toolchain's image is for the engine's platform.
    if step.run.foreign_platform().is_some() {
        return None;
    }
    let name = image.info().config.replace("sha256:", "blobs/sha256/");
    let config = archive::read_entry(image.archive(), &name).ok()?;
    let ImageConfig { config } = serde_json::from_slice(&config).ok()?;
    let smoke = &step.run.settings.smoke.env;
    let smoke = smoke.iter().map(|(name, value)| format!("{name}={value}"));
    let mut command = vec!["sh".to_owned(), "-c".into(), SCRIPT.into(), "sh".into()];
    command.extend(config.env);
    command.extend(smoke);
    command.extend([
        "/usr/sbin/chroot".into(),
        format!("--userspec={}", config.user),
        "/image".into(),
    ]);
    command.extend(config.entrypoint);
    command.extend(config.cmd);
    let examined = workspace::pinned_toolchain(step, None)
        .await
        .ok()?
        .with_directory("/image", container.rootfs())
        // Each run examines its own service.
        .with_env_variable("RUN_ID", &step.run.id)
        .with_exec(command);
    // Into a file, to keep the list out of the log.
    let sockets = examined.file("/sockets").contents().await;
    match sockets {
        Ok(sockets) => explain(&parse(&sockets), port),
        Err(error) => {
            tracing::debug!("cannot examine the service: {error}");
            None
        }
    }
}

/// Parses the addresses of `/proc/net/tcp` and `tcp6`: `0100007F:1F90`.
fn parse(sockets: &str) -> Vec<Socket> {
    let parse = |line: &str| {
        let (address, port) = line.trim().split_once(':')?;
        let loopback = match address.len() {
            8 => address.ends_with("7F"),
            // ::1, and 127.0.0.1 as an IPv6 address.
            _ => {
                address == "00000000000000000000000001000000"
                    || (address.starts_with("0000000000000000FFFF0000") && address.ends_with("7F"))
            }
        };
        Some(Socket {
            port: u16::from_str_radix(port, 16).ok()?,
            loopback,
        })
    };
    sockets.lines().filter_map(parse).collect()
}

fn explain(sockets: &[Socket], port: u16) -> Option<String> {
    let here: Vec<_> = sockets.iter().filter(|it| it.port == port).collect();
    if !here.is_empty() {
        let only_loopback = here.iter().all(|socket| socket.loopback);
        return only_loopback.then(|| {
            format!(
                "The service listens on port {port}, but only for connections from its own container: let it bind to 0.0.0.0 instead of 127.0.0.1."
            )
        });
    }
    let mut ports: Vec<_> = sockets.iter().map(|it| it.port.to_string()).collect();
    ports.dedup();
    Some(match &ports[..] {
        [] => format!(
            "The service listens on no port within 5 s after its start: raise smoke.within in ci.toml if it needs longer, or let it listen on port {port}."
        ),
        ports => format!(
            "The service listens on port {}, not on {port}: set service.port in ci.toml, or let the service use the variable PORT.",
            ports.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_the_service_listens_instead() {
        let advice = |sockets: &str| explain(&parse(sockets), 8000);
        assert_eq!(advice("00000000:1F40\n"), None);
        assert_eq!(
            advice("0100007F:1F40\n00000000000000000000000000000000:1F40\n"),
            None
        );
        for loopback in [
            "0100007F:1F40",
            "00000000000000000000000001000000:1F40",
            "0000000000000000FFFF00000100007F:1F40",
        ] {
            assert!(advice(loopback).unwrap().contains("0.0.0.0"), "{loopback}");
        }
        assert!(
            advice("00000000:0BB8\n")
                .unwrap()
                .contains("port 3000, not on 8000")
        );
        assert!(advice("\n").unwrap().contains("no port"));
    }
}
