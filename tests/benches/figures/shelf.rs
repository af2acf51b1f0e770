//! The shelf at work: volumes of every kind that needs no other machine, made, mounted, unmounted and removed by many clients at once.

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::Result;
use crate::client::{held, named};
use crate::ground::Ground;
use crate::instance::Instance;
use crate::machine::{mebibytes, micros};
use crate::report::{Process, Report, Verb, number};

/// How many volumes of each kind: what is used most is there most.
const VOLUMES: [(&str, usize); 7] = [
    ("local", 70),
    ("vfs", 40),
    ("tmpfs", 30),
    ("overlay", 20),
    ("btrfs", 20),
    ("image", 16),
    ("sshfs", 4),
];
/// Clients, each with a connection of its own.
const CLIENTS: usize = 8;
/// Size of an image: its file system is made at each Create.
const IMAGE: &str = "16m";
/// An ID as dockerd makes them.
const ID: &str = "1a2b3c4d5e6f70819203a4b5c6d7e8f91a2b3c4d5e6f70819203a4b5c6d7e8f9";

pub(crate) fn measure(ground: &Ground, report: &mut Report) -> Result<()> {
    let instance = &ground.on_btrfs;
    let kinds = VOLUMES.iter().flat_map(|(driver, count)| vec![*driver; *count]);
    let mut volumes: Vec<_> =
        kinds.enumerate().map(|(at, driver)| (format!("shelf-{at}"), driver)).collect();
    // So that every client has some of each kind, and not all at the same time.
    volumes.sort_by_key(|(name, _)| name.bytes().rev().collect::<Vec<_>>());
    let creates: Vec<String> = volumes
        .iter()
        .map(|(name, driver)| ground.create(name, driver, IMAGE))
        .collect::<Result<_>>()?;
    let held: Vec<String> = volumes.iter().map(|(name, _)| held(name, ID)).collect();
    let named: Vec<String> = volumes.iter().map(|(name, _)| named(name)).collect();

    report.verb(all(instance, "Create", &creates)?);
    report.verb(all(instance, "Mount", &held)?);
    let of = |pid| mebibytes(pid, "status", "VmRSS");
    let (daemon, mountd) = (instance.daemon()?, instance.mountd()?);
    let mounted = (of(daemon)?, of(mountd)?);
    let programs = programs(daemon)?;
    report.verb(all(instance, "Unmount", &held)?);
    report.verb(all(instance, "Remove", &named)?);
    let both = |mounted: f64, end: f64| format!("{}; {} at the end", number(mounted), number(end));
    for (name, rss) in [
        ("wasmvol daemon", both(mounted.0, of(daemon)?)),
        ("wasmvol-mountd", both(mounted.1, of(mountd)?)),
    ] {
        report.process(Process { name: name.to_owned(), mebibytes: rss });
    }
    for (name, rss) in programs {
        report.process(Process { name, mebibytes: number(rss) });
    }
    Ok(())
}

/// Asks for all of it by all clients, each for its share.
fn all(instance: &Instance, verb: &'static str, bodies: &[String]) -> Result<Verb> {
    let call = format!("VolumeDriver.{verb}");
    let clients = (0..CLIENTS).map(|_| instance.connect()).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    let mut times = std::thread::scope(|scope| -> Result<Vec<f64>> {
        let threads: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(at, mut client)| {
                let share = bodies.iter().skip(at).step_by(CLIENTS);
                let call = &call;
                scope.spawn(move || {
                    share.map(|body| client.timed(call, body).map(micros)).collect::<Result<_>>()
                })
            })
            .collect();
        let shares: Vec<Vec<f64>> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a client panicked")?)
            .collect::<Result<_>>()?;
        Ok(shares.concat())
    })?;
    let took = micros(begin.elapsed());
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    Ok(Verb { verb, volumes: times.len(), took, p50: at(50), p99: at(99) })
}

/// The programs that serve volumes, with what each takes: those whose mounts are wasmvol's run as nobody.
fn programs(daemon: u32) -> Result<Vec<(String, f64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that ended in between is none any more.
        let Ok(status) = fs::read_to_string(Path::new("/proc").join(format!("{pid}/status")))
        else {
            continue;
        };
        let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        let name = field("Name:\t").unwrap_or_default();
        let is_nobody = field("Uid:\t").is_some_and(|uids| uids.starts_with("65534\t"));
        if is_nobody && pid != daemon && matches!(name, "sshfs" | "ssh") {
            found.push((format!("{name}, of one volume"), mebibytes(pid, "status", "VmRSS")?));
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        // The largest of each.
        kept.1 = if is_same { kept.1.max(next.1) } else { kept.1 };
        is_same
    });
    Ok(found)
}
