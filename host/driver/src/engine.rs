//! The engine: wasmtime set up once, and components made into drivers.
//!
//! Called by the daemon at start and by `driver load`, from threads that may block. It keeps no list of what is loaded: a
//! [`Driver`] holds all that it needs, and unloading is dropping it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};
use tokio::runtime::{Handle, Runtime};
use wasmtime::component::{Component, Linker};
use wasmvol_plan::DriverName;

use crate::cache::Cache;
use crate::call::{DESCRIBE, State};
use crate::compile::{COMPONENT_MAX, CompileError, Compiler};
use crate::config;
use crate::contract;
use crate::driver::{Calls, Driver, Facts, WIDE_MAX, speaks_http};
use crate::http::Names;
use crate::journal::Log;
use crate::meter::Meter;
use crate::pace::Lane;
use crate::ticker::Ticker;
use crate::turnstile::Turnstile;
use crate::types::{CallError, Scope};

/// A driver may have one in this many of the calls at once that the others leave. So it takes 14 drivers that hang before a 15th that asks
/// hosts has none.
const SHARE: usize = 4;
/// One in this many of the engine's calls is for those that end soon, however many others wait for hosts or fill volumes.
const SOON: usize = 4;

/// Threads that encrypt and decrypt for all drivers.
const NETWORK_THREADS: usize = 2;
/// Threads for what a name server or a disk may hold up, which nothing can end: names of 14 drivers whose name servers do not answer, and
/// files of those that fill volumes.
const BLOCKED_MAX: usize = 72;

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Directory of compiled components; the engine's own, and there already.
    pub cache: PathBuf,
    /// How components are compiled.
    pub compiler: Compiler,
    /// Most calls at once, of all drivers together; each has at most 64 MiB of memory. At least 1.
    pub calls_max: u32,
}

/// wasmtime, set up. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) wasmtime: wasmtime::Engine,
    linker: Linker<State>,
    cache: Cache,
    compiler: Compiler,
    /// For all calls, and for those that may take long.
    turnstiles: [Turnstile; 2],
    pub(crate) ticker: Ticker,
    /// What waits for hosts, made when the first driver asks one.
    network: OnceLock<io::Result<Network>>,
    pub(crate) meter: Option<Meter>,
    /// Turns of the calls that compute much, and of those that fill volumes.
    lanes: [Lane; 2],
    /// The directory of the cache, whose disk is everybody's.
    pub(crate) disk: Arc<OwnedFd>,
}

/// Threads of their own for what waits for hosts, so that what a driver fetches delays nobody who asks the daemon.
struct Network(Option<Runtime>);

impl Network {
    fn start() -> io::Result<Self> {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .max_blocking_threads(BLOCKED_MAX)
            .thread_name("network")
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The last driver may go where nothing may block, and a name server may never answer.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    /// Where a call waits: among the caller's own, or apart if it may ask hosts or write to a disk.
    pub(crate) fn waits(&self, apart: bool) -> Result<Handle, CallError> {
        if let Some(own) = Handle::try_current().ok().filter(|_| !apart) {
            return Ok(own);
        }
        match self.network.get_or_init(Network::start) {
            Ok(Network(Some(runtime))) => Ok(runtime.handle().clone()),
            Ok(Network(None)) => Err(CallError::Host("the daemon ends".to_owned())),
            Err(error) => Err(CallError::Host(format!("no thread for its requests: {error}"))),
        }
    }
}

/// Why a component did not become a driver. One line each; none names the driver.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// wasmtime could not be set up.
    #[error("wasm engine cannot be set up: {0}")]
    Engine(String),
    /// Not a component at all.
    #[error("{0}")]
    NotAComponent(&'static str),
    /// Too many bytes.
    #[error("component has {0} bytes: at most {COMPONENT_MAX} are allowed")]
    TooLarge(usize),
    /// It could not be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The cache could not be written.
    #[error("compiled drivers cannot be kept: {0}")]
    Cache(#[from] io::Error),
    /// It exports no contract that this host speaks.
    #[error("{0}")]
    Export(String),
    /// It imports something that is not on offer.
    #[error("{0}")]
    Import(String),
    /// `describe` gave no answer that can be used.
    #[error("`describe` failed: {0}")]
    Describe(CallError),
}

impl Engine {
    /// Sets up wasmtime and starts its clock.
    ///
    /// # Errors
    /// The cache directory cannot be read, or wasmtime cannot be set up on this machine.
    pub fn new(options: EngineOptions) -> Result<Self, LoadError> {
        Self::set_up(options, None)
    }

    /// The same, and it notes what each call takes.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn metered(options: EngineOptions, meter: Meter) -> Result<Self, LoadError> {
        Self::set_up(options, Some(meter))
    }

    fn set_up(options: EngineOptions, meter: Option<Meter>) -> Result<Self, LoadError> {
        let calls_max = options.calls_max.max(1);
        let wasmtime = wasmtime::Engine::new(&config::pooled(calls_max)).or_else(|error| {
            tracing::warn!(
                "no memory can be reserved for drivers, calls will be slower: {error:#}"
            );
            wasmtime::Engine::new(&config::config())
        });
        let wasmtime = wasmtime.map_err(|error| LoadError::Engine(format!("{error:#}")))?;
        let linker =
            contract::linker(&wasmtime).map_err(|error| LoadError::Engine(format!("{error:#}")))?;
        let calls_max = usize::try_from(calls_max).unwrap_or(usize::MAX);
        let disk = Arc::new(File::open(&options.cache)?.into());
        Ok(Self {
            inner: Arc::new(Inner {
                linker,
                lanes: [Lane::computing(), Lane::filling()],
                disk,
                cache: Cache::open(options.cache, &wasmtime)?,
                compiler: options.compiler,
                turnstiles: [calls_max, calls_max - calls_max / SOON].map(Turnstile::new),
                ticker: Ticker::start(wasmtime.clone())?,
                network: OnceLock::new(),
                wasmtime,
                meter,
            }),
        })
    }

    /// Makes a driver of a component: compiles it unless that was done before, checks what it imports and exports, and asks it
    /// to describe itself. Blocks: up to minutes for a large component that was never compiled.
    ///
    /// # Errors
    /// The first thing that is wrong with the component.
    pub fn load(
        &self,
        name: &DriverName,
        component: &[u8],
        settings: BTreeMap<String, String>,
    ) -> Result<Driver, LoadError> {
        check_kind(component)?;
        let digest = hex(&Sha256::digest(component));
        let compiled = self.compiled(&digest, component)?;
        let contract = contract::contract(&self.inner.linker, &compiled)?;
        let (imports, exports) = contract::interfaces(&compiled);
        let turnstiles = self.inner.turnstiles.each_ref().map(|all| all.of_one(SHARE));
        let [calls_max, _] = turnstiles.each_ref().map(Turnstile::most);
        let calls = Calls {
            contract,
            engine: Arc::clone(&self.inner),
            turnstiles,
            wide: [Turnstile::new(WIDE_MAX), Turnstile::new(WIDE_MAX)],
            names: Names::new(),
            lanes: self.inner.lanes.each_ref().map(Lane::of_one),
            log: Log::new(name.clone()),
            settings: Arc::new(settings),
            speaks_http: speaks_http(&imports),
        };
        let description = calls
            .ask(&DESCRIBE, Scope::default(), |contract, call| contract.describe(call))
            .map_err(LoadError::Describe)?;
        let size = component.len();
        let facts =
            Facts { name: name.clone(), description, digest, size, imports, exports, calls_max };
        Ok(Driver::new(calls, facts))
    }

    /// Deletes what was compiled of a component that no driver is any more, by the digest of [`Driver::digest`].
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn forget(&self, digest: &str) -> io::Result<()> {
        self.inner.cache.forget(digest)
    }

    /// Deletes what was compiled of every component but these.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn keep_only(&self, digests: &BTreeSet<String>) -> io::Result<()> {
        self.inner.cache.keep_only(digests)
    }

    fn compiled(&self, digest: &str, component: &[u8]) -> Result<Component, LoadError> {
        let Inner { cache, compiler, .. } = &*self.inner;
        if let Some(compiled) = cache.find(digest) {
            return Ok(compiled);
        }
        cache.store::<LoadError>(digest, |file| Ok(compiler.run(component, file)?))?;
        cache.find(digest).ok_or_else(|| {
            LoadError::Engine("what was compiled cannot be loaded: see the log".to_owned())
        })
    }
}

/// Tells a component from everything else that people have in a file, before a compiler sees it.
pub(crate) fn check_kind(component: &[u8]) -> Result<(), LoadError> {
    if component.len() > COMPONENT_MAX {
        return Err(LoadError::TooLarge(component.len()));
    }
    match component.get(..8) {
        Some(b"\0asm\x0d\0\x01\0") => Ok(()),
        Some(b"\0asm\x01\0\0\0") => Err(LoadError::NotAComponent(
            "is a core module, not a component: build it for `wasm32-wasip2`",
        )),
        _ => Err(LoadError::NotAComponent("is no WebAssembly component")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
