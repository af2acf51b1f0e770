//! Does a hostile driver get what its answers ask for: a directory, a device, a server or a program that it was not given, a way out of what
//! it was, another's volume, or an option inside of an option?
//!
//! The rogue driver asks for whatever `with` says. Every row is refused at Create or else at Mount, and the error names the driver and what
//! is not allowed; `Shelf::refused` looks at what could be left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::drivers::component;
use crate::support::mounts::all;
use crate::support::shelf::{Shelf, tree};
use crate::support::wasmvol::Wasmvol;

/// What the driver does, with what, and what the error says of it.
type Row<'a> = (&'a str, &'a str, &'a str);

/// Has the driver ask for each; `ROOT` is the directory that is granted to some.
#[track_caller]
fn all_refused(shelf: &Shelf, rows: &[Row<'_>]) {
    let odd = |(act, with, part): &Row<'_>| {
        let error = shelf.refused("rogue", &[("do", act), ("with", with)]);
        let is_told = error.starts_with("driver `rogue`: ") && error.contains(part);
        (!is_told).then(|| format!("{act} {with}: {error}"))
    };
    let odd: Vec<_> = rows.iter().filter_map(odd).collect();
    assert!(odd.is_empty(), "{}", odd.join("\n"));
    // What lies beneath the root is looked at with each of them.
    assert_eq!(tree(&shelf.outside()), Vec::<PathBuf>::new());
}

/// Loads the driver with these grants.
fn load(shelf: &Shelf, grants: &[&str]) {
    let root = shelf.root().display().to_string();
    let grants: String = grants.iter().map(|grant| format!(" --grant {grant}")).collect();
    let load = format!("driver load {}{grants}", component("guests/rogue.wasm").display());
    shelf.wasmvol.cli(&load.replace("ROOT", &root)).ok();
}

/// What the driver has where it wants more.
const EVERYTHING: [&str; 9] = [
    "host-directory=ROOT",
    "device=/dev/loop-control",
    "share=nfs4:127.0.0.1",
    "share=nfs:127.0.0.1",
    "share=cifs:127.0.0.1",
    "program=sshfs",
    "program=rclone",
    "program=s3fs",
    "program=glusterfs",
];

#[test]
fn a_plan_of_a_driver_without_grants_is_refused_with_the_grant_that_it_lacks() {
    let shelf = Shelf::start();
    load(&shelf, &[]);
    let grant = |grant: &str| format!("`wasmvol driver grant rogue '{grant}'`");
    all_refused(
        &shelf,
        &[
            ("plan-directory", "/etc", &grant("host-directory=/etc")),
            ("plan-make", "/etc/rogue", &grant("host-directory=/etc/rogue")),
            ("plan-overlay", "/etc|/usr", &grant("host-directory=/etc")),
            ("plan-device", "/dev/sda|ext4", &grant("device=/dev/sda")),
            ("plan-blank", "/dev/sda|ext4", &grant("device=/dev/sda")),
            ("plan-share", "nfs4|10.0.0.1|/srv", &grant("share=nfs4:10.0.0.1")),
            ("plan-share", "cifs|a.example|team", &grant("share=cifs:a.example")),
            ("plan-program", "sshfs|me@host:/", &grant("program=sshfs")),
            ("plan-program", "sh|-c reboot", "`-c reboot` is no source for a program"),
            ("plan-program", "sh|reboot", &grant("program=sh")),
            ("make-named", "/etc|rogue", &grant("host-directory=PATH")),
            ("make-image", "key", &grant("image")),
            ("plan-other", "bpf|pinned=/sys", "source `bpf` is not served by this version"),
            ("make-other", "raw", "storage `raw` is not served by this version"),
        ],
    );
    assert!(!PathBuf::from("/etc/rogue").exists());
}

#[test]
fn a_plan_beside_what_its_driver_was_granted_is_refused() {
    let shelf = Shelf::start();
    load(&shelf, &EVERYTHING);
    let root = shelf.root().display().to_string();
    fs::create_dir(format!("{root}-beside")).unwrap();
    let beside = format!("'host-directory={root}-beside'");
    all_refused(
        &shelf,
        &[
            ("plan-directory", "ROOT-beside", &beside),
            ("plan-make", "ROOT-beside/new", "host-directory="),
            ("plan-overlay", "ROOT/a|ROOT-beside", &beside),
            ("make-named", "ROOT-beside|new", "is no granted root"),
            ("make-named", "ROOT/a|new", "is no granted root"),
            ("plan-device", "/dev/loop0|ext4", "'device=/dev/loop0'"),
            ("plan-blank", "/dev/loop0|ext4", "'device=/dev/loop0'"),
            ("plan-share", "nfs4|127.0.0.2|/srv", "server `127.0.0.2` is not granted"),
            ("plan-share", "cifs|::1|team", "server `::1` is not granted"),
            ("plan-program", "fuse|x", "program `fuse` is not granted"),
            // What is granted, and is none.
            ("plan-device", "/dev/loop-control|ext4", "is no block device"),
            ("plan-blank", "/dev/loop-control|ext4", "is no block device"),
        ],
    );
    assert_eq!(tree(&PathBuf::from(format!("{root}-beside"))), Vec::<PathBuf>::new());
}

#[test]
fn a_plan_does_not_lead_out_of_what_its_driver_was_granted() {
    let shelf = Shelf::start();
    load(&shelf, &EVERYTHING);
    symlink(shelf.outside(), shelf.root().join("link")).unwrap();
    symlink("a", shelf.root().join("within")).unwrap();
    let link = "it leads over a link";
    all_refused(
        &shelf,
        &[
            ("plan-directory", "ROOT/..", "/..` is not allowed"),
            ("plan-directory", "ROOT/a/../../outside", "outside` is not allowed"),
            ("plan-directory", "ROOT//a", "//a` is not allowed"),
            ("plan-directory", "ROOT/.", "/.` is not allowed"),
            ("plan-directory", "root/a", "`root/a` is not allowed"),
            ("plan-directory", "", "`` is not allowed"),
            ("plan-directory", "/", "`/` is not allowed"),
            ("plan-directory", "ROOT/a%00b", "has control characters"),
            ("plan-directory", "ROOT/a%0ab", "has control characters"),
            ("plan-directory", "ROOT/link", link),
            ("plan-directory", "ROOT/within", link),
            ("plan-make", "ROOT/link/new", link),
            ("plan-make", "ROOT/../outside/new", "outside/new` is not allowed"),
            ("plan-overlay", "ROOT/link", link),
            ("plan-overlay", "ROOT/../outside", "outside` is not allowed"),
            ("make-named", "ROOT|../outside", "`../outside` is not allowed"),
            ("make-named", "ROOT|/etc", "`/etc` is not allowed"),
            ("make-named", "ROOT|.wasmvol/mine", "`.wasmvol/mine` is not allowed"),
            ("make-named", "ROOT|a/.wasmvol-trash", "`a/.wasmvol-trash` is not allowed"),
            ("plan-inside", "..", "subpath `..` is not allowed"),
            ("plan-inside", "../../trash", "subpath `../../trash` is not allowed"),
            ("plan-inside", "/etc", "subpath `/etc` is not allowed"),
            ("plan-inside", "a%00b", r"subpath `a\u{0}b` is not allowed"),
            // Links that it has put into its volume.
            ("plan-inside", "out", link),
            ("plan-inside", "root/etc", link),
            ("plan-inside", "magic/etc", link),
            ("plan-device", "/dev/../etc/passwd|ext4", "passwd` is no device"),
            ("plan-device", "/dev|ext4", "`/dev` is no device"),
            ("plan-share", "nfs4|127.0.0.1|/srv/../etc", "`/srv/../etc`"),
            ("plan-share", "cifs|127.0.0.1|team/../c$", "`team/../c$`"),
        ],
    );
}

#[test]
fn a_plan_does_not_reach_the_volume_of_another_driver() {
    let shelf = Shelf::start();
    let (wasmvol, plugin) = (&shelf.wasmvol, shelf.wasmvol.plugin());
    for (name, driver) in [("plain", "local"), ("disk", "image")] {
        shelf.create(name, driver, &[]).unwrap();
        fs::write(plugin.mount(name, "id").unwrap().join("theirs"), "").unwrap();
    }
    // An operator who grants so much has granted all but this.
    let above = wasmvol.path("");
    let above = above.to_str().unwrap().trim_end_matches('/');
    load(&shelf, &[&format!("host-directory={above}"), "device=/dev"]);
    let plain = plugin.path("plain").unwrap();
    let id = plain.file_name().unwrap().to_str().unwrap();
    let data = format!("{above}/state/volumes/{id}/data");
    assert!(PathBuf::from(&data).join("theirs").exists());
    let disk = plugin.path("disk").unwrap();
    let mounts = wasmvol.volume_mounts();
    let mount = mounts.iter().find(|mount| Path::new(&mount.path) == disk).unwrap();
    let on_it = format!("{}|ext4", mount.block_device());
    let own = "wasmvol keeps its own files there";
    all_refused(
        &shelf,
        &[
            ("plan-directory", &data, own),
            ("plan-make", &format!("{data}/mine"), own),
            ("plan-directory", plain.to_str().unwrap(), own),
            ("plan-directory", above, own),
            ("plan-directory", &format!("{above}/state/secrets"), own),
            ("plan-overlay", &data, own),
            ("plan-device", &on_it, own),
            ("plan-blank", &on_it, own),
        ],
    );
    for name in ["plain", "disk"] {
        assert_eq!(tree(&plugin.path(name).unwrap()).len(), 1, "{name}");
    }
}

#[test]
fn a_plan_does_not_mount_the_disk_that_wasmvol_lies_on() {
    let mut wasmvol = Wasmvol::install_on("ext4", 64 << 20);
    wasmvol.run();
    let shelf = Shelf::of(wasmvol);
    load(&shelf, &["device=/dev"]);
    let state = shelf.wasmvol.state();
    let disk = all().into_iter().find(|mount| Path::new(&mount.path) == state).unwrap();
    let with = format!("{}|ext4", disk.block_device());
    all_refused(&shelf, &[("plan-device", &with, "wasmvol keeps its own files there")]);
}

#[test]
fn an_option_of_a_plan_that_holds_another_is_refused_before_anything_hears_of_it() {
    let shelf = Shelf::start();
    load(&shelf, &EVERYTHING);
    let host_key = "host-key=ssh-ed25519 AAAA";
    let comma = "a comma, a control character";
    let control = "has control characters";
    let ssh = |more: &str| format!("sshfs|me@127.0.0.1:/srv|{host_key}|key@key|{more}");
    let rclone = |more: &str| format!("rclone|nas:data|config@remotes|{more}");
    let s3fs = |more: &str| format!("s3fs|data|secret@key|url=http://127.0.0.1:1|{more}");
    let gluster = |more: &str| format!("glusterfs|127.0.0.1:/data|{more}");
    let nfs = |more: &str| format!("nfs4|127.0.0.1|/srv|{more}");
    let cifs = |more: &str| format!("cifs|127.0.0.1|team|{more}");
    let device = |more: &str| format!("/dev/loop-control|{more}");
    let rows: Vec<(&str, String, &str)> = vec![
        ("plan-share", nfs("sec=sys,addr=10.0.0.1"), comma),
        ("plan-share", nfs("sec=sys%0aaddr=10.0.0.1"), control),
        ("plan-share", nfs("sec=sys%00"), control),
        ("plan-share", nfs("addr=10.0.0.1"), "take no mount option `addr`"),
        ("plan-share", nfs("source=10.0.0.1"), "take no mount option `source`"),
        ("plan-share", nfs("clientaddr=10.0.0.1"), "take no mount option `clientaddr`"),
        ("plan-share", nfs("fsc"), "take no mount option `fsc`"),
        ("plan-share", nfs("soft|soft"), "mount option `soft` is there twice"),
        ("plan-share", nfs("soft soft"), "`soft soft` is no mount option"),
        ("plan-share", nfs("vers=3"), "mount option `vers` takes"),
        ("plan-share", cifs("username=bob,uid=0"), comma),
        ("plan-share", cifs("ip=10.0.0.1"), "take no mount option `ip`"),
        ("plan-share", cifs("credentials=/etc/shadow"), "take no mount option `credentials`"),
        ("plan-share", cifs("%70assword=hunter"), "mount option `password` takes"),
        ("plan-share", cifs("prefixpath=../c"), "take no mount option `prefixpath`"),
        ("plan-share", "nfs4|127.0.0.1,addr=10.0.0.1|/srv".into(), "is no host name"),
        ("plan-share", "nfs4|127.0.0.1|/srv,addr=10.0.0.1".into(), "`/srv,addr=10.0.0.1`"),
        ("plan-share", "nfs4|127.0.0.1|/srv%0asoft".into(), control),
        ("plan-share", "cifs|127.0.0.1|team\\..\\c".into(), r"`team\..\c`"),
        ("plan-share", "nfs4%00|127.0.0.1|/srv".into(), control),
        ("plan-share", "ext4|127.0.0.1|/srv".into(), "no share is of kind `ext4`"),
        ("plan-share", "fuse.sshfs|127.0.0.1|/srv".into(), "no share is of kind `fuse.sshfs`"),
        ("plan-device", device("ext4,rw"), "`ext4,rw` is no file system of a device"),
        ("plan-device", device("../../bin/sh"), "`../../bin/sh` is no file system of a device"),
        ("plan-device", device("proc"), "`proc` is no file system of a device"),
        ("plan-device", device("ext4%00"), control),
        ("plan-device", device("ext4|errors=panic"), "`errors=panic` would stop the machine"),
        ("plan-device", device("ext4|journal_path=/dev/sda"), "no mount option `journal_path`"),
        ("plan-device", device("ext4|commit=1,data=writeback"), comma),
        ("plan-device", device("xfs|logdev=/dev/sda"), "no mount option `logdev`"),
        ("plan-device", device("btrfs|device=/dev/sda"), "no mount option `device`"),
        ("plan-blank", device("vfat"), "no vfat is made on a blank device"),
        ("plan-program", ssh("ProxyCommand=sh"), "no option `ProxyCommand`"),
        ("plan-program", ssh("ssh_command=sh"), "no option `ssh_command`"),
        ("plan-program", ssh("-oProxyCommand=sh"), "no option `-oProxyCommand`"),
        ("plan-program", ssh("port=22 -oProxyCommand=sh"), "no option `port`"),
        ("plan-program", ssh("reconnect,ssh_command=sh"), "is no mount option"),
        ("plan-program", ssh("uid=0,allow_root"), comma),
        ("plan-program", ssh("password@key"), "sshfs needs `host-key`, and either"),
        ("plan-program", format!("sshfs|me@127.0.0.1:/srv|{host_key}%0a* evil|key@key"), control),
        (
            "plan-program",
            format!("sshfs|me@-oProxyCommand=sh:/srv|{host_key}|key@key"),
            "is no `user@host:/path`",
        ),
        ("plan-program", "sshfs|-oProxyCommand=sh".into(), "is no source for a program"),
        ("plan-program", "sshfs|me@127.0.0.1:/srv%00".into(), control),
        ("plan-program", rclone("config=/etc/shadow"), "`config` is there twice"),
        ("plan-program", rclone("password-command=sh"), "no option `password-command`"),
        ("plan-program", rclone("cache=full --config=/etc/x"), "no option `cache`"),
        ("plan-program", rclone("cache-dir=/etc"), "no option `cache-dir`"),
        ("plan-program", rclone("--config=x"), "no option `--config`"),
        ("plan-program", "rclone|:local:/etc|config@remotes".into(), "is no `remote:path`"),
        ("plan-program", "rclone|/etc|config@remotes".into(), "is no `remote:path`"),
        ("plan-program", "rclone|nas:a/../..|config@remotes".into(), "has a `..` in it"),
        ("plan-program", "rclone|--config=x|config@remotes".into(), "is no source"),
        ("plan-program", "rclone|nas:data|config=/etc/shadow".into(), "no option `config`"),
        ("plan-program", s3fs("passwd_file=/etc/shadow"), "no option `passwd_file`"),
        ("plan-program", s3fs("use_cache=/etc"), "no option `use_cache`"),
        ("plan-program", s3fs("region=eu use_cache=/etc"), "no option `region`"),
        ("plan-program", s3fs("umask:512"), "no option `umask`"),
        (
            "plan-program",
            "s3fs|data|secret@key|url=http://127.0.0.1@evil.example".into(),
            "`http://127.0.0.1@evil.example` is no",
        ),
        ("plan-program", "s3fs|data:/../other|secret@key".into(), "is no `bucket`"),
        ("plan-program", gluster("volfile=/etc/x"), "no option `volfile`"),
        ("plan-program", gluster("subdir=/a/../../b"), "no option `subdir`"),
        ("plan-program", gluster("subdir=/a --volfile=/etc/x%0a"), control),
        ("plan-program", "glusterfs|a,--volfile=/x:/data".into(), "is no `server,server:/volume`"),
        ("plan-program", "glusterfs|a:/data --acl".into(), "is no `server,server:/volume`"),
        ("plan-program", "../../bin/sh|x".into(), "`../../bin/sh` is no program's name"),
        ("plan-program", "sshfs%00|me@127.0.0.1:/srv".into(), control),
    ];
    let rows: Vec<_> = rows.iter().map(|(act, with, part)| (*act, with.as_str(), *part)).collect();
    all_refused(&shelf, &rows);
}

#[test]
fn a_plan_does_not_spend_a_secret_that_is_for_somebody_else() {
    let shelf = Shelf::start();
    load(&shelf, &EVERYTHING);
    // `key` is for sshfs and s3fs, `remotes` for rclone.
    all_refused(
        &shelf,
        &[
            (
                "plan-program",
                "sshfs|me@127.0.0.1:/srv|host-key=ssh-ed25519 AAAA|key@key",
                "secret `key` is not for driver `rogue`",
            ),
            (
                "plan-program",
                "rclone|nas:data|config@remotes",
                "secret `remotes` is not for driver `rogue`",
            ),
            (
                "plan-share",
                "cifs|127.0.0.1|team|password@key",
                "secret `key` is not for driver `rogue`",
            ),
            ("plan-share", "cifs|127.0.0.1|team|password@../catalog", "a secret's name"),
        ],
    );
}
