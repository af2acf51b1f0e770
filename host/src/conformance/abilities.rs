//! The abilities, each of a driver that exports it: what may come twice comes twice.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use wasmvol_driver::{CallError, Condition, Populated, Report, Resized, Value, Volume};

use super::subject::Made;
use super::{Stop, Subject, ensure, is_no_sentence, same};
use crate::volumes::resize::{SIZE, differs_in_size_alone};

/// A version that is older than any.
pub(super) const OLDER: &str = "0.0.0";

/// Where a volume is attached already that is done, and likewise where it is not attached any more: whether the host has kept what came
/// of the first time, or has crashed before.
pub(super) fn attachment(subject: &mut Subject) -> Result<String, Stop> {
    let mut made = subject.made()?;
    let mut lost = made.clone();
    let plan = subject.in_vain(|subject| subject.plan(&mut lost))?;
    for what in ["a second `attach`", "an `attach` of what is attached"] {
        let attached = subject.attach(&mut made);
        attached.map_err(|error| subject.stop(what, &error))?;
        same("`path` of what was attached twice", &plan, &subject.plan(&mut made)?)?;
    }
    let mut lost = made.clone();
    let detached = subject.in_vain(|subject| subject.detach(&mut lost));
    detached.map_err(|error| subject.stop("`detach`", &error))?;
    for what in ["a second `detach`", "a `detach` of what is detached"] {
        let detached = subject.detach(&mut made);
        detached.map_err(|error| subject.stop(what, &error))?;
    }
    Ok(String::new())
}

/// Twice from the same state, as after a crash: only the size may be another.
pub(super) fn resizing(subject: &mut Subject) -> Result<String, Stop> {
    let mut made = subject.made()?;
    let Some(Value::Size(size)) = made.volume.options.get(SIZE).cloned() else {
        let why = "a host resizes volumes with the option `size`: give one with `-o size=…`";
        return Err(Stop::Lacking(why.into()));
    };
    subject.plan(&mut made)?;
    let wanted = size.saturating_mul(2);
    let first = subject.in_vain(|subject| subject.resize(&made.volume, wanted));
    let first = first.map_err(|error| subject.stop("`resize`", &error))?;
    let again = subject.resize(&made.volume, wanted);
    let again = again.map_err(|error| subject.stop("a second `resize`", &error))?;
    same("`resize` to one size", &first.storage, &again.storage)?;
    ensure(differs_in_size_alone(&made.storage, &again.storage), || {
        "`resize` changes more of the storage than its size".to_owned()
    })?;
    let Resized { storage, state } = again;
    made.volume.options.insert(SIZE.to_owned(), Value::Size(wanted));
    let volume = Volume { state, ..made.volume.clone() };
    let mut made = Made { volume, storage, ..made };
    subject.plan(&mut made)?;
    Ok(format!("from {size} to {wanted} bytes"))
}

/// Twice from the same state: if it comes again after a crash, what it wrote before is gone.
pub(super) fn population(subject: &mut Subject) -> Result<String, Stop> {
    let mut made = subject.made()?;
    let fits = made.storage.check_fill();
    fits.map_err(|fault| Stop::Broken(format!("its storage is refused: {fault}")))?;
    let (first, _) = subject.in_vain(|subject| fill(subject, &made.volume))?;
    first.map_err(|error| subject.stop("`populate`", &error))?;
    let (filled, files) = fill(subject, &made.volume)?;
    let filled = filled.map_err(|error| subject.stop("a second `populate`", &error))?;
    made.volume.state = filled.state;
    subject.plan(&mut made)?;
    Ok(match files {
        1 => "1 file".to_owned(),
        files => format!("{files} files"),
    })
}

/// Has a volume filled in an empty directory, which goes again, and counts the files that were there.
pub(super) fn fill(
    subject: &mut Subject,
    volume: &Volume,
) -> Result<(Result<Populated, CallError>, u64), Stop> {
    let host =
        |error: io::Error| Stop::Lacking(format!("no directory can be filled here: {error}"));
    let place = subject.setup.scratch.join("volume");
    fs::create_dir(&place).map_err(host)?;
    let directory = File::open(&place).map_err(host)?;
    let filled = subject.populate(volume, directory.into());
    let count = count(&place);
    fs::remove_dir_all(&place).map_err(host)?;
    Ok((filled, count.map_err(host)?))
}

/// What is there that is no directory.
fn count(directory: &Path) -> io::Result<u64> {
    let (mut files, mut queue) = (0, vec![directory.to_owned()]);
    while let Some(directory) = queue.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                queue.push(entry.path());
            } else {
                files += 1;
            }
        }
    }
    Ok(files)
}

pub(super) fn health(subject: &mut Subject) -> Result<String, Stop> {
    let mut made = subject.made()?;
    subject.plan(&mut made)?;
    let told = subject.check(&made.volume);
    let Report { condition, message } = told.map_err(|error| subject.stop("`check`", &error))?;
    let condition = match condition {
        Condition::Healthy => return Ok("healthy".to_owned()),
        Condition::Degraded => "degraded",
        Condition::Unreachable => "unreachable",
    };
    match is_no_sentence(&message) {
        Some(wrong) => Err(Stop::Broken(format!("`check` says {condition}, and why {wrong}"))),
        None => Ok(format!("{condition}: {message}")),
    }
}

/// Its own state as if an older version had written it: the volume must not change by that.
pub(super) fn migration(subject: &mut Subject) -> Result<String, Stop> {
    let mut made = subject.made()?;
    let plan = subject.plan(&mut made)?;
    for what in ["`migrate`", "a second `migrate`"] {
        let migrated = subject.migrate(&made.volume, OLDER);
        let state = migrated.map_err(|error| subject.stop(what, &error))?;
        let volume = Volume { state, ..made.volume.clone() };
        let after = subject.path(&volume);
        let after = after.map_err(|error| subject.stop("`path` of what was migrated", &error))?;
        same("`path` across a migration", &plan, &after)?;
    }
    Ok(String::new())
}
