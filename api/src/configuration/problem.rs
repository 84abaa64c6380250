//! What is wrong with the settings, and where.

use std::fmt;

/// One thing that is wrong; nothing secret is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is in the file; a variable of the environment has no place.
    pub place: Option<Place>,
    /// What is wrong, and what was expected.
    pub what: String,
}

/// A place in the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1 on, and the character in it, from 1 on; a file that cannot be read has neither.
    pub position: Option<(usize, usize)>,
}

impl Place {
    /// The place of byte `offset` of `text`.
    pub(super) fn of(file: &str, text: &str, offset: usize) -> Self {
        // What is missing at the end is missed behind the last word, not on a line that is not there.
        let offset = text.floor_char_boundary(offset.min(text.trim_end().len()));
        let before = text.get(..offset).unwrap_or_default();
        let line = before.rfind('\n').map_or(0, |end| end + 1);
        Self {
            file: file.to_owned(),
            position: Some((
                before.matches('\n').count() + 1,
                before.get(line..).unwrap_or_default().chars().count() + 1,
            )),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { file, position }) = &self.place {
            write!(formatter, "{file}:")?;
            if let Some((line, column)) = position {
                write!(formatter, "{line}:{column}:")?;
            }
            formatter.write_str(" ")?;
        }
        // A key may hold a line break, and a problem is one line.
        formatter.write_str(&self.what.replace(char::is_control, " "))
    }
}

/// All that is wrong with the settings: those of the file in its order, then those of the environment; a line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            problem.fmt(formatter)?;
        }
        Ok(())
    }
}
