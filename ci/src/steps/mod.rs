//! The steps of the pipeline, one per file: its command, its evidence and its hints. The private modules are shared by steps.

mod auditable;
mod base;
pub mod build;
mod commit;
mod crane;
mod credentials;
pub mod custom;
mod environment;
pub mod fmt;
pub mod lint;
mod listening;
mod missing;
pub mod publish;
pub mod scan;
mod services;
mod setup;
pub mod shell;
pub mod smoke;
mod sync;
pub mod test;
pub mod verified;
pub mod workspace;
