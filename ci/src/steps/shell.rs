//! Starts a shell where a step runs: in the same container, before the step's command. For `smoke`, beside the started image.
//!
//! Dagger's own `Container.terminal` needs its CLI's full-screen interface: a session of an SDK refuses it. So the shell is a
//! service whose port the session tunnels to this machine. Perl and script(1), which give it a terminal, are part of every
//! Debian.

use std::collections::BTreeMap;

use dagger_sdk::{Container, ContainerAsServiceOpts, Service, ServiceStopOpts};
use secrecy::{ExposeSecret, SecretString};

use super::build::{self, Image};
use super::services::Services;
use super::smoke;
use super::workspace::{self, Hint, Work};
use crate::engine::graphql::EngineError;
use crate::model::step::Step;
use crate::run::execution::StepContext;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::{Failure, OrFail};

/// The steps in which a shell can be opened: those on the toolchain's image, and `smoke`. The images of the other steps contain
/// only one program.
pub const STEPS: [Step; 6] = [
    Step::Test,
    Step::Fmt,
    Step::Lint,
    Step::Custom,
    Step::Build,
    Step::Smoke,
];

/// The port of the shell in its container.
const PORT: isize = 2222;
/// The name of the started image beside a shell for `smoke`.
const SERVICE: &str = "service";

/// Runs a shell for the first client that knows the token, and sets its terminal's size for later ones. A client begins with the
/// line `TOKEN ROWS COLUMNS TERM`. The container ends with the shell.
const SERVER: &str = r#"
use strict;
use IO::Socket::INET;
my $shell;
$SIG{CHLD} = sub { exit 0 if defined $shell && waitpid($shell, 1) == $shell };
my $listener = IO::Socket::INET->new(LocalPort => $ENV{CI_SHELL_PORT}, Listen => 8, ReuseAddr => 1) or die "cannot listen: $!\n";
while (1) {
    my $client = $listener->accept or next;
    my ($line, $byte) = ("", "");
    while (length $line < 200 && sysread($client, $byte, 1) && $byte ne "\n") { $line .= $byte }
    my ($token, $rows, $columns, $term) = split / /, $line;
    next unless defined $term && $token eq $ENV{CI_SHELL_TOKEN} && "$rows$columns" =~ /^\d+$/ && $term =~ /^[\w.+-]+$/;
    if (defined $shell) {
        system "stty -F \"\$(cat /tmp/.ci-tty)\" rows $rows columns $columns";
        next;
    }
    $shell = fork;
    die "cannot fork: $!\n" unless defined $shell;
    if ($shell) { close $client; next }
    open STDIN, "<&", $client;
    open STDOUT, ">&", $client;
    open STDERR, ">&", $client;
    $ENV{TERM} = $term;
    my $start = "tty > /tmp/.ci-tty; stty rows $rows columns $columns; printf '%s\n' \"\$CI_SHELL_BANNER\"; "
        . "unset CI_SHELL_TOKEN CI_SHELL_PORT CI_SHELL_SERVER CI_SHELL_BANNER CI_LAST_RUN; exec bash";
    exec "script", "--quiet", "--return", "--flush", "--echo", "always", "--command", $start, "/dev/null";
}
"#;

/// Starts the server. After the synchronization of the sources, other runs can use the volume again.
const START: &str = r#"
exec 9>&-
if [ "$(cat /work/last 2>/dev/null || echo 0)" -gt "${CI_LAST_RUN:-9999999999}" ]; then
  CI_SHELL_BANNER="$CI_SHELL_BANNER
Another run has used the volume /work since the last run of this report directory."
  export CI_SHELL_BANNER
fi
exec perl -e "$CI_SHELL_SERVER"
"#;

/// A shell that waits for its client.
pub struct Shell {
    service: Service,
    tunnel: Service,
    /// The port on this machine.
    port: u16,
    token: SecretString,
}

impl Shell {
    /// Starts a shell in the container of a step on the toolchain's image. `last_run` is when the step ended last, in seconds since
    /// the epoch, if it is known.
    ///
    /// # Errors
    /// When the container or a backing service does not start (exit code 3).
    pub async fn of<K: Kind>(
        step: &StepContext<'_, K>,
        source: &Source<'_>,
        last_run: Option<i64>,
    ) -> Result<Self, Failure> {
        let settings = &step.run.settings;
        let services = Services::of(step).await?;
        let (env, program) = match step.step {
            Step::Test => (settings.test_env(), None),
            Step::Lint => (settings.cargo.env.clone(), None),
            Step::Build => (
                build::env(settings, &step.run.platforms.image)?,
                Some(build::auditable(step).await?),
            ),
            _ => (BTreeMap::new(), None),
        };
        let work = Work {
            script: START,
            env,
            services: Some(&services),
            program,
            writes_out: false,
            failed: "",
            hint: Hint::Text(""),
        };
        let mut container = workspace::prepare(step, source, &work).await?;
        if let Some(time) = last_run {
            container = container.with_env_variable("CI_LAST_RUN", time.to_string());
        }
        let banner = format!(
            "This is the container of step {}, before its command. Leave it with `exit`.",
            step.step
        );
        let command = workspace::command(step, &work);
        Self::start(step, &container, &command, &banner).await
    }

    /// Starts the image, and a shell in a container of the toolchain's image beside it.
    ///
    /// # Errors
    /// When the image, a backing service or the container does not start (exit code 3).
    pub async fn beside<K: Kind>(
        step: &StepContext<'_, K>,
        (source, image): (&Source<'_>, &Image<'_, '_, K>),
    ) -> Result<Self, Failure> {
        let settings = &step.run.settings;
        let services = Services::of(step).await?;
        let started = smoke::service(step, (source, image), &services).await?;
        let container = workspace::bare_toolchain(step, None)
            .await?
            .with_service_binding(SERVICE, started);
        let banner = format!(
            "The image of this commit runs beside this container: curl http://{SERVICE}:{}{}\nLeave it with `exit`.",
            settings.service.port, settings.service.health
        );
        let command = ["perl", "-e", SERVER].map(ToOwned::to_owned);
        Self::start(step, &services.bind(&container), &command, &banner).await
    }

    async fn start<K: Kind>(
        step: &StepContext<'_, K>,
        container: &Container,
        command: &[String],
        banner: &str,
    ) -> Result<Self, Failure> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).or_environment("cannot generate a random token")?;
        let token = SecretString::from(hex::encode(random));
        let service = container
            .with_env_variable("CI_SHELL_PORT", PORT.to_string())
            .with_env_variable("CI_SHELL_TOKEN", token.expose_secret())
            .with_env_variable("CI_SHELL_SERVER", SERVER)
            .with_env_variable("CI_SHELL_BANNER", banner)
            .with_exposed_port(PORT)
            .as_service_opts(ContainerAsServiceOpts {
                args: Some(command.iter().map(String::as_str).collect()),
                expand: None,
                experimental_privileged_nesting: None,
                insecure_root_capabilities: None,
                no_init: None,
                use_entrypoint: None,
            });
        let failed = |error| match EngineError::from(error) {
            EngineError::Exec { output, .. } => {
                Failure::environment("cannot start the shell").output(output)
            }
            other => other.into_environment("cannot start the shell"),
        };
        let id = service.id().await.map_err(failed)?;
        let tunnel = step.client().host().tunnel(id);
        service.start().await.map_err(failed)?;
        tunnel.start().await.map_err(failed)?;
        let address = tunnel.endpoint().await.map_err(failed)?;
        let port = address.rsplit(':').next().unwrap_or(&address);
        Ok(Self {
            service,
            tunnel,
            port: port
                .parse()
                .or_environment(format!("the engine's tunnel has no port: {address}"))?,
            token,
        })
    }

    /// The port of the shell on this machine.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a client has to know.
    #[must_use]
    pub fn token(&self) -> &SecretString {
        &self.token
    }

    /// Stops the container. Whatever remains ends with the session.
    pub async fn close(self) {
        let kill = || ServiceStopOpts { kill: Some(true) };
        for service in [&self.tunnel, &self.service] {
            // Stopping fails if the shell has ended.
            if let Err(error) = service.stop_opts(kill()).await {
                tracing::debug!("cannot stop the shell: {error}");
            }
        }
    }
}
