//! From settings to a server that listens, and to its end.

use std::{
    env, io,
    net::{SocketAddr, TcpListener},
    path::Path,
    process,
    sync::Arc,
    time::Duration,
};

use actix_server::Server;
use actix_service::map_config;
use actix_web::{App, dev::AppConfig, rt::System, web};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinError,
    time::sleep,
};

use crate::{
    board::Board,
    checks::Clients,
    configuration::Settings,
    connections::{self, Gate},
    error::Error,
    routes, schedule,
    service::Service,
    telemetry,
};

/// The threads that look up names. Names are looked up at most this many at once; more threads would take more memory than many checks are
/// worth.
const BLOCKING_THREADS: usize = 16;

/// How long requests in flight may take in the end: with the drain before it less than the 10 s after which `docker stop` kills.
const SHUTDOWN_SECONDS: u64 = 7;

/// Names a file of certificates of authorities, as for OpenSSL and whatever else has TLS.
const AUTHORITIES: &str = "SSL_CERT_FILE";

/// Serves with `settings` until SIGTERM or SIGINT.
///
/// # Errors
/// Returns an error if logging was started before, if the service cannot start, or if the server fails.
pub fn run(settings: Settings) -> Result<(), Error> {
    telemetry::start(settings.log.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map(Arc::new)
        .map_err(Error::Runtime)?;
    let ended = System::with_tokio_rt(|| runtime.clone())
        .block_on(async { Application::build(settings)?.run_until_stopped().await });
    // Dropped, it would wait for the look-up of a name whose server is silent.
    if let Some(runtime) = Arc::into_inner(runtime) {
        runtime.shutdown_background();
    }
    ended
}

/// The service, listening.
pub struct Application {
    server: Server,
    service: web::Data<Service>,
    address: SocketAddr,
    drain: Duration,
}

/// How the service is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// SIGTERM: whoever balances load has to hear of it first.
    Drained,
    /// SIGINT: a person at a terminal, who waits.
    AtOnce,
}

impl Application {
    /// Binds the address of `settings` and starts to answer and to check; needs a running Actix runtime.
    ///
    /// # Errors
    /// Where the address is taken or not allowed, the directory of the history is, or the file of `SSL_CERT_FILE` is wrong.
    pub fn build(settings: Settings) -> Result<Self, Error> {
        let asked = settings.address;
        let drain = settings.drain;
        let connections = settings.connections;
        let authorities = env::var_os(AUTHORITIES).filter(|path| !path.is_empty());
        let clients =
            Clients::new(authorities.as_deref().map(Path::new)).map_err(Error::Authorities)?;
        let service = web::Data::new(Service::new(settings, clients)?);
        let shared = service.clone();
        let listen = |source| Error::Listen {
            address: asked,
            source,
        };
        let listener = TcpListener::bind(asked).map_err(listen)?;
        connections::prepare(&listener).map_err(listen)?;
        // The asked address has port 0 where any free port will do.
        let address = listener.local_addr().map_err(listen)?;
        let gate = Gate::new(connections);
        let server = Server::build()
            .workers(gate.workers())
            .max_concurrent_connections(gate.each_worker())
            .disable_signals()
            .shutdown_timeout(SHUTDOWN_SECONDS);
        let ending = server.graceful_shutdown_signal();
        let server = server
            .listen("http", listener, move || {
                let app = App::new().configure(|config| routes::configure(config, &shared));
                let app = map_config(app, |()| AppConfig::default());
                connections::http(&gate, ending.clone(), app)
            })
            .map_err(listen)?;
        schedule::start(&service.board, &service.clients);
        Ok(Self {
            server: server.run(),
            service,
            address,
            drain,
        })
    }

    /// The address that the service listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is known of the checks.
    #[must_use]
    pub fn board(&self) -> Arc<Board> {
        self.service.board.clone()
    }

    /// Serves until SIGTERM or SIGINT, and lets requests in flight finish; a second signal ends the process at once.
    ///
    /// # Errors
    /// Where the server fails.
    pub async fn run_until_stopped(self) -> Result<(), Error> {
        // From here on no signal is lost.
        let mut signals = Signals::new().map_err(Error::Server)?;
        tracing::info!(
            port = self.address.port(),
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        let handle = self.server.handle();
        let mut server = actix_web::rt::spawn(self.server);
        let ending = tokio::select! {
            ended = &mut server => return ended_well(ended),
            ending = signals.next() => ending,
        };
        tracing::info!(?ending, "told to end");
        actix_web::rt::spawn(async move {
            signals.next().await;
            tracing::warn!("told to end again: at once");
            // As shells have it for SIGINT.
            process::exit(130);
        });
        self.service.drain.begin();
        if ending == Ending::Drained {
            sleep(self.drain).await;
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
