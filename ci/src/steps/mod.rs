//! One step a file: what it runs, its evidence, its remedy.

pub mod build;
pub mod fmt;
pub mod lint;
pub mod publish;
pub mod scan;
pub mod smoke;
pub mod test;
pub mod workspace;
