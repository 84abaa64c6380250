//! Scans the image with Trivy, and fails if vulnerabilities exceed the thresholds.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::Path;
use std::time::Duration;

use dagger_sdk::{Directory, File};
use generativity::Id;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::build::Image;
use crate::engine::graphql::EngineError;
use crate::image::attestations::{self, Attestation};
use crate::model::cause::{Cause, CauseKind, Location};
use crate::model::finding::{Finding, Severity};
use crate::model::inputs::Inputs;
use crate::run::execution::StepContext;
use crate::runner_cache::place::Place;
use crate::settings::tables::ScanLimits;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::digest::sha256;
use common::failure::{ExitCode, Failure, OrFail};
use common::pins;

/// The file with the exceptions, in the workspace's directory.
pub const IGNORE_FILE: &str = ".trivyignore.yaml";
/// Trivy's result type for a Rust binary with an embedded dependency list.
const RUST_BINARY: &str = "rustbinary";

/// Scans the archive and converts the report. One command, because each container takes a tenth of a second to start.
const SCAN: &str = r#"
trivy image --input /image.tar --cache-dir /cache --skip-db-update --skip-java-db-update --skip-version-check --offline-scan \
  --scanners vuln --pkg-types os,library --list-all-pkgs --format json --output /out/trivy.json || exit
trivy convert --format cyclonedx --output /out/sbom.cdx.json /out/trivy.json &
sbom=$!
trivy convert --format sarif --output /out/trivy.sarif /out/trivy.json || exit
wait "$sbom"
"#;

/// Evidence that Trivy found packages in this image, and no vulnerability that exceeds the thresholds.
#[derive(Debug)]
pub struct Scanned<'img, K> {
    _image: Id<'img>,
    sbom: Attestation,
    _kind: PhantomData<K>,
}

impl<K> Scanned<'_, K> {
    /// The image's SBOM, from the same scan.
    #[must_use]
    pub fn into_sbom(self) -> Attestation {
        self.sbom
    }
}

/// The parts of Trivy's JSON report that the gate reads.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Report {
    metadata: Metadata,
    results: Vec<ScanResult>,
}

impl Report {
    /// All vulnerabilities, the worst first. `lockfile` is the content of the `Cargo.lock` at `path`.
    fn findings(&self, limits: &ScanLimits, path: &Path, lockfile: &str) -> Vec<Finding> {
        let all = self.results.iter().flat_map(|it| &it.vulnerabilities);
        let mut findings: Vec<_> = all
            .map(|vulnerability| vulnerability.finding(limits, path, lockfile))
            .collect();
        findings.sort_by_key(|finding| (!finding.fails, Reverse(finding.severity)));
        findings
    }
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
    /// The source of the packages: `rustbinary`, or a distribution's name.
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
    #[serde(rename = "PrimaryURL")]
    url: String,
}

impl Vulnerability {
    fn exceeds(&self, limits: &ScanLimits) -> bool {
        self.severity >= limits.severity && (limits.unfixed || !self.fixed_version.is_empty())
    }

    /// The place of the package in `Cargo.lock`.
    fn location(&self, path: &Path, lockfile: &str) -> Option<Location> {
        Some(Location {
            file: path.display().to_string(),
            line: line_of(lockfile, &self.pkg_name, &self.installed_version)?,
            column: None,
        })
    }

    fn finding(&self, limits: &ScanLimits, path: &Path, lockfile: &str) -> Finding {
        let unless_empty = |text: &String| (!text.is_empty()).then(|| text.clone());
        Finding {
            id: self.id.clone(),
            severity: self.severity,
            package: self.pkg_name.clone(),
            version: self.installed_version.clone(),
            fixed_version: unless_empty(&self.fixed_version),
            title: self.title.clone(),
            url: unless_empty(&self.url),
            location: self.location(path, lockfile),
            fails: self.exceeds(limits),
        }
    }
}

/// A finding as the cause of a failure.
fn cause(finding: &Finding) -> Cause {
    let Finding {
        id,
        severity,
        package,
        version,
        ..
    } = finding;
    Cause {
        kind: CauseKind::Vulnerability,
        title: format!("{severity} {id} in {package} {version}, {}", finding.fix()),
        location: finding.location.clone(),
        detail: finding.title.clone(),
    }
}

/// The parts of a SARIF log that [`locate`] changes.
#[derive(Deserialize, Serialize)]
struct Sarif {
    runs: Vec<SarifRun>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Serialize)]
struct SarifRun {
    results: Vec<SarifResult>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct SarifResult {
    rule_id: String,
    locations: Vec<Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Places the findings of Trivy's SARIF log in `Cargo.lock`. Trivy places them in the image, where no forge can show them.
fn locate(sarif: &str, report: &Report, path: &Path, lockfile: &str) -> Result<String, Failure> {
    let invalid = "cannot parse Trivy's SARIF log";
    let mut sarif: Sarif = serde_json::from_str(sarif).or_environment(invalid)?;
    let results = sarif.runs.iter_mut().flat_map(|run| &mut run.results);
    // Trivy writes both in the same order.
    let vulnerabilities = report.results.iter().flat_map(|it| &it.vulnerabilities);
    for (result, vulnerability) in results.zip(vulnerabilities) {
        if result.rule_id != vulnerability.id {
            return Err(Failure::environment(invalid).because(eyre::eyre!(
                "{} is where {} should be",
                result.rule_id,
                vulnerability.id
            )));
        }
        if let Some(at) = vulnerability.location(path, lockfile) {
            result.locations = vec![json!({ "physicalLocation": {
                "artifactLocation": { "uri": at.file.replace('%', "%25").replace(' ', "%20") },
                "region": { "startLine": at.line },
            }})];
        }
    }
    serde_json::to_string_pretty(&sarif).or_environment("cannot serialize the SARIF log")
}

/// The line of a package in a `Cargo.lock`, from 1.
fn line_of(lockfile: &str, name: &str, version: &str) -> Option<u32> {
    let name = format!("name = \"{name}\"");
    let version = format!("version = \"{version}\"");
    let lines: Vec<_> = lockfile.lines().collect();
    let at = lines
        .windows(2)
        .position(|pair| pair[0] == name && pair[1] == version)?;
    u32::try_from(at + 1).ok()
}

fn severity<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Severity, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(Severity::from_trivy(&text))
}

/// Scans the archive.
///
/// # Errors
/// When a vulnerability exceeds the thresholds (exit code 5), no packages of the service are found (exit code 1), or the
/// vulnerability database is unavailable (exit code 3).
pub async fn run<'img, K: Kind>(
    step: &StepContext<'_, K>,
    (source, image): (&Source<'_>, &Image<'_, 'img, K>),
) -> Result<Scanned<'img, K>, Failure> {
    let scan = async |archive| examine(step, source, image, archive).await;
    image.uploaded(step, scan).await
}

async fn examine<'img, K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    image: &Image<'_, 'img, K>,
    archive: File,
) -> Result<Scanned<'img, K>, Failure> {
    let client = step.client();
    let database = step
        .waiting("the vulnerability database", database(step))
        .await?;
    let trivy = step.waiting("Trivy", step.run.toolbox.trivy()).await?;
    let mut container = trivy
        .container(client, None)?
        .with_directory("/cache/db", database.clone())
        .with_directory("/out", client.directory())
        .with_mounted_file("/image.tar", archive)
        // Exceptions expire, so a cached result is valid for one day.
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
        container = container
            .with_mounted_file("/trivyignore.yaml", exceptions)
            // As --ignorefile.
            .with_env_variable("TRIVY_IGNOREFILE", "/trivyignore.yaml");
    }
    let inputs = async {
        let digest = database.digest().await;
        let mut inputs = Inputs::default()
            .with("the image", &image.info().digest)
            .with(
                "the vulnerability database",
                digest.map_err(|error| failed(error.into()))?,
            )
            .with("Trivy", pins::TRIVY)
            .with("the date", jiff::Timestamp::now().strftime("%F"));
        if ignore.exists() {
            let exceptions = std::fs::read(&ignore).or_environment("cannot read the exceptions")?;
            inputs = inputs.with(IGNORE_FILE, sha256(&exceptions));
        }
        step.set_inputs(inputs);
        Ok(())
    };
    let scanned = container.with_exec(vec!["sh", "-c", SCAN]);
    let read = async |name: &str| {
        let content = scanned.file(format!("/out/{name}")).contents().await;
        content.map_err(|error| failed(error.into()))
    };
    let save = |name: &str, content: &str| {
        let path = settings.report_dir.join(name);
        std::fs::write(&path, content).or_environment(format!("cannot write {}", path.display()))
    };
    let output = async {
        let output = scanned.combined_output().await;
        step.add_output(&output.map_err(|error| failed(error.into()))?);
        Ok(())
    };
    let ((), (), trivy_report, sbom, sarif_log) = tokio::try_join!(
        inputs,
        output,
        read("trivy.json"),
        read("sbom.cdx.json"),
        read("trivy.sarif"),
    )?;
    save("trivy.json", &trivy_report)?;
    save("sbom.cdx.json", &sbom)?;
    let report: Report =
        serde_json::from_str(&trivy_report).or_environment("cannot parse Trivy's report")?;
    let workspace = source.snapshot().path().join(&settings.folder);
    // Without the file, the findings have no place.
    let lockfile = std::fs::read_to_string(workspace.join("Cargo.lock")).unwrap_or_default();
    let path = settings.folder.join("Cargo.lock");
    save(
        "trivy.sarif",
        &locate(&sarif_log, &report, &path, &lockfile)?,
    )?;
    if report.metadata.image_id != image.info().config {
        return Err(Failure::gate(format!(
            "Trivy scanned image {} instead of the built image {}",
            report.metadata.image_id,
            image.info().config
        )));
    }
    let findings = report.findings(&settings.scan, &path, &lockfile);
    let judged = judge(&report, &findings, &settings.scan);
    if judged.is_err() {
        for finding in findings.iter().filter(|finding| finding.fails) {
            step.add_cause(cause(finding));
        }
    }
    step.set_findings(findings);
    judged?;
    step.set_digest(&image.info().digest);
    Ok(Scanned {
        _image: image.id(),
        sbom: Attestation {
            kind: attestations::CYCLONEDX,
            annotations: BTreeMap::new(),
            content: sbom.into_bytes(),
        },
        _kind: PhantomData,
    })
}

fn judge(report: &Report, findings: &[Finding], limits: &ScanLimits) -> Result<(), Failure> {
    let packages = |of: &dyn Fn(&&ScanResult) -> bool| -> usize {
        report
            .results
            .iter()
            .filter(of)
            .map(|result| result.packages.len())
            .sum()
    };
    // Packages of the base image do not count.
    if packages(&|result| result.kind == RUST_BINARY) == 0 {
        return Err(Failure::gate("Trivy found no packages of the service").hint(
            "Do not strip the binary's section .dep-v0, in which cargo-auditable embeds the dependency list.",
        ));
    }
    let found: Vec<_> = findings.iter().filter(|finding| finding.fails).collect();
    if found.is_empty() {
        return Ok(());
    }
    let table: String = found.iter().map(|finding| format!("{finding}\n")).collect();
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
        "Update the packages (`cargo update`) or the base image, or accept one for a time with `ci scan --accept ID --days N --because TEXT`, which adds it to {IGNORE_FILE}."
    )))
}

/// Downloads the database; the lock is for concurrent runs. The copy outside of the volume makes the database's content part of
/// the scan's cache key.
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
    step.run.restore(Place::Database).await;
    let volume = client.cache_volume(step.run.volume_of(Place::Database).await?);
    let now = jiff::Timestamp::now();
    let directory = step
        .run
        .connected(client, trivy.container(client, None)?)
        .with_mounted_cache("/downloaded", volume)
        // A new database is published every six hours; Trivy itself skips the download if it has the newest one.
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
            EngineError::from(error).into_environment("cannot download the vulnerability database")
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
        .or_environment("cannot read metadata.json of the vulnerability database")?;
    let age = Duration::try_from(now.duration_since(metadata.updated_at)).unwrap_or_default();
    if age > most {
        return Err(Failure::environment(format!(
            "the vulnerability database is outdated (last updated {})",
            metadata.updated_at
        ))
        .hint("Run again when ghcr.io/aquasecurity/trivy-db is up to date, or raise scan.database-age in ci.toml."));
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
            Failure::environment("cannot read the vulnerability database").output(output)
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

/// An exception for a vulnerability.
#[derive(Debug)]
pub struct Accepted {
    /// The vulnerability.
    pub id: String,
    /// The day on which the exception ends.
    pub until: jiff::civil::Date,
}

/// The complete exceptions in a file.
///
/// # Errors
/// When the file is not valid YAML (exit code 2).
pub fn accepted(yaml: &str) -> Result<Vec<Accepted>, Failure> {
    let file: Option<IgnoreFile> = serde_saphyr::from_str(yaml)
        .map_err(|error| Failure::usage(format!("{IGNORE_FILE}: {error}")))?;
    let exceptions = file.unwrap_or_default().vulnerabilities.into_iter();
    let accepted = exceptions.filter_map(|it| {
        Some(Accepted {
            until: it.expired_at?.parse().ok()?,
            id: it.id,
        })
    });
    Ok(accepted.collect())
}

/// Checks that each exception has an id, a statement and an expiry date.
///
/// # Errors
/// When an exception is incomplete, or the file is not valid YAML (exit code 2).
pub fn check_exceptions(yaml: &str) -> Result<(), Failure> {
    let wrong = |why: String| Failure::usage(format!("{IGNORE_FILE}: {why}"));
    // A file with nothing but comments is `null` in YAML.
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
            problems += &format!("- {name} has no statement, the reason for the exception\n");
        }
        match exception
            .expired_at
            .as_deref()
            .map(str::parse::<jiff::civil::Date>)
        {
            // Trivy ignores a quoted date.
            Some(Ok(day))
                if ['"', '\'']
                    .iter()
                    .any(|quote| yaml.contains(&format!("{quote}{day}{quote}"))) =>
            {
                problems +=
                    &format!("- {name} has a quoted expired_at, which Trivy does not accept\n");
            }
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                problems +=
                    &format!("- {name} has an expired_at that is not a date such as 2027-01-31\n");
            }
            None => problems += &format!("- {name} has no expired_at, the expiry date\n"),
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(wrong("some exceptions are incomplete".to_owned())
        .output(problems)
        .hint("Set id, statement and expired_at in each entry below `vulnerabilities`."))
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
        let report: Report = serde_json::from_str(json).unwrap();
        let findings = report.findings(limits, Path::new("Cargo.lock"), "");
        super::judge(&report, &findings, limits)
    }

    #[test]
    fn fails_when_no_packages_of_the_service_are_found() {
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
    fn fails_only_on_fixable_high_and_critical_vulnerabilities_by_default() {
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
    fn the_thresholds_are_configurable() {
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
    fn finds_the_package_in_the_lockfile() {
        let lockfile = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"a\"\nversion = \"2.0.0\"\n";
        assert_eq!(line_of(lockfile, "a", "2.0.0"), Some(8));
        assert_eq!(line_of(lockfile, "b", "2.0.0"), None);
    }

    #[test]
    fn findings_are_sorted_and_placed_in_the_lockfile_also_in_sarif() {
        let report: Report = serde_json::from_str(
            r#"{"Results":[
                {"Type":"debian","Vulnerabilities":[
                    {"VulnerabilityID":"CVE-1","PkgName":"libc6","InstalledVersion":"2.36","Severity":"CRITICAL"}]},
                {"Type":"rustbinary","Vulnerabilities":[
                    {"VulnerabilityID":"CVE-2","PkgName":"a","InstalledVersion":"1.0.0","Severity":"HIGH","FixedVersion":"1.0.1"},
                    {"VulnerabilityID":"CVE-3","PkgName":"a","InstalledVersion":"1.0.0","Severity":"LOW"}]}]}"#,
        )
        .unwrap();
        let lockfile = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n";
        let path = Path::new("backend/Cargo.lock");
        let findings = report.findings(&LIMITS, path, lockfile);
        let found: Vec<_> = findings
            .iter()
            .map(|it| {
                (
                    &*it.id,
                    it.fails,
                    it.location.as_ref().map(ToString::to_string),
                )
            })
            .collect();
        let place = || Some("backend/Cargo.lock:4".to_owned());
        assert_eq!(
            found,
            [
                ("CVE-2", true, place()),
                ("CVE-1", false, None),
                ("CVE-3", false, place()),
            ]
        );
        let result = |id: &str| {
            let location = json!({"physicalLocation": {"artifactLocation": {"uri": "app"}}});
            json!({"ruleId": id, "message": {"text": id}, "locations": [location]})
        };
        let log = |ids: [&str; 3]| {
            json!({"version": "2.1.0", "runs": [{"tool": {}, "results": ids.map(result)}]})
                .to_string()
        };
        let placed = locate(&log(["CVE-1", "CVE-2", "CVE-3"]), &report, path, lockfile).unwrap();
        let placed: Value = serde_json::from_str(&placed).unwrap();
        let results = &placed["runs"][0]["results"];
        let place = |at: usize| &results[at]["locations"][0]["physicalLocation"];
        assert_eq!(place(0)["artifactLocation"]["uri"], "app");
        assert_eq!(place(1)["artifactLocation"]["uri"], "backend/Cargo.lock");
        assert_eq!(place(1)["region"]["startLine"], 4);
        assert_eq!(results[2]["message"]["text"], "CVE-3");
        assert_eq!(placed["version"], "2.1.0");
        assert!(locate(&log(["CVE-2", "CVE-1", "CVE-3"]), &report, path, lockfile).is_err());
    }

    #[test]
    fn an_exception_needs_an_id_a_statement_and_an_expiry_date() {
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
    fn rejects_an_outdated_or_damaged_database() {
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
