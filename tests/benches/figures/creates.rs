//! Create and Remove: commits by count, and what is gained when many ask at once.

use std::time::{Duration, Instant};

use crate::client::named;
use crate::instance::Instance;
use crate::machine::{median, micros, sync_cost};
use crate::report::{Figure, Goal, Report, number, time};
use crate::{Places, Result};

/// Lone calls whose commits are counted.
const LONE: usize = 50;
/// Rounds of the ratios: the middle one counts.
const ROUNDS: usize = 5;
/// Clients of a crowd.
const CROWD: usize = 8;
/// How long a round creates.
const ROUND: Duration = Duration::from_millis(700);

pub(crate) fn measure(places: &Places, few: &Instance, report: &mut Report) -> Result<()> {
    count(places, few, report)?;
    let (mut ratios, mut lone, mut crowd) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let one = creates_per_second(few, 1)?;
        let eight = creates_per_second(few, CROWD)?;
        ratios.push(eight / one);
        lone.push(one);
        crowd.push(eight);
    }
    report.figure(Figure {
        name: "Creates of 8 connections beside those of one".to_owned(),
        goal: Goal::AtLeast(3.0),
        measured: median(ratios),
        unit: "times",
        raw: format!("{} and {} a second", number(median(crowd)), number(median(lone))),
    });
    Ok(())
}

/// Catalog commits of a Create and of a Remove when nobody else asks.
fn count(places: &Places, few: &Instance, report: &mut Report) -> Result<()> {
    let mut client = few.connect()?;
    let mut phase = |call: &str| -> Result<(f64, f64)> {
        let before = few.commits()?;
        let mut times = Vec::with_capacity(LONE);
        for at in 0..LONE {
            times.push(micros(client.timed(call, &named(&format!("lone-{at}")))?));
        }
        Ok(((few.commits()?.catalog - before.catalog) / LONE as f64, median(times)))
    };
    for (name, call) in [
        ("Create: catalog commits of a lone caller", "VolumeDriver.Create"),
        ("Remove: catalog commits of a lone caller", "VolumeDriver.Remove"),
    ] {
        let (commits, p50) = phase(call)?;
        let sync = sync_cost(&places.state)?;
        report.figure(Figure {
            name: name.to_owned(),
            goal: Goal::AtMost(2.0),
            measured: commits,
            unit: "commits",
            raw: format!("p50 {}; one durable write of 4 KiB: {}", time(p50), time(sync)),
        });
    }
    Ok(())
}

/// Creates for a while over some connections, and removes again what was made.
pub(crate) fn creates_per_second(instance: &Instance, connections: usize) -> Result<f64> {
    let clients = (0..connections).map(|_| instance.connect()).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    let made = std::thread::scope(|scope| -> Result<Vec<usize>> {
        let threads: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(at, mut client)| {
                scope.spawn(move || -> Result<usize> {
                    let mut made = 0;
                    while begin.elapsed() < ROUND {
                        client.call("VolumeDriver.Create", &named(&format!("made-{at}-{made}")))?;
                        made += 1;
                    }
                    Ok(made)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a client panicked")?).collect()
    })?;
    let took = begin.elapsed();
    std::thread::scope(|scope| {
        let threads: Vec<_> = made
            .iter()
            .enumerate()
            .map(|(at, made)| {
                scope.spawn(move || -> Result<()> {
                    let mut client = instance.connect()?;
                    (0..*made).try_for_each(|number| {
                        let name = named(&format!("made-{at}-{number}"));
                        client.call("VolumeDriver.Remove", &name).map(drop)
                    })
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a client panicked")?)
    })?;
    Ok(made.iter().sum::<usize>() as f64 / took.as_secs_f64())
}
