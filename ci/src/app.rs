//! Runs the program, from the command line to the exit code.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::ErrorKind;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::prelude::*;

use crate::commands;
use crate::report::{self, Profile, Spans};
use crate::settings::Invocation;
use common::failure::{ExitCode, Failure};
use common::scratch;

/// Parses the command line and runs the command.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let invocation = match Invocation::parse(arguments) {
        Ok(invocation) => invocation,
        Err(error) => {
            if error.kind() == ErrorKind::DisplayVersion {
                report::data(&format!("{}\n", commands::version()));
                return ExitCode::Success;
            }
            report::help(&error);
            return if error.use_stderr() {
                ExitCode::Usage
            } else {
                ExitCode::Success
            };
        }
    };
    let profile = invocation.options.profile.as_deref();
    let profile = match profile.map(Profile::create).transpose() {
        Ok(profile) => profile,
        Err(failure) => return fail(&failure),
    };
    // Fails only if a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Whether or not the spans arrive, the run goes on.
    let spans = match Spans::from_env() {
        Ok(spans) => spans,
        Err(failure) => {
            report::failure(&failure);
            None
        }
    };
    start_log(invocation.options.verbose, profile.clone(), spans.as_ref());
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(&Failure::environment("cannot start the async runtime").because(error));
        }
    };
    let mut code = runtime
        .block_on(commands::dispatch(invocation))
        .unwrap_or_else(|failure| fail(&failure));
    // Abandoned downloads must not delay the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Some(Err(failure)) = spans.map(Spans::end) {
        report::failure(&failure);
    }
    scratch::clean();
    if let Some(Err(failure)) = profile.map(|profile| profile.write()) {
        code = ExitCode::of_all([code, fail(&failure)]);
    }
    code
}

fn fail(failure: &Failure) -> ExitCode {
    report::failure(failure);
    failure.code
}

fn start_log(verbose: u8, profile: Option<Profile>, spans: Option<&Spans>) {
    let default = if verbose > 1 { "ci=debug" } else { "off" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("LAB_CI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // The SDK logs whole queries, and some of them contain secrets.
        .with_filter(filter_fn(|event| !event.target().starts_with("dagger_sdk")).and(filter));
    let profile = profile.map(|it| it.with_filter(filter_fn(|it| it.target().starts_with("ci::"))));
    tracing_subscriber::registry()
        .with(lines)
        .with(profile)
        .with(spans.map(Spans::layer))
        .init();
}
