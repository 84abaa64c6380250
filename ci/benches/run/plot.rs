//! The plot of the results: a bar for each peer of each case, on a logarithmic scale.

use std::path::Path;

use plotters::prelude::*;

use crate::cases::{Case, Peer, Unit};
use crate::results::Measured;

const WIDTH: u32 = 1200;
/// The space for the names of the cases.
const LEFT: i32 = 400;
const BAR: i32 = 14;
const GAP: i32 = 12;
const TOP: i32 = 70;

fn color(peer: Peer) -> RGBColor {
    match peer {
        Peer::Ci => RGBColor(0x00, 0x72, 0xb2),
        Peer::Limit => RGBColor(0x00, 0x9e, 0x73),
        Peer::Usual => RGBColor(0xe6, 0x9f, 0x00),
        Peer::Without => RGBColor(0x56, 0xb4, 0xe9),
        Peer::Sequence => RGBColor(0xcc, 0x79, 0xa7),
    }
}

/// Draws all cases that are durations.
pub fn draw(path: &Path, cases: &[(&Case, &Measured)]) {
    let cases: Vec<_> = cases
        .iter()
        .filter(|(case, _)| case.unit == Unit::Seconds)
        .collect();
    let bars: usize = cases.iter().map(|(_, it)| it.peers.len()).sum();
    let height = TOP + pixels(bars) * BAR + pixels(cases.len()) * GAP + GAP;
    let root = SVGBackend::new(path, (WIDTH, height.unsigned_abs())).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let figures = cases
        .iter()
        .flat_map(|(_, it)| it.peers.keys().map(|peer| it.median(*peer)));
    let longest = figures.flatten().fold(1.0, f64::max);
    let shortest = 0.1_f64;
    let scale = f64::from(pixels(WIDTH as usize) - LEFT - 90) / (longest / shortest).log10();
    // Rounded to pixels.
    let x = |seconds: f64| LEFT + ((seconds.max(shortest) / shortest).log10() * scale) as i32;
    let text = |text: &str, at: (i32, i32), size: i32| {
        let style = ("sans-serif", size).into_font().color(&BLACK);
        root.draw(&Text::new(text.to_owned(), at, style)).unwrap();
    };
    text("Median time of a run (logarithmic scale)", (10, 8), 18);
    let mut left = 10;
    for peer in [
        Peer::Ci,
        Peer::Limit,
        Peer::Usual,
        Peer::Without,
        Peer::Sequence,
    ] {
        let square = [(left, 40), (left + 12, 52)];
        root.draw(&Rectangle::new(square, color(peer).filled()))
            .unwrap();
        text(peer.name(), (left + 18, 39), 14);
        left += 40 + 9 * pixels(peer.name().len());
    }
    for power in -1..=4 {
        let seconds = 10_f64.powi(power);
        if seconds > longest {
            break;
        }
        let grid = [(x(seconds), TOP - 4), (x(seconds), height - GAP)];
        root.draw(&PathElement::new(grid.to_vec(), RGBColor(0xdd, 0xdd, 0xdd)))
            .unwrap();
        text(&format!("{seconds} s"), (x(seconds) - 8, TOP - 20), 12);
    }
    let mut y = TOP;
    for (case, measured) in cases {
        // The names are Markdown.
        text(&case.what.replace('`', ""), (10, y), 14);
        for peer in measured.peers.keys() {
            let figure = measured.median(*peer).unwrap();
            let bar = [(LEFT, y), (x(figure), y + BAR - 2)];
            root.draw(&Rectangle::new(bar, color(*peer).filled()))
                .unwrap();
            text(&case.unit.show(figure), (x(figure) + 4, y), 12);
            y += BAR;
        }
        y += GAP;
    }
    root.present().unwrap();
}

fn pixels(number: usize) -> i32 {
    number.try_into().unwrap()
}
