//! Limits how much foreign text is on the page.

use crate::report::text::visible;

/// What is left for foreign text, in bytes of HTML.
pub(super) struct Budget {
    left: usize,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self { left: bytes }
    }

    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Takes bytes; false if there are not enough.
    pub(super) fn take_bytes(&mut self, bytes: usize) -> bool {
        let enough = bytes <= self.left;
        if enough {
            self.left -= bytes;
        }
        enough
    }

    /// Takes what this text needs; false if there is not enough.
    pub(super) fn take(&mut self, text: &str) -> bool {
        self.take_bytes(size(text))
    }

    /// The beginning of a text, harmless and at most `most` bytes long.
    pub(super) fn cut(&mut self, text: &str, most: usize) -> String {
        let text = visible(text);
        let end = text.floor_char_boundary(most);
        let (start, rest) = text.split_at(end);
        if !self.take(start) {
            return "… left out, see report.json".to_owned();
        }
        if rest.is_empty() {
            start.to_owned()
        } else {
            format!(
                "{start}\n… {} more bytes, see report.json and the log",
                rest.len()
            )
        }
    }
}

/// The size of a text as HTML, in bytes.
pub(super) fn size(text: &str) -> usize {
    let escaped = |b: &u8| matches!(b, b'&' | b'<' | b'>' | b'"' | b'\'');
    // As in `&#60;`.
    text.len() + 4 * text.as_bytes().iter().filter(|b| escaped(b)).count()
}
