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
/// Without a terminal, a line about a running step is printed after this time, and then every minute.
const FIRST_LINE: Duration = Duration::from_secs(30);
const NEXT_LINES: Duration = Duration::from_mins(1);

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
    /// When the next line is due.
    due: Duration,
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
}

impl Screen {
    /// A screen that shows nothing.
    pub(super) fn off() -> Self {
        Self {
            rows: Vec::new(),
            view: View::Off,
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
        self.rows.push(Row {
            subject,
            since: Instant::now(),
            activity: Activity::default(),
            due: FIRST_LINE,
        });
    }

    /// Updates what a subject is doing.
    pub(super) fn update(&mut self, subject: &Subject, activity: Activity) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.subject == *subject) {
            row.activity = activity;
        }
    }

    /// Adds a line of output to the preparation that began last.
    pub(super) fn last_line(&mut self, line: &str) {
        let last = self.rows.iter_mut().rev();
        let mut preparations = last.filter(|row| matches!(row.subject, Subject::Preparation(_)));
        if let Some(row) = preparations.next() {
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
    }

    fn tick(&mut self, now: Instant) {
        match &mut self.view {
            View::Off => {}
            View::Plain => {
                for line in self.due_lines(now) {
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

    /// The lines about steps and preparations that take long.
    fn due_lines(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        for row in &mut self.rows {
            let elapsed = now.saturating_duration_since(row.since);
            if elapsed < row.due {
                continue;
            }
            while row.due <= elapsed {
                row.due = if row.due < NEXT_LINES {
                    NEXT_LINES
                } else {
                    row.due + NEXT_LINES
                };
            }
            lines.push(row.text('…', now));
        }
        lines
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
        }
    }

    #[test]
    fn mentions_a_long_step_after_half_a_minute_and_then_every_minute() {
        let mut screen = plain();
        let test = Subject::Step(Step::Test);
        screen.begin(test.clone());
        screen.update(
            &test,
            Activity {
                crates: Some(Crates { done: 4, all: 12 }),
                last_line: "   Compiling serde v1.0.0".to_owned(),
                ..Activity::default()
            },
        );
        let since = screen.rows[0].since;
        let mut at = Vec::new();
        let mut last = Vec::new();
        for second in 0..=200 {
            let lines = screen.due_lines(since + Duration::from_secs(second));
            if !lines.is_empty() {
                at.push(second);
                last = lines;
            }
        }
        assert_eq!(at, [30, 60, 120, 180]);
        assert_eq!(
            last,
            ["  … test       3m 00s  4 of 12 crates · Compiling serde v1.0.0"]
        );
        screen.end(&test);
        assert!(screen.due_lines(since + Duration::from_hours(1)).is_empty());
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
