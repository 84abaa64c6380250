//! Which Dagger engine a run uses.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::choice::Choice;
use super::cli;
use super::embedded;
use super::runtime::{self, Runtime};
use super::session::Endpoint;
use common::failure::{Failure, OrFail};
use common::progress::Progress;
use common::provision::{self, Consent};

/// How long what listens on a URL may take to answer like an engine.
const ANSWER: Duration = Duration::from_secs(10);

/// An engine, found.
#[derive(Clone, Debug)]
pub struct Engine {
    /// What it is, for people and the report: `session`, the container runtime's name, `embedded`, or its URL.
    pub name: String,
    /// How it is reached.
    pub endpoint: Endpoint,
}

/// Finds the engine that `choice` asks for, and makes it where it has to be made.
///
/// # Errors
/// When there is none and none can be had (exit 3), with the choices that are left.
pub async fn find(
    choice: &Choice,
    consent: Consent<'_>,
    narrator: &dyn Progress,
) -> Result<Engine, Failure> {
    match choice {
        Choice::Auto => {
            if let Some(engine) = open_session() {
                return Ok(engine);
            }
            if let Some(url) = runner_host() {
                return at_url(&url, narrator).await;
            }
            match runtime::usable(narrator).await {
                Ok(runtime) => in_runtime(runtime, narrator).await,
                Err(why) => {
                    narrator.notice(&format!("{why}: taking the embedded engine"));
                    in_this_machine(consent, narrator).await
                }
            }
        }
        Choice::Docker => {
            let runtime = runtime::usable(narrator).await.map_err(|why| {
                Failure::environment(format!(
                    "there is no container runtime that can run an engine: {why}"
                ))
                .hint(runtime::REMEDY)
            })?;
            in_runtime(runtime, narrator).await
        }
        Choice::Embedded => in_this_machine(consent, narrator).await,
        Choice::Url(url) => at_url(url, narrator).await,
    }
}

/// Whether `choice` may come to an engine that this machine has to build first.
#[must_use]
pub fn builds_first(choice: &Choice) -> bool {
    match choice {
        Choice::Auto => named().is_none() && !embedded::is_built(),
        Choice::Embedded => !embedded::is_built(),
        Choice::Docker | Choice::Url(_) => false,
    }
}

/// The engine that the environment names before anything on this machine is looked at: an open session, or a URL.
#[must_use]
pub fn named() -> Option<String> {
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

async fn in_runtime(runtime: Runtime, narrator: &dyn Progress) -> Result<Engine, Failure> {
    Ok(Engine {
        name: runtime.name.to_owned(),
        endpoint: runtime.endpoint(narrator).await?,
    })
}

async fn in_this_machine(consent: Consent<'_>, narrator: &dyn Progress) -> Result<Engine, Failure> {
    let running = embedded::up(consent, narrator).await?;
    Ok(Engine {
        name: "embedded".into(),
        endpoint: Endpoint::Cli {
            cli: running.cli,
            runner_host: Some(running.runner_host),
            patience: Duration::from_secs(60),
        },
    })
}

/// Whether an engine answers at `url`, as far as that can be known at once; the rest is for the CLI to try.
///
/// # Errors
/// When nobody listens there, what listens is no engine, or the program is missing that would connect to it (exit 3).
pub async fn listens(url: &str) -> Result<(), Failure> {
    let (scheme, place) = url.split_once("://").unwrap_or_default();
    let answered = match scheme {
        "unix" => tokio::time::timeout(ANSWER, answers(UnixStream::connect(place))).await,
        "tcp" => tokio::time::timeout(ANSWER, answers(TcpStream::connect(place))).await,
        "kube-pod" => return need(url, "kubectl"),
        "ssh" => return need(url, "ssh"),
        _ => return Ok(()),
    };
    let failure = match answered {
        Ok(Ok(true)) => return Ok(()),
        Ok(Ok(false)) => Failure::environment(format!("what listens on {url} is no Dagger engine")),
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

/// Whether what is connected to speaks HTTP/2 at once, as an engine does.
async fn answers<S: AsyncRead + AsyncWrite + Unpin>(
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
    // The type of the first frame; one that hangs up has no frames.
    Ok(exchange.await.is_ok() && header[3] == EMPTY_SETTINGS[3])
}

/// The version that the engine says it has. The CLI refuses what is too old for it, and no more.
///
/// # Errors
/// When the engine does not say (exit 3).
pub async fn version(client: &dagger_sdk::DaggerConn) -> Result<String, Failure> {
    let version = client
        .version()
        .await
        .or_environment("the engine does not say its version")?;
    Ok(version.trim_start_matches('v').to_owned())
}

fn need(url: &str, program: &str) -> Result<(), Failure> {
    if provision::find_program(program).is_some() {
        return Ok(());
    }
    Err(Failure::environment(format!(
        "{url} is reached through {program}, which is not on the PATH"
    ))
    .hint(format!(
        "Install {program}, or choose another engine with --engine."
    )))
}

async fn at_url(url: &str, narrator: &dyn Progress) -> Result<Engine, Failure> {
    // The CLI would wait for one that never answers.
    listens(url).await?;
    Ok(Engine {
        name: url.to_owned(),
        endpoint: Endpoint::Cli {
            cli: cli::path(narrator).await?,
            runner_host: Some(url.to_owned()),
            patience: Duration::from_secs(60),
        },
    })
}
