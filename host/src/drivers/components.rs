//! The components of drivers, for as long as somebody needs them: on the shelf, and what the engine has compiled of each.
//!
//! Used by the loader. What a row names, loaded or to go back to, is needed, and so is what is held: it is looked into, or about to be loaded.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Mutex;
use wasmvol_driver::Engine;

use super::shelf::Shelf;
use super::{Drivers, blocking};
use crate::catalog::DriverRow;

/// All that are kept.
pub(super) struct Components {
    drivers: Rc<Drivers>,
    shelf: Shelf,
    engine: Engine,
    /// Those of drivers that are not loaded yet.
    held: RefCell<Vec<String>>,
    /// Taken for each change of what is kept: what one finds unneeded, another may be about to keep.
    turn: Mutex<()>,
}

/// A component that is needed although no row names it, until this is dropped.
pub(super) struct Held<'a> {
    all: &'a RefCell<Vec<String>>,
    digest: String,
}

impl Components {
    /// Those in `dir`, of these drivers.
    pub(super) fn new(drivers: Rc<Drivers>, dir: &Path) -> Self {
        let (shelf, engine) = (Shelf::new(dir), drivers.engine.clone());
        Self { drivers, shelf, engine, held: RefCell::default(), turn: Mutex::default() }
    }

    /// Makes a component needed.
    pub(super) fn hold(&self, digest: &str) -> Held<'_> {
        self.held.borrow_mut().push(digest.to_owned());
        Held { all: &self.held, digest: digest.to_owned() }
    }

    /// Keeps one durably.
    pub(super) async fn keep(&self, digest: &str, component: Arc<[u8]>) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        let (shelf, digest) = (self.shelf.clone(), digest.to_owned());
        blocking(move || shelf.keep(&digest, &component)).await
    }

    /// Reads one that is kept, and checks that it is still the one that it was.
    pub(super) async fn read(&self, digest: &str) -> io::Result<Vec<u8>> {
        let (shelf, digest) = (self.shelf.clone(), digest.to_owned());
        blocking(move || shelf.read(&digest)).await
    }

    /// Deletes one unless it is needed.
    pub(super) async fn forget(&self, digest: &str) {
        let _turn = self.turn.lock().await;
        let is_held = self.held.borrow().iter().any(|held| held == digest);
        if is_held || self.drivers.rows().iter().flat_map(digests).any(|needed| needed == digest) {
            return;
        }
        let (shelf, engine) = (self.shelf.clone(), self.engine.clone());
        let digest = digest.to_owned();
        let forget = move || shelf.forget(&digest).and_then(|()| engine.forget(&digest));
        if let Err(e) = blocking(forget).await {
            tracing::warn!("a component that is not used any more cannot be deleted: {e}");
        }
    }

    /// Deletes all that no row names: what a crash has left behind. Called at start, when nothing is held yet.
    pub(super) async fn sweep(&self) {
        let _turn = self.turn.lock().await;
        let rows = self.drivers.rows();
        let needed: BTreeSet<String> = rows.iter().flat_map(digests).map(str::to_owned).collect();
        let (shelf, engine) = (self.shelf.clone(), self.engine.clone());
        let sweep = move || shelf.keep_only(&needed).and_then(|()| engine.keep_only(&needed));
        if let Err(e) = blocking(sweep).await {
            tracing::warn!("components that are not used any more cannot be deleted: {e}");
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut all = self.all.borrow_mut();
        if let Some(at) = all.iter().position(|digest| *digest == self.digest) {
            all.swap_remove(at);
        }
    }
}

/// The components that a row needs: what is loaded, and what a rollback brings back.
pub(super) fn digests(row: &DriverRow) -> impl Iterator<Item = &str> {
    let previous = row.previous.iter().map(|previous| previous.digest.as_str());
    [row.digest.as_str()].into_iter().chain(previous)
}
