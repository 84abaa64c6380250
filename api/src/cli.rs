//! The command line.

use std::{
    ffi::OsString,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{
    Args, Parser, Subcommand,
    builder::{OsStringValueParser, TypedValueParser as _},
};

use crate::{configuration::Source, error::Error, startup};

/// The path that `api healthcheck` requests.
const HEALTH: &str = "/health";

/// The timeout of `api healthcheck`, shorter than usual timeouts of container probes.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Probe the dependencies of a service periodically, and show their state as a page, as JSON and as metrics.
#[derive(Debug, Parser)]
#[command(name = "api", version, args_conflicts_with_subcommands = true, after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    configuration: Configuration,
}

const AFTER: &str = "\
Exit codes: 0 success; 1 the port is in use, the server failed, or the service is not healthy; 2 invalid usage or settings; \
130 a second signal during shutdown.

Environment variables that override the file: HOST, PORT, APP_ENV, RUST_LOG, REDIS_HOST, REDIS_PORT and REDIS_PASSWORD.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM, and reload the configuration after SIGHUP (the default)
    Serve(Configuration),
    /// Validate a configuration file and report every problem in it
    CheckConfig {
        /// The TOML configuration file
        file: PathBuf,
    },
    /// Request /health from a running service with the same configuration, for images without a shell
    Healthcheck(Configuration),
}

#[derive(Debug, Args)]
struct Configuration {
    /// The TOML configuration file [default: none; only defaults and environment variables apply]
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
    fn source(self) -> Source {
        // An empty variable counts as not set, like all other variables.
        Source::new(self.file.filter(|file| !file.as_os_str().is_empty()))
    }
}

/// Runs the command line `arguments`; the first one is the name of the program.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // If stderr is closed, the exit code is the only report.
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
            Command::Serve(configuration) => startup::run(configuration.source()),
            Command::CheckConfig { file } => {
                let settings = Source::new(Some(file.clone())).load()?;
                writeln!(
                    io::stdout(),
                    "{} is valid, checks: {}",
                    file.display(),
                    settings.checks.len()
                )
                .map_err(Error::Output)
            }
            Command::Healthcheck(configuration) => match configuration.source().load() {
                Ok(settings) => check_health(settings.address),
                Err(problems) => Err(Error::Unhealthy(problems.to_string().replace('\n', "; "))),
            },
        }
    }
}

/// Requests `/health` from the service that listens on `address` on this machine.
fn check_health(mut address: SocketAddr) -> Result<(), Error> {
    if address.ip().is_unspecified() {
        // `[::]` includes IPv4, also on a system without IPv6.
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let unhealthy = |reason: &str| Error::Unhealthy(format!("http://{address}{HEALTH}: {reason}"));
    let response = status_line(address).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => unhealthy("no response in time"),
        _ => unhealthy(&error.to_string()),
    })?;
    let status = response
        .strip_prefix("HTTP/")
        .and_then(|rest| rest.split_ascii_whitespace().nth(1));
    match status {
        Some("200") => Ok(()),
        Some(status) => Err(unhealthy(&format!("status {status}"))),
        None => Err(unhealthy("the response is not HTTP")),
    }
}

/// Reads the response up to the status code. Uses only the standard library, so that the command starts quickly.
fn status_line(address: SocketAddr) -> io::Result<String> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, HEALTHCHECK_TIMEOUT)?;
    stream.set_write_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    let request = format!(
        "GET {HEALTH} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: api-healthcheck\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut line = [0; "HTTP/1.1 200 ".len()];
    let mut read = 0;
    while let Some(rest) = line.get_mut(read..).filter(|rest| !rest.is_empty()) {
        // The timeout also applies to a response that arrives byte by byte.
        let left = HEALTHCHECK_TIMEOUT.saturating_sub(start.elapsed());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(rest)? {
            0 => break,
            count => read += count,
        }
        if start.elapsed() >= HEALTHCHECK_TIMEOUT {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(String::from_utf8_lossy(line.get(..read).unwrap_or_default()).into_owned())
}
