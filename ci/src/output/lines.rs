//! Splits output into lines and the states of progress bars.

/// A piece of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A line, without its end.
    Line(&'a str),
    /// Text that the next text replaces, because a carriage return follows it: the state of a progress bar.
    Transient(&'a str),
}

/// Splits a stream of output into pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Splitter {
    /// The beginning of an incomplete piece.
    pending: String,
}

impl Splitter {
    /// Adds text, and calls `each` with the pieces that it completes.
    pub(crate) fn push(&mut self, text: &str, mut each: impl FnMut(Piece<'_>)) {
        // Only text without a line end is copied twice, so the time is linear even for very long lines.
        let searched = self.pending.trim_end_matches('\r').len();
        self.pending.push_str(text);
        let mut start = 0;
        let mut from = searched;
        while let Some(found) = self.pending[from..].find(['\n', '\r']) {
            let end = from + found;
            let rest = &self.pending[end..];
            let (piece, next) = if rest.starts_with('\n') {
                (Piece::Line(&self.pending[start..end]), end + 1)
            } else if rest.starts_with("\r\n") {
                (Piece::Line(&self.pending[start..end]), end + 2)
            } else if rest.len() == 1 {
                // The next text may begin with the line feed.
                break;
            } else {
                (Piece::Transient(&self.pending[start..end]), end + 1)
            };
            each(piece);
            start = next;
            from = next;
        }
        self.pending.drain(..start);
    }

    /// Ends the stream, and calls `each` with an incomplete last line.
    pub(crate) fn end(&mut self, mut each: impl FnMut(Piece<'_>)) {
        let rest = std::mem::take(&mut self.pending);
        let rest = rest.trim_end_matches('\r');
        if !rest.is_empty() {
            each(Piece::Line(rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&str]) -> Vec<String> {
        let mut all = Vec::new();
        let mut splitter = Splitter::default();
        let mut each = |piece: Piece<'_>| all.push(format!("{piece:?}"));
        for chunk in chunks {
            splitter.push(chunk, &mut each);
        }
        splitter.end(&mut each);
        all
    }

    #[test]
    fn pieces_do_not_depend_on_how_the_output_is_cut() {
        let output = "one\ntwo\r\n 1/3\r 2/3\rthree\n\nlast";
        let whole = split(&[output]);
        assert_eq!(
            whole,
            [
                "Line(\"one\")",
                "Line(\"two\")",
                "Transient(\" 1/3\")",
                "Transient(\" 2/3\")",
                "Line(\"three\")",
                "Line(\"\")",
                "Line(\"last\")",
            ]
        );
        for at in 0..=output.len() {
            let (head, tail) = output.split_at(at);
            assert_eq!(split(&[head, tail]), whole, "{at}");
        }
        let single: Vec<_> = output.split("").collect();
        assert_eq!(split(&single), whole);
    }
}
