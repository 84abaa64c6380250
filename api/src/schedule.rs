//! Probes each check periodically: in the background, never as part of a request.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::time::{sleep, timeout};

use crate::{
    board::Board,
    checks::{Check, Clients, Probe, Trouble},
};

/// The first probes are spread over this time per check: many checks do not start in the same instant, and a few have answers at once.
const SPREAD: Duration = Duration::from_millis(5);

/// Starts to probe every check of `board`, until the runtime ends. Must be called on an Actix runtime.
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

#[cfg(test)]
mod tests {
    use tokio::time::{self, pause};

    use super::*;
    use crate::{
        checks::{Target, dns, redis},
        secret::SecretUrl,
        state::State,
    };

    const INTERVAL: Duration = Duration::from_secs(10);

    fn check(target: Target) -> Check {
        Check {
            name: "check".into(),
            target,
            critical: false,
            interval: INTERVAL,
            jitter: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            failures: 3.try_into().unwrap(),
            successes: 2.try_into().unwrap(),
        }
    }

    /// Fails at once, and asks nobody.
    fn wrong() -> Target {
        Target::Redis(redis::Target {
            url: SecretUrl::new("http://nowhere.invalid".parse().unwrap()),
        })
    }

    fn run(check: Check) -> Arc<Board> {
        pause();
        let board = Arc::new(Board::new(vec![check]));
        start(&board, &Clients::new(None).unwrap());
        board
    }

    /// Waits for the next answer.
    async fn next(board: &Board) {
        let before = board.generation();
        while board.generation() == before {
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[actix_web::test]
    async fn the_interval_varies_by_the_jitter_and_holds_on_average() {
        const COUNT: u32 = 100;
        let board = run(check(wrong()));
        next(&board).await;
        let start = time::Instant::now();
        let mut last = start;
        let (mut shortest, mut longest) = (Duration::MAX, Duration::ZERO);
        for _ in 0..COUNT {
            next(&board).await;
            shortest = shortest.min(last.elapsed());
            longest = longest.max(last.elapsed());
            last = time::Instant::now();
        }
        // The clock here ticks every 10 ms.
        let near = |time: Duration, seconds: f64, by: f64| {
            let time = time.as_secs_f64();
            assert!((time - seconds).abs() < by, "{time} is not near {seconds}");
        };
        near(shortest, 9.0, 0.3);
        near(longest, 11.0, 0.3);
        near(start.elapsed() / COUNT, 10.0, 0.3);
    }

    #[actix_web::test]
    async fn a_check_is_down_after_as_many_failures_as_its_threshold_says() {
        let board = run(check(wrong()));
        for expected in [State::Pending, State::Pending, State::Down, State::Down] {
            next(&board).await;
            assert_eq!(board.status(0).unwrap().state, expected);
        }
    }

    #[actix_web::test]
    async fn an_answer_that_does_not_come_is_a_failure_once_the_time_is_up() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let board = run(check(Target::Dns(dns::Target {
            name: "example.org".into(),
            record: hickory_proto::rr::RecordType::A,
            server: Some(silent.local_addr().unwrap()),
            expected: Vec::new(),
        })));
        for _ in 0..3 {
            next(&board).await;
            let last = board.status(0).unwrap().last.unwrap();
            assert_eq!(last.error.as_deref(), Some("no answer within 1s"));
        }
    }
}
