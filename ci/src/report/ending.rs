//! The end of a run: notices, then each failed step with its causes, then the verdict. It fits a terminal of 24 rows.

use std::path::Path;

use console::{measure_text_width, truncate_str};

use super::json::Report;
use super::summary::cache_summary;
use super::text::{BAD, DIM, GOOD, NOTE, failure_text, format_ms, shown, verdict_word};
use crate::model::cause::{Cause, CauseKind};
use crate::model::record::{AttachedArtifact, Outcome, Record, Status};
use crate::model::step::Step;

/// The rows of a small terminal, except for the shell's next prompt.
const ROWS: usize = 23;
/// At most this many causes are shown; the others are counted.
const CAUSES: usize = 20;
/// At most this many lines of detail are shown for each cause.
const DETAIL: usize = 12;

/// Renders the end of a run. `directory` is the report directory, and `columns` the terminal's width; without a terminal, lines
/// are not cut.
#[must_use]
pub(super) fn ending(report: &Report, directory: &Path, columns: Option<usize>) -> String {
    let failed = report
        .steps
        .iter()
        .filter(|record| record.status == Status::Failed);
    let mut blocks: Vec<_> = failed.map(|record| Block::new(record, directory)).collect();
    name_repeated_causes(&mut blocks);
    let verdict = verdict(report);
    let rows_of = |lines: &[String]| -> usize {
        let columns = columns.unwrap_or(usize::MAX);
        let rows = |line: &String| measure_text_width(line).div_ceil(columns).max(1);
        lines.iter().map(rows).sum()
    };
    let mut lines = notices(report);
    // What can be left out if there is not enough room for a row of each failed step's causes.
    let mut free = ROWS.saturating_sub(rows_of(std::slice::from_ref(&verdict)));
    let needed = |blocks: &[Block<'_>]| -> usize {
        let rows = |block: &Block<'_>| rows_of(&block.head) + rows_of(&block.foot) + 1;
        blocks.iter().map(rows).sum()
    };
    if needed(&blocks) + rows_of(&lines) > free {
        for line in blocks.iter_mut().flat_map(|block| &mut block.foot) {
            *line = cut(line, columns);
        }
    }
    if needed(&blocks) + rows_of(&lines) > free {
        lines.clear();
    }
    free = free.saturating_sub(needed(&blocks) + rows_of(&lines));
    share(&mut blocks, free);
    for block in blocks {
        lines.extend(block.lines(columns));
    }
    lines.push(verdict);
    lines.join("\n")
}

fn cut(line: &str, columns: Option<usize>) -> String {
    match columns {
        Some(columns) => truncate_str(line, columns, "…").into_owned(),
        None => line.to_owned(),
    }
}

/// The verdict in one line, for `--quiet`.
#[must_use]
pub(super) fn quiet(report: &Report, directory: &Path) -> String {
    match (&report.error, report.verdict.passed) {
        (Some(error), _) => format!("{}: {}", verdict(report), shown(error)),
        (None, true) => verdict(report),
        (None, false) => format!(
            "{}; see {}",
            verdict(report),
            relative(&directory.join("summary.md"))
        ),
    }
}

fn notices(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if !report.stand_ins.is_empty() {
        let short = |name: &str| {
            let name = name.split('@').next().unwrap_or(name);
            name.rsplit('/').next().unwrap_or(name).to_owned()
        };
        let names: Vec<_> = report.stand_ins.iter().map(|it| short(&it.name)).collect();
        lines.push(format!("{NOTE}stand-in{NOTE:#} {}", names.join(", ")));
    }
    if !report.left_out.is_empty() {
        let text = shown(&report.left_out.join(", "));
        lines.push(format!("{NOTE}left out{NOTE:#} {text}"));
    }
    if let Some(cache) = &report.cache {
        lines.extend(cache_summary(cache).lines().map(ToOwned::to_owned));
    }
    if let Some(digest) = &report.digest {
        let short = digest.get(..19).unwrap_or(digest);
        lines.push(format!("image    {} {DIM}{short}{DIM:#}", report.image));
    }
    lines
}

/// A failed step.
struct Block<'a> {
    step: Step,
    /// The step, and in short what failed.
    head: Vec<String>,
    /// The log and the hint.
    foot: Vec<String>,
    causes: &'a [Cause],
    /// The rows that each shown cause may use, with its title.
    rows: Vec<usize>,
    /// Whether there is a row that counts the causes that are not shown.
    counts_others: bool,
}

impl<'a> Block<'a> {
    fn new(record: &'a Record, directory: &Path) -> Self {
        let mut foot = Vec::new();
        if let Some(log) = &record.log {
            foot.push(format!(
                "    {DIM}log:{DIM:#} {}",
                relative(&directory.join(log))
            ));
        }
        if let Some(hint) = &record.hint {
            foot.push(format!("    {NOTE}hint:{NOTE:#} {}", shown(hint)));
        }
        Self {
            step: record.name,
            head: vec![format!(
                "{BAD}✗ {:<8}{BAD:#} {}",
                record.name,
                failure_text(record)
            )],
            foot,
            causes: &record.causes,
            rows: Vec::new(),
            counts_others: false,
        }
    }

    fn lines(self, columns: Option<usize>) -> Vec<String> {
        let mut lines = self.head;
        for (cause, rows) in self.causes.iter().zip(&self.rows) {
            let own = cause_lines(cause);
            lines.extend(own.iter().take(*rows).map(|line| cut(line, columns)));
        }
        let left_out = self.causes.len().saturating_sub(self.rows.len());
        if left_out > 0 && self.counts_others {
            lines.push(format!("    {DIM}… and {left_out} more{DIM:#}"));
        }
        lines.extend(self.foot);
        lines
    }
}

/// Replaces the causes of a step that all appeared in an earlier one, such as a build script that fails wherever it runs.
fn name_repeated_causes<'a>(blocks: &mut [Block<'a>]) {
    for at in 1..blocks.len() {
        let (before, rest) = blocks.split_at_mut(at);
        let Some(block) = rest.first_mut() else {
            continue;
        };
        // Details may differ, as they name the step's own files.
        let is_same = |other: &&Block<'a>| {
            let key = |cause: &'a Cause| (cause.kind, &cause.title, &cause.location);
            !block.causes.is_empty()
                && other
                    .causes
                    .iter()
                    .map(key)
                    .eq(block.causes.iter().map(key))
        };
        let same = before.iter().find(is_same);
        if let Some(other) = same {
            block.head.push(format!(
                "    {DIM}for the same reason as {}{DIM:#}",
                other.step
            ));
            block.causes = &[];
            block.foot.truncate(1);
        }
    }
}

/// The title of a cause with its place, and its details.
fn cause_lines(cause: &Cause) -> Vec<String> {
    let mut lines = Vec::new();
    let title = shown(&cause.title).replace('\n', " ");
    match (&cause.location, cause.kind) {
        (Some(at), _) => lines.push(format!("    {} {title}", shown(&at.to_string()))),
        // Its title only says that the lines are the last ones.
        (None, CauseKind::Output | CauseKind::Service) => {}
        (None, _) => lines.push(format!("    {title}")),
    }
    let details: Vec<_> = cause.detail.lines().collect();
    // Of the output, the end matters; of a message, the beginning.
    let details = match cause.kind {
        CauseKind::Output | CauseKind::Service | CauseKind::Gate | CauseKind::TestBinary => {
            &details[details.len().saturating_sub(DETAIL)..]
        }
        _ => &details[..details.len().min(DETAIL)],
    };
    lines.extend(details.iter().map(|line| format!("      {}", shown(line))));
    lines
}

/// Shares `free` rows among the causes of all failed steps, each of which has one row already: first for their titles, then for
/// their details.
fn share(blocks: &mut [Block<'_>], mut free: usize) {
    let mut shown = 0;
    for block in &mut *blocks {
        if !block.causes.is_empty() {
            block.rows.push(1);
            shown += 1;
        }
        if block.causes.len() > 1 && free > 0 {
            block.counts_others = true;
            free -= 1;
        }
    }
    let mut changed = true;
    while changed && free > 0 && shown < CAUSES {
        changed = false;
        for block in &mut *blocks {
            if block.rows.len() < block.causes.len() && free > 0 && shown < CAUSES {
                block.rows.push(1);
                free -= 1;
                shown += 1;
                changed = true;
            }
        }
    }
    changed = true;
    while changed && free > 0 {
        changed = false;
        for block in &mut *blocks {
            for (rows, cause) in block.rows.iter_mut().zip(block.causes) {
                if free > 0 && *rows < cause_lines(cause).len() {
                    *rows += 1;
                    free -= 1;
                    changed = true;
                }
            }
        }
    }
}

/// The path, relative to the current directory if it is below it.
#[must_use]
pub(super) fn relative(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let path = path.strip_prefix(&here).unwrap_or(path);
    path.display().to_string()
}

fn verdict(report: &Report) -> String {
    let took = format_ms(report.duration_ms);
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
        return format!("{GOOD}passed{GOOD:#}{with}{published} in {took}");
    }
    let code = report.verdict.exit_code;
    let names = |status: Status| {
        let steps = report.steps.iter().filter(|record| record.status == status);
        let names: Vec<_> = steps.map(|record| record.name.name()).collect();
        names.join(", ")
    };
    let word = verdict_word(report);
    let mut text = format!("{BAD}{word}{BAD:#}{with} in {took} (exit code {code})");
    let failed = names(Status::Failed);
    if !failed.is_empty() {
        text += &format!(": {failed}");
    }
    let cancelled = names(Status::Cancelled);
    if !cancelled.is_empty() {
        text += &format!("; cancelled: {cancelled}");
    }
    text
}
