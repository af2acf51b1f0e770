//! The contract's line 0.1: the adapter between generated types and the host's own.
//!
//! Every answer is checked here for what the contract says and for what this host serves; what leaves is fit to be stored and
//! shown. Whether a plan fits its volume and is granted is not asked here.

use wasmtime::Store;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{DriverName, Id, Plan, VolumeName};

use crate::LoadError;
use crate::answer::{
    FOUND_MAX, GRANTS_MAX, HELP_MAX, KEY_MAX, MESSAGE_MAX, OPTIONS_MAX, STATE_MAX, TEXT_MAX,
    VALUE_MAX, VERSION_MAX, bounded, broken, count, one_line,
};
use crate::call::{Call, State};
use crate::journal::Level;
use crate::types::{
    CallError, Created, Description, ErrorCode, Found, Marked, OptionSpec, Options, Reclaim, Value,
    ValueType, Volume,
};

mod answers;

mod generated {
    wasmtime::component::bindgen!({ path: "../../wit/since_v0.1.0", world: "driver" });
}

use answers::{plan, storage};
use generated::DriverPre;
use generated::exports::wasmvol::driver::volumes as wire;
use generated::exports::wasmvol::driver::volumes::Guest;
use generated::wasmvol::driver::{log, roots, secrets, settings, store, types};

/// Option keys that belong to the host in every driver.
const RESERVED: [&str; 4] = ["driver", "from", "reclaim", "plugin"];

/// A component that speaks this line, ready to be instantiated.
pub(crate) struct Contract {
    pre: DriverPre<State>,
}

/// Adds the imports of this line.
pub(super) fn offer(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    generated::Driver::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

impl Contract {
    /// Checks a component's imports and exports, and prepares its instances.
    pub(crate) fn new(linker: &Linker<State>, component: &Component) -> Result<Self, LoadError> {
        super::check(component)?;
        let pre = linker
            .instantiate_pre(component)
            .map_err(|error| LoadError::Import(one_line(&format!("{error:#}"), MESSAGE_MAX)))?;
        let pre = DriverPre::new(pre)
            .map_err(|error| LoadError::Export(one_line(&format!("{error:#}"), MESSAGE_MAX)))?;
        Ok(Self { pre })
    }

    /// `describe`.
    pub(crate) fn describe(&self, call: Call<'_>) -> Result<Description, CallError> {
        description(self.ask(call, |volumes, store| volumes.call_describe(store))?)
    }

    /// `create`.
    pub(crate) fn create(
        &self,
        call: Call<'_>,
        id: Id,
        name: &VolumeName,
        options: &Options,
    ) -> Result<Created, CallError> {
        let (id, options) = (id.to_string(), to_wire(options));
        let answer = self
            .ask(call, |volumes, store| volumes.call_create(store, &id, name.as_str(), &options))?;
        let created = answer.map_err(failed)?;
        Ok(Created { storage: storage(created.storage, name)?, state: state(created.state)? })
    }

    /// `remove`.
    pub(crate) fn remove(&self, call: Call<'_>, volume: &Volume) -> Result<Reclaim, CallError> {
        let volume = volume_to_wire(volume);
        let answer = self.ask(call, |volumes, store| volumes.call_remove(store, &volume))?;
        Ok(match answer.map_err(failed)? {
            types::Reclaim::Delete => Reclaim::Delete,
            types::Reclaim::Retain => Reclaim::Retain,
        })
    }

    /// `path`.
    pub(crate) fn path(&self, call: Call<'_>, volume: &Volume) -> Result<Plan, CallError> {
        let volume = volume_to_wire(volume);
        let answer = self.ask(call, |volumes, store| volumes.call_path(store, &volume))?;
        plan(answer.map_err(failed)?)
    }

    /// `list`.
    pub(crate) fn list(&self, call: Call<'_>) -> Result<Vec<Found>, CallError> {
        let answer = self.ask(call, |volumes, store| volumes.call_list(store))?;
        let all = answer.map_err(failed)?;
        count("list", all.len(), FOUND_MAX, "volumes")?;
        all.into_iter().map(found).collect()
    }

    fn ask<T>(
        &self,
        call: Call<'_>,
        body: impl FnOnce(&Guest, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, CallError> {
        call.run(|store| {
            let instance = self.pre.instantiate(&mut *store)?;
            body(instance.wasmvol_driver_volumes(), store)
        })
    }
}

impl types::Host for State {}

impl log::Host for State {
    fn write(&mut self, level: log::Level, message: String) {
        let level = match level {
            log::Level::Error => Level::Error,
            log::Level::Warn => Level::Warn,
            log::Level::Info => Level::Info,
            log::Level::Debug => Level::Debug,
        };
        self.journal.lock().write(level, &message);
    }
}

impl settings::Host for State {
    fn get(&mut self, key: String) -> Option<String> {
        self.settings.get(&key).cloned()
    }

    fn all(&mut self) -> Vec<(String, String)> {
        self.settings.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

impl roots::Host for State {
    fn granted(&mut self) -> Vec<String> {
        self.roots.0.iter().map(|root| root.path.clone()).collect()
    }

    fn entries(&mut self, root: String) -> Result<Vec<roots::Entry>, types::Error> {
        let entry = |marked: &Marked| roots::Entry {
            name: marked.name.to_string(),
            id: marked.id.to_string(),
            directory: marked.directory.clone(),
            options: to_wire(&marked.options),
        };
        match self.roots.0.iter().find(|granted| granted.path == root) {
            Some(root) => Ok(root.marked.iter().map(entry).collect()),
            None => Err(types::Error {
                code: types::ErrorCode::Denied,
                message: format!("{} is no granted root", Quoted::new(&root)),
            }),
        }
    }
}

impl store::Host for State {
    fn get(&mut self, _: String) -> Option<Vec<u8>> {
        None
    }

    fn set(&mut self, _: String, _: Vec<u8>) -> Result<(), types::Error> {
        Err(unserved("store"))
    }

    fn delete(&mut self, _: String) -> Result<(), types::Error> {
        Err(unserved("store"))
    }

    fn keys(&mut self, _: String) -> Vec<String> {
        Vec::new()
    }
}

impl secrets::Host for State {
    fn reveal(&mut self, _: String) -> Result<Vec<u8>, types::Error> {
        Err(unserved("secrets"))
    }
}

fn unserved(what: &str) -> types::Error {
    let message = format!("`{what}` is not served by this version of wasmvol");
    types::Error { code: types::ErrorCode::Unsupported, message }
}

fn to_wire(options: &Options) -> Vec<types::OptionValue> {
    let value = |value: &Value| match value {
        Value::Text(text) => types::Value::Text(text.clone()),
        Value::Size(bytes) => types::Value::Size(*bytes),
        Value::Number(number) => types::Value::Number(*number),
        Value::Boolean(yes) => types::Value::Boolean(*yes),
        Value::Duration(ms) => types::Value::Duration(*ms),
        Value::Secret(name) => types::Value::Secret(name.clone()),
    };
    options
        .iter()
        .map(|(key, v)| types::OptionValue { key: key.clone(), value: value(v) })
        .collect()
}

fn volume_to_wire(volume: &Volume) -> types::Volume {
    types::Volume {
        id: volume.id.to_string(),
        name: volume.name.to_string(),
        options: to_wire(&volume.options),
        state: volume.state.clone(),
    }
}

fn failed(error: types::Error) -> CallError {
    let code = match error.code {
        types::ErrorCode::NotFound => ErrorCode::NotFound,
        types::ErrorCode::AlreadyExists => ErrorCode::AlreadyExists,
        types::ErrorCode::InvalidOption => ErrorCode::InvalidOption,
        types::ErrorCode::InUse => ErrorCode::InUse,
        types::ErrorCode::Unavailable => ErrorCode::Unavailable,
        types::ErrorCode::Exhausted => ErrorCode::Exhausted,
        types::ErrorCode::Denied => ErrorCode::Denied,
        types::ErrorCode::Unsupported => ErrorCode::Unsupported,
        types::ErrorCode::Internal => ErrorCode::Internal,
    };
    CallError::Failed { code, message: one_line(&error.message, MESSAGE_MAX) }
}

fn state(state: Vec<u8>) -> Result<Vec<u8>, CallError> {
    count("state", state.len(), STATE_MAX, "bytes")?;
    Ok(state)
}

fn found(found: wire::Found) -> Result<Found, CallError> {
    count("found volume", found.options.len(), OPTIONS_MAX, "options")?;
    let mut options = Options::new();
    for types::OptionValue { key, value } in found.options {
        let key = self::key(key)?;
        let value = match value {
            types::Value::Text(text) => Value::Text(line("option value", text, VALUE_MAX)?),
            types::Value::Size(bytes) => Value::Size(bytes),
            types::Value::Number(number) => Value::Number(number),
            types::Value::Boolean(yes) => Value::Boolean(yes),
            types::Value::Duration(ms) => Value::Duration(ms),
            types::Value::Secret(name) => Value::Secret(line("secret name", name, KEY_MAX)?),
        };
        if options.insert(key.clone(), value).is_some() {
            return Err(broken(format!("found volume has option `{key}` twice")));
        }
    }
    let name = bounded("found volume name", found.name, TEXT_MAX)?;
    let id = found.id.map(|id| Id::parse(&id)).transpose();
    let id = id.map_err(|error| broken(format!("found volume: {error}")))?;
    Ok(Found { name, id, options, state: state(found.state)?, owned: found.owned })
}

fn description(from: types::Description) -> Result<Description, CallError> {
    let name = DriverName::parse(&from.name).map_err(|error| broken(error.to_string()))?;
    let version = line("version", from.version, VERSION_MAX)?;
    if version.is_empty() {
        return Err(broken("version is empty"));
    }
    count("description", from.options.len(), OPTIONS_MAX, "options")?;
    count("description", from.grants.len(), GRANTS_MAX, "grants")?;
    let mut options: Vec<OptionSpec> = Vec::with_capacity(from.options.len());
    for spec in from.options {
        let spec = option_spec(spec)?;
        if options.iter().any(|other| other.key == spec.key) {
            return Err(broken(format!("option `{}` is described twice", spec.key)));
        }
        options.push(spec);
    }
    let grants: Result<_, _> =
        from.grants.into_iter().map(|grant| line("grant", grant, HELP_MAX)).collect();
    Ok(Description {
        name: name.to_string(),
        version,
        help: one_line(&from.help, HELP_MAX),
        options,
        grants: grants?,
    })
}

fn option_spec(spec: types::OptionSpec) -> Result<OptionSpec, CallError> {
    let key = key(spec.key)?;
    if RESERVED.contains(&key.as_str()) {
        return Err(broken(format!("option `{key}` is the host's own")));
    }
    let value_type = match spec.value_type {
        types::ValueType::Text => ValueType::Text,
        types::ValueType::Size => ValueType::Size,
        types::ValueType::Number => ValueType::Number,
        types::ValueType::Boolean => ValueType::Boolean,
        types::ValueType::Duration => ValueType::Duration,
        types::ValueType::Secret => ValueType::Secret,
    };
    let default = spec.default.map(|text| line("default", text, VALUE_MAX)).transpose()?;
    if spec.required && default.is_some() {
        return Err(broken(format!("option `{key}` is required and has a default")));
    }
    let help = one_line(&spec.help, HELP_MAX);
    Ok(OptionSpec { key, value_type, required: spec.required, default, help })
}

/// A key: lower-case letters, digits and dashes.
fn key(key: String) -> Result<String, CallError> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if key.is_empty() || key.len() > KEY_MAX || !key.bytes().all(fits) {
        let shown = one_line(&key, KEY_MAX);
        return Err(broken(format!(
            "option key `{shown}` is not made of at most {KEY_MAX} lower-case letters, digits and dashes"
        )));
    }
    Ok(key)
}

/// A text that is one line as it is: it is compared and stored, so it must not be changed.
fn line(what: &str, text: String, max: usize) -> Result<String, CallError> {
    let text = bounded(what, text, max)?;
    if text.chars().any(char::is_control) {
        return Err(broken(format!(
            "{what} `{}` has control characters",
            one_line(&text, HELP_MAX)
        )));
    }
    Ok(text)
}
