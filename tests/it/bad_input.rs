//! Is what no driver can do anything with refused by each of them, in one line that names it, and is nothing left of it?
//!
//! Every row goes through the plugin's socket, and is refused at Create or else at Mount: `Shelf::refused` looks at the line and at what
//! could be left.

use std::fs;
use std::path::PathBuf;

use crate::support::shelf::{Options, Shelf, assert_is_a_line, tree};
use crate::support::sshd::Sshd;

/// A driver, options, and what the error says of them.
type Row<'a> = (&'a str, Options<'a>, &'a str);

#[track_caller]
fn all_refused(shelf: &Shelf, rows: &[Row<'_>]) {
    for (driver, options, part) in rows {
        let error = shelf.refused(driver, options);
        assert!(error.contains(part), "{driver} {options:?}: {error}");
    }
}

#[test]
fn an_option_that_a_driver_does_not_take_is_named_with_those_that_it_takes() {
    let shelf = Shelf::start();
    for (driver, takes) in [
        ("local", "device"),
        ("tmpfs", "inodes"),
        ("vfs", "root"),
        ("overlay", "lower"),
        ("image", "thin"),
        ("btrfs", "compress"),
        ("nfs", "export"),
        ("cifs", "share"),
        ("sshfs", "host-key"),
        ("rclone", "remote"),
        ("s3fs", "bucket"),
        ("glusterfs", "volume"),
    ] {
        let error = shelf.refused(driver, &[("frobnicate", "1")]);
        let part = format!("no option `frobnicate` (`{driver}` takes: ");
        assert!(error.starts_with(&part) && error.contains(takes), "{error}");
    }
}

#[test]
fn a_size_that_is_none_is_refused_by_its_option() {
    let shelf = Shelf::start();
    for text in ["1x", "-1", "1e9", "1.5g", "99999999999999999999", "16777216t", " 1m", "0x10"] {
        for (driver, key) in [
            ("local", "size"),
            ("vfs", "size"),
            ("tmpfs", "size"),
            ("tmpfs", "inodes"),
            ("image", "size"),
            ("btrfs", "size"),
            ("nfs", "read-size"),
            ("nfs", "write-size"),
            ("cifs", "port"),
            ("sshfs", "port"),
            ("rclone", "cache-size"),
            ("s3fs", "uid"),
            ("glusterfs", "port"),
        ] {
            let error = shelf.refused(driver, &[(key, text)]);
            assert!(error.contains(&format!("option `{key}`")), "{driver} {key}={text}: {error}");
        }
        let memory = ["size", "nr_inodes"].map(|key| format!("{key}={text}"));
        for o in &memory {
            let error = shelf.refused("local", &[("type", "tmpfs"), ("device", "m"), ("o", o)]);
            assert!(error.contains("option `o`"), "{o}: {error}");
        }
    }
    for driver in ["overlay", "cifs", "sshfs", "rclone", "s3fs", "nfs"] {
        let error = shelf.refused(driver, &[("size", "1m")]);
        assert!(error.contains("no option `size`"), "{driver}: {error}");
    }
    for (driver, key) in [("tmpfs", "size"), ("tmpfs", "inodes"), ("btrfs", "size")] {
        let error = shelf.refused(driver, &[(key, "0")]);
        assert!(error.contains(&format!("option `{key}`")), "{driver}: {error}");
    }
}

#[test]
fn an_option_that_is_smuggled_into_another_is_refused_by_the_one_that_it_is_in() {
    let shelf = Shelf::start();
    let nfs = |o| [("type", "nfs"), ("device", ":/srv"), ("o", o)];
    let cifs = |o| [("type", "cifs"), ("device", "//127.0.0.1/team"), ("o", o)];
    let bound = |o| [("type", "none"), ("device", "ROOT/a"), ("o", o)];
    let memory = |o| [("type", "tmpfs"), ("device", "m"), ("o", o)];
    let overlay = |o| [("type", "overlay"), ("device", "o"), ("o", o)];
    all_refused(
        &shelf,
        &[
            ("tmpfs", &[("size", "1m,mode=0777")], "option `size`"),
            ("tmpfs", &[("mode", "0777,size=1t")], "option `mode`"),
            ("tmpfs", &[("uid", "0,mpol=bind:0")], "option `uid`"),
            ("image", &[("size", "8m,thin")], "option `size`"),
            ("image", &[("fs", "ext4,data=writeback")], "option `fs`"),
            ("image", &[("fs", "../../bin/sh")], "option `fs`"),
            ("btrfs", &[("compress", "zstd,nodatacow")], "option `compress`"),
            ("vfs", &[("mode", "0755,x")], "option `mode`"),
            ("overlay", &[("lower", "ROOT/a,upperdir=/etc")], "upperdir=/etc`"),
            ("overlay", &[("lower", "ROOT/a:upperdir=/etc")], "`upperdir=/etc`"),
            ("overlay", &[("lower", "ROOT/a\nx")], "option `lower`"),
            ("overlay", &[("lower", "ROOT/a:ROOT")], "one is there twice or lies in another"),
            ("nfs", &[("server", "127.0.0.1,addr=10.0.0.1")], "127.0.0.1,addr=10.0.0.1`"),
            ("nfs", &[("export", "/srv,addr=10.0.0.1")], "`/srv,addr=10.0.0.1`"),
            ("nfs", &[("export", "/srv\naddr=10.0.0.1")], "option `export`"),
            ("nfs", &[("version", "4.2,soft")], "option `version`"),
            ("nfs", &[("security", "sys,noacl")], "`sec`"),
            ("nfs", &[("port", "1,nolock")], "option `port`"),
            ("cifs", &[("server", "127.0.0.1/x")], "`127.0.0.1/x`"),
            ("cifs", &[("share", "team,ip=10.0.0.1")], "`team,ip=10.0.0.1`"),
            ("cifs", &[("user", "alice,uid=0")], "`username`"),
            ("cifs", &[("domain", "d,seal")], "`domain`"),
            ("cifs", &[("version", "3.0,nodfs")], "`vers`"),
            ("cifs", &[("user", "alice,password=hunter")], "a password given in clear"),
            ("sshfs", &[("host", "-oProxyCommand=sh")], "option `host`"),
            ("sshfs", &[("host", "h,directport=1")], "option `host`"),
            ("sshfs", &[("user", "root -oProxyCommand=sh")], "option `user`"),
            ("sshfs", &[("path", "/srv\n-oallow_root")], "option `path`"),
            ("sshfs", &[("host-key", "ssh-rsa AAAA,ProxyCommand=sh")], "option `host-key`"),
            ("sshfs", &[("host-key", "ssh-rsa AAAA\nssh-rsa AAAB")], "option `host-key`"),
            ("sshfs", &[("port", "22,ssh_command=sh")], "option `port`"),
            ("sshfs", &[("key", "key,password=x")], "option `key`"),
            ("rclone", &[("remote", ":local:/etc")], "option `remote`"),
            ("rclone", &[("remote", "nas,url=http://x:data")], "option `remote`"),
            ("rclone", &[("remote", "--config=x")], "option `remote`"),
            ("rclone", &[("cache", "full --allow-non-empty")], "option `cache`"),
            ("rclone", &[("config", "key,password=x")], "option `config`"),
            ("s3fs", &[("bucket", "-ouse_cache=/")], "option `bucket`"),
            ("s3fs", &[("endpoint", "http://127.0.0.1,passwd_file=/etc/x")], "option `endpoint`"),
            ("s3fs", &[("endpoint", "http://127.0.0.1@evil.example")], "option `endpoint`"),
            ("s3fs", &[("region", "eu,use_cache=/")], "option `region`"),
            ("s3fs", &[("umask", "022,uid=0")], "option `umask`"),
            ("glusterfs", &[("servers", "127.0.0.1,--volfile=/etc/x")], "option `servers`"),
            ("glusterfs", &[("servers", "127.0.0.1 --acl")], "option `servers`"),
            ("glusterfs", &[("volume", "data\n--acl")], "option `volume`"),
            ("glusterfs", &[("volume", "data --volfile=/etc/x")], "option `volume`"),
            ("glusterfs", &[("port", "24007,x")], "option `port`"),
            ("local", &bound("bind\nro"), "option `o`"),
            ("local", &bound("bind,uid=0"), "takes no `uid`"),
            ("local", &bound("bind,suid"), "`suid`"),
            ("local", &memory("size=1m,size=2m"), "takes no `size`"),
            ("local", &memory("mode=0755\nsize=1m"), "option `o`"),
            ("local", &memory("mpol=bind:0"), "takes no `mpol`"),
            ("local", &overlay("lowerdir=ROOT/a,upperdir=ROOT/b"), "`upperdir`"),
            ("local", &overlay("lowerdir=ROOT/a,redirect_dir=on"), "takes no `redirect_dir`"),
            ("local", &nfs("addr=127.0.0.1,addr=10.0.0.1"), "`addr`"),
            ("local", &nfs("addr=127.0.0.1,mountaddr=10.0.0.1"), "`mountaddr`"),
            ("local", &nfs("addr=127.0.0.1,clientaddr=10.0.0.1"), "`clientaddr`"),
            ("local", &nfs("addr=127.0.0.1,fsc"), "`fsc`"),
            ("local", &cifs("username=bob,ip=10.0.0.1"), "`ip`"),
            ("local", &cifs("credentials=/etc/shadow"), "`credentials`"),
            ("local", &cifs("username=bob,snapshot=1"), "`snapshot`"),
        ],
    );
}

#[test]
fn two_dots_in_a_path_are_refused_and_the_path_is_named() {
    let shelf = Shelf::start();
    let bound = |device| [("type", "none"), ("o", "bind"), ("device", device)];
    let over = |o| [("type", "overlay"), ("device", "o"), ("o", o)];
    all_refused(
        &shelf,
        &[
            ("local", &bound("ROOT/a/../../outside"), "/a/../../outside`"),
            ("local", &bound("ROOT/.."), "/..`"),
            (
                "local",
                &[("type", "none"), ("o", "bind"), ("device", "ROOT/../new"), ("make", "true")],
                "/../new`",
            ),
            ("local", &over("lowerdir=ROOT/a:ROOT/../outside"), "/../outside`"),
            ("local", &[("type", "ext4"), ("device", "/dev/../etc")], "`/dev/../etc`"),
            ("local", &[("type", "nfs"), ("device", "127.0.0.1:/a/../b")], "`/a/../b`"),
            ("local", &[("type", "cifs"), ("device", "//127.0.0.1/../b")], "`../b`"),
            ("vfs", &[("root", "ROOT/..")], "/..`"),
            ("vfs", &[("root", "ROOT/a/..")], "/a/..`"),
            ("vfs", &[("path", "../outside")], "`../outside`"),
            ("vfs", &[("path", "a/../../outside")], "`a/../../outside`"),
            ("vfs", &[("path", "ROOT/../outside")], "../outside`"),
            ("overlay", &[("lower", "ROOT/../outside")], "/../outside`"),
            ("overlay", &[("lower", "ROOT/a:ROOT/a/..")], "/a/..`"),
            ("nfs", &[("export", "/srv/../etc")], "`/srv/../etc`"),
            ("nfs", &[("subdir", "../etc")], "`../etc`"),
            ("nfs", &[("server", "..")], "`..`"),
            ("cifs", &[("share", "team/../c$")], "`team/../c$`"),
            ("cifs", &[("subdir", "a/../../b")], "`a/../../b`"),
            ("sshfs", &[("path", "/srv/../etc")], "option `path`"),
            ("rclone", &[("remote", "nas:data/../..")], "option `remote`"),
            ("s3fs", &[("prefix", "a/../..")], "option `prefix`"),
            ("glusterfs", &[("subdir", "a/../../b")], "option `subdir`"),
            ("glusterfs", &[("volume", "../etc")], "option `volume`"),
            ("glusterfs", &[("servers", "..")], "`..:/data`"),
        ],
    );
    assert_eq!(tree(&shelf.outside()), Vec::<PathBuf>::new());
}

#[test]
fn a_server_that_nobody_is_at_is_named_with_what_to_look_at() {
    let shelf = Shelf::start();
    // Nobody listens at the first port, and nobody may.
    for (driver, options, source, kind) in [
        ("nfs", &[("port", "1")][..], "`127.0.0.1:/srv`", "nfs4"),
        ("nfs", &[("port", "1"), ("version", "3")], "`127.0.0.1:/srv`", "nfs"),
        ("cifs", &[("port", "1")], "`//127.0.0.1/team`", "cifs"),
        (
            "local",
            &[("type", "nfs4"), ("device", "127.0.0.1:/srv"), ("o", "port=1")],
            "`127.0.0.1:/srv`",
            "nfs4",
        ),
        (
            "local",
            &[("type", "cifs"), ("device", "//127.0.0.1/team"), ("o", "username=u,port=1")],
            "`//127.0.0.1/team`",
            "cifs",
        ),
    ] {
        let error = shelf.refused(driver, options);
        // Asked for, a module is loaded where there is one.
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        let cure = if known.lines().any(|line| line.ends_with(&format!("\t{kind}"))) {
            "see whether the server runs and can be reached"
        } else {
            "this kernel has no such file system: install it, or load its module"
        };
        // What a kernel cannot mount at all is said of who asks for it.
        let named = format!("driver `{driver}`: ");
        let told = error.strip_prefix(&named).unwrap_or(&error);
        let begin = format!("cannot mount {source}: ");
        assert!(told.starts_with(&begin) && told.ends_with(cure), "{driver}: {error}");
    }
}

#[test]
fn a_server_that_a_program_does_not_reach_is_told_in_the_words_of_that_program() {
    let shelf = Shelf::start();
    // What each could be mounted with, if there were a server.
    for (secret, set) in [
        (r"[nas]\ntype = webdav\nurl = http://127.0.0.1:1\n", "nowhere --driver rclone"),
        ("ACCESS:SECRET", "keys --driver s3fs --peer 127.0.0.1"),
    ] {
        shelf.wasmvol.shell(&format!("printf '{secret}' | wasmvol secret set {set}")).ok();
    }
    // sshfs may notice that its ssh has gone before that has said why.
    let error = shelf.refused("sshfs", &[("port", "1")]);
    let is_told = ["Connection refused", "Broken pipe"].iter().any(|word| error.contains(word));
    assert!(is_told, "{error}");
    all_refused(
        &shelf,
        &[
            ("rclone", &[("config", "nowhere")], "connection refused"),
            ("s3fs", &[("secret", "keys")], "unable to connect"),
            ("glusterfs", &[("port", "1")], "disconnected from remote-host: 127.0.0.1"),
        ],
    );
}

#[test]
fn a_secret_that_is_not_kept_or_for_somebody_else_is_named_with_the_command_that_mends_it() {
    let shelf = Shelf::start();
    shelf.secret("others", "--driver image --peer 127.0.0.1");
    for driver in ["cifs", "sshfs", "s3fs", "local"] {
        shelf
            .secret(&format!("{driver}-elsewhere"), &format!("--driver {driver} --peer a.example"));
        shelf.secret(&format!("{driver}-gone"), &format!("--driver {driver} --peer 127.0.0.1"));
    }
    for (driver, key, rest) in [
        ("cifs", "secret", &[][..]),
        ("sshfs", "key", &[]),
        ("s3fs", "secret", &[]),
        ("local", "secret", &[("type", "cifs"), ("device", "//127.0.0.1/team")]),
    ] {
        let gone = format!("{driver}-gone");
        let elsewhere = format!("{driver}-elsewhere");
        let with = |name| [rest, &[(key, name)]].concat();
        let error = shelf.refused(driver, &with("nobody"));
        let set = format!("wasmvol secret set NAME --driver {driver}");
        let part = format!("option `{key}`: no secret of that name is kept");
        assert!(error.contains(&part) && error.contains(&set), "{driver}: {error}");
        let error = shelf.refused(driver, &with("others"));
        let part = format!("secret `others` is not for driver `{driver}`");
        let set = format!("wasmvol secret set others --driver {driver}");
        assert!(error.contains(&part) && error.contains(&set), "{driver}: {error}");
        let error = shelf.refused(driver, &with(&elsewhere));
        let part = format!("secret `{elsewhere}` is not for server `127.0.0.1`");
        assert!(error.contains(&part) && error.contains("--peer 127.0.0.1"), "{driver}: {error}");
        // One that was there at Create.
        shelf.create("made", driver, &with(&gone)).unwrap();
        shelf.wasmvol.cli(&format!("secret rm {gone}")).ok();
        let error = shelf.wasmvol.plugin().mount("made", "id").unwrap_err();
        assert_is_a_line(&error);
        assert!(error.contains(&format!("secret `{gone}`")), "{driver}: {error}");
        assert_eq!(shelf.wasmvol.volume_mounts(), []);
        shelf.wasmvol.plugin().remove("made").unwrap();
    }
}

#[test]
fn a_key_that_the_server_does_not_know_or_that_is_none_is_refused() {
    let sshd = Sshd::start();
    let shelf = Shelf::start();
    let ((host, port), path) = (sshd.place(), sshd.served().display().to_string());
    let host_key = sshd.host_key();
    let file = shelf.wasmvol.path("stranger").display().to_string();
    let make = "ssh-keygen -q -t ed25519 -N '' -f";
    let set = format!("wasmvol secret set stranger --driver sshfs --peer {host} --file");
    shelf.wasmvol.shell(&format!("{make} {file} && {set} {file}")).ok();
    // `key` is a line of text, and no key.
    for key in ["stranger", "key"] {
        let server =
            [("host", host.as_str()), ("port", &port), ("path", &path), ("host-key", &host_key)];
        let error = shelf.refused("sshfs", &[&server[..], &[("key", key)]].concat());
        assert!(error.contains("Permission denied"), "{key}: {error}");
    }
}
