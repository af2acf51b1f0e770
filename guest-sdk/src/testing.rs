//! Testing a driver natively: volumes as the host would make them from what a user typed, and the sequences a host may send.
//!
//! Called by `#[cfg(test)]` code of drivers; not there in a component. Nothing is run in a sandbox and nothing is mounted.

mod conformance;
mod parse;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::LocalKey;

use crate::{Driver, Entry, Error, ErrorCode, OptionSpec, OptionValue, Result, Volume};

pub use conformance::conformance;

/// The keys that the host keeps for itself in every driver.
const RESERVED: [&str; 4] = ["driver", "from", "reclaim", "plugin"];

/// A volume as the host gives it to the driver, from options as a user types them: `[("size", "64m")]`. Parsed by the driver's
/// own description, defaults filled in, state empty, with an id that no other volume of this process has.
///
/// # Errors
/// `invalid-option`, as the host refuses an option before the driver sees it.
pub fn volume<D: Driver>(
    name: &str,
    options: impl IntoIterator<Item = (&'static str, &'static str)>,
) -> Result<Volume> {
    static MADE: AtomicU64 = AtomicU64::new(1);
    let id = format!("{:032x}", MADE.fetch_add(1, Ordering::Relaxed));
    let given: BTreeMap<_, _> = options.into_iter().collect();
    let specs = D::describe().options;
    if let Some(unknown) = given.keys().find(|key| specs.iter().all(|spec| spec.key != **key)) {
        return Err(Error::new(ErrorCode::InvalidOption, format!("no option `{unknown}`")));
    }
    let mut parsed = Vec::new();
    for spec in &specs {
        parsed.extend(value_of(spec, given.get(spec.key.as_str()).copied())?);
    }
    parsed.sort_by(|first, second| first.key.cmp(&second.key));
    Ok(Volume { id, name: name.to_owned(), options: parsed, state: Vec::new() })
}

/// Runs code with another value of what is this thread's.
fn with<T: Default, R>(key: &'static LocalKey<RefCell<T>>, value: T, run: impl FnOnce() -> R) -> R {
    /// Puts the former value back, also when the code panics.
    struct Former<T: Default + 'static>(&'static LocalKey<RefCell<T>>, T);
    impl<T: Default> Drop for Former<T> {
        fn drop(&mut self) {
            self.0.set(std::mem::take(&mut self.1));
        }
    }
    let _former = Former(key, key.replace(value));
    run()
}

/// Runs code with the settings that an operator might write; they end with it.
pub fn with_settings<T>(
    settings: impl IntoIterator<Item = (&'static str, &'static str)>,
    run: impl FnOnce() -> T,
) -> T {
    with(&SETTINGS, settings.into_iter().collect(), run)
}

thread_local! {
    // Of a thread, because tests run side by side.
    static SETTINGS: RefCell<BTreeMap<&'static str, &'static str>> = RefCell::default();
}

/// What [`settings::get`](crate::settings::get) answers in a native test.
pub(crate) fn setting(key: &str) -> Option<String> {
    SETTINGS.with_borrow(|settings| settings.get(key).map(|&value| value.to_owned()))
}

/// Runs code with these granted roots, each with what is marked beneath it; they end with it.
pub fn with_roots<T>(
    roots: impl IntoIterator<Item = (&'static str, Vec<Entry>)>,
    run: impl FnOnce() -> T,
) -> T {
    with(&ROOTS, roots.into_iter().collect(), run)
}

/// What a host would mark of a volume in the directory of its name.
#[must_use]
pub fn entry(volume: &Volume) -> Entry {
    let Volume { id, name, options, .. } = volume.clone();
    Entry { directory: name.clone(), name, id, options }
}

thread_local! {
    static ROOTS: RefCell<Vec<(&'static str, Vec<Entry>)>> = RefCell::default();
}

/// What [`roots::granted`](crate::roots::granted) answers in a native test.
pub(crate) fn granted() -> Vec<String> {
    ROOTS.with_borrow(|roots| roots.iter().map(|(root, _)| (*root).to_owned()).collect())
}

/// What [`roots::entries`](crate::roots::entries) answers in a native test.
pub(crate) fn entries(root: &str) -> Result<Vec<Entry>> {
    let entries = ROOTS.with_borrow(|roots| {
        roots.iter().find(|(granted, _)| *granted == root).map(|(_, entries)| entries.clone())
    });
    entries.ok_or_else(|| Error::new(ErrorCode::Denied, format!("`{root}` is no granted root")))
}

/// Runs code with a store that holds this; it ends with it.
pub fn with_store<T>(
    pairs: impl IntoIterator<Item = (&'static str, &'static str)>,
    run: impl FnOnce() -> T,
) -> T {
    let pairs = pairs.into_iter().map(|(key, value)| (key.to_owned(), value.into()));
    with(&STORE, pairs.collect(), run)
}

thread_local! {
    static STORE: RefCell<BTreeMap<String, Vec<u8>>> = RefCell::default();
}

/// What [`store::get`](crate::store::get) answers in a native test.
pub(crate) fn stored(key: &str) -> Option<Vec<u8>> {
    STORE.with_borrow(|store| store.get(key).cloned())
}

/// What [`store::keys`](crate::store::keys) answers in a native test.
pub(crate) fn stored_keys(prefix: &str) -> Vec<String> {
    STORE.with_borrow(|store| store.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
}

/// What [`store::set`](crate::store::set) and [`store::delete`](crate::store::delete) do in a native test.
pub(crate) fn store(key: &str, value: Option<&[u8]>) {
    STORE.with_borrow_mut(|store| match value {
        Some(value) => drop(store.insert(key.to_owned(), value.to_vec())),
        None => drop(store.remove(key)),
    });
}

/// Runs code with these secrets revealed; they end with it.
pub fn with_secrets<T>(
    secrets: impl IntoIterator<Item = (&'static str, &'static str)>,
    run: impl FnOnce() -> T,
) -> T {
    with(&SECRETS, secrets.into_iter().collect(), run)
}

thread_local! {
    static SECRETS: RefCell<BTreeMap<&'static str, &'static str>> = RefCell::default();
}

/// What [`secrets::reveal`](crate::secrets::reveal) answers in a native test.
pub(crate) fn reveal(name: &str) -> Result<Vec<u8>> {
    let secret =
        SECRETS.with_borrow(|secrets| secrets.get(name).map(|text| text.as_bytes().into()));
    secret.ok_or_else(|| Error::new(ErrorCode::NotFound, format!("no secret `{name}` is kept")))
}

/// Runs code whose requests `answer` answers.
#[cfg(feature = "http")]
pub fn with_http<T>(
    answer: impl FnMut(crate::http::Request) -> Result<crate::http::Response> + 'static,
    run: impl FnOnce() -> T,
) -> T {
    with(&HTTP, Some(Box::new(answer)), run)
}

#[cfg(feature = "http")]
type Answer = Box<dyn FnMut(crate::http::Request) -> Result<crate::http::Response>>;

#[cfg(feature = "http")]
thread_local! {
    static HTTP: RefCell<Option<Answer>> = RefCell::default();
}

/// What [`Request::send`](crate::http::Request::send) answers in a native test.
#[cfg(feature = "http")]
pub(crate) fn answer(request: crate::http::Request) -> Result<crate::http::Response> {
    HTTP.with_borrow_mut(|answer| match answer {
        Some(answer) => answer(request),
        None => Err(Error::new(ErrorCode::Denied, "no host is granted in this test")),
    })
}

/// One option of a volume, where it has a value.
fn value_of(spec: &OptionSpec, given: Option<&str>) -> Result<Option<OptionValue>> {
    let key = spec.key.clone();
    match given.or(spec.default.as_deref()) {
        Some(text) => {
            Ok(Some(OptionValue { value: parse::value(&key, spec.value_type, text)?, key }))
        }
        None if spec.required => {
            Err(Error::new(ErrorCode::InvalidOption, format!("option `{key}` is required")))
        }
        None => Ok(None),
    }
}
