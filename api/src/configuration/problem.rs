//! Problems of the settings, with their positions in the file.

use std::fmt;

/// One problem of the settings; it contains no secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The position in the file; `None` for an environment variable.
    pub place: Option<Place>,
    /// The message, which describes the problem and the expected value.
    pub what: String,
}

/// A position in the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as named on the command line or in `API_CONFIG`.
    pub file: String,
    /// The line and the column in characters, both starting at 1; `None` if the file cannot be read.
    pub position: Option<(usize, usize)>,
}

impl Place {
    /// The position of byte `offset` of `text`.
    pub(super) fn of(file: &str, text: &str, offset: usize) -> Self {
        // An error at the end of the file is reported after the last word.
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
        // A key may contain a line break, but a problem is always one line.
        formatter.write_str(&self.what.replace(char::is_control, " "))
    }
}

/// All problems of the settings, one per line: first those of the file in their order, then those of the environment.
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
