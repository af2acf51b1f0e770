//! Docker's volume plugin protocol and nothing else: requests in, [`Volumes`] asked, answers out.
//!
//! Called by the server for every request on a plugin's socket. It keeps no state. Get, List, Path, Capabilities and Activate are
//! answered at once from memory. A verb that changes something runs in a task of its own: it ends whatever becomes of its connection,
//! and a Mount whose answer reaches nobody is undone.

#[cfg(test)]
mod tests;
mod wire;

use std::future::Future;
use std::rc::Rc;

use hyper::body::Incoming;
use hyper::{Method, Request};
use tokio::sync::oneshot;

use crate::server::{Answer, Api, Busy, Peer, read_body};
use crate::volumes::holders::Caller;
use crate::volumes::world::World;
use crate::volumes::{Insist, VolumeError, Volumes};

/// Most bytes of a request. Docker's largest is a Create: a name and its options.
const BODY_MAX: usize = 256 * 1024;
/// podman mounts every volume for every container with this one ID.
const PODMAN_ID: &str = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2";
/// podman's process name.
const PODMAN: &str = "podman";

/// One plugin socket.
pub(crate) struct Plugin<W: World> {
    volumes: Rc<Volumes<W>>,
    busy: Busy,
}

impl<W: World> Plugin<W> {
    /// Serves these volumes; `busy` is held while a verb runs.
    pub(crate) fn new(volumes: Rc<Volumes<W>>, busy: Busy) -> Rc<Self> {
        Rc::new(Self { volumes, busy })
    }

    /// Answers what memory answers; none for what changes something.
    fn at_once(&self, path: &str, body: &[u8]) -> Option<Answer> {
        Some(match path {
            "/VolumeDriver.Get" => match wire::named(body) {
                Ok(request) => {
                    let got = self.volumes.get(&request.name, wire::got);
                    got.unwrap_or_else(|e| wire::refused(&e))
                }
                Err(e) => wire::refused(&e),
            },
            "/VolumeDriver.List" => wire::listed(|each| self.volumes.list(each)),
            "/VolumeDriver.Path" => match wire::named(body) {
                Ok(request) => wire::mountpoint(self.volumes.path(&request.name)),
                Err(e) => wire::refused(&e),
            },
            "/Plugin.Activate" => wire::activated(),
            "/VolumeDriver.Capabilities" => wire::capable(),
            _ => return None,
        })
    }

    async fn change(&self, peer: &Peer, path: &str, body: &[u8]) -> Answer {
        match path {
            "/VolumeDriver.Mount" => self.mount(peer, body).await,
            "/VolumeDriver.Unmount" => self.unmount(body).await,
            "/VolumeDriver.Create" => self.create(body).await,
            "/VolumeDriver.Remove" => self.remove(peer, body).await,
            _ => wire::refused(&wire::WireError::Unknown),
        }
    }

    async fn create(&self, body: &[u8]) -> Answer {
        let request = match wire::create(body) {
            Ok(request) => request,
            Err(e) => return wire::refused(&e),
        };
        let volumes = Rc::clone(&self.volumes);
        wire::done(
            self.run(async move { volumes.create(&request.name, request.options).await }).await,
        )
    }

    async fn unmount(&self, body: &[u8]) -> Answer {
        let request = match wire::held(body) {
            Ok(request) => request,
            Err(e) => return wire::refused(&e),
        };
        let volumes = Rc::clone(&self.volumes);
        wire::done(self.run(async move { volumes.unmount(&request.name, &request.id).await }).await)
    }

    async fn remove(&self, peer: &Peer, body: &[u8]) -> Answer {
        let name = match wire::named(body) {
            Ok(request) => request.name.into_owned(),
            Err(e) => return wire::refused(&e),
        };
        let caller = caller(peer, None);
        let volumes = Rc::clone(&self.volumes);
        let verb = async move {
            match volumes.remove(&name, caller, Insist::No).await {
                // The answer to an earlier Remove was lost: an engine asks again, and must hear that it is done.
                Err(VolumeError::NotFound) => Ok(()),
                ended => ended,
            }
        };
        wire::done(self.run(verb).await)
    }

    /// Mounts, and takes the mount back if its answer reaches nobody: no client sends an Unmount for a Mount that it gave up.
    async fn mount(&self, peer: &Peer, body: &[u8]) -> Answer {
        let request = match wire::held(body) {
            Ok(request) => request,
            Err(e) => return wire::refused(&e),
        };
        let caller = caller(peer, Some(&request.id));
        let volumes = Rc::clone(&self.volumes);
        let busy = self.busy.clone();
        let (answer, answered) = oneshot::channel();
        tokio::task::spawn_local(async move {
            let mounted = volumes.mount(&request.name, &request.id, caller).await;
            let undo = mounted.is_ok();
            let (written, told) = oneshot::channel();
            // A connection that has ended drops the receiver, and `written` with it.
            drop(answer.send((mounted, written)));
            if undo && told.await.is_err() {
                tracing::info!("volume {}: client has gone: its mount is undone", request.name);
                if let Err(e) = volumes.unmount(&request.name, &request.id).await {
                    tracing::warn!("volume {}: undoing a mount failed: {e}", request.name);
                }
            }
            drop(busy);
        });
        match answered.await {
            Ok((mounted, written)) => {
                peer.unwritten(written);
                wire::mountpoint(mounted)
            }
            Err(_) => wire::refused(&wire::WireError::Lost),
        }
    }

    /// Runs a verb to its end whether or not the client waits for it.
    async fn run(
        &self,
        verb: impl Future<Output = Result<(), VolumeError>> + 'static,
    ) -> Result<(), wire::Refusal> {
        let busy = self.busy.clone();
        let (answer, answered) = oneshot::channel();
        tokio::task::spawn_local(async move {
            // Whoever gave up asks again: every verb may come twice.
            let _ = answer.send(verb.await);
            drop(busy);
        });
        match answered.await {
            Ok(result) => result.map_err(wire::Refusal::Volume),
            Err(_) => Err(wire::Refusal::Wire(wire::WireError::Lost)),
        }
    }
}

impl<W: World> Api for Plugin<W> {
    async fn answer(self: Rc<Self>, peer: Rc<Peer>, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let body = match read_body(&peer, body, BODY_MAX).await {
            Ok(body) => body,
            Err(e) => return wire::refused(&e),
        };
        if head.method != Method::POST {
            return wire::refused(&wire::WireError::Unknown);
        }
        let path = head.uri.path();
        match self.at_once(path, &body) {
            Some(answer) => answer,
            // Boxed, so that the future of a Get is not as large as that of a Mount.
            None => Box::pin(self.change(&peer, path, &body)).await,
        }
    }
}

fn caller(peer: &Peer, holder: Option<&str>) -> Caller {
    if peer.command == PODMAN || holder == Some(PODMAN_ID) {
        Caller::Podman(peer.process)
    } else {
        Caller::Engine(peer.process)
    }
}
