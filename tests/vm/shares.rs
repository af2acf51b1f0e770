//! Volumes on real file servers, NFS and SMB: do they hold what is written, do they ask their grants, does a secret stay one, and
//! whom does a server that has gone delay?
//!
//! tests/vm/server.sh has made the servers 1 and 2. What they share lies in this very machine: a test can look at it from behind.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use serde_json::json;

use crate::support::canary::Canary;
use crate::support::plugin::{Socket, request};
use crate::support::shelf::assert_is_a_line;
use crate::support::wasmvol::{PROGRAMS, Wasmvol};
use crate::support::{SOON, Scratch, mortal, shell, spawn, until};

/// Where the first server is.
const ADDRESS: &str = "10.77.1.2";
/// And the second one, which is cut off.
const MORTAL: &str = "10.77.2.2";
/// Every way to reach what a server shares.
const WAYS: [&[(&str, &str)]; 4] = [
    &[("driver", "nfs"), ("version", "3"), ("export", "/export")],
    &[("driver", "nfs"), ("export", "/export")],
    &[("driver", "cifs"), ("share", "share"), ("user", "alice"), ("secret", "alice")],
    &[
        ("driver", "cifs"),
        ("share", "share"),
        ("user", "alice"),
        ("secret", "alice"),
        ("seal", "true"),
    ],
];

/// Alice's password, at both servers.
static PASSWORD: LazyLock<Canary> = LazyLock::new(|| {
    let canary = Canary::new();
    for server in ["server1", "server2"] {
        let line = "printf '%s\\n%s\\n' \"$word\" \"$word\" | smbpasswd -c /disk/$server/smb.conf -s -a alice";
        shell(line, &[("word", canary.bytes().into()), ("server", server.into())]).ok();
    }
    canary
});

/// What a server shares, as it lies on its disk.
fn behind(server: &str, path: &str) -> PathBuf {
    Path::new("/disk").join(server).join("export").join(path)
}

/// A wasmvol whose drivers may have these shares, with the password of both servers.
fn granted(nfs: &[&str], cifs: &[&str]) -> Wasmvol {
    let wasmvol = Wasmvol::start();
    for (driver, grants) in [("nfs", nfs), ("cifs", cifs)] {
        let file = PROGRAMS.parent().unwrap().join(format!("guests/{driver}.wasm"));
        let grants: String = grants.iter().map(|grant| format!(" --grant share={grant}")).collect();
        let without = format!("--without share={driver}:HOST");
        wasmvol.cli(&format!("driver load {} {without}{grants}", file.display())).ok();
    }
    PASSWORD.set(&wasmvol, "alice", "cifs", "--peer 10.77.0.0/16");
    wasmvol
}

fn all_granted() -> Wasmvol {
    granted(&["nfs:10.77.0.0/16", "nfs4:10.77.0.0/16"], &["cifs:10.77.0.0/16"])
}

fn with<'a>(way: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [way, more].concat()
}

#[test]
fn what_is_written_to_a_volume_is_on_the_server_and_in_every_other_volume_of_it() {
    let mut wasmvol = all_granted();
    let plugin = wasmvol.plugin();
    for (number, way) in WAYS.iter().enumerate() {
        let (one, other) = (format!("one-{number}"), format!("other-{number}"));
        let file = format!("written-{number}");
        for name in [&one, &other] {
            plugin.create(name, &with(way, &[("server", ADDRESS)])).unwrap();
        }
        let path = plugin.mount(&one, "id").unwrap();
        fs::write(path.join(&file), "first").unwrap();
        assert_eq!(fs::read_to_string(behind("server1", &file)).unwrap(), "first");
        let second = plugin.mount(&other, "id").unwrap();
        assert_eq!(fs::read_to_string(second.join(&file)).unwrap(), "first");
        let mounts = wasmvol.volume_mounts();
        let safe = |flag: &str| mounts.iter().all(|m| m.flags.iter().any(|f| f == flag));
        assert!(mounts.len() == 2 && safe("nosuid") && safe("nodev"), "{mounts:?}");
        // What was mounted before is used and unmounted by who comes after.
        wasmvol.kill_mountd();
        wasmvol.run();
        fs::write(path.join(&file), "second").unwrap();
        for name in [&one, &other] {
            plugin.unmount(name, "id").unwrap();
            plugin.remove(name).unwrap();
        }
        assert_eq!(wasmvol.volume_mounts(), []);
        assert_eq!(
            fs::read_to_string(behind("server1", &file)).unwrap(),
            "second",
            "it is the server's"
        );
    }
}

#[test]
fn a_subdirectory_is_made_when_it_is_first_mounted_and_is_all_that_the_volume_shows() {
    let wasmvol = all_granted();
    let plugin = wasmvol.plugin();
    for (number, way) in WAYS.iter().enumerate() {
        let (name, subdir) = (format!("inner-{number}"), format!("made-{number}/inner"));
        plugin.create(&name, &with(way, &[("server", ADDRESS), ("subdir", &subdir)])).unwrap();
        assert!(!behind("server1", &subdir).exists());
        let path = plugin.mount(&name, "id").unwrap();
        assert!(behind("server1", &subdir).is_dir());
        fs::write(path.join("file"), "inside").unwrap();
        assert_eq!(fs::read_to_string(behind("server1", &subdir).join("file")).unwrap(), "inside");
        let shown: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(shown, ["file"]);
        plugin.unmount(&name, "id").unwrap();
        // It is there now, and is not made again.
        plugin.mount(&name, "id").unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "inside");
        plugin.unmount(&name, "id").unwrap();
    }
    let owner =
        [("server", ADDRESS), ("subdir", "owned"), ("uid", "7"), ("gid", "8"), ("mode", "2770")];
    plugin.create("owned", &with(WAYS[1], &owner)).unwrap();
    plugin.mount("owned", "id").unwrap();
    let made = fs::metadata(behind("server1", "owned")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (7, 8, 0o2770));
}

#[test]
fn options_as_docker_writes_them_reach_the_same_servers() {
    let wasmvol = all_granted();
    let local = PROGRAMS.parent().unwrap().join("drivers/local.wasm");
    let grants = ["nfs", "nfs4", "cifs"].map(|kind| format!(" --grant share={kind}:10.77.0.0/16"));
    wasmvol.cli(&format!("driver load {}{}", local.display(), grants.concat())).ok();
    PASSWORD.set(&wasmvol, "docker", "local", "--peer 10.77.0.0/16");
    let plugin = wasmvol.plugin();
    let nfs = |o| [("type", "nfs"), ("device", ":/export"), ("o", o)];
    let cifs = |device, o| [("type", "cifs"), ("device", device), ("o", o), ("secret", "docker")];
    for (name, options) in [
        ("docker-nfs", &nfs("addr=files.test,vers=4.2,rw")[..]),
        ("docker-nfs3", &nfs("addr=10.77.1.2,vers=3,nolock")),
        ("docker-cifs", &cifs("//10.77.1.2/share", "username=alice")),
        ("docker-cifs-addr", &cifs("//files.test/share", "username=alice,addr=10.77.1.2")),
    ] {
        plugin.create(name, options).unwrap();
        let path = plugin.mount(name, "id").unwrap();
        fs::write(path.join(name), "written").unwrap();
        assert_eq!(fs::read_to_string(behind("server1", name)).unwrap(), "written", "{name}");
        plugin.unmount(name, "id").unwrap();
    }
    PASSWORD.is_nowhere(&wasmvol, &["docker-cifs"], &[]);
    let made = plugin.create("nowhere", &nfs("addr=nowhere.test"));
    let error = made.and_then(|()| plugin.mount("nowhere", "id")).unwrap_err();
    assert!(error.contains("cannot resolve server `nowhere.test`"), "{error}");
    assert_eq!(wasmvol.volume_mounts(), []);
}

#[test]
fn a_root_on_a_server_has_the_volumes_of_both_hosts_that_mount_it() {
    let scratch = Scratch::new();
    let place = scratch.dir("place");
    let options = c"vers=4.2,addr=10.77.1.2,clientaddr=10.77.1.1";
    mount(format!("{ADDRESS}:/export"), &place, "nfs4", MountFlags::empty(), options).unwrap();
    let root = place.join("root-of-vfs");
    fs::create_dir(&root).unwrap();
    let host = || {
        let wasmvol = Wasmvol::start();
        let vfs = PROGRAMS.parent().unwrap().join("guests/vfs.wasm");
        let grant = format!("--grant host-directory={}", root.display());
        wasmvol.cli(&format!("driver load {} {grant}", vfs.display())).ok();
        wasmvol
    };
    let (one, other) = (host(), host());
    let vfs = ("driver", "vfs");
    one.plugin().create("both", &[vfs, ("reclaim", "delete")]).unwrap();
    let path = one.plugin().mount("both", "id").unwrap();
    fs::write(path.join("file"), "one's").unwrap();
    // It looks for it for a second, and this machine may be slower.
    until("it is found", SOON, || other.plugin().create("both", &[vfs]).ok());
    let found = other.plugin().mount("both", "id").unwrap();
    assert_eq!(fs::read_to_string(found.join("file")).unwrap(), "one's");
    // What is there and is nobody's volume is in nobody's way but its own.
    fs::create_dir(root.join("strange")).unwrap();
    let error = other.plugin().create("strange", &[vfs]).unwrap_err();
    assert!(error.contains("is there and is no volume"), "{error}");
    for wasmvol in [&other, &one] {
        wasmvol.plugin().unmount("both", "id").unwrap();
    }
    one.plugin().remove("both").unwrap();
    let is_deleted = || fs::read_dir(root.join(".wasmvol-trash")).unwrap().next().is_none();
    until("it is deleted", Duration::from_secs(120), || is_deleted().then_some(()));
    let seen = other.json("volume scan vfs")["volumes"].clone();
    assert_eq!(seen, json!([{"driver": "vfs", "name": "both", "state": "missing"}]));
    assert_eq!(fs::read_dir(root.join(".wasmvol")).unwrap().count(), 0);
}

#[test]
fn a_read_only_volume_refuses_writes() {
    let wasmvol = all_granted();
    let plugin = wasmvol.plugin();
    for (number, way) in WAYS.iter().enumerate() {
        let name = format!("readable-{number}");
        let more = [("server", ADDRESS), ("read-only", "true")];
        plugin.create(&name, &with(way, &more)).unwrap();
        let path = plugin.mount(&name, "id").unwrap();
        let error = fs::write(path.join("refused"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
}

#[test]
fn a_server_that_is_not_granted_is_refused_and_the_grant_is_named() {
    let wasmvol = granted(&["nfs4:files.test", "nfs4:10.77.1.0/24"], &["cifs:10.77.2.2"]);
    let plugin = wasmvol.plugin();
    for (name, way, server, refused) in [
        ("by-name", WAYS[1], "files.test", None),
        ("by-network", WAYS[1], ADDRESS, None),
        ("other-kind", WAYS[0], "files.test", Some("driver grant DRIVER 'share=nfs:files.test'")),
        ("other-host", WAYS[1], MORTAL, Some("driver grant DRIVER 'share=nfs4:10.77.2.2'")),
        ("other-driver", WAYS[2], ADDRESS, Some("driver grant DRIVER 'share=cifs:10.77.1.2'")),
        // One of its addresses lies outside of the network.
        ("ambiguous", WAYS[1], "both.test", Some("driver grant DRIVER 'share=nfs4:10.99.0.1'")),
        ("unknown", WAYS[1], "nowhere.test", Some("cannot resolve server `nowhere.test`")),
    ] {
        let made = plugin.create(name, &with(way, &[("server", server)]));
        let mounted = made.and_then(|()| plugin.mount(name, "id"));
        match refused {
            None => drop(mounted.unwrap()),
            Some(cure) => {
                let error = mounted.expect_err(name);
                let cure = cure.replace("DRIVER", if way == WAYS[2] { "cifs" } else { "nfs" });
                assert!(error.contains(&cure), "{name}: {error}");
            }
        }
    }
    assert_eq!(wasmvol.volume_mounts().len(), 2);
}

#[test]
fn what_cannot_be_mounted_says_why_and_leaves_nothing() {
    let wasmvol = all_granted();
    let plugin = wasmvol.plugin();
    symlink("/etc", behind("server1", "link")).unwrap();
    let stray = Canary::new();
    stray.set(&wasmvol, "stray", "cifs", &format!("--peer {ADDRESS}"));
    for (name, way, more, why) in [
        ("no-export", WAYS[1], ("export", "/nothing"), "cannot mount `10.77.1.2:/nothing`: "),
        ("no-share", WAYS[2], ("share", "nothing"), "cannot mount `//10.77.1.2/nothing`: "),
        (
            "no-user",
            WAYS[2],
            ("user", "mallory"),
            "see whether the user, the domain and the secret are right",
        ),
        (
            "wrong-secret",
            WAYS[2],
            ("secret", "stray"),
            "see whether the user, the domain and the secret are right",
        ),
        ("no-secret", WAYS[2], ("secret", "nothing"), "no secret of that name is kept"),
        ("injected", WAYS[1], ("export", "/export,addr=10.99.0.1"), "without `.`, `..` and commas"),
        ("above", WAYS[1], ("subdir", "../etc"), "option `subdir`: must be a directory's name"),
        ("through-a-link", WAYS[1], ("subdir", "link/made"), "it leads over a link"),
        ("no-security", WAYS[1], ("security", "trust"), "mount option `sec` takes one of sys"),
    ] {
        let mut options = with(way, &[("server", ADDRESS)]);
        options.retain(|(key, _)| *key != more.0);
        options.push(more);
        let made = plugin.create(name, &options);
        let error = made.and_then(|()| plugin.mount(name, "id")).expect_err(name);
        assert!(error.contains(why), "{name}: {error}");
    }
    assert_eq!(wasmvol.volume_mounts(), []);
    assert!(!Path::new("/etc/made").exists());
    stray.is_nowhere(&wasmvol, &[], &[]);
}

#[test]
fn a_port_that_nobody_listens_at_is_told_with_what_to_look_at_and_leaves_nothing() {
    let wasmvol = all_granted();
    let plugin = wasmvol.plugin();
    for (way, source) in [
        (WAYS[0], "10.77.1.2:/export"),
        (WAYS[1], "10.77.1.2:/export"),
        (WAYS[2], "//10.77.1.2/share"),
    ] {
        // Nobody listens at the first port, and nobody may.
        plugin.create("closed", &with(way, &[("server", ADDRESS), ("port", "1")])).unwrap();
        let error = plugin.mount("closed", "id").unwrap_err();
        let begin = format!("cannot mount `{source}`: ");
        let cure = "see whether the server runs and can be reached";
        assert!(error.starts_with(&begin) && error.ends_with(cure), "{way:?}: {error}");
        assert_is_a_line(&error);
        assert_eq!(wasmvol.volume_mounts(), []);
        plugin.remove("closed").unwrap();
    }
    assert_eq!(plugin.list(), Vec::<String>::new());
    assert_eq!(wasmvol.json("status")["troubles"], json!([]));
}

#[test]
fn a_password_is_nowhere_to_be_seen() {
    let wasmvol = all_granted();
    let plugin = wasmvol.plugin();
    plugin.create("guarded", &with(WAYS[3], &[("server", ADDRESS)])).unwrap();
    plugin.mount("guarded", "id").unwrap();
    assert_eq!(wasmvol.volume_mounts().len(), 1);
    PASSWORD.is_nowhere(&wasmvol, &["guarded"], &[]);
}

#[test]
fn a_server_that_is_cut_off_delays_nobody_but_its_own_volumes() {
    let wasmvol = all_granted();
    let plugin = wasmvol.plugin();
    let [nfs, cifs] = [WAYS[1], WAYS[2]];
    for (name, way) in [("dead-nfs", nfs), ("dead-cifs", cifs), ("late-nfs", nfs)] {
        plugin.create(name, &with(way, &[("server", MORTAL)])).unwrap();
    }
    let path = plugin.mount("dead-nfs", "id").unwrap();
    plugin.mount("dead-cifs", "id").unwrap();
    // Somebody has written, and not yet to the server.
    let file = path.join("unwritten");
    let mut writer = mortal("sh");
    writer
        .args(["-c", "exec 3>\"$0\" && echo unwritten >&3 && echo ready >&2 && exec sleep 1000"])
        .arg(&file);
    let mut writer = spawn(writer);
    until("the file is open", Duration::from_secs(30), || file.exists().then_some(()));

    shell("ip -n server2 link set server2 down", &[]).ok();
    let mut late = Socket::connect(&plugin.socket).unwrap();
    late.send(request("VolumeDriver.Mount", r#"{"Name":"late-nfs","ID":"id"}"#)).unwrap();
    // Everybody else goes on, whatever that Mount waits for.
    for (number, way) in WAYS.iter().enumerate() {
        let name = format!("living-{number}");
        plugin.create(&name, &with(way, &[("server", ADDRESS)])).unwrap();
        let path = plugin.mount(&name, "id").unwrap();
        fs::write(path.join(&name), "written").unwrap();
        plugin.unmount(&name, "id").unwrap();
    }
    for name in ["dead-nfs", "dead-cifs", "late-nfs"] {
        plugin.get(name).unwrap();
    }
    assert!(late.is_silent(), "it was answered although its server is gone");
    // Unmount ends, also where a writer was killed.
    writer.kill().unwrap();
    thread::spawn(move || writer.wait());
    plugin.unmount("dead-nfs", "id").unwrap();
    plugin.unmount("dead-cifs", "id").unwrap();
    assert_eq!(wasmvol.volume_mounts(), []);
    let error = late.read().unwrap().result().unwrap_err();
    assert!(
        error.contains("see whether its disk or server answers")
            || error.contains("see whether the server runs"),
        "{error}"
    );

    // With the server everything is back, and so is what was written.
    shell("ip -n server2 link set server2 up", &[]).ok();
    for name in ["dead-nfs", "dead-cifs", "late-nfs"] {
        until("it is mounted again", Duration::from_secs(120), || plugin.mount(name, "id").ok());
    }
    until("it is written", Duration::from_secs(60), || {
        let text = fs::read_to_string(behind("server2", "unwritten")).ok()?;
        (text == "unwritten\n").then_some(())
    });
}
