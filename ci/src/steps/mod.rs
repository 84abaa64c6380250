//! One step a file: what it runs, its evidence, its remedy; and what several of them use.

mod auditable;
mod base;
pub mod build;
mod crane;
pub mod custom;
mod environment;
pub mod fmt;
pub mod lint;
mod missing;
pub mod publish;
pub mod scan;
mod services;
pub mod smoke;
pub mod test;
pub mod verified;
pub mod workspace;
