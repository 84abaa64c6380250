//! Sets environment variables of containers.

use std::collections::BTreeMap;

use dagger_sdk::Container;

/// Adds the variables to the container's environment.
#[must_use]
pub(super) fn with_env(container: &Container, env: &BTreeMap<String, String>) -> Container {
    env.iter()
        .fold(container.clone(), |container, (name, value)| {
            container.with_env_variable(name, value)
        })
}
