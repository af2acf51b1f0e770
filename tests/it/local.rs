//! Does `local` do what the local driver of an engine does, given the same options, and does it say what it lacks?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::drivers::component;
use crate::support::Outcome;
use crate::support::engine::{Engine, ask_every_engine};
use crate::support::loops::Loop;
use crate::support::pair::Pair;
use crate::support::wasmvol::Wasmvol;

ask_every_engine!(
    the_same_options_mount_the_same,
    what_is_not_granted_is_refused_with_the_grant_to_add,
    a_read_only_volume_is_so_to_a_container_that_may_mount,
);

/// Directories and a device of the host that a driver may be granted.
struct Host {
    /// `a` and `b`, with a file each.
    srv: PathBuf,
    /// With an ext4.
    disk: Loop,
}

impl Host {
    fn new(wasmvol: &Wasmvol) -> Self {
        let srv = wasmvol.path("srv");
        for name in ["a", "b"] {
            fs::create_dir_all(srv.join(name)).unwrap();
            fs::write(srv.join(name).join(format!("file-of-{name}")), name).unwrap();
            fs::set_permissions(srv.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let disk = wasmvol.path("disk");
        fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&disk).status();
        assert!(made.expect("the Debian package e2fsprogs").success());
        Self { srv, disk: Loop::of(&disk) }
    }

    /// What to grant for all of it.
    fn grants(&self) -> String {
        format!(
            "--grant host-directory={} --grant device={}",
            self.srv.display(),
            self.disk.device()
        )
    }

    /// Docker's options of each kind that needs no server, with whether containers can write.
    fn kinds(&self) -> [(&'static str, String, bool); 6] {
        let (srv, device) = (self.srv.display(), self.disk.device());
        [
            ("bind", format!("-o type=none -o o=bind -o device={srv}/a"), true),
            ("bind-ro", format!("-o type=none -o o=bind,ro -o device={srv}/a"), false),
            // podman keeps `size`, `uid` and `gid` for itself.
            ("memory", "-o type=tmpfs -o o=mode=0750,nr_inodes=1k -o device=tmpfs".into(), true),
            ("ext4", format!("-o type=ext4 -o o=noatime -o device={device}"), true),
            ("ext4-ro", format!("-o type=ext4 -o o=ro -o device={device}"), false),
            (
                "overlay",
                format!("-o type=overlay -o o=lowerdir={srv}/a:{srv}/b -o device=overlay"),
                false,
            ),
        ]
    }
}

fn load(wasmvol: &Wasmvol, grants: &str) {
    let local = component("drivers/local.wasm");
    wasmvol.cli(&format!("driver load {} {grants}", local.display())).ok();
}

/// What a container sees of a volume: names, owner and mode of the root, and whether it can write.
fn seen<E: Engine>(pair: &Pair<E>, volume: &str) -> Outcome {
    let look = "ls /data; stat -c \"%u %g %a\" /data; \
                if touch /data/new 2>/dev/null; then echo writes; rm /data/new; fi";
    pair.engine.cli(&format!("run --rm -v {volume}:/data busybox sh -c '{look}'"))
}

fn the_same_options_mount_the_same<E: Engine>() {
    let pair = Pair::<E>::own();
    let host = Host::new(&pair.wasmvol);
    load(&pair.wasmvol, &host.grants());
    for (name, options, is_writable) in host.kinds() {
        for driver in ["local", "wasmvol"] {
            pair.engine.ok(&format!("volume create --driver {driver} {options} {driver}-{name}"));
        }
        let theirs = seen(&pair, &format!("local-{name}"));
        let ours = seen(&pair, &format!("wasmvol-{name}")).ok();
        assert_eq!(ours.contains("writes"), is_writable, "{name}: {ours}");
        // podman changes the owner of a local volume at its first use, and gives up on one that is only read.
        if is_writable || theirs.code == Some(0) {
            assert_eq!(ours, theirs.ok(), "{name}");
        }
        pair.engine.ok(&format!("volume rm local-{name} wasmvol-{name}"));
    }
    assert_eq!(fs::read_to_string(host.srv.join("a/file-of-a")).unwrap(), "a");
}

fn what_is_not_granted_is_refused_with_the_grant_to_add<E: Engine>() {
    let pair = Pair::<E>::own();
    let host = Host::new(&pair.wasmvol);
    for (name, options, _) in host.kinds().into_iter().filter(|(name, ..)| *name != "memory") {
        pair.engine.ok(&format!("volume create --driver wasmvol {options} {name}"));
        let error = pair.engine.refused(&format!("run --rm -v {name}:/data busybox true"));
        let grant = if name.starts_with("ext4") { "device=" } else { "host-directory=" };
        assert!(error.contains(&format!("driver grant local '{grant}")), "{name}: {error}");
    }
    for (name, options, grant) in [
        (
            "nfs",
            "-o type=nfs -o o=addr=192.0.2.5,rw,nolock,soft,timeo=30 -o device=:/srv/data",
            "share=nfs:192.0.2.5",
        ),
        (
            "nfs4",
            "-o type=nfs -o o=addr=192.0.2.5,nfsvers=4.2,hard,ro -o device=:/srv/data",
            "share=nfs4:192.0.2.5",
        ),
        (
            "cifs",
            "-o type=cifs -o o=username=bob,vers=3.0,file_mode=0770 -o device=//192.0.2.6/team",
            "share=cifs:192.0.2.6",
        ),
    ] {
        pair.engine.ok(&format!("volume create --driver wasmvol {options} {name}"));
        let error = pair.engine.refused(&format!("run --rm -v {name}:/data busybox true"));
        assert!(error.contains(&format!("driver grant local '{grant}")), "{name}: {error}");
    }
    assert!(pair.wasmvol.volume_mounts().is_empty());
    // What the operator grants later is there without a restart.
    load(&pair.wasmvol, &host.grants());
    assert!(seen(&pair, "bind").ok().contains("file-of-a"));
}

fn a_read_only_volume_is_so_to_a_container_that_may_mount<E: Engine>() {
    let pair = Pair::<E>::own();
    let host = Host::new(&pair.wasmvol);
    load(&pair.wasmvol, &host.grants());
    let srv = host.srv.display();
    let overlay = component("drivers/overlay.wasm");
    let grant = format!("--grant host-directory={srv}");
    pair.wasmvol.cli(&format!("driver load {} {grant}", overlay.display())).ok();
    let layer = |more| format!("-o driver=overlay -o lower={srv}/a {more}");
    let layers = [
        ("layer", layer(""), true),
        ("layer-reset", layer("-o reset=true"), true),
        ("layer-ro", layer("-o read-only=true"), false),
    ];
    let run = "run --rm --cap-add SYS_ADMIN --security-opt seccomp=unconfined";
    let write =
        "mount -o remount,bind,rw /data || exit 9; mount -o remount,rw /data; touch /data/new";
    for (name, options, is_writable) in host.kinds().into_iter().chain(layers) {
        pair.engine.ok(&format!("volume create --driver wasmvol {options} {name}"));
        let outcome = pair.engine.cli(&format!("{run} -v {name}:/data busybox sh -c '{write}'"));
        assert_eq!(outcome.code, Some(i32::from(!is_writable)), "{name}: {outcome:?}");
    }
}

#[test]
fn a_size_is_refused_with_the_cure_where_the_disk_cannot_keep_it() {
    let mut wasmvol = Wasmvol::install();
    // Memory has quotas of users at most, whatever this machine's disk has.
    let (state, root) = (wasmvol.state(), wasmvol.path("srv"));
    for place in [&state, &root] {
        fs::create_dir(place).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "mode=755", "memory"])
            .arg(place)
            .status();
        assert!(mounted.unwrap().success());
    }
    wasmvol.run();
    let vfs = component("drivers/vfs.wasm");
    let grant = format!("--grant host-directory={}", root.display());
    wasmvol.cli(&format!("driver load {} {grant}", vfs.display())).ok();
    let plugin = wasmvol.plugin();
    for (driver, place) in [("local", &state), ("vfs", &root)] {
        let error = plugin.create("sized", &[("driver", driver), ("size", "1g")]).unwrap_err();
        let why = format!("`{}` has no project quotas", place.display());
        assert!(error.contains(&why), "{error}");
        assert!(error.ends_with("with `prjquota`, or use `-o driver=image`"), "{error}");
        let error = plugin.create("sized", &[("driver", driver), ("size", "0")]).unwrap_err();
        assert!(error.contains("use at least 1"), "{error}");
    }
    assert_eq!(plugin.list(), [""; 0]);
    wasmvol.wait_reaped();
    assert_eq!(wasmvol.entries("volumes"), [""; 0]);
    let marks = fs::read_dir(root.join(".wasmvol")).unwrap();
    assert_eq!((marks.count(), fs::read_dir(&root).unwrap().count()), (0, 1));
}
