//! The soak test: interrupts provisioning at random moments. `just test` runs it briefly, `just soak` for any duration.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::interrupts::{EngineStart, RandomMoments, StandInBuild, print_note};

/// The environment variable with the duration in seconds, set by `just soak`.
const SECONDS: &str = "SOAK_SECONDS";
/// The duration in `just test`, in seconds.
const DEFAULT_SECONDS: u64 = 30;

#[test]
fn recovers_from_random_interruptions() {
    let seconds = std::env::var(SECONDS).map_or(DEFAULT_SECONDS, |it| it.parse().unwrap());
    let mut moments = RandomMoments::new();
    let (engine, stand_in) = (EngineStart::new(), StandInBuild::new());
    let (mut starts, mut builds) = (engine.work(), stand_in.work());
    // Stand-ins take half a minute to build, which is too long for `just test`.
    let share_of_starts = if seconds > DEFAULT_SECONDS { 0.7 } else { 1.0 };
    let end = Instant::now() + Duration::from_secs(seconds);
    // Whatever the seed, there is one interruption in each half of a start.
    starts.interrupt_at(moments.next() / 2.0, Signal::SIGKILL);
    starts.interrupt_at(moments.next() / 2.0 + 0.5, Signal::SIGINT);
    let mut count = 2;
    while Instant::now() < end {
        let signal = match moments.next() < 0.5 {
            true => Signal::SIGKILL,
            false => Signal::SIGINT,
        };
        let work = match moments.next() < share_of_starts {
            true => &mut starts,
            false => &mut builds,
        };
        work.interrupt_at(moments.next(), signal);
        count += 1;
    }
    print_note(&format!("{count} interruptions"));
    engine.assert_works();
    if share_of_starts < 1.0 {
        stand_in.assert_works();
    }
}
