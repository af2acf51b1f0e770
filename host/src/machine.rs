//! The machine itself: clock, entropy, processes, and the named steps where a crash test ends the daemon.
//!
//! The real form of [`world::Machine`]; also tells the daemon its boot and the plugin who is at the other end of a socket.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::Pid;
use wasmvol_plan::{Id, steps};

use crate::volumes::holders::Process;
use crate::volumes::world;

/// RAMFS_MAGIC of linux/magic.h.
const RAMFS: FsType = FsType(0x8584_58f6);

/// Clock, entropy and processes of this machine.
#[derive(Debug)]
pub(crate) struct Machine {
    entropy: File,
    /// The step to end at, and the file that arms it.
    kill_at: Option<(String, PathBuf)>,
}

impl Machine {
    /// Opens the kernel's entropy and reads which step is armed.
    pub(crate) fn new() -> io::Result<Self> {
        let kill_at = std::env::var(steps::KILL_AT).ok().and_then(|armed| {
            let (step, flag) = armed.split_once('@')?;
            Some((step.to_owned(), PathBuf::from(flag)))
        });
        Ok(Self { entropy: File::open("/dev/urandom")?, kill_at })
    }
}

impl world::Machine for Machine {
    fn now(&self) -> u64 {
        // A clock before 1970 shows as 1970; nothing but a date is made of it.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    fn uptime(&self) -> u64 {
        // What cannot be read is 0: every holder is young then, and stays.
        std::fs::read_to_string("/proc/uptime")
            .ok()
            .and_then(|text| parse_uptime(&text))
            .unwrap_or(0)
    }

    fn mint(&self) -> Id {
        let mut bits = [0; 16];
        if let Err(e) = (&self.entropy).read_exact(&mut bits) {
            end_without_entropy(&e);
        }
        Id::from_bits(u128::from_ne_bytes(bits))
    }

    fn is_running(&self, process: Process) -> bool {
        is_running(process)
    }

    async fn step(&self, name: &'static str) {
        if let Some((step, flag)) = &self.kill_at
            && step == name
            && std::fs::remove_file(flag).is_ok()
        {
            // The signal is not returned from; if it could not be sent, the test that armed it says so.
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }
}

/// The id of this boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

/// The process that has this number now. Its start is 0 where /proc does not show it.
pub(crate) fn process(pid: u32) -> Process {
    Process { pid, start: start_of(pid).unwrap_or(0) }
}

/// The name of a process, as `ps` shows it; empty where /proc does not show it.
pub(crate) fn command_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .map(|name| name.trim_end().to_owned())
        .unwrap_or_default()
}

/// Whether that very process still runs. What cannot be known counts as running: then its mounts stay.
fn is_running(process: Process) -> bool {
    let Some(pid) = i32::try_from(process.pid).ok().filter(|pid| *pid > 0) else { return true };
    if kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
        return false;
    }
    process.start == 0 || start_of(process.pid).is_none_or(|start| start == process.start)
}

/// Field 22 of /proc/PID/stat, in clock ticks after boot. None if the process has ended or may not be seen.
fn start_of(pid: u32) -> Option<u64> {
    parse_start(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Whole seconds of the first field of /proc/uptime, which is CLOCK_BOOTTIME.
fn parse_uptime(text: &str) -> Option<u64> {
    text.split('.').next()?.parse().ok()
}

/// Whether a directory is in memory. What cannot be known counts as it.
pub(crate) fn is_in_memory(directory: &Path) -> bool {
    statfs(directory).map_or(true, |it| [TMPFS_MAGIC, RAMFS].contains(&it.filesystem_type()))
}

/// Field 2 is the command in brackets and may hold spaces and brackets itself: count from its last `)`.
fn parse_start(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

#[expect(clippy::exit, reason = "an id that is not random may name another volume's data")]
fn end_without_entropy(error: &io::Error) -> ! {
    tracing::error!("/dev/urandom cannot be read: {error}: the daemon ends now");
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_brackets_and_spaces_does_not_shift_the_start() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1 1";
        assert_eq!(parse_start(stat), Some(4711));
    }

    #[test]
    fn the_uptime_is_whole_seconds() {
        assert_eq!(parse_uptime("350735.47 234388.90\n"), Some(350_735));
        assert_eq!(parse_uptime(""), None);
    }

    #[test]
    fn this_process_runs_and_one_with_its_number_and_another_start_does_not() {
        let this = process(std::process::id());
        assert!(this.start > 0);
        assert!(is_running(this));
        assert!(!is_running(Process { start: this.start + 1, ..this }));
    }

    #[test]
    fn a_process_of_another_namespace_counts_as_running() {
        assert!(is_running(Process { pid: 0, start: 0 }));
    }

    #[test]
    fn a_process_that_has_ended_does_not_run() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = process(child.id());
        child.wait().unwrap();
        assert!(!is_running(process));
    }
}
