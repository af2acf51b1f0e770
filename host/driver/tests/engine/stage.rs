//! What the tests share: where the guests are, engines, volumes, and a log that can be read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Once};

use wasmvol_driver::types::Options;
use wasmvol_driver::{
    CallError, Compiler, Created, Driver, Engine, EngineOptions, Scope, Value, Volume,
};
use wasmvol_plan::{DriverName, Id, VolumeName};

/// The engine of the tests that are not about its cache: compiled drivers stay in the target directory between runs.
pub(crate) static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-drivers");
    std::fs::create_dir_all(&cache).expect("cache directory");
    engine(&cache, compiler(), 64)
});

pub(crate) fn engine(cache: &Path, compiler: Compiler, calls_max: u32) -> Engine {
    listen();
    Engine::new(EngineOptions { cache: cache.to_owned(), compiler, calls_max }).expect("engine")
}

/// The compiler that the daemon has: this package's own code in a child.
pub(crate) fn compiler() -> Compiler {
    let program =
        there(target().join("release/examples/call"), "cargo test --release -p wasmvol-driver");
    Compiler { program, args: vec!["compile-driver".into()] }
}

/// A compiler that must not be asked.
pub(crate) fn no_compiler() -> Compiler {
    program("/bin/false", &[])
}

pub(crate) fn program(program: &str, args: &[&str]) -> Compiler {
    Compiler { program: program.into(), args: args.iter().map(Into::into).collect() }
}

/// The bytes of a guest.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    std::fs::read(guest_path(name)).expect("guest")
}

/// Where a guest is.
pub(crate) fn guest_path(name: &str) -> PathBuf {
    let path = target().join("wasm32-wasip2/driver").join(name).with_extension("wasm");
    there(path, &format!("cargo build --profile driver --target wasm32-wasip2 -p {name}"))
}

/// The driver that has every ability and misuses them, well behaved until a volume's options say otherwise.
pub(crate) fn rogue() -> Driver {
    ENGINE.load(&name("rogue"), &guest("rogue"), BTreeMap::new()).expect("loads")
}

/// The same with what it does in `list`.
pub(crate) fn rogue_listing(act: &str, with: &str) -> Driver {
    let setting = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let settings = [setting("do", act), setting("with", with)].into();
    ENGINE.load(&name("rogue"), &guest("rogue"), settings).expect("loads")
}

/// A volume that has that driver do something with something.
pub(crate) fn volume_with(act: &str, with: &str) -> Volume {
    let mut volume = volume(act);
    volume.options.insert("with".to_owned(), Value::Text(with.to_owned()));
    volume
}

/// The hostile driver with the setting `do`: for `describe` and `list`.
pub(crate) fn hostile(act: &str) -> Result<Driver, wasmvol_driver::LoadError> {
    let settings = BTreeMap::from([("do".to_owned(), act.to_owned())]);
    ENGINE.load(&name("hostile"), &guest("hostile"), settings)
}

/// The hostile driver, well behaved until a volume's option says otherwise.
pub(crate) fn well_behaved() -> Driver {
    hostile("nothing").expect("hostile driver loads")
}

pub(crate) fn name(name: &str) -> DriverName {
    DriverName::parse(name).expect("driver name")
}

pub(crate) fn options(act: &str) -> Options {
    Options::from([("do".to_owned(), Value::Text(act.to_owned()))])
}

pub(crate) fn volume(act: &str) -> Volume {
    let (id, name) = (Id::from_bits(7), VolumeName::parse("data").expect("volume name"));
    Volume { id, name, options: options(act), state: Vec::new() }
}

pub(crate) fn create(driver: &Driver, act: &str) -> Result<Created, CallError> {
    let volume = volume(act);
    driver
        .create(volume.id, &volume.name, &volume.options, Scope::default())
        .map(|answer| answer.value)
}

/// The memory that this process has, in bytes.
pub(crate) fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages = statm.split(' ').nth(1).expect("resident").parse::<u64>().expect("pages");
    pages * 4096
}

/// Runs `body` and returns what was logged on this thread.
pub(crate) fn logged<T>(body: impl FnOnce() -> T) -> (T, String) {
    listen();
    LOGGED.replace(Some(Vec::new()));
    let result = body();
    let bytes = LOGGED.take().expect("it was not taken meanwhile");
    (result, String::from_utf8(bytes).expect("log is text"))
}

/// One subscriber for all threads: of those that a thread has for a while, tracing may miss a line while another comes or goes.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(|| Lines).init();
    });
}

thread_local! {
    /// What was logged on this thread, while somebody asks for it.
    static LOGGED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGGED.with_borrow_mut(|logged| logged.iter_mut().for_each(|all| all.extend(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The target directory: this program is `TARGET/release/deps/engine-…`.
fn target() -> PathBuf {
    let program = std::env::current_exe().expect("own path");
    program.ancestors().nth(3).expect("target directory").to_owned()
}

fn there(path: PathBuf, how: &str) -> PathBuf {
    assert!(path.exists(), "`{}` is missing: run `{how}` first", path.display());
    path
}
