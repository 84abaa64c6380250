//! The suite that needs a machine.
