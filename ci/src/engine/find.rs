//! Finds the Dagger engine that a run uses.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::choice::Choice;
use super::cli;
use super::embedded;
use super::runtime::{self, Runtime};
use super::session::Endpoint;
use super::version::{is_supported, unsupported};
use common::failure::{Failure, OrFail};
use common::progress::Progress;
use common::provision::{self, Consent};

/// How long the server at a URL may take to answer like an engine.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(crate) struct Engine {
    /// For messages and the report: `session`, the container runtime's name, `embedded`, or the engine's URL.
    pub name: String,
    pub endpoint: Endpoint,
}

impl Engine {
    /// Whether the engine uses the processors and the memory of this machine.
    #[must_use]
    pub(crate) fn is_on_this_machine(&self) -> bool {
        is_on_this_machine(&self.name)
    }
}

/// Whether the engine with this name uses the processors and the memory of this machine, as far as its name tells: an open session
/// may be one of any engine, and container runtimes outside of Linux have a machine of their own.
pub(crate) fn is_on_this_machine(name: &str) -> bool {
    let is_elsewhere = name == "session" || (name.contains("://") && !name.starts_with("unix://"));
    cfg!(target_os = "linux") && !is_elsewhere
}

/// Finds the engine that `choice` selects, and builds or starts it if necessary.
///
/// # Errors
/// When no engine is available (exit code 3); the hint lists the alternatives.
pub(crate) async fn find(
    choice: &Choice,
    consent: Consent<'_>,
    progress: &dyn Progress,
) -> Result<Engine, Failure> {
    match choice {
        Choice::Auto => {
            if let Some(engine) = open_session() {
                return Ok(engine);
            }
            if let Some(url) = runner_host() {
                return use_url(&url, progress).await;
            }
            match runtime::find_usable(progress).await {
                Ok(runtime) => use_runtime(runtime, progress).await,
                Err(why) => {
                    progress.notice(&format!("{why}: falling back to the embedded engine"));
                    use_embedded(consent, progress).await
                }
            }
        }
        Choice::Docker => {
            let runtime = runtime::find_usable(progress).await.map_err(|why| {
                Failure::environment(format!("no container runtime can run an engine: {why}"))
                    .hint(runtime::FIX)
            })?;
            use_runtime(runtime, progress).await
        }
        Choice::Embedded => use_embedded(consent, progress).await,
        Choice::Url(url) => use_url(url, progress).await,
    }
}

/// Whether `choice` may select the embedded engine while its programs are not built yet.
#[must_use]
pub(crate) fn may_build_engine(choice: &Choice) -> bool {
    match choice {
        Choice::Auto => from_environment().is_none() && !embedded::is_built(),
        Choice::Embedded => !embedded::is_built(),
        Choice::Docker | Choice::Url(_) => false,
    }
}

/// Whether this process runs in a session that another process has opened.
#[must_use]
pub(crate) fn is_in_session() -> bool {
    open_session().is_some()
}

/// The engine that the environment variables select, by name: an open session or a URL. It precedes anything on this machine.
#[must_use]
pub(crate) fn from_environment() -> Option<String> {
    open_session()
        .map(|engine| engine.name)
        .or_else(runner_host)
}

fn open_session() -> Option<Engine> {
    let port = std::env::var("DAGGER_SESSION_PORT").ok()?.parse().ok()?;
    let token = std::env::var("DAGGER_SESSION_TOKEN").ok()?;
    Some(Engine {
        name: "session".into(),
        endpoint: Endpoint::Session { port, token },
    })
}

fn runner_host() -> Option<String> {
    std::env::var("_EXPERIMENTAL_DAGGER_RUNNER_HOST")
        .ok()
        .filter(|url| !url.is_empty())
}

async fn use_runtime(runtime: Runtime, progress: &dyn Progress) -> Result<Engine, Failure> {
    Ok(Engine {
        name: runtime.name.to_owned(),
        endpoint: runtime.endpoint(progress).await?,
    })
}

async fn use_embedded(consent: Consent<'_>, progress: &dyn Progress) -> Result<Engine, Failure> {
    let running = embedded::up(consent, progress).await?;
    Ok(Engine {
        name: "embedded".into(),
        endpoint: Endpoint::Cli {
            cli: running.cli,
            runner_host: Some(running.runner_host),
            config_home: None,
            patience: Duration::from_secs(60),
        },
    })
}

/// Checks that an engine answers at `url`, as far as that is possible without Dagger's CLI.
///
/// # Errors
/// When no engine answers there, or the program that connects to it is missing (exit code 3).
pub(crate) async fn check_url(url: &str) -> Result<(), Failure> {
    let (scheme, place) = url.split_once("://").unwrap_or_default();
    let answered = match scheme {
        "unix" => tokio::time::timeout(ANSWER, speaks_http2(UnixStream::connect(place))).await,
        "tcp" => tokio::time::timeout(ANSWER, speaks_http2(TcpStream::connect(place))).await,
        "kube-pod" => return require_program(url, "kubectl"),
        "ssh" => return require_program(url, "ssh"),
        _ => return Ok(()),
    };
    let failure = match answered {
        Ok(Ok(true)) => return Ok(()),
        Ok(Ok(false)) => {
            Failure::environment(format!("the server at {url} is not a Dagger engine"))
        }
        Ok(Err(error)) => {
            Failure::environment(format!("no engine listens on {url}")).because(error)
        }
        Err(_) => Failure::environment(format!(
            "no engine answers on {url} within {} s",
            ANSWER.as_secs()
        )),
    };
    Err(failure.hint("Start that engine, or choose another with --engine."))
}

/// Whether the server answers HTTP/2 without an upgrade, as an engine does.
async fn speaks_http2<S: AsyncRead + AsyncWrite + Unpin>(
    connect: impl Future<Output = std::io::Result<S>>,
) -> std::io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut stream = connect.await?;
    let mut header = [0; 9];
    let exchange = async {
        stream.write_all(PREFACE).await?;
        stream.write_all(&EMPTY_SETTINGS).await?;
        stream.read_exact(&mut header).await
    };
    // Compares the type of the first frame; a server that closes the connection sends none.
    Ok(exchange.await.is_ok() && header[3] == EMPTY_SETTINGS[3])
}

/// Queries the engine's version, and checks that `ci` supports it. Dagger's CLI refuses only engines that are much older.
///
/// # Errors
/// When the query fails, or the minor version differs from that of the pinned engine (exit code 3).
pub(crate) async fn version(
    client: &dagger_sdk::DaggerConn,
    engine: &str,
) -> Result<String, Failure> {
    let version = client
        .version()
        .await
        .or_environment("cannot query the engine's version")?;
    let version = version.trim_start_matches('v');
    if is_supported(version) {
        Ok(version.to_owned())
    } else {
        Err(unsupported(engine, version))
    }
}

fn require_program(url: &str, program: &str) -> Result<(), Failure> {
    if provision::find_program(program).is_some() {
        return Ok(());
    }
    Err(
        Failure::environment(format!("{url} requires {program}, which is not on PATH")).hint(
            format!("Install {program}, or choose another engine with --engine."),
        ),
    )
}

async fn use_url(url: &str, progress: &dyn Progress) -> Result<Engine, Failure> {
    // The CLI would wait forever for an engine that does not answer.
    check_url(url).await?;
    Ok(Engine {
        name: url.to_owned(),
        endpoint: Endpoint::Cli {
            cli: cli::path(progress).await?,
            runner_host: Some(url.to_owned()),
            config_home: None,
            patience: Duration::from_secs(60),
        },
    })
}
