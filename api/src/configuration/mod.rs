//! The settings, from the environment and one TOML file, checked before anything is started.

mod checks;
mod environment;
mod file;
mod problem;
mod values;
mod variables;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use tracing_subscriber::filter::Targets;

pub use problem::{Place, Problem, Problems};
pub use variables::Variables;

use self::checks::Rhythm;
use crate::{
    checks::{Check, Target, redis},
    secret::SecretUrl,
};

/// What the service needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen; port 0 takes any free one.
    pub address: SocketAddr,
    /// The name of the environment that the service runs in.
    pub environment: String,
    /// What is logged.
    pub log: Targets,
    /// The title of the page.
    pub title: String,
    /// The Redis that holds the counter of `GET /hits`; it is checked, too.
    pub redis: Option<SecretUrl>,
    /// What is checked.
    pub checks: Vec<Check>,
    /// Where the history is kept; in memory where there is none.
    pub data: Option<PathBuf>,
    /// How many connections at once; as many as the memory takes where there is none.
    pub connections: Option<usize>,
    /// How many event streams at once.
    pub streams: usize,
    /// How long the service goes on after SIGTERM, so that whoever balances load hears of it.
    pub drain: Duration,
    /// What the image says of itself.
    pub build: Build,
}

/// Which build this is, as the image's environment says: the compiler does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// The commit: `APP_COMMIT`.
    pub commit: Option<String>,
    /// The commit's time in RFC 3339: `APP_BUILD_TIME`.
    pub time: Option<String>,
}

impl Settings {
    /// The settings of the file at `path`, where there is one, and of the environment, which wins.
    ///
    /// # Errors
    /// All that is wrong with both.
    pub fn load(path: Option<&Path>, variables: Variables<'_>) -> Result<Self, Problems> {
        let Some(path) = path else {
            return Self::build(None, variables, Vec::new());
        };
        match file::text(path) {
            Ok(text) => Self::parse(&path.display().to_string(), &text, variables),
            Err(problem) => Self::build(None, variables, vec![problem]),
        }
    }

    /// The settings of a file that is called `name` and holds `text`, and of the environment, which wins.
    ///
    /// # Errors
    /// All that is wrong with both.
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
            let (defaults, wrong) = file::read(&mut settings, name, text, variables);
            problems.extend(wrong);
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

    /// The Redis of `/hits` is a dependency like any other.
    fn check_redis(&mut self, defaults: &Rhythm) {
        const NAME: &str = "redis";
        if let Some(url) = self.redis.clone()
            && !self.checks.iter().any(|check| check.name == NAME)
        {
            let target = Target::Redis(redis::Target { url });
            let mut check = Rhythm::default().check(defaults, NAME.into(), target);
            check.critical = false;
            self.checks.push(check);
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::UNSPECIFIED, 8000).into(),
            environment: "local".into(),
            log: Targets::new().with_default(tracing::Level::INFO),
            title: "Infrastructure Lab".into(),
            redis: None,
            checks: Vec::new(),
            data: None,
            connections: None,
            streams: 100,
            drain: Duration::from_secs(2),
            build: Build::default(),
        }
    }
}
