//! What may a driver be able to do beside its verbs, and is it asked for it when it should be? Of `able`, whose backend is its own store.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use serde_json::Value;

use crate::drivers::component;
use crate::support::canary::Canary;
use crate::support::until;
use crate::support::wasmvol::Wasmvol;

/// Backends are asked how they are once a minute.
const ROUND: Duration = Duration::from_secs(100);

pub(crate) fn able() -> PathBuf {
    component("guests/able.wasm")
}

/// Loads `able` with these flags.
pub(crate) fn load(wasmvol: &Wasmvol, flags: &str) {
    wasmvol.cli(&format!("driver load {} {flags}", able().display())).ok();
}

/// A wasmvol that has it.
pub(crate) fn with_able(flags: &str) -> Wasmvol {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, flags);
    wasmvol
}

pub(crate) fn create(
    wasmvol: &Wasmvol,
    name: &str,
    options: &[(&str, &str)],
) -> Result<(), String> {
    wasmvol.plugin().create(name, &[&[("driver", "able")], options].concat())
}

/// What it was asked of a volume so far, and with which state: `verb [state]`.
pub(crate) fn asked(wasmvol: &Wasmvol, name: &str) -> Vec<String> {
    let log = wasmvol.log();
    let calls = log.lines().filter_map(|line| line.split("asked: ").nth(1));
    let of_it = calls.filter_map(|call| {
        let (verb, rest) = call.split_once(' ')?;
        let state = rest.strip_prefix(name)?.strip_prefix(" [")?.split(']').next()?;
        Some(format!("{verb} [{state}]"))
    });
    of_it.collect()
}

/// What its backend knows: a volume that is refused tells it.
pub(crate) fn stored(wasmvol: &Wasmvol) -> String {
    let error = create(wasmvol, "teller", &[("do", "tell")]).unwrap_err();
    let stored = error.split("stored: ").nth(1).unwrap_or_else(|| panic!("{error}"));
    stored.split(' ').filter(|pair| *pair != "made/teller=").collect::<Vec<_>>().join(" ")
}

fn health(wasmvol: &Wasmvol, name: &str) -> String {
    let status = wasmvol.plugin().get(name).unwrap()["Status"].take();
    status["health"].as_str().unwrap().to_owned()
}

/// Everything that a machine forgets when it is started again.
fn reboot(wasmvol: &mut Wasmvol) {
    wasmvol.kill_mountd();
    for mount in wasmvol.volume_mounts() {
        unmount(mount.path, UnmountFlags::empty()).unwrap();
    }
    unmount(wasmvol.anchor(), UnmountFlags::empty()).unwrap();
    fs::remove_dir_all(wasmvol.runtime()).unwrap();
    wasmvol.run();
}

#[test]
fn a_volume_is_attached_before_its_first_mount_and_detached_after_its_last() {
    let wasmvol = with_able("");
    let plugin = wasmvol.plugin();
    create(&wasmvol, "data", &[("steps", "3")]).unwrap();
    let made = ["create []", "populate [made]"];
    assert_eq!(asked(&wasmvol, "data"), made);
    plugin.mount("data", "one").unwrap();
    // What each step leaves the next one gets, and `path` the last.
    let state = "made filled";
    let reached =
        ["attach []", "attach [+]", "attach [++]", "path [+++]"].map(|call| fill(call, state));
    assert_eq!(asked(&wasmvol, "data")[2..], reached);
    assert_eq!(stored(&wasmvol), "attached/data=here made/data=");
    plugin.mount("data", "two").unwrap();
    plugin.unmount("data", "one").unwrap();
    assert_eq!(asked(&wasmvol, "data").len(), 6, "it is attached already");
    plugin.unmount("data", "two").unwrap();
    assert_eq!(asked(&wasmvol, "data")[6..], [fill("detach [+++]", state)]);
    assert_eq!(stored(&wasmvol), "made/data=");
    plugin.mount("data", "three").unwrap();
    // But for `path`: its answer to this state is known.
    assert_eq!(asked(&wasmvol, "data")[7..], reached[..3], "from the beginning");
    plugin.unmount("data", "three").unwrap();
    plugin.remove("data").unwrap();
    let last = asked(&wasmvol, "data");
    assert_eq!(last[last.len() - 2..], [fill("detach [+++]", state), fill("remove []", state)]);
    assert_eq!(stored(&wasmvol), "");
}

/// A call with the state that a volume has before it is attached.
fn fill(call: &str, state: &str) -> String {
    call.replace('[', &format!("[{state}"))
}

#[test]
fn what_cannot_be_attached_is_not_mounted() {
    let wasmvol = with_able("");
    create(&wasmvol, "data", &[("do", "stay-away")]).unwrap();
    let error = wasmvol.plugin().mount("data", "id").unwrap_err();
    assert_eq!(error, "driver `able`: no such disk in this zone");
    assert!(!wasmvol.is_mounted("data"));
    // Part of it may have happened: it is taken back.
    assert_eq!(asked(&wasmvol, "data").last().unwrap(), "detach [made filled]");
    assert_eq!(health(&wasmvol, "data"), "ok");
    wasmvol.plugin().remove("data").unwrap();
}

#[test]
fn after_a_restart_nothing_is_attached_again_and_after_a_reboot_all_that_is_used() {
    let mut wasmvol = with_able("");
    let plugin = wasmvol.plugin();
    create(&wasmvol, "data", &[]).unwrap();
    plugin.mount("data", "id").unwrap();
    let before = asked(&wasmvol, "data").len();
    wasmvol.kill_daemon();
    wasmvol.kill_mountd();
    wasmvol.run();
    plugin.mount("data", "id").unwrap();
    assert_eq!(asked(&wasmvol, "data").len(), before, "it was attached all the time");

    reboot(&mut wasmvol);
    // Its holders have gone with their containers, and so the disk goes, too.
    until("it is detached", ROUND, || {
        (asked(&wasmvol, "data").last()? == "detach [made filled+]").then_some(())
    });
    until("that is known", ROUND, || (stored(&wasmvol) == "made/data=").then_some(()));
    let path = plugin.mount("data", "id").unwrap();
    let calls = asked(&wasmvol, "data");
    assert_eq!(calls[calls.len() - 2..], ["attach [made filled]", "path [made filled+]"]);
    assert_eq!(fs::read_to_string(path.join("text")).unwrap(), "of data");
    plugin.unmount("data", "id").unwrap();
    wasmvol.wait_unmounted("data");
}

#[test]
fn what_a_driver_stores_is_there_after_a_restart_and_nothing_of_a_create_that_failed() {
    let mut wasmvol = with_able("");
    create(&wasmvol, "one", &[("do", "count")]).unwrap();
    let error = create(&wasmvol, "two", &[("do", "fail")]).unwrap_err();
    assert_eq!(error, "driver `able`: told to fail");
    assert_eq!(stored(&wasmvol), "count=1 made/one=");
    wasmvol.kill_mountd();
    wasmvol.run();
    assert_eq!(stored(&wasmvol), "count=1 made/one=");
    create(&wasmvol, "three", &[("do", "count")]).unwrap();
    assert_eq!(stored(&wasmvol), "count=2 made/one= made/three=");
}

#[test]
fn creates_at_once_that_count_in_one_store_all_count() {
    let wasmvol = with_able("");
    std::thread::scope(|scope| {
        for n in 0..24 {
            let wasmvol = &wasmvol;
            // Each reads before the others have written.
            let options = [("do", "count"), ("wait", "100ms")];
            scope.spawn(move || create(wasmvol, &format!("v{n}"), &options).unwrap());
        }
    });
    assert!(stored(&wasmvol).starts_with("count=24 "), "{}", stored(&wasmvol));
    let creates = (0..24).map(|n| asked(&wasmvol, &format!("v{n}")));
    let creates = creates.flatten().filter(|call| call == "create []").count();
    assert!(creates > 24, "none of {creates} was asked again: they were not at once");
}

#[test]
fn another_component_under_a_name_gets_nothing_of_what_the_one_before_stored() {
    let wasmvol = with_able("");
    create(&wasmvol, "one", &[("do", "count")]).unwrap();
    wasmvol.plugin().remove("one").unwrap();
    let other = component("guests/scratch.wasm");
    wasmvol.cli(&format!("driver load {} --name able", other.display())).ok();
    load(&wasmvol, "");
    assert_eq!(stored(&wasmvol), "");
}

#[test]
fn a_driver_that_is_unloaded_leaves_nothing_in_its_store() {
    let wasmvol = with_able("");
    create(&wasmvol, "one", &[("do", "count")]).unwrap();
    wasmvol.plugin().remove("one").unwrap();
    assert_eq!(stored(&wasmvol), "count=1");
    wasmvol.cli("driver unload able").ok();
    load(&wasmvol, "");
    assert_eq!(stored(&wasmvol), "");
}

#[test]
fn a_secret_is_revealed_to_whom_it_was_granted_and_is_for_and_found_nowhere() {
    let wasmvol = with_able("");
    let canary = Canary::new();
    canary.set(&wasmvol, "key", "able", "");
    Canary::new().set(&wasmvol, "others", "sshfs", "");
    let reveal =
        |volume: &str, key: &str| create(&wasmvol, volume, &[("do", "reveal"), ("key", key)]);
    let mut said = vec![reveal("data", "key").unwrap_err()];
    assert!(said[0].contains("`wasmvol driver grant able 'reveal=key'`"), "{}", said[0]);
    load(&wasmvol, "--grant reveal=key --grant reveal=others");
    reveal("data", "key").unwrap();
    let bytes = canary.bytes().as_bytes();
    let sum =
        bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    let revealed = format!("revealed: {} bytes, sum {sum}", bytes.len());
    assert!(wasmvol.log().contains(&revealed), "the driver had other bytes");
    wasmvol.plugin().mount("data", "id").unwrap();
    // What it says of it is left out.
    let blab = [("do", "blab"), ("key", "key")];
    said.push(create(&wasmvol, "blab", &blab).unwrap_err());
    assert!(said[1].contains("it holds a part of a secret"), "{}", said[1]);
    assert!(wasmvol.log().matches("it holds a part of a secret").count() >= 2);
    // So it is of an answer that cannot be used.
    for act in ["blab-directory", "blab-program"] {
        let error = create(&wasmvol, act, &[("do", act), ("key", "key")]).unwrap_err();
        assert!(error.contains("it holds a part of a secret"), "{error}");
        said.push(error);
    }
    // Granted, and kept for somebody else.
    said.push(reveal("stolen", "others").unwrap_err());
    wasmvol.cli("driver revoke able reveal=key").ok();
    said.push(reveal("late", "key").unwrap_err());
    assert!(said[5].contains("`wasmvol driver grant able 'reveal=key'`"), "{}", said[5]);
    canary.is_nowhere(&wasmvol, &["data"], &said);
    wasmvol.plugin().unmount("data", "id").unwrap();
}

#[test]
fn a_backend_that_is_not_well_is_told_of_its_mounted_volumes_and_so_is_its_end() {
    let wasmvol = with_able("");
    let plugin = wasmvol.plugin();
    for name in ["mounted", "idle"] {
        create(&wasmvol, name, &[]).unwrap();
    }
    plugin.mount("mounted", "id").unwrap();
    assert_eq!(health(&wasmvol, "mounted"), "ok");
    create(&wasmvol, "illness", &[("do", "ail")]).unwrap();
    let ailing = "degraded: driver `able`: a disk of it is slow";
    until("it is degraded", ROUND, || (health(&wasmvol, "mounted") == ailing).then_some(()));
    assert_eq!(health(&wasmvol, "idle"), "ok", "nobody has it");
    let doctor = wasmvol.cli("doctor");
    assert_ne!(doctor.code, Some(0));
    assert!(doctor.stdout.contains(ailing.trim_start_matches("degraded: ")), "{doctor:?}");
    let troubles = wasmvol.json("status")["troubles"].to_string();
    assert!(troubles.contains("a disk of it is slow"), "{troubles}");

    plugin.remove("illness").unwrap();
    until("it is well again", ROUND, || (health(&wasmvol, "mounted") == "ok").then_some(()));
    let troubles = wasmvol.json("status")["troubles"].take();
    assert_eq!(troubles, Value::Array(Vec::new()));
    plugin.unmount("mounted", "id").unwrap();
}

#[test]
fn a_driver_that_resizes_says_what_its_volume_has_from_then_on() {
    let wasmvol = with_able("--grant image");
    let plugin = wasmvol.plugin();
    create(&wasmvol, "data", &[("size", "300m")]).unwrap();
    let path = plugin.mount("data", "id").unwrap();
    let size = || {
        let all = rustix::fs::statvfs(&path).unwrap();
        all.f_blocks * all.f_frsize
    };
    let before = size();
    let shown = wasmvol.json("volume resize data 400m");
    assert_eq!(shown["status"]["options"]["size"], (400_u64 << 20).to_string());
    assert!(size() > before + (64 << 20), "{before} {}", size());
    plugin.unmount("data", "id").unwrap();
    let last = asked(&wasmvol, "data").pop();
    assert_eq!(last.as_deref(), Some("detach [made filled+ resized]"));
}
