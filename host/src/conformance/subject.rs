//! The driver that is checked, and all that a host would have for it: its options, grants, secrets, store and volumes.
//!
//! Every call of the suite goes through here, so that what it took is counted, what it wrote into its store is kept, and a call that was
//! refused for want of a grant is told from one that failed.

mod calls;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wasmvol_driver::types::Options;
use wasmvol_driver::{
    Abilities, CallError, Created, Description, Driver, Engine, ErrorCode, LoadError, Meter,
    Progress, Reclaim, Store, Volume,
};
use wasmvol_plan::{DriverName, Grants, Plan, Secret, SecretName, Storage, VolumeName};

pub(crate) use calls::Told;

use super::{GRANTS, Stop, is_no_sentence, needs_grant, refusal};
use crate::machine::Machine;
use crate::volumes::attachment::{ATTACH, DETACH};
use crate::volumes::options;
use crate::volumes::world::Machine as _;

/// What a driver is checked with: what its operator and a user would have given.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) grants: Grants,
    pub(crate) secrets: BTreeMap<SecretName, Arc<Secret>>,
    /// The user's options, without the host's own.
    pub(crate) given: BTreeMap<String, String>,
    /// An empty directory to fill volumes in.
    pub(crate) scratch: PathBuf,
}

/// A driver that is checked.
pub(crate) struct Subject {
    pub(super) driver: Driver,
    /// What it said of itself at another load, and how it is loaded once more.
    pub(super) again: Description,
    load: Load,
    pub(super) setup: Setup,
    /// What was given, parsed.
    pub(super) options: Options,
    machine: Machine,
    meter: Meter,
    store: Arc<Store>,
    /// What the last call was refused that only an operator gives.
    lacking: Arc<Mutex<Option<String>>>,
    alive: Vec<Made>,
    /// Names of volumes that were made and could not be removed, and why not.
    pub(super) left: Vec<String>,
    pub(super) left_why: Option<Stop>,
    /// Removals of them that were not answered.
    silent: usize,
    named: usize,
    told: BTreeMap<&'static str, Told>,
    /// Once one was not made or planned, whoever needs that need not wait for it to fail again.
    pub(super) never: Never,
    /// A volume that was planned, its plan, and when that was.
    pub(super) planned: Option<(Volume, Plan, Instant)>,
}

/// After so many removals without an answer no other is tried: each may take half a minute.
const SILENT_MAX: usize = 3;

/// What there is none of.
#[derive(Debug, Default)]
pub(super) struct Never {
    pub(super) made: bool,
    /// By a second `create` of its id.
    pub(super) made_again: bool,
    pub(super) planned: bool,
}

/// A component that a host loads.
pub(crate) struct Loaded {
    driver: Driver,
    /// What it said of itself at another load.
    again: Description,
    load: Load,
    meter: Meter,
}

/// How a component is loaded.
struct Load {
    engine: Engine,
    component: Vec<u8>,
    settings: BTreeMap<String, String>,
}

impl Load {
    fn named(&self, name: &str) -> Result<Driver, LoadError> {
        let name = DriverName::parse(name).map_err(|error| LoadError::Export(error.to_string()))?;
        self.engine.load(&name, &self.component, self.settings.clone())
    }
}

impl Loaded {
    /// Loads a component as the daemon would, by an engine that notes its calls in `meter`. Twice: what it says of itself must be the
    /// same, and its name is known then.
    pub(crate) fn load(
        engine: &Engine,
        meter: Meter,
        component: &[u8],
        settings: &BTreeMap<String, String>,
    ) -> Result<Self, LoadError> {
        let (component, settings) = (component.to_vec(), settings.clone());
        let load = Load { engine: engine.clone(), component, settings };
        let again = load.named("unnamed")?.description().clone();
        let driver = load.named(&again.name)?;
        Ok(Self { driver, again, load, meter })
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.driver
    }
}

/// A volume as a host has it that was made.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) volume: Volume,
    pub(super) storage: Storage,
    pub(super) attached: bool,
}

impl Subject {
    /// A driver with all that it is checked with: `options` are what `setup` gives, parsed.
    pub(crate) fn new(loaded: Loaded, setup: Setup, options: Options) -> std::io::Result<Self> {
        let Loaded { driver, again, load, meter } = loaded;
        let mut subject = Self {
            driver,
            again,
            load,
            setup,
            options,
            machine: Machine::new()?,
            meter,
            store: Arc::default(),
            lacking: Arc::default(),
            alive: Vec::new(),
            left: Vec::new(),
            left_why: None,
            silent: 0,
            named: 0,
            told: BTreeMap::new(),
            never: Never::default(),
            planned: None,
        };
        subject.count_describe();
        Ok(subject)
    }

    /// What it says of itself when it is loaded now.
    pub(super) fn describe(&mut self) -> Result<Description, LoadError> {
        let description = self.load.named(self.driver.name().as_str())?.description().clone();
        self.count_describe();
        Ok(description)
    }

    fn count_describe(&mut self) {
        let whole = calls::written(self.driver.description());
        let described = calls::Size { whole, state: 0 };
        for cost in self.meter.take() {
            self.count("describe", &cost, described);
        }
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.driver
    }

    pub(crate) fn abilities(&self) -> Abilities {
        self.driver.abilities()
    }

    /// What each verb took.
    pub(crate) fn told(&self) -> &BTreeMap<&'static str, Told> {
        &self.told
    }

    /// Its options as the host parses them.
    pub(super) fn parse(&self, given: &BTreeMap<String, String>) -> Result<Options, String> {
        let parsed = options::parse(self.driver.name(), self.driver.description(), given);
        parsed.map_err(|error| error.to_string())
    }

    /// An id and a name that no other volume has.
    pub(super) fn new_volume(&mut self) -> Result<Volume, Stop> {
        self.named += 1;
        let name = VolumeName::parse(&format!("check-{}", self.named));
        let name = name.map_err(|error| Stop::Broken(error.to_string()))?;
        Ok(self.volume_named(name))
    }

    pub(super) fn volume_named(&self, name: VolumeName) -> Volume {
        let (id, options) = (self.machine.mint(), self.options.clone());
        Volume { id, name, options, state: Vec::new() }
    }

    /// A new volume with the options that were given.
    pub(super) fn made(&mut self) -> Result<Made, Stop> {
        if self.never.made {
            return Err(Stop::Lacking("no volume is made".into()));
        }
        let volume = self.new_volume()?;
        let made = self.make(volume).map_err(|error| self.stop("`create`", &error));
        self.never.made = made.is_err();
        made
    }

    /// Creates a volume and takes over what comes of it: it is removed when the check is over.
    pub(super) fn make(&mut self, volume: Volume) -> Result<Made, CallError> {
        let created = self.create(&volume);
        if created.as_ref().is_err_and(|error| refusal(error).is_none()) {
            // Who gave no answer may have made it: a host removes it, too.
            self.remember(Made { volume: volume.clone(), storage: Storage::None, attached: false });
        }
        let Created { storage, state } = created?;
        let made = Made { volume: Volume { state, ..volume }, storage, attached: false };
        self.remember(made.clone());
        Ok(made)
    }

    /// Notes what is to be taken away at the end of a check.
    fn remember(&mut self, made: Made) {
        self.alive.retain(|other| other.volume.id != made.volume.id);
        self.alive.push(made);
    }

    /// The plan of a volume, which is made reachable first where its driver does that.
    pub(super) fn plan(&mut self, made: &mut Made) -> Result<Plan, Stop> {
        if self.never.planned {
            return Err(Stop::Lacking("no plan is answered".into()));
        }
        let planned = self.try_plan(made);
        self.never.planned = planned.is_err();
        planned.map_err(|(verb, error)| self.stop(verb, &error))
    }

    /// The same, or which verb failed, and how.
    pub(super) fn try_plan(&mut self, made: &mut Made) -> Result<Plan, (&'static str, CallError)> {
        if self.abilities().attachment && !made.attached {
            self.attach(made).map_err(|error| ("`attach`", error))?;
        }
        self.path(&made.volume).map_err(|error| ("`path`", error))
    }

    pub(super) fn attach(&mut self, made: &mut Made) -> Result<(), CallError> {
        made.attached = true;
        if let Some(alive) = self.alive.iter_mut().find(|other| other.volume.id == made.volume.id) {
            alive.attached = true;
        }
        self.until_done(made, ATTACH, Self::attach_once)
    }

    pub(super) fn detach(&mut self, made: &mut Made) -> Result<(), CallError> {
        self.until_done(made, DETACH, Self::detach_once)?;
        made.attached = false;
        Ok(())
    }

    /// Asks for step after step, as the host does.
    fn until_done(
        &mut self,
        made: &mut Made,
        within: Duration,
        step: impl Fn(&mut Self, &Volume) -> Result<Progress, CallError>,
    ) -> Result<(), CallError> {
        let until = Instant::now() + within;
        loop {
            match step(self, &made.volume)? {
                Progress::Done(state) => {
                    made.volume.state = state;
                    return Ok(());
                }
                Progress::Again { after, .. } if Instant::now() + after > until => {
                    return Err(CallError::TimedOut(within));
                }
                Progress::Again { state, after } => {
                    made.volume.state = state;
                    std::thread::sleep(after);
                }
            }
        }
    }

    /// Takes away what a check has made, and has not taken away itself. What cannot be is told at last.
    pub(super) fn clear(&mut self) {
        for mut made in std::mem::take(&mut self.alive) {
            if self.silent < SILENT_MAX {
                if made.attached {
                    // Who cannot detach it may be able to remove it.
                    let _ = self.detach(&mut made);
                }
                let Err(error) = self.remove(&made.volume) else { continue };
                self.silent += usize::from(refusal(&error).is_none());
                // A fault counts more than what is not granted.
                if !matches!(self.left_why, Some(Stop::Broken(_))) {
                    self.left_why = Some(self.stop("`remove`", &error));
                }
            }
            self.left.push(made.volume.name.to_string());
        }
    }

    /// Removes a volume that is not to be taken away any more.
    pub(super) fn end(&mut self, volume: &Volume) -> Result<Reclaim, CallError> {
        let removed = self.remove(volume)?;
        self.alive.retain(|made| made.volume.id != volume.id);
        Ok(removed)
    }

    /// What becomes of a check whose call gave no answer.
    pub(super) fn stop(&self, what: &str, error: &CallError) -> Stop {
        let CallError::Failed { code, message } = error else {
            return Stop::Broken(format!("{what}: {error}"));
        };
        if let Some(what) = &*self.lacking() {
            Stop::Lacking(what.clone())
        } else if *code == ErrorCode::Denied && message.contains(GRANTS) {
            Stop::Lacking(needs_grant(message))
        } else if let Some(wrong) = is_no_sentence(message) {
            Stop::Broken(format!("{what} is refused, and why {wrong}: `{message}`"))
        } else {
            Stop::Broken(format!("{what} is refused: {message}"))
        }
    }

    /// What a call answered, or none where it was refused in a sentence: for what nobody can promise to take.
    pub(super) fn or_refused<T>(
        &self,
        what: &str,
        answer: Result<T, CallError>,
    ) -> Result<Option<T>, Stop> {
        match answer {
            Ok(value) => Ok(Some(value)),
            Err(error) => match refusal(&error) {
                Some(message) if is_no_sentence(message).is_none() => Ok(None),
                _ => Err(self.stop(what, &error)),
            },
        }
    }

    /// Whether its calls change a backend of somebody's: then it is asked for no more volumes than need be.
    pub(super) fn has_backend(&self) -> bool {
        self.driver.speaks_http() && !self.setup.grants.http.is_empty()
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("driver", self.driver.name()).finish_non_exhaustive()
    }
}
