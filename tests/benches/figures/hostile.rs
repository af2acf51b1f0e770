//! Hostile drivers: how much slower somebody else's verbs get while eight calls of a driver do their worst than while they behave, how long
//! that lasts, and what the daemon keeps of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{held, named};
use crate::instance::Instance;
use crate::machine::{mebibytes, millis};
use crate::report::{Figure, Goal, Report, number};
use crate::{Places, Result};

/// Calls at once, each again as soon as it is over.
const CALLS: usize = 8;
/// Whose deeds, and which. None writes thousands of files: whoever does that, for others on the same disk its journal takes longer.
const DEEDS: [(&str, &str); 12] = [
    ("hostile", "loop"),
    ("hostile", "recurse"),
    ("hostile", "grow"),
    ("hostile", "hoard-resources"),
    ("hostile", "giant-state"),
    ("hostile", "log-flood"),
    ("rogue", "store-full"),
    ("rogue", "store-reads"),
    ("rogue", "reveal-flood"),
    ("rogue", "hoard-bodies"),
    ("rogue", "hoard-always"),
    ("rogue", "populate-open"),
];
/// How long each lasts, and the same with a driver that behaves, one after the other: a thousand verbs of somebody else's.
const WHILE: Duration = Duration::from_millis(1500);
/// How often, since a machine has other things to do now and then.
const TURNS: usize = 2;

pub(crate) fn measure(places: &Places, report: &mut Report) -> Result<()> {
    let mut instance = Instance::start(places, "hostile")?;
    for driver in ["hostile", "rogue"] {
        instance.load(driver)?;
    }
    let daemon = instance.daemon()?;
    let rss = || mebibytes(daemon, "status", "VmRSS");
    let longest = Longest::default();
    others(&instance, None)?;
    let (before, mut most) = (rss()?, 0.0_f64);
    let mut slower = Vec::new();
    for (driver, deed) in DEEDS {
        let (mut behaved, mut busy) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            behaved.extend(others(&instance, Some((driver, "behave", &Longest::default())))?);
            busy.extend(others(&instance, Some((driver, deed, &longest)))?);
        }
        let (behaved, busy) = (p99(behaved), p99(busy));
        let ratio = busy / behaved;
        slower.push((ratio, format!("{deed} {} ({} ms)", number(ratio), number(busy))));
        most = most.max(rss()? - before);
    }
    slower.sort_by(|one, other| other.0.total_cmp(&one.0));
    let each: Vec<_> = slower.iter().map(|(_, text)| text.as_str()).collect();
    report.figure(Figure {
        name: "verbs of `local` while 8 calls of another driver do their worst: p99 beside that of 8 that behave"
            .to_owned(),
        goal: Goal::AtMost(2.0),
        measured: slower.first().map_or(0.0, |(ratio, _)| *ratio),
        unit: "times",
        raw: each.join(", "),
    });
    let Longest(longest) = longest;
    let (seconds, deed) = longest.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.figure(Figure {
        name: "time until such a Create is refused and undone, the longest".to_owned(),
        goal: Goal::AtMost(5.0),
        measured: seconds,
        unit: "s",
        raw: deed,
    });
    report.figure(Figure {
        name: "RSS of the daemon that such a driver leaves behind".to_owned(),
        goal: Goal::AtMost(64.0),
        measured: most,
        unit: "MiB",
        raw: format!("{} MiB before", number(before)),
    });
    instance.stop()
}

/// The seconds that the longest call took, and what it did.
#[derive(Default)]
struct Longest(Mutex<(f64, String)>);

impl Longest {
    fn note(&self, seconds: f64, deed: &str) {
        let mut longest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seconds > longest.0 {
            *longest = (seconds, deed.to_owned());
        }
    }
}

/// The times of somebody else's verbs for a while, and what a driver does meanwhile.
fn others(instance: &Instance, deed: Option<(&str, &str, &Longest)>) -> Result<Vec<f64>> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        if let Some((driver, deed, longest)) = deed {
            for number in 0..CALLS {
                let over = &over;
                scope.spawn(move || again_and_again(instance, driver, deed, number, over, longest));
            }
        }
        let times = rounds(instance);
        over.store(true, Ordering::SeqCst);
        times
    })
}

/// Makes, mounts, unmounts and removes a volume, for a while.
fn rounds(instance: &Instance) -> Result<Vec<f64>> {
    let mut client = instance.connect()?;
    let (name, held) = (named("other"), held("other", "id"));
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < WHILE {
        for (verb, body) in
            [("Create", &name), ("Mount", &held), ("Unmount", &held), ("Remove", &name)]
        {
            times.push(millis(client.timed(&format!("VolumeDriver.{verb}"), body)?));
        }
    }
    Ok(times)
}

/// One who has a driver misbehave, whatever comes of it.
fn again_and_again(
    instance: &Instance,
    driver: &str,
    deed: &str,
    number: usize,
    over: &AtomicBool,
    longest: &Longest,
) {
    let name = format!("{deed}-{number}");
    let create = json!({ "Name": name, "Opts": { "driver": driver, "do": deed } }).to_string();
    // A refusal is what it is for.
    let call = |verb: &str, body: &str| {
        instance.connect().and_then(|mut client| client.call(verb, body).map(drop)).is_ok()
    };
    while !over.load(Ordering::SeqCst) {
        let begin = Instant::now();
        let created = call("VolumeDriver.Create", &create);
        longest.note(begin.elapsed().as_secs_f64(), deed);
        if created {
            call("VolumeDriver.Remove", &named(&name));
        }
    }
}

fn p99(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}
