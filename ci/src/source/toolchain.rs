//! The toolchain that the repository asks for:
//! [`rust-toolchain.toml`](https://rust-lang.github.io/rustup/overrides.html#the-toolchain-file).

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::model::rust::{self, Rust};
use common::failure::{Failure, OrFail};
use common::pins;

/// Where Rust's releases are described.
const DIST: &str = "https://static.rust-lang.org/dist";

/// A toolchain file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolchainFile {
    /// The path, relative to the root of the sources.
    pub path: PathBuf,
    /// The channel; `None` if the file only adds components.
    pub channel: Option<Channel>,
    /// Additional components.
    pub components: Vec<String>,
    /// Additional targets.
    pub targets: Vec<String>,
}

/// A [channel](https://rust-lang.github.io/rustup/concepts/channels.html), as rustup spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Always the same toolchain: `1.80.0` or `nightly-2026-11-27`.
    Exact(String),
    /// The newest toolchain of a kind: `stable`, `nightly` or `1.80`.
    Newest(String),
}

impl Channel {
    /// Parses a channel that `file` names.
    ///
    /// # Errors
    /// When it is not a channel of Rust, such as a toolchain with a local name (exit code 2).
    pub fn parse(channel: &str, file: &str) -> Result<Self, Failure> {
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<_> = channel.split('.').collect();
        if parts.iter().all(|part| is_number(part)) {
            match parts.len() {
                3 => return Ok(Self::Exact(channel.to_owned())),
                2 => return Ok(Self::Newest(channel.to_owned())),
                _ => {}
            }
        }
        let is_date = |text: &str| text.parse::<jiff::civil::Date>().is_ok();
        match channel.split_once('-') {
            None if ["stable", "beta", "nightly"].contains(&channel) => {
                Ok(Self::Newest(channel.to_owned()))
            }
            Some(("beta" | "nightly", date)) if is_date(date) => {
                Ok(Self::Exact(channel.to_owned()))
            }
            _ => Err(Failure::usage(format!(
                "{file} names the channel `{channel}`, which ci does not know"
            ))
            .hint(
                "Use a version such as 1.95.0, `stable`, `beta`, `nightly`, or nightly-2026-11-27.",
            )),
        }
    }

    /// The channel, as it was written.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Exact(name) | Self::Newest(name) => name,
        }
    }
}

#[derive(Debug, Deserialize)]
struct File {
    toolchain: Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Table {
    channel: Option<String>,
    components: Vec<String>,
    targets: Vec<String>,
    path: Option<PathBuf>,
}

impl ToolchainFile {
    /// Finds the file that rustup would use in `folder` of `sources`: the nearest one in it or its parents.
    ///
    /// # Errors
    /// When the file is invalid, or names a directory or toolchain of one machine (exit code 2).
    pub fn find(sources: &Path, folder: &Path) -> Result<Option<Self>, Failure> {
        let names = ["rust-toolchain", "rust-toolchain.toml"];
        let mut candidates = folder
            .ancestors()
            .flat_map(|folder| names.map(|name| folder.join(name)));
        let Some(path) = candidates.find(|path| sources.join(path).is_file()) else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(sources.join(&path))
            .or_environment(format!("cannot read {}", path.display()))?;
        // The older form is the channel alone.
        let is_channel = !text.contains('[') && text.trim().lines().count() == 1;
        let table = if is_channel {
            Table {
                channel: Some(text.trim().to_owned()),
                ..Table::default()
            }
        } else {
            let file: File = toml::from_str(&text).map_err(|error| {
                Failure::usage(format!("{} is invalid", path.display())).output(error.to_string())
            })?;
            file.toolchain
        };
        if table.path.is_some() {
            return Err(Failure::usage(format!(
                "{} names a directory with a toolchain, which only this machine has",
                path.display()
            ))
            .hint("Name a channel instead of a path, such as channel = \"1.95.0\"."));
        }
        let channel = table
            .channel
            .map(|channel| Channel::parse(&channel, &path.display().to_string()))
            .transpose()?;
        Ok(Some(Self {
            path,
            channel,
            components: table.components,
            targets: table.targets,
        }))
    }

    /// The toolchain that `file` asks for, or `ci`'s own. A channel such as `stable` is resolved to a version.
    ///
    /// # Errors
    /// When the channel cannot be resolved to a version (exit code 3).
    pub async fn resolve(file: Option<&Self>) -> Result<Rust, Failure> {
        let Some(file) = file else {
            return Ok(Rust {
                name: pins::RUST.to_owned(),
                from: "ci".to_owned(),
                components: Vec::new(),
                targets: Vec::new(),
            });
        };
        let wanted = std::env::var(rust::VARIABLE)
            .ok()
            .filter(|name| !name.is_empty());
        let name = match (wanted, &file.channel) {
            (_, None) => pins::RUST.to_owned(),
            (Some(wanted), Some(_)) => exact(&Channel::parse(&wanted, rust::VARIABLE)?).await?,
            (None, Some(channel)) => exact(channel).await?,
        };
        let usual = |component: &String| !rust::COMPONENTS.contains(&component.as_str());
        Ok(Rust {
            name,
            from: file.path.display().to_string(),
            components: file
                .components
                .iter()
                .filter(|it| usual(it))
                .cloned()
                .collect(),
            targets: file.targets.clone(),
        })
    }
}

/// The parts of a [channel manifest](https://forge.rust-lang.org/infra/channel-layout.html) that are needed.
#[derive(Debug, Deserialize)]
struct Manifest {
    date: String,
    pkg: Packages,
}

#[derive(Debug, Deserialize)]
struct Packages {
    rust: Package,
}

#[derive(Debug, Deserialize)]
struct Package {
    version: String,
}

/// The exact name of a channel's current toolchain.
async fn exact(channel: &Channel) -> Result<String, Failure> {
    let name = match channel {
        Channel::Exact(name) => return Ok(name.clone()),
        Channel::Newest(name) => name,
    };
    let manifest = manifest(name).await?;
    Ok(match &**name {
        "beta" | "nightly" => format!("{name}-{}", manifest.date),
        _ => {
            let version = manifest.pkg.rust.version;
            version.split(' ').next().unwrap_or(&version).to_owned()
        }
    })
}

async fn manifest(channel: &str) -> Result<Manifest, Failure> {
    let url = format!("{DIST}/channel-rust-{channel}.toml");
    let cannot = || format!("cannot resolve Rust's channel {channel} to a version");
    let get = async {
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(60))
            .build()?;
        client
            .get(&url)
            .send()
            .await?
            .error_for_status()?
            .text()
            .await
    };
    let text = get.await.or_environment(cannot()).map_err(|failure| {
        failure.hint("Check the network, or name an exact version in rust-toolchain.toml.")
    })?;
    toml::from_str(&text).or_environment(cannot())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(files: &[(&str, &str)], folder: &str) -> Result<Option<ToolchainFile>, Failure> {
        let sources = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let file = sources.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        ToolchainFile::find(sources.path(), Path::new(folder))
    }

    #[test]
    fn finds_the_nearest_file_in_either_form() {
        let old = ("rust-toolchain", "1.80.0\n");
        let new = (
            "backend/rust-toolchain.toml",
            "[toolchain]\nchannel = \"nightly\"\ncomponents = [\"rust-src\"]\ntargets = [\"wasm32-wasip1\"]\n",
        );
        let found = find(&[old, new], "backend").unwrap().unwrap();
        assert_eq!(found.channel, Some(Channel::Newest("nightly".into())));
        assert_eq!(found.components, ["rust-src"]);
        assert_eq!(found.targets, ["wasm32-wasip1"]);
        let found = find(&[old, new], "").unwrap().unwrap();
        assert_eq!(found.channel, Some(Channel::Exact("1.80.0".into())));
        assert_eq!(find(&[new], "").unwrap(), None);
    }

    #[test]
    fn tells_exact_channels_from_others() {
        for (name, is_exact) in [
            ("1.80.0", true),
            ("nightly-2026-11-27", true),
            ("beta-2026-11-27", true),
            ("1.80", false),
            ("stable", false),
            ("nightly", false),
        ] {
            let channel = Channel::parse(name, "file").unwrap();
            assert_eq!(matches!(channel, Channel::Exact(_)), is_exact, "{name}");
            assert_eq!(channel.name(), name);
        }
        for unknown in [
            "",
            "latest",
            "1",
            "1.2.3.4",
            "nightly-x",
            "stable-x86_64-pc-windows-msvc",
            "custom",
        ] {
            assert!(Channel::parse(unknown, "file").is_err(), "{unknown}");
        }
    }

    #[test]
    fn rejects_a_toolchain_of_one_machine() {
        let local = [("rust-toolchain.toml", "[toolchain]\npath = \"/opt/rust\"\n")];
        assert!(
            find(&local, "")
                .unwrap_err()
                .to_string()
                .contains("only this machine")
        );
        assert!(find(&[("rust-toolchain.toml", "[toolchain\n")], "").is_err());
    }
}
