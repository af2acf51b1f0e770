//! What does a person type, and see? Tables for people, JSON for programs, errors on stderr, and a doctor whose cures work.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::names::in_parallel;
use crate::support::container::Container;
use crate::support::registry::Registry;
use crate::support::wasmvol::{PROGRAMS, Wasmvol};
use crate::support::{Outcome, SOON, Scratch, copy_program, outcome, until};

/// A command that was refused: one line on stderr that begins with the program's name, nothing on stdout.
#[track_caller]
fn complaint(outcome: &Outcome) -> String {
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
    let line = outcome.stderr.trim_end();
    assert_eq!(line.lines().count(), 1, "{outcome:?}");
    line.strip_prefix("wasmvol: ").unwrap_or_else(|| panic!("{outcome:?}")).to_owned()
}

/// What the doctor finds: what, why, and the cure.
fn findings(wasmvol: &Wasmvol, arguments: &str) -> Vec<(String, String, String)> {
    let outcome = wasmvol.cli(&format!("doctor {arguments} --json"));
    let found: Vec<Value> = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(outcome.code, Some(i32::from(!found.is_empty())), "{outcome:?}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let finding = |f: &Value| (text(&f["what"]), text(&f["why"]), text(&f["cure"]));
    found.iter().map(finding).collect()
}

/// The one finding about `what`.
fn finding(wasmvol: &Wasmvol, arguments: &str, what: &str) -> (String, String) {
    let mut all = findings(wasmvol, arguments);
    let index = all.iter().position(|(about, ..)| about.trim_matches('`') == what);
    let (_, why, cure) =
        all.remove(index.unwrap_or_else(|| panic!("nothing about `{what}`: {all:?}")));
    (why, cure)
}

#[test]
fn a_volume_lives_and_dies_without_docker() {
    let wasmvol = Wasmvol::start();
    assert_eq!(wasmvol.cli("volume create first").ok(), "first");
    assert_eq!(wasmvol.cli("volume create second -d tmpfs -o size=1m").ok(), "second");
    assert_eq!(wasmvol.cli("volume create third -o driver=tmpfs -o mode=0700").ok(), "third");
    let mountpoint = wasmvol.cli("volume mount second").ok();
    fs::write(format!("{mountpoint}/file"), "hello").unwrap();
    assert_eq!(wasmvol.cli("volume mount second").ok(), mountpoint, "it counts");
    assert_eq!(wasmvol.cli("volume unmount second").ok(), "");
    assert_eq!(fs::read_to_string(format!("{mountpoint}/file")).unwrap(), "hello");
    assert!(complaint(&wasmvol.cli("volume rm second")).contains("`wasmvol volume mount`"));
    wasmvol.cli("volume unmount second").ok();
    wasmvol.wait_unmounted("second");
    assert_eq!(wasmvol.cli("volume rm first second third").ok(), "first\nsecond\nthird");
    assert_eq!(wasmvol.plugin().list(), Vec::<String>::new());
}

#[test]
fn a_table_has_a_head_and_a_row_for_each_volume() {
    let wasmvol = Wasmvol::start();
    let none = wasmvol.cli("volume ls");
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""));
    assert!(none.stderr.contains("wasmvol volume create"), "{}", none.stderr);
    wasmvol.cli("volume create disk").ok();
    wasmvol.cli("volume create a-rather-long-name -d tmpfs -o size=64m").ok();
    let table = wasmvol.cli("volume ls").ok();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split("   ").map(str::trim).filter(|c| !c.is_empty()).collect())
        .collect();
    let heads = ["NAME", "DRIVER", "STORAGE", "SIZE", "USED", "INODES", "AGE", "HOLDERS", "HEALTH"];
    assert_eq!(rows[0], heads);
    let memory = ["a-rather-long-name", "tmpfs", "none", "64.0 MiB", "-", "-", "-", "0", "ok"];
    assert_eq!(rows[1], memory);
    assert_eq!(rows[2], ["disk", "local", "directory", "-", "-", "-", "-", "0", "ok"]);
    let columns: Vec<_> = table
        .lines()
        .map(|line| line.find(" tmpfs").or(line.find(" local")).or(line.find(" DRIVER")))
        .collect();
    assert!(columns.iter().all(|column| *column == columns[0]), "columns are aligned:\n{table}");
}

#[test]
fn inspect_shows_what_ls_leaves_out() {
    let wasmvol = Wasmvol::start();
    wasmvol.cli("volume create shown -d tmpfs -o size=1m -o mode=0700").ok();
    let text = wasmvol.cli("volume inspect shown").ok();
    for part in ["shown", "tmpfs", "1.0 MiB", "0700", wasmvol.anchor().to_str().unwrap()] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let volume = wasmvol.json("volume inspect shown");
    assert_eq!(volume["name"], "shown");
    assert_eq!(volume["status"]["options"]["mode"], "0700");
    assert_eq!(wasmvol.json("volume ls")[0], volume);
}

#[test]
fn a_list_of_many_volumes_has_each_of_them_once() {
    const COUNT: usize = 600;
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let name = |i: usize| format!("volume-{i:03}");
    in_parallel(8, |first| {
        for i in (first..COUNT).step_by(8) {
            plugin.create(&name(i), &[("driver", "tmpfs")]).unwrap();
        }
    });
    let listed = wasmvol.json("volume ls");
    let names = listed.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap());
    assert!(names.eq((0..COUNT).map(name)), "{listed}");
    assert_eq!(wasmvol.json("status")["volumes"], COUNT);
}

#[test]
fn what_a_driver_does_not_need_is_said_to_be_none() {
    let wasmvol = Wasmvol::start();
    let text = wasmvol.cli("driver inspect local").ok();
    for field in ["grants needed", "settings"] {
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        assert_eq!(line.strip_prefix(field).unwrap().trim(), "none");
    }
}

#[test]
fn every_refusal_is_one_line_on_stderr_and_exit_status_1() {
    let wasmvol = Wasmvol::start();
    wasmvol.cli("volume create there").ok();
    for (line, part) in [
        ("volume inspect absent", "volume `absent`: no such volume"),
        ("volume rm absent", "volume `absent`: no such volume"),
        ("volume mount absent", "volume `absent`: no such volume"),
        ("volume unmount absent", "volume `absent`: no such volume"),
        ("volume create there -d tmpfs", "volume `there`: already exists"),
        ("volume create other -o sise=1", "volume `other`: no option `sise`: did you mean `size`?"),
        ("volume create other -d nosuch", "`nosuch`"),
        ("driver inspect nosuch", "no driver `nosuch` is loaded"),
        ("driver load /no/such/file", "`/no/such/file`"),
        ("driver load /dev/null --name x", ""),
        ("catalog import /no/such/file", "/no/such/file"),
    ] {
        let said = complaint(&wasmvol.cli(line));
        assert!(said.contains(part), "{line}: {said}");
    }
}

#[test]
fn what_is_not_understood_is_exit_status_2() {
    let wasmvol = Wasmvol::start();
    for line in [
        "",
        "nonsense",
        "volume",
        "volume create",
        "volume create ../x",
        "volume ls --nonsense",
        "volume create ab -o =x",
        "driver unload A",
        "serve --json",
    ] {
        let outcome = wasmvol.cli(line);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{outcome:?}");
        assert!(!outcome.stderr.is_empty());
    }
}

#[test]
fn without_a_daemon_the_cure_is_named() {
    let wasmvol = Wasmvol::install();
    for line in ["status", "volume ls", "volume rm any", "driver ls"] {
        let said = complaint(&wasmvol.cli(line));
        assert!(said.contains("wasmvol serve") && said.contains("--runtime-dir"), "{line}: {said}");
    }
}

#[test]
fn status_shows_who_holds_what() {
    let wasmvol = Wasmvol::start();
    let id = "0123456789abcdef".repeat(4);
    wasmvol.plugin().create("held", &[]).unwrap();
    wasmvol.plugin().mount("held", &id).unwrap();
    wasmvol.cli("volume mount held").ok();
    let text = wasmvol.cli("status").ok();
    assert!(text.contains("1, 1 mounted"), "{text}");
    assert!(text.contains("0123456789ab ") && text.contains("wasmvol"), "{text}");
    assert!(
        text.lines().any(|line| line.starts_with("troubles") && line.ends_with("none")),
        "{text}"
    );
    let status = wasmvol.json("status");
    assert_eq!(status["pid"], wasmvol.daemon());
    assert_eq!(status["drivers"]["local"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["mounted"][0]["status"]["holders"][0]["id"], id);
}

#[test]
fn a_catalog_is_the_same_from_a_daemon_and_from_its_directory() {
    let mut wasmvol = Wasmvol::start();
    wasmvol.cli("volume create first -o mode=0700").ok();
    let running = wasmvol.cli("catalog export").ok();
    assert!(wasmvol.stop().success());
    let state = wasmvol.state();
    let stopped = wasmvol.cli(&format!("catalog export --state-dir {}", state.display())).ok();
    assert_eq!(stopped, running);
}

#[test]
fn an_import_is_refused_while_a_daemon_runs_and_where_there_are_volumes() {
    let mut wasmvol = Wasmvol::start();
    wasmvol.cli("volume create in-the-way").ok();
    let file = wasmvol.path("records");
    fs::write(&file, wasmvol.cli("catalog export").ok()).unwrap();
    let state = wasmvol.state();
    let import = format!("catalog import {} --state-dir {}", file.display(), state.display());
    assert!(complaint(&wasmvol.cli(&import)).contains("a daemon runs"));
    assert!(wasmvol.stop().success());
    assert!(complaint(&wasmvol.cli(&import)).contains("it holds 1 volumes"));
}

#[test]
fn the_lines_of_the_readme_move_volumes_to_another_machine() {
    let readme = include_str!("../../README.md");
    let (_, moving) = readme.split_once("**Moved to another machine**").unwrap();
    let lines = moving.split("```").nth(1).unwrap().lines().skip(1);

    let old = Wasmvol::start();
    old.cli("volume create first -o mode=0700 -o uid=4711").ok();
    old.cli("volume create second -d tmpfs -o size=1m").ok();
    let mountpoint = old.cli("volume mount first").ok();
    fs::write(format!("{mountpoint}/file"), "hello").unwrap();
    old.cli("volume unmount first").ok();
    old.wait_unmounted("first");
    let records = old.cli("catalog export").ok();

    let (mut new, files) = (Wasmvol::start(), Scratch::new());
    let mut is_new = false;
    for line in lines {
        let line = line.trim_start_matches("sudo ");
        match line.split_whitespace().take(2).collect::<Vec<_>>()[..] {
            ["#", _] => is_new = line.contains("new"),
            ["systemctl", "stop"] => assert!(new.stop().success()),
            ["systemctl", "start"] => new.run(),
            _ => {
                let at = if is_new { &new } else { &old };
                let line = line.replace("/var/lib/wasmvol", &at.state().display().to_string());
                at.shell(&format!("cd {} && {line}", files.path().display())).ok();
            }
        }
    }

    assert_eq!(new.cli("catalog export").ok(), records);
    assert_eq!(new.plugin().list(), ["first", "second"]);
    let mountpoint = new.cli("volume mount first").ok();
    assert_eq!(fs::read_to_string(format!("{mountpoint}/file")).unwrap(), "hello");
    assert_eq!(fs::metadata(&mountpoint).unwrap().uid(), 4711);
    new.cli("volume unmount first").ok();
    new.wait_unmounted("first");
    assert_eq!(findings(&new, ""), []);
}

#[test]
fn doctor_finds_nothing_where_nothing_is_wrong() {
    let wasmvol = Wasmvol::start();
    wasmvol.cli("volume create fine").ok();
    wasmvol.cli("volume mount fine").ok();
    assert_eq!(findings(&wasmvol, ""), []);
    let outcome = wasmvol.cli("doctor");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), ""));
    assert_eq!(outcome.stderr.trim(), "nothing is wrong");
}

#[test]
fn doctor_finds_a_stale_socket_and_its_cure_removes_it() {
    let wasmvol = Wasmvol::start();
    let stale = wasmvol.plugin().socket.with_file_name("other.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let (why, cure) = finding(&wasmvol, "", stale.to_str().unwrap());
    assert!(why.contains("15 s"), "{why}");
    wasmvol.shell(&cure).ok();
    assert_eq!(findings(&wasmvol, ""), []);
}

#[test]
fn doctor_finds_a_plugin_of_the_same_name_and_its_cure_removes_it() {
    let wasmvol = Wasmvol::start();
    let other = wasmvol.plugin().socket.with_file_name("wasmvol");
    fs::create_dir(&other).unwrap();
    let other = other.join("wasmvol.sock");
    let _listener = UnixListener::bind(&other).unwrap();
    let (_, cure) = finding(&wasmvol, "", other.to_str().unwrap());
    wasmvol.shell(&cure).ok();
    assert_eq!(findings(&wasmvol, ""), []);
}

#[test]
fn doctor_finds_a_volume_whose_storage_has_gone_and_its_cure_removes_it() {
    let mut wasmvol = Wasmvol::start();
    wasmvol.cli("volume create robbed").ok();
    let id = wasmvol.entries("volumes").remove(0);
    assert!(wasmvol.stop().success());
    fs::remove_dir_all(wasmvol.state().join("volumes").join(id)).unwrap();
    wasmvol.run();
    assert!(wasmvol.cli("volume ls").ok().contains("missing"), "it is shown, not forgotten");
    let (why, cure) = finding(&wasmvol, "", "robbed");
    assert!(why.contains("storage is gone"), "{why}");
    complaint(&wasmvol.cli("volume mount robbed"));
    wasmvol.shell(&cure).ok();
    assert_eq!(findings(&wasmvol, ""), []);
}

#[test]
fn doctor_finds_who_keeps_a_volume_from_being_unmounted() {
    let wasmvol = Wasmvol::start();
    wasmvol.cli("volume create draining -d tmpfs").ok();
    let mountpoint = wasmvol.cli("volume mount draining").ok();
    let container = Container::with(mountpoint.as_ref());
    wasmvol.cli("volume unmount draining").ok();
    let (why, cure) = finding(&wasmvol, "", "draining");
    assert!(why.starts_with("draining: ") && why.contains("process "), "{why}");
    assert!(cure.starts_with("docker ps --filter volume=draining"), "{cure}");
    drop(container);
    wasmvol.wait_unmounted("draining");
    assert_eq!(findings(&wasmvol, ""), []);
}

#[test]
fn doctor_finds_what_belongs_to_nobody_and_nothing_deletes_it() {
    let mut wasmvol = Wasmvol::start();
    let stray = wasmvol.state().join("volumes/0123456789abcdef0123456789abcdef");
    fs::create_dir(&stray).unwrap();
    wasmvol.kill_daemon();
    let (why, _) = finding(&wasmvol, "", "0123456789abcdef0123456789abcdef");
    assert!(why.contains("belongs to no volume"), "{why}");
    assert!(stray.exists());
}

#[test]
fn doctor_finds_strays_wherever_they_lie_and_its_cure_puts_them_aside() {
    let wasmvol = Wasmvol::start();
    for stray in ["volumes/0123456789abcdef0123456789abcdef", "volumes/old", "trash/old.too"] {
        let place = wasmvol.state().join(stray);
        fs::create_dir(&place).unwrap();
        fs::write(place.join("file"), stray).unwrap();
        let name = place.file_name().unwrap().to_str().unwrap();
        let (why, cure) = finding(&wasmvol, "", name);
        assert!(why.contains(place.parent().unwrap().to_str().unwrap()), "{why}");
        wasmvol.shell(&cure).ok();
        let aside = wasmvol.state().join(format!("stray-{name}/file"));
        assert_eq!(fs::read_to_string(aside).unwrap(), stray, "it is put aside whole");
        assert_eq!(findings(&wasmvol, ""), []);
    }
}

#[test]
fn doctor_shows_where_a_stray_lies_whose_name_cannot_be_typed() {
    let wasmvol = Wasmvol::start();
    let stray = wasmvol.state().join("volumes/two\nlines; rm -rf x");
    fs::create_dir(&stray).unwrap();
    let all = findings(&wasmvol, "");
    let (what, _, cure) = &all[0];
    assert!(!format!("{what}{cure}").contains('\n'));
    assert!(wasmvol.shell(cure).ok().contains(r"two\nlines;\ rm\ -rf\ x"), "it is listed");
}

#[test]
fn doctor_finds_what_lies_beside_the_mountpoints_and_its_cure_takes_it_away() {
    let wasmvol = Wasmvol::start();
    let anchor = wasmvol.anchor().display().to_string();
    let remount = |how: &str| format!("mount -o remount,bind,{how} {anchor}");
    wasmvol.shell(&format!("{} && mkdir {anchor}/odd && {}", remount("rw"), remount("ro"))).ok();
    let (_, cure) = finding(&wasmvol, "", "odd");
    wasmvol.shell(&cure).ok();
    assert_eq!(findings(&wasmvol, ""), []);
    wasmvol.shell(&format!("mkdir {anchor}/again")).refused();
}

#[test]
fn doctor_tells_of_what_was_kept_as_of_no_trouble_and_names_what_ends_it() {
    let mut wasmvol = Wasmvol::start();
    wasmvol.cli("volume create keeper -o reclaim=retain").ok();
    let id = wasmvol.entries("volumes").remove(0);
    fs::write(wasmvol.state().join("volumes").join(&id).join("data/file"), "precious").unwrap();
    wasmvol.cli("volume rm keeper").ok();
    // Its name is free, and its successor is another.
    wasmvol.cli("volume create keeper").ok();
    wasmvol.kill_daemon();
    assert_eq!(findings(&wasmvol, ""), []);
    let doctor = wasmvol.cli("doctor");
    assert_eq!((doctor.code, doctor.stdout.as_str()), (Some(0), ""));
    let note = "data of removed volumes is kept, as asked: 1; `wasmvol volume ls --retained` says where, `wasmvol volume purge ID` deletes it";
    assert_eq!(doctor.stderr, format!("nothing is wrong\n{note}\n"));
    let table = wasmvol.cli("volume ls --retained").ok();
    assert!(table.contains(&format!("/volumes/{id}/data")) && table.contains("keeper"), "{table}");
    wasmvol.cli(&format!("volume purge {id}")).ok();
    wasmvol.wait_reaped();
    assert!(!wasmvol.entries("volumes").contains(&id));
    assert_eq!(findings(&wasmvol, ""), []);
    assert_eq!(wasmvol.plugin().list(), ["keeper"]);
}

#[test]
fn nothing_but_kept_data_can_be_purged() {
    let wasmvol = Wasmvol::start();
    wasmvol.cli("volume create there").ok();
    let there = wasmvol.entries("volumes").remove(0);
    let unknown = "0123456789abcdef0123456789abcdef";
    for id in [there.as_str(), unknown] {
        let said = complaint(&wasmvol.cli(&format!("volume purge {id}")));
        assert!(said.contains(id) && said.contains("ls --retained"), "{said}");
    }
    for no_id in ["there", "../volumes", &there[..31], &there.to_uppercase().replace('0', "A")] {
        assert_eq!(wasmvol.cli(&format!("volume purge {no_id}")).code, Some(2), "{no_id}");
    }
    assert_eq!(wasmvol.entries("volumes"), [there]);
}

#[test]
fn kept_data_that_was_moved_away_by_hand_is_purged_all_the_same() {
    let wasmvol = Wasmvol::start();
    wasmvol.cli("volume create wanted -o reclaim=retain").ok();
    wasmvol.cli("volume rm wanted").ok();
    let kept = wasmvol.json("volume ls --retained");
    let (id, data) = (kept[0]["id"].as_str().unwrap(), kept[0]["data"].as_str().unwrap());
    fs::rename(data, wasmvol.path("moved")).unwrap();
    assert_eq!(wasmvol.cli(&format!("volume purge {id}")).ok(), id);
    assert_eq!(wasmvol.json("volume ls --retained"), json!([]));
    assert!(wasmvol.path("moved").exists());
}

#[test]
fn doctor_finds_a_volume_that_cannot_be_mounted_again_and_its_cure_lets_it_go() {
    let mut wasmvol = Wasmvol::start();
    wasmvol.cli("volume create lost").ok();
    let mountpoint = wasmvol.cli("volume mount lost").ok();
    let id = wasmvol.entries("volumes").remove(0);
    let data = wasmvol.state().join("volumes").join(id).join("data");
    wasmvol.kill_mountd();
    wasmvol.shell(&format!("umount {mountpoint}")).ok();
    fs::remove_dir(&data).unwrap();
    fs::write(&data, "in the way").unwrap();
    wasmvol.run();
    until("it could not be mounted again", SOON, || {
        let status = wasmvol.json("volume inspect lost");
        status["status"]["health"].as_str().unwrap().contains("is not mounted").then_some(())
    });
    let (why, cure) = finding(&wasmvol, "", "lost");
    assert!(why.starts_with("degraded: is not mounted: "), "{why}");
    wasmvol.shell(&cure).ok();
    assert_eq!(findings(&wasmvol, ""), []);
}

/// Every subcommand that a person types, in an order in which each has something to do.
const COMMANDS: &[&str] = &[
    "volume create first",
    "volume create kept -o reclaim=retain",
    "volume ls",
    "volume scan",
    "volume inspect first",
    "volume du first",
    "volume mount first",
    "status",
    "volume unmount first",
    "volume rm first kept",
    "volume ls --retained",
    "volume purge KEPT",
    "driver load COMPONENT --name extra",
    "driver ls",
    "driver inspect extra",
    "driver inspect COMPONENT",
    "driver push COMPONENT REGISTRY/extra:1",
    "driver pull REGISTRY/extra:1 --output PULLED",
    "driver load REGISTRY/extra:1 --name extra",
    "driver set extra colour=red",
    "driver load ANOTHER --name extra",
    "driver rollback extra",
    "driver grant extra dev",
    "driver revoke extra dev",
    "driver unload extra",
    "secret set nas --driver local --peer nas.example --file EXPORT",
    "secret ls",
    "secret rm nas",
    "doctor",
    "catalog import EXPORT --state-dir STATE",
];

#[test]
fn du_counts_what_the_files_of_a_volume_take() {
    let wasmvol = Wasmvol::start();
    wasmvol.cli("volume create counted").ok();
    // Mounted or not, a directory can be counted.
    let before = wasmvol.json("volume du counted")["counted"].clone();
    assert_eq!(before["files"], 1);
    let place = PathBuf::from(wasmvol.cli("volume mount counted").ok().trim());
    fs::write(place.join("file"), vec![1; 1 << 20]).unwrap();
    fs::hard_link(place.join("file"), place.join("its-other-name")).unwrap();
    fs::File::open(&place).unwrap().sync_all().unwrap();
    let after = wasmvol.json("volume du counted")["counted"].clone();
    assert_eq!((&after["files"], &after["unread"]), (&json!(2), &json!(0)));
    let grown = after["bytes"].as_u64().unwrap() - before["bytes"].as_u64().unwrap();
    assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&grown), "{grown} bytes more");
    let table = wasmvol.cli("volume du counted").ok();
    assert!(table.contains("counted") && table.contains("MiB"), "{table}");
    wasmvol.cli("volume create unmade -d tmpfs").ok();
    let refused = wasmvol.cli("volume du unmade");
    assert!(refused.stderr.contains("not mounted"), "{}", refused.stderr);
}

#[test]
fn every_command_prints_json_when_asked() {
    let mut wasmvol = Wasmvol::start();
    let mut kept = String::new();
    fs::write(wasmvol.path("export"), "anything").unwrap();
    let registry = Registry::open();
    for command in COMMANDS {
        if command.starts_with("catalog import") {
            let export = wasmvol.cli("catalog export --json").ok();
            for line in export.lines() {
                serde_json::from_str::<Value>(line).unwrap();
            }
            fs::write(wasmvol.path("export"), export).unwrap();
            assert!(wasmvol.stop().success());
            fs::remove_file(wasmvol.state().join("catalog/catalog.redb")).unwrap();
        }
        let line = command
            .replace("KEPT", &kept)
            .replace("ANOTHER", crate::drivers::component("guests/version1.wasm").to_str().unwrap())
            .replace("COMPONENT", crate::drivers::hostile().to_str().unwrap())
            .replace("REGISTRY", &registry.host())
            .replace("PULLED", wasmvol.path("pulled").to_str().unwrap())
            .replace("EXPORT", wasmvol.path("export").to_str().unwrap())
            .replace("STATE", wasmvol.state().to_str().unwrap());
        let outcome = wasmvol.cli(&format!("{line} --json"));
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
        let said: Value = serde_json::from_str(&outcome.stdout)
            .unwrap_or_else(|e| panic!("{line}: {e} in {:?}", outcome.stdout));
        let is_shown = ["ls", "doctor"].iter().any(|verb| command.contains(verb));
        assert!(if is_shown { said.is_array() } else { said.is_object() }, "{line}: {said}");
        if *command == "volume ls --retained" {
            kept = said[0]["id"].as_str().unwrap().to_owned();
        }
    }
}

#[test]
fn no_command_is_left_out_of_the_table_of_those_that_print_json() {
    let wasmvol = Wasmvol::install();
    let subcommands = |of: &str| -> Vec<String> {
        let help = wasmvol.cli(&format!("{of} --help")).ok();
        let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let names = lines.map_while(|line| line.split_whitespace().next());
        names.filter(|name| *name != "help").map(|name| format!("{of} {name}")).collect()
    };
    let mut leaves: Vec<String> = Vec::new();
    for command in subcommands("") {
        let below = subcommands(&command);
        leaves.extend(if below.is_empty() { vec![command] } else { below });
    }
    assert!(leaves.len() > 10, "{leaves:?}");
    // `serve` prints nothing but its log; an export is lines of JSON, which are looked at beside the import; what `resize` prints is
    // looked at beside images, which have a size;
    // what `driver new` and `driver check` print has tests of its own.
    let elsewhere = [" serve", " catalog export", " volume resize", " driver new", " driver check"];
    leaves.retain(|leaf| !elsewhere.contains(&leaf.as_str()));
    for leaf in leaves {
        assert!(COMMANDS.iter().any(|line| line.starts_with(leaf.trim())), "{leaf}");
    }
}

#[test]
fn what_was_removed_is_told_where_the_next_one_is_refused() {
    let wasmvol = Wasmvol::start();
    wasmvol.cli("volume create first").ok();
    let outcome = wasmvol.cli("volume rm first absent --json");
    assert_eq!(outcome.code, Some(1));
    let said: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(said, json!({ "removed": ["first"] }));
    assert!(outcome.stderr.contains("volume `absent`: no such volume"), "{outcome:?}");
}

#[test]
fn doctor_finds_that_no_daemon_runs_and_which_mounts_stayed() {
    let mut wasmvol = Wasmvol::start();
    wasmvol.cli("volume create staying").ok();
    wasmvol.cli("volume mount staying").ok();
    wasmvol.kill_mountd();
    let arguments = format!("--plugin-dir {}", wasmvol.plugin().socket.parent().unwrap().display());
    let (_, cure) = finding(&wasmvol, &arguments, "daemon");
    assert!(cure.contains("wasmvol serve"));
    finding(&wasmvol, &arguments, wasmvol.anchor().to_str().unwrap());
    let (_, cure) = finding(&wasmvol, &arguments, wasmvol.plugin().socket.to_str().unwrap());
    wasmvol.shell(&cure).ok();
    wasmvol.run();
    assert_eq!(findings(&wasmvol, ""), []);
}

/// What the doctor finds of a mount namespace, when it is typed behind these words.
fn namespace_finding(wasmvol: &Wasmvol, before: &str) -> Option<(String, String)> {
    let outcome = wasmvol.shell(&format!("{before} wasmvol doctor --json"));
    let found: Vec<Value> = serde_json::from_str(&outcome.stdout).unwrap();
    let finding = found.iter().find(|finding| finding["what"] == "mount namespace")?;
    let text = |key: &str| finding[key].as_str().unwrap().to_owned();
    Some((text("why"), text("cure")))
}

const UNSHARE: &str = "unshare --mount --propagation private";

#[test]
fn without_a_daemon_doctor_finds_that_its_own_mount_namespace_is_private() {
    let wasmvol = Wasmvol::install();
    let (why, cure) = namespace_finding(&wasmvol, UNSHARE).unwrap();
    assert!(why.starts_with("this process has a mount namespace of its own"), "{why}");
    let mended = format!("{UNSHARE} sh -c '{} && exec \"$@\"' sh", cure.split('#').next().unwrap());
    assert_eq!(namespace_finding(&wasmvol, &mended), None);
}

#[test]
fn doctor_finds_that_the_mount_namespace_of_the_daemon_has_become_private() {
    let mut wasmvol = Wasmvol::install();
    wasmvol.launch_as(wasmvol.serve(&["unshare", "--mount", "--propagation", "shared"]));
    wasmvol.wait_ready();
    assert_eq!(namespace_finding(&wasmvol, ""), None);
    assert_eq!(namespace_finding(&wasmvol, UNSHARE), None, "only the daemon's own counts");
    let daemon = wasmvol.daemon();
    let anchor = wasmvol.anchor().display().to_string();
    wasmvol.shell(&format!("nsenter --target {daemon} --mount mount --make-private {anchor}")).ok();
    let (why, cure) = namespace_finding(&wasmvol, "").unwrap();
    assert!(why.starts_with(&format!("the daemon, process {daemon}, has")), "{why}");
    assert!(why.contains(&format!("`{anchor}` is private")), "{why}");
    assert!(cure.contains("restart wasmvol") && cure.contains("`wasmvol serve`"), "{cure}");
    // As the cure says: a start outside of that namespace.
    assert!(wasmvol.stop().success());
    wasmvol.run();
    assert_eq!(namespace_finding(&wasmvol, ""), None);
}

#[test]
fn doctor_finds_that_the_program_that_mounts_is_not_there() {
    let place = Scratch::new();
    let alone = place.path().join("wasmvol");
    copy_program(&PROGRAMS.join("wasmvol"), &alone);
    let wasmvol = Wasmvol::install();
    let line = format!("{} doctor --json", alone.display());
    let outcome = wasmvol.shell(&line);
    assert!(outcome.stdout.contains("wasmvol-mountd"), "{outcome:?}");
    let mut serve = std::process::Command::new(&alone);
    let outcome = self::outcome("serve", serve.arg("serve").args(wasmvol.flags()));
    assert!(complaint(&outcome).contains("wasmvol-mountd"));
}
