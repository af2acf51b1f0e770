//! Do hosts that share a root share its volumes? Two wasmvols, each with state of its own, over one directory.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};
use wasmvol_plan::Id;

use crate::drivers::component;
use crate::support::docker::Docker;
use crate::support::engine::Engine;
use crate::support::wasmvol::Wasmvol;
use crate::support::{Frozen, SOON, Scratch, open_to_all, until};

/// A driver is asked every 30 s.
const ROUND: Duration = Duration::from_secs(60);

/// Grants roots to `vfs`.
fn grant(wasmvol: &Wasmvol, roots: &[&Path]) {
    let grants: Vec<_> =
        roots.iter().map(|root| format!("--grant host-directory={}", root.display())).collect();
    let vfs = component("drivers/vfs.wasm");
    wasmvol.cli(&format!("driver load {} {}", vfs.display(), grants.join(" "))).ok();
}

/// A host with this root.
fn host(root: &Path) -> Wasmvol {
    let wasmvol = Wasmvol::start();
    grant(&wasmvol, &[root]);
    wasmvol
}

/// Two hosts that share a root.
fn hosts() -> (Scratch, PathBuf, Wasmvol, Wasmvol) {
    let scratch = Scratch::new();
    let root = scratch.dir("shared");
    let (one, two) = (host(&root), host(&root));
    (scratch, root, one, two)
}

const VFS: (&str, &str) = ("driver", "vfs");

fn create(wasmvol: &Wasmvol, name: &str, options: &[(&str, &str)]) -> Result<(), String> {
    wasmvol.plugin().create(name, &[&[VFS], options].concat())
}

/// Writes a file into a volume as a container would.
fn write(wasmvol: &Wasmvol, volume: &str, file: &str, text: &str) {
    let plugin = wasmvol.plugin();
    let path = plugin.mount(volume, "writer").unwrap();
    fs::write(path.join(file), text).unwrap();
    plugin.unmount(volume, "writer").unwrap();
}

fn read(wasmvol: &Wasmvol, volume: &str, file: &str) -> String {
    let plugin = wasmvol.plugin();
    let path = plugin.mount(volume, "reader").unwrap();
    let text = fs::read_to_string(path.join(file)).unwrap();
    plugin.unmount(volume, "reader").unwrap();
    text
}

/// What a scan says of each volume of `vfs`.
fn scan(wasmvol: &Wasmvol) -> Vec<(String, String)> {
    let scanned = wasmvol.json("volume scan vfs");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let volumes = scanned["volumes"].as_array().unwrap();
    volumes.iter().map(|v| (text(&v["name"]), text(&v["state"]))).collect()
}

fn says(name: &str, state: &str) -> (String, String) {
    (name.to_owned(), state.to_owned())
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn health(wasmvol: &Wasmvol, volume: &str) -> String {
    let status = wasmvol.plugin().get(volume).unwrap()["Status"].take();
    status["health"].as_str().unwrap().to_owned()
}

#[test]
fn containers_on_two_hosts_have_one_volume() {
    let scratch = Scratch::new();
    let root = scratch.dir("shared");
    let [one, two] = [(); 2].map(|()| {
        let pair = Docker::with_wasmvol();
        grant(&pair.wasmvol, &[&root]);
        pair
    });
    let create = "volume create -d wasmvol -o driver=vfs -o uid=7 data";
    one.engine.ok(create);
    one.engine.ok("run --rm -v data:/data busybox sh -c 'echo hello > /data/file'");
    assert_eq!(fs::read_to_string(root.join("data/file")).unwrap(), "hello\n");
    assert_eq!(fs::metadata(root.join("data")).unwrap().uid(), 7);
    // A compose file that is brought up on the other host, too.
    two.engine.ok(create);
    assert_eq!(two.engine.ok("run --rm -v data:/data busybox cat /data/file"), "hello");
    two.engine.ok("run --rm -v data:/data busybox touch /data/there");
    assert_eq!(one.engine.ok("run --rm -v data:/data busybox ls /data"), "file\nthere");
}

#[test]
fn an_image_fills_a_new_volume() {
    let scratch = Scratch::new();
    let pair = Docker::with_wasmvol();
    grant(&pair.wasmvol, &[scratch.path()]);
    pair.engine.ok("volume create -d wasmvol -o driver=vfs filled");
    // Docker fills a volume that is empty: a marker in it would be a volume that is not.
    let listed = pair.engine.ok("run --rm -v filled:/bin busybox ls /bin");
    assert!(listed.contains("busybox"), "{listed}");
    assert!(scratch.path().join("filled/busybox").exists());
}

#[test]
fn what_one_host_made_the_other_finds_by_a_scan_and_by_itself() {
    let (_scratch, _root, one, two) = hosts();
    create(&one, "scanned", &[]).unwrap();
    write(&one, "scanned", "file", "one's");
    assert_eq!(two.plugin().list(), Vec::<String>::new());
    assert_eq!(scan(&two), [says("scanned", "found")]);
    assert_eq!(scan(&two), [says("scanned", "known")]);
    assert_eq!(scan(&one), [says("scanned", "known")]);
    assert_eq!(read(&two, "scanned", "file"), "one's");
    let table = two.cli("volume scan").ok();
    assert!(table.lines().any(|l| l.split_whitespace().eq(["vfs", "scanned", "known"])), "{table}");
    create(&one, "listed", &[]).unwrap();
    until("the other host finds it", ROUND, || two.plugin().get("listed").ok());
    two.plugin().create("taken", &[]).unwrap();
    create(&one, "taken", &[]).unwrap();
    assert!(scan(&two).contains(&says("taken", "taken")));
}

#[test]
fn what_a_backend_knows_is_there_as_soon_as_its_driver_is_loaded_or_granted_it() {
    let scratch = Scratch::new();
    let [first, second] = ["first", "second"].map(|name| scratch.dir(name));
    let one = Wasmvol::start();
    grant(&one, &[&first, &second]);
    let new = |name: &str, root: &Path| {
        create(&one, name, &[("root", root.to_str().unwrap())]).unwrap();
    };
    new("a", &first);
    new("b", &second);
    let two = host(&first);
    // The command waits for them a second. The first round by itself came before it, and the next comes 30 s later.
    let at_once = Duration::from_secs(20);
    until("a is there", at_once, || (two.plugin().list() == ["a"]).then_some(()));
    new("c", &first);
    until("a round finds c", ROUND, || (two.plugin().list() == ["a", "c"]).then_some(()));
    two.cli(&format!("driver grant vfs host-directory={}", second.display())).ok();
    until("b is there", at_once, || (two.plugin().list() == ["a", "b", "c"]).then_some(()));
}

#[test]
fn a_scan_fails_where_a_driver_gives_no_answer() {
    let wasmvol = Wasmvol::start();
    let error = wasmvol.cli("volume scan nobody").refused();
    assert_eq!(error, "wasmvol: driver `nobody` is not loaded: load it with `wasmvol driver load`");
    let hostile = component("guests/hostile.wasm");
    wasmvol.cli(&format!("driver load {} --setting do=list-option-twice", hostile.display())).ok();
    wasmvol.plugin().create("bystander", &[]).unwrap();
    let outcome = wasmvol.cli("volume scan --json");
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.starts_with("driver `hostile` cannot list its volumes: driver broke"),
        "{outcome:?}"
    );
    let scanned: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(scanned["failed"][0]["driver"], "hostile");
    assert_eq!(scanned["volumes"], json!([]));
}

#[test]
fn a_volume_that_is_found_has_the_options_that_it_was_made_with() {
    let (_scratch, root, one, two) = hosts();
    create(&one, "data", &[("uid", "7"), ("mode", "0750")]).unwrap();
    let error = create(&two, "data", &[]).unwrap_err();
    assert!(error.contains("already exists with other options"), "{error}");
    assert!(error.contains("there"), "{error}");
    let error = create(&two, "data", &[("uid", "7"), ("mode", "0750"), ("reclaim", "delete")]);
    assert!(error.unwrap_err().contains("`reclaim`"));
    create(&two, "data", &[("uid", "7"), ("mode", "0750")]).unwrap();
    assert_eq!(entries(&root), [".wasmvol", "data"]);
}

#[test]
fn removing_a_volume_keeps_its_data_for_the_other_host_and_for_the_next_create() {
    let (_scratch, root, one, two) = hosts();
    create(&one, "data", &[]).unwrap();
    write(&one, "data", "file", "kept");
    create(&two, "data", &[]).unwrap();
    one.plugin().remove("data").unwrap();
    assert_eq!(one.plugin().list(), Vec::<String>::new());
    assert_eq!(scan(&one), [says("data", "kept")], "what was removed does not come back by itself");
    let kept = one.json("volume ls --retained");
    assert_eq!(kept[0]["data"], root.join("data").to_str().unwrap());
    assert_eq!(scan(&two), [says("data", "known")]);
    assert_eq!(read(&two, "data", "file"), "kept");
    // Whoever creates it again has it again, as its own.
    create(&one, "data", &[]).unwrap();
    assert_eq!(read(&one, "data", "file"), "kept");
    assert_eq!(one.json("volume ls --retained"), json!([]));
    one.plugin().remove("data").unwrap();
    let id = one.json("volume ls --retained")[0]["id"].as_str().unwrap().to_owned();
    one.cli(&format!("volume purge {id}")).ok();
    until("the data is gone", SOON, || {
        entries(&root.join(".wasmvol-trash")).is_empty().then_some(())
    });
    assert_eq!(entries(&root), [".wasmvol", ".wasmvol-trash"]);
    assert_eq!(scan(&two), [says("data", "missing")]);
    assert!(health(&two, "data").starts_with("missing: "));
}

#[test]
fn who_found_a_volume_never_deletes_it() {
    let (_scratch, root, one, two) = hosts();
    create(&one, "data", &[("reclaim", "delete")]).unwrap();
    write(&one, "data", "file", "kept");
    create(&two, "data", &[]).unwrap();
    two.plugin().remove("data").unwrap();
    assert_eq!(scan(&two), [says("data", "kept")]);
    let kept = two.json("volume ls --retained");
    assert_eq!(kept[0]["data"], Value::Null, "where it is only the driver knows");
    let error = two.cli(&format!("volume purge {}", kept[0]["id"].as_str().unwrap())).refused();
    assert!(error.contains("remove it where it was made"), "{error}");
    assert_eq!(read(&one, "data", "file"), "kept");
    create(&two, "data", &[]).unwrap();
    assert_eq!(read(&two, "data", "file"), "kept");
    two.plugin().remove("data").unwrap();
    // A root that is away for a while brings back nothing that was removed.
    let away = root.with_extension("away");
    fs::rename(&root, &away).unwrap();
    assert_eq!(scan(&two), []);
    fs::rename(&away, &root).unwrap();
    assert_eq!(scan(&two), [says("data", "kept")]);
    one.plugin().remove("data").unwrap();
    assert_eq!(scan(&two), []);
    until("the data is gone", SOON, || {
        entries(&root.join(".wasmvol-trash")).is_empty().then_some(())
    });
    assert_eq!(entries(&root), [".wasmvol", ".wasmvol-trash"]);
}

#[test]
fn a_chosen_place_is_mounted_as_it_is_and_never_deleted() {
    let (_scratch, root, one, two) = hosts();
    fs::create_dir_all(root.join("old/tree")).unwrap();
    fs::write(root.join("old/tree/file"), "precious").unwrap();
    let relative = [("path", "old/tree")];
    create(&one, "data", &relative).unwrap();
    assert_eq!(read(&one, "data", "file"), "precious");
    assert_eq!(scan(&two), [says("data", "found")]);
    assert_eq!(read(&two, "data", "file"), "precious");
    one.plugin().remove("data").unwrap();
    let id = one.json("volume ls --retained")[0]["id"].as_str().unwrap().to_owned();
    one.cli(&format!("volume purge {id}")).ok();
    assert_eq!(fs::read_to_string(root.join("old/tree/file")).unwrap(), "precious");
    assert_eq!(entries(&root), [".wasmvol", "old"]);
    let absolute = root.join("old/tree").to_str().unwrap().to_owned();
    let error = create(&one, "data", &[("path", &absolute), ("reclaim", "delete")]).unwrap_err();
    assert!(error.contains("never deleted"), "{error}");
    create(&one, "data", &[("path", &absolute)]).unwrap();
    assert_eq!(read(&one, "data", "file"), "precious");
}

#[test]
fn a_volume_lies_on_the_root_that_it_names_also_on_a_mounted_one() {
    let scratch = Scratch::new();
    let (first, disk) = (scratch.dir("first"), scratch.dir("first/disk"));
    mount("disk", &disk, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
    let wasmvol = Wasmvol::start();
    grant(&wasmvol, &[&first, &disk]);
    create(&wasmvol, "plain", &[]).unwrap();
    create(&wasmvol, "mounted", &[("root", disk.to_str().unwrap()), ("reclaim", "delete")])
        .unwrap();
    create(&wasmvol, "chosen", &[("path", "disk/place")]).unwrap();
    for name in ["plain", "mounted", "chosen"] {
        write(&wasmvol, name, "file", name);
    }
    assert_eq!(entries(&first), [".wasmvol", "disk", "plain"]);
    assert_eq!(entries(&disk), [".wasmvol", "mounted", "place"]);
    let states = scan(&wasmvol);
    assert!(states.iter().all(|(_, state)| state == "known") && states.len() == 3, "{states:?}");
    wasmvol.plugin().remove("mounted").unwrap();
    until("the data is gone", SOON, || {
        entries(&disk.join(".wasmvol-trash")).is_empty().then_some(())
    });
    assert_eq!(entries(&disk), [".wasmvol", ".wasmvol-trash", "place"]);
}

#[test]
fn what_cannot_be_made_is_refused_in_one_line_and_leaves_nothing() {
    let scratch = Scratch::new();
    let root = scratch.dir("shared");
    let wasmvol = host(&root);
    fs::create_dir(root.join("stranger")).unwrap();
    fs::write(root.join("stranger/file"), "precious").unwrap();
    symlink("/etc", root.join("link")).unwrap();
    let refused = |name: &str, options: &[(&str, &str)], reason: &str| {
        let error = create(&wasmvol, name, options).unwrap_err();
        assert!(error.contains(reason), "{name} {options:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    };
    for (key, value, reason) in [
        ("root", "/etc", "driver grant vfs 'host-directory=/etc'"),
        ("path", "/etc", "option `path`"),
        ("path", "../etc", "is not allowed"),
        ("path", "link/ssl", "link"),
        ("path", ".wasmvol", "is not allowed"),
        ("path", "", "is not allowed"),
        ("mode", "9", "option `mode`"),
        ("quota", "1m", "no option `quota`"),
    ] {
        refused("a", &[(key, value)], reason);
    }
    for name in ["stranger", "link"] {
        refused(name, &[], "is no volume");
    }
    let bare = Wasmvol::start();
    let error = create(&bare, "a", &[]).unwrap_err();
    assert!(error.contains("driver grant vfs 'host-directory=PATH'"), "{error}");
    // Under another name it is another's.
    bare.cli(&format!(
        "driver load {} --name nas --without host-directory=PATH",
        component("drivers/vfs.wasm").display()
    ))
    .ok();
    let error = bare.plugin().create("a", &[("driver", "nas")]).unwrap_err();
    assert!(error.contains("driver grant nas 'host-directory=PATH'"), "{error}");
    assert_eq!(wasmvol.plugin().list(), Vec::<String>::new());
    assert_eq!(entries(&root), [".wasmvol", "link", "stranger"]);
    assert_eq!(entries(&root.join(".wasmvol")), Vec::<String>::new());
    assert_eq!(fs::read_to_string(root.join("stranger/file")).unwrap(), "precious");
}

#[test]
fn a_volume_whose_root_is_away_is_missing_and_comes_back() {
    let (_scratch, root, one, two) = hosts();
    create(&one, "data", &[]).unwrap();
    write(&one, "data", "file", "kept");
    create(&two, "data", &[]).unwrap();
    let away = root.with_extension("away");
    fs::rename(&root, &away).unwrap();
    for host in [&one, &two] {
        assert_eq!(scan(host), [says("data", "missing")]);
        let error = host.plugin().mount("data", "id").unwrap_err();
        assert!(error.contains("no such file"), "{error}");
        assert!(health(host, "data").starts_with("missing: "));
    }
    fs::rename(&away, &root).unwrap();
    for host in [&one, &two] {
        assert_eq!(scan(host), [says("data", "known")]);
        assert_eq!(health(host, "data"), "ok");
        assert_eq!(read(host, "data", "file"), "kept");
    }
}

#[test]
fn a_volume_is_kept_by_a_remove_that_comes_before_its_root_was_looked_at_again() {
    type Before = fn(&mut Wasmvol, &Path);
    let befores: [(&str, Before); 3] = [
        ("doctor", |host, _| {
            host.cli("doctor");
        }),
        ("restart", |host, _| {
            assert!(host.stop().success());
            host.run();
        }),
        ("away", |host, root| {
            let away = root.with_extension("away");
            fs::rename(root, &away).unwrap();
            assert_eq!(scan(host), [says("data", "missing")]);
            fs::rename(&away, root).unwrap();
        }),
    ];
    for (what, before) in befores {
        let scratch = Scratch::new();
        let root = scratch.dir("root");
        let mut host = host(&root);
        create(&host, "data", &[]).unwrap();
        write(&host, "data", "file", "kept");
        before(&mut host, &root);
        host.plugin().remove("data").unwrap();
        assert_eq!(fs::read_to_string(root.join("data/file")).unwrap(), "kept", "{what}");
        create(&host, "data", &[]).unwrap();
        assert_eq!(read(&host, "data", "file"), "kept", "{what}");
    }
}

#[test]
fn killed_in_create_or_remove_a_volume_is_there_wholly_or_not_at_all() {
    for (step, is_there) in [
        ("create.intent", false),
        ("create.driver", false),
        ("create.placed", false),
        ("create.made", false),
        ("create.ready", true),
        ("remove.intent", false),
        ("remove.driver", false),
        ("remove.trashed", false),
        ("remove.forgotten", false),
    ] {
        let scratch = Scratch::new();
        let root = scratch.dir("shared");
        let mut wasmvol = host(&root);
        assert!(wasmvol.stop().success());
        let flag = open_to_all(&format!("vfs-{step}"));
        fs::write(&flag, "").unwrap();
        wasmvol.set_variables(&[("WASMVOL_KILL_AT", &format!("{step}@{}", flag.display()))]);
        wasmvol.run();
        let create = json!({ "Name": "data", "Opts": { "driver": "vfs", "reclaim": "delete" } });
        let _unheard = wasmvol.plugin().try_call("VolumeDriver.Create", &create.to_string());
        if step.starts_with("remove") {
            let remove = json!({ "Name": "data" });
            let _unheard = wasmvol.plugin().try_call("VolumeDriver.Remove", &remove.to_string());
        }
        until("it is killed there", SOON, || (!flag.exists()).then_some(()));
        wasmvol.wait_ready();
        let listed = || wasmvol.plugin().list();
        let settled: &[&str] = if is_there { &["data"] } else { &[] };
        until(&format!("what {step} left is settled"), SOON, || {
            let is_settled = root.join("data").exists() == is_there
                && entries(&root.join(".wasmvol")) == settled
                && entries(&root.join(".wasmvol-trash")).is_empty()
                && listed() == settled;
            is_settled.then_some(())
        });
    }
}

#[test]
fn a_root_that_does_not_answer_keeps_no_other_volume_from_being_deleted() {
    let mut wasmvol = Wasmvol::start();
    let root = wasmvol.path("root");
    wasmvol.mount_disk("ext4", 64 << 20, &root);
    grant(&wasmvol, &[&root]);
    wasmvol.plugin().create("ours", &[]).unwrap();
    write(&wasmvol, "ours", "file", "deleted");
    assert!(wasmvol.stop().success());
    // What another host has thrown away there, and not deleted yet.
    let theirs = root.join(".wasmvol-trash").join(Id::from_bits(7).to_string());
    fs::create_dir_all(theirs.join("data")).unwrap();
    let frozen = Frozen::new(root);
    wasmvol.run();
    until("somebody hangs there", SOON, || (wasmvol.children().len() > 1).then_some(()));
    wasmvol.plugin().remove("ours").unwrap();
    wasmvol.wait_reaped();
    assert!(theirs.join("data").exists());
    drop(frozen);
    until("their trash is emptied", SOON, || (!theirs.exists()).then_some(()));
}
