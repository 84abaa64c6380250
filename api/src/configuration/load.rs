//! Loads the settings from the file and the environment.

use std::path::Path;

use super::{
    checks::Defaults,
    environment, file,
    problem::{Problem, Problems},
    settings::Settings,
    variables::Variables,
};

impl Settings {
    /// Loads the settings from the file at `path`, if there is one, and from the environment, which overrides the file.
    ///
    /// # Errors
    /// Returns every problem of the file and of the environment.
    pub fn load(path: Option<&Path>, variables: Variables<'_>) -> Result<Self, Problems> {
        let Some(path) = path else {
            return Self::build(None, variables, Vec::new());
        };
        match file::text(path) {
            Ok(text) => Self::parse(&path.display().to_string(), &text, variables),
            Err(problem) => Self::build(None, variables, vec![problem]),
        }
    }

    /// Loads the settings from `text`, the content of a file called `name`, and from the environment, which overrides the file.
    ///
    /// # Errors
    /// Returns every problem of the text and of the environment.
    pub fn parse(name: &str, text: &str, variables: Variables<'_>) -> Result<Self, Problems> {
        Self::build(Some((name, text)), variables, Vec::new())
    }

    fn build(
        file: Option<(&str, &str)>,
        variables: Variables<'_>,
        mut problems: Vec<Problem>,
    ) -> Result<Self, Problems> {
        let mut settings = Self::default();
        let defaults = file.map(|(name, text)| {
            let (defaults, found) = file::read(&mut settings, name, text, variables);
            problems.extend(found);
            defaults
        });
        problems.extend(environment::read(&mut settings, variables));
        settings.check_redis(&defaults.unwrap_or_default());
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(Problems(problems))
        }
    }

    /// Adds a check of the Redis of `/hits`, which is a dependency like any other, unless a check called `redis` is configured.
    fn check_redis(&mut self, defaults: &Defaults) {
        const NAME: &str = "redis";
        if let Some(url) = self.redis.clone()
            && !self.checks.iter().any(|check| check.name == NAME)
        {
            self.checks.push(defaults.redis(NAME.into(), url));
        }
    }
}
