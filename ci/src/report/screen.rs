//! The steps and preparations that are running: rows that are redrawn in a terminal, and a line now and then elsewhere.
//!
//! The rows are drawn with `console` instead of a crate for progress bars. Such a crate clears as many lines as it has drawn, so
//! parts of the rows stay when the terminal has become narrower and has wrapped them.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anstream::eprintln;
use console::{Term, measure_text_width, truncate_str};

use super::text::{DIM, count, format_duration, shown};
use crate::model::cause::Activity;
use crate::model::step::Step;

/// The time between two redraws.
const REDRAW: Duration = Duration::from_millis(100);
/// Without a terminal, a line about something that is running is printed after this time without any line. It is checked every
/// second, so that a silence lasts at most ten seconds.
const QUIET: Duration = Duration::from_secs(9);

/// Something that is happening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A step.
    Step(Step),
    /// Something that is provisioned, by its description.
    Preparation(String),
}

struct Row {
    subject: Subject,
    since: Instant,
    activity: Activity,
    /// When a line was printed about it.
    mentioned: Instant,
}

enum View {
    /// Nothing is shown.
    Off,
    /// Lines.
    Plain,
    /// Rows that are redrawn.
    Live(Painter),
}

/// The part of the terminal that changes.
pub(super) struct Screen {
    rows: Vec<Row>,
    view: View,
    /// When the last line was printed.
    printed: Instant,
}

impl Screen {
    /// A screen that shows nothing.
    pub(super) fn off() -> Self {
        Self {
            rows: Vec::new(),
            view: View::Off,
            printed: Instant::now(),
        }
    }

    /// A screen on standard error: rows if it is a terminal that can redraw them, and `live` is set; otherwise lines.
    pub(super) fn on_stderr(live: bool) -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        let view = if live && !is_dumb && std::io::stderr().is_terminal() {
            View::Live(Painter {
                term: Term::buffered_stderr(),
                drawn: Vec::new(),
            })
        } else {
            View::Plain
        };
        Self {
            rows: Vec::new(),
            view,
            printed: Instant::now(),
        }
    }

    /// Whether rows show what is happening.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.view, View::Live(_))
    }

    /// Redraws the screen until it is dropped.
    pub(super) fn keep_alive(screen: &Arc<Mutex<Self>>) {
        let period = {
            let screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
            match screen.view {
                View::Off => return,
                View::Plain => Duration::from_secs(1),
                View::Live(_) => REDRAW,
            }
        };
        let screen = Arc::downgrade(screen);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(period);
                let Some(screen) = screen.upgrade() else {
                    return;
                };
                screen
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .tick(Instant::now());
            }
        });
    }

    /// Adds something that is happening.
    pub(super) fn begin(&mut self, subject: Subject) {
        let now = Instant::now();
        self.rows.push(Row {
            subject,
            since: now,
            activity: Activity::default(),
            mentioned: now,
        });
    }

    /// Updates what a subject is doing.
    pub(super) fn update(&mut self, subject: &Subject, activity: Activity) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.subject == *subject) {
            row.activity = activity;
        }
    }

    /// Adds a line of output to the preparation `what`, or to the one that began last.
    pub(super) fn last_line(&mut self, what: Option<&str>, line: &str) {
        let row = self.rows.iter_mut().rev().find(|row| match &row.subject {
            Subject::Preparation(of) => what.is_none_or(|what| what == of),
            Subject::Step(_) => false,
        });
        if let Some(row) = row {
            line.clone_into(&mut row.activity.last_line);
        }
    }

    /// Removes a subject.
    pub(super) fn end(&mut self, subject: &Subject) {
        self.rows.retain(|row| row.subject != *subject);
    }

    /// Removes all subjects.
    pub(super) fn end_all(&mut self) {
        self.rows.clear();
    }

    /// Prints text above the rows, which appear again with the next redraw.
    pub(super) fn print(&mut self, text: &str) {
        if let View::Live(painter) = &mut self.view {
            painter.draw(&[]);
        }
        eprintln!("{text}");
        self.printed = Instant::now();
    }

    fn tick(&mut self, now: Instant) {
        match &mut self.view {
            View::Off => {}
            View::Plain => {
                if let Some(line) = self.due_line(now) {
                    eprintln!("{DIM}{line}{DIM:#}");
                }
            }
            View::Live(painter) => {
                let (height, width) = painter.term.size();
                let (height, width) = (usize::from(height), usize::from(width));
                let rows: Vec<_> = self
                    .rows
                    .iter()
                    .take(height.saturating_sub(1))
                    .map(|row| {
                        let frame = frame(now.saturating_duration_since(row.since));
                        let text = row.text(frame, now).replace('\t', " ");
                        // A row that fills its line would make some terminals wrap.
                        truncate_str(&text, width.saturating_sub(1), "…").into_owned()
                    })
                    .collect();
                painter.draw(&rows);
            }
        }
    }

    /// After a silence, a line about the row that was mentioned longest ago.
    fn due_line(&mut self, now: Instant) -> Option<String> {
        if now.saturating_duration_since(self.printed) < QUIET {
            return None;
        }
        let row = self.rows.iter_mut().min_by_key(|row| row.mentioned)?;
        row.mentioned = now;
        self.printed = now;
        Some(row.text('…', now))
    }
}

impl Row {
    fn text(&self, sign: char, now: Instant) -> String {
        let elapsed = format_duration(now.saturating_duration_since(self.since));
        let doing = doing(&self.activity);
        match &self.subject {
            Subject::Step(step) => format!("  {sign} {step:<8}{elapsed:>9}  {doing}"),
            Subject::Preparation(what) if doing.is_empty() => {
                format!("  {sign} {:<8}{elapsed:>9}  {what}", "setup")
            }
            Subject::Preparation(what) => {
                format!("  {sign} {:<8}{elapsed:>9}  {what} · {doing}", "setup")
            }
        }
        .trim_end()
        .to_owned()
    }
}

/// What a step is doing, in a few words.
fn doing(activity: &Activity) -> String {
    if let Some(what) = &activity.waiting_for {
        return format!("waiting for {what}");
    }
    let mut parts = Vec::new();
    let tests = activity.tests;
    if tests.run() > 0 {
        parts.push(count(tests.run(), "test"));
        if tests.failed > 0 {
            parts.push(format!("{} failed", tests.failed));
        }
    } else if let Some(crates) = activity.crates {
        parts.push(format!("{} of {} crates", crates.done, crates.all));
    }
    let line = shown(activity.last_line.trim());
    if !line.is_empty() {
        parts.push(line);
    }
    parts.join(" · ")
}

fn frame(elapsed: Duration) -> char {
    const FRAMES: [char; 8] = ['⠋', '⠙', '⠸', '⠴', '⠦', '⠇', '⠏', '⠛'];
    let number = elapsed.as_millis() / REDRAW.as_millis();
    let index = usize::try_from(number).unwrap_or_default() % FRAMES.len();
    FRAMES[index]
}

/// Redraws rows at the end of a terminal's output.
struct Painter {
    term: Term,
    /// The widths of the rows that are on the terminal.
    drawn: Vec<usize>,
}

impl Painter {
    /// Replaces the rows, with a single write. Ignores a terminal that is gone.
    fn draw(&mut self, rows: &[String]) {
        if rows.is_empty() && self.drawn.is_empty() {
            return;
        }
        let width = usize::from(self.term.size().1).max(1);
        // Rows that are wider than the terminal is now have been wrapped.
        let lines: usize = self
            .drawn
            .iter()
            .map(|columns| columns.div_ceil(width).max(1))
            .sum();
        let mut text = String::new();
        if lines > 0 {
            text += &format!("\u{1b}[{lines}A\r\u{1b}[J");
        }
        for row in rows {
            text += row;
            text.push('\n');
        }
        self.drawn = rows.iter().map(|row| measure_text_width(row)).collect();
        let _ = self.term.write_str(&text).and_then(|()| self.term.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cause::{Crates, TestCounts};

    fn plain() -> Screen {
        Screen {
            rows: Vec::new(),
            view: View::Plain,
            printed: Instant::now(),
        }
    }

    #[test]
    fn a_line_belongs_to_its_preparation_or_to_the_last_one() {
        let mut screen = plain();
        let [engine, image] = ["engine", "image"].map(|what| Subject::Preparation(what.to_owned()));
        screen.begin(engine);
        screen.begin(image);
        screen.begin(Subject::Step(Step::Test));
        screen.last_line(Some("engine"), "go build");
        screen.last_line(None, "debootstrap");
        screen.last_line(Some("an unknown one"), "nothing");
        let lines = screen.rows.iter().map(|row| &*row.activity.last_line);
        assert_eq!(lines.collect::<Vec<_>>(), ["go build", "debootstrap", ""]);
    }

    #[test]
    fn after_a_silence_mentions_the_running_steps_in_turn() {
        let mut screen = plain();
        let [test, build] = [Step::Test, Step::Build].map(Subject::Step);
        screen.begin(test.clone());
        screen.begin(build.clone());
        screen.update(
            &test,
            Activity {
                crates: Some(Crates { done: 4, all: 12 }),
                last_line: "   Compiling serde v1.0.0".to_owned(),
                ..Activity::default()
            },
        );
        let since = screen.rows[1].since;
        screen.printed = since;
        let lines = |screen: &mut Screen, seconds: std::ops::Range<u64>| -> Vec<_> {
            let at = |second| (second, since + Duration::from_secs(second));
            let due = |(second, now)| Some((second, screen.due_line(now)?));
            seconds.map(at).filter_map(due).collect()
        };
        let line = |text: &str| text.to_owned();
        assert_eq!(
            lines(&mut screen, 0..30),
            [
                (
                    9,
                    line("  … test         9.0s  4 of 12 crates · Compiling serde v1.0.0")
                ),
                (18, line("  … build       18.0s")),
                (
                    27,
                    line("  … test        27.0s  4 of 12 crates · Compiling serde v1.0.0")
                ),
            ]
        );
        screen.printed = since + Duration::from_secs(30);
        screen.end(&test);
        assert_eq!(
            lines(&mut screen, 31..45),
            [(39, line("  … build       39.0s"))]
        );
        screen.end(&build);
        assert_eq!(lines(&mut screen, 45..3600), []);
    }

    #[test]
    fn says_what_a_step_is_doing() {
        let mut activity = Activity {
            tests: TestCounts {
                passed: 12,
                failed: 1,
                ignored: 0,
            },
            last_line: "test a::\u{1b}[31mb ... ok".to_owned(),
            ..Activity::default()
        };
        assert_eq!(
            doing(&activity),
            "13 tests · 1 failed · test a::␛[31mb ... ok"
        );
        activity.waiting_for = Some("Trivy".to_owned());
        assert_eq!(doing(&activity), "waiting for Trivy");
    }
}
