//! The environment's variables, and `${NAME}` in the file's strings.

use std::{collections::BTreeSet, ffi::OsString};

use subst::{Template, VariableMap, error::ExpandError};

/// What stands for a variable's value where it is shown.
const MASK: &str = "***";

/// The environment's variables: what gives the value of one by its name.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// A string of the file, with its variables replaced.
#[derive(Debug)]
pub struct Text {
    /// The string itself.
    pub value: String,
    /// The string with every variable's value masked, where it has any.
    pub masked: Option<String>,
}

/// `text` with its variables replaced; a text without `${` is left as it is.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub fn replace(text: &str, variables: Variables<'_>) -> Result<Text, (String, String)> {
    if !text.contains("${") {
        return Ok(Text {
            value: text.to_owned(),
            masked: None,
        });
    }
    let template = Template::from_str(text).map_err(|error| {
        (
            // Its words quote at most one character.
            format!("has a variable that is not well-formed, {error}"),
            r"${NAME} or ${NAME:default}, \${ for ${ itself, and \\ for a backslash beside them"
                .into(),
        )
    })?;
    let mut environment = Environment {
        variables,
        missing: BTreeSet::new(),
    };
    // Each turn finds one that is not set, until all are known.
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
        "refers to what is not set, or not text".into(),
        format!("{} in the environment", missing.join(" and ")),
    ))
}

/// The environment, with those that are not set and were asked for.
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

/// Has every variable, and says nothing of it.
struct Masked;

impl VariableMap<'_> for Masked {
    type Value = &'static str;

    fn get(&self, _: &str) -> Option<&'static str> {
        Some(MASK)
    }
}
