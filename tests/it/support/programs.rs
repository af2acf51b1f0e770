//! Programs of the host that serve volumes, as a test sees them.

use std::fs;

use super::shell;
use super::wasmvol::Wasmvol;

/// The processes of that name one of whose arguments ends so.
pub(crate) fn running(name: &str, ending: &str) -> Vec<u32> {
    let is_one = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next() == Some(name.as_bytes()) && words.any(|word| word.ends_with(ending.as_bytes()))
    };
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(is_one).collect()
}

/// What Status says of a volume's health.
pub(crate) fn health(wasmvol: &Wasmvol, volume: &str) -> String {
    wasmvol.plugin().get(volume).unwrap()["Status"]["health"].as_str().unwrap().to_owned()
}

/// A process is nobody's, has no capability, and gets none.
#[track_caller]
pub(crate) fn is_unprivileged(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["Uid:\t65534\t65534\t65534\t65534", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"]
    {
        assert!(status.contains(line), "{line} is not in {status}");
    }
}

/// A process of the program's user cannot look into it, as it can into others of that user: its files are its own.
#[track_caller]
pub(crate) fn is_closed_to_its_user(pid: u32) {
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups sh -c";
    for look in
        ["ls /proc/$PID/root/dev/shm", "readlink -v /proc/$PID/fd/1", "cat /proc/$PID/environ"]
    {
        let another = "sleep 60 & PID=$!; trap 'kill $PID' EXIT";
        shell(&format!("{user} \"$LINE\""), &[("LINE", format!("{another}; {look}").into())]).ok();
        let line = format!("PID={pid}; {look}");
        let said = shell(&format!("{user} \"$LINE\""), &[("LINE", line.into())]).refused();
        assert!(said.contains("Permission denied"), "{look}: {said}");
    }
}
