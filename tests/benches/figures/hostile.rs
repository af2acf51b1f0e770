//! Hostile drivers: how much slower somebody else's verbs get while eight calls of a driver do their worst than while they behave, how long
//! that lasts, how much memory the daemon has at most meanwhile, and what it keeps of that.

#[path = "../../it/deeds.rs"]
mod deeds;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use deeds::{DEEDS, WITH, bomb};
use serde_json::json;

use crate::client::{held, named};
use crate::instance::Instance;
use crate::machine::{mebibytes, millis};
use crate::report::{Figure, Goal, Report, number};
use crate::{Places, Result};

/// Calls at once, each again as soon as it is over.
const CALLS: usize = 8;
/// How long each lasts, and the same with a driver that behaves, one after the other: a thousand verbs of somebody else's.
const WHILE: Duration = Duration::from_millis(1000);
/// How often, since a machine has other things to do now and then.
const TURNS: usize = 2;

pub(crate) fn measure(places: &Places, report: &mut Report) -> Result<()> {
    let mut instance = Instance::start(places, "hostile")?;
    for driver in ["hostile", "rogue"] {
        instance.load(driver)?;
    }
    let daemon = instance.daemon()?;
    let memory = |which| mebibytes(daemon, "status", which);
    let longest = Longest::default();
    others(&instance, None)?;
    let (mut slower, mut kept, mut peak) = (Vec::new(), Most::default(), Most::default());
    // Of each driver by itself: what one leaves is no other's.
    let mut before = ("", 0.0);
    for (driver, deed, _) in DEEDS {
        if before.0 != *driver {
            before = (driver, memory("VmRSS")?);
        }
        // The kernel forgets the peak of before: see proc(5).
        fs::write(format!("/proc/{daemon}/clear_refs"), "5")?;
        let (mut behaved, mut busy) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            behaved.extend(others(&instance, Some((driver, "behave", &Longest::default())))?);
            busy.extend(others(&instance, Some((driver, deed, &longest)))?);
        }
        let (behaved, busy) = (p99(behaved), p99(busy));
        let ratio = busy / behaved;
        slower.push((ratio, format!("{deed} {} ({} ms)", number(ratio), number(busy))));
        kept.note(at_rest(|| memory("VmRSS"))? - before.1, deed);
        peak.note(memory("VmHWM")? - before.1, deed);
    }
    let (mut behaved, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        behaved.extend(others(&instance, Some(("hostile", "behave", &Longest::default())))?);
        busy.extend(beside_a_compiler(&instance, &places.state.join("bomb.wasm"))?);
    }
    let (behaved, busy) = (p99(behaved), p99(busy));
    let ratio = busy / behaved;
    slower.push((ratio, format!("compiling {} ({} ms)", number(ratio), number(busy))));
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
    let longest = longest.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.figure(Figure {
        name: "time until such a Create is refused and undone, the longest".to_owned(),
        goal: Goal::AtMost(5.0),
        measured: longest.value,
        unit: "s",
        raw: longest.deed,
    });
    report.figure(Figure {
        name: "RSS of the daemon that such a driver leaves behind".to_owned(),
        goal: Goal::AtMost(64.0),
        measured: kept.value,
        unit: "MiB",
        raw: format!(
            "{}; at most {} MiB more meanwhile, {}, where {CALLS} calls may have 64 each",
            kept.deed,
            number(peak.value),
            peak.deed
        ),
    });
    instance.stop()
}

/// The least of what is measured for a while: what could not be undone at once is tried again meanwhile, by calls that have memory.
fn at_rest(measure: impl Fn() -> Result<f64>) -> Result<f64> {
    const SAMPLES: usize = 20;
    const PAUSE: Duration = Duration::from_millis(50);
    let mut least = f64::INFINITY;
    for _ in 0..SAMPLES {
        least = least.min(measure()?);
        thread::sleep(PAUSE);
    }
    Ok(least)
}

/// The most of something, and the deed that it was with.
#[derive(Default)]
struct Most {
    value: f64,
    deed: String,
}

impl Most {
    fn note(&mut self, value: f64, deed: &str) {
        if value > self.value {
            (self.value, self.deed) = (value, deed.to_owned());
        }
    }
}

/// The seconds that the longest call took.
#[derive(Default)]
struct Longest(Mutex<Most>);

impl Longest {
    fn note(&self, seconds: f64, deed: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note(seconds, deed);
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

/// The same while a component is compiled that ends by a limit of its compiler's.
fn beside_a_compiler(instance: &Instance, file: &Path) -> Result<Vec<f64>> {
    fs::write(file, bomb())?;
    thread::scope(|scope| {
        let compiled = scope.spawn(|| instance.load_file(file).is_err());
        let mut times = Vec::new();
        while !compiled.is_finished() {
            times.extend(rounds(instance)?);
        }
        match compiled.join() {
            Ok(true) => Ok(times),
            _ => Err("the component was loaded".into()),
        }
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
    let with = (driver == "rogue").then_some(("with", WITH));
    let options = [("driver", driver), ("do", deed)].into_iter().chain(with);
    let options: BTreeMap<_, _> = options.collect();
    let create = json!({ "Name": name, "Opts": options }).to_string();
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
