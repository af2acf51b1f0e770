//! The daemon: opens the stores, serves both sockets at once, takes up drivers and recovers behind them, and drains at the end.
//!
//! Started by mountd without privileges, with everything it may touch as inherited file descriptors. One thread runs all of it;
//! drivers and store commits have threads of their own. Nothing is unmounted because the daemon stops.

pub(crate) mod inherit;

use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::runtime::LocalOptions;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use wasmvol_driver::{Compiler, Engine, EngineOptions};
use wasmvol_plan::DriverName;

use crate::admin::Admin;
use crate::admin::types::Places;
use crate::catalog::durable::Catalog;
use crate::catalog::table::Table;
use crate::drivers::Drivers;
use crate::drivers::loader::Loader;
use crate::machine::{self, Machine};
use crate::mounter::Mounter;
use crate::plugin::Plugin;
use crate::server::{self, Busy};
use crate::volumes::world::World;
use crate::volumes::{Settings, Volumes};

use inherit::Inherited;

/// Driver calls at once. Each may use 64 MiB and a thread; dockerd sends as many requests as it has containers starting.
const CALLS_MAX: u32 = 64;
/// Threads for driver calls and files. A call has one while it waits for its turn, too, and a driver has 16 calls: 31 whose backends hang
/// leave some for the others, and for loading.
const THREADS_MAX: usize = 8 * CALLS_MAX as usize;
/// Files that are open at once: what 64 calls may have, 256 connections on each socket, and room.
const FILES_MAX: u64 = 16_384;
/// The status that says: started again as it is, the daemon would end again (EX_CONFIG). mountd then ends too.
pub(crate) const CANNOT_RUN: u8 = 78;
/// How long requests in flight may take after SIGTERM: systemd kills after 90 s, and a person at a terminal waits.
const DRAIN: Duration = Duration::from_secs(10);

/// What mountd says to the daemon. Hidden: nobody types it.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    mountd_fd: RawFd,
    #[arg(long, value_parser = named_fd)]
    plugin_fd: (String, RawFd),
    #[arg(long)]
    admin_fd: RawFd,
    #[arg(long)]
    catalog_dir: PathBuf,
    #[arg(long)]
    components_dir: PathBuf,
    #[arg(long)]
    cache_dir: PathBuf,
    #[arg(long)]
    table_dir: PathBuf,
    #[arg(long)]
    grants_dir: PathBuf,
    #[arg(long)]
    drivers_dir: Option<PathBuf>,
    #[arg(long)]
    mountpoints: String,
    #[arg(long)]
    runtime_dir: PathBuf,
    #[command(flatten)]
    pub(crate) passed: Passed,
}

/// What `wasmvol serve` says to the daemon through mountd.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Passed {
    #[arg(long, value_parser = |text: &str| DriverName::parse(text))]
    pub(crate) default_driver: DriverName,
    #[arg(long)]
    pub(crate) log: String,
    /// Where things are as the operator knows them: the daemon itself has file descriptors only.
    #[arg(long)]
    pub(crate) shown_config_dir: PathBuf,
    #[arg(long)]
    pub(crate) shown_state_dir: PathBuf,
    #[arg(long)]
    pub(crate) shown_plugin_dir: PathBuf,
}

fn named_fd(text: &str) -> Result<(String, RawFd), String> {
    let (name, number) = text.split_once('=').ok_or("it has the form NAME=NUMBER")?;
    Ok((name.to_owned(), number.parse().map_err(|e| format!("{e}"))?))
}

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    #[error(transparent)]
    Store(#[from] crate::catalog::StoreError),
    #[error(transparent)]
    Engine(#[from] wasmvol_driver::LoadError),
}

/// The real world.
struct Host {
    catalog: Rc<Catalog>,
    table: Rc<Table>,
    mounter: Mounter,
    drivers: Rc<Drivers>,
    machine: Rc<Machine>,
}

impl World for Host {
    type Catalog = Catalog;
    type Table = Table;
    type Mounter = Mounter;
    type Drivers = Drivers;
    type Machine = Machine;
    type Root = OwnedFd;

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }
    fn table(&self) -> &Table {
        &self.table
    }
    fn mounter(&self) -> &Mounter {
        &self.mounter
    }
    fn drivers(&self) -> &Drivers {
        &self.drivers
    }
    fn machine(&self) -> &Machine {
        &self.machine
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    end_at_a_panic();
    may_open_more();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS_MAX)
        .thread_name(CALLS)
        .build_local(LocalOptions::default());
    let served = match runtime {
        Ok(runtime) => {
            let served = runtime.block_on(serve(arguments));
            ENDING.store(true, Ordering::SeqCst);
            // A driver that is being compiled is not waited for.
            runtime.shutdown_background();
            served
        }
        Err(e) => Err(StartError::Io("no event loop can be made", e)),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("the daemon cannot start: {e}");
            ExitCode::from(CANNOT_RUN)
        }
    }
}

/// Takes as many open files as it may have: shells and containers give 1024 of them to begin with, and a driver's calls may have more.
fn may_open_more() {
    let own = getrlimit(Resource::RLIMIT_NOFILE);
    let raised = own.and_then(|(soft, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(FILES_MAX)), hard)
    });
    if let Err(e) = raised {
        tracing::warn!("no more files can be opened than there may be now: {e}");
    }
}

/// The name of the threads on which drivers are called.
const CALLS: &str = "calls";
/// The event loop has ended. A driver's call that is still under way loses its timers by that, and panics: its thread ends so.
static ENDING: AtomicBool = AtomicBool::new(false);

/// A fault of ours leaves memory as nobody meant it, while the stores are whole: mountd starts a new daemon over them within
/// milliseconds, and its listeners keep the clients.
fn end_at_a_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let calls = [Some(CALLS), Some(wasmvol_driver::BEHIND_THREAD)];
        if ENDING.load(Ordering::SeqCst) && calls.contains(&std::thread::current().name()) {
            return;
        }
        tracing::error!("a fault of wasmvol's own, please report it: {panic}");
        std::process::abort();
    }));
}

async fn serve(arguments: Arguments) -> Result<(), StartError> {
    let io = |what| move |e| StartError::Io(what, e);
    let mut terminated = signal(SignalKind::terminate()).map_err(io("SIGTERM"))?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(io("SIGINT"))?;
    let (plugin, plugin_fd) = &arguments.plugin_fd;
    let mut inherited = Inherited::from_env();
    let mut listener = |number| asynchronous(inherited.listener(number)?);
    let plugin_socket = listener(*plugin_fd).map_err(io("plugin socket"))?;
    let admin_socket = listener(arguments.admin_fd).map_err(io("admin socket"))?;
    let pair = inherited.pair(arguments.mountd_fd).map_err(io("mountd's socket"))?;
    let mounter = Mounter::start(pair).map_err(io("mountd's socket"))?;

    let boot_id = machine::boot_id().map_err(io("boot id"))?;
    let (catalog, mut contents) = Catalog::open(&arguments.catalog_dir)?;
    let driver_rows = std::mem::take(&mut contents.drivers);
    let (table, mount_rows) = Table::open(&arguments.table_dir, &boot_id)?;
    warn_of_a_disk(&arguments);
    let (catalog, table) = (Rc::new(catalog), Rc::new(table));
    let machine = Rc::new(Machine::new().map_err(io("/dev/urandom"))?);
    let engine = Engine::new(engine_options(&arguments))?;
    let drivers = Rc::new(Drivers::new(engine, &arguments.grants_dir, &mounter));
    let world = Host {
        catalog: Rc::clone(&catalog),
        table: Rc::clone(&table),
        mounter,
        drivers: Rc::clone(&drivers),
        machine: Rc::clone(&machine),
    };
    let settings = Settings {
        mountpoints: arguments.mountpoints.clone(),
        state_dir: arguments.passed.shown_state_dir.display().to_string(),
        default_driver: arguments.passed.default_driver.clone(),
        plugin: plugin.clone(),
    };
    let volumes = Volumes::new(world, settings, contents, mount_rows);
    let loader = Loader::new(
        Rc::clone(&volumes),
        Rc::clone(&catalog),
        Rc::clone(&drivers),
        machine,
        &arguments.components_dir,
    );

    let (stop, stopped) = watch::channel(false);
    let (busy, mut idle) = Busy::new();
    let admin = Rc::new(Admin {
        volumes: Rc::clone(&volumes),
        catalog,
        table,
        drivers,
        loader: Rc::clone(&loader),
        places: places(&arguments),
        busy: busy.clone(),
    });
    let plugin = Plugin::new(Rc::clone(&volumes), busy.clone());
    tokio::task::spawn_local(server::serve(plugin_socket, plugin, stopped.clone(), busy.clone()));
    tokio::task::spawn_local(server::serve(admin_socket, admin, stopped, busy));
    notify_ready();
    let first_party = arguments.drivers_dir.clone();
    tokio::task::spawn_local(settle(Rc::clone(&volumes), loader, driver_rows, first_party));

    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    // Nobody listens only if both loops have ended already.
    let _ = stop.send(true);
    if tokio::time::timeout(DRAIN, idle.wait()).await.is_err() {
        tracing::warn!("requests did not end within {} s: recovery takes them up", DRAIN.as_secs());
    }
    farewell(&volumes.mounted(), &arguments.plugin_fd.0);
    Ok(())
}

/// The mount table is synced by the thread that answers everybody: in memory that takes no time, on a disk all wait for it.
fn warn_of_a_disk(arguments: &Arguments) {
    if !machine::is_in_memory(&arguments.table_dir) {
        tracing::warn!(
            "`--runtime-dir {}` is on a disk, and every request waits for its syncs: use a directory on a tmpfs, as /run is",
            arguments.runtime_dir.display()
        );
    }
}

/// Takes up the drivers, recovers, and from then on tries again what waits.
async fn settle(
    volumes: Rc<Volumes<Host>>,
    loader: Rc<Loader<Host>>,
    rows: Vec<crate::catalog::DriverRow>,
    first_party: Option<PathBuf>,
) {
    // Verbs wait for the driver that they need, recovery for none.
    let all = Rc::clone(&volumes);
    tokio::task::spawn_local(async move {
        loader.take_up(rows, first_party.as_deref()).await;
        // The first round may have come before them.
        all.discover(None).await;
    });
    // What recovery waits for holds up no round.
    tokio::join!(volumes.recover(), volumes.keep_up());
}

fn engine_options(arguments: &Arguments) -> EngineOptions {
    EngineOptions {
        cache: arguments.cache_dir.clone(),
        compiler: Compiler {
            program: "/proc/self/exe".into(),
            args: vec!["compile-driver".into()],
        },
        calls_max: CALLS_MAX,
    }
}

fn places(arguments: &Arguments) -> Places {
    let Passed { shown_config_dir, shown_state_dir, shown_plugin_dir, .. } = &arguments.passed;
    Places {
        plugin: arguments.plugin_fd.0.clone(),
        plugin_dir: shown_plugin_dir.clone(),
        state_dir: shown_state_dir.clone(),
        runtime_dir: arguments.runtime_dir.clone(),
        config_dir: shown_config_dir.clone(),
    }
}

fn asynchronous(listener: std::os::unix::net::UnixListener) -> std::io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Tells systemd, if it asked to be told. Stopping it is not told: this process may be ended alone, and mountd starts the next one
/// while systemd would still wait for the whole service to go.
fn notify_ready() {
    if let Err(e) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("systemd could not be told: {e}");
    }
}

/// What a person should know after the daemon has gone.
fn farewell(mounted: &[String], plugin: &str) {
    let stay = match mounted {
        [] => "no volume is mounted".to_owned(),
        names => format!("still mounted, their containers keep their data: {}", names.join(", ")),
    };
    tracing::info!(
        "ended; {stay}; until it is back, requests that need plugin `{plugin}` wait in systemd's wasmvol.socket or, where there \
         is none, fail after the 15 s that dockerd tries"
    );
}
