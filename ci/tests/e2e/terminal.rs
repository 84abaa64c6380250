//! The view of a run in a terminal: rows that are redrawn, and an end that fits.

use std::fs::File;
use std::io::Read;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::harness::{KillOnDrop, Project};

/// What `ci` begins each redraw with: it clears everything below the cursor.
const REDRAW: &[u8] = b"\x1b[J";

/// A run of `ci` on a pseudo-terminal, and what it has written.
pub struct Terminal {
    master: OwnedFd,
    screen: vt100::Parser,
    output: Receiver<Vec<u8>>,
    ci: KillOnDrop,
    /// When each redraw arrived.
    redraws: Vec<Instant>,
    written: Vec<u8>,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn positive(number: u16) -> NonZero<u16> {
    NonZero::new(number).unwrap()
}

impl Terminal {
    /// Starts `ci` with standard input, output and error on a terminal.
    pub fn start_with_keyboard(project: &Project, size: (u16, u16), arguments: &[&str]) -> Self {
        Self::spawn(project, size, arguments, &[], true)
    }

    fn start(
        project: &Project,
        size: (u16, u16),
        arguments: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        Self::spawn(project, size, arguments, env, false)
    }

    fn spawn(
        project: &Project,
        (rows, columns): (u16, u16),
        arguments: &[&str],
        env: &[(&str, &str)],
        keyboard: bool,
    ) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        tcsetwinsize(&master, size(rows, columns)).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let terminal = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let mut command = project.ci(arguments).into_command();
        command
            .env("TERM", "xterm-256color")
            .envs(env.iter().copied())
            .stdin(if keyboard {
                Stdio::from(terminal.try_clone().unwrap())
            } else {
                Stdio::null()
            })
            .stdout(terminal.try_clone().unwrap())
            .stderr(terminal);
        let ci = KillOnDrop(command.spawn().unwrap());
        // Closes this process's copies of the terminal, so that reading ends with the run.
        drop(command);
        let (sender, output) = channel();
        let mut reader = File::from(master.as_fd().try_clone_to_owned().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Reading from a terminal that nobody has open any more is an error.
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            master,
            screen: vt100::Parser::new(positive(rows), positive(columns), 1000),
            output,
            ci,
            redraws: Vec::new(),
            written: Vec::new(),
        }
    }

    /// Reads output until `reached`, and returns whether the run still goes on.
    #[track_caller]
    pub fn read_until(&mut self, reached: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !reached(self) {
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => {
                    let before = count(&self.written, REDRAW);
                    self.screen.process(&bytes);
                    self.written.extend(bytes);
                    for _ in before..count(&self.written, REDRAW) {
                        self.redraws.push(Instant::now());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
            assert!(Instant::now() < deadline, "{}", self.text());
        }
        true
    }

    /// Types text.
    pub fn press(&mut self, keys: &str) {
        let mut keyboard = File::from(self.master.try_clone().unwrap());
        std::io::Write::write_all(&mut keyboard, keys.as_bytes()).unwrap();
    }

    pub fn resize(&mut self, rows: u16, columns: u16) {
        self.screen
            .screen_mut()
            .set_size(positive(rows), positive(columns));
        tcsetwinsize(&self.master, size(rows, columns)).unwrap();
    }

    pub fn text(&self) -> String {
        self.screen.screen().contents()
    }

    /// Whether a row that is redrawn shows this step.
    fn shows(&self, step: &str) -> bool {
        let is_row = |line: &str| {
            let mut words = line.split_whitespace();
            let spins = words.next().is_some_and(|word| {
                ('\u{2800}'..='\u{28ff}').contains(&word.chars().next().unwrap_or(' '))
            });
            spins && words.next() == Some(step)
        };
        self.text().lines().any(is_row)
    }

    /// Reads the rest; returns the exit code and what the terminal shows at the end.
    pub fn end(mut self) -> (i32, String) {
        self.read_until(|_| false);
        let code = self.ci.0.wait().unwrap().code().unwrap();
        for second in self.redraws.windows(12) {
            let time = second[11] - second[0];
            assert!(time >= Duration::from_millis(900), "12 redraws in {time:?}");
        }
        let text = self.text();
        (code, text)
    }
}

fn count(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).filter(|it| *it == part).count()
}

/// A project whose unit test takes `seconds`, and then fails or passes.
fn slow_project(name: &str, seconds: u32, fails: bool) -> Project {
    let project = Project::new(name);
    let panics = if fails { "panic!(\"not today\");" } else { "" };
    let now = std::time::SystemTime::now();
    project.extend_test(&format!(
        "// {now:?}\n        std::thread::sleep(std::time::Duration::from_secs({seconds}));{panics}"
    ));
    project.commit("a slow test");
    project
}

#[test]
fn shows_what_runs_and_ends_with_the_cause_of_a_failure() {
    let project = slow_project("terminal", 3, true);
    for (rows, columns) in [(24, 80), (24, 40)] {
        let mut terminal = Terminal::start(&project, (rows, columns), &["test"], &[]);
        assert!(terminal.read_until(|terminal| terminal.shows("test")));
        let (code, text) = terminal.end();
        assert_eq!(code, 1, "{text}");
        // The cause is still on the screen, and no row of the view is left.
        for part in [
            "✗ test",
            "api/src/main.rs:",
            "not today",
            "target/ci/logs/test.log",
        ] {
            assert!(text.contains(part), "{part} at {columns} columns:\n{text}");
        }
        let last = text.lines().rfind(|line| !line.is_empty()).unwrap();
        assert!(last.contains("test"), "{text}");
        assert!(!text.contains('⠋') && !text.contains('⠙'), "{text}");
    }
}

#[test]
fn stays_correct_when_the_terminal_is_resized() {
    let project = slow_project("resize", 4, false);
    let mut terminal = Terminal::start(&project, (24, 120), &["test"], &[]);
    assert!(terminal.read_until(|terminal| terminal.shows("test")));
    for columns in [40, 20, 200, 60] {
        terminal.resize(24, columns);
        let before = terminal.redraws.len();
        assert!(terminal.read_until(|terminal| terminal.redraws.len() >= before + 3));
        let rows = terminal
            .text()
            .lines()
            .filter(|line| line.contains("test  "))
            .count();
        assert_eq!(rows, 1, "{columns} columns:\n{}", terminal.text());
    }
    let (code, text) = terminal.end();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("passed"), "{text}");
    assert!(!text.contains('⠋'), "{text}");
}

#[test]
fn prints_plain_lines_on_a_dumb_terminal() {
    let project = slow_project("dumb", 0, false);
    let env = [("TERM", "dumb"), ("NO_COLOR", "1")];
    let mut terminal = Terminal::start(&project, (24, 80), &["test"], &env);
    terminal.read_until(|_| false);
    assert!(!terminal.written.contains(&0x1b), "{}", terminal.text());
    assert!(terminal.text().contains("✓ test"), "{}", terminal.text());
}
