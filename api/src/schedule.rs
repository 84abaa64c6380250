//! Probes each check periodically: in the background, never as part of a request.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    board::Board,
    checks::{Check, CheckProbe, Clients, ProbeError, observe},
};

/// The first probes are spread over this time per check, so that many checks do not start at once and a few have results quickly.
const SPREAD: Duration = Duration::from_millis(5);

/// Starts to probe every check of `board`, until the runtime ends. Must be called on an Actix runtime.
pub fn start(board: &Arc<Board>, clients: &Clients) -> Schedule {
    let mut schedule = Schedule {
        board: board.clone(),
        clients: clients.clone(),
        tasks: HashMap::new(),
    };
    schedule.update();
    schedule
}

/// The tasks that probe the checks of a board. They continue after it is dropped.
#[derive(Debug)]
pub struct Schedule {
    board: Arc<Board>,
    clients: Clients,
    /// The check that each task probes, and the task, by the index of the check.
    tasks: HashMap<usize, (Arc<Check>, JoinHandle<()>)>,
}

impl Schedule {
    /// Follows the checks of the board: stops to probe those that were removed or changed, and starts to probe those that are new
    /// or changed. Others keep their schedule. Returns how many were started and stopped. Must be called on an Actix runtime.
    pub fn update(&mut self) -> (usize, usize) {
        let mut before = std::mem::take(&mut self.tasks);
        let (kept, new): (Vec<_>, Vec<_>) = self
            .board
            .checks()
            .into_iter()
            .partition(|(index, check)| before.get(index).is_some_and(|(of, _)| of == check));
        for (index, _) in kept {
            self.tasks.extend(before.remove_entry(&index));
        }
        for (_, task) in before.values() {
            task.abort();
        }
        let spread = SPREAD * u32::try_from(new.len()).unwrap_or(u32::MAX);
        let counts = (new.len(), before.len());
        for (index, check) in new {
            let task = self.spawn(index, check.clone(), spread);
            self.tasks.insert(index, (check, task));
        }
        counts
    }

    fn spawn(&self, index: usize, check: Arc<Check>, spread: Duration) -> JoinHandle<()> {
        let (board, probe) = (self.board.clone(), check.probe(&self.clients));
        actix_web::rt::spawn(async move {
            sleep(spread.min(check.interval).mul_f64(fastrand::f64())).await;
            probe_forever(&board, index, &check, probe).await;
        })
    }
}

async fn probe_forever(board: &Board, index: usize, check: &Check, mut probe: CheckProbe) {
    loop {
        let (at, start) = (SystemTime::now(), Instant::now());
        // Boxed, so that an idle check does not hold the memory of the future.
        let (result, expiry) = observe(timeout(check.timeout, Box::pin(probe.run()))).await;
        let result = result.unwrap_or_else(|_| {
            Err(ProbeError(format!(
                "no response within {}",
                humantime::format_duration(check.timeout)
            )))
        });
        // A probe that keeps its connection sees no certificates.
        if let Some(expiry) = expiry {
            board.record_expiry(index, expiry);
        }
        board.record(index, at, start.elapsed(), result);
        let until_next = check.interval.saturating_sub(start.elapsed());
        let jitter = check.jitter.mul_f64(fastrand::f64());
        // Centered on the interval, so that the average matches it.
        sleep((until_next + jitter).saturating_sub(check.jitter / 2)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{self, pause};

    use super::*;
    use crate::{
        checks::{Target, TlsOptions, dns, redis},
        secret::SecretUrl,
        state::State,
    };

    const INTERVAL: Duration = Duration::from_secs(10);

    fn check(target: Target) -> Check {
        Check {
            name: "check".into(),
            display_name: None,
            target,
            critical: false,
            interval: INTERVAL,
            jitter: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            failures: 3.try_into().unwrap(),
            successes: 2.try_into().unwrap(),
            degraded_above: None,
            tls: TlsOptions::default(),
            group: None,
            hide_target: false,
        }
    }

    /// A target whose probe fails at once without connecting.
    fn invalid() -> Target {
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

    /// Waits for the next result.
    async fn next(board: &Board) {
        let before = board.generation();
        while board.generation() == before {
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[actix_web::test]
    async fn interval_varies_by_the_jitter_and_holds_on_average() {
        const COUNT: u32 = 100;
        let board = run(check(invalid()));
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
    async fn marks_a_check_down_after_the_configured_number_of_failures() {
        let board = run(check(invalid()));
        for expected in [State::Pending, State::Pending, State::Down, State::Down] {
            next(&board).await;
            assert_eq!(board.status(0).unwrap().state, expected);
        }
    }

    #[actix_web::test]
    async fn counts_a_timeout_as_a_failure() {
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
            assert_eq!(last.error.as_deref(), Some("no response within 1s"));
        }
    }
}
