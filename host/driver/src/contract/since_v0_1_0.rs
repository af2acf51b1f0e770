//! The contract's line 0.1: the adapter between generated types and the host's own.
//!
//! Every answer is checked here for what the contract says and for what this host serves; what leaves is fit to be stored and
//! shown. Whether a plan fits its volume and is granted is not asked here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::Store;
use wasmtime::component::{HasSelf, InstancePre, Linker};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{DriverName, FaultKind, Id, Plan, VolumeName};

use super::Contract;
use crate::answer::{
    EXECUTABLES_MAX, FOUND_MAX, GRANTS_MAX, HELP_MAX, KEY_MAX, MESSAGE_MAX, OPTIONS_MAX, STATE_MAX,
    TEXT_MAX, Unfit, VALUE_MAX, VERSION_MAX, bounded, broken, count, one_line,
};
use crate::call::{Call, REVEALS_MAX, Ran, State};
use crate::journal::Level;
use crate::types::{
    Abilities, Answer, CallError, Condition, Created, Description, ErrorCode, Found, Marked,
    OptionSpec, Options, Populated, Progress, Reclaim, Report, Resized, Value, ValueType, Volume,
};

mod answers;

/// Every driver's part.
mod generated {
    wasmtime::component::bindgen!({
        path: "../../wit/since_v0.1.0",
        world: "driver",
        exports: { default: async },
    });
}

/// What a component has if it exports it: a module for each ability, of the same types.
macro_rules! abilities {
    ($($ability:ident $world:literal)*) => {
        $(mod $ability {
            wasmtime::component::bindgen!({
                path: "../../wit/since_v0.1.0",
                world: $world,
                exports: { default: async },
                with: { "wasmvol:driver/types": super::generated::wasmvol::driver::types },
            });
        })*
    };
}

abilities! {
    attachment "with-attachment"
    health "with-health"
    migration "with-migration"
    population "with-population"
    resizing "with-resizing"
}

use answers::{plan, storage};
use generated::DriverPre;
use generated::exports::wasmvol::driver::volumes as wire;
use generated::wasmvol::driver::{log, roots, secrets, settings, store, types};

/// Option keys that belong to the host in every driver.
const RESERVED: [&str; 4] = ["driver", "from", "reclaim", "plugin"];
/// Longest time between two steps of `attach` or `detach`, as the contract says.
const AFTER_MAX: Duration = Duration::from_secs(30);
/// The shortest: each step is made durable, on a disk that is everybody's.
const AFTER_MIN: Duration = Duration::from_millis(200);

/// A component that speaks this line, ready to be instantiated.
struct Component {
    volumes: DriverPre<State>,
    attachment: Option<attachment::WithAttachmentPre<State>>,
    resizing: Option<resizing::WithResizingPre<State>>,
    population: Option<population::WithPopulationPre<State>>,
    health: Option<health::WithHealthPre<State>>,
    migration: Option<migration::WithMigrationPre<State>>,
}

/// Adds the imports of this line.
pub(super) fn offer(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    generated::Driver::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

/// Prepares a component's instances. An ability that it exports must have the contract's shape.
pub(super) fn contract(pre: InstancePre<State>) -> wasmtime::Result<Arc<dyn Contract>> {
    let (_, exports) = super::interfaces(pre.component());
    let has = |ability: &str| exports.iter().any(|name| name.starts_with(ability));
    let of = |ability: &str| has(ability).then(|| pre.clone());
    Ok(Arc::new(Component {
        attachment: of("wasmvol:driver/attachment@")
            .map(attachment::WithAttachmentPre::new)
            .transpose()?,
        resizing: of("wasmvol:driver/resizing@").map(resizing::WithResizingPre::new).transpose()?,
        population: of("wasmvol:driver/population@")
            .map(population::WithPopulationPre::new)
            .transpose()?,
        health: of("wasmvol:driver/health@").map(health::WithHealthPre::new).transpose()?,
        migration: of("wasmvol:driver/migration@")
            .map(migration::WithMigrationPre::new)
            .transpose()?,
        volumes: DriverPre::new(pre)?,
    }))
}

/// Makes an instance of a component and calls one of its functions: `ask!(call, &self.volumes, wasmvol_driver_volumes, call_list())`.
macro_rules! ask {
    ($call:expr, $pre:expr, $interface:ident, $function:ident($($argument:expr),*)) => {{
        let pre = $pre;
        $call.run(async |mut store: Store<State>| {
            let asked = async {
                let instance = pre.instantiate_async(&mut store).await?;
                instance.$interface().$function(&mut store, $($argument),*).await
            };
            (asked.await, store)
        })?
    }};
}

/// The pre-instance of an ability, or the error for a driver that has none of it.
fn able<'a, T>(ability: &'a Option<T>, what: &str) -> Result<&'a T, CallError> {
    ability.as_ref().ok_or_else(|| CallError::Unable(what.to_owned()))
}

/// What a driver answered, in the host's own words, if it did not refuse. A refusal that follows one of the host's own tells both.
fn answered<T, U>(
    ran: Ran<Result<T, types::Error>>,
    take: impl FnOnce(T) -> Result<U, Unfit>,
) -> Result<Answer<U>, CallError> {
    let Ran { value, uses, refusal, journal, .. } = ran;
    let journal = journal.lock();
    match value.map(take) {
        Ok(taken) => Ok(Answer { value: taken.map_err(|unfit| unfit.told(&journal))?, uses }),
        Err(error) => {
            let message = journal.told(&error.message);
            let message = match refusal {
                Some(refusal) => refusal.behind(message, &journal),
                None => message.to_owned(),
            };
            Err(failed(types::Error { message, ..error }))
        }
    }
}

impl Contract for Component {
    fn abilities(&self) -> Abilities {
        Abilities {
            attachment: self.attachment.is_some(),
            resizing: self.resizing.is_some(),
            population: self.population.is_some(),
            health: self.health.is_some(),
            migration: self.migration.is_some(),
        }
    }

    fn describe(&self, call: Call<'_>) -> Result<Description, CallError> {
        let ran = ask!(call, &self.volumes, wasmvol_driver_volumes, call_describe());
        description(ran.value).map_err(|unfit| unfit.told(&ran.journal.lock()))
    }

    fn create(
        &self,
        call: Call<'_>,
        id: Id,
        name: &VolumeName,
        options: &Options,
    ) -> Result<Answer<Created>, CallError> {
        let (id, options, to) = (id.to_string(), to_wire(options), name.as_str());
        let ran = ask!(call, &self.volumes, wasmvol_driver_volumes, call_create(&id, to, &options));
        answered(ran, |created| {
            Ok(Created { storage: storage(created.storage, name)?, state: state(created.state)? })
        })
    }

    fn remove(&self, call: Call<'_>, volume: &Volume) -> Result<Answer<Reclaim>, CallError> {
        let volume = volume_to_wire(volume);
        let mut ran = ask!(call, &self.volumes, wasmvol_driver_volumes, call_remove(&volume));
        if let Some(gone) = ran.gone(|error| error.code == types::ErrorCode::NotFound) {
            return Ok(gone);
        }
        answered(ran, |reclaim| {
            Ok(match reclaim {
                types::Reclaim::Delete => Reclaim::Delete,
                types::Reclaim::Retain => Reclaim::Retain,
            })
        })
    }

    fn path(&self, call: Call<'_>, volume: &Volume) -> Result<Plan, CallError> {
        let volume = volume_to_wire(volume);
        let ran = ask!(call, &self.volumes, wasmvol_driver_volumes, call_path(&volume));
        Ok(answered(ran, plan)?.value)
    }

    fn list(&self, call: Call<'_>) -> Result<Vec<Found>, CallError> {
        let ran = ask!(call, &self.volumes, wasmvol_driver_volumes, call_list());
        let all = answered(ran, |all| {
            count("list", all.len(), FOUND_MAX, "volumes")?;
            all.into_iter().map(found).collect()
        });
        Ok(all?.value)
    }

    fn attach(&self, call: Call<'_>, volume: &Volume) -> Result<Answer<Progress>, CallError> {
        let able = able(&self.attachment, "attach")?;
        let volume = volume_to_wire(volume);
        let ran = ask!(call, able, wasmvol_driver_attachment, call_attach(&volume));
        answered(ran, |answer| Ok(progress(answer)?))
    }

    fn detach(&self, call: Call<'_>, volume: &Volume) -> Result<Answer<Progress>, CallError> {
        let able = able(&self.attachment, "detach")?;
        let volume = volume_to_wire(volume);
        let ran = ask!(call, able, wasmvol_driver_attachment, call_detach(&volume));
        answered(ran, |answer| Ok(progress(answer)?))
    }

    fn resize(
        &self,
        call: Call<'_>,
        volume: &Volume,
        size: u64,
    ) -> Result<Answer<Resized>, CallError> {
        let able = able(&self.resizing, "resize")?;
        let wire = volume_to_wire(volume);
        let ran = ask!(call, able, wasmvol_driver_resizing, call_resize(&wire, size));
        answered(ran, |resized| {
            let storage = storage(resized.storage, &volume.name)?;
            Ok(Resized { storage, state: state(resized.state)? })
        })
    }

    fn populate(&self, call: Call<'_>, volume: &Volume) -> Result<Answer<Populated>, CallError> {
        let able = able(&self.population, "populate")?;
        let volume = volume_to_wire(volume);
        let ran = ask!(call, able, wasmvol_driver_population, call_populate(&volume));
        let journal = ran.journal.clone();
        answered(ran, |populated| {
            let executables = populated.executables;
            count("populate", executables.len(), EXECUTABLES_MAX, "executables")?;
            Ok(Populated { state: state(populated.state)?, executables, journal })
        })
    }

    fn check(&self, call: Call<'_>, volume: &Volume) -> Result<Report, CallError> {
        let able = able(&self.health, "check")?;
        let volume = volume_to_wire(volume);
        let ran = ask!(call, able, wasmvol_driver_health, call_check(&volume));
        let journal = ran.journal.clone();
        let report = answered(ran, Ok)?.value;
        let condition = match report.condition {
            health::exports::wasmvol::driver::health::Condition::Healthy => Condition::Healthy,
            health::exports::wasmvol::driver::health::Condition::Degraded => Condition::Degraded,
            health::exports::wasmvol::driver::health::Condition::Unreachable => {
                Condition::Unreachable
            }
        };
        let message = one_line(journal.lock().told(&report.message), MESSAGE_MAX);
        Ok(Report { condition, message })
    }

    fn migrate(&self, call: Call<'_>, volume: &Volume, from: &str) -> Result<Vec<u8>, CallError> {
        let able = able(&self.migration, "migrate")?;
        let volume = volume_to_wire(volume);
        let ran = ask!(call, able, wasmvol_driver_migration, call_migrate(&volume, from));
        Ok(answered(ran, |bytes| Ok(state(bytes)?))?.value)
    }
}

fn progress(
    progress: attachment::exports::wasmvol::driver::attachment::Progress,
) -> Result<Progress, CallError> {
    use attachment::exports::wasmvol::driver::attachment as wire;
    Ok(match progress {
        wire::Progress::Done(bytes) => Progress::Done(state(bytes)?),
        wire::Progress::Again(wire::Again { state: bytes, after }) => {
            let after = Duration::from_millis(after.into());
            if after > AFTER_MAX {
                let most = AFTER_MAX.as_millis();
                return Err(broken(format!("wants to be asked after more than {most} ms")));
            }
            Progress::Again { state: state(bytes)?, after: after.max(AFTER_MIN) }
        }
    })
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
            None => {
                let why = format!("{} is no granted root", Quoted::new(&root));
                Err(refused((ErrorCode::Denied, why)))
            }
        }
    }
}

impl store::Host for State {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.store.get(&key)
    }

    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), types::Error> {
        self.store.put(&key, Some(value)).map_err(refused)
    }

    fn delete(&mut self, key: String) -> Result<(), types::Error> {
        self.store.put(&key, None).map_err(refused)
    }

    fn keys(&mut self, prefix: String) -> Vec<String> {
        self.store.keys(&prefix)
    }
}

impl secrets::Host for State {
    fn reveal(&mut self, name: String) -> Result<Vec<u8>, types::Error> {
        let Some(reveal) = self.secrets.clone() else {
            let why = "no secret is revealed in this call".to_owned();
            return Err(refused((ErrorCode::Denied, why)));
        };
        if !self.take_reveal() {
            let why = format!("this call has asked for {REVEALS_MAX} secrets already");
            return Err(refused((ErrorCode::Exhausted, why)));
        }
        let asked = Instant::now();
        let revealed = reveal(&name, self.until);
        self.note_waited(asked);
        let revealed = revealed.map_err(|fault| {
            self.is_unrevealed = true;
            let code = match fault.kind {
                FaultKind::Denied => ErrorCode::Denied,
                FaultKind::Missing | FaultKind::Invalid => ErrorCode::NotFound,
                _ => ErrorCode::Unavailable,
            };
            refused((code, fault.message))
        });
        revealed.map(|bytes| {
            let copy = bytes.expose().to_vec();
            self.journal.lock().keep(bytes);
            copy
        })
    }
}

/// What the host tells a driver that it refuses.
fn refused((code, message): (ErrorCode, String)) -> types::Error {
    types::Error { code: code_to_wire(code), message }
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

/// The codes, which have the same names on both sides.
macro_rules! codes {
    ($($code:ident)*) => {
        fn code_of(code: types::ErrorCode) -> ErrorCode {
            match code { $(types::ErrorCode::$code => ErrorCode::$code,)* }
        }

        fn code_to_wire(code: ErrorCode) -> types::ErrorCode {
            match code { $(ErrorCode::$code => types::ErrorCode::$code,)* }
        }
    };
}

codes! { NotFound AlreadyExists InvalidOption InUse Unavailable Exhausted Denied Unsupported Internal }

fn failed(error: types::Error) -> CallError {
    CallError::Failed { code: code_of(error.code), message: one_line(&error.message, MESSAGE_MAX) }
}

fn state(state: Vec<u8>) -> Result<Vec<u8>, CallError> {
    count("state", state.len(), STATE_MAX, "bytes")?;
    Ok(state)
}

fn found(found: wire::Found) -> Result<Found, Unfit> {
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
            let error = broken(format!("found volume has option `{key}` twice"));
            return Err(Unfit::repeats(key, error));
        }
    }
    let name = bounded("found volume name", found.name, TEXT_MAX)?;
    let parsed = |id: String| {
        let odd = |error| Unfit::repeats(&*id, broken(format!("found volume: {error}")));
        Id::parse(&id).map_err(odd)
    };
    let id = found.id.map(parsed).transpose()?;
    Ok(Found { name, id, options, state: state(found.state)?, owned: found.owned })
}

fn description(from: types::Description) -> Result<Description, Unfit> {
    let name = DriverName::parse(&from.name).map_err(|error| broken(error.to_string()))?;
    let version = line("version", from.version, VERSION_MAX)?;
    if version.is_empty() {
        return Err(broken("version is empty").into());
    }
    count("description", from.options.len(), OPTIONS_MAX, "options")?;
    count("description", from.grants.len(), GRANTS_MAX, "grants")?;
    let mut options: Vec<OptionSpec> = Vec::with_capacity(from.options.len());
    for spec in from.options {
        let spec = option_spec(spec)?;
        if options.iter().any(|other| other.key == spec.key) {
            return Err(broken(format!("option `{}` is described twice", spec.key)).into());
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

fn option_spec(spec: types::OptionSpec) -> Result<OptionSpec, Unfit> {
    let key = key(spec.key)?;
    if RESERVED.contains(&key.as_str()) {
        return Err(broken(format!("option `{key}` is the host's own")).into());
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
        return Err(broken(format!("option `{key}` is required and has a default")).into());
    }
    let help = one_line(&spec.help, HELP_MAX);
    Ok(OptionSpec { key, value_type, required: spec.required, default, help })
}

/// A key: lower-case letters, digits and dashes.
fn key(key: String) -> Result<String, Unfit> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if key.is_empty() || key.len() > KEY_MAX || !key.bytes().all(fits) {
        let shown = one_line(&key, KEY_MAX);
        let error = broken(format!(
            "option key `{shown}` is not made of at most {KEY_MAX} lower-case letters, digits and dashes"
        ));
        return Err(Unfit::repeats(key, error));
    }
    Ok(key)
}

/// A text that is one line as it is: it is compared and stored, so it must not be changed.
fn line(what: &str, text: String, max: usize) -> Result<String, Unfit> {
    let text = bounded(what, text, max)?;
    if text.chars().any(char::is_control) {
        let shown = one_line(&text, HELP_MAX);
        let error = broken(format!("{what} `{shown}` has control characters"));
        return Err(Unfit::repeats(text, error));
    }
    Ok(text)
}
