//! Prints a run's progress and results.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anstream::{eprint, eprintln};
use clap::builder::styling::{AnsiColor, Style};
use secrecy::{ExposeSecret, SecretString};

use super::json::{Prepared, Report};
use crate::model::record::{AttachedArtifact, CacheReport, CachedPart, Outcome, Record, Status};
use crate::model::step::Step;
use crate::settings::{Format, Settings};
use crate::trust::authority::Credential;
use common::failure::{Failure, OrFail};
use common::progress::Progress;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const NOTE: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

/// Prints progress and results in the configured format.
pub struct Reporter {
    format: Format,
    quiet: bool,
    verbose: bool,
    directory: Option<PathBuf>,
    /// The token, and the token as it is sent to a registry.
    secrets: Vec<SecretString>,
    prepared: Mutex<Vec<Prepared>>,
    /// Held while printing, so that the lines of concurrent steps do not mix.
    turn: Mutex<()>,
}

impl Reporter {
    /// The reporter of a run. It redacts `credential` in everything that it prints or writes.
    #[must_use]
    pub fn new(settings: &Settings, credential: Option<Credential>) -> Self {
        Self {
            format: settings.format,
            quiet: settings.quiet,
            verbose: settings.verbose > 0,
            directory: Some(settings.report_dir.clone()),
            secrets: credential.map_or_else(Vec::new, |it| vec![it.basic(), it.token]),
            prepared: Mutex::default(),
            turn: Mutex::default(),
        }
    }

    /// The reporter of a command that is not a run.
    #[must_use]
    pub fn plain(quiet: bool, verbose: bool) -> Self {
        Self {
            format: Format::Human,
            quiet,
            verbose,
            directory: None,
            secrets: Vec::new(),
            prepared: Mutex::default(),
            turn: Mutex::default(),
        }
    }

    /// Replaces the secrets in `text` with `***`.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        self.secrets
            .iter()
            .map(ExposeSecret::expose_secret)
            // A very short secret would match parts of many words.
            .filter(|secret| secret.len() >= 6)
            .fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    fn print(&self, text: &str) {
        let _turn = lock(&self.turn);
        eprintln!("{}", self.redact(text));
    }

    /// Everything that has been provisioned so far.
    #[must_use]
    pub fn prepared(&self) -> Vec<Prepared> {
        lock(&self.prepared).clone()
    }

    /// Prints a line, unless quiet.
    pub fn header(&self, text: &str) {
        if !self.quiet {
            self.print(text);
        }
    }

    /// Prints that a step has started.
    pub fn started(&self, step: Step) {
        if !self.quiet {
            self.print(&format!("{DIM}  … {step:<8}{DIM:#}"));
        }
    }

    /// Prints a line of a container's output.
    pub fn line_of(&self, step: Step, line: &str) {
        // GitHub's runner still accepts its old command syntax `##[…]` anywhere in a line.
        let line = line.replace("##[", "## [");
        self.print(&format!("{DIM}{step:>11} │{DIM:#} {line}"));
    }

    /// Prints the result of a step.
    pub fn ended(&self, record: &Record, failure: Option<&Failure>) {
        let took = format_duration(Duration::from_millis(record.duration_ms));
        let step = record.name;
        let Some(failure) = failure else {
            if !self.quiet {
                let cached = if record.cached { "  cached" } else { "" };
                let parts = parts(record);
                self.print(&format!(
                    "{GOOD}  ✓ {step:<8}{GOOD:#}{took:>9}{DIM}{cached}{parts}{DIM:#}"
                ));
            }
            return;
        };
        let sign = if record.status == Status::Cancelled {
            "■"
        } else {
            "✗"
        };
        let mut text = format!("{BAD}  {sign} {step:<8}{BAD:#}{took:>9}  {failure}\n");
        if let Some(output) = &failure.output {
            let lines: String = output
                .trim_end()
                .lines()
                .map(|line| format!("      {line}\n"))
                .collect();
            text += &match self.format {
                Format::Github => format!(
                    "::group::{step}: output\n{}::endgroup::\n",
                    without_commands(&lines)
                ),
                _ => lines,
            };
        }
        if let Some(hint) = &failure.hint {
            text += &format!("{NOTE}      hint:{NOTE:#} {hint}\n");
        }
        if self.format == Format::Github {
            text += &annotation(&format!("{step}: {failure}"));
        }
        self.print(text.trim_end());
    }

    /// Writes the output of a step's containers to `logs/STEP.log`, and returns the path relative to the report directory.
    pub fn write_log(&self, step: Step, log: &str) -> Option<String> {
        let name = format!("logs/{step}.log");
        let path = self.directory.as_ref()?.join(&name);
        let written = path
            .parent()
            .map(std::fs::create_dir_all)?
            .and_then(|()| std::fs::write(&path, self.redact(log)));
        match written {
            Ok(()) => Some(name),
            Err(error) => {
                self.notice(&format!("cannot write {}: {error}", path.display()));
                None
            }
        }
    }

    /// Prints a failure outside of the steps.
    pub fn failed(&self, error: &Failure) {
        let text = match self.format {
            Format::Github => without_commands(&render(error)) + &annotation(&error.to_string()),
            _ => render(error),
        };
        self.print(text.trim_end());
    }

    /// Prints the result of `ci cache`; with `--format json` also as JSON.
    ///
    /// # Errors
    /// When the result cannot be serialized.
    pub fn cache_result(&self, cache: &CacheReport) -> Result<(), Failure> {
        if self.format == Format::Json {
            let text = serde_json::to_string_pretty(cache)
                .or_environment("cannot serialize the report")?;
            data(&(text + "\n"));
        }
        let lines = cache_summary(cache);
        self.header(match lines.trim_end() {
            "" if cache.unchanged.is_empty() => "cache    nothing to save or restore",
            "" => "cache    already up to date",
            lines => lines,
        });
        Ok(())
    }

    /// Prints the verdict of a run; with `--format json` also the report.
    pub fn verdict(&self, report: &Report) {
        if !self.quiet || !report.verdict.passed {
            self.print(&verdict(report));
        }
        if self.format == Format::Json
            && let Ok(text) = report.text(|text| self.redact(text))
        {
            data(&text);
        }
    }
}

/// The names of a step's parts, if it has any.
fn parts(record: &Record) -> String {
    let names: Vec<_> = record.parts.iter().map(|part| &*part.name).collect();
    if names.is_empty() {
        return String::new();
    }
    format!("  {}", names.join(", "))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn verdict(report: &Report) -> String {
    let took = format_duration(Duration::from_millis(report.duration_ms));
    let mut text = String::new();
    for note in &report.stand_ins {
        text += &format!("{NOTE}stand-in{NOTE:#} for {}: {}\n", note.name, note.used);
    }
    if let Some(cache) = &report.cache {
        text += &cache_summary(cache);
    }
    if let Some(digest) = &report.digest {
        text += &format!("image    {} {DIM}{digest}{DIM:#}\n", report.image);
    }
    let with = if report.stand_ins.is_empty() {
        ""
    } else {
        ", with stand-ins"
    };
    if report.verdict.passed {
        let published = match &report.publish {
            None => "",
            Some(published) if published.outcome == Outcome::Pushed => ", published",
            Some(published)
                if published
                    .referrers
                    .iter()
                    .all(AttachedArtifact::existed_before) =>
            {
                ", already published with the same digest; nothing was pushed"
            }
            Some(_) => ", already published with the same digest; missing attestations were added",
        };

        text += &format!("{GOOD}passed{GOOD:#}{with}{published} in {took}");
    } else {
        text += &format!(
            "{BAD}failed{BAD:#}{with} in {took} (exit code {})",
            report.verdict.exit_code
        );
    }
    text
}

/// Summarizes what was restored, reused and saved, one line each.
pub(super) fn cache_summary(cache: &CacheReport) -> String {
    let mut text = String::new();
    let list = |what: &str, parts: &[CachedPart]| {
        let bytes = parts.iter().map(|it| it.bytes).sum();
        let names: Vec<_> = parts.iter().map(|it| &*it.part).collect();
        (!parts.is_empty()).then(|| {
            format!(
                "cache    {what} {}: {}",
                names.join(", "),
                format_bytes(bytes)
            )
        })
    };
    text.extend(list("restored", &cache.restored).map(|line| line + "\n"));
    if !cache.passed_before.is_empty() {
        let steps: Vec<_> = cache.passed_before.iter().map(|it| it.name()).collect();
        text += &format!(
            "cache    reused results for the same inputs: {}\n",
            steps.join(", ")
        );
    }
    if let (Some(gained), Some(cold)) = (cache.gained_ms, &cache.measured_by) {
        text += &format!(
            "cache    gained {}: these steps took {} without it (commit {:.7})\n",
            format_duration(Duration::from_millis(gained)),
            format_duration(Duration::from_millis(cold.duration_ms)),
            cold.commit
        );
    }
    if let Some(line) = list("saved", &cache.saved) {
        text += &format!(
            "{line} in {}, {} in total\n",
            format_duration(Duration::from_millis(cache.save_ms)),
            format_bytes(cache.bytes)
        );
    }
    if !cache.left_out.is_empty() {
        text += &format!(
            "{NOTE}cache    not saved because of the size limit: {}{NOTE:#}\n",
            cache.left_out.join(", ")
        );
    }
    text
}

fn render(error: &Failure) -> String {
    let mut text = format!("{BAD}error:{BAD:#} {error}\n");
    if let Some(output) = error
        .output
        .as_deref()
        .filter(|output| !output.trim().is_empty())
    {
        for line in output.trim_end().lines() {
            text += &format!("  {line}\n");
        }
    }
    if let Some(hint) = &error.hint {
        text += &format!("{NOTE}hint:{NOTE:#} {hint}\n");
    }
    text
}

/// Prevents GitHub from executing workflow commands in a program's output, by
/// [stopping](https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands#stopping-and-starting-workflow-commands)
/// commands with a random token, which the output cannot contain.
fn without_commands(text: &str) -> String {
    let mut word = [0; 16];
    if let Err(error) = getrandom::fill(&mut word) {
        return format!("cannot generate a random token: {error}; see the logs for the output\n");
    }
    let word = hex::encode(word);
    format!("::stop-commands::{word}\n{text}::{word}::\n")
}

/// An error annotation, as a [workflow command](https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands).
fn annotation(message: &str) -> String {
    let message = message
        .replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A");
    format!("::error title=ci::{message}\n")
}

/// Formats a duration: `3.4s`, `2m 05s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 {
        format!("{}m {:02}s", seconds / 60, seconds % 60)
    } else {
        format!("{:.1}s", duration.as_secs_f64())
    }
}

/// Formats a size with decimal units: `1.2 MB`.
#[must_use]
pub(super) fn format_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
        _ => format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10),
    }
}

impl Progress for Reporter {
    fn begin(&self, what: &str) {
        if !self.quiet {
            self.print(&format!("{DIM}  … {what}{DIM:#}"));
        }
    }

    fn line(&self, line: &str) {
        if self.verbose {
            self.print(&format!("{DIM}    {line}{DIM:#}"));
        }
    }

    fn done(&self, what: &str, took: Duration) {
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        lock(&self.prepared).push(Prepared {
            what: what.to_owned(),
            start: jiff::Timestamp::now() - took,
            duration_ms,
        });
        if !self.quiet {
            self.print(&format!(
                "{GOOD}  ✓{GOOD:#} {what} {DIM}{}{DIM:#}",
                format_duration(took)
            ));
        }
    }

    fn notice(&self, text: &str) {
        if !self.quiet {
            self.print(&format!("{NOTE}  !{NOTE:#} {text}"));
        }
    }
}

/// Prints data to standard output.
pub fn data(text: &str) {
    let mut out = std::io::stdout().lock();
    // Ignores a closed pipe.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a failure outside of any run.
pub fn failure(error: &Failure) {
    eprint!("{}", render(error));
}

/// Prints clap's usage error, help or version.
pub fn help(error: &clap::Error) {
    // Ignores a closed pipe.
    let _ = error.print();
}

/// Asks for confirmation on the terminal; returns true without a terminal.
#[must_use]
pub fn confirm(question: &str) -> bool {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return true;
    }
    eprint!("{question} [Y/n] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok()
        && matches!(answer.trim(), "" | "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redacts_secrets() {
        let reporter = Reporter {
            secrets: vec![
                "ghs_secret".to_owned().into(),
                "Z2hzX3NlY3JldA==".to_owned().into(),
            ],
            ..Reporter::plain(true, false)
        };
        assert_eq!(
            reporter.redact("a ghs_secret b Z2hzX3NlY3JldA=="),
            "a *** b ***"
        );
    }

    #[test]
    fn output_of_tests_cannot_contain_workflow_commands() {
        let text = without_commands("      ::add-mask::a\n");
        let lines: Vec<_> = text.lines().collect();
        let word = lines[0].strip_prefix("::stop-commands::").unwrap();
        assert_eq!(lines[1], "      ::add-mask::a");
        assert_eq!(lines[2], format!("::{word}::"));
        assert_ne!(text, without_commands("      ::add-mask::a\n"));
    }

    #[test]
    fn escapes_annotations_to_one_line() {
        assert_eq!(annotation("a\nb 100%"), "::error title=ci::a%0Ab 100%25\n");
    }
}
