//! What the environment says.

use std::ffi::OsString;

use super::Settings;
use crate::Error;

impl Settings {
    /// The settings that `variable` gives; one that is not set or empty has its default.
    ///
    /// # Errors
    /// Where a variable holds what it cannot mean.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let setting = |name, expected, default: &str| match variable(name) {
            Some(value) if !value.is_empty() => {
                value.into_string().map_err(|value| Error::Setting {
                    name,
                    value: value.to_string_lossy().into_owned(),
                    expected,
                })
            }
            _ => Ok(default.to_owned()),
        };
        let mut settings = Self {
            environment: setting("APP_ENV", "UTF-8 text", "local")?,
            log: parse(
                setting,
                "RUST_LOG",
                "a level, or a list such as `info,actix_server=warn`",
                "info",
            )?,
            ..Self::default()
        };
        settings
            .address
            .set_port(parse(setting, "PORT", "a number from 0 to 65535", "8000")?);
        Ok(settings)
    }
}

fn parse<T: std::str::FromStr>(
    setting: impl Fn(&'static str, &'static str, &str) -> Result<String, Error>,
    name: &'static str,
    expected: &'static str,
    default: &str,
) -> Result<T, Error> {
    let value = setting(name, expected, default)?;
    value.parse().map_err(|_| Error::Setting {
        name,
        value,
        expected,
    })
}
#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, Error> {
        Settings::read(|name| {
            let (_, value) = variables.iter().find(|(key, _)| *key == name)?;
            Some(value.into())
        })
    }

    #[test]
    fn without_variables_the_defaults_hold() {
        for variables in [&[][..], &[("PORT", ""), ("APP_ENV", ""), ("RUST_LOG", "")]] {
            let settings = read(variables).unwrap();
            assert_eq!(settings.address.to_string(), "0.0.0.0:8000");
            assert_eq!(settings.environment, "local");
            assert_eq!(settings.log.to_string(), "info");
        }
    }

    #[test]
    fn variables_win_over_the_defaults() {
        let settings = read(&[
            ("PORT", "80"),
            ("APP_ENV", "prod"),
            ("RUST_LOG", "warn,api=debug"),
        ])
        .unwrap();
        assert_eq!(settings.address.port(), 80);
        assert_eq!(settings.environment, "prod");
        assert!(settings.log.would_enable("api", &tracing::Level::DEBUG));
        assert!(!settings.log.would_enable("other", &tracing::Level::INFO));
    }

    #[test]
    fn a_wrong_variable_is_named_with_its_value_and_what_was_expected() {
        for port in ["65536", "-1", "http", "80 ", "8000/tcp"] {
            let error = read(&[("PORT", port)]).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("PORT={port:?}: expected a number from 0 to 65535")
            );
            assert_eq!(error.exit_code(), 2);
        }
        let error = read(&[("RUST_LOG", "api=loud")]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("RUST_LOG=\"api=loud\": expected a level"),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_text_is_an_error() {
        use std::os::unix::ffi::OsStringExt;

        let error = Settings::read(|name| {
            (name == "APP_ENV").then(|| OsString::from_vec(vec![b'a', 0xff]))
        })
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "APP_ENV=\"a\u{fffd}\": expected UTF-8 text"
        );
    }
}
