//! What `main` and the tests stand on.

pub mod app;
pub mod authority;
pub mod doctor;
pub mod engine;
pub mod evidence;
pub mod failure;
pub mod graph;
pub mod init;
pub mod narrator;
pub mod oci;
pub mod pins;
pub mod pipeline;
pub mod project;
pub mod provision;
pub mod random;
pub mod reference;
pub mod registry;
pub mod report;
pub mod run;
pub mod service;
pub mod settings;
pub mod source;
pub mod standin;
pub mod step;
pub mod steps;
pub mod toolbox;
