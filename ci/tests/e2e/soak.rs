//! The soak: interruptions at random moments, for as long as is wished. `just test` runs a slice of it, `just soak` more.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::interrupts::{EngineStart, Moments, StandInBuild, note};

/// How long this part of the soak goes on, in seconds; `just soak` sets it.
const SECONDS: &str = "SOAK_SECONDS";
/// In `just test`. The soak of `api` has the rest of its two minutes.
const SLICE: u64 = 30;

#[test]
fn nothing_half_made_is_used_after_interruptions_at_random() {
    let seconds = std::env::var(SECONDS).map_or(SLICE, |it| it.parse().unwrap());
    let mut moments = Moments::new();
    let (engine, stand_in) = (EngineStart::new(), StandInBuild::new());
    let (mut starts, mut builds) = (engine.work(), stand_in.work());
    // A stand-in takes half a minute to make: too long for a slice.
    let part_of_starts = if seconds > SLICE { 0.7 } else { 1.0 };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut count = 0;
    while Instant::now() < end {
        let signal = match moments.next() < 0.5 {
            true => Signal::SIGKILL,
            false => Signal::SIGINT,
        };
        let work = match moments.next() < part_of_starts {
            true => &mut starts,
            false => &mut builds,
        };
        work.interrupt_at(moments.next(), signal);
        count += 1;
    }
    note(&format!("{count} interruptions"));
    assert!(count > 0);
    engine.works();
    if part_of_starts < 1.0 {
        stand_in.works();
    }
}
