//! `GET /events`: a stream of state changes as server-sent events.

use std::{convert::Infallible, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::{self, Bytes},
};
use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::{broadcast, watch},
    time::timeout,
};

use crate::{
    changes::{Change, Event},
    problem::{PROBLEM_JSON, Problem},
    service::{OpenStream, Service},
};

/// The media type of server-sent events.
const EVENT_STREAM: &str = "text/event-stream";

/// The time between comments on a silent stream. Many proxies close silent connections after a minute or less.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Stream state changes as server-sent events
///
/// Each change is an event of type `change` with JSON data. A client that reconnects with `Last-Event-ID` first receives the
/// changes that it missed; the service keeps the last 256 changes since its start. A comment is sent after 15 seconds without an
/// event.
#[utoipa::path(get, operation_id = "streamEvents", path = "/events", tag = "checks",
    params(("Last-Event-ID" = Option<String>, Header, description = "ID of the last event that the client received")),
    responses(
        (status = 200, description = "A stream that stays open until the service shuts down", body = Change, content_type = EVENT_STREAM),
        (status = 503, description = "Too many streams are open, or the service is shutting down", body = Problem, content_type = PROBLEM_JSON),
    ),
)]
pub(super) async fn get(
    service: web::Data<Service>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    if service.drain.has_begun() {
        return Err(unavailable("the service is shutting down"));
    }
    let open = service.streams.open().ok_or_else(|| {
        let base = &service.base_path;
        unavailable(&format!(
            "too many event streams; poll {base}/api/v1/checks instead"
        ))
    })?;
    let last = request
        .headers()
        .get("last-event-id")
        .and_then(|id| id.to_str().ok());
    let (missed, receiver) = service.board.changes().listen(last);
    service.metrics.streams.inc();
    let shutdown = service.drain.streams_end();
    let listener = Listener {
        service,
        receiver,
        shutdown,
        _open: open,
    };
    // Sent at once, so that the client sees an open stream; contains the reconnection delay.
    let start = stream::once(async { Bytes::from_static(b"retry: 3000\n\n") });
    let missed: Vec<Bytes> = missed.iter().map(|event| listener.write(event)).collect();
    let events = start.chain(stream::iter(missed)).chain(listener.events());
    Ok(HttpResponse::Ok()
        .content_type(EVENT_STREAM)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        // Disables the response buffering of nginx.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events.map(Ok::<_, Infallible>)))
}

fn unavailable(detail: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
}

/// A client that receives events.
struct Listener {
    service: web::Data<Service>,
    receiver: broadcast::Receiver<Event>,
    shutdown: watch::Receiver<bool>,
    _open: OpenStream,
}

impl Listener {
    fn write(&self, event: &Event) -> Bytes {
        let id = self.service.board.changes().id(event.number);
        format!("id: {id}\nevent: change\ndata: {}\n\n", event.data).into()
    }

    /// The events until the service shuts down, or until the client is too slow; then it reconnects and receives what it missed.
    fn events(self) -> impl Stream<Item = Bytes> {
        stream::unfold(self, |mut listener| async move {
            let received = tokio::select! {
                received = timeout(HEARTBEAT, listener.receiver.recv()) => received,
                _ = listener.shutdown.wait_for(|shutdown| *shutdown) => return None,
            };
            let bytes = match received {
                Ok(Ok(event)) => listener.write(&event),
                Ok(Err(_)) => return None,
                Err(_) => Bytes::from_static(b": keep-alive\n\n"),
            };
            Some((bytes, listener))
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.service.metrics.streams.dec();
    }
}
