//! Do layers hold what is written, leave alone what lies below, and end when their users said so?

use std::fs;
use std::path::Path;

use crate::drivers::component;
use crate::support::wasmvol::Wasmvol;

/// A wasmvol with a volume `base` that holds the file `low`.
fn with_base() -> Wasmvol {
    let wasmvol = Wasmvol::start();
    let overlay = component("drivers/overlay.wasm");
    wasmvol.cli(&format!("driver load {}", overlay.display())).ok();
    wasmvol.plugin().create("base", &[]).unwrap();
    in_volume(&wasmvol, "base", |path| fs::write(path.join("low"), "base").unwrap());
    wasmvol
}

/// Does something in a volume as a container would.
fn in_volume<T>(wasmvol: &Wasmvol, name: &str, act: impl FnOnce(&Path) -> T) -> T {
    let plugin = wasmvol.plugin();
    let done = act(&plugin.mount(name, "id").unwrap());
    plugin.unmount(name, "id").unwrap();
    done
}

fn text(wasmvol: &Wasmvol, name: &str) -> String {
    in_volume(wasmvol, name, |path| fs::read_to_string(path.join("low")).unwrap())
}

const OVER: [(&str, &str); 2] = [("driver", "overlay"), ("over", "base")];

#[test]
fn a_volume_lies_over_another_one_that_stays_as_it_is_and_is_kept_while_it_is_needed() {
    let mut wasmvol = with_base();
    let plugin = wasmvol.plugin();
    for upper in ["first", "second"] {
        plugin.create(upper, &OVER).unwrap();
        plugin.create(upper, &OVER).expect("it is there already");
        in_volume(&wasmvol, upper, |path| fs::write(path.join("low"), upper).unwrap());
    }
    for name in ["base", "first", "second"] {
        assert_eq!(text(&wasmvol, name), name);
    }
    for _ in 0..2 {
        let error = plugin.remove("base").unwrap_err();
        assert!(error.contains("volume `first` lies over it: remove that one first"), "{error}");
        wasmvol.cli("volume rm --force base").refused();
        wasmvol.kill_daemon();
    }
    plugin.remove("first").unwrap();
    assert_eq!(text(&wasmvol, "second"), "second");
    let error = plugin.remove("base").unwrap_err();
    assert!(error.contains("volume `second` lies over it"), "{error}");
    plugin.remove("second").unwrap();
    plugin.remove("base").unwrap();
    wasmvol.wait_reaped();
}

#[test]
fn what_no_layer_can_lie_over_is_refused_and_holds_nothing() {
    let wasmvol = with_base();
    let plugin = wasmvol.plugin();
    plugin.create("memory", &[("driver", "tmpfs")]).unwrap();
    plugin.create("upper", &OVER).unwrap();
    for (below, why) in [
        ("nothing", "volume `nothing` cannot lie below: there is none of that name"),
        ("itself", "volume `itself` cannot lie below: there is none of that name"),
        ("memory", "volume `memory` cannot lie below: only a directory that wasmvol keeps can"),
        ("upper", "volume `upper` cannot lie below: only a directory that wasmvol keeps can"),
        ("../base", "`../base`"),
    ] {
        let options = [("driver", "overlay"), ("over", below)];
        let error = plugin.create("itself", &options).unwrap_err();
        assert!(error.contains(why), "{below}: {error}");
    }
    assert_eq!(plugin.list(), ["base", "memory", "upper"]);
    for name in ["upper", "memory", "base"] {
        plugin.remove(name).unwrap();
    }
}

#[test]
fn a_layer_that_is_reset_begins_anew_with_each_container_and_not_before() {
    let mut wasmvol = with_base();
    let plugin = wasmvol.plugin();
    plugin.create("fresh", &[&OVER[..], &[("reset", "true")]].concat()).unwrap();
    for _ in 0..2 {
        let path = plugin.mount("fresh", "first").unwrap();
        assert_eq!(fs::read_to_string(path.join("low")).unwrap(), "base");
        fs::write(path.join("low"), "mine").unwrap();
        plugin.mount("fresh", "second").unwrap();
        plugin.unmount("fresh", "first").unwrap();
        wasmvol.kill_daemon();
        wasmvol.kill_mountd();
        wasmvol.run();
        assert_eq!(fs::read_to_string(path.join("low")).unwrap(), "mine");
        plugin.unmount("fresh", "second").unwrap();
        wasmvol.wait_unmounted("fresh");
    }
    assert_eq!(text(&wasmvol, "fresh"), "base");
    wasmvol.wait_reaped();
}
