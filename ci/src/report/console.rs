//! Prints a run's progress and results.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use anstream::eprint;

use super::ending;
use super::github::{annotations, group, of_failure, without_commands, without_old_commands};
use super::json::{Prepared, Report};
use super::redaction::Redaction;
use super::screen::{Screen, Subject};
use super::summary::cache_summary;
use super::text::{
    BAD, DIM, GOOD, NOTE, count, excerpt, format_duration, format_ms, shown, visible,
};
use crate::model::cause::Activity;
use crate::model::record::{CacheReport, Record, Status};
use crate::model::step::Step;
use crate::settings::{Format, Invocation, Settings};
use crate::trust::authority::{Credential, GitHub};
use common::failure::{Failure, OrFail};
use common::progress::Progress;

/// The lines of a failed step's output that are shown in a terminal or a log: at its beginning and at its end.
const SHOWN: (usize, usize) = (20, 80);
/// The same on GitHub, where they are in a group that is closed at first.
const GROUPED: (usize, usize) = (200, 800);
/// The same for a failure outside of the steps, whose output is at the end of the run.
const AT_THE_END: (usize, usize) = (4, 12);

/// Prints progress and results in the configured format.
pub struct Reporter {
    format: Format,
    quiet: bool,
    verbose: bool,
    directory: Option<PathBuf>,
    redaction: Redaction,
    prepared: Mutex<Vec<Prepared>>,
    /// Locked while printing, so that the lines of concurrent steps do not mix.
    screen: Arc<Mutex<Screen>>,
    started: Once,
}

impl Reporter {
    /// The reporter of a run. It redacts `credential` in everything that it prints or writes.
    #[must_use]
    pub fn new(settings: &Settings, credential: Option<Credential>) -> Self {
        Self {
            directory: Some(settings.report_dir.clone()),
            redaction: Redaction::of(credential).and(&settings.access),
            ..Self::of(settings.format, settings.quiet, settings.verbose > 0)
        }
    }

    /// The reporter of a command that needs the terminal for itself.
    #[must_use]
    pub fn in_lines(settings: &Settings) -> Self {
        let mut reporter = Self::new(settings, None);
        reporter.screen = Arc::new(Mutex::new(Screen::on_stderr(false)));
        reporter
    }

    /// The reporter of a run whose settings are invalid.
    #[must_use]
    pub fn before_the_plan(invocation: &Invocation, github: &GitHub) -> Self {
        let options = &invocation.options;
        let format = invocation.format(github).unwrap_or(Format::Human);
        Self::of(format, options.quiet, options.verbose > 0)
    }

    /// The reporter of a command that is not a run.
    #[must_use]
    pub fn plain(quiet: bool, verbose: bool) -> Self {
        Self::of(Format::Human, quiet, verbose)
    }

    fn of(format: Format, quiet: bool, verbose: bool) -> Self {
        let screen = if quiet {
            Screen::off()
        } else {
            // With the containers' output, rows would be redrawn for each line.
            Screen::on_stderr(format != Format::Github && !verbose)
        };
        Self {
            format,
            quiet,
            verbose,
            directory: None,
            redaction: Redaction::default(),
            prepared: Mutex::default(),
            screen: Arc::new(Mutex::new(screen)),
            started: Once::new(),
        }
    }

    /// Replaces the secrets in `text` with `***`.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        self.redaction.apply(text)
    }

    fn print(&self, text: &str) {
        lock(&self.screen).print(&self.redact(text));
    }

    fn begin_subject(&self, subject: Subject, what: &str) {
        if self.quiet {
            return;
        }
        self.started.call_once(|| Screen::keep_alive(&self.screen));
        let mut screen = lock(&self.screen);
        if !screen.is_live() {
            screen.print(&self.redact(&format!("{DIM}  … {}{DIM:#}", shown(what))));
        }
        screen.begin(subject);
    }

    /// Everything that has been provisioned so far.
    #[must_use]
    pub fn prepared(&self) -> Vec<Prepared> {
        lock(&self.prepared).clone()
    }

    /// Prints a line, unless quiet.
    pub fn header(&self, text: &str) {
        if !self.quiet {
            self.print(&visible(text));
        }
    }

    /// Shows that a step has started.
    pub fn started(&self, step: Step) {
        self.begin_subject(Subject::Step(step), &step.to_string());
    }

    /// Shows what a step is doing.
    pub fn activity(&self, step: Step, mut activity: Activity) {
        if !self.quiet {
            activity.last_line = self.redact(&activity.last_line);
            lock(&self.screen).update(&Subject::Step(step), activity);
        }
    }

    /// Prints a line of a container's output, if verbose.
    pub fn line_of(&self, step: Step, line: &str) {
        if self.verbose {
            let line = without_old_commands(&shown(line));
            self.print(&format!("{DIM}{step:>11} │{DIM:#} {line}"));
        }
    }

    /// Prints that the command of a step has printed nothing and used no CPU for `time`. `last_line` is its last output.
    pub fn stuck(&self, step: Step, time: Duration, last_line: &str) {
        let last = match last_line {
            "" => "it has printed nothing".to_owned(),
            line => format!("its last line is: {line}"),
        };
        self.print(&format!(
            "{NOTE}  !{NOTE:#} {step} seems to be stuck: it has printed nothing and used no CPU for {time:?}; {}",
            shown(&last)
        ));
    }

    /// Prints the result of a step.
    pub fn ended(&self, record: &Record, failure: Option<&Failure>, log: &str) {
        lock(&self.screen).end(&Subject::Step(record.name));
        if self.quiet {
            return;
        }
        let text = match failure {
            Some(failure) => self.failed_step(record, failure),
            None => self.passed_step(record, log),
        };
        self.print(text.trim_end());
    }

    fn passed_step(&self, record: &Record, log: &str) -> String {
        let step = record.name;
        let took = format_ms(record.duration_ms);
        let cached = if record.cached { "  cached" } else { "" };
        let tests = match record.test_counts {
            Some(tests) => format!("  {}", count(tests.run(), "test")),
            None => String::new(),
        };
        let rest = format!("{cached}{tests}{}", parts(record));
        if self.format == Format::Github && !self.verbose && !log.is_empty() {
            let title = format!("✓ {step:<8}{took:>9}{rest}");
            return group(&title, &excerpt(log, GROUPED.0, GROUPED.1, "the log"));
        }
        let mut text = format!("{GOOD}  ✓ {step:<8}{GOOD:#}{took:>9}{DIM}{rest}{DIM:#}");
        text += &self.why(record);
        text
    }

    fn failed_step(&self, record: &Record, failure: &Failure) -> String {
        let step = record.name;
        let took = format_ms(record.duration_ms);
        let sign = if record.status == Status::Cancelled {
            "■"
        } else {
            "✗"
        };
        let message = shown(&failure.to_string());
        let mut text = format!("{BAD}  {sign} {step:<8}{BAD:#}{took:>9}  {message}\n");
        text += self.why(record).trim_start();
        let rest = self.path_of(record.log.as_deref());
        if let Some(output) = &failure.output {
            text += &match self.format {
                Format::Github => {
                    let output = excerpt(output, GROUPED.0, GROUPED.1, &rest);
                    group(&format!("{step}: output"), &output)
                }
                // The lines have been printed already.
                _ if self.verbose => String::new(),
                _ => excerpt(output, SHOWN.0, SHOWN.1, &rest),
            };
        }
        if let Some(hint) = &failure.hint {
            text += &format!("{NOTE}      hint:{NOTE:#} {}\n", shown(hint));
        }
        text
    }

    /// Why the step ran, as a line of its own, if verbose.
    fn why(&self, record: &Record) -> String {
        match &record.why {
            Some(why) if self.verbose => {
                format!(
                    "\n{DIM}      ran because {}{DIM:#}\n",
                    shown(&why.to_string())
                )
            }
            _ => String::new(),
        }
    }

    fn path_of(&self, log: Option<&str>) -> String {
        match (&self.directory, log) {
            (Some(directory), Some(log)) => ending::relative(&directory.join(log)),
            _ => "the report".to_owned(),
        }
    }

    /// Writes the output of a step's containers to `logs/STEP.log`, and returns the path relative to the report directory.
    pub fn write_log(&self, step: Step, log: &str) -> Option<String> {
        let name = step.log();
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
        if self.quiet {
            return;
        }
        let text = match self.format {
            Format::Github => without_commands(&render(error)) + &of_failure(error),
            _ => render(error),
        };
        self.print(text.trim_end());
    }

    /// Prints why nothing ran, as the end of a run.
    pub fn refused(&self, error: &Failure) {
        let code = error.code as u8;
        let verdict = format!("{BAD}failed{BAD:#} before the first step (exit code {code})");
        if self.quiet {
            self.print(&format!("{verdict}: {}", shown(&error.to_string())));
        } else {
            self.failed(error);
            self.print(&verdict);
        }
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

    /// Prints the end of a run: one line if quiet; with `--format json` also the report.
    pub fn verdict(&self, report: &Report) {
        lock(&self.screen).end_all();
        let directory = self.directory.as_deref().unwrap_or(Path::new(""));
        let text = if self.quiet {
            ending::quiet(report, directory)
        } else {
            ending::ending(report, directory, columns())
        };
        match self.format {
            Format::Github => {
                self.print((without_commands(&text) + &annotations(report)).trim_end());
            }
            _ => self.print(&text),
        }
        if self.format == Format::Json
            && let Ok(text) = report.text(|text| self.redact(text))
        {
            data(&text);
        }
    }
}

/// The width of the terminal; `None` without a terminal.
fn columns() -> Option<usize> {
    let (_, columns) = console::Term::stderr().size_checked()?;
    std::io::stderr().is_terminal().then_some(columns.into())
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

fn render(error: &Failure) -> String {
    let mut text = format!("{BAD}error:{BAD:#} {}\n", shown(&error.to_string()));
    if let Some(output) = error
        .output
        .as_deref()
        .filter(|output| !output.trim().is_empty())
    {
        text += &excerpt(output, AT_THE_END.0, AT_THE_END.1, "the output of -vv");
    }
    if let Some(hint) = &error.hint {
        text += &format!("{NOTE}hint:{NOTE:#} {}\n", shown(hint));
    }
    text
}

impl Progress for Reporter {
    fn begin(&self, what: &str) {
        self.begin_subject(Subject::Preparation(what.to_owned()), what);
    }

    fn line(&self, what: Option<&str>, line: &str) {
        if self.verbose {
            self.print(&format!("{DIM}    {}{DIM:#}", shown(line)));
        } else if !self.quiet {
            lock(&self.screen).last_line(what, &self.redact(line));
        }
    }

    fn gave_up(&self, what: &str) {
        lock(&self.screen).end(&Subject::Preparation(what.to_owned()));
    }

    fn done(&self, what: &str, took: Duration) {
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        lock(&self.prepared).push(Prepared {
            what: what.to_owned(),
            start: jiff::Timestamp::now() - took,
            duration_ms,
        });
        lock(&self.screen).end(&Subject::Preparation(what.to_owned()));
        if !self.quiet {
            self.print(&format!(
                "{GOOD}  ✓{GOOD:#} {} {DIM}{}{DIM:#}",
                shown(what),
                format_duration(took)
            ));
        }
    }

    fn notice(&self, text: &str) {
        if !self.quiet {
            self.print(&format!("{NOTE}  !{NOTE:#} {}", visible(text)));
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
