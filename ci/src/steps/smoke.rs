//! Starts the image and polls its health endpoint.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use dagger_sdk::{
    Container, ContainerAsServiceOpts, ContainerWithExposedPortOpts, File,
    Service as EngineService, ServiceStopOpts,
};
use generativity::Id;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::build::Image;
use super::environment::with_env;
use super::listening;
use super::missing;
use super::services::Services;
use super::setup;
use crate::engine::graphql::EngineError;
use crate::engine::http::on_loopback;
use crate::model::cause::{Cause, CauseKind};
use crate::run::execution::StepContext;
use crate::run::toolbox;
use crate::settings::Settings;
use crate::settings::tables::{Check, Service};
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::{Failure, OrFail};

/// The interval between the first two requests.
const FIRST_INTERVAL: Duration = Duration::from_millis(25);
/// The time limit of one request.
const TRY_LIMIT: Duration = Duration::from_secs(2);
/// A connection that is open for this long was accepted by the service.
const SETTLED: Duration = Duration::from_millis(500);

/// How many of the service's last lines are part of the cause of a failure.
const TAIL: usize = 20;

/// Evidence that the health endpoint of this image answered 200.
#[derive(Debug)]
pub struct Smoked<'img, K> {
    _image: Id<'img>,
    _kind: PhantomData<K>,
}

/// Starts the image and polls its health endpoint. The result is never cached.
///
/// # Errors
/// When no request is answered with 200, with the container's output (exit code 1).
pub async fn run<'img, K: Kind>(
    step: &StepContext<'_, K>,
    (source, image): (&Source<'_>, &Image<'_, 'img, K>),
) -> Result<Smoked<'img, K>, Failure> {
    let start = async |archive| try_out(step, source, image, archive).await;
    image.uploaded(step, start).await
}

async fn try_out<'img, K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    image: &Image<'_, 'img, K>,
    archive: File,
) -> Result<Smoked<'img, K>, Failure> {
    let client = step.client();
    let settings = &step.run.settings;
    let services = Services::of(step).await?;
    let container = container(step, archive, &services);
    let service = as_service(step, &container);
    let engine = |error| EngineError::from(error).into_environment("cannot start the image");
    let tunnel = client.host().tunnel(service.id().await.map_err(engine)?);
    setup::run(step, source, &services, &container).await?;
    let answered = async {
        service
            .start()
            .await
            .map_err(|error| match EngineError::from(error) {
                EngineError::Exec { exit_code, output } => {
                    Failure::gate(format!("the service exited with code {exit_code}"))
                        .output(output)
                }
                other => other.into_environment("cannot start the image"),
            })?;
        let started = Instant::now();
        tunnel.start().await.map_err(engine)?;
        let address = tunnel.endpoint().await.map_err(engine)?;
        // The tunnel listens on this machine, but the endpoint may contain a host name.
        let port = address.rsplit(':').next().unwrap_or(&address);
        tokio::select! {
            answered = poll(port, settings, started) => answered,
            failure = wait_for_exit(step) => Err(failure),
        }
    };
    let answered = services.run_with(answered).await;
    // After success, the end of the session stops the service. A task that still queried the engine then would panic in the SDK.
    if let Err(failure) = answered {
        stop(tunnel, service).await;
        let log = step.log(Duration::from_secs(3)).await;
        let output = if log.trim().is_empty() {
            "(no output from the container)".to_owned()
        } else {
            log
        };
        let Service { health, port, .. } = &settings.service;
        let mut hint = missing::at_start(&output);
        if hint.is_none() && failure.message.ends_with(&no_connection(*port)) {
            hint = listening::advice(step, image, &container, *port).await;
        }
        let hint = hint.unwrap_or_else(|| match settings.smoke.check {
            Check::Http => format!(
                "Make the service answer GET {health} on port {port} with {} within {:?}, or change the table [smoke] in ci.toml. \
                 Arguments of the service are image.args.",
                settings.smoke.statuses(),
                settings.smoke.within
            ),
            Check::Tcp => format!(
                "Make the service accept connections to port {port} within {:?}. Arguments of the service are image.args in ci.toml.",
                settings.smoke.within
            ),
        });
        let lines: Vec<_> = output.trim_end().lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        step.add_cause(Cause {
            kind: CauseKind::Service,
            title: failure.to_string(),
            location: None,
            detail: tail.join("\n"),
        });
        return Err(failure.output(output).hint(hint));
    }
    step.set_digest(&image.info().digest);
    Ok(Smoked {
        _image: image.id(),
        _kind: PhantomData,
    })
}

async fn stop(tunnel: EngineService, service: EngineService) {
    let kill = || ServiceStopOpts { kill: Some(true) };
    // Stopping fails if the service has exited.
    let stopped = tunnel
        .stop_opts(kill())
        .await
        .and(service.stop_opts(kill()).await);
    if let Err(error) = stopped {
        tracing::debug!("cannot stop the service: {error}");
    }
}

/// Waits until the service exits. Only the engine's telemetry reports that.
async fn wait_for_exit<K: Kind>(step: &StepContext<'_, K>) -> Failure {
    let settings = &step.run.settings;
    let mut command = format!("/{}", settings.service.binary);
    for argument in &settings.image.args {
        command += " ";
        command += argument;
    }
    loop {
        if let Some(how) = step.exit_message(&command) {
            let code = how.strip_prefix("exit code: ").unwrap_or(&how);
            let code = if code.is_empty() { "0" } else { code };
            return Failure::gate(format!("the service exited with code {code}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The image as a service that has not been started, with access to the backing services.
///
/// # Errors
/// When the image cannot be uploaded to the engine (exit code 3).
pub(super) async fn service<K: Kind>(
    step: &StepContext<'_, K>,
    (source, image): (&Source<'_>, &Image<'_, '_, K>),
    services: &Services,
) -> Result<EngineService, Failure> {
    let container = container(step, image.upload(step).await?, services);
    setup::run(step, source, services, &container).await?;
    Ok(as_service(step, &container))
}

/// The image, with its environment for the smoke test and access to the backing services.
fn container<K: Kind>(step: &StepContext<'_, K>, archive: File, services: &Services) -> Container {
    let container = toolbox::container(step.client(), step.run.foreign_platform()).import(archive);
    services.bind(&with_env(&container, &step.run.settings.smoke.env))
}

fn as_service<K: Kind>(step: &StepContext<'_, K>, container: &Container) -> EngineService {
    let port = step.run.settings.service.port;
    container
        // The engine's own health check would wait forever for a port that never opens.
        .without_exposed_port(port as isize)
        .with_exposed_port_opts(
            port as isize,
            ContainerWithExposedPortOpts {
                description: None,
                experimental_skip_healthcheck: Some(true),
                protocol: None,
            },
        )
        .as_service_opts(ContainerAsServiceOpts {
            args: None,
            expand: None,
            experimental_privileged_nesting: None,
            insecure_root_capabilities: None,
            no_init: Some(true),
            use_entrypoint: Some(true),
        })
}

fn no_connection(port: u16) -> String {
    format!("no connection to port {port}")
}

/// Polls the service through its tunnel on this machine's `port`, until it passes.
///
/// # Errors
/// When the service does not pass in time (exit code 1), or there can be no HTTP client (exit code 3).
async fn poll(port: &str, settings: &Settings, started: Instant) -> Result<(), Failure> {
    let client = on_loopback()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TRY_LIMIT)
        .build()
        .or_environment("cannot create an HTTP client")?;
    let address = format!("127.0.0.1:{port}");
    let url = format!("http://{address}{}", settings.service.health);
    let trial = &settings.smoke;
    let mut results = Results::default();
    for at in schedule(trial.tries, trial.within) {
        tokio::time::sleep_until(started + at).await;
        if trial.check == Check::Tcp {
            if stays_open(&address).await {
                return Ok(());
            }
            results.add(no_connection(settings.service.port));
            continue;
        }
        results.add(match client.get(&url).send().await {
            Ok(response) if trial.statuses.contains(&response.status().as_u16()) => return Ok(()),
            Ok(response) => format!("status {}", response.status()),
            Err(error) if error.is_timeout() => {
                format!("no response within {} s", TRY_LIMIT.as_secs())
            }
            Err(_) => no_connection(settings.service.port),
        });
    }
    let what = match trial.check {
        Check::Http => format!(
            "GET {} was not answered with {}",
            settings.service.health,
            trial.statuses()
        ),
        Check::Tcp => format!("port {} did not accept a connection", settings.service.port),
    };
    Err(Failure::gate(format!(
        "{what} in {} tries within {:?}; {results}",
        trial.tries, trial.within
    )))
}

/// The different results of the failed tries, each once, the most recent last. All are shown, because on a slow machine the last
/// try may have no response although earlier ones had a status.
#[derive(Default)]
struct Results(Vec<String>);

impl Results {
    fn add(&mut self, result: String) {
        self.0.retain(|other| *other != result);
        self.0.push(result);
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut newest_first = self.0.iter().rev();
        let last = newest_first.next().map_or("none", String::as_str);
        write!(f, "last result: {last}")?;
        let earlier: Vec<&str> = newest_first.map(String::as_str).collect();
        if !earlier.is_empty() {
            write!(f, " (earlier: {})", earlier.join(", "))?;
        }
        Ok(())
    }
}

/// Whether the service accepts a connection. The tunnel accepts it in any case, and closes it if the service does not.
async fn stays_open(address: &str) -> bool {
    let Ok(mut connection) = tokio::net::TcpStream::connect(address).await else {
        return false;
    };
    match tokio::time::timeout(SETTLED, connection.read_u8()).await {
        // Nothing was sent and nothing was closed.
        Err(_) => true,
        Ok(read) => read.is_ok(),
    }
}

/// The times of the requests: the first immediately, the second after [`FIRST_INTERVAL`], and the last at the end of `within`.
/// Each interval is longer than the previous one by the same factor.
fn schedule(tries: u32, within: Duration) -> impl Iterator<Item = Duration> {
    let intervals = tries.saturating_sub(1);
    let first = FIRST_INTERVAL.min(within / tries.max(1)).as_secs_f64();
    let until =
        move |n: u32, factor: f64| (0..n).map(|n| first * factor.powf(n.into())).sum::<f64>();
    // The sum grows with the factor, so bisection finds it.
    let (mut low, mut high) = (1.0_f64, 1e6_f64);
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if until(intervals, middle) < within.as_secs_f64() {
            low = middle;
        } else {
            high = middle;
        }
    }
    (0..tries).map(move |n| {
        if n > 0 && n == intervals {
            within
        } else {
            Duration::from_secs_f64(until(n, low))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_twenty_tries_is_at_twenty_seconds() {
        let tries: Vec<_> = schedule(20, Duration::from_secs(20)).collect();
        assert_eq!(tries.len(), 20);
        assert_eq!(tries[0], Duration::ZERO);
        assert_eq!(tries[1].as_millis(), 25);
        assert_eq!(tries[19], Duration::from_secs(20));
        let intervals: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            intervals.windows(2).all(|pair| pair[0] < pair[1]),
            "{intervals:?}"
        );
    }

    #[test]
    fn the_message_has_each_result_once() {
        let mut results = Results::default();
        results.add("no connection to port 8000".to_owned());
        assert_eq!(
            results.to_string(),
            "last result: no connection to port 8000"
        );
        for result in ["status 500", "status 302", "status 500", "no response"] {
            results.add(result.to_owned());
        }
        assert_eq!(
            results.to_string(),
            "last result: no response (earlier: status 500, status 302, no connection to port 8000)"
        );
    }

    #[test]
    fn the_last_try_is_at_the_limit() {
        for (tries, seconds) in [(1, 5), (2, 1), (3, 3600), (1000, 2), (20, 120)] {
            let within = Duration::from_secs(seconds);
            let times: Vec<_> = schedule(tries, within).collect();
            assert_eq!(times.len(), tries as usize);
            assert_eq!(times[0], Duration::ZERO);
            assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
            assert!(tries == 1 || times.last() == Some(&within), "{times:?}");
        }
    }
}
