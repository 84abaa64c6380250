//! `Cargo.lock`, as far as it is read: <https://doc.rust-lang.org/cargo/guide/cargo-toml-vs-cargo-lock.html>

use serde::Deserialize;

/// The content of a `Cargo.lock`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Lockfile {
    /// The packages of the workspace, and all that they depend on.
    #[serde(default, rename = "package")]
    pub packages: Vec<Package>,
}

/// A package at the version that is locked.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub name: String,
    pub version: String,
    /// The registry or the git repository; `None` for a package of the workspace.
    pub source: Option<String>,
    /// The names of the packages that it depends on, with the version if there are several.
    #[serde(default)]
    pub dependencies: Vec<String>,
}

impl Lockfile {
    /// Parses the text of the file.
    ///
    /// # Errors
    /// When it is no TOML, or a package has no name or version.
    pub(crate) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}
