//! From settings to a server that listens.

use std::net::SocketAddr;

use actix_web::{App, HttpServer, dev::Server, middleware::from_fn, web};

use crate::{Error, Settings, routes, telemetry};

/// How long requests in flight may take after SIGTERM: less than the 10 s after which `docker stop` kills.
const SHUTDOWN_SECONDS: u64 = 8;

/// The service, listening.
pub struct Application {
    server: Server,
    address: SocketAddr,
}

impl Application {
    /// Binds the address of `settings` and starts to answer; needs a running Actix or Tokio runtime.
    ///
    /// # Errors
    /// Where the address is taken or not allowed.
    pub fn build(settings: Settings) -> Result<Self, Error> {
        let asked = settings.address;
        let greeting = web::Data::new(routes::Greeting::new(settings.environment));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(greeting.clone())
                .wrap(from_fn(telemetry::log_request))
                .configure(routes::configure)
        })
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .bind(asked)
        .map_err(|source| Error::Listen {
            address: asked,
            source,
        })?;
        // The asked address has port 0 where any free port will do.
        let address = server.addrs().first().copied().unwrap_or(asked);
        Ok(Self {
            server: server.run(),
            address,
        })
    }

    /// The address that the service listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until SIGTERM, which lets requests in flight finish, or SIGINT, which does not.
    ///
    /// # Errors
    /// Where the server fails.
    pub async fn run_until_stopped(self) -> Result<(), Error> {
        tracing::info!(
            port = self.address.port(),
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        self.server.await.map_err(Error::Server)?;
        tracing::info!("stopped");
        Ok(())
    }
}
