//! The findings of the vulnerability scan.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

use super::cause::Location;

/// The severity of a vulnerability, as Trivy rates it, in ascending order. Settings name it in lower case, reports as Trivy does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Not rated.
    #[default]
    #[serde(skip)]
    Unknown,
    /// `LOW`.
    Low,
    /// `MEDIUM`.
    Medium,
    /// `HIGH`.
    High,
    /// `CRITICAL`.
    Critical,
}

impl Severity {
    const NAMES: [(Self, &str); 5] = [
        (Self::Unknown, "UNKNOWN"),
        (Self::Low, "LOW"),
        (Self::Medium, "MEDIUM"),
        (Self::High, "HIGH"),
        (Self::Critical, "CRITICAL"),
    ];

    /// The severity with this name in Trivy's report.
    #[must_use]
    pub fn from_trivy(name: &str) -> Self {
        Self::NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map_or(Self::Unknown, |(severity, _)| *severity)
    }

    fn trivy_names(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": Self::NAMES.map(|(_, name)| name) })
    }
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = Self::NAMES.iter().find(|(severity, _)| severity == self);
        f.pad(known.map_or("", |(_, name)| name))
    }
}

impl Serialize for Severity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A vulnerability in a package of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// The vulnerability, such as `CVE-2024-45311`.
    pub id: String,
    /// The severity, as Trivy rates it.
    #[schemars(schema_with = "Severity::trivy_names")]
    pub severity: Severity,
    /// The name of the package.
    pub package: String,
    /// The version of the package in the image.
    pub version: String,
    /// The versions that fix the vulnerability, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed_version: Option<String>,
    /// A short description; may be empty.
    pub title: String,
    /// A page about the vulnerability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The package's place in `Cargo.lock`; absent for packages of the base image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// Whether the finding exceeds the thresholds, and fails the gate.
    pub fails: bool,
}

impl Finding {
    /// The page about the vulnerability, if a browser can open it safely.
    #[must_use]
    pub fn link(&self) -> Option<&str> {
        let url = self.url.as_deref();
        url.filter(|url| url.starts_with("https://"))
    }

    /// The version that fixes it, in words.
    #[must_use]
    pub fn fix(&self) -> String {
        match &self.fixed_version {
            None => "no fix yet".to_owned(),
            Some(version) => format!("fixed in {version}"),
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            id,
            severity,
            package,
            version,
            title,
            ..
        } = self;
        let fix = self.fix();
        write!(f, "{severity:<8}  {id}  {package} {version}, {fix}")?;
        if title.is_empty() {
            Ok(())
        } else {
            write!(f, "  {title}")
        }
    }
}
