//! Who is served at once. At the limit the connection that has been silent longest goes for the next one: hundreds that say
//! nothing delay nobody. One that has begun a request keeps its seat until it is silent again.
//!
//! Called by the accept loop. It closes nothing itself: it asks the connection's own task, which looks once more.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::Notify;

use super::Peer;

/// Connections at once; while each of them has a request, one more waits here and the others in the kernel's backlog. dockerd
/// keeps 6, podman one a command.
const CONNECTIONS_MAX: usize = 256;

/// The seats of one socket.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: RefCell<Vec<Rc<Peer>>>,
    changed: Rc<Notify>,
}

/// One of them, free again when dropped.
pub(super) struct Seat {
    pub(super) peer: Rc<Peer>,
    seats: Rc<Seats>,
}

impl Seats {
    /// What to tell when a connection has ended, has fallen silent, or was asked to leave and is not silent any more.
    pub(super) fn changed(&self) -> Rc<Notify> {
        Rc::clone(&self.changed)
    }

    /// Seats a connection as soon as there is room.
    pub(super) async fn take(self: &Rc<Self>, peer: Peer) -> Seat {
        while self.taken.borrow().len() >= CONNECTIONS_MAX {
            if let Some(silent) = self.longest_silent() {
                silent.leave.notify_one();
            }
            self.changed.notified().await;
        }
        let peer = Rc::new(peer);
        self.taken.borrow_mut().push(Rc::clone(&peer));
        Seat { peer, seats: Rc::clone(self) }
    }

    fn longest_silent(&self) -> Option<Rc<Peer>> {
        let taken = self.taken.borrow();
        let silent = taken.iter().filter_map(|peer| Some((peer.silent_since()?, peer)));
        silent.min_by_key(|(since, _)| *since).map(|(_, peer)| Rc::clone(peer))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.borrow_mut().retain(|peer| !Rc::ptr_eq(peer, &self.peer));
        self.seats.changed.notify_one();
    }
}
