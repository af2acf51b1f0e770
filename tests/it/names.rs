//! Which names are volumes, and does a name stay one volume when many ask at once, and many names many volumes?

use std::collections::BTreeSet;
use std::thread;

use serde_json::json;

use crate::support::plugin::{Plugin, Socket, request};
use crate::support::wasmvol::Wasmvol;

/// Names that would be a path, a flag, an escape sequence or a lookalike elsewhere.
const REFUSED: [&str; 18] = [
    "",
    "/",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc",
    "a\0b",
    "a\nb",
    "a b",
    "name\n",
    " name",
    ".hidden",
    "-flag",
    "_under",
    "größe",
    "\u{202e}gnp.x",
    "a\u{1b}[31m",
];

#[test]
fn a_name_that_is_none_is_refused_with_one_line_by_every_verb() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let long = "n".repeat(300);
    for name in REFUSED.into_iter().chain([long.as_str()]) {
        let create = plugin.create(name, &[]).expect_err(name);
        assert!(!create.is_empty() && create.len() < 300, "{name:?}: {create}");
        assert!(create.chars().all(|c| !c.is_control()), "{name:?}: {create:?}");
        plugin.get(name).expect_err(name);
        plugin.path(name).expect_err(name);
        plugin.mount(name, "id").expect_err(name);
        plugin.unmount(name, "id").expect_err(name);
        plugin.remove(name).expect_err(name);
    }
    assert_eq!(plugin.list(), Vec::<String>::new());
    assert_eq!(wasmvol.entries("volumes"), Vec::<String>::new());
    assert_eq!(wasmvol.volume_mounts(), []);
}

#[test]
fn every_name_that_docker_takes_is_a_volume() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let long = "n".repeat(128);
    for name in ["ab", "A.b_c-d", "0", "a..b", "a.sock", "con", &long] {
        plugin.create(name, &[]).unwrap();
        assert_eq!(plugin.get(name).unwrap()["Name"], name);
        let path = plugin.mount(name, "id").unwrap();
        assert_eq!(path.parent().unwrap(), wasmvol.anchor(), "names never become paths");
        plugin.unmount(name, "id").unwrap();
        plugin.remove(name).unwrap();
    }
    wasmvol.wait_reaped();
}

#[test]
fn two_hundred_creates_of_one_name_make_one_volume() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let made = in_parallel(200, |_| plugin.create("one", &[("mode", "0700")]));
    assert_eq!(made.into_iter().filter_map(Result::err).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(plugin.list(), ["one"]);
    assert_eq!(wasmvol.entries("volumes").len(), 1);
}

#[test]
fn creates_of_one_name_with_different_options_make_one_volume_and_refuse_the_rest() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let modes = ["0700", "0750", "0755", "0770"];
    let made = in_parallel(40, |i| (modes[i % 4], plugin.create("one", &[("mode", modes[i % 4])])));
    let winner: BTreeSet<_> =
        made.iter().filter(|(_, r)| r.is_ok()).map(|(mode, _)| *mode).collect();
    assert_eq!(winner.len(), 1, "{winner:?}");
    for (_, result) in &made {
        if let Err(error) = result {
            assert!(error.contains("already exists with other options"), "{error}");
        }
    }
    assert_eq!(made.iter().filter(|(_, r)| r.is_ok()).count(), 10);
    assert_eq!(wasmvol.entries("volumes").len(), 1);
}

#[test]
fn sixty_four_volumes_live_and_die_at_once() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    in_parallel(64, |i| {
        let name = format!("volume-{i}");
        let driver = ["local", "tmpfs"][i % 2];
        for round in 0..3 {
            plugin.create(&name, &[("driver", driver)]).unwrap();
            let path = plugin.mount(&name, "first").unwrap();
            plugin.mount(&name, "second").unwrap();
            std::fs::write(path.join("file"), &name).unwrap();
            plugin.unmount(&name, "first").unwrap();
            assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), name, "{round}");
            plugin.unmount(&name, "second").unwrap();
            assert!(!path.join("file").exists());
            plugin.remove(&name).unwrap();
        }
    });
    assert_eq!(plugin.list(), Vec::<String>::new());
    assert_eq!(wasmvol.volume_mounts(), []);
    assert_eq!(wasmvol.entries("volumes"), Vec::<String>::new());
    wasmvol.wait_reaped();
}

#[test]
fn ten_thousand_volumes_are_listed_and_found_also_after_a_restart() {
    const VOLUMES: usize = 10_000;
    const CONNECTIONS: usize = 64;
    let mut wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    in_parallel(CONNECTIONS, |connection| {
        let mut socket = Socket::connect(&plugin.socket).unwrap();
        for i in (connection..VOLUMES).step_by(CONNECTIONS) {
            let body = json!({ "Name": format!("volume-{i:05}"), "Opts": null });
            socket.send(request("VolumeDriver.Create", &body.to_string())).unwrap();
            socket.read().unwrap().result().unwrap();
        }
    });
    check_all(&plugin, VOLUMES);
    assert_eq!(wasmvol.entries("volumes").len(), VOLUMES);
    let path = plugin.path("volume-04711").unwrap();
    assert!(wasmvol.stop().success());
    wasmvol.run();
    check_all(&plugin, VOLUMES);
    assert_eq!(plugin.mount("volume-04711", "id").unwrap(), path);
    plugin.unmount("volume-04711", "id").unwrap();
}

fn check_all(plugin: &Plugin, count: usize) {
    let expected: Vec<String> = (0..count).map(|i| format!("volume-{i:05}")).collect();
    let mut listed = plugin.list();
    listed.sort();
    assert!(listed == expected, "{} volumes are listed", listed.len());
    for i in [0, 1, count / 2, count - 1] {
        assert_eq!(plugin.get(&expected[i]).unwrap()["Name"], expected[i]);
    }
    plugin.get(&format!("volume-{count:05}")).unwrap_err();
}

/// Runs `work` in so many threads at once and answers what each of them did.
pub(crate) fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..count).map(|i| scope.spawn(move || work(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
