//! A cache of rendered responses.

use std::cell::{Cell, RefCell};

use actix_web::web::Bytes;

/// A rendering of the board that one worker caches until the board changes.
#[derive(Default)]
pub struct Rendered {
    generation: Cell<Option<u64>>,
    body: RefCell<Bytes>,
}

impl Rendered {
    /// Returns the cached rendering if it is of `generation`, and otherwise calls `render`.
    ///
    /// # Errors
    /// Returns the errors of `render`, which leave the cache unchanged.
    pub fn get<E>(
        &self,
        generation: u64,
        render: impl FnOnce() -> Result<String, E>,
    ) -> Result<Bytes, E> {
        if self.generation.get() != Some(generation) {
            self.body.replace(render()?.into());
            self.generation.set(Some(generation));
        }
        Ok(self.body.borrow().clone())
    }
}
