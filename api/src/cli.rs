//! The command line.

use std::{
    ffi::OsString,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{
    Args, Parser, Subcommand,
    builder::{OsStringValueParser, TypedValueParser as _},
};

use crate::{
    configuration::{Problems, Settings},
    error::Error,
    startup,
};

/// What `api healthcheck` asks for.
const HEALTH: &str = "/health";

/// How long `api healthcheck` waits: less than the time limit of a container's probe has to be.
const HEALTHCHECK: Duration = Duration::from_secs(3);

/// Asks what a service depends on, again and again, and says how it is: as a page, as JSON, as metrics.
#[derive(Debug, Parser)]
#[command(name = "api", version, args_conflicts_with_subcommands = true, after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    configuration: Configuration,
}

const AFTER: &str = "\
Exit codes: 0 it ended as it should; 1 the port is taken, the server failed, or it is not healthy; 2 wrong usage or settings, \
each said with its place.

The environment wins over the file: PORT, APP_ENV, RUST_LOG, REDIS_HOST, REDIS_PORT and REDIS_PASSWORD.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM (the default)
    Serve(Configuration),
    /// Say all that is wrong with a configuration, or how many checks it has
    CheckConfig {
        /// The configuration, TOML
        file: PathBuf,
    },
    /// Ask the service of the same configuration for its health: a probe for images without a shell
    Healthcheck(Configuration),
}

#[derive(Debug, Args)]
struct Configuration {
    /// The configuration, TOML [default: none, all is as by default and the environment says]
    #[arg(
        long = "config",
        env = "API_CONFIG",
        hide_env_values = true,
        value_name = "FILE",
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    file: Option<PathBuf>,
}

impl Configuration {
    fn load(&self) -> Result<Settings, Problems> {
        // As with all variables, empty is as not set.
        load(
            self.file
                .as_deref()
                .filter(|file| !file.as_os_str().is_empty()),
        )
    }
}

fn load(file: Option<&Path>) -> Result<Settings, Problems> {
    Settings::load(file, &|name| std::env::var_os(name))
}

/// Does what `arguments` say, the first of which is the program's name.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell when stderr is closed; the exit code still says it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

impl Cli {
    fn run(self) -> Result<(), Error> {
        match self.command.unwrap_or(Command::Serve(self.configuration)) {
            Command::Serve(configuration) => startup::run(configuration.load()?),
            Command::CheckConfig { file } => {
                let settings = load(Some(&file))?;
                writeln!(
                    io::stdout(),
                    "{} is right, checks: {}",
                    file.display(),
                    settings.checks.len()
                )
                .map_err(Error::Output)
            }
            Command::Healthcheck(configuration) => match configuration.load() {
                Ok(settings) => ask_health(settings.address),
                Err(problems) => Err(Error::Unhealthy(problems.to_string().replace('\n', "; "))),
            },
        }
    }
}

/// Asks the service that listens on `address`, on this machine, for its health.
fn ask_health(mut address: SocketAddr) -> Result<(), Error> {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let unhealthy = |why: &str| Error::Unhealthy(format!("http://{address}{HEALTH}: {why}"));
    let answer = status_line(address).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => unhealthy("no answer in time"),
        _ => unhealthy(&error.to_string()),
    })?;
    let status = answer
        .strip_prefix("HTTP/")
        .and_then(|answer| answer.split_ascii_whitespace().nth(1));
    match status {
        Some("200") => Ok(()),
        Some(status) => Err(unhealthy(&format!("status {status}"))),
        None => Err(unhealthy("an answer that is not HTTP")),
    }
}

/// The beginning of the answer, up to the status code. The standard library is enough, and starts in no time.
fn status_line(address: SocketAddr) -> io::Result<String> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, HEALTHCHECK)?;
    stream.set_write_timeout(Some(HEALTHCHECK))?;
    let request = format!(
        "GET {HEALTH} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: api-healthcheck\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut line = [0; "HTTP/1.1 200 ".len()];
    let mut read = 0;
    while let Some(rest) = line.get_mut(read..).filter(|rest| !rest.is_empty()) {
        // Also one that trickles is waited for no longer.
        let left = HEALTHCHECK.saturating_sub(start.elapsed());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(rest)? {
            0 => break,
            count => read += count,
        }
        if start.elapsed() >= HEALTHCHECK {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(String::from_utf8_lossy(line.get(..read).unwrap_or_default()).into_owned())
}
