//! What wasmvol takes while nobody asks anything, and how soon it answers after a start.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;
use crate::instance::Instance;
use crate::machine::{mebibytes, median, millis};
use crate::report::{Figure, Goal, Report, number};

/// Starts that are measured.
const STARTS: usize = 11;
/// After this nothing of the start is going on any more.
const SETTLED: Duration = Duration::from_secs(3);

/// Both drivers are compiled and cached by now; there is no volume yet.
pub(crate) fn measure(few: &mut Instance, report: &mut Report) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        few.stop()?;
        let begin = Instant::now();
        few.launch()?;
        few.activate()?;
        times.push(millis(begin.elapsed()));
    }
    few.changing_verb()?;
    times.sort_by(f64::total_cmp);
    let slowest = times.last().copied().unwrap_or_default();
    report.figure(Figure {
        name: "start to the first answered Activate, both drivers cached".to_owned(),
        goal: Goal::AtMost(20.0),
        measured: median(times),
        unit: "ms",
        raw: format!("slowest of {STARTS}: {} ms", number(slowest)),
    });

    sleep(SETTLED);
    let (daemon, mountd) = (few.daemon()?, few.mountd()?);
    let rss = |pid| mebibytes(pid, "status", "VmRSS");
    let pss = mebibytes(daemon, "smaps_rollup", "Pss")? + mebibytes(mountd, "smaps_rollup", "Pss")?;
    report.figure(Figure {
        name: "idle RSS of daemon and mountd".to_owned(),
        goal: Goal::AtMost(25.0),
        measured: rss(daemon)? + rss(mountd)?,
        unit: "MiB",
        raw: format!(
            "daemon {}, mountd {}; PSS {}",
            number(rss(daemon)?),
            number(rss(mountd)?),
            number(pss)
        ),
    });
    Ok(())
}
