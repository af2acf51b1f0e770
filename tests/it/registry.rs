//! Do drivers travel through a registry unharmed, only whole, and only from whom the operator believes?

mod broken;
mod private;
mod signed;

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::drivers::component;
use crate::support::registry::Registry;
use crate::support::shelf::assert_is_a_line;
use crate::support::wasmvol::Wasmvol;
use crate::support::{Outcome, Scratch, own_address};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";

/// A person with a home of their own, who may have a daemon or not.
struct Person {
    wasmvol: Wasmvol,
    home: Scratch,
}

impl Person {
    fn new() -> Self {
        Self::of(Wasmvol::install())
    }

    fn with_daemon() -> Self {
        Self::of(Wasmvol::start())
    }

    fn of(wasmvol: Wasmvol) -> Self {
        Self { wasmvol, home: Scratch::new() }
    }

    /// Runs a line of shell in the home.
    fn types(&self, line: &str) -> Outcome {
        let home = self.home.path().display();
        let own = "unset DOCKER_CONFIG XDG_CACHE_HOME SSL_CERT_FILE";
        self.wasmvol.shell(&format!("{own}; export HOME={home}; cd {home}; {line}"))
    }

    /// What a line is refused with.
    #[track_caller]
    fn refused(&self, line: &str) -> String {
        let outcome = self.types(line);
        let error = outcome.clone().refused();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
        let error = error.strip_prefix("wasmvol: ").unwrap_or_else(|| panic!("{outcome:?}"));
        assert_is_a_line(error);
        error.to_owned()
    }

    /// Runs `wasmvol LINE --json`, which must succeed.
    #[track_caller]
    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.types(&format!("wasmvol {line} --json")).ok()).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Where a download that broke off is kept.
    fn partials(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.file(".cache/wasmvol")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Makes a key pair with openssl: NAME.key and NAME.pub.
    fn makes_key(&self, name: &str) {
        let line = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256";
        let line = format!(
            "{line} -out {name}.key && openssl pkey -in {name}.key -pubout -out {name}.pub"
        );
        self.types(&line).ok();
    }

    /// Believes what a key has signed.
    fn believes(&self, name: &str) {
        let keys = self.wasmvol.config().with_file_name("keys.d");
        fs::create_dir_all(&keys).unwrap();
        fs::copy(self.file(&format!("{name}.pub")), keys.join(format!("{name}.pub"))).unwrap();
    }

    fn configures(&self, text: &str) {
        fs::write(self.wasmvol.config(), text).unwrap();
    }
}

fn scratch() -> String {
    component("guests/scratch.wasm").display().to_string()
}

/// Pushes a component to a new place in a registry, and answers its reference and digest.
fn pushed(person: &Person, registry: &Registry, name: &str, more: &str) -> (String, String) {
    let reference = format!("{}/drivers/{name}:1.0", registry.host());
    let done = person.json(&format!("driver push {} {reference} {more}", scratch()));
    (reference, done["digest"].as_str().unwrap().to_owned())
}

/// The same bytes with others of that length in the place of these.
fn replaced(bytes: &[u8], these: &[u8], others: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let places = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(these));
    for at in places.collect::<Vec<_>>() {
        bytes[at..at + these.len()].copy_from_slice(others);
    }
    bytes
}

fn layer_of(registry: &Registry, name: &str) -> String {
    let manifest = registry.manifest(&format!("drivers/{name}"), "1.0");
    manifest["layers"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_component_is_pulled_byte_for_byte_by_tag_and_by_digest() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, digest) = pushed(&person, &registry, "scratch", "");
    let pinned = format!("{}/drivers/scratch@{digest}", registry.host());
    for reference in [&reference, &pinned] {
        assert_eq!(person.types(&format!("wasmvol driver pull {reference}")).ok(), pinned);
        let pulled = fs::read(person.file("scratch.wasm")).unwrap();
        assert_eq!(pulled, fs::read(scratch()).unwrap());
        fs::remove_file(person.file("scratch.wasm")).unwrap();
    }
    let done = person.json(&format!("driver pull {reference} --output here"));
    assert_eq!((&done["digest"], &done["file"]), (&json!(digest), &json!("here")));
    assert_eq!(fs::read(person.file("here")).unwrap(), fs::read(scratch()).unwrap());
    assert_eq!(person.partials(), Vec::<PathBuf>::new());
    assert_eq!(pushed(&person, &registry, "scratch", "").1, digest, "its digest is its content's");
}

#[test]
fn what_is_pushed_has_the_form_that_other_tools_give_components() {
    let (person, registry) = (Person::new(), Registry::open());
    pushed(&person, &registry, "scratch", "");
    let manifest = registry.manifest("drivers/scratch", "1.0");
    let kinds = [&manifest["config"]["mediaType"], &manifest["layers"][0]["mediaType"]];
    assert_eq!(
        (kinds, &manifest["mediaType"]),
        ([CONFIG, LAYER].map(|k| json!(k)).each_ref(), &json!(MANIFEST))
    );
    let titles = json!({"org.opencontainers.image.title": "driver.wasm"});
    assert_eq!(manifest["layers"][0]["annotations"], titles);
    let config = fs::read(registry.blob(manifest["config"]["digest"].as_str().unwrap())).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["os"], &config["architecture"]), (&json!("wasip2"), &json!("wasm")));
    assert_eq!(config["layerDigests"], json!([manifest["layers"][0]["digest"]]));
    let names = |what: &str| {
        serde_json::from_value::<Vec<String>>(config["component"][what].clone()).unwrap()
    };
    assert!(names("exports").iter().any(|name| name.starts_with("wasmvol:driver/volumes@0.1.")));
    assert!(names("imports").iter().any(|name| name.starts_with("wasi:io/")), "{config}");
}

#[test]
fn a_driver_that_was_loaded_by_reference_is_there_after_a_restart_and_says_where_it_came_from() {
    let (mut person, registry) = (Person::with_daemon(), Registry::open());
    person.makes_key("release");
    person.believes("release");
    let (reference, digest) = pushed(&person, &registry, "scratch", "--sign release.key");
    let outcome = person.types(&format!("wasmvol driver load {reference}"));
    assert!(
        outcome.stderr.contains(&digest) && outcome.stderr.contains("signed by `release`"),
        "{outcome:?}"
    );
    assert_eq!(outcome.ok(), "scratch 0.1.0");
    let line = "openssl pkey -pubin -in release.pub -outform der | sha256sum | cut -d' ' -f1";
    let fingerprint = format!("sha256:{}", person.types(line).ok());
    let signed_by = json!({"key": "release", "fingerprint": fingerprint});
    let origin = json!({"reference": reference, "digest": digest, "signed_by": signed_by});
    for round in ["before", "after"] {
        let drivers = person.json("driver ls");
        let origins = drivers.as_array().unwrap().iter().filter(|d| d["name"] == "scratch");
        assert!(origins.map(|d| &d["origin"]).eq([&origin]), "{round}: {drivers}");
        let shown = person.types("wasmvol driver inspect scratch").ok();
        for part in [&reference, &digest, &fingerprint] {
            assert!(shown.contains(part.as_str()), "{part} is not in {shown}");
        }
        person.wasmvol.plugin().create(round, &[("driver", "scratch")]).unwrap();
        assert!(person.wasmvol.stop().success());
        // It needs no registry any more.
        fs::remove_file(registry.blob(&layer_of(&registry, "scratch"))).ok();
        person.wasmvol.run();
    }
    // The same bytes from a file are nobody's.
    person.types(&format!("wasmvol driver load {}", scratch())).ok();
    assert_eq!(person.json("driver inspect scratch")["origin"], Value::Null);
}

#[test]
fn what_a_registry_has_is_inspected_without_being_loaded() {
    let (person, registry) = (Person::with_daemon(), Registry::open());
    let (reference, digest) = pushed(&person, &registry, "scratch", "");
    let shown = person.types(&format!("wasmvol driver inspect {reference}")).ok();
    for part in ["memory, up to the operator's ceiling", &digest, "not verified"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let shown = person.json(&format!("driver inspect {reference}"));
    let said = |key: &str| shown[key].as_str().unwrap();
    assert!(said("pulled_from").ends_with(&format!("/scratch@{digest}")), "{shown}");
    assert!(said("signature").contains("not verified"), "{shown}");
    assert!(!person.types("wasmvol driver ls").ok().contains("scratch"));
}

#[test]
fn what_a_registry_has_is_checked_whatever_may_be_loaded() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, _) = pushed(&person, &registry, "checked", "");
    person.configures("signatures = \"required\"\n");
    let by_reference = person.json(&format!("driver check {reference}"));
    assert_eq!(by_reference["passed"], true, "{by_reference}");
    let by_file = person.json(&format!("driver check {}", scratch()));
    assert_eq!(by_reference["digest"], by_file["digest"]);
}

#[test]
fn a_file_is_told_from_a_reference() {
    let (person, registry) = (Person::with_daemon(), Registry::open());
    let (reference, _) = pushed(&person, &registry, "scratch", "");
    // A file that is there is meant, whatever it is called.
    let named = person.file(&reference);
    fs::create_dir_all(named.parent().unwrap()).unwrap();
    fs::write(&named, "no component").unwrap();
    let error = person.refused(&format!("wasmvol driver load {reference}"));
    assert!(error.contains("no WebAssembly component"), "{error}");
    for path in ["/r.example/a:1", "./r.example/a:1", "../r.example/a"] {
        let error = person.refused(&format!("wasmvol driver load {path}"));
        assert!(error.contains(path) && error.contains("No such file"), "{error}");
    }
    for neither in ["scratch.wasm", "build/scratch.wasm", "r.example/UPPER"] {
        let error = person.refused(&format!("wasmvol driver load {neither}"));
        assert!(error.contains("no file is called that") && error.contains(neither), "{error}");
    }
}

/// Puts an artifact into a registry, whose layer claims a size. Answers its reference.
fn artifact(
    registry: &Registry,
    name: &str,
    kinds: [&str; 2],
    config: &Value,
    size: Option<u64>,
) -> String {
    let repository = format!("drivers/{name}");
    let config = config.to_string();
    let layer = "no component";
    let (config_digest, layer_digest) = (
        registry.put_blob(&repository, config.as_bytes()),
        registry.put_blob(&repository, layer.as_bytes()),
    );
    let size = size.unwrap_or(layer.len() as u64);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": kinds[0], "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": kinds[1], "digest": layer_digest, "size": size}],
    });
    registry.put_manifest(&repository, "1.0", &manifest);
    format!("{}/{repository}:1.0", registry.host())
}

#[test]
fn what_cannot_be_loaded_is_refused_before_it_is_downloaded() {
    let (person, registry) = (Person::with_daemon(), Registry::open());
    let config = |exports: &[&str], imports: &[&str]| {
        let component = json!({"exports": exports, "imports": imports, "target": null});
        json!({"created": "2026-01-01T00:00:00Z", "author": null, "architecture": "wasm", "os": "wasip2",
               "layerDigests": [], "component": component})
    };
    let good = config(&["wasmvol:driver/volumes@0.1.0"], &[]);
    let image = "application/vnd.oci.image.config.v1+json";
    let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
    let module = json!({"created": "2026-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip1", "layerDigests": []});
    for (name, kinds, config, size, why) in [
        (
            "none",
            [CONFIG, LAYER],
            config(&["wasi:cli/run@0.2.0"], &[]),
            None,
            "does not export `wasmvol:driver/volumes`: it is no wasmvol driver",
        ),
        (
            "later",
            [CONFIG, LAYER],
            config(&["wasmvol:driver/volumes@7.0.0"], &[]),
            None,
            "speaks version 7.0.0 of the contract",
        ),
        (
            "greedy",
            [CONFIG, LAYER],
            config(&["wasmvol:driver/volumes@0.1.0"], &["wasi:keyvalue/store@0.2.0"]),
            None,
            "imports `wasi:keyvalue/store@0.2.0`, which is not on offer to drivers",
        ),
        (
            "large",
            [CONFIG, LAYER],
            good.clone(),
            Some((64 << 20) + 1),
            "its component has 67108865 bytes: at most 67108864 are allowed",
        ),
        (
            "image",
            [image, tar],
            json!({}),
            None,
            "is a container image, not a WebAssembly component",
        ),
        ("module", [CONFIG, LAYER], module, None, "is a core module, not a WebAssembly component"),
        (
            "chart",
            ["application/vnd.cncf.helm.config.v1+json", tar],
            json!({}),
            None,
            "is an artifact of type `application/vnd.cncf.helm.config.v1+json`, not",
        ),
        (
            "tar",
            [CONFIG, tar],
            good,
            None,
            "is an artifact of 1 layers, not a WebAssembly component",
        ),
    ] {
        let reference = artifact(&registry, name, kinds, &config, size);
        let layer = layer_of(&registry, name);
        for verb in ["load", "pull", "inspect"] {
            let error = person.refused(&format!("wasmvol driver {verb} {reference}"));
            assert!(
                error.starts_with(&format!("`{reference}`")) && error.contains(why),
                "{name}: {error}"
            );
        }
        let asked = format!("GET /v2/drivers/{name}/blobs/{layer}");
        assert!(!registry.log().contains(&asked), "{name} was downloaded");
    }
    assert!(!person.file("none.wasm").exists());
}

#[test]
fn a_file_that_no_wasmvol_would_load_is_not_pushed() {
    let (person, registry) = (Person::new(), Registry::open());
    let reference = format!("{}/drivers/bad:1", registry.host());
    let component = fs::read(scratch()).unwrap();
    let misnamed = replaced(&component, b"scratch", b"Scratch");
    let no_default = replaced(&component, b"64m", b"64x");
    for (bytes, why) in [
        (&misnamed[..], "`Scratch`"),
        (&no_default, "option `size` is not a size"),
        (b"no wasm", "is no WebAssembly component"),
        (b"\0asm\x01\0\0\0", "is a core module"),
        (b"\0asm\x0d\0\x01\0", "does not export `wasmvol:driver/volumes`"),
        (&component[..component.len() / 2], "is damaged"),
    ] {
        fs::write(person.file("bad.wasm"), bytes).unwrap();
        let error = person.refused(&format!("wasmvol driver push bad.wasm {reference}"));
        assert!(error.starts_with("`bad.wasm`: ") && error.contains(why), "{error}");
    }
    let digest = format!("{}/a@sha256:{}", registry.host(), "0".repeat(64));
    let error = person.refused(&format!("wasmvol driver push {} {digest}", scratch()));
    assert!(error.contains("push to a tag"), "{error}");
    assert!(!registry.log().contains("\"PUT "), "something was pushed");
}

#[test]
fn what_is_wrong_with_a_registry_is_one_line_that_says_what_to_do() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, _) = pushed(&person, &registry, "scratch", "");
    let host = registry.host();
    let nobody = format!("{}:5000", own_address());
    let other = format!("{host}/drivers/scratch@sha256:{}", "0".repeat(64));
    for (line, why) in [
        (format!("pull {nobody}/a:1"), format!("registry `{nobody}` cannot be reached: ")),
        (
            "pull no-such-host.invalid/a:1".to_owned(),
            "registry `no-such-host.invalid` cannot be reached: ".to_owned(),
        ),
        (
            format!("pull {host}/drivers/scratch:2"),
            format!("`{host}/drivers/scratch:2`: the registry has no such tag or digest"),
        ),
        (format!("pull {other}"), "the registry has no such tag or digest".to_owned()),
        (
            format!("pull {host}/drivers/none:1"),
            "the registry has no such tag or digest".to_owned(),
        ),
        (format!("pull {reference} --plain-http=false"), "say `--plain-http`".to_owned()),
        (
            format!("pull {reference} --output no/such/directory"),
            "`no/such/directory`: No such file".to_owned(),
        ),
        (
            format!("push {} {reference} --sign none.key", scratch()),
            "`none.key`: No such file".to_owned(),
        ),
    ] {
        let error = person.types(&format!("wasmvol driver {line}")).refused();
        let last = error.lines().last().unwrap();
        assert!(last.contains(&why), "{line}: {error}");
        assert_is_a_line(last.strip_prefix("wasmvol: ").unwrap());
    }
    let outcome = person.types("wasmvol driver pull scratch");
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("names no registry"), "{outcome:?}");
}

#[test]
fn progress_is_drawn_on_a_terminal_and_nowhere_else() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, _) = pushed(&person, &registry, "scratch", "");
    let pull = format!("wasmvol driver pull {reference}");
    let piped = person.types(&pull);
    assert!(!piped.stderr.contains(['\r', '\x1b', '#']), "{piped:?}");
    let push = format!("wasmvol driver push {} {}/drivers/other:1", scratch(), registry.host());
    let size = fs::metadata(scratch()).unwrap().len();
    let all = format!(" of {}.{} KiB", size / 1024, size % 1024 * 10 / 1024);
    for line in [pull, push] {
        let drawn = person.types(&format!("script --quiet --return --command '{line}' /dev/null"));
        let drawn = drawn.ok();
        assert!(drawn.contains(&format!("{}{all}", all.trim_start_matches(" of "))), "{drawn:?}");
        assert!(drawn.contains(&"#".repeat(30)), "{drawn:?}");
    }
}
