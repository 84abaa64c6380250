//! The status service of infrastructure-lab.

// An item that only this crate uses is `pub(crate)`, and needs no documentation for others.
#![warn(unreachable_pub)]
//!
//! The modules are listed in layers, the lowest first: a module imports only modules of the layers that are listed before its
//! own.

// Foundations, which import no other module.
pub mod drain;
pub mod history;
pub mod memory;
pub mod problem;
pub mod rendered;
pub mod secret;
pub mod state;
pub mod time;
pub mod trace;

// The kinds of checks, the log of state changes, and the connections of clients.
pub mod changes;
pub mod checks;
pub mod connections;

// The results of all checks, the settings, and the counter in Redis.
pub mod board;
pub mod configuration;
pub mod hits;

// The schedule that fills the board, the renderings of the board, and the errors of the program.
pub mod error;
pub mod metrics;
pub mod page;
pub mod schedule;

// What all requests share.
pub mod service;

// The log, and the observation of requests.
pub mod telemetry;

// The HTTP resources, and the reload of the configuration.
mod reload;
pub mod routes;

// The start and the stop of the server.
pub mod startup;

// The command line.
pub mod cli;

pub use configuration::Settings;
pub use error::Error;
pub use startup::Application;
