//! Prints the results of a benchmark: a line for each figure, with its bound.

/// The results of a benchmark.
#[derive(Default)]
pub struct Table {
    /// Whether a bound was missed.
    pub missed: bool,
}

impl Table {
    pub fn print(&self, what: &str, figure: impl std::fmt::Display) {
        println!("{what:<58} {figure:>14}");
    }

    pub fn at_most(&mut self, what: &str, figure: f64, bound: f64, unit: &str) {
        self.bounded(
            what,
            figure,
            &format!("<= {bound}{unit}"),
            figure <= bound,
            unit,
        );
    }

    pub fn at_least(&mut self, what: &str, figure: f64, bound: f64, unit: &str) {
        self.bounded(
            what,
            figure,
            &format!(">= {bound}{unit}"),
            figure >= bound,
            unit,
        );
    }

    fn bounded(&mut self, what: &str, figure: f64, bound: &str, met: bool, unit: &str) {
        self.missed |= !met;
        let verdict = if met { "" } else { "  MISSED" };
        println!(
            "{what:<58} {:>14} {bound:>12}{verdict}",
            format!("{figure:.2}{unit}")
        );
    }
}
