//! What happens where something ends: the disk, the connections, the daemon itself; and what the daemon may do at all.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::mount::{MountFlags, mount};
use serde_json::json;

use crate::names::in_parallel;
use crate::support::plugin::{Socket, request};
use crate::support::wasmvol::Wasmvol;
use crate::support::{SOON, open_to_all, outcome, until};

/// A wasmvol whose state directory is a small file system.
pub(crate) fn on_a_small_disk(options: &str) -> Wasmvol {
    let mut wasmvol = Wasmvol::install();
    let state = wasmvol.state();
    fs::create_dir(&state).unwrap();
    let options = std::ffi::CString::new(options).unwrap();
    mount("tmpfs", &state, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
    wasmvol.run();
    wasmvol
}

/// Fills a directory by `fill` until there is no room, creates volumes in vain, makes room again and goes on.
fn fills_up(wasmvol: &Wasmvol, fill: impl Fn(&Path)) {
    let plugin = wasmvol.plugin();
    plugin.create("before", &[]).unwrap();
    let path = plugin.mount("before", "id").unwrap();
    let filler = wasmvol.state().join("filler");
    fs::create_dir(&filler).unwrap();
    fill(&filler);

    // The catalog's file may have room for a few more; the directory of a volume has not.
    let error = (0..2000).find_map(|i| plugin.create(&format!("full-{i}"), &[]).err());
    let error = error.expect("a full disk is noticed");
    assert!(error.contains("no space left"), "{error}");
    let made = plugin.list();
    for name in &made {
        let id = plugin.path(name).unwrap();
        let id = id.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(wasmvol.entries("volumes").contains(&id), "`{name}` is listed and has no storage");
    }
    // Everything else goes on.
    plugin.get("before").unwrap();
    plugin.unmount("before", "id").unwrap();
    assert_eq!(plugin.mount("before", "id").unwrap(), path);
    plugin.create("one-more", &[]).unwrap_err();

    fs::remove_dir_all(&filler).unwrap();
    until("a create succeeds when there is room", SOON, || plugin.create("after", &[]).ok());
    // What could not even be undone has been undone by now, or is soon.
    until("nothing half made is left", SOON, || {
        let is_whole = wasmvol.entries("volumes").len() == plugin.list().len();
        let untroubled = wasmvol.json("status")["troubles"] == json!([]);
        (is_whole && untroubled).then_some(())
    });
    plugin.unmount("before", "id").unwrap();
}

#[test]
fn a_full_disk_is_a_clear_error_and_the_daemon_goes_on() {
    let mut wasmvol = on_a_small_disk("mode=755,size=12m");
    fills_up(&wasmvol, |filler| {
        let zeros = vec![0; 1 << 16];
        let mut size = zeros.len();
        for i in 0.. {
            // Larger pieces first, down to the last page.
            while size > 0 && fs::write(filler.join(i.to_string()), &zeros[..size]).is_err() {
                size /= 2;
            }
            if size == 0 {
                break;
            }
        }
    });
    let listed = wasmvol.plugin().list();
    wasmvol.kill_mountd();
    wasmvol.run();
    assert_eq!(wasmvol.plugin().list(), listed);
}

#[test]
fn a_disk_without_inodes_is_a_clear_error_and_the_daemon_goes_on() {
    let wasmvol = on_a_small_disk("mode=755,nr_inodes=200");
    fills_up(&wasmvol, |filler| {
        (0..).find(|i| fs::write(filler.join(i.to_string()), "").is_err());
    });
}

#[test]
fn connections_that_say_nothing_shut_nobody_out() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let connect = || Socket::connect(&plugin.socket).unwrap();
    let body = r#"{"Name":"begun"}"#;
    let create = request("VolumeDriver.Create", body);
    let (first_half, second_half) = create.split_at(create.len() - body.len());
    let mut begun = connect();
    begun.send(first_half).unwrap();
    let mut idle: Vec<Socket> = (0..300).map(|_| connect()).collect();
    plugin.try_call("Plugin.Activate", "").unwrap().result().unwrap();
    assert!(idle[0].has_ended(), "the one that was silent longest makes room");
    assert!(idle[200].is_silent(), "those that nobody needs to go stay");
    begun.send(second_half).unwrap();
    begun.read().unwrap().result().unwrap();
    assert_eq!(plugin.list(), ["begun"]);
}

#[test]
fn where_all_that_are_served_have_begun_a_request_the_next_waits_and_is_served_later() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let connect = || Socket::connect(&plugin.socket).unwrap();
    let begun: Vec<Socket> = (0..300)
        .map(|_| {
            let mut socket = connect();
            socket.send("POST ").unwrap();
            socket
        })
        .collect();
    let mut last = connect();
    last.send(request("VolumeDriver.Create", r#"{"Name":"patient"}"#)).unwrap();
    drop(begun);
    last.read().unwrap().result().unwrap();
    assert_eq!(plugin.list(), ["patient"]);
}

#[test]
fn a_second_daemon_on_the_same_directories_ends_with_75_and_says_why() {
    let wasmvol = Wasmvol::start();
    let outcome = outcome("serve", &mut wasmvol.serve(&[]));
    assert_eq!(outcome.code, Some(75), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&wasmvol.mountd().to_string()), "{}", outcome.stderr);
    // The first one was not disturbed.
    wasmvol.plugin().create("undisturbed", &[]).unwrap();
}

#[test]
fn a_private_mount_namespace_is_refused_with_the_reason() {
    let wasmvol = Wasmvol::install();
    for propagation in ["private", "slave"] {
        let before = ["unshare", "--mount", "--propagation", propagation];
        let outcome = outcome("serve", &mut wasmvol.serve(&before));
        assert_eq!(outcome.code, Some(78), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("mount namespace of its own"), "{}", outcome.stderr);
    }
    assert!(!wasmvol.plugin().socket.exists());
}

#[test]
fn what_was_acknowledged_before_a_stop_is_there_after_it() {
    let mut wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("mounted", &[("driver", "tmpfs")]).unwrap();
    let path = plugin.mount("mounted", "id").unwrap();
    fs::write(path.join("file"), "precious").unwrap();
    let creators: Vec<_> = (0..8)
        .map(|i| {
            let plugin = plugin.clone();
            thread::spawn(move || {
                let mut made = Vec::new();
                for round in 0.. {
                    let name = format!("volume-{i}-{round}");
                    let body = json!({ "Name": name }).to_string();
                    match plugin.try_call("VolumeDriver.Create", &body) {
                        Ok(answer) if answer.result().is_ok() => made.push(name),
                        _ => break,
                    }
                }
                made
            })
        })
        .collect();
    until("some were made", SOON, || (plugin.list().len() > 50).then_some(()));
    let status = wasmvol.stop();
    assert!(status.success(), "{status}: {}", wasmvol.log());
    let mut made: Vec<String> = creators.into_iter().flat_map(|c| c.join().unwrap()).collect();
    assert!(!plugin.socket.exists(), "nobody waits 15 s for a socket that nobody serves");
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "precious", "mounts stay");

    wasmvol.run();
    made.push("mounted".to_owned());
    let listed = plugin.list();
    made.retain(|name| !listed.contains(name));
    assert_eq!(made, Vec::<String>::new(), "acknowledged and not listed");
    plugin.unmount("mounted", "id").unwrap();
}

#[test]
fn a_stop_waits_for_a_call_that_runs() {
    let mut wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    wasmvol.cli(&format!("driver load {}", crate::drivers::hostile().display())).ok();
    let mut socket = Socket::connect(&plugin.socket).unwrap();
    let body = r#"{"Name":"late","Opts":{"driver":"hostile","do":"loop"}}"#;
    socket.send(request("VolumeDriver.Create", body)).unwrap();
    until("the call runs", SOON, || {
        wasmvol.json("status")["troubles"].to_string().contains("half made").then_some(())
    });
    let answered = thread::spawn(move || socket.read());
    assert!(wasmvol.stop().success());
    let answer = answered.join().unwrap().expect("an answer, not a broken connection");
    answer.result().unwrap_err();
}

#[test]
fn systemd_may_hold_the_socket() {
    let mut wasmvol = Wasmvol::install();
    let socket = wasmvol.plugin().socket;
    // It listens at once, and becomes wasmvol when somebody calls.
    let listen = format!("--listen={}", socket.display());
    let command = wasmvol.serve(&["systemd-socket-activate", &listen]);
    wasmvol.launch_as(command);
    until("systemd's helper listens", SOON, || socket.exists().then_some(()));
    wasmvol.wait_ready();
    let plugin = wasmvol.plugin();
    plugin.create("activated", &[]).unwrap();
    wasmvol.kill_daemon();
    assert_eq!(plugin.list(), ["activated"]);
    assert!(wasmvol.stop().success());
    assert!(socket.exists(), "the socket is systemd's, not ours to take away");
}

#[test]
fn systemd_is_told_when_it_is_ready_and_nothing_else() {
    let mut wasmvol = Wasmvol::install();
    let place = open_to_all("notify");
    let systemd = UnixDatagram::bind(&place).unwrap();
    fs::set_permissions(&place, Permissions::from_mode(0o666)).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let told = || {
        let mut message = [0; 256];
        let length = systemd.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).trim_end().to_owned())
    };
    wasmvol.set_variables(&[("NOTIFY_SOCKET", place.to_str().unwrap())]);
    wasmvol.launch();
    assert_eq!(until("systemd is told", SOON, told), "READY=1");
    wasmvol.wait_ready();
    // The next daemon says it again. An end is mountd's, which systemd sees by itself.
    wasmvol.kill_daemon();
    assert_eq!(until("systemd is told again", SOON, told), "READY=1");
    assert!(wasmvol.stop().success());
    assert_eq!(told(), None);

    // Who cannot read its records is never ready.
    fs::write(wasmvol.state().join("catalog/catalog.redb"), "this is no catalog").unwrap();
    wasmvol.launch();
    assert_eq!(wasmvol.wait_end().code(), Some(78), "{}", wasmvol.log());
    assert_eq!(told(), None);
}

#[test]
fn the_daemon_has_no_privileges() {
    let wasmvol = Wasmvol::start();
    let daemon = wasmvol.daemon();
    for thread in fs::read_dir(format!("/proc/{daemon}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name}")).split_whitespace().collect::<Vec<_>>()
        };
        for ids in [field("Uid:"), field("Gid:")] {
            assert!(ids.iter().all(|id| *id != "0" && id == &ids[0]), "{ids:?}");
        }
        assert_eq!(field("Groups:"), Vec::<&str>::new());
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), ["1"]);
    }
}

#[test]
fn the_daemon_has_no_file_of_a_volume_and_none_of_its_starters() {
    // What the starter has open is not passed on.
    let mut wasmvol = Wasmvol::install();
    let leak = wasmvol.path("leak");
    let before = ["bash", "-c", r#"exec 77>"$0" "$@""#, leak.to_str().unwrap()];
    let command = wasmvol.serve(&before);
    wasmvol.launch_as(command);
    wasmvol.wait_ready();
    let plugin = wasmvol.plugin();
    plugin.create("mounted", &[]).unwrap();
    let mountpoint = plugin.mount("mounted", "id").unwrap();
    let volumes = wasmvol.state().join("volumes");
    for entry in fs::read_dir(format!("/proc/{}/fd", wasmvol.daemon())).unwrap() {
        let Ok(open) = fs::read_link(entry.unwrap().path()) else { continue };
        let is_foreign = [&volumes, &mountpoint, &leak].iter().any(|place| open.starts_with(place));
        assert!(!is_foreign, "the daemon has {}", open.display());
    }
    plugin.unmount("mounted", "id").unwrap();
}

#[test]
fn no_socket_of_the_daemon_reaches_a_program_that_it_starts() {
    const CLOSE_ON_EXEC: u32 = 0o2_000_000;
    let wasmvol = Wasmvol::start();
    let process = PathBuf::from(format!("/proc/{}", wasmvol.daemon()));
    let mut sockets = 0;
    for entry in fs::read_dir(process.join("fd")).unwrap() {
        let (link, number) = entry.map(|e| (fs::read_link(e.path()), e.file_name())).unwrap();
        let Ok(open) = link else { continue };
        // Stdio is for whoever it starts.
        let is_stdio = number.to_str().is_some_and(|number| ["0", "1", "2"].contains(&number));
        if is_stdio || !open.to_string_lossy().starts_with("socket:[") {
            continue;
        }
        let info = fs::read_to_string(process.join("fdinfo").join(&number)).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        assert!(flags & CLOSE_ON_EXEC != 0, "number {number:?}, {}", open.display());
        sockets += 1;
    }
    assert!(sockets >= 3, "mountd's, the plugin's and the admin's: {sockets}");
}

#[test]
fn a_thousand_cycles_leave_no_file_open() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let cycles = |count: usize| {
        in_parallel(8, |i| {
            let name = format!("cycled-{i}");
            for _ in 0..count / 8 {
                plugin.create(&name, &[]).unwrap();
                plugin.mount(&name, "id").unwrap();
                plugin.unmount(&name, "id").unwrap();
                plugin.remove(&name).unwrap();
            }
        });
        wasmvol.wait_reaped();
    };
    let open = |process: u32| fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    let both = || (open(wasmvol.mountd()), open(wasmvol.daemon()));
    cycles(80);
    let before = both();
    cycles(1000);
    until("as many files are open as before", SOON, || (both() <= before).then_some(()));
}

#[test]
fn a_catalog_that_cannot_be_read_is_the_end_before_anybody_is_answered() {
    let mut wasmvol = Wasmvol::start();
    wasmvol.plugin().create("kept", &[]).unwrap();
    assert!(wasmvol.stop().success());
    let catalog = wasmvol.state().join("catalog/catalog.redb");
    let good = fs::read(&catalog).unwrap();
    fs::write(&catalog, "this is no catalog").unwrap();
    wasmvol.launch();
    // dockerd takes any answer for "no such volume", and forgets: there must be none.
    let status = wasmvol.wait_end();
    assert_eq!(status.code(), Some(78), "{}", wasmvol.log());
    assert!(wasmvol.log().contains("catalog cannot be read"), "{}", wasmvol.log());
    assert!(!wasmvol.plugin().socket.exists());
    assert_eq!(
        fs::read(&catalog).unwrap(),
        b"this is no catalog",
        "it is left for a person to look at"
    );
    fs::write(&catalog, good).unwrap();
    wasmvol.run();
    assert_eq!(wasmvol.plugin().list(), ["kept"]);
}
