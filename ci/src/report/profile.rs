//! `--profile`: what a run spent its time on, in the [trace event format] that [Perfetto](https://ui.perfetto.dev) opens.
//!
//! `ci`'s own work is in spans of `tracing`. What the engine does arrives as events, each with a span's track, name and times.
//!
//! [trace event format]: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use common::failure::{Failure, OrFail};

/// The track of spans outside of the steps.
const MAIN: &str = "ci";

/// Records all spans, and writes them to a file.
#[derive(Clone)]
pub struct Profile {
    path: PathBuf,
    file: Arc<File>,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// Something that took time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Span {
    /// The step, or [`MAIN`].
    track: Option<String>,
    name: String,
    /// In nanoseconds since the Unix epoch.
    start: u64,
    end: u64,
}

impl Profile {
    /// Creates the file, which gets its content when the run ends.
    ///
    /// # Errors
    /// When the file cannot be created (exit code 3).
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).or_environment(format!("cannot write {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            spans: Arc::default(),
        })
    }

    /// Writes everything that was recorded.
    ///
    /// # Errors
    /// When the file cannot be written (exit code 3).
    pub fn write(&self) -> Result<(), Failure> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = BufWriter::new(&*self.file);
        serde_json::to_writer(&mut file, &events(&spans))
            .map_err(std::io::Error::from)
            .and_then(|()| file.flush())
            .or_environment(format!("cannot write {}", self.path.display()))
    }

    fn add(&self, span: Span) {
        self.spans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(span);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Profile {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(new) = context.span(id) else { return };
        let mut span = Span {
            name: attributes.metadata().name().to_owned(),
            start: now(),
            ..Span::default()
        };
        attributes.record(&mut span);
        if span.track.is_none() {
            let parent = new.parent();
            span.track = parent.and_then(|it| it.extensions().get::<Span>()?.track.clone());
        }
        new.extensions_mut().insert(span);
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut span = Span::default();
        event.record(&mut span);
        if span.end > 0 {
            self.add(span);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let closed = context
            .span(&id)
            .and_then(|it| it.extensions_mut().remove());
        if let Some(span) = closed {
            self.add(Span { end: now(), ..span });
        }
    }
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or_default()
}

impl Visit for Span {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "track" => self.track = Some(value.to_owned()),
            "name" => value.clone_into(&mut self.name),
            _ => {}
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "start" => self.start = value,
            "end" => self.end = value,
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// The trace: a process for each track, with as many threads as spans that overlap without being part of each other.
fn events(spans: &[Span]) -> Value {
    let mut tracks: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
    for span in spans {
        let track = span.track.as_deref().unwrap_or(MAIN);
        tracks.entry(track).or_default().push(span);
    }
    let mut events = Vec::new();
    for (process, (track, mut spans)) in tracks.into_iter().enumerate() {
        events.push(
            json!({ "ph": "M", "name": "process_name", "pid": process, "args": { "name": track } }),
        );
        spans.sort_by_key(|span| (span.start, u64::MAX - span.end));
        // The ends of the open spans of each thread, the innermost last.
        let mut threads: Vec<Vec<u64>> = Vec::new();
        for span in spans {
            let fits = |open: &mut Vec<u64>| {
                open.retain(|end| *end > span.start);
                open.last().is_none_or(|end| *end >= span.end)
            };
            let thread = threads.iter_mut().position(fits).unwrap_or(threads.len());
            if thread == threads.len() {
                threads.push(Vec::new());
            }
            threads[thread].push(span.end);
            events.push(json!({
                "ph": "X",
                "name": span.name,
                "pid": process,
                "tid": thread,
                "ts": microseconds(span.start),
                "dur": microseconds(span.end.saturating_sub(span.start)),
            }));
        }
    }
    json!({ "displayTimeUnit": "ms", "traceEvents": events })
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds do not matter here")]
fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::prelude::*;

    use super::*;

    fn span(track: &str, name: &str, start: u64, end: u64) -> Span {
        Span {
            track: Some(track.to_owned()),
            name: name.to_owned(),
            start,
            end,
        }
    }

    #[test]
    fn overlapping_spans_are_in_threads_of_their_own() {
        let spans = [
            span("test", "outer", 0, 10_000),
            span("test", "inner", 2_000, 4_000),
            span("test", "overlapping", 9_000, 12_000),
            span("test", "later", 13_000, 14_000),
            span("lint", "other", 1_000, 2_000),
        ];
        let trace = events(&spans);
        let found: Vec<_> = trace["traceEvents"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["ph"] == "X")
            .map(|event| {
                (
                    event["name"].as_str().unwrap(),
                    event["pid"].as_u64(),
                    event["tid"].as_u64(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("other", Some(0), Some(0)),
                ("outer", Some(1), Some(0)),
                ("inner", Some(1), Some(0)),
                ("overlapping", Some(1), Some(1)),
                ("later", Some(1), Some(0)),
            ]
        );
    }

    #[test]
    fn records_spans_with_the_track_of_their_parent_and_events_of_the_engine() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let profile = Profile::create(file.path()).unwrap();
        let subscriber = tracing_subscriber::registry().with(profile.clone());
        tracing::subscriber::with_default(subscriber, || {
            let step = tracing::info_span!("step", track = "test");
            step.in_scope(|| tracing::info_span!("upload").in_scope(|| ()));
            drop(step);
            tracing::info!(
                track = "lint",
                name = "exec cargo",
                start = 5_u64,
                end = 7_u64
            );
            tracing::info!("not a span");
        });
        let spans = profile.spans.lock().unwrap().clone();
        let names: Vec<_> = spans
            .iter()
            .map(|span| (span.track.as_deref().unwrap(), &*span.name))
            .collect();
        assert_eq!(
            names,
            [("test", "upload"), ("test", "step"), ("lint", "exec cargo")]
        );
        profile.write().unwrap();
        let written: Value = serde_json::from_reader(file).unwrap();
        assert_eq!(written, events(&spans));
    }
}
