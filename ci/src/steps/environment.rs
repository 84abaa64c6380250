//! The environment of a container.

use std::collections::BTreeMap;

use dagger_sdk::Container;

/// `container` with these variables in its environment.
#[must_use]
pub fn with_env(container: &Container, env: &BTreeMap<String, String>) -> Container {
    env.iter()
        .fold(container.clone(), |container, (name, value)| {
            container.with_env_variable(name, value)
        })
}
