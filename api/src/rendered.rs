//! What is rendered once and sent many times.

use std::cell::{Cell, RefCell};

use actix_web::web::Bytes;

/// A rendering of the board, kept by one worker as long as the board says the same.
#[derive(Default)]
pub struct Rendered {
    generation: Cell<Option<u64>>,
    body: RefCell<Bytes>,
}

impl Rendered {
    /// The rendering for `generation` of the board: the kept one, or what `render` makes.
    ///
    /// # Errors
    /// Those of `render`; the kept one stays.
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
