//! Starts the server, runs it and shuts it down.

use std::{
    env, io,
    net::SocketAddr,
    path::Path,
    process,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actix_server::Server;
use actix_service::map_config;
use actix_web::{
    App,
    dev::AppConfig,
    rt::{self, System},
    web,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinError,
    time::sleep,
};

use crate::{
    board::Board,
    checks::Clients,
    configuration::{Settings, Source},
    connections::{self, ConnectionLimiter},
    error::Error,
    history::{Clocks, StoreState},
    reload::Reload,
    routes,
    schedule::{self, Schedule},
    service::Service,
    telemetry,
};

/// How long the shutdown waits for requests in flight. Together with the default drain it is shorter than the
/// 10 s of `docker stop`.
const SHUTDOWN_SECONDS: u64 = 7;

/// How soon a jump of the clock is noticed.
const CLOCK_INTERVAL: Duration = Duration::from_secs(5);

/// Names a PEM file of additional CA certificates, as for OpenSSL.
const AUTHORITIES: &str = "SSL_CERT_FILE";

/// Serves with the settings of `source` until SIGTERM or SIGINT, and reloads them after SIGHUP.
///
/// # Errors
/// Returns an error if the settings are invalid, if logging was started before, if the service cannot start, or if the server
/// fails.
pub fn run(mut source: Source) -> Result<(), Error> {
    let settings = source.load()?;
    telemetry::start(settings.log.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(Arc::new)
        .map_err(Error::Runtime)?;
    let ended = System::with_tokio_rt(|| runtime.clone()).block_on(async {
        let application = Application::build(settings)?.reloading(source);
        application.run_until_stopped().await
    });
    // Dropping the runtime would wait for a disk that does not respond.
    if let Some(runtime) = Arc::into_inner(runtime) {
        runtime.shutdown_background();
    }
    ended
}

/// The service, with its listener bound.
pub struct Application {
    server: Server,
    service: web::Data<Service>,
    address: SocketAddr,
    /// Received as soon as the service exists, because it would end the process otherwise.
    hangup: Signal,
    watch: bool,
    fixed: Vec<(&'static str, String)>,
    schedule: Schedule,
    source: Option<Source>,
}

/// How the service shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// After SIGTERM: load balancers must notice first.
    Drained,
    /// After SIGINT, which is sent from a terminal: without a drain.
    AtOnce,
}

impl Application {
    /// Binds the address of `settings`, and starts the server and the probes. Must be called on an Actix runtime.
    ///
    /// # Errors
    /// When the address is in use or not permitted, the history cannot be opened, or the file in `SSL_CERT_FILE` is invalid.
    pub fn build(settings: Settings) -> Result<Self, Error> {
        let hangup = signal(SignalKind::hangup()).map_err(Error::Server)?;
        let configured = settings.address;
        let (watch, fixed) = (settings.watch, settings.fixed());
        let (connections, request_timeout) = (settings.connections, settings.request_timeout);
        let authorities = env::var_os(AUTHORITIES).filter(|path| !path.is_empty());
        let clients =
            Clients::new(authorities.as_deref().map(Path::new)).map_err(Error::Authorities)?;
        let service = web::Data::new(Service::new(settings, clients)?);
        let shared = service.clone();
        let listen = |source| Error::Listen {
            address: configured,
            source,
        };
        let listener = connections::listen(configured).map_err(listen)?;
        // The configured port may be 0, which selects any free port.
        let address = listener.local_addr().map_err(listen)?;
        let limiter = ConnectionLimiter::new(connections, request_timeout);
        let server = Server::build()
            .workers(limiter.workers())
            .max_concurrent_connections(limiter.each_worker())
            .disable_signals()
            .shutdown_timeout(SHUTDOWN_SECONDS);
        let ending = server.graceful_shutdown_signal();
        let server = server
            .listen("http", listener, move || {
                let app = App::new().configure(|config| routes::configure(config, &shared));
                let app = map_config(app, |()| AppConfig::default());
                connections::http(&limiter, ending.clone(), app)
            })
            .map_err(listen)?;
        let schedule = schedule::start(&service.board, &service.clients);
        if service.board.store().is_some() {
            rt::spawn(follow_clock(service.board.clone()));
        }
        Ok(Self {
            server: server.run(),
            service,
            address,
            hangup,
            watch,
            fixed,
            schedule,
            source: None,
        })
    }

    /// Reloads the settings from `source` after SIGHUP, and when its file changes if the settings say so. Otherwise SIGHUP has no
    /// effect.
    #[must_use]
    pub fn reloading(mut self, source: Source) -> Self {
        self.source = Some(source);
        self
    }

    /// The address that the service listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The checks with their results.
    #[must_use]
    pub fn board(&self) -> Arc<Board> {
        self.service.board.clone()
    }

    /// Serves until SIGTERM or SIGINT, then lets requests in flight finish. A second signal ends the process at once.
    ///
    /// # Errors
    /// When the server fails.
    pub async fn run_until_stopped(self) -> Result<(), Error> {
        // Registered before the log line below, so that no later signal is lost.
        let mut signals = Signals::new().map_err(Error::Server)?;
        tracing::info!(
            address = %self.address,
            port = self.address.port(),
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        let reload = self.source.map(|source| {
            let service = self.service.clone();
            let reload = Reload {
                source,
                service,
                schedule: self.schedule,
                watch: self.watch,
                fixed: self.fixed,
            };
            rt::spawn(reload.run(self.hangup))
        });
        let handle = self.server.handle();
        let mut server = rt::spawn(self.server);
        let ending = tokio::select! {
            ended = &mut server => return ended_well(ended),
            ending = signals.next() => ending,
        };
        tracing::info!(?ending, "shutting down");
        if let Some(reload) = reload {
            reload.abort();
        }
        rt::spawn(async move {
            signals.next().await;
            tracing::warn!("second signal, exiting immediately");
            // The exit code that shells report for SIGINT.
            process::exit(130);
        });
        self.service.drain.begin();
        if ending == Ending::Drained {
            sleep(self.service.live().drain).await;
        }
        self.service.drain.end_streams();
        handle.stop(true).await;
        ended_well(server.await)?;
        if let Some(store) = self.service.board.store() {
            store.flush();
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Reads the last day again after each jump of the clock, because devices without a battery start with a wrong one, and when the
/// disk works that was full at the start.
async fn follow_clock(board: Arc<Board>) {
    let mut before = Clocks::now();
    loop {
        sleep(CLOCK_INTERVAL).await;
        let now = Clocks::now();
        let jumped = now.since(before).is_none();
        if jumped {
            tracing::info!("the clock has jumped, reading the last day again");
        }
        if jumped || (!board.is_restored() && board.store_state() == StoreState::Disk) {
            let board = board.clone();
            // On another thread, because the disk may be slow. Fails only while the runtime ends.
            let _ = web::block(move || board.reload(SystemTime::now())).await;
        }
        before = now;
    }
}

fn ended_well(ended: Result<io::Result<()>, JoinError>) -> Result<(), Error> {
    ended
        .unwrap_or_else(|panic| Err(io::Error::other(panic)))
        .map_err(Error::Server)
}

/// The signals that end the service.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Ending {
        tokio::select! {
            _ = self.terminate.recv() => Ending::Drained,
            _ = self.interrupt.recv() => Ending::AtOnce,
        }
    }
}
