//! `ci engine`: manages the embedded engine.

use crate::engine::embedded::{self, Freed, Kept, Status};
use crate::report::{self, Reporter};
use crate::settings::EngineCommand;
use common::failure::{ExitCode, Failure, OrFail};

/// Runs a command of `ci engine`.
///
/// # Errors
/// When the command fails.
pub(super) async fn run(
    command: EngineCommand,
    format: Option<&str>,
    reporter: &Reporter,
) -> Result<ExitCode, Failure> {
    match command {
        EngineCommand::Up => {
            let running = embedded::up(&report::confirm, reporter).await?;
            let how = if running.started_now {
                "started"
            } else {
                "already running"
            };
            reporter.header(&format!("embedded engine {} {how}", running.version));
            report::data(&format!("{}\n", running.runner_host));
        }
        EngineCommand::Down => {
            let down = embedded::down(reporter).await?;
            let what = match down.stopped {
                0 => "no engine was running".to_owned(),
                1 => "stopped 1 engine".to_owned(),
                more => format!("stopped {more} engines"),
            };
            reporter.header(&what);
            for line in down.removed {
                reporter.header(&format!("removed {line}"));
            }
        }
        EngineCommand::Status => {
            let status = embedded::status().await?;
            report::data(&match format {
                Some("json") => {
                    serde_json::to_string_pretty(&status)
                        .or_environment("cannot serialize the status")?
                        + "\n"
                }
                _ => status_text(&status),
            });
        }
        EngineCommand::Prune => {
            let pruned = embedded::prune(reporter).await?;
            for Freed { name, bytes } in &pruned.freed {
                reporter.header(&format!("removed {name}, {}", megabytes(*bytes)));
            }
            for line in &pruned.in_use {
                reporter.header(&format!("kept {line}"));
            }
            let all: u64 = pruned.freed.iter().map(|kept| kept.bytes).sum();
            reporter.header(&format!("freed {}", megabytes(all)));
        }
    }
    Ok(ExitCode::Success)
}

fn status_text(status: &Status) -> String {
    let state = match (status.pid, status.healthy) {
        (Some(pid), true) => format!("running, process {pid}"),
        (Some(pid), false) => format!("not responding, process {pid}"),
        (None, _) if status.built => "not running".to_owned(),
        (None, _) => "not built".to_owned(),
    };
    let mut lines = vec![("engine", format!("{} {state}", status.version))];
    if let Some(uptime) = status.uptime {
        lines.push(("uptime", report::format_duration(uptime)));
    }
    if let Some(url) = &status.runner_host {
        lines.push(("url", url.clone()));
    }
    let limit = megabytes(status.limit_bytes);
    lines.push((
        "cache",
        match &status.cache {
            Some(cache) => format!(
                "{} entries, {} of at most {limit}",
                cache.entries,
                megabytes(cache.bytes)
            ),
            None => format!("at most {limit}"),
        },
    ));
    lines.push(("folder", status.folder.display().to_string()));
    lines.push(("log", status.log.display().to_string()));
    for Kept { name, bytes } in &status.kept {
        lines.push((
            "kept",
            match bytes {
                Some(bytes) => format!("{name}, {}", megabytes(*bytes)),
                None => name.clone(),
            },
        ));
    }
    lines
        .iter()
        .map(|(name, value)| format!("{name:<8} {value}\n"))
        .collect()
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes >> 20)
}
