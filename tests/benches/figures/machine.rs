//! The machine: how busy it is, what a process used of it, and the middle of many measurements.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Result, say};

/// How long the run waits for others to finish.
const QUIET_PATIENCE: Duration = Duration::from_secs(120);
/// How long a look at the processors takes.
const LOOK: Duration = Duration::from_secs(1);
/// Share of the processors that others may use while we measure.
const QUIET: f64 = 0.10;

/// Waits until the processors are idle, for a while; then it goes on all the same, and the report says how busy they were.
pub(crate) fn wait_until_quiet() {
    let end = Instant::now() + QUIET_PATIENCE;
    let mut said = false;
    while Instant::now() < end && busy_share() > QUIET {
        if !said {
            said = true;
            say("bench: waiting up to 2 minutes for the machine to become idle");
        }
    }
}

/// The share of all processors that is in use right now, by looking for a second.
pub(crate) fn busy_share() -> f64 {
    let before = ticks();
    std::thread::sleep(LOOK);
    let after = ticks();
    match (before, after) {
        (Some((idle, all)), Some((idle_then, all_then))) if all_then > all => {
            1.0 - (idle_then - idle) / (all_then - all)
        }
        _ => 1.0,
    }
}

/// Idle and all ticks of all processors since the start.
fn ticks() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let fields = stat.lines().next()?.split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait …; what a guest used is in user already.
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((idle, ticks.iter().take(8).sum()))
}

/// Processors, kernel and load, in one line.
pub(crate) fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let load = read("/proc/loadavg");
    format!(
        "{} processors, Linux {}, load {}",
        std::thread::available_parallelism().map_or(1, usize::from),
        read("/proc/sys/kernel/osrelease"),
        load.split(' ').next().unwrap_or("unknown"),
    )
}

/// Processor time of a process so far, all its threads, to the nanosecond.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ended in between was idle anyway.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

/// A line of `/proc/PID/FILE` that is in kB, in MiB.
pub(crate) fn mebibytes(pid: u32, file: &str, key: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number: f64 = number.ok_or_else(|| format!("no `{key}` in {file}"))?.parse()?;
    Ok(number / 1024.0)
}

/// What one durable write of 4 KiB costs on the disk of `dir`, in microseconds: the middle of many.
pub(crate) fn sync_cost(dir: &Path) -> Result<f64> {
    use std::os::unix::fs::FileExt;
    const WRITES: usize = 200;
    let path = dir.join("sync");
    let file = fs::File::create(&path)?;
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let begin = Instant::now();
        file.write_all_at(&[1; 4096], 0)?;
        file.sync_data()?;
        times.push(micros(begin.elapsed()));
    }
    fs::remove_file(&path)?;
    Ok(median(times))
}

/// The middle of some numbers; 0 of none.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}

/// A time in microseconds.
pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A time in milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
