//! 10,000 volumes beside 10: Create, Get, List, and the start after a kill.

use std::time::Instant;

use crate::client::named;
use crate::creates::creates_per_second;
use crate::gets::{Compared, Target, compare, server_cpu};
use crate::instance::{Instance, volume};
use crate::machine::{median, micros, millis};
use crate::report::{Figure, Goal, Report, number};
use crate::{FEW, Result};

/// Volumes of the instance that stands for a large machine.
pub(crate) const MANY: usize = 10_000;
/// Numbers of volumes at which the protocol's calls are timed.
pub(crate) const SIZES: [usize; 3] = [FEW, 1_000, MANY];
/// Rounds of the ratios of Creates: the middle one counts.
const ROUNDS: usize = 5;
/// Clients of a Create's round.
const CROWD: usize = 8;
/// Lists that are measured.
const LISTS: usize = 50;
/// Kills and starts.
const STARTS: usize = 5;

/// What a client waits for at some number of volumes, p50 in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timed {
    pub(crate) get: f64,
    pub(crate) create: f64,
    pub(crate) list: f64,
}

/// Makes 10,000 volumes, and times the calls on the way.
pub(crate) fn fill(many: &mut Instance) -> Result<Vec<Timed>> {
    let mut there = 0;
    let mut all = Vec::new();
    for size in SIZES {
        many.fill(there..size)?;
        there = size;
        all.push(times(&mut many.connect()?, named)?);
    }
    Ok(all)
}

/// Times Get, Create and List over one connection; `create` is the body that makes a volume.
pub(crate) fn times(
    client: &mut crate::client::Client,
    create: impl Fn(&str) -> String,
) -> Result<Timed> {
    const GETS: usize = 1_000;
    const CREATES: usize = 30;
    const LISTS: usize = 10;
    let get = named(&volume(0));
    let gets = (0..GETS).map(|_| client.timed("VolumeDriver.Get", &get).map(micros));
    let get = median(gets.collect::<Result<_>>()?);
    let lists = (0..LISTS).map(|_| client.timed("VolumeDriver.List", "{}").map(micros));
    let list = median(lists.collect::<Result<_>>()?);
    let mut creates = Vec::with_capacity(CREATES);
    for _ in 0..CREATES {
        creates.push(micros(client.timed("VolumeDriver.Create", &create("timed"))?));
        client.call("VolumeDriver.Remove", &named("timed"))?;
    }
    Ok(Timed { get, create: median(creates), list })
}

pub(crate) fn measure(few: &Instance, many: &mut Instance, report: &mut Report) -> Result<()> {
    creates(few, many, report)?;
    let mut small = Target { pid: few.daemon()?, client: few.connect()? };
    let mut large = Target { pid: many.daemon()?, client: many.connect()? };
    let Compared { ratio, first, second } = compare(&mut large, &mut small, &named(&volume(7)))?;
    report.figure(Figure {
        name: "Get: server CPU at 10,000 volumes beside that at 10".to_owned(),
        goal: Goal::AtMost(1.2),
        measured: ratio,
        unit: "times",
        raw: format!("{} us and {} us a call", number(first), number(second)),
    });
    let list =
        server_cpu(&mut large, LISTS, |client| client.call("VolumeDriver.List", "{}").map(drop))?;
    drop((small, large));
    report.figure(Figure {
        name: "List of 10,000: server CPU a volume".to_owned(),
        goal: Goal::AtMost(1.0),
        measured: list / MANY as f64,
        unit: "us",
        raw: format!("{} ms a List", number(list / 1e3)),
    });
    starts(many, report)
}

fn creates(few: &Instance, many: &Instance, report: &mut Report) -> Result<()> {
    let (mut ratios, mut small, mut large) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (few, many) = if round % 2 == 0 {
            let few = creates_per_second(few, CROWD)?;
            (few, creates_per_second(many, CROWD)?)
        } else {
            let many = creates_per_second(many, CROWD)?;
            (creates_per_second(few, CROWD)?, many)
        };
        ratios.push(many / few);
        small.push(few);
        large.push(many);
    }
    report.figure(Figure {
        name: "Creates at 10,000 volumes beside those at 10, 8 connections".to_owned(),
        goal: Goal::AtLeast(0.7),
        measured: median(ratios),
        unit: "times",
        raw: format!("{} and {} a second", number(median(large)), number(median(small))),
    });
    Ok(())
}

/// From the start to the first verb that changes something, after a kill -9.
fn starts(many: &mut Instance, report: &mut Report) -> Result<()> {
    let (mut ready, mut listed) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        many.kill()?;
        let begin = Instant::now();
        many.launch()?;
        many.connect()?.call("VolumeDriver.List", "{}")?;
        listed.push(millis(begin.elapsed()));
        many.changing_verb()?;
        ready.push(millis(begin.elapsed()));
    }
    report.figure(Figure {
        name: "start with 10,000 volumes after kill -9 to the first Create and Remove done"
            .to_owned(),
        goal: Goal::AtMost(1_000.0),
        measured: median(ready),
        unit: "ms",
        raw: format!("the first List after {} ms", number(median(listed))),
    });
    Ok(())
}
