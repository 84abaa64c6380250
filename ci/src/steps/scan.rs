//! Trivy's scan of the archive, and the gate on what it found.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::Duration;

use dagger_sdk::{Container, Directory};
use generativity::Id;
use serde::Deserialize;

use super::build::Image;
use crate::engine::graphql::EngineError;
use crate::image::attestations::{self, Paper};
use crate::run::execution::StepContext;
use crate::runner_cache::place::Place;
use crate::settings::tables::{ScanLimits, Severity};
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::{ExitCode, Failure, OrFail};

/// The file with the exceptions, in the top of the sources.
pub const IGNORE_FILE: &str = ".trivyignore.yaml";
/// What Trivy calls a binary that carries its dependency list.
const RUST_BINARY: &str = "rustbinary";

/// Trivy saw this image's packages, and none of them has a fixable vulnerability of high or critical severity.
#[derive(Debug)]
pub struct Scanned<'img, K> {
    _image: Id<'img>,
    sbom: Paper,
    _kind: PhantomData<K>,
}

impl<K> Scanned<'_, K> {
    /// The image's bill of materials, of the very scan that this is the evidence of.
    #[must_use]
    pub fn into_sbom(self) -> Paper {
        self.sbom
    }
}

/// What the gate reads of Trivy's JSON report.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Report {
    metadata: Metadata,
    results: Vec<ScanResult>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    #[serde(rename = "ImageID")]
    image_id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ScanResult {
    /// `rustbinary`, or what else the packages are of.
    #[serde(rename = "Type")]
    kind: String,
    packages: Vec<serde::de::IgnoredAny>,
    vulnerabilities: Vec<Vulnerability>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Vulnerability {
    #[serde(rename = "VulnerabilityID")]
    id: String,
    pkg_name: String,
    installed_version: String,
    fixed_version: String,
    #[serde(deserialize_with = "severity")]
    severity: Severity,
    title: String,
}

impl Vulnerability {
    fn counts(&self, limits: &ScanLimits) -> bool {
        self.severity >= limits.severity && (limits.unfixed || !self.fixed_version.is_empty())
    }
}

fn severity<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Severity, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(Severity::from_trivy(&text))
}

impl std::fmt::Display for Vulnerability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            id,
            pkg_name,
            installed_version,
            fixed_version,
            severity,
            title,
        } = self;
        write!(f, "{severity:<8}  {id}  {pkg_name} {installed_version}, ")?;
        if fixed_version.is_empty() {
            f.write_str("no fix yet")?;
        } else {
            write!(f, "fixed in {fixed_version}")?;
        }
        if title.is_empty() {
            Ok(())
        } else {
            write!(f, "  {title}")
        }
    }
}

/// Scans the archive.
///
/// # Errors
/// A fixable vulnerability (exit 5), a scan that saw no packages (exit 1), no usable database (exit 3).
pub async fn run<'img, K: Kind>(
    step: &StepContext<'_, K>,
    (source, image): (&Source<'_>, &Image<'_, 'img, K>),
) -> Result<Scanned<'img, K>, Failure> {
    let client = step.client();
    let archive = image.upload(step).await?;
    let database = database(step).await?;
    let mut arguments = vec![
        "trivy",
        "image",
        "--input",
        "/image.tar",
        "--cache-dir",
        "/cache",
        "--skip-db-update",
        "--skip-java-db-update",
        "--skip-version-check",
        "--offline-scan",
        "--scanners",
        "vuln",
        "--pkg-types",
        "os,library",
        "--list-all-pkgs",
        "--format",
        "json",
        "--output",
        "/out/trivy.json",
    ];
    let trivy = step.run.toolbox.trivy().await?;
    let mut container = trivy
        .container(client, None)?
        .with_directory("/cache/db", database)
        .with_directory("/out", client.directory())
        .with_mounted_file("/image.tar", archive)
        // Exceptions end on a day: yesterday's answer is not today's.
        .with_env_variable(
            "SCAN_DATE",
            jiff::Timestamp::now().strftime("%F").to_string(),
        );
    let settings = &step.run.settings;
    let ignore = source
        .snapshot()
        .path()
        .join(&settings.folder)
        .join(IGNORE_FILE);
    if ignore.exists() {
        let exceptions = client.host().file(ignore.display().to_string());
        container = container.with_mounted_file("/trivyignore.yaml", exceptions);
        arguments.extend(["--ignorefile", "/trivyignore.yaml"]);
    }
    let scanned = container.with_exec(arguments);
    let keep = async |scanned: &Container, name: &str| {
        let content = scanned.file(format!("/out/{name}")).contents().await;
        let content = content.map_err(|error| failed(error.into()))?;
        let path = settings.report_dir.join(name);
        std::fs::write(&path, &content)
            .or_environment(format!("cannot write {}", path.display()))?;
        Ok::<_, Failure>(content)
    };
    let report = keep(&scanned, "trivy.json").await?;
    let of_the_same_scan = scanned.with_exec(vec![
        "trivy",
        "convert",
        "--format",
        "cyclonedx",
        "--output",
        "/out/sbom.cdx.json",
        "/out/trivy.json",
    ]);
    let sbom = keep(&of_the_same_scan, "sbom.cdx.json").await?;
    let report: Report =
        serde_json::from_str(&report).or_environment("Trivy's report is not what was expected")?;
    if report.metadata.image_id != image.info().config {
        return Err(Failure::gate(format!(
            "Trivy scanned the image {}, not the one that was built, {}",
            report.metadata.image_id,
            image.info().config
        )));
    }
    judge(&report, &settings.scan)?;
    step.saw(&image.info().digest);
    Ok(Scanned {
        _image: image.id(),
        sbom: Paper {
            kind: attestations::CYCLONEDX,
            annotations: BTreeMap::new(),
            content: sbom.into_bytes(),
        },
        _kind: PhantomData,
    })
}

fn judge(report: &Report, limits: &ScanLimits) -> Result<(), Failure> {
    let packages = |of: &dyn Fn(&&ScanResult) -> bool| -> usize {
        report
            .results
            .iter()
            .filter(of)
            .map(|result| result.packages.len())
            .sum()
    };
    // Those of a base image say nothing about the service.
    if packages(&|result| result.kind == RUST_BINARY) == 0 {
        return Err(Failure::gate("the scan saw no packages of the service, so it says nothing").hint(
            "The binary has to carry its dependency list: it is put there by cargo-auditable and must not be stripped of it.",
        ));
    }
    let found: Vec<_> = report
        .results
        .iter()
        .flat_map(|result| &result.vulnerabilities)
        .filter(|vulnerability| vulnerability.counts(limits))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    let table: String = found
        .iter()
        .map(|vulnerability| format!("{vulnerability}\n"))
        .collect();
    let what = if limits.unfixed { "" } else { "fixable " };
    Err(Failure::new(
        ExitCode::Vulnerable,
        format!(
            "{} {what}vulnerabilities of {} or worse in {} packages",
            found.len(),
            limits.severity,
            packages(&|_| true)
        ),
    )
    .output(table)
    .hint(format!(
        "Update the packages (`cargo update`), or the base image. An exception needs an entry in {IGNORE_FILE} with id, statement and expired_at."
    )))
}

/// Two runs at once take turns. The database is taken out of the volume: the scan goes by its content.
const DOWNLOAD: &str = "set -e
exec 9>>/downloaded/lock
flock 9
trivy image --download-db-only --skip-version-check --cache-dir /downloaded
cp -R /downloaded/db /database";

/// Trivy's database, or its stand-in.
async fn database<K: Kind>(step: &StepContext<'_, K>) -> Result<Directory, Failure> {
    let client = step.client();
    if let Some(stand_in) = step.run.toolbox.advisories().await? {
        return Ok(client.host().directory(stand_in.dir.display().to_string()));
    }
    let trivy = step.run.toolbox.trivy().await?;
    step.run.bring(Place::Database).await;
    let volume = client.cache_volume(step.run.volume_of(Place::Database).await?);
    let now = jiff::Timestamp::now();
    let directory = trivy
        .container(client, None)?
        .with_mounted_cache("/downloaded", volume)
        // Trivy publishes a new one every six hours, and knows itself whether the one that is there is still the newest.
        .with_env_variable(
            "DATABASE_OF",
            format!(
                "{}-{}",
                now.strftime("%F"),
                now.strftime("%H").to_string().parse::<u8>().unwrap_or(0) / 6
            ),
        )
        .with_exec(vec!["sh", "-c", DOWNLOAD])
        .directory("/database");
    let metadata = directory
        .file("metadata.json")
        .contents()
        .await
        .map_err(|error| {
            EngineError::from(error).into_environment("cannot get the vulnerability database")
        })?;
    check_age(&metadata, now, step.run.settings.scan.database_age)?;
    Ok(directory)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DatabaseMetadata {
    updated_at: jiff::Timestamp,
}

fn check_age(metadata: &str, now: jiff::Timestamp, most: Duration) -> Result<(), Failure> {
    let metadata: DatabaseMetadata = serde_json::from_str(metadata)
        .or_environment("the vulnerability database is damaged: its metadata.json")?;
    let age = Duration::try_from(now.duration_since(metadata.updated_at)).unwrap_or_default();
    if age > most {
        return Err(Failure::environment(format!(
            "the vulnerability database is of {}, which is too old",
            metadata.updated_at
        ))
        .hint("Run again when ghcr.io/aquasecurity/trivy-db is up to date; scan.database-age in ci.toml is the limit."));
    }
    Ok(())
}

fn failed(error: EngineError) -> Failure {
    match error {
        EngineError::Exec { output, .. }
            if ["DB error", "DB corrupt", "bbolt"]
                .iter()
                .any(|sign| output.contains(sign)) =>
        {
            Failure::environment("the vulnerability database cannot be used").output(output)
        }
        EngineError::Exec { exit_code, output } => {
            Failure::gate(format!("Trivy failed (exit code {exit_code})")).output(output)
        }
        other => other.into_environment("step scan"),
    }
}

/// One exception from the gate.
#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(default)]
    id: String,
    #[serde(default)]
    statement: String,
    expired_at: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IgnoreFile {
    vulnerabilities: Vec<Exception>,
}

/// Checks the exceptions: each says what, why, and until when.
///
/// # Errors
/// When one does not, or the file is not YAML (exit 2).
pub fn check_exceptions(yaml: &str) -> Result<(), Failure> {
    let wrong = |why: String| Failure::usage(format!("{IGNORE_FILE}: {why}"));
    // A file of comments only is a file without exceptions.
    let file: Option<IgnoreFile> =
        serde_saphyr::from_str(yaml).map_err(|error| wrong(error.to_string()))?;
    let mut problems = String::new();
    for (number, exception) in file.unwrap_or_default().vulnerabilities.iter().enumerate() {
        let name = if exception.id.is_empty() {
            format!("entry {}", number + 1)
        } else {
            exception.id.clone()
        };
        if exception.id.is_empty() {
            problems += &format!("- {name} has no id\n");
        }
        if exception.statement.trim().is_empty() {
            problems += &format!("- {name} has no statement, which says why it is accepted\n");
        }
        match exception
            .expired_at
            .as_deref()
            .map(str::parse::<jiff::civil::Date>)
        {
            // Trivy wants the bare date: it does not read one in quotes.
            Some(Ok(day))
                if ['"', '\'']
                    .iter()
                    .any(|quote| yaml.contains(&format!("{quote}{day}{quote}"))) =>
            {
                problems +=
                    &format!("- {name} has its expired_at in quotes, which Trivy does not read\n");
            }
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                problems +=
                    &format!("- {name} has an expired_at that is not a date such as 2027-01-31\n")
            }
            None => problems += &format!("- {name} has no expired_at, the day on which it ends\n"),
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(wrong("some exceptions are not complete".to_owned())
        .output(problems)
        .hint("Each entry below `vulnerabilities` needs id, statement and expired_at."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ScanLimits = ScanLimits {
        severity: Severity::High,
        unfixed: false,
        database_age: Duration::from_secs(7 * 24 * 3600),
    };

    fn judge(json: &str, limits: &ScanLimits) -> Result<(), Failure> {
        super::judge(&serde_json::from_str(json).unwrap(), limits)
    }

    #[test]
    fn a_scan_that_saw_nothing_fails() {
        for empty in [
            "{}",
            r#"{"Results":[]}"#,
            r#"{"Results":[{"Type":"rustbinary","Packages":[]}]}"#,
            r#"{"Results":[{"Type":"debian","Packages":[{"Name":"libc6"}]}]}"#,
        ] {
            assert_eq!(
                judge(empty, &LIMITS).unwrap_err().code,
                ExitCode::GateFailed,
                "{empty}"
            );
        }
        judge(
            r#"{"Results":[{"Type":"rustbinary","Packages":[{"Name":"api"}]}]}"#,
            &LIMITS,
        )
        .unwrap();
    }

    fn one(severity: &str, fixed: &str, limits: &ScanLimits) -> Result<(), Failure> {
        let json = format!(
            r#"{{"Results":[{{"Type":"rustbinary","Packages":[{{}}],"Vulnerabilities":[{{"VulnerabilityID":"CVE-1","Severity":"{severity}","FixedVersion":"{fixed}"}}]}}]}}"#
        );
        judge(&json, limits)
    }

    #[test]
    fn only_fixable_high_and_critical_findings_count() {
        for severity in ["HIGH", "CRITICAL"] {
            assert_eq!(
                one(severity, "1.0.1", &LIMITS).unwrap_err().code,
                ExitCode::Vulnerable
            );
            one(severity, "", &LIMITS).unwrap();
        }
        for severity in ["MEDIUM", "LOW", "UNKNOWN"] {
            one(severity, "1.0.1", &LIMITS).unwrap();
        }
    }

    #[test]
    fn the_limits_can_be_others() {
        let strict = ScanLimits {
            severity: Severity::Low,
            unfixed: true,
            ..LIMITS
        };
        for severity in ["LOW", "MEDIUM", "CRITICAL"] {
            let failure = one(severity, "", &strict).unwrap_err();
            assert!(failure.output.unwrap().contains("no fix yet"));
        }
        one("UNKNOWN", "", &strict).unwrap();
        let lax = ScanLimits {
            severity: Severity::Critical,
            ..LIMITS
        };
        one("HIGH", "1.0.1", &lax).unwrap();
        one("CRITICAL", "1.0.1", &lax).unwrap_err();
    }

    #[test]
    fn an_exception_needs_a_statement_and_an_end() {
        check_exceptions("").unwrap();
        check_exceptions("# nothing\n").unwrap();
        check_exceptions("vulnerabilities: []\n").unwrap();
        check_exceptions("vulnerabilities:\n  - id: CVE-1\n    statement: not reachable\n    expired_at: 2027-01-31\n").unwrap();
        for (yaml, word) in [
            (
                "vulnerabilities:\n  - id: CVE-1\n    expired_at: 2027-01-31\n",
                "statement",
            ),
            (
                "vulnerabilities:\n  - id: CVE-1\n    statement: x\n",
                "expired_at",
            ),
            (
                "vulnerabilities:\n  - id: CVE-1\n    statement: x\n    expired_at: never\n",
                "date",
            ),
            (
                "vulnerabilities:\n  - statement: x\n    expired_at: 2027-01-31\n",
                "id",
            ),
        ] {
            let failure = check_exceptions(yaml).unwrap_err();
            assert_eq!(failure.code, ExitCode::Usage);
            assert!(failure.output.unwrap().contains(word), "{yaml}");
        }
        assert_eq!(
            check_exceptions("vulnerabilities: [").unwrap_err().code,
            ExitCode::Usage
        );
    }

    #[test]
    fn an_old_database_is_none() {
        let now: jiff::Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        check_age(
            r#"{"UpdatedAt":"2026-11-22T00:00:00Z"}"#,
            now,
            LIMITS.database_age,
        )
        .unwrap();
        for bad in [r#"{"UpdatedAt":"2026-11-01T00:00:00Z"}"#, "{}", "nonsense"] {
            let failure = check_age(bad, now, LIMITS.database_age).unwrap_err();
            assert_eq!(failure.code, ExitCode::Environment);
        }
    }
}
