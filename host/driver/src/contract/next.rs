//! A made-up line 0.2 of the contract, which no driver speaks but the tests' own: it shows that two lines are served side by side, each by
//! an adapter that turns its words into the host's and decides nothing itself.
//!
//! Compiled for the tests of this package alone. It has no abilities and breaks with 0.1 wherever a line could: `tests/guests/next/wit`.

use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::{HasSelf, InstancePre, Linker};
use wasmvol_plan::{Directory, Id, Owner, Plan, Source, Storage, Tmpfs, VolumeName};

use super::Contract;
use crate::call::{Call, Ran, State};
use crate::journal::Level;
use crate::types::{
    Abilities, Answer, CallError, Created, Description, ErrorCode, Found, OptionSpec, Options,
    Populated, Progress, Reclaim, Report, Resized, Value, ValueType, Volume,
};

mod generated {
    wasmtime::component::bindgen!({
        path: "../../tests/guests/next/wit",
        world: "driver",
        exports: { default: async },
    });
}

use generated::DriverPre;
use generated::exports::wasmvol::driver::volumes as wire;
use generated::wasmvol::driver::{log, types};

/// A component that speaks this line.
struct Component(DriverPre<State>);

/// Adds the imports of this line.
pub(super) fn offer(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    generated::Driver::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

/// Prepares a component's instances.
pub(super) fn contract(pre: InstancePre<State>) -> wasmtime::Result<Arc<dyn Contract>> {
    Ok(Arc::new(Component(DriverPre::new(pre)?)))
}

/// Makes an instance of a component and calls one of its functions.
macro_rules! ask {
    ($self:expr, $call:expr, $function:ident($($argument:expr),*)) => {
        $call.run(async |mut store: Store<State>| {
            let asked = async {
                let instance = $self.0.instantiate_async(&mut store).await?;
                instance.wasmvol_driver_volumes().$function(&mut store, $($argument),*).await
            };
            (asked.await, store)
        })?
    };
}

fn answered<T>(ran: Ran<Result<T, types::Error>>) -> Result<Answer<T>, CallError> {
    let Ran { value, uses, .. } = ran;
    match value {
        Ok(value) => Ok(Answer { value, uses }),
        Err(types::Error { message, code }) => {
            let code = match code {
                types::ErrorCode::NotFound => ErrorCode::NotFound,
                types::ErrorCode::InvalidOption => ErrorCode::InvalidOption,
                types::ErrorCode::InUse => ErrorCode::InUse,
                types::ErrorCode::Unavailable => ErrorCode::Unavailable,
                types::ErrorCode::Exhausted => ErrorCode::Exhausted,
                types::ErrorCode::Denied => ErrorCode::Denied,
                types::ErrorCode::Unsupported => ErrorCode::Unsupported,
                types::ErrorCode::Internal => ErrorCode::Internal,
            };
            Err(CallError::Failed { code, message })
        }
    }
}

fn unable<T>(what: &str) -> Result<T, CallError> {
    Err(CallError::Unable(what.to_owned()))
}

impl Contract for Component {
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    fn describe(&self, call: Call<'_>) -> Result<Description, CallError> {
        let wire::Description { version, name, options } = ask!(self, call, call_about()).value;
        let spec = |key| OptionSpec {
            key,
            value_type: ValueType::Text,
            required: false,
            default: None,
            help: String::new(),
        };
        let options = options.into_iter().map(spec).collect();
        Ok(Description { name, version, help: String::new(), options, grants: Vec::new() })
    }

    fn create(
        &self,
        call: Call<'_>,
        id: Id,
        name: &VolumeName,
        options: &Options,
    ) -> Result<Answer<Created>, CallError> {
        let (name, options, state) = (name.clone(), options.clone(), Vec::new());
        let volume = volume(&Volume { id, name, options, state });
        let Answer { value, uses } = answered(ask!(self, call, call_provision(&volume)))?;
        let (state, storage) = value;
        let storage = match storage {
            types::Storage::None => Storage::None,
            types::Storage::Directory(types::Owner { mode, uid, gid }) => {
                let owner = Owner { uid, gid, mode };
                Storage::Directory(Directory { owner, limit: None, over: None })
            }
        };
        Ok(Answer { value: Created { storage, state }, uses })
    }

    fn remove(&self, call: Call<'_>, of: &Volume) -> Result<Answer<Reclaim>, CallError> {
        let mut ran = ask!(self, call, call_retire(&volume(of)));
        if let Some(gone) = ran.gone(|error| error.code == types::ErrorCode::NotFound) {
            return Ok(gone);
        }
        let Answer { value, uses } = answered(ran)?;
        Ok(Answer { value: if value { Reclaim::Delete } else { Reclaim::Retain }, uses })
    }

    fn path(&self, call: Call<'_>, of: &Volume) -> Result<Plan, CallError> {
        let types::Plan { no_exec, source } =
            answered(ask!(self, call, call_arrange(&volume(of))))?.value;
        let source = match source {
            types::Source::Storage => Source::Storage,
            types::Source::Memory(size) => {
                let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
                Source::Tmpfs(Tmpfs { size: Some(size), inodes: None, owner })
            }
        };
        Ok(Plan { source, read_only: false, no_exec, subpath: None, id_map: None })
    }

    fn list(&self, call: Call<'_>) -> Result<Vec<Found>, CallError> {
        let known = answered(ask!(self, call, call_known()))?.value;
        let found = |volume: types::Volume| Found {
            name: volume.name,
            id: Id::parse(&volume.id).ok(),
            options: Options::new(),
            state: volume.state,
            owned: true,
        };
        Ok(known.into_iter().map(found).collect())
    }

    fn attach(&self, _: Call<'_>, _: &Volume) -> Result<Answer<Progress>, CallError> {
        unable("attach")
    }

    fn detach(&self, _: Call<'_>, _: &Volume) -> Result<Answer<Progress>, CallError> {
        unable("detach")
    }

    fn resize(&self, _: Call<'_>, _: &Volume, _: u64) -> Result<Answer<Resized>, CallError> {
        unable("resize")
    }

    fn populate(&self, _: Call<'_>, _: &Volume) -> Result<Answer<Populated>, CallError> {
        unable("populate")
    }

    fn check(&self, _: Call<'_>, _: &Volume) -> Result<Report, CallError> {
        unable("check")
    }

    fn migrate(&self, _: Call<'_>, _: &Volume, _: &str) -> Result<Vec<u8>, CallError> {
        unable("migrate")
    }
}

impl types::Host for State {}

impl log::Host for State {
    fn write(&mut self, line: String) {
        self.journal.lock().write(Level::Info, &line);
    }
}

fn volume(volume: &Volume) -> types::Volume {
    let text = |value: &Value| match value {
        Value::Text(text) | Value::Secret(text) => text.clone(),
        Value::Size(number) | Value::Duration(number) => number.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Boolean(yes) => yes.to_string(),
    };
    types::Volume {
        name: volume.name.to_string(),
        id: volume.id.to_string(),
        options: volume.options.iter().map(|(key, value)| (key.clone(), text(value))).collect(),
        state: volume.state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use wasmvol_plan::DriverName;

    use super::*;
    use crate::{Compiler, Driver, Engine, EngineOptions, LoadError, Scope};

    /// `TARGET/release/deps/THIS`
    fn target() -> PathBuf {
        let program = std::env::current_exe().unwrap();
        program.ancestors().nth(3).unwrap().to_owned()
    }

    fn read(path: &Path) -> Vec<u8> {
        std::fs::read(path).unwrap_or_else(|e| {
            panic!("`{}`: {e}: run `host/build.sh tests` first", path.display())
        })
    }

    /// The driver of 0.1 that stays, and the one of 0.2 that never was.
    fn components() -> [Vec<u8>; 2] {
        let frozen = "../../tests/frozen/since_v0.1.0/driver.wasm";
        let next = target().join("wasm32-wasip2/driver/next.wasm");
        [read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(frozen)), read(&next)]
    }

    fn engine(cache: &Path) -> Engine {
        let program = target().join("release/examples/call");
        let compiler = Compiler { program, args: vec!["compile-driver".into()] };
        Engine::new(EngineOptions { cache: cache.to_owned(), compiler, calls_max: 4 }).unwrap()
    }

    fn load(engine: &Engine, name: &str, component: &[u8]) -> Result<Driver, LoadError> {
        engine.load(&DriverName::parse(name).unwrap(), component, [].into())
    }

    fn made(driver: &Driver, name: &str, options: &[(&str, &str)]) -> Result<Volume, CallError> {
        let option =
            |(key, text): &(&str, &str)| ((*key).to_owned(), Value::Text((*text).to_owned()));
        let options: Options = options.iter().map(option).collect();
        let (id, name) = (Id::from_bits(7), VolumeName::parse(name).unwrap());
        let created = driver.create(id, &name, &options, Scope::default())?.value;
        Ok(Volume { id, name, options, state: created.state })
    }

    #[test]
    fn two_lines_of_the_contract_are_served_side_by_side() {
        let cache = tempfile::tempdir().unwrap();
        let engine = engine(cache.path());
        let [frozen, next] = components();
        let old = load(&engine, "old", &frozen).unwrap();
        let new = load(&engine, "new", &next).unwrap();
        assert!(old.exports().contains(&"wasmvol:driver/volumes@0.1.0".to_owned()));
        assert!(new.exports().contains(&"wasmvol:driver/volumes@0.2.0".to_owned()));
        assert_eq!(old.description().version, "0.1.0");
        assert_eq!(new.description().version, "2.0.0");

        let memory = [("storage", "none"), ("source", "tmpfs")];
        let [of_old, of_new] = [
            made(&old, "of-old", &memory).unwrap(),
            made(&new, "of-new", &[("size", "4096")]).unwrap(),
        ];
        assert!(of_old.state.starts_with(b"id 00000000000000000000000000000007, name of-old"));
        assert_eq!(of_new.state, b"00000000000000000000000000000007 by the next line");
        // The same words of the host's for both, whatever theirs are; again and again, the one after the other.
        for _ in 0..3 {
            let sizes = [(&old, &of_old), (&new, &of_new)].map(|(driver, volume)| {
                let plan = driver.path(volume).unwrap();
                let Source::Tmpfs(Tmpfs { size, .. }) = plan.source else { panic!("{plan:?}") };
                (size, plan.no_exec)
            });
            assert_eq!(sizes, [(Some(1 << 20), true), (Some(4096), true)]);
        }
        for (driver, volume) in [(&old, &of_old), (&new, &of_new)] {
            let removed = driver.remove(volume, Scope::default()).unwrap().value;
            assert_eq!(removed, Reclaim::Delete);
        }
        for (driver, fail) in [(&old, "in-use"), (&new, "somehow")] {
            let error = made(driver, "refused", &[("fail", fail)]).unwrap_err();
            let CallError::Failed { code, message } = error else { panic!("{error:?}") };
            assert!(code == ErrorCode::InUse && message.starts_with("it was told to"), "{message}");
        }
        assert!(old.abilities().attachment && !new.abilities().attachment);
        let error = new.attach(&of_new, Scope::default()).unwrap_err();
        assert_eq!(error.to_string(), "this driver cannot attach");
    }

    #[test]
    fn a_component_speaks_one_line_in_all_that_it_imports_and_exports() {
        let cache = tempfile::tempdir().unwrap();
        let engine = engine(cache.path());
        let [_, next] = components();
        // Its import is of the other line, which this host serves, too.
        let mixed = replaced(next, b"wasmvol:driver/log@0.2.0", b"wasmvol:driver/log@0.1.0");
        let error = load(&engine, "mixed", &mixed).err().unwrap().to_string();
        assert_eq!(error, "imports `wasmvol:driver/log@0.1.0`, which is not on offer to drivers");
        let error = super::super::check_interfaces(&[], &["wasmvol:driver/volumes@0.3.0".into()]);
        let error = error.unwrap_err().to_string();
        assert_eq!(error, "speaks version 0.3.0 of the contract: this host speaks 0.1.x and 0.2.x");
    }

    fn replaced(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
        let places: Vec<usize> =
            (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
        bytes
    }
}
