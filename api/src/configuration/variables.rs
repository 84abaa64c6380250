//! Environment variables, and their references `${NAME}` in the strings of the file.

use std::{collections::BTreeSet, ffi::OsString};

use subst::{Template, VariableMap, error::ExpandError};

/// The text that replaces the value of a variable wherever it is shown.
const MASK: &str = "***";

/// Returns the value of an environment variable.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// A string of the file after its variables are replaced.
#[derive(Debug)]
pub(super) struct Text {
    /// The string with the values of the variables.
    pub value: String,
    /// The string with the values masked; `None` if it has no variables.
    pub masked: Option<String>,
}

/// Replaces the variables in `text`; a text without `${` is returned unchanged.
///
/// # Errors
/// Returns a description of the problem, and of the expected text.
pub(super) fn replace(text: &str, variables: Variables<'_>) -> Result<Text, (String, String)> {
    if !text.contains("${") {
        return Ok(Text {
            value: text.to_owned(),
            masked: None,
        });
    }
    let template = Template::from_str(text).map_err(|error| {
        (
            // The message quotes at most one character, and so no secret.
            format!("has an invalid variable reference, {error}"),
            r"${NAME} or ${NAME:default}; use \${ for a literal ${ and \\ for a literal backslash"
                .into(),
        )
    })?;
    let mut environment = Environment {
        variables,
        missing: BTreeSet::new(),
    };
    // Each iteration finds one missing variable, until all are known.
    let value = loop {
        match template.expand(&environment) {
            Ok(value) => break value,
            Err(ExpandError::NoSuchVariable(error)) => {
                environment.missing.insert(error.name);
            }
        }
    };
    if environment.missing.is_empty() {
        return Ok(Text {
            value,
            masked: template.expand(&Masked).ok(),
        });
    }
    let missing: Vec<_> = environment.missing.into_iter().collect();
    Err((
        "refers to variables that are not set or not UTF-8 text".into(),
        format!("{} in the environment", missing.join(" and ")),
    ))
}

/// The environment, which notes the names of missing variables.
struct Environment<'a> {
    variables: Variables<'a>,
    missing: BTreeSet<String>,
}

impl<'a> VariableMap<'a> for Environment<'_> {
    type Value = String;

    fn get(&'a self, name: &str) -> Option<String> {
        if self.missing.contains(name) {
            return Some(String::new());
        }
        (self.variables)(name)?.into_string().ok()
    }
}

/// Replaces every variable with the mask.
struct Masked;

impl VariableMap<'_> for Masked {
    type Value = &'static str;

    fn get(&self, _: &str) -> Option<&'static str> {
        Some(MASK)
    }
}
