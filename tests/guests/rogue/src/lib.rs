//! The other hostile driver: it has every ability, asks by HTTP, writes to its store, asks for secrets, plans mounts, and misuses all of it.
//!
//! What it does is named by the option `do` of a volume, and by the setting `do` for `list`. What begins with the name of a verb is done in
//! that verb, the rest in `create`; what `create` found out is its volume's state, and what `list` did the name of what is found. Without
//! one it behaves. It uses the generated bindings directly, because the SDK would not let it lie.

mod asking;
mod filling;
mod hoarding;
mod keeping;
mod planning;

use std::hint::black_box;

mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/since_v0.1.0",
        inline: "
            package test:rogue;
            world rogue {
                include wasmvol:driver/driver@0.1.0;
                include wasmvol:driver/with-attachment@0.1.0;
                include wasmvol:driver/with-health@0.1.0;
                include wasmvol:driver/with-migration@0.1.0;
                include wasmvol:driver/with-population@0.1.0;
                include wasmvol:driver/with-resizing@0.1.0;
            }
        ",
        world: "test:rogue/rogue",
        generate_all,
    });
    use super::Rogue;
    export!(Rogue);
}

use bindings::exports::wasmvol::driver::attachment::{self, Again, Progress};
use bindings::exports::wasmvol::driver::health::{self, Condition, Report};
use bindings::exports::wasmvol::driver::migration;
use bindings::exports::wasmvol::driver::population::{self, Populated};
use bindings::exports::wasmvol::driver::resizing::{self, Resized};
use bindings::exports::wasmvol::driver::volumes::{self, Created, Found};
use bindings::wasmvol::driver::types::{
    Description, Directory, Error, ErrorCode, OptionSpec, OptionValue, Owner, Plan, Reclaim,
    Storage, Value, ValueType, Volume,
};
use bindings::wasmvol::driver::{roots, secrets, settings, store};

/// What a verb has to say: on one line, as an error's sentence.
type Said<T> = Result<T, String>;

struct Rogue;

impl volumes::Guest for Rogue {
    fn describe() -> Description {
        let spec = |key: &str, value_type, default: Option<&str>| OptionSpec {
            key: key.to_owned(),
            value_type,
            required: false,
            default: default.map(str::to_owned),
            help: "what to do, and with what".to_owned(),
        };
        Description {
            name: "rogue".to_owned(),
            version: "0.1.0".to_owned(),
            help: "misuses what a driver has".to_owned(),
            options: vec![
                spec("do", ValueType::Text, None),
                spec("with", ValueType::Text, None),
                // Without a size no volume could be resized.
                spec("size", ValueType::Size, Some("1m")),
            ],
            grants: Vec::new(),
        }
    }

    fn create(_id: String, _name: String, options: Vec<OptionValue>) -> Result<Created, Error> {
        let (act, with) = (text(&options, "do"), text(&options, "with"));
        let said = act_out(&act, &with).map_err(error)?;
        let with = if act.starts_with("reveal-") { &said } else { &with };
        let storage = planning::storage(&act, with).map_err(error)?;
        Ok(Created { storage, state: said.into_bytes() })
    }

    fn remove(volume: Volume) -> Result<Reclaim, Error> {
        endless(&volume, "remove-loop");
        let act = text(&volume.options, "do");
        if act == "remove-unknown" || act == "remove-unrevealed" {
            if act == "remove-unrevealed" {
                secrets::reveal("key").map(drop)?;
            }
            store::delete("k")?;
            return Err(Error { code: ErrorCode::NotFound, message: "never heard of it".into() });
        }
        Ok(Reclaim::Delete)
    }

    fn path(volume: Volume) -> Result<Plan, Error> {
        let (act, with) = (text(&volume.options, "do"), text(&volume.options, "with"));
        planning::plan(&act, &with).map_err(error)
    }

    fn list() -> Result<Vec<Found>, Error> {
        // So that its component imports it.
        black_box(roots::granted());
        let setting = |key| settings::get(key).unwrap_or_default();
        let act = setting("do");
        let name = act_out(&act, &setting("with")).map_err(error)?;
        let id = (act == "reveal-id").then(|| name.clone());
        let option = |key: &String| OptionValue { key: key.clone(), value: Value::Boolean(true) };
        let options = if act == "reveal-key" { vec![option(&name)] } else { Vec::new() };
        let found = Found { name, id, options, state: Vec::new(), owned: false };
        Ok(if found.name.is_empty() { Vec::new() } else { vec![found] })
    }
}

impl attachment::Guest for Rogue {
    fn attach(volume: Volume) -> Result<Progress, Error> {
        endless(&volume, "attach-loop");
        Ok(step(volume, "attach"))
    }

    fn detach(volume: Volume) -> Result<Progress, Error> {
        endless(&volume, "detach-loop");
        Ok(step(volume, "detach"))
    }
}

/// One step of `attach` or `detach`, and whether there is another.
fn step(volume: Volume, verb: &str) -> Progress {
    let act = text(&volume.options, "do");
    let Volume { mut state, .. } = volume;
    match act.strip_prefix(verb) {
        // Each time with another state, and at once.
        Some("-again") => {
            let steps = state.first().copied().unwrap_or_default();
            Progress::Again(Again { state: vec![steps.wrapping_add(1)], after: 0 })
        }
        Some("-late") => Progress::Again(Again { state, after: 60_000 }),
        Some("-state") => {
            state.resize((64 << 10) + 1, 1);
            Progress::Done(state)
        }
        _ => Progress::Done(state),
    }
}

impl resizing::Guest for Rogue {
    fn resize(volume: Volume, size: u64) -> Result<Resized, Error> {
        endless(&volume, "resize-loop");
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        let mut storage = Storage::Directory(Directory { owner, limit: None, over: None });
        if text(&volume.options, "do") == "resize-other" {
            storage = Storage::None;
        }
        let Volume { mut state, .. } = volume;
        state.extend(size.to_le_bytes());
        Ok(Resized { storage, state })
    }
}

impl population::Guest for Rogue {
    fn populate(volume: Volume) -> Result<Populated, Error> {
        endless(&volume, "populate-loop");
        let (act, with) = (text(&volume.options, "do"), text(&volume.options, "with"));
        filling::fill(&act, &with).map_err(error)
    }
}

impl health::Guest for Rogue {
    fn check(volume: Volume) -> Result<Report, Error> {
        endless(&volume, "check-loop");
        let act = text(&volume.options, "do");
        let message = match act.as_str() {
            "check-long" => "\u{1b}[2Jsick\n".repeat(10_000),
            "check-giant" => "x".repeat(10 << 20),
            _ => String::new(),
        };
        Ok(Report { condition: Condition::Degraded, message })
    }
}

impl migration::Guest for Rogue {
    fn migrate(volume: Volume, _from: String) -> Result<Vec<u8>, Error> {
        endless(&volume, "migrate-loop");
        let act = text(&volume.options, "do");
        if act == "migrate-write" {
            keeping::write("k", b"v").map_err(error)?;
        }
        Ok(if act == "migrate-large" { vec![1; (64 << 10) + 1] } else { volume.state })
    }
}

/// What needs no particular verb.
fn act_out(act: &str, with: &str) -> Said<String> {
    let (kind, what) = act.split_once('-').unwrap_or((act, ""));
    match kind {
        "ask" => asking::ask(what, with),
        "hoard" => hoarding::hoard(what),
        "store" => keeping::store(what),
        "reveal" => keeping::reveal(what, with),
        _ => Ok(String::new()),
    }
}

fn endless(volume: &Volume, act: &str) {
    if text(&volume.options, "do") == act {
        loop {
            black_box(());
        }
    }
}

fn text(options: &[OptionValue], key: &str) -> String {
    let value = options.iter().find(|option| option.key == key).map(|option| &option.value);
    if let Some(Value::Text(text)) = value { text.clone() } else { String::new() }
}

fn error(message: String) -> Error {
    Error { code: ErrorCode::Internal, message }
}
