//! Get over a connection that is kept alive, beside a bare hyper server that answers the same bytes: server CPU, round by round.

use std::fs;
use std::time::Duration;

use crate::client::{Client, named};
use crate::instance::{Instance, connect, mortal, volume};
use crate::report::{Figure, Goal, Report, number};
use crate::{Places, Result, machine};

/// Pairs of rounds: the middle ratio of them counts.
const ROUNDS: usize = 21;
/// Calls of one round.
const CALLS: usize = 2_000;

/// One server and a connection to it.
pub(crate) struct Target {
    pub(crate) pid: u32,
    pub(crate) client: Client,
}

/// What two servers cost for the same calls.
pub(crate) struct Compared {
    /// The middle of the ratios of each pair of rounds.
    pub(crate) ratio: f64,
    /// Server CPU of a call, in microseconds, the middle of all rounds.
    pub(crate) first: f64,
    pub(crate) second: f64,
}

pub(crate) fn measure(places: &Places, few: &Instance, report: &mut Report) -> Result<()> {
    let request = named(&volume(0));
    let mut own = Target { pid: few.daemon()?, client: few.connect()? };
    let answer = places.runtime.join("answer");
    fs::write(&answer, own.client.call("VolumeDriver.Get", &request)?.body)?;
    let socket = places.runtime.join("bare.sock");
    let mut server =
        mortal(&std::env::current_exe()?).arg("bare").arg(&socket).arg(&answer).spawn()?;
    let compared = connect(&socket).and_then(|client| {
        let mut bare = Target { pid: server.id(), client };
        let theirs = bare.client.call("VolumeDriver.Get", &request)?.head.len();
        let ours = own.client.call("VolumeDriver.Get", &request)?.head.len();
        if theirs != ours {
            return Err("the bare server answers other bytes".into());
        }
        compare(&mut own, &mut bare, &request)
    });
    server.kill()?;
    server.wait()?;
    let Compared { ratio, first, second } = compared?;
    report.figure(Figure {
        name: "Get over keep-alive: server CPU beside a bare hyper server's".to_owned(),
        goal: Goal::AtMost(1.5),
        measured: ratio,
        unit: "times",
        raw: format!("{} us and {} us a call", number(first), number(second)),
    });
    Ok(())
}

/// Gets from two servers in turn.
pub(crate) fn compare(first: &mut Target, second: &mut Target, request: &str) -> Result<Compared> {
    // Both warm up.
    round(first, request)?;
    round(second, request)?;
    let (mut ratios, mut firsts, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..ROUNDS {
        // Who begins changes, so that a machine that slows down favours nobody.
        let (one, two) = if number % 2 == 0 {
            let one = round(first, request)?;
            (one, round(second, request)?)
        } else {
            let two = round(second, request)?;
            (round(first, request)?, two)
        };
        ratios.push(one / two);
        firsts.push(one);
        seconds.push(two);
    }
    let median = machine::median;
    Ok(Compared { ratio: median(ratios), first: median(firsts), second: median(seconds) })
}

/// Server CPU of a call, in microseconds.
fn round(target: &mut Target, request: &str) -> Result<f64> {
    server_cpu(target, CALLS, |client| client.call("VolumeDriver.Get", request).map(drop))
}

/// Server CPU of one of `calls` calls, in microseconds.
pub(crate) fn server_cpu(
    target: &mut Target,
    calls: usize,
    mut call: impl FnMut(&mut Client) -> Result<()>,
) -> Result<f64> {
    let before = machine::cpu(target.pid)?;
    for _ in 0..calls {
        call(&mut target.client)?;
    }
    let used: Duration = machine::cpu(target.pid)?.saturating_sub(before);
    Ok(machine::micros(used) / calls as f64)
}
