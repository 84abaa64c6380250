//! `GET /events`: changes of state as they happen, as server-sent events.

use std::{convert::Infallible, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::{self, Bytes},
};
use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast, watch},
    time::timeout,
};

use crate::{
    changes::{Change, Event},
    problem::{PROBLEM_JSON, Problem},
    service::Service,
};

/// The media type of server-sent events.
const EVENT_STREAM: &str = "text/event-stream";

/// Proxies close a connection that is silent for a minute, many of them earlier.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Changes of state as they happen
///
/// Each is an event `change` whose data is JSON. A client that comes back with `Last-Event-ID` is told first what it missed, as far as this process
/// knows it (256 changes). A comment comes every 15 seconds.
#[utoipa::path(get, operation_id = "streamEvents", path = "/events", tag = "checks",
    params(("Last-Event-ID" = Option<String>, Header, description = "The id of the newest event that the client has seen")),
    responses(
        (status = 200, description = "A stream that does not end", body = Change, content_type = EVENT_STREAM),
        (status = 503, description = "There are too many streams, or the service is about to end", body = Problem, content_type = PROBLEM_JSON),
    ),
)]
pub(super) async fn get(
    service: web::Data<Service>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    if service.drain.has_begun() {
        return Err(busy("the service is about to end"));
    }
    let permit = service.streams.clone().try_acquire_owned().map_err(|_| {
        busy("there are too many event streams; ask /api/v1/checks now and then instead")
    })?;
    let last = request
        .headers()
        .get("last-event-id")
        .and_then(|id| id.to_str().ok());
    let (missed, coming) = service.board.changes().listen(last);
    service.metrics.streams.inc();
    let ends = service.drain.streams_end();
    let listener = Listener {
        service,
        coming,
        ends,
        _permit: permit,
    };
    // The first line tells the client at once that the stream is open, and when to come back after its end.
    let hello = stream::once(async { Bytes::from_static(b"retry: 3000\n\n") });
    let missed: Vec<Bytes> = missed.iter().map(|event| listener.write(event)).collect();
    let events = hello.chain(stream::iter(missed)).chain(listener.events());
    Ok(HttpResponse::Ok()
        .content_type(EVENT_STREAM)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        // nginx would keep events back.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events.map(Ok::<_, Infallible>)))
}

fn busy(detail: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
}

/// Somebody who is told of changes.
struct Listener {
    service: web::Data<Service>,
    coming: broadcast::Receiver<Event>,
    ends: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Listener {
    fn write(&self, event: &Event) -> Bytes {
        let id = self.service.board.changes().id(event.number);
        format!("id: {id}\nevent: change\ndata: {}\n\n", event.data).into()
    }

    /// Until the service ends, or the listener is too slow: then it comes back and is told what it missed.
    fn events(self) -> impl Stream<Item = Bytes> {
        stream::unfold(self, |mut listener| async move {
            let coming = tokio::select! {
                coming = timeout(HEARTBEAT, listener.coming.recv()) => coming,
                _ = listener.ends.wait_for(|ends| *ends) => return None,
            };
            let bytes = match coming {
                Ok(Ok(event)) => listener.write(&event),
                Ok(Err(_)) => return None,
                Err(_) => Bytes::from_static(b": still here\n\n"),
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
