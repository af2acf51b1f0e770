//! The admin API: the verbs without Docker, and what only an operator does. HTTP and JSON on a socket of its own.
//!
//! Called by the CLI through [`client`]. Answers are the types in [`types`]; a refusal is status 400 with `{"error"}`. What changes
//! something runs to its end even when the CLI is interrupted.

pub(crate) mod client;
pub(crate) mod types;

use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::oneshot;
use wasmvol_driver::Description;
use wasmvol_plan::{DriverName, Id, NameError};

use crate::asked;
use crate::catalog::durable::Catalog;
use crate::catalog::table::Table;
use crate::catalog::{DriverRow, StoreError, transfer};
use crate::drivers::loader::{self, Loader, LoaderError};
use crate::drivers::{Drivers, Known};
use crate::server::{Answer, Api, BodyError, Busy, NotTaken, Peer, parse, read_body};
use crate::volumes::holders::Caller;
use crate::volumes::world::World;
use crate::volumes::{Insist, View, VolumeError, Volumes};
use types::{
    Changed, Checked, Create, Driver, Kept, Load, NotLoaded, Places, Previous, Purged, Refused,
    Resize, Status, Trouble, Volume,
};

/// Most bytes of a request: a component of 64 MiB and the line before it.
const BODY_MAX: usize = (64 << 20) + (64 << 10);
/// How long a load waits for the volumes that its driver's backend knows, so that the operator's next command shows them. A backend that
/// hangs holds up no operator.
const LIST_WAIT: Duration = Duration::from_secs(1);
/// The holder of `wasmvol volume mount`: there is one, and it counts.
const HOLDER: &str = "wasmvol-volume-mount";

/// What the admin API speaks of.
pub(crate) struct Admin<W: World> {
    pub(crate) volumes: Rc<Volumes<W>>,
    pub(crate) catalog: Rc<Catalog>,
    pub(crate) table: Rc<Table>,
    pub(crate) drivers: Rc<Drivers>,
    pub(crate) loader: Rc<Loader<W>>,
    pub(crate) places: Places,
    pub(crate) busy: Busy,
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Loader(#[from] LoaderError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    /// Of no request's words: it is ours that could not be written.
    #[error("the answer could not be written as JSON, please report it: {0}")]
    Json(#[from] serde_json::Error),
    #[error("no such request: this `wasmvol` and its daemon are of different versions")]
    Unknown,
    #[error("the request ended without an answer: see the daemon's log")]
    Lost,
}

impl<W: World> Api for Admin<W> {
    async fn answer(self: Rc<Self>, peer: Rc<Peer>, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let body = match read_body(&peer, body, BODY_MAX).await {
            Ok(body) => body,
            Err(e) => return refused(&e.into()),
        };
        let path: Vec<_> = head.uri.path().split('/').skip(1).collect();
        match self.route(&head.method, &path, body).await {
            Ok(bytes) => reply(StatusCode::OK, bytes),
            Err(refusal) => refused(&refusal),
        }
    }
}

impl<W: World> Admin<W> {
    async fn route(
        self: &Rc<Self>,
        method: &Method,
        path: &[&str],
        body: Bytes,
    ) -> Result<Vec<u8>, Refusal> {
        match (method.as_str(), path) {
            ("GET", ["status"]) => json(&self.status().await?),
            ("GET", ["troubles"]) => {
                self.volumes.look_again().await;
                json(&self.troubles())
            }
            ("GET", ["catalog"]) => Ok(transfer::export(&self.catalog.contents().await?)?),
            ("GET", ["volumes"]) => self.all_volumes().await,
            ("POST", ["volumes"]) => self.create(parse(&body)?).await,
            ("GET", ["volumes", name]) => self.volumes.get(name, |view| json(view))?,
            ("GET", ["volumes", name, "measure"]) => json(&self.volumes.measure(name).await?),
            ("DELETE", ["volumes", name]) => self.remove((*name).to_owned(), Insist::No).await,
            ("DELETE", ["volumes", name, "force"]) => {
                self.remove((*name).to_owned(), Insist::Yes).await
            }
            ("POST", ["volumes", name, "mount"]) => self.mount((*name).to_owned()).await,
            ("POST", ["volumes", name, "unmount"]) => self.unmount((*name).to_owned()).await,
            ("POST", ["volumes", name, "resize"]) => {
                self.resize((*name).to_owned(), parse(&body)?).await
            }
            ("POST", ["scan"]) => json(&self.volumes.scan(None).await?),
            ("POST", ["scan", driver]) => {
                json(&self.volumes.scan(Some(DriverName::parse(driver)?)).await?)
            }
            ("GET", ["kept"]) => json(&self.kept()),
            ("DELETE", ["kept", id]) => self.purge(Id::parse(id)?, Insist::No).await,
            ("DELETE", ["kept", id, "force"]) => self.purge(Id::parse(id)?, Insist::Yes).await,
            ("GET", ["drivers"]) => json(&self.all_drivers().await),
            ("POST", ["drivers"]) => self.load(&body).await,
            ("POST", ["components"]) => self.check(&body).await,
            ("GET", ["drivers", name]) => self.driver(&DriverName::parse(name)?).await,
            ("DELETE", ["drivers", name]) => self.unload(DriverName::parse(name)?).await,
            ("POST", ["drivers", name, "rollback"]) => {
                self.rollback(DriverName::parse(name)?).await
            }
            ("POST", ["drivers", name, "settings"]) => {
                self.set(DriverName::parse(name)?, parse(&body)?).await
            }
            ("POST", ["drivers", name, "grants", "check"]) => {
                self.check_grants(&DriverName::parse(name)?, &body).await
            }
            ("POST", ["drivers", name, "grants"]) => self.regrant(DriverName::parse(name)?).await,
            _ => Err(Refusal::Unknown),
        }
    }

    fn troubles(&self) -> Vec<Trouble> {
        self.drivers.troubles().into_iter().chain(self.volumes.troubles()).collect()
    }

    async fn create(self: &Rc<Self>, create: Create) -> Result<Vec<u8>, Refusal> {
        let this = Rc::clone(self);
        self.finish(async move {
            this.volumes.create(&create.name, create.options).await?;
            this.volumes.get(&create.name, |view| json(view))?
        })
        .await
    }

    async fn remove(self: &Rc<Self>, name: String, insist: Insist) -> Result<Vec<u8>, Refusal> {
        let this = Rc::clone(self);
        self.finish(async move {
            this.volumes.remove(&name, Caller::Cli, insist).await?;
            json(&())
        })
        .await
    }

    async fn mount(self: &Rc<Self>, name: String) -> Result<Vec<u8>, Refusal> {
        let this = Rc::clone(self);
        self.finish(async move {
            this.volumes.mount(&name, HOLDER, Caller::Cli).await?;
            this.volumes.get(&name, |view| json(view))?
        })
        .await
    }

    async fn unmount(self: &Rc<Self>, name: String) -> Result<Vec<u8>, Refusal> {
        let this = Rc::clone(self);
        self.finish(async move {
            this.volumes.get(&name, |_| ())?;
            this.volumes.unmount(&name, HOLDER).await?;
            this.volumes.get(&name, |view| json(view))?
        })
        .await
    }

    async fn resize(self: &Rc<Self>, name: String, to: Resize) -> Result<Vec<u8>, Refusal> {
        let this = Rc::clone(self);
        self.finish(async move {
            this.volumes.resize(&name, &to.size).await?;
            this.volumes.get(&name, |view| json(view))?
        })
        .await
    }

    async fn purge(self: &Rc<Self>, id: Id, insist: Insist) -> Result<Vec<u8>, Refusal> {
        let this = Rc::clone(self);
        self.finish(async move {
            let name = this.volumes.purge(id, insist).await?;
            json(&Purged { purged: id, name })
        })
        .await
    }

    /// A line of JSON, then the component.
    async fn load(self: &Rc<Self>, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut parts = body.splitn(2, |byte| *byte == b'\n');
        let Load { name, changed, origin } = parse(parts.next().unwrap_or_default())?;
        let component = Arc::from(parts.next().unwrap_or_default());
        let this = Rc::clone(self);
        self.finish(async move {
            let request = loader::Request { name, changed, origin, component };
            this.drivers.until_taken_up().await;
            let row = this.loader.load(request).await?;
            this.look_for_volumes(&row.name).await;
            this.driver(&row.name).await
        })
        .await
    }

    async fn check(self: &Rc<Self>, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        self.drivers.until_taken_up().await;
        json(&Checked::of(&self.loader.open(Arc::from(body)).await?))
    }

    async fn rollback(self: &Rc<Self>, name: DriverName) -> Result<Vec<u8>, Refusal> {
        let this = Rc::clone(self);
        self.finish(async move {
            this.drivers.until_taken_up().await;
            this.loader.rollback(&name).await?;
            this.look_for_volumes(&name).await;
            this.driver(&name).await
        })
        .await
    }

    async fn set(self: &Rc<Self>, name: DriverName, changed: Changed) -> Result<Vec<u8>, Refusal> {
        let this = Rc::clone(self);
        self.finish(async move {
            this.drivers.until_taken_up().await;
            this.loader.set(&name, &changed).await?;
            this.look_for_volumes(&name).await;
            this.driver(&name).await
        })
        .await
    }

    /// The grants that it would have, as the operator would write them.
    async fn check_grants(&self, name: &DriverName, granted: &[u8]) -> Result<Vec<u8>, Refusal> {
        self.drivers.until_taken_up().await;
        self.loader.check_grants(name, &String::from_utf8_lossy(granted)).await?;
        json(&())
    }

    async fn regrant(self: &Rc<Self>, name: DriverName) -> Result<Vec<u8>, Refusal> {
        let this = Rc::clone(self);
        self.finish(async move {
            this.drivers.until_taken_up().await;
            this.loader.regrant(&name).await?;
            this.look_for_volumes(&name).await;
            this.driver(&name).await
        })
        .await
    }

    /// Has the volumes found that the backend of a driver knows, which may have come into sight.
    async fn look_for_volumes(&self, name: &DriverName) {
        let (volumes, name) = (Rc::clone(&self.volumes), name.clone());
        let looking = tokio::task::spawn_local(async move { volumes.discover(Some(name)).await });
        // It goes on where nobody waits for it any longer.
        let _ = tokio::time::timeout(LIST_WAIT, looking).await;
    }

    async fn unload(self: &Rc<Self>, name: DriverName) -> Result<Vec<u8>, Refusal> {
        let this = Rc::clone(self);
        self.finish(async move {
            this.drivers.until_taken_up().await;
            this.loader.unload(&name).await?;
            json(&())
        })
        .await
    }

    async fn driver(&self, name: &DriverName) -> Result<Vec<u8>, Refusal> {
        self.drivers.until_taken_up().await;
        let known = self.drivers.known(name).ok_or(LoaderError::NotLoaded(name.clone()))?;
        json(&self.describe(known))
    }

    async fn all_drivers(&self) -> Vec<Driver> {
        self.drivers.until_taken_up().await;
        self.drivers.all_known().into_iter().map(|known| self.describe(known)).collect()
    }

    fn describe(&self, Known { row, driver }: Known) -> Driver {
        let granted = self.drivers.granted(&row.name);
        let previous = |previous: Box<DriverRow>| {
            let DriverRow { version, digest, loaded_at, settings, .. } = *previous;
            Previous { version, digest, loaded_at, settings }
        };
        let description = driver.as_ref().ok().map(|driver| driver.description());
        let missing = |driver: &Description| asked::missing(&driver.grants, &granted);
        let ignored = |driver| self.volumes.undescribed_options(&row.name, driver);
        Driver {
            volumes: self.volumes.of_driver(&row.name).len(),
            ignored: description.map(ignored).unwrap_or_default(),
            missing: description.map(missing).unwrap_or_default(),
            granted,
            component: driver.as_ref().ok().map(Checked::of),
            failed: driver.err().map(|why| NotLoaded { why, digest: row.digest }),
            name: row.name,
            version: row.version,
            first_party: row.first_party,
            origin: row.origin,
            loaded_at: row.loaded_at,
            settings: row.settings,
            previous: row.previous.map(previous),
        }
    }

    /// Written as they are walked: at 10,000 volumes a tree of values would cost more than the bytes.
    async fn all_volumes(&self) -> Result<Vec<u8>, Refusal> {
        let mut list = Vec::new();
        self.volumes
            .get_all(|view| {
                list.push(if list.is_empty() { b'[' } else { b',' });
                serde_json::to_writer(&mut list, view)
            })
            .await?;
        if list.is_empty() {
            list.push(b'[');
        }
        list.push(b']');
        Ok(list)
    }

    fn kept(&self) -> Vec<Kept> {
        self.volumes.get_kept(|record, created_at, data| Kept {
            id: record.id,
            name: record.name.clone(),
            driver: record.driver.clone(),
            created_at: created_at.text(),
            data: data.map(Into::into),
        })
    }

    async fn status(&self) -> Result<Status, Refusal> {
        let (mut volumes, mut mounted) = (0, Vec::new());
        let count = |view: &View<'_>| {
            volumes += 1;
            if view.status.mounted {
                mounted.push(Volume::of(view)?);
            }
            Ok::<_, serde_json::Error>(())
        };
        self.volumes.get_all(count).await?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            places: self.places.clone(),
            volumes,
            mounted,
            drivers: self.drivers.all().into_iter().map(|l| (l.row.name, l.row.version)).collect(),
            commits: BTreeMap::from([
                ("catalog".to_owned(), self.catalog.counts()),
                ("mount-table".to_owned(), self.table.counts()),
            ]),
            troubles: self.troubles(),
        })
    }

    /// Runs what changes something to its end whether or not the client waits for it.
    async fn finish(
        &self,
        change: impl Future<Output = Result<Vec<u8>, Refusal>> + 'static,
    ) -> Result<Vec<u8>, Refusal> {
        let busy = self.busy.clone();
        let (answer, answered) = oneshot::channel();
        tokio::task::spawn_local(async move {
            // The CLI was interrupted: what it asked for is done all the same.
            let _ = answer.send(change.await);
            drop(busy);
        });
        answered.await.unwrap_or(Err(Refusal::Lost))
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    Ok(serde_json::to_vec(value)?)
}

fn refused(refusal: &Refusal) -> Answer {
    let refused = Refused { error: refusal.to_string() };
    reply(StatusCode::BAD_REQUEST, serde_json::to_vec(&refused).unwrap_or_default())
}

fn reply(status: StatusCode, bytes: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(bytes)));
    *answer.status_mut() = status;
    answer
}
