//! Soak tests: kills at random moments and crowds of clients. `just test` runs them briefly, `just soak` for longer.

use std::time::{Duration, Instant, SystemTime};

use crate::{
    load::{Group, Outcome, crowd, turn, visit, wait_until_served},
    store::Killed,
};

/// The duration of each soak test in seconds; `just soak` sets this variable.
const SECONDS: &str = "SOAK_SECONDS";

/// The default duration, for `just test`. The soak test of `ci` uses the rest of the two minutes.
const DEFAULT_SECONDS: u64 = 45;

/// When a test that starts now must end.
fn end() -> Instant {
    let seconds = std::env::var(SECONDS).map_or(DEFAULT_SECONDS, |it| it.parse().unwrap());
    Instant::now() + Duration::from_secs(seconds)
}

#[expect(
    clippy::print_stdout,
    reason = "the test runner shows the output of these tests"
)]
fn note(text: &str) {
    println!("{text}");
}

#[test]
fn store_survives_random_kills() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = std::env::var("SEED").map_or(now.unwrap().as_secs(), |it| it.parse().unwrap());
    note(&format!("set SEED={seed} to repeat the same moments"));
    fastrand::seed(seed);
    let end = end();
    let mut store = Killed::new();
    while Instant::now() < end {
        store.kill_once();
    }
    note(&format!("{} kills", store.rounds));
}

#[actix_web::test]
async fn serves_crowds_of_ten_thousand_clients() {
    const CLIENTS: usize = 10_000;
    let _turn = turn().await;
    let group = Group::new("soak");
    let mut service = group.start();
    let port = service.port;
    let (end, mut crowds) = (end(), 0);
    while Instant::now() < end {
        let all = crowd(CLIENTS, move |number| visit(number, port)).await;
        let count = |wanted| all.iter().filter(|(outcome, _)| *outcome == wanted).count();
        assert_eq!(count(Outcome::TimedOut), 0);
        // If too many clients are rejected at once, some connections are reset.
        let failed = count(Outcome::Failed);
        assert!(failed < CLIENTS / 100, "{failed} of {CLIENTS}");
        assert!(count(Outcome::Kept) > 0);
        drop(all);
        wait_until_served(port).await;
        group.assert_running(&mut service);
        crowds += 1;
    }
    note(&format!("{crowds} crowds of {CLIENTS} clients"));
    assert!(crowds > 0);
}
