//! From nothing to a driver in use: does what `wasmvol driver new` writes build, pass its checks and serve volumes, in every language?
//!
//! The real tools build, and every line of a project's own README is typed. What a project is made of are the examples in
//! `drivers/examples/`, so this is their test as well.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::docker::Docker;
use crate::support::pair::Pair;
use crate::support::wasmvol::{PROGRAMS, Wasmvol};
use crate::support::{Outcome, Scratch, shell};

/// What every project's driver refuses, whatever it is written in.
const REFUSED: [(&str, &str, &str); 6] = [
    ("size", "0", "option `size`: must be at least 1 byte"),
    ("size", "1g", "option `size`: the operator's ceiling is 268435456 bytes"),
    ("inodes", "0", "option `inodes` must be at least 1: `0`"),
    ("inodes", "-5", "option `inodes` must be at least 1: `-5`"),
    ("mode", "9", "option `mode` must be octal and at most 7777, as in `0755`: `9`"),
    ("mode", "10000", "option `mode` must be octal and at most 7777, as in `0755`: `10000`"),
];

/// Where tools and crates are kept for the next run: beside the built programs.
fn kept() -> PathBuf {
    let kept = PROGRAMS.parent().unwrap().join("new");
    fs::create_dir_all(&kept).unwrap();
    kept
}

/// The lines that a page says to type.
fn lines_to_type(page: &str) -> Vec<&str> {
    let blocks = page.split("```sh\n").skip(1);
    blocks.flat_map(|block| block.split("```").next().unwrap().lines()).collect()
}

/// Makes a project and does with it what its README says; then asks the driver what the README does not.
fn is_a_driver(language: &str) {
    // cargo keeps what it has built of a place, and the SDK is built in its project: always the same place for one run at a time.
    let place = kept().join(language);
    let lock = File::create(place.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let _former = fs::remove_dir_all(&place);
    fs::create_dir(&place).unwrap();

    let pair = Pair::<Docker>::own();
    let name = format!("mine-{language}");
    let kept = kept();
    let type_in = |directory: &Path, line: &str| {
        let (directory, kept) = (directory.display(), kept.display());
        let keep = format!(
            "PIP_CACHE_DIR={kept}/pip npm_config_cache={kept}/npm CARGO_TARGET_DIR={kept}/rust-target"
        );
        pair.shell(&format!("cd {directory} && export {keep} && {line}"))
    };
    let written = type_in(&place, &format!("wasmvol driver new {name} --language {language}"));
    assert!(!written.stderr.contains("missing"), "{written:?}");
    assert_eq!(written.ok(), name);
    let project = place.join(&name);
    let page = fs::read_to_string(project.join("README.md")).unwrap();
    let lines = lines_to_type(&page);
    assert!(lines.contains(&"make check"), "{page}");
    let shown: String = lines.iter().map(|line| type_in(&project, line).ok() + "\n").collect();
    assert!(shown.lines().any(|line| line == "hello"), "{shown}");

    refuses_what_is_wrong(&pair.wasmvol, &name);
    limits_its_volumes(&pair.wasmvol, &name, &project.join("driver.wasm"));
}

fn refuses_what_is_wrong(wasmvol: &Wasmvol, driver: &str) {
    let plugin = wasmvol.plugin();
    for (option, value, why) in REFUSED {
        let error = plugin.create("bad", &[("driver", driver), (option, value)]).unwrap_err();
        assert_eq!(error, format!("driver `{driver}`: {why}"), "{option}={value}");
    }
    assert_eq!(plugin.list(), Vec::<String>::new());
}

fn limits_its_volumes(wasmvol: &Wasmvol, driver: &str, component: &Path) {
    let plugin = wasmvol.plugin();
    let load = |default: &str| {
        let component = component.display();
        let set = format!("--setting ceiling=256MiB --setting default={default}");
        wasmvol.cli(&format!("driver load {component} {set}")).ok();
    };
    // Both are written as an option is.
    load("1024K");
    let options = [("driver", driver), ("mode", "0750"), ("inodes", "20")];
    plugin.create("old", &options).unwrap();
    // Twice is the same.
    plugin.create("old", &options).unwrap();
    load("4mb");
    plugin.create("new", &[("driver", driver), ("exec", "true")]).unwrap();
    let mounted = |volume: &str| {
        plugin.mount(volume, "id").unwrap();
        let path = plugin.path(volume).unwrap();
        let line =
            format!("findmnt --noheadings --output OPTIONS {0} && stat -c %a {0}", path.display());
        (path, shell(&line, &[]).ok())
    };
    let (path, options) = mounted("old");
    for option in ["size=1024k", "nr_inodes=20", "noexec", "\n750"] {
        assert!(options.contains(option), "`{option}` is not there: {options}");
    }
    fs::write(path.join("small"), "kept while it is mounted").unwrap();
    assert_eq!(fs::read_to_string(path.join("small")).unwrap(), "kept while it is mounted");
    fs::write(path.join("large"), vec![1; 2 << 20]).unwrap_err();
    let (_, options) = mounted("new");
    assert!(options.contains("size=4096k") && options.contains("\n1777"), "{options}");
    assert!(!options.contains("noexec"), "{options}");
    for volume in ["old", "new"] {
        plugin.unmount(volume, "id").unwrap();
        plugin.remove(volume).unwrap();
    }
    assert_eq!(plugin.list(), Vec::<String>::new());
}

#[test]
fn a_new_project_in_rust_is_a_driver() {
    is_a_driver("rust");
}

#[test]
fn a_new_project_in_python_is_a_driver() {
    is_a_driver("python");
}

#[test]
fn a_new_project_in_javascript_is_a_driver() {
    is_a_driver("javascript");
}

#[test]
fn a_new_project_in_c_is_a_driver() {
    is_a_driver("c");
}

/// Types a line in a directory, with a `wasmvol` that has no daemon.
fn type_in(directory: &Scratch, line: &str) -> Outcome {
    let directory = directory.path().display();
    shell(&format!("PATH={}:$PATH; cd {directory} && {line}", PROGRAMS.display()), &[])
}

/// What is in a directory.
fn entries(directory: &Scratch) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_project_is_written_to_nothing_and_to_an_empty_directory_only() {
    let here = Scratch::new();
    here.dir("empty");
    fs::write(here.dir("full").join("mine"), "precious").unwrap();
    fs::write(here.path().join("file"), "precious").unwrap();
    std::os::unix::fs::symlink("nowhere", here.path().join("link")).unwrap();
    type_in(&here, "wasmvol driver new empty").ok();
    assert!(here.path().join("empty/Cargo.toml").exists());
    for taken in ["full", "file", "link", "empty"] {
        let error = type_in(&here, &format!("wasmvol driver new {taken}")).refused();
        assert_eq!(
            error,
            format!("wasmvol: `{taken}` is there already: take another name, or remove it")
        );
    }
    assert_eq!(fs::read_dir(here.path().join("full")).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(here.path().join("file")).unwrap(), "precious");
    assert_eq!(entries(&here).len(), 4, "{:?}", entries(&here));
}

#[test]
fn a_project_that_cannot_be_written_whole_leaves_nothing() {
    let here = Scratch::new();
    // Files of this shell may have 4 KiB.
    let error =
        type_in(&here, "trap '' XFSZ; ulimit -f 8; wasmvol driver new mine --language c").refused();
    assert!(error.starts_with("wasmvol: ") && error.contains("File too large"), "{error}");
    assert_eq!(entries(&here), Vec::<String>::new());
}

#[test]
fn a_name_that_is_no_drivers_is_refused() {
    let here = Scratch::new();
    for name in ["Mine", "2nd", "../mine", "a/b", "''", "a_b", ".", &"x".repeat(33)] {
        let outcome = type_in(&here, &format!("wasmvol driver new {name}"));
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.refused().contains("lower-case letters, digits and `-`"), "{name}");
    }
    assert_eq!(entries(&here), Vec::<String>::new());
}

#[test]
fn a_tool_that_is_missing_is_named_and_how_it_is_installed() {
    let here = Scratch::new();
    // A machine that has make and a shell, and no more.
    type_in(
        &here,
        "mkdir bin && ln -s $(command -v make) $(command -v sh) $(command -v wasmvol) bin/",
    )
    .ok();
    let path = format!("env PATH={}/bin", here.path().display());
    for (language, missing) in [
        ("rust", "cargo is missing: install Rust from https://rustup.rs"),
        ("python", "python3 is missing: apt-get install python3 python3-venv"),
        ("javascript", "node is missing: apt-get install nodejs npm"),
        ("c", "clang is missing: apt-get install clang wasi-libc libclang-rt-dev-wasm32"),
    ] {
        let written =
            type_in(&here, &format!("{path} wasmvol driver new {language} --language {language}"));
        assert!(written.stderr.lines().any(|line| line == missing), "{written:?}");
        assert_eq!(written.ok(), language);
        let error = type_in(&here, &format!("{path} make -C {language}")).refused();
        assert!(error.lines().any(|line| line == missing), "{error}");
    }
    let written = type_in(&here, "env PATH=/nowhere $(command -v wasmvol) driver new alone");
    assert!(written.stderr.ends_with("make is missing: apt-get install make\n"), "{written:?}");
    assert_eq!(written.ok(), "alone");
}

#[test]
fn a_tool_that_lacks_a_part_is_named_with_that_part() {
    let here = Scratch::new();
    // Debian's rustc has no rustup beside it, and not all that Rust's own has.
    let bin = "mkdir bin && \
        for tool in make sh sed clang wasm-ld; do ln -s $(command -v $tool) bin/ || exit; done && \
        printf '#!/bin/sh\necho /nowhere\n' >bin/rustc && chmod +x bin/rustc && \
        ln -s rustc bin/cargo && ln -s rustc bin/cc";
    type_in(&here, bin).ok();
    let path = format!("env PATH={}/bin", here.path().display());
    for (language, missing) in [
        (
            "rust",
            "Rust's library for wasm32-wasip2 is missing: install Rust from https://rustup.rs",
        ),
        ("c", "wasm-component-ld, which comes with Rust, is missing: see https://rustup.rs"),
    ] {
        type_in(&here, &format!("wasmvol driver new {language} --language {language}")).ok();
        let error = type_in(&here, &format!("{path} make -C {language}")).refused();
        assert!(error.lines().any(|line| line == missing), "{error}");
    }
}

#[test]
fn a_check_without_wasmvol_says_how_it_is_named() {
    let here = Scratch::new();
    type_in(&here, "wasmvol driver new mine --language c").ok();
    let error = type_in(&here, "make -C mine check WASMVOL=/nowhere/wasmvol").refused();
    let says = "wasmvol is missing: make check WASMVOL=PATH";
    assert!(error.lines().any(|line| line == says), "{error}");
}

#[test]
fn a_driver_whose_options_are_required_is_checked_with_those_of_its_makefile() {
    let here = Scratch::new();
    for language in ["rust", "python", "javascript", "c"] {
        type_in(&here, &format!("wasmvol driver new {language} --language {language}")).ok();
        let makefile = here.path().join(language).join("Makefile");
        let text = fs::read_to_string(&makefile).unwrap();
        let with = text.replacen("\nCHECK =\n", "\nCHECK = -o size=1m --grant image\n", 1);
        fs::write(&makefile, with).unwrap();
        let would = type_in(&here, &format!("make -C {language} --dry-run check")).ok();
        let asked = "wasmvol driver check driver.wasm -o size=1m --grant image";
        assert!(would.lines().any(|line| line == asked), "{would}");
    }
}

#[test]
fn a_feature_of_the_sdk_that_a_project_gets_later_is_in_its_lock_file_already() {
    let here = Scratch::new();
    type_in(&here, "wasmvol driver new mine").ok();
    let manifest = here.path().join("mine/Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let sdk = fs::read_to_string(here.path().join("mine/sdk/guest-sdk/Cargo.toml")).unwrap();
    let features = sdk.split("[features]\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let features: Vec<_> = features.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(features.contains(&"population") && features.contains(&"http"), "{features:?}");
    let plain = r#"wasmvol-sdk = { path = "sdk/guest-sdk" }"#;
    let with = format!(r#"wasmvol-sdk = {{ path = "sdk/guest-sdk", features = {features:?} }}"#);
    assert!(text.contains(plain), "{text}");
    fs::write(&manifest, text.replacen(plain, &with, 1)).unwrap();
    type_in(&here, "cd mine && cargo metadata --offline --locked --format-version 1").ok();
}

#[test]
fn a_project_in_rust_may_use_the_sdk_of_a_checkout() {
    let here = Scratch::new();
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().display();
    type_in(&here, &format!("wasmvol driver new mine --sdk {checkout}")).ok();
    assert!(!here.path().join("mine/sdk").exists());
    // Resolving reads the manifests of what it depends on.
    let line = "cd mine && cargo metadata --offline --locked --format-version 1";
    let metadata: serde_json::Value = serde_json::from_str(&type_in(&here, line).ok()).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let sdk = packages.iter().find(|package| package["name"] == "wasmvol-sdk").unwrap();
    assert_eq!(sdk["manifest_path"], format!("{checkout}/guest-sdk/Cargo.toml"));

    let error = type_in(&here, "wasmvol driver new other --sdk /etc").refused();
    assert_eq!(error, "wasmvol: `/etc` is no checkout of wasmvol: there is no `guest-sdk` in it");
    let error = type_in(&here, &format!("wasmvol driver new other --language c --sdk {checkout}"))
        .refused();
    assert_eq!(error, "wasmvol: `--sdk` is of Rust: other languages have none");
    assert_eq!(entries(&here), ["mine"]);
}

#[test]
fn a_program_is_told_what_was_written() {
    let here = Scratch::new();
    let text = type_in(&here, "wasmvol driver new mine --language python --json").ok();
    let directory = here.path().join("mine");
    let expected = json!({ "name": "mine", "language": "python", "directory": directory });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
}

#[test]
fn the_bindings_for_c_are_those_of_the_contract() {
    let ours =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("drivers/examples/c/bindings");
    // build.rs has made them from wit/.
    let made = Path::new(env!("OUT_DIR")).join("c");
    let mut files = 0;
    for entry in fs::read_dir(&made).unwrap() {
        let name = entry.unwrap().file_name();
        let same =
            fs::read(made.join(&name)).unwrap() == fs::read(ours.join(&name)).unwrap_or_default();
        assert!(same, "the contract has changed: cp {}/* {}", made.display(), ours.display());
        files += 1;
    }
    assert_eq!(files, fs::read_dir(&ours).unwrap().count());
}

/// Says that every volume is well.
const HEALTHY: &str = "
bool exports_wasmvol_driver_health_check(exports_wasmvol_driver_health_volume_t *volume,
    exports_wasmvol_driver_health_report_t *report, exports_wasmvol_driver_health_error_t *error)
{
    (void)volume;
    (void)error;
    report->condition = EXPORTS_WASMVOL_DRIVER_HEALTH_CONDITION_HEALTHY;
    driver_string_dup(&report->message, \"\");
    return true;
}
";

/// The same, in the words of two languages.
const HEALTHY_JAVASCRIPT: &str = "
export const health = {
  check() {
    return { condition: 'healthy', message: '' };
  },
};
";
const HEALTHY_PYTHON: &str = "

from wit_world.exports.health import Condition, Report


class Health(exports.Health):
    def check(self, volume):
        return Report(Condition.HEALTHY, \"\")
";

/// Whether a project's component tells its health.
fn tells_its_health(here: &Scratch, project: &str) {
    let report = type_in(here, &format!("wasmvol driver check {project}/driver.wasm --json")).ok();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let mut checks = report["checks"].as_array().unwrap().iter();
    let health = checks.find(|check| check["check"] == "its health is told").unwrap();
    assert_eq!(health["result"], "ok", "{report}");
}

#[test]
fn a_driver_in_javascript_or_python_gets_an_ability_by_a_world_of_its_own() {
    let here = Scratch::new();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(page.join("drivers/examples/README.md")).unwrap();
    let world = page.split("```wit\n").nth(1).unwrap().split("```").next().unwrap();
    let kept = kept();
    let kept = format!("PIP_CACHE_DIR={0}/pip npm_config_cache={0}/npm", kept.display());
    for (language, source, healthy) in
        [("javascript", "driver.js", HEALTHY_JAVASCRIPT), ("python", "driver.py", HEALTHY_PYTHON)]
    {
        type_in(&here, &format!("wasmvol driver new {language} --language {language}")).ok();
        let project = here.path().join(language);
        type_in(&here, &format!("export {kept} && make -C {language}")).ok();
        // What is there already must be made anew.
        fs::write(project.join("wit/mine.wit"), world).unwrap();
        let edit = |file: &str, edit: &dyn Fn(String) -> String| {
            let file = project.join(file);
            fs::write(&file, edit(fs::read_to_string(&file).unwrap())).unwrap();
        };
        edit("Makefile", &|text| text.replacen(" driver\n", " mine\n", 1));
        edit(source, &|text| text + healthy);
        type_in(&here, &format!("export {kept} && make -C {language}")).ok();
        tells_its_health(&here, language);
    }
}

#[test]
fn a_driver_in_c_gets_an_ability_by_bindings_of_the_same_names() {
    let here = Scratch::new();
    type_in(&here, "wasmvol driver new mine --language c").ok();
    let project = here.path().join("mine");
    // build.rs has made them as the page about the examples says.
    for entry in fs::read_dir(Path::new(env!("OUT_DIR")).join("c-mine")).unwrap() {
        let entry = entry.unwrap();
        let former = project.join("bindings").join(entry.file_name());
        assert!(former.exists(), "the Makefile has no `{}`", former.display());
        fs::copy(entry.path(), former).unwrap();
    }
    let source = project.join("driver.c");
    fs::write(&source, fs::read_to_string(&source).unwrap() + HEALTHY).unwrap();
    type_in(&here, "cd mine && make driver.wasm").ok();
    tells_its_health(&here, "mine");
}
