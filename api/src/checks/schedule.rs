//! When each check is asked: in the background, never in a request.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::time::{sleep, timeout};

use super::{Check, Clients, Probe, Trouble};
use crate::board::Board;

/// So that many checks do not begin in the same instant, and a few answer at once.
const SPREAD: Duration = Duration::from_millis(5);

/// Asks every check of `board` until the runtime ends; needs an Actix runtime.
pub fn start(board: &Arc<Board>, clients: &Clients) {
    let spread = SPREAD * u32::try_from(board.checks().len()).unwrap_or(u32::MAX);
    for (index, check) in board.checks().enumerate() {
        let (board, check, probe) = (board.clone(), check.clone(), check.target.probe(clients));
        actix_web::rt::spawn(async move {
            sleep(spread.min(check.interval).mul_f64(fastrand::f64())).await;
            ask_forever(&board, index, &check, probe).await;
        });
    }
}

async fn ask_forever(board: &Board, index: usize, check: &Check, mut probe: Probe) {
    loop {
        let (at, start) = (SystemTime::now(), Instant::now());
        // In a box: most of the time nobody asks, and that memory is free.
        let answer = timeout(check.timeout, Box::pin(probe.ask()))
            .await
            .unwrap_or_else(|_| {
                Err(Trouble(format!(
                    "no answer within {}",
                    humantime::format_duration(check.timeout)
                )))
            });
        board.record(index, at, start.elapsed(), answer);
        let until_next = check.interval.saturating_sub(start.elapsed());
        let jitter = check.jitter.mul_f64(fastrand::f64());
        // As often earlier as later: the interval holds on average.
        sleep((until_next + jitter).saturating_sub(check.jitter / 2)).await;
    }
}
