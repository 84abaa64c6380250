//! The soak: kills at random moments and crowds of clients, for as long as is wished. `just test` runs a slice of it, `just soak` more.

use std::time::{Duration, Instant, SystemTime};

use crate::{
    load::{Group, Outcome, answers, crowd, turn, visit},
    store::Killed,
};

/// How long each part of the soak goes on, in seconds; `just soak` sets it.
const SECONDS: &str = "SOAK_SECONDS";

/// In `just test` each part here has so long. The soak of `ci` has the rest of the two minutes.
const SLICE: u64 = 45;

/// When a part that begins now has to end.
fn end() -> Instant {
    let seconds = std::env::var(SECONDS).map_or(SLICE, |it| it.parse().unwrap());
    Instant::now() + Duration::from_secs(seconds)
}

#[expect(
    clippy::print_stdout,
    reason = "the runner shows it, also where all is well"
)]
fn note(text: &str) {
    println!("{text}");
}

#[test]
fn the_store_survives_kills_at_random() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = std::env::var("SEED").map_or(now.unwrap().as_secs(), |it| it.parse().unwrap());
    note(&format!("SEED={seed} brings the same moments again"));
    fastrand::seed(seed);
    let end = end();
    let mut store = Killed::new();
    while Instant::now() < end {
        store.again();
    }
    note(&format!("{} kills", store.rounds));
}

#[actix_web::test]
async fn the_service_serves_crowds_of_ten_thousand_clients() {
    const CLIENTS: usize = 10_000;
    let _turn = turn().await;
    let group = Group::new("soak");
    let mut service = group.start();
    let port = service.port;
    let (end, mut crowds) = (end(), 0);
    while Instant::now() < end {
        let all = crowd(CLIENTS, move |number| visit(number, port)).await;
        let count = |wanted| all.iter().filter(|(outcome, _)| *outcome == wanted).count();
        assert_eq!(count(Outcome::Hung), 0);
        // Where more leave at once than can be seen off, some are hung up on.
        let failed = count(Outcome::Failed);
        assert!(failed < CLIENTS / 100, "{failed} of {CLIENTS}");
        assert!(count(Outcome::Kept) > 0);
        drop(all);
        answers(port).await;
        group.assert_lives(&mut service);
        crowds += 1;
    }
    note(&format!("{crowds} crowds of {CLIENTS} clients"));
    assert!(crowds > 0);
}
