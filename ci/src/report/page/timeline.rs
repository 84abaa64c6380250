//! When each step ran, what it waited for, and the steps that determined how long the run took.

use super::words::{note, state};
use crate::model::record::Record;
use crate::report::json::Report;
use crate::report::text::{format_ms, shown};

/// The times of a run.
pub(super) struct Timeline {
    pub(super) rows: Vec<Row>,
    pub(super) ticks: Vec<Tick>,
    /// The critical path in words, if any step ran.
    pub(super) path: Option<String>,
}

/// Something that took time.
pub(super) struct Row {
    pub(super) name: String,
    /// The state of the step; `prepared` for what was provisioned.
    pub(super) state: &'static str,
    pub(super) took: String,
    pub(super) note: String,
    /// Whether the run could not have been faster without it.
    pub(super) is_critical: bool,
    /// In percent of the whole run.
    pub(super) left: f64,
    pub(super) width: f64,
}

/// A mark on the time axis.
pub(super) struct Tick {
    pub(super) label: String,
    /// In percent of the whole run.
    pub(super) left: f64,
}

/// A step that ran, with its start and end in milliseconds after the start of the run.
struct Span<'a> {
    record: &'a Record,
    start: u64,
    end: u64,
}

impl<'a> Span<'a> {
    fn new(record: &'a Record, report: &Report) -> Option<Self> {
        let start = since(report, record.start?);
        Some(Self {
            record,
            start,
            end: start + record.duration_ms,
        })
    }
}

fn since(report: &Report, time: jiff::Timestamp) -> u64 {
    let ms = time.as_millisecond() - report.start.as_millisecond();
    u64::try_from(ms).unwrap_or_default()
}

impl Timeline {
    pub(super) fn new(report: &Report) -> Self {
        let steps = report.steps.iter();
        let spans: Vec<_> = steps.filter_map(|it| Span::new(it, report)).collect();
        let ends = spans.iter().map(|span| span.end);
        let whole = ends.chain([report.duration_ms, 1]).max().unwrap_or(1);
        let path = critical_path(&spans);
        let percent = |ms: u64| share(ms, whole);
        let prepared = report.prepared.iter().map(|it| Row {
            name: shown(&it.what),
            state: "prepared",
            took: format_ms(it.duration_ms),
            note: "once for this machine".to_owned(),
            is_critical: false,
            left: percent(since(report, it.start)),
            width: percent(it.duration_ms),
        });
        let mut rows: Vec<_> = prepared.collect();
        rows.extend(spans.iter().map(|span| {
            let waited = last_need(span, &spans);
            let waited = waited.map(|need| format!("waited for {}", need.record.name));
            let notes = [waited.unwrap_or_default(), note(span.record)];
            let notes: Vec<_> = notes.into_iter().filter(|it| !it.is_empty()).collect();
            Row {
                name: span.record.name.to_string(),
                state: state(span.record.status),
                took: format_ms(span.record.duration_ms),
                note: notes.join(" · "),
                is_critical: path.iter().any(|it| it.record.name == span.record.name),
                left: percent(span.start),
                width: percent(span.end - span.start),
            }
        }));
        let names: Vec<_> = path.iter().map(|it| it.record.name.name()).collect();
        let took: u64 = path.iter().map(|it| it.record.duration_ms).sum();
        Self {
            rows,
            ticks: ticks(whole),
            path: (!names.is_empty()).then(|| {
                format!(
                    "{}: {} of {}",
                    names.join(" → "),
                    format_ms(took),
                    format_ms(report.duration_ms)
                )
            }),
        }
    }
}

/// The step that this one had to wait for longest.
fn last_need<'s, 'a>(span: &Span<'_>, spans: &'s [Span<'a>]) -> Option<&'s Span<'a>> {
    let needs = span.record.name.needs();
    spans
        .iter()
        .filter(|other| needs.contains(&other.record.name))
        .max_by_key(|other| other.end)
}

/// The chain of steps, each of which started after the one before it had ended, that the run could not be faster than.
fn critical_path<'s, 'a>(spans: &'s [Span<'a>]) -> Vec<&'s Span<'a>> {
    let mut path: Vec<_> = spans
        .iter()
        .max_by_key(|span| span.end)
        .into_iter()
        .collect();
    while let Some(need) = path.last().and_then(|last| last_need(last, spans)) {
        path.push(need);
    }
    path.reverse();
    path
}

#[expect(clippy::cast_precision_loss, reason = "for a position on the screen")]
fn share(ms: u64, whole: u64) -> f64 {
    let share = ms as f64 * 100.0 / whole as f64;
    (share.min(100.0) * 100.0).round() / 100.0
}

/// At most six marks at round times.
fn ticks(whole: u64) -> Vec<Tick> {
    const STEPS: [u64; 15] = [
        100, 200, 500, 1000, 2000, 5000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000,
        1_800_000, 3_600_000,
    ];
    let fits = |step: &u64| whole / step < 6;
    let step = STEPS.into_iter().find(fits).unwrap_or(whole.div_ceil(5));
    let label = |ms: u64| match ms {
        0 => "0".to_owned(),
        60_000.. if ms.is_multiple_of(60_000) => format!("{} min", ms / 60_000),
        60_000.. => format!("{}:{:02} min", ms / 60_000, ms / 1000 % 60),
        _ if ms.is_multiple_of(1000) => format!("{} s", ms / 1000),
        _ => format!("0.{} s", ms / 100),
    };
    (0..=whole / step)
        .map(|number| Tick {
            label: label(number * step),
            left: share(number * step, whole),
        })
        // A label at the end would not fit on a narrow screen.
        .filter(|tick| tick.left < 88.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::samples::ends;
    use super::*;

    #[test]
    fn critical_path_goes_through_the_last_need_of_each_step() {
        let (_, report) = ends().remove(0);
        let timeline = Timeline::new(&report);
        assert_eq!(
            timeline.path.as_deref(),
            Some("build → scan: 1m 01s of 1m 23s")
        );
        let critical = timeline.rows.iter().filter(|row| row.is_critical);
        let names: Vec<_> = critical.map(|row| &*row.name).collect();
        assert_eq!(names, ["build", "scan"]);
        let scan = timeline.rows.iter().find(|row| row.name == "scan").unwrap();
        assert!(scan.note.starts_with("waited for build"), "{}", scan.note);
        assert!(
            timeline
                .rows
                .iter()
                .all(|row| row.left + row.width <= 100.01)
        );
    }

    #[test]
    fn marks_are_few_and_at_round_times() {
        for (whole, expected) in [
            (300, ["0", "0.1 s", "0.2 s"].as_slice()),
            (4500, &["0", "1 s", "2 s", "3 s"]),
            (83_200, &["0", "15 s", "30 s", "45 s", "1 min"]),
            (600_000, &["0", "2 min", "4 min", "6 min", "8 min"]),
        ] {
            let labels: Vec<_> = ticks(whole).into_iter().map(|tick| tick.label).collect();
            assert_eq!(labels, expected);
        }
    }
}
