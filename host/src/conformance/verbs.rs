//! The verbs of every driver: each in the ways in which it may come twice, and two volumes that must not meet.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use wasmvol_driver::{Cost, Found, Marked, OptionSpec, Reclaim, ValueType, Volume};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Fault, FaultKind, Plan, Source, Storage, VolumeName};

use super::subject::Made;
use super::{Stop, Subject, ensure, needs_grant, same};
use crate::volumes::layers::check_below;

/// After so long a clock of seconds shows another one.
const LATER: Duration = Duration::from_millis(1100);

/// As a host does that crashed in the middle, before it had kept what came of it, and after.
pub(super) fn created(subject: &mut Subject) -> Result<String, Stop> {
    let volume = subject.new_volume()?;
    let first = subject.in_vain(|subject| subject.make(volume.clone()));
    subject.never.made = first.is_err();
    let first = first.map_err(|error| subject.stop("`create`", &error))?;
    let made = subject.make(volume);
    let made = made.map_err(|error| subject.stop("a second `create` of one id", &error))?;
    subject.never.made_again = true;
    same("`create` of one id", &first.storage, &made.storage)?;
    let again = subject.create(&made.volume);
    let again = again.map_err(|error| subject.stop("a second `create` of one id", &error))?;
    same("`create` of one id", &first.storage, &again.storage)?;
    subject.never.made_again = false;
    let storage = match made.storage {
        Storage::None => "no storage",
        Storage::Directory(_) => "a directory",
        Storage::Image(_) => "an image",
        Storage::Subvolume(_) => "a subvolume",
        Storage::NamedDirectory(_) => "a named directory",
    };
    Ok(match made.volume.state.len() {
        0 => storage.to_owned(),
        bytes => format!("{storage}, {bytes} bytes of state"),
    })
}

pub(super) fn planned(subject: &mut Subject) -> Result<String, Stop> {
    let mut made = subject.made()?;
    let plan = subject.plan(&mut made)?;
    for _ in 0..2 {
        let again = subject.plan(&mut made)?;
        // What differs by itself would seem to differ for every other reason, too.
        subject.never.planned = plan != again;
        same("`path` of one volume", &plan, &again)?;
    }
    subject.planned = Some((made.volume.clone(), plan.clone(), Instant::now()));
    let source = match &plan.source {
        Source::Storage => "its storage",
        Source::Tmpfs(_) => "memory",
        Source::HostDirectory(_) => "a directory of the host",
        Source::Share(_) => "a share",
        Source::Overlay(_) => "an overlay",
        Source::Device(_) => "a device",
        Source::Program(_) => "a program",
    };
    Ok(if plan.read_only { format!("{source}, read-only") } else { source.to_owned() })
}

/// At last, when a clock of seconds has gone on: `path` needs nothing but the volume, even where that is removed.
pub(super) fn planned_later(subject: &mut Subject) -> Result<String, Stop> {
    let Some((volume, plan, at)) = subject.planned.take() else {
        return Err(Stop::Lacking("no plan is answered".into()));
    };
    std::thread::sleep(LATER.saturating_sub(at.elapsed()));
    let again = subject.path(&volume).map_err(|error| subject.stop("a later `path`", &error))?;
    same("a later `path` of one volume", &plan, &again)?;
    let again = subject.describe();
    let again = again.map_err(|error| Stop::Broken(format!("a later load: {error}")))?;
    // What differed at once is told by the first check.
    let said = subject.driver().description();
    if *said == subject.again {
        same("a later `describe`", said, &again)?;
    }
    Ok(String::new())
}

/// What is not granted is the operator's matter; what no host could serve is the driver's.
pub(super) fn served(subject: &mut Subject) -> Result<String, Stop> {
    let mut made = subject.made()?;
    let plan = subject.plan(&mut made)?;
    let (storage, grants) = (&made.storage, &subject.setup.grants);
    if let Some(below) = storage.below() {
        let named = check_below(&below.name, &subject.setup.given, &made.volume.options);
        named.map_err(|fault| Stop::Broken(format!("its storage is refused: {fault}")))?;
    }
    storage.check(grants).map_err(|fault| unserved("storage", &fault))?;
    plan.check(storage, grants).map_err(|fault| unserved("plan", &fault))?;
    Ok(String::new())
}

fn unserved(what: &str, fault: &Fault) -> Stop {
    match fault.kind {
        FaultKind::Denied => Stop::Lacking(needs_grant(&fault.message)),
        _ => Stop::Broken(format!("its {what} is refused: {fault}")),
    }
}

/// What one volume gets has nothing to do with the other, nor with its end.
pub(super) fn two_volumes_are_apart(subject: &mut Subject) -> Result<String, Stop> {
    let (first, mut second) = (subject.made()?, subject.made()?);
    let before = subject.plan(&mut second)?;
    remove(subject, &first.volume)?;
    as_before(subject, &mut second, &before, "after another volume was removed")?;
    Ok(String::new())
}

/// Sees that a volume is as it was. `path` knows nothing of others: what may is asked before it, and comes as it does after a crash.
fn as_before(
    subject: &mut Subject,
    made: &mut Made,
    before: &Plan,
    when: &str,
) -> Result<(), Stop> {
    if subject.abilities().attachment {
        let attached = subject.attach(made);
        attached.map_err(|error| subject.stop(&format!("`attach` {when}"), &error))?;
    }
    let after = subject.plan(made)?;
    same(&format!("`path` {when}"), before, &after)?;
    if subject.never.made_again {
        return Ok(());
    }
    let again = subject.create(&made.volume);
    let again =
        again.map_err(|error| subject.stop(&format!("a second `create` {when}"), &error))?;
    same(&format!("`create` {when}"), &made.storage, &again.storage)
}

/// A name may come again, from another host or after a removal by force, and with other options.
pub(super) fn two_of_one_name_are_apart(subject: &mut Subject) -> Result<String, Stop> {
    let mut first = subject.made()?;
    let before = subject.plan(&mut first)?;
    let mut second = subject.volume_named(first.volume.name.clone());
    let other = another_option(subject);
    let mut detail = String::new();
    if let Some((key, text)) = &other {
        let mut given = subject.setup.given.clone();
        given.insert(key.clone(), text.clone());
        second.options = subject.parse(&given).map_err(Stop::Broken)?;
        detail = format!("with `{key}={text}`");
    }
    let answer = subject.make(second.clone());
    match subject.or_refused("`create` of a name that is there", answer)? {
        Some(made) => {
            remove(subject, &made.volume)?;
        }
        None => detail.insert_str(0, if detail.is_empty() { "refused" } else { "refused, " }),
    }
    as_before(subject, &mut first, &before, "after another volume of that name")?;
    Ok(detail)
}

/// An option that was not given so. A text only where there is nothing else: what that may be its driver alone knows.
fn another_option(subject: &Subject) -> Option<(String, String)> {
    let other = |spec: &OptionSpec| {
        let text = match spec.value_type {
            ValueType::Boolean => ["true", "false"],
            ValueType::Size => ["96m", "64m"],
            ValueType::Number => ["7", "8"],
            ValueType::Duration => ["7s", "8s"],
            ValueType::Text => ["check", "other"],
            ValueType::Secret => return None,
        };
        let now = subject.options.get(&spec.key);
        let differs = |text: &&str| {
            let given = subject.setup.given.clone().into_iter();
            let given = given.chain([(spec.key.clone(), (*text).to_owned())]).collect();
            subject.parse(&given).is_ok_and(|options| options.get(&spec.key) != now)
        };
        Some((spec.key.clone(), text.into_iter().find(differs)?.to_owned()))
    };
    let options = subject.driver().description().options.iter();
    let is_text = |spec: &&OptionSpec| spec.value_type == ValueType::Text;
    let (texts, others): (Vec<_>, Vec<_>) = options.partition(is_text);
    others.into_iter().chain(texts).find_map(other)
}

/// As a host does that crashed once in the middle, and once before `create` had returned.
pub(super) fn removed(subject: &mut Subject) -> Result<String, Stop> {
    let made = subject.made()?;
    let reclaim = remove(subject, &made.volume)?;
    let again = subject.remove(&made.volume);
    let again = again.map_err(|error| subject.stop("a second `remove`", &error))?;
    same("`remove`", &reclaim, &again)?;
    let unsaid = Volume { state: Vec::new(), ..made.volume };
    let unsaid = subject.remove(&unsaid);
    unsaid.map_err(|error| subject.stop("`remove` with empty state", &error))?;
    Ok(match reclaim {
        Reclaim::Delete => "its data is deleted".to_owned(),
        Reclaim::Retain => "its data is kept".to_owned(),
    })
}

pub(super) fn never_made(subject: &mut Subject) -> Result<String, Stop> {
    let volume = subject.new_volume()?;
    remove(subject, &volume)?;
    Ok(String::new())
}

pub(super) fn remove(subject: &mut Subject, volume: &Volume) -> Result<Reclaim, Stop> {
    subject.end(volume).map_err(|error| subject.stop("`remove`", &error))
}

/// Names come once. A volume that was made is found as it was made, if it is found; what a host has marked beneath a granted root is.
pub(super) fn list(subject: &mut Subject) -> Result<String, Stop> {
    listed(subject, &[])?;
    let Ok(mut made) = subject.made() else { return Ok(String::new()) };
    let Volume { id, name, options, .. } = made.volume.clone();
    let marked = match &made.storage {
        Storage::NamedDirectory(at) if subject.driver().sees_roots() => {
            Some(Marked { name, id, directory: at.directory.clone(), options })
        }
        _ => None,
    };
    let all = listed(subject, marked.as_slice())?;
    let nobody = |found: &&Found| VolumeName::parse(&found.name).is_err();
    let mut detail = format!("{} found", all.len());
    if let Some(odd) = all.iter().find(nobody) {
        detail.push_str(&format!(", and no engine takes the name {}", Quoted::new(&odd.name)));
    }
    let own = all.iter().find(|found| found.id == Some(id));
    let own = own.or_else(|| all.iter().find(|found| found.name == made.volume.name.as_str()));
    let Some(found) = own.cloned() else {
        ensure(marked.is_none(), || {
            "`list` does not find what is marked beneath its root".to_owned()
        })?;
        return Ok(detail);
    };
    let plan = subject.plan(&mut made)?;
    let Found { name, id: found_id, options, state, owned } = found;
    same("the id of a volume that is found", &Some(id), &found_id)?;
    same("the name of a volume that is found", made.volume.name.as_str(), name.as_str())?;
    same("the options of a volume that is found", &made.volume.options, &options)?;
    ensure(owned, || "`list` does not own what the driver itself has made".to_owned())?;
    let volume = Volume { state, options, ..made.volume };
    let mut again = Made { volume, storage: made.storage, attached: false };
    let again = subject.try_plan(&mut again);
    let again = again.map_err(|(verb, error)| {
        subject.stop(&format!("{verb} of a volume that is found"), &error)
    })?;
    same("`path` of a volume that is found", &plan, &again)?;
    if marked.is_some() {
        detail = "what is marked is found".to_owned();
    }
    Ok(detail)
}

fn listed(subject: &mut Subject, marked: &[Marked]) -> Result<Vec<Found>, Stop> {
    let found = subject.list(marked).map_err(|error| subject.stop("`list`", &error))?;
    let mut names = BTreeSet::new();
    for Found { name, .. } in &found {
        ensure(names.insert(name), || format!("`list` finds {} twice", Quoted::new(name)))?;
    }
    Ok(found)
}

/// A volume of a check's is nobody's: at a backend it would stay, and cost.
pub(super) fn ended(subject: &mut Subject) -> Result<String, Stop> {
    match &subject.left_why {
        None => Ok(String::new()),
        Some(Stop::Broken(why)) => {
            let names = subject.left.join("`, `");
            Err(Stop::Broken(format!("{why}: still there may be `{names}`")))
        }
        Some(lacking) => Err(lacking.clone()),
    }
}

/// What needs most of its time, memory, log or answer here has too little of them where a machine is busy, or a volume is large.
pub(super) fn limits(subject: &mut Subject) -> Result<String, Stop> {
    for (verb, told) in subject.told() {
        let (time, deadline) = (told.slowest.as_millis(), told.deadline.as_millis());
        let [memory, log, answer, state] =
            [told.memory, told.log, told.answer, told.state].map(|bytes| bytes as u128 >> 10);
        for (what, used, limit) in [
            ("ms", time, deadline),
            ("KiB of memory", memory, Cost::MEMORY_MAX as u128 >> 10),
            ("KiB of log", log, Cost::LOG_MAX as u128 >> 10),
            ("KiB of answer", answer, told.answer_max as u128 >> 10),
            ("KiB of state", state, Cost::STATE_MAX as u128 >> 10),
        ] {
            ensure(used * 4 <= limit * 3, || {
                format!("`{verb}` takes {used} of its {limit} {what}")
            })?;
        }
    }
    Ok(String::new())
}
