//! How an image came to be: an in-toto statement with SLSA provenance.
//!
//! [Statement](https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md),
//! [SLSA provenance v1](https://slsa.dev/spec/v1.0/provenance). `ci/docs/provenance.md` says what the parameters mean.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::source::checkout::Checkout;
use common::digest;
use common::failure::{Failure, OrFail};
use common::pins;

/// The name of its file in the report directory.
pub const FILE: &str = "provenance.intoto.json";
/// The type of the predicate.
pub const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// The name under which the toolchain's image is among the dependencies.
pub const TOOLCHAIN: &str = "toolchain";
/// The name under which the base image is among the dependencies.
pub const BASE: &str = "base";

/// Where the types of the builds are described.
const BUILD_TYPE: &str = concat!(
    env!("CARGO_PKG_REPOSITORY"),
    "/blob/main/ci/docs/provenance.md#image-v1"
);
/// Who builds where GitHub does not.
const ELSEWHERE: &str = concat!(
    env!("CARGO_PKG_REPOSITORY"),
    "/blob/main/ci/docs/provenance.md#not-on-github"
);

/// An in-toto statement, version 1.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// `https://in-toto.io/Statement/v1`.
    #[serde(rename = "_type")]
    pub kind: String,
    /// What it is about.
    pub subject: Vec<ResourceDescriptor>,
    /// [`PREDICATE`].
    pub predicate_type: String,
    /// What it says.
    pub predicate: Provenance,
}

/// SLSA provenance, version 1.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// What was built, of what.
    pub build_definition: BuildDefinition,
    /// Who built it, and when.
    pub run_details: RunDetails,
}

/// The inputs of a build.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildDefinition {
    /// How the parameters are to be read.
    pub build_type: String,
    /// What the image is a function of, beside the dependencies.
    pub external_parameters: Parameters,
    /// What the builder chose.
    pub internal_parameters: BTreeMap<String, String>,
    /// Everything that went into the build, by digest.
    pub resolved_dependencies: Vec<ResourceDescriptor>,
}

/// What the image is a function of, beside the dependencies.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parameters {
    /// The repository of the sources, where the settings or the package name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The full SHA of the commit.
    pub revision: String,
    /// Whether the working tree was that commit's.
    pub clean: bool,
    /// The Cargo package.
    pub package: String,
    /// Its binary.
    pub binary: String,
    /// `linux/amd64`.
    pub platform: String,
}

/// Who built it, and when.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RunDetails {
    /// Who.
    pub builder: Builder,
    /// When, and in which run.
    pub metadata: Metadata,
}

/// Who built it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Builder {
    /// The workflow at its commit's ref, where GitHub ran it.
    pub id: String,
    /// The versions of its parts.
    pub version: BTreeMap<String, String>,
}

/// The run.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Its page on GitHub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<String>,
    /// When the build began.
    pub started_on: jiff::Timestamp,
    /// When the image was whole.
    pub finished_on: jiff::Timestamp,
}

/// Something by its digest.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceDescriptor {
    /// What it is called here.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Its digests, by algorithm.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digest: BTreeMap<String, String>,
}

impl ResourceDescriptor {
    /// Something with an OCI digest, `sha256:…`.
    #[must_use]
    pub fn new(name: &str, uri: Option<String>, digest: &str) -> Self {
        let digest = digest.split_once(':').unwrap_or(("sha256", digest));
        Self {
            name: name.to_owned(),
            uri,
            digest: [(digest.0.to_owned(), digest.1.to_owned())].into(),
        }
    }

    /// An image, by its [package URL](https://github.com/package-url/purl-spec/blob/main/types-doc/oci-definition.md).
    /// `name` is what it is called here, `image` is `docker.io/library/rust:1.95.0`, with or without its digest.
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

/// What is known of a build when its image is whole.
#[derive(Debug)]
pub struct Build<'a> {
    /// What the image is called, without a tag, and its digest.
    pub subject: (String, &'a str),
    /// The sources.
    pub checkout: &'a Checkout,
    /// What the image is a function of, beside them.
    pub parameters: Parameters,
    /// The images that it was made with and on.
    pub images: Vec<ResourceDescriptor>,
    /// The content of Cargo.lock: every crate and its digest.
    pub lockfile: &'a [u8],
    /// The engine, and the event.
    pub internal: BTreeMap<String, String>,
    /// When the build began.
    pub started: jiff::Timestamp,
}

impl Build<'_> {
    /// The statement about it; GitHub's part of it is read by `var` from the environment.
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
    /// Its JSON text.
    ///
    /// # Errors
    /// When it cannot be put into JSON.
    pub fn text(&self) -> Result<Vec<u8>, Failure> {
        let mut text = serde_json::to_vec_pretty(self)
            .or_environment("the provenance cannot be written as JSON")?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads the one in the report directory.
    ///
    /// # Errors
    /// When there is none, or it is none.
    pub fn read(report_dir: &Path) -> Result<Self, Failure> {
        let path = report_dir.join(FILE);
        let cannot = || format!("cannot read {}", path.display());
        let text = std::fs::read(&path).or_environment(cannot())?;
        serde_json::from_slice(&text).or_environment(cannot())
    }

    /// The digest of the dependency that is called `name`: `sha256:…`.
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
    fn an_image_is_named_by_its_package_url() {
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
