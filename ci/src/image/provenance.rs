//! The provenance of an image: an in-toto statement with SLSA provenance.
//!
//! [Statement](https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md),
//! [SLSA provenance v1](https://slsa.dev/spec/v1.0/provenance). `ci/docs/provenance.md` describes the parameters.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::source::checkout::Checkout;
use common::digest;
use common::failure::{Failure, OrFail};
use common::pins;

/// The file name in the report directory.
pub const FILE: &str = "provenance.intoto.json";
/// The predicate type of SLSA provenance.
pub const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// The name of the toolchain image in the resolved dependencies.
pub const TOOLCHAIN: &str = "toolchain";
/// The name of the base image in the resolved dependencies.
pub const BASE: &str = "base";
/// The internal parameter that lists what `ci.toml` keeps from the gates.
pub const LEFT_OUT: &str = "left_out";

/// The build type: a link to its description.
const BUILD_TYPE: &str = concat!(
    env!("CARGO_PKG_REPOSITORY"),
    "/blob/main/ci/docs/provenance.md#image-v1"
);
/// The builder id of builds outside of GitHub Actions.
const ELSEWHERE: &str = concat!(
    env!("CARGO_PKG_REPOSITORY"),
    "/blob/main/ci/docs/provenance.md#not-on-github"
);

/// An in-toto statement, version 1, about one image.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// `https://in-toto.io/Statement/v1`.
    #[serde(rename = "_type")]
    pub kind: String,
    /// The image, by digest.
    pub subject: Vec<ResourceDescriptor>,
    /// [`PREDICATE`].
    pub predicate_type: String,
    /// The provenance of the image.
    pub predicate: Provenance,
}

/// SLSA provenance, version 1.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// What was built, and from which inputs.
    pub build_definition: BuildDefinition,
    /// The builder and the time of the build.
    pub run_details: RunDetails,
}

/// The inputs of a build.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildDefinition {
    /// A link to the meaning of the parameters.
    pub build_type: String,
    /// The inputs that the caller chose.
    pub external_parameters: Parameters,
    /// The inputs that the builder chose.
    pub internal_parameters: BTreeMap<String, String>,
    /// Everything that the build used, by digest.
    pub resolved_dependencies: Vec<ResourceDescriptor>,
}

/// The inputs, in addition to the dependencies, that determine the image.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parameters {
    /// The URL of the source repository, if the settings or the package name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The full SHA of the commit.
    pub revision: String,
    /// Whether the working tree had no uncommitted changes.
    pub clean: bool,
    /// The name of the Cargo package.
    pub package: String,
    /// The name of the binary in the package.
    pub binary: String,
    /// The platform of the image, as in `linux/amd64`.
    pub platform: String,
}

/// The builder and the time of the build.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RunDetails {
    pub(crate) builder: Builder,
    pub(crate) metadata: Metadata,
}

/// The builder of an image.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Builder {
    /// The URI of the GitHub workflow and its ref, or a link for builds elsewhere.
    pub id: String,
    /// The versions of `ci` and Dagger.
    pub version: BTreeMap<String, String>,
}

/// The run that built the image.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The URL of the workflow run on GitHub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<String>,
    pub(crate) started_on: jiff::Timestamp,
    pub(crate) finished_on: jiff::Timestamp,
}

/// An artifact, identified by its digest.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceDescriptor {
    /// The name within this statement.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The location or package URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The hexadecimal digest by algorithm.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digest: BTreeMap<String, String>,
}

impl ResourceDescriptor {
    /// Describes an artifact with an OCI digest, `sha256:…`.
    #[must_use]
    pub fn new(name: &str, uri: Option<String>, digest: &str) -> Self {
        let digest = digest.split_once(':').unwrap_or(("sha256", digest));
        Self {
            name: name.to_owned(),
            uri,
            digest: [(digest.0.to_owned(), digest.1.to_owned())].into(),
        }
    }

    /// Describes an image by its [package URL](https://github.com/package-url/purl-spec/blob/main/types-doc/oci-definition.md).
    /// `name` is the name within the statement; `image` is a reference such as `docker.io/library/rust:1.95.0`, with or without a
    /// digest.
    #[must_use]
    pub fn image(name: &str, image: &str, digest: &str) -> Self {
        let without = image.split('@').next().unwrap_or(image);
        let tag = without
            .rfind(':')
            .filter(|at| !without[*at..].contains('/'));
        let (repository, tag) = without.split_at(tag.unwrap_or(without.len()));
        let last = repository.rsplit('/').next().unwrap_or(repository);
        let tag = tag.strip_prefix(':').map(|tag| format!("&tag={tag}"));
        let uri = format!(
            "pkg:oci/{last}@{}?repository_url={repository}{}",
            digest.replace(':', "%3A"),
            tag.unwrap_or_default()
        );
        Self::new(name, Some(uri), digest)
    }
}

/// The facts about a finished build.
#[derive(Debug)]
pub struct Build<'a> {
    /// The image name without a tag, and the image digest.
    pub subject: (String, &'a str),
    pub(crate) checkout: &'a Checkout,
    pub(crate) parameters: Parameters,
    /// The toolchain image and the base image.
    pub images: Vec<ResourceDescriptor>,
    /// The content of Cargo.lock.
    pub lockfile: &'a [u8],
    /// The internal parameters: the engine and the event.
    pub internal: BTreeMap<String, String>,
    pub(crate) started: jiff::Timestamp,
}

impl Build<'_> {
    /// Creates the statement. `var` reads the variables of GitHub Actions.
    #[must_use]
    pub fn statement(self, var: impl Fn(&str) -> Option<String>) -> Statement {
        let var = |name| var(name).filter(|value| !value.is_empty());
        let on_github = || {
            (var("GITHUB_ACTIONS")? == "true").then_some(())?;
            let server = var("GITHUB_SERVER_URL")?;
            let id = format!("{server}/{}", var("GITHUB_WORKFLOW_REF")?);
            let run = format!(
                "{server}/{}/actions/runs/{}/attempts/{}",
                var("GITHUB_REPOSITORY")?,
                var("GITHUB_RUN_ID")?,
                var("GITHUB_RUN_ATTEMPT")?
            );
            Some((id, run))
        };
        let (id, invocation_id) = match on_github() {
            Some((id, run)) => (id, Some(run)),
            None => (ELSEWHERE.to_owned(), None),
        };
        let sha = &self.checkout.commit.sha;
        let source = ResourceDescriptor {
            name: "source".into(),
            uri: self
                .parameters
                .source
                .as_ref()
                .map(|source| format!("git+{source}@{sha}")),
            digest: [("gitCommit".to_owned(), sha.clone())].into(),
        };
        let lockfile = ResourceDescriptor::new("Cargo.lock", None, &digest::sha256(self.lockfile));
        let auditable = ResourceDescriptor {
            name: "cargo-auditable".into(),
            uri: Some(format!(
                "pkg:cargo/cargo-auditable@{}",
                pins::CARGO_AUDITABLE
            )),
            digest: BTreeMap::new(),
        };
        Statement {
            kind: "https://in-toto.io/Statement/v1".into(),
            subject: vec![ResourceDescriptor::new(
                &self.subject.0,
                None,
                self.subject.1,
            )],
            predicate_type: PREDICATE.into(),
            predicate: Provenance {
                build_definition: BuildDefinition {
                    build_type: BUILD_TYPE.into(),
                    external_parameters: self.parameters,
                    internal_parameters: self.internal,
                    resolved_dependencies: [source, lockfile]
                        .into_iter()
                        .chain(self.images)
                        .chain([auditable])
                        .collect(),
                },
                run_details: RunDetails {
                    builder: Builder {
                        id,
                        version: [("ci", env!("CARGO_PKG_VERSION")), ("dagger", pins::DAGGER)]
                            .map(|(name, version)| (name.to_owned(), version.to_owned()))
                            .into(),
                    },
                    metadata: Metadata {
                        invocation_id,
                        started_on: self.started,
                        finished_on: jiff::Timestamp::now(),
                    },
                },
            },
        }
    }
}

impl Statement {
    /// Serializes the statement as JSON.
    ///
    /// # Errors
    /// When serialization fails.
    pub fn to_json(&self) -> Result<Vec<u8>, Failure> {
        let mut text =
            serde_json::to_vec_pretty(self).or_environment("cannot serialize the provenance")?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads the statement from the report directory.
    ///
    /// # Errors
    /// When the file is missing or invalid (exit code 3).
    pub fn read(report_dir: &Path) -> Result<Self, Failure> {
        let path = report_dir.join(FILE);
        let cannot = || format!("cannot read {}", path.display());
        let text = std::fs::read(&path).or_environment(cannot())?;
        serde_json::from_slice(&text).or_environment(cannot())
    }

    /// Returns the digest of the dependency with this name: `sha256:…`.
    #[must_use]
    pub fn dependency(&self, name: &str) -> Option<String> {
        let dependencies = &self.predicate.build_definition.resolved_dependencies;
        let found = dependencies.iter().find(|it| it.name == name)?;
        let (algorithm, digest) = found.digest.first_key_value()?;
        Some(format!("{algorithm}:{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_descriptor_has_a_package_url() {
        let uri = |image| {
            ResourceDescriptor::image("x", image, "sha256:ab")
                .uri
                .unwrap()
        };
        assert_eq!(
            uri("docker.io/library/rust:1.95.0-bookworm"),
            "pkg:oci/rust@sha256%3Aab?repository_url=docker.io/library/rust&tag=1.95.0-bookworm"
        );
        assert_eq!(
            uri("127.0.0.1:5000/base@sha256:ab"),
            "pkg:oci/base@sha256%3Aab?repository_url=127.0.0.1:5000/base"
        );
    }
}
