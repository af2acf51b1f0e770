//! Does an operator see what a driver is and wants before anything is granted, and is exactly that granted which the operator says?

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::drivers::component;
use crate::support::copy_program;
use crate::support::wasmvol::{PROGRAMS, Wasmvol};
use crate::swap::load;

/// The version that says it needs `suid` and a host.
const GREEDY: &str = "version1greedy";

/// What a driver was granted.
fn granted(wasmvol: &Wasmvol, driver: &str) -> Option<String> {
    fs::read_to_string(wasmvol.config().with_file_name("grants.d").join(driver)).ok()
}

/// The command that a message names in backticks.
#[track_caller]
fn command(message: &str) -> &str {
    let commands = message.split('`').find(|part| part.contains("wasmvol driver "));
    commands.unwrap_or_else(|| panic!("no command in: {message}"))
}

fn is_loaded(wasmvol: &Wasmvol, driver: &str) -> bool {
    wasmvol.cli(&format!("driver inspect {driver}")).code == Some(0)
}

#[test]
fn a_first_load_without_what_it_needs_is_refused_with_the_command_that_loads_it() {
    let wasmvol = Wasmvol::start();
    let error = load(&wasmvol, GREEDY, "--setting 'colour=dark red'").refused();
    let file = component(&format!("guests/{GREEDY}.wasm"));
    let line = format!(
        "wasmvol driver load {} --setting 'colour=dark red' --grant suid --grant http=https://api.example",
        file.display()
    );
    assert!(error.contains(&format!("`suid`, `http=https://api.example`: `{line}`")), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!is_loaded(&wasmvol, "version"));
    assert_eq!(granted(&wasmvol, "version"), None);
    wasmvol.shell(command(&error)).ok();
    let shown = wasmvol.json("driver inspect version");
    assert_eq!(shown["granted"], json!(["suid", "http=https://api.example"]));
    assert_eq!(shown["missing"], json!([]));
    assert_eq!(shown["settings"], json!({ "colour": "dark red" }));
}

#[test]
fn what_a_driver_shall_do_without_is_said_grant_by_grant() {
    let wasmvol = Wasmvol::start();
    let error = load(&wasmvol, GREEDY, "--without suid").refused();
    assert!(
        error.contains("needs what it was not granted: `http=https://api.example`:"),
        "{error}"
    );
    let outcome = load(&wasmvol, GREEDY, "--without suid --without http=https://api.example");
    assert_eq!(outcome.stderr, "");
    outcome.ok();
    let shown = wasmvol.json("driver inspect version");
    assert_eq!(
        (&shown["granted"], &shown["missing"]),
        (&json!([]), &json!(["suid", "http=https://api.example"]))
    );
    // The same version again wants no more than was decided on.
    let said = load(&wasmvol, GREEDY, "").stderr;
    assert!(
        said.contains("`wasmvol driver grant version suid http=https://api.example`"),
        "{said}"
    );
    wasmvol.shell(command(&said)).ok();
    assert_eq!(granted(&wasmvol, "version").unwrap(), "suid\nhttp=https://api.example\n");
}

#[test]
fn an_update_that_wants_more_than_before_is_refused_with_the_difference() {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, "version1", "--grant dev").ok();
    wasmvol.plugin().create("kept", &[("driver", "version")]).unwrap();
    for (more, wants) in [
        ("", "`suid`, `http=https://api.example`:"),
        ("--grant suid", "`http=https://api.example`:"),
    ] {
        let error = load(&wasmvol, GREEDY, more).refused();
        let says = format!("`version` 1.1.0 needs more than 1.0.0, which stays loaded: {wants}");
        assert!(error.contains(&says), "{error}");
        assert_eq!(wasmvol.json("driver inspect version")["version"], "1.0.0");
        assert_eq!(granted(&wasmvol, "version").unwrap(), "dev\n");
    }
    let error = load(&wasmvol, GREEDY, "--grant suid").refused();
    wasmvol.shell(command(&error)).ok();
    assert_eq!(wasmvol.json("driver inspect version")["version"], "1.1.0");
    assert_eq!(granted(&wasmvol, "version").unwrap(), "dev\nsuid\nhttp=https://api.example\n");
    // What wants less asks for nothing, and the grants stay.
    load(&wasmvol, "version1", "").ok();
    load(&wasmvol, GREEDY, "").ok();
}

#[test]
fn at_a_terminal_the_operator_is_asked_for_exactly_what_is_missing() {
    let wasmvol = Wasmvol::start();
    let load =
        format!("wasmvol driver load {}", component(&format!("guests/{GREEDY}.wasm")).display());
    let typed = |answer: &str, line: &str| {
        wasmvol.shell(&format!("printf '{answer}\\n' | script -qec '{line}' /dev/null"))
    };
    let question = "grant `suid`, `http=https://api.example` to `version`? [y/N]";
    for no in ["n", "", "yesterday"] {
        let outcome = typed(no, &load);
        assert_ne!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stdout.contains(question), "{outcome:?}");
        assert!(!is_loaded(&wasmvol, "version"));
    }
    let said = typed("y", &format!("{load} --grant suid")).ok();
    assert!(said.contains("grant `http=https://api.example` to `version`? [y/N]"), "{said}");
    assert_eq!(granted(&wasmvol, "version").unwrap(), "suid\nhttp=https://api.example\n");
    // What stands for something cannot be answered with yes.
    let nfs = component("drivers/nfs.wasm");
    let refused = typed("y", &format!("wasmvol driver load {} --name nas", nfs.display()));
    let says =
        "--grant share=nfs4:HOST --grant share=nfs:HOST`; capitals stand for what you fill in";
    assert!(refused.stdout.contains(says) && !refused.stdout.contains("[y/N]"), "{refused:?}");
    assert!(!is_loaded(&wasmvol, "nas"));
}

#[test]
fn what_came_with_wasmvol_is_loaded_without_what_it_needs() {
    let wasmvol = Wasmvol::start();
    wasmvol.cli("driver unload nfs").ok();
    let outcome = wasmvol.cli(&format!("driver load {}", component("drivers/nfs.wasm").display()));
    assert!(
        outcome.stderr.contains("`wasmvol driver grant nfs share=nfs4:HOST share=nfs:HOST`"),
        "{outcome:?}"
    );
    outcome.ok();
}

#[test]
fn a_refusal_names_the_command_that_grants_and_it_does() {
    let wasmvol = Wasmvol::start();
    let source = wasmvol.path("it's here");
    fs::create_dir(&source).unwrap();
    let device = source.display().to_string();
    let plugin = wasmvol.plugin();
    plugin.create("bound", &[("type", "none"), ("o", "bind"), ("device", &device)]).unwrap();
    let error = plugin.mount("bound", "id").unwrap_err();
    let quoted = device.replace('\'', r"'\''");
    let cure = format!("wasmvol driver grant local 'host-directory={quoted}'");
    assert!(error.ends_with(&format!("is not granted: `{cure}`, or one above it")), "{error}");
    assert_eq!(wasmvol.shell(&cure).ok(), format!("host-directory={device}"));
    plugin.mount("bound", "id").unwrap();
    // Twice is once.
    wasmvol.shell(&cure).ok();
    assert_eq!(granted(&wasmvol, "local").unwrap(), format!("host-directory={device}\n"));

    // What a volume needs is not taken away, mounted or not.
    for unmounted in [false, true] {
        if unmounted {
            plugin.unmount("bound", "id").unwrap();
        }
        let error = wasmvol.shell(&cure.replace(" grant ", " revoke ")).refused();
        assert!(error.contains("volume `bound` could not be mounted any more: "), "{error}");
        assert_eq!(granted(&wasmvol, "local").unwrap(), format!("host-directory={device}\n"));
    }
    plugin.remove("bound").unwrap();
    let left = wasmvol.json(&cure.replace(" grant ", " revoke ").replace("wasmvol ", ""));
    assert_eq!((&left["name"], &left["granted"]), (&json!("local"), &json!([])));
    assert_eq!(granted(&wasmvol, "local").unwrap(), "");
}

#[test]
fn grants_of_a_driver_that_is_not_loaded_or_that_are_none_are_refused() {
    let wasmvol = Wasmvol::start();
    for (line, why) in [
        ("driver grant nosuch suid", "no driver `nosuch` is loaded"),
        ("driver revoke nosuch suid", "no driver `nosuch` is loaded"),
        ("driver grant local everything", "`everything` is no grant"),
        ("driver revoke local suid", "`local` was not granted `suid`"),
    ] {
        let error = wasmvol.cli(line).refused();
        assert!(error.contains(why) && error.lines().count() == 1, "{line}: {error}");
    }
    assert_eq!((granted(&wasmvol, "nosuch"), granted(&wasmvol, "local")), (None, None));
    assert_eq!(wasmvol.cli("driver grant local").code, Some(2));
}

#[test]
fn grants_of_a_driver_that_was_unloaded_by_a_command_that_was_killed_go_with_the_next() {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, "version1", "--grant suid").ok();
    // What the command does first, and then it was gone.
    let socket = wasmvol.runtime().join("admin.sock");
    let line = format!(
        "curl -sf -X DELETE --unix-socket {} http://wasmvol/drivers/version",
        socket.display()
    );
    wasmvol.shell(&line).ok();
    assert_eq!(granted(&wasmvol, "version").unwrap(), "suid\n");
    let error = wasmvol.cli("driver unload version").refused();
    assert!(error.contains("what `version` was granted is taken away"), "{error}");
    assert!(error.contains("no driver `version` is loaded"), "{error}");
    assert_eq!(granted(&wasmvol, "version"), None);
}

#[test]
fn a_file_is_looked_into_without_a_daemon() {
    let wasmvol = Wasmvol::install();
    let file = component("guests/version2.wasm");
    // Whom its own file is open to does not matter.
    let hidden = wasmvol.path("hidden.wasm");
    fs::copy(&file, &hidden).unwrap();
    wasmvol.shell(&format!("chmod 0600 {}", hidden.display())).ok();
    let shown = wasmvol.json(&format!("driver inspect {}", hidden.display()));
    let bytes = fs::read(&file).unwrap();
    let sum = wasmvol.shell(&format!("sha256sum {}", file.display())).ok();
    assert_eq!(shown["digest"], sum.split(' ').next().unwrap());
    assert_eq!(shown["size"], bytes.len());
    assert_eq!(shown["contract"], "0.1");
    let abilities = json!({
        "attachment": false, "resizing": true, "population": false, "health": false, "migration": true
    });
    assert_eq!(shown["abilities"], abilities);
    assert_eq!(shown["description"]["version"], "2.0.0");
    let imports: Vec<_> =
        shown["imports"].as_array().unwrap().iter().map(|i| i.as_str().unwrap()).collect();
    assert!(imports.contains(&"wasmvol:driver/types@0.1.0"), "{imports:?}");

    let greedy = component(&format!("guests/{GREEDY}.wasm"));
    let table = wasmvol.cli(&format!("driver inspect {}", greedy.display())).ok();
    for line in [
        "version        1.1.0",
        "contract       0.1",
        "abilities      resizing",
        "grants needed  suid, http=https://api.example",
    ] {
        assert!(table.lines().any(|shown| shown == line), "`{line}` is not in {table}");
    }
    assert!(
        table.lines().any(|line| line.starts_with("size ") && line.ends_with(" KiB")),
        "{table}"
    );
    assert!(table.contains("stubborn   boolean   -         for tests"), "{table}");
}

#[test]
fn what_is_no_driver_is_said_of_its_file_without_a_daemon() {
    let wasmvol = Wasmvol::install();
    let file = wasmvol.path("bad.wasm");
    for (bytes, why) in [
        (&b"no wasm at all"[..], "is no WebAssembly component"),
        (b"\0asm\x01\0\0\0", "is a core module, not a component"),
        (b"\0asm\x0d\0\x01\0", "does not export `wasmvol:driver/volumes`"),
    ] {
        fs::write(&file, bytes).unwrap();
        let error = wasmvol.cli(&format!("driver inspect {}", file.display())).refused();
        assert!(error.contains(&format!("`{}`: {why}", file.display())), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let error = wasmvol.cli("driver inspect ./no-such.wasm").refused();
    assert!(error.contains("`./no-such.wasm`"), "{error}");
}

#[test]
fn a_component_is_looked_into_without_roots_privileges() {
    let wasmvol = Wasmvol::install();
    let program = wasmvol.path("wasmvol");
    copy_program(&PROGRAMS.join("wasmvol"), &program);
    let file = component("guests/version1.wasm");
    let inspect =
        || wasmvol.shell(&format!("{} driver inspect {}", program.display(), file.display()));
    let may_run = |mode| fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
    // A program that root alone may run is run by nobody else.
    may_run(0o700);
    let error = inspect().refused();
    assert!(error.contains("cannot be run to compile: Permission denied"), "{error}");
    may_run(0o755);
    inspect().ok();
}

#[test]
fn a_loaded_driver_shows_what_it_has_what_it_lacks_and_what_it_was() {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, "version1", "--setting colour=red").ok();
    wasmvol.plugin().create("kept", &[("driver", "version")]).unwrap();
    load(&wasmvol, GREEDY, "--grant suid --without http=https://api.example").ok();
    let table = wasmvol.cli("driver inspect version").ok();
    let previous =
        wasmvol.json("driver inspect version")["previous"]["digest"].as_str().unwrap().to_owned();
    for line in [
        "loaded as       version".to_owned(),
        "from            operator".to_owned(),
        "granted         suid".to_owned(),
        "grants missing  http=https://api.example".to_owned(),
        "settings        colour=red".to_owned(),
        "volumes         1".to_owned(),
        format!("rollback to     1.0.0 ({previous})"),
    ] {
        assert!(table.lines().any(|shown| shown == line), "`{line}` is not in {table}");
    }
    let shown = wasmvol.cli("driver inspect local").ok();
    assert!(shown.contains("rollback to     nothing"), "{shown}");
}
