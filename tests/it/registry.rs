//! Do drivers travel through a registry unharmed, only whole, and only from whom the operator believes?

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;

use serde_json::{Value, json};

use crate::drivers::component;
use crate::support::registry::{Cutter, Registry, USER};
use crate::support::shelf::assert_is_a_line;
use crate::support::wasmvol::Wasmvol;
use crate::support::{Outcome, Scratch, own_address, shell};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

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
    assert!(!person.types("wasmvol driver ls").ok().contains("scratch"));
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
    for (bytes, why) in [
        (&b"no wasm"[..], "is no WebAssembly component"),
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
fn a_download_that_breaks_off_goes_on_from_where_it_was() {
    const CUT: usize = 20_000;
    let (person, registry) = (Person::new(), Registry::open());
    pushed(&person, &registry, "scratch", "");
    let layer = layer_of(&registry, "scratch");
    let cutter = Cutter::before(&registry, CUT);
    let reference = format!("{}/drivers/scratch:1.0", cutter.host());
    person.types(&format!("wasmvol driver pull {reference}")).ok();
    let component = fs::read(scratch()).unwrap();
    assert_eq!(fs::read(person.file("scratch.wasm")).unwrap(), component);
    let asked = cutter.take_asked();
    let tries = asked.matches(&format!("/blobs/{layer} ")).count();
    let ranges: Vec<usize> = asked
        .lines()
        .filter_map(|line| {
            line.to_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok()
        })
        .collect();
    assert!(
        tries > component.len() / CUT && ranges.len() == tries - 1,
        "{tries} tries: {ranges:?}"
    );
    assert!(ranges.is_sorted_by(|a, b| a < b), "{ranges:?}");
    assert_eq!(person.partials(), Vec::<PathBuf>::new());
}

#[test]
fn a_download_that_was_given_up_is_gone_on_with_by_the_next_command() {
    const CUT: usize = 20_000;
    let (person, registry) = (Person::new(), Registry::open());
    pushed(&person, &registry, "scratch", "");
    let cutter = Cutter::before(&registry, CUT);
    cutter.leave(1);
    let line = format!("wasmvol driver pull {}/drivers/scratch:1.0", cutter.host());
    let error = person.refused(&line);
    assert!(
        error.contains("the download broke off after ") && error.contains("goes on from there"),
        "{error}"
    );
    assert!(!person.file("scratch.wasm").exists());
    let [partial] = &person.partials()[..] else { panic!("{:?}", person.partials()) };
    let done = fs::metadata(partial).unwrap().len();
    assert!(error.contains(&format!("after {done} of ")), "{error}");
    cutter.take_asked();
    cutter.leave(usize::MAX);
    person.types(&line).ok();
    let asked = cutter.take_asked().to_lowercase();
    let range = asked.lines().find(|line| line.starts_with("range: ")).unwrap();
    assert_eq!(range, format!("range: bytes={done}-"));
    assert_eq!(fs::read(person.file("scratch.wasm")).unwrap(), fs::read(scratch()).unwrap());
}

#[test]
fn a_partial_download_that_was_changed_is_fetched_anew() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, _) = pushed(&person, &registry, "scratch", "");
    let layer = layer_of(&registry, "scratch");
    let cache = person.home.dir(".cache/wasmvol");
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
    let size = fs::metadata(scratch()).unwrap().len();
    for junk in [1_usize, 5000, usize::try_from(size).unwrap(), usize::try_from(size).unwrap() + 1]
    {
        let hex = layer.strip_prefix("sha256:").unwrap();
        fs::write(cache.join(format!("{hex}.part")), vec![7; junk]).unwrap();
        person.types(&format!("wasmvol driver pull {reference}")).ok();
        assert_eq!(
            fs::read(person.file("scratch.wasm")).unwrap(),
            fs::read(scratch()).unwrap(),
            "{junk}"
        );
        assert_eq!(person.partials(), Vec::<PathBuf>::new());
    }
}

#[test]
fn bytes_that_were_changed_on_the_registrys_disk_are_refused() {
    let (person, registry) = (Person::with_daemon(), Registry::open());
    let (reference, digest) = pushed(&person, &registry, "scratch", "");
    let manifest = registry.manifest("drivers/scratch", "1.0");
    let blob = |what: &Value| registry.blob(what["digest"].as_str().unwrap());
    let pinned = format!("{}/drivers/scratch@{digest}", registry.host());
    for (file, what, reference) in [
        (blob(&manifest["layers"][0]), "component", &reference),
        (blob(&manifest["config"]), "config", &reference),
        (registry.blob(&digest), "manifest", &pinned),
    ] {
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        let at = bad.iter().rposition(|byte| *byte == b'a').unwrap();
        bad[at] = b'b';
        fs::write(&file, bad).unwrap();
        for verb in ["load", "pull"] {
            let outcome = person.types(&format!("wasmvol driver {verb} {reference}"));
            let error = outcome.refused();
            // docker-registry looks at a manifest itself.
            let refused = error.contains(&format!(
                "`{reference}`: the registry's {what} is not what its digest says"
            ));
            assert!(refused || what == "manifest", "{what}: {error}");
        }
        fs::write(&file, good).unwrap();
    }
    assert_eq!(person.partials(), Vec::<PathBuf>::new());
    assert!(!person.types("wasmvol driver ls").ok().contains("scratch"));
    person.types(&format!("wasmvol driver load {reference}")).ok();
}

/// Docker's own file, as `docker login` would leave it.
fn log_in(person: &Person, host: &str, password: &str) {
    let auth = shell(&format!("printf '%s' '{USER}:{password}' | base64 -w0"), &[]).ok();
    let config = json!({"auths": {host: {"auth": auth}}});
    fs::write(person.home.dir(".docker").join("config.json"), config.to_string()).unwrap();
}

#[test]
fn a_private_registry_is_asked_with_what_docker_login_has_kept() {
    const PASSWORD: &str = "open-sesame";
    let (person, registry) = (Person::new(), Registry::private(PASSWORD));
    let reference = format!("{}/drivers/scratch:1.0", registry.host());
    let push = format!("wasmvol driver push {} {reference}", scratch());
    let hint = format!("`docker login {}`", registry.host());
    let error = person.refused(&push);
    assert!(error.contains("who has no password") && error.contains(&hint), "{error}");
    log_in(&person, &registry.host(), "a-wrong-one");
    let error = person.refused(&push);
    assert!(error.contains("refused `me`, whose password `") && error.contains(&hint), "{error}");
    assert!(!error.contains("a-wrong-one"), "{error}");
    log_in(&person, &registry.host(), PASSWORD);
    person.types(&push).ok();
    person.types(&format!("wasmvol driver pull {reference}")).ok();
    assert_eq!(fs::read(person.file("scratch.wasm")).unwrap(), fs::read(scratch()).unwrap());
    // From a directory that a variable names.
    fs::rename(person.file(".docker"), person.file("elsewhere")).unwrap();
    assert!(
        person.refused(&format!("wasmvol driver pull {reference}")).contains("who has no password")
    );
    person.types(&format!("DOCKER_CONFIG=$HOME/elsewhere wasmvol driver pull {reference}")).ok();
}

#[test]
fn a_credential_helper_is_asked_for_the_password() {
    const PASSWORD: &str = "open-sesame";
    let (person, registry) = (Person::new(), Registry::private(PASSWORD));
    let host = registry.host();
    let bin = person.home.dir("bin");
    let helper = |name: &str, script: &str| {
        let file = bin.join(format!("docker-credential-{name}"));
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let answer = json!({"ServerURL": host, "Username": USER, "Secret": PASSWORD});
    helper("good", &format!("[ \"$1\" = get ] && [ \"$(cat)\" = '{host}' ] && echo '{answer}'"));
    helper("empty", "echo 'credentials not found in native keychain'; exit 1");
    helper("broken", "echo open-sesame; exit 3");
    helper("garbled", "echo open-sesame");
    let push = format!("PATH=$HOME/bin:$PATH wasmvol driver push {} {host}/a:1", scratch());
    let configures = |config: Value| {
        fs::write(person.home.dir(".docker").join("config.json"), config.to_string()).unwrap();
    };
    for (name, why) in [
        ("empty", "who has no password"),
        ("broken", "`docker-credential-broken`: exit status: 3"),
        ("garbled", "`docker-credential-garbled`: its answer is not understood"),
        ("absent", "`docker-credential-absent`: No such file"),
    ] {
        configures(json!({"credsStore": name}));
        let error = person.refused(&push);
        assert!(error.contains(why) && !error.contains(PASSWORD), "{error}");
    }
    configures(json!({"credsStore": "good"}));
    person.types(&push).ok();
    configures(json!({"credsStore": "absent", "credHelpers": {host.clone(): "good"}}));
    person.types(&format!("PATH=$HOME/bin:$PATH wasmvol driver pull {host}/a:1")).ok();
}

/// A token server for [`USER`] with a password: its realm and the certificate of its key. It gives what is asked for.
fn token_server(person: &Person, password: &str) -> (String, PathBuf) {
    const PORT: u16 = 5001;
    let key = "openssl req -x509 -newkey rsa:2048 -nodes -keyout token.key -out token.crt -days 2 -subj /CN=tokens";
    person.types(key).ok();
    let auth = shell(&format!("printf '%s' '{USER}:{password}' | base64 -w0"), &[]).ok();
    let address = own_address();
    let listener = TcpListener::bind((address, PORT)).unwrap();
    let script = r#"
        b64() { base64 -w0 | tr '+/' '-_' | tr -d '='; }
        head=$(printf '{"typ":"JWT","alg":"RS256","x5c":["%s"]}' "$(openssl x509 -in token.crt -outform der | base64 -w0)" | b64)
        now=$(date +%s)
        body=$(printf '{"iss":"the-issuer","sub":"me","aud":"the-registry","exp":%s,"nbf":%s,"iat":%s,"jti":"1","access":[{"type":"repository","name":"%s","actions":[%s]}]}' \
            $((now + 600)) $((now - 60)) $now "$REPOSITORY" "$ACTIONS" | b64)
        signature=$(printf '%s.%s' "$head" "$body" | openssl dgst -sha256 -sign token.key -binary | b64)
        printf '{"token":"%s.%s.%s"}' "$head" "$body" "$signature"
    "#;
    let (place, crt) = (person.home.path().to_owned(), person.file("token.crt"));
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut lines =
                BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let is_known = headers.iter().any(|line| line.ends_with(&format!("Basic {auth}")));
            // GET /token?service=the-registry&scope=repository%3ANAME%3Apull%2Cpush HTTP/1.1
            let scope =
                first.split("scope=repository%3A").nth(1).unwrap().split(' ').next().unwrap();
            let (name, actions) = scope.split_once("%3A").unwrap();
            let actions: Vec<String> =
                actions.split("%2C").map(|action| format!("\"{action}\"")).collect();
            let variables: [(&str, OsString); 2] = [
                ("REPOSITORY", name.replace("%2F", "/").into()),
                ("ACTIONS", actions.join(",").into()),
            ];
            let token = shell(&format!("cd {}; {script}", place.display()), &variables).ok();
            let (status, body) =
                if is_known { ("200 OK", token) } else { ("401 Unauthorized", String::new()) };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            client.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    });
    (format!("http://{address}:{PORT}/token"), crt)
}

#[test]
fn a_registry_that_sends_for_a_token_gets_it() {
    const PASSWORD: &str = "open-sesame";
    let person = Person::new();
    let (realm, certificate) = token_server(&person, PASSWORD);
    let registry = Registry::with_tokens(&realm, &certificate);
    let reference = format!("{}/drivers/scratch:1.0", registry.host());
    let push = format!("wasmvol driver push {} {reference}", scratch());
    assert!(person.refused(&push).contains("who has no password"));
    log_in(&person, &registry.host(), PASSWORD);
    person.types(&push).ok();
    person.types(&format!("wasmvol driver pull {reference}")).ok();
    assert_eq!(fs::read(person.file("scratch.wasm")).unwrap(), fs::read(scratch()).unwrap());
}

#[test]
fn tls_is_spoken_and_only_to_whom_an_authority_of_this_machine_knows() {
    let (person, registry) = (Person::new(), Registry::with_tls());
    let reference = format!("{}/drivers/scratch:1.0", registry.host());
    let push = format!("driver push {} {reference}", scratch());
    // This machine's own addresses are spoken to without, unless told.
    let error = person.refused(&format!("wasmvol {push}"));
    assert!(error.contains("status 400") && error.contains("`--plain-http=false`"), "{error}");
    let error = person.refused(&format!("wasmvol {push} --plain-http=false"));
    assert!(
        error.contains("nobody whom this machine trusts has signed its certificate"),
        "{error}"
    );
    let known = format!("SSL_CERT_FILE={} wasmvol", registry.authority().display());
    person.types(&format!("{known} {push} --plain-http=false")).ok();
    person.types(&format!("{known} driver pull {reference} --plain-http=false")).ok();
    assert_eq!(fs::read(person.file("scratch.wasm")).unwrap(), fs::read(scratch()).unwrap());
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

/// A server that answers every request with the head of a manifest and bytes without an end: what no registry does.
fn endless() -> String {
    let address = own_address();
    let listener = TcpListener::bind((address, 5000)).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: {MANIFEST}\r\nConnection: close\r\n\r\n");
            let mut sent = client.write_all(head.as_bytes());
            while sent.is_ok() {
                sent = client.write_all(&[b' '; 4096]);
            }
        }
    });
    format!("{address}:5000")
}

#[test]
fn an_answer_without_an_end_is_cut_at_its_limit() {
    let person = Person::new();
    let error = person.refused(&format!("wasmvol driver pull {}/a:1", endless()));
    assert!(error.contains("its manifest is longer than 1048576 bytes"), "{error}");
}

#[test]
fn a_full_disk_is_told_and_leaves_no_half_of_a_file() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, _) = pushed(&person, &registry, "scratch", "");
    let small = person.home.dir("small");
    shell(&format!("mount -t tmpfs -o size=32k,mode=700 tmpfs {}", small.display()), &[]).ok();
    let error =
        person.refused(&format!("XDG_CACHE_HOME=$HOME/small wasmvol driver pull {reference}"));
    assert!(
        error.contains("No space left")
            && error.contains("make room, or name another place by XDG_CACHE_HOME"),
        "{error}"
    );
    fs::remove_dir_all(small.join("wasmvol")).unwrap();
    let outcome = person.types(&format!("wasmvol driver pull {reference} --output small/it"));
    assert!(outcome.refused().contains("`small/it`: No space left"));
    assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
}

#[test]
fn progress_is_drawn_on_a_terminal_and_nowhere_else() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, _) = pushed(&person, &registry, "scratch", "");
    let pull = format!("wasmvol driver pull {reference}");
    let piped = person.types(&pull);
    assert!(!piped.stderr.contains(['\r', '\x1b', '#']), "{piped:?}");
    let drawn = person.types(&format!("script --quiet --return --command '{pull}' /dev/null")).ok();
    let size = fs::metadata(scratch()).unwrap().len();
    let all = format!(" of {}.{} KiB", size / 1024, size % 1024 * 10 / 1024);
    assert!(drawn.contains(&format!("{}{all}", all.trim_start_matches(" of "))), "{drawn:?}");
    assert!(drawn.contains(&"#".repeat(30)), "{drawn:?}");
}

/// Puts a signature beside a component as cosign lays it out, made by openssl with a key of the person's over what `payload` says.
fn sign_by_hand(person: &Person, registry: &Registry, digest: &str, key: &str, payload: &Value) {
    let payload = payload.to_string();
    fs::write(person.file("payload"), &payload).unwrap();
    let sign = format!("openssl dgst -sha256 -sign {key}.key payload | base64 -w0");
    let signature = person.types(&sign).ok();
    let repository = "drivers/scratch";
    let (of_payload, of_config) =
        (registry.put_blob(repository, payload.as_bytes()), registry.put_blob(repository, b"{}"));
    let annotations = json!({"dev.cosignproject.cosign/signature": signature});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": of_config, "size": 2},
        "layers": [{"mediaType": PAYLOAD, "digest": of_payload, "size": payload.len(), "annotations": annotations}],
    });
    registry.put_manifest(repository, &tag_of(digest), &manifest);
}

/// What cosign signs of a manifest.
fn payload_of(digest: &str) -> Value {
    json!({
        "critical": {
            "identity": {"docker-reference": "r.example/somewhere"},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": {"creator": "a person"},
    })
}

fn tag_of(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

#[test]
fn openssl_verifies_what_we_sign_and_we_verify_what_it_signs() {
    let (person, registry) = (Person::new(), Registry::open());
    for key in ["ours", "theirs"] {
        person.makes_key(key);
    }
    person.configures("signatures = \"required\"\n");
    let (reference, digest) = pushed(&person, &registry, "scratch", "--sign ours.key");
    let manifest = registry.manifest("drivers/scratch", &tag_of(&digest));
    let layer = &manifest["layers"][0];
    assert_eq!(layer["mediaType"], PAYLOAD);
    let signature = layer["annotations"]["dev.cosignproject.cosign/signature"].as_str().unwrap();
    let payload = registry.blob(layer["digest"].as_str().unwrap());
    let text: Value = serde_json::from_slice(&fs::read(&payload).unwrap()).unwrap();
    assert_eq!(text["critical"]["image"]["docker-manifest-digest"], digest);
    assert_eq!(text["critical"]["type"], "cosign container image signature");
    let verify = format!(
        "echo {signature} | base64 -d >signature && openssl dgst -sha256 -verify ours.pub -signature signature {}",
        payload.display()
    );
    assert_eq!(person.types(&verify).ok(), "Verified OK");
    person.believes("ours");
    assert_eq!(person.json(&format!("driver pull {reference}"))["signed_by"]["key"], "ours");

    let pull = format!("wasmvol driver pull {reference}");
    sign_by_hand(&person, &registry, &digest, "theirs", &payload_of(&digest));
    let error = person.refused(&pull);
    assert!(
        error.contains("none of its signatures (1) is by a key that is trusted here"),
        "{error}"
    );
    person.believes("theirs");
    assert_eq!(person.json(&format!("driver pull {reference}"))["signed_by"]["key"], "theirs");
    // One more of ours lies beside it, once.
    for _ in 0..2 {
        pushed(&person, &registry, "scratch", "--sign ours.key");
    }
    let manifest = registry.manifest("drivers/scratch", &tag_of(&digest));
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
}

#[test]
fn a_key_as_cosign_makes_it_signs_with_its_password() {
    let (person, registry) = (Person::new(), Registry::open());
    fs::write(person.file("cosign.key"), include_str!("support/registry/cosign.key")).unwrap();
    fs::write(person.file("cosign.pub"), include_str!("support/registry/cosign.pub")).unwrap();
    person.believes("cosign");
    let push =
        format!("wasmvol driver push {} {}/a:1 --sign cosign.key", scratch(), registry.host());
    let error = person.refused(&push);
    assert!(
        error.contains("`cosign.key` has a password: give it by the variable COSIGN_PASSWORD"),
        "{error}"
    );
    let error = person.refused(&format!("COSIGN_PASSWORD=open-it {push}"));
    assert!(error.contains("has another password") && !error.contains("open-it"), "{error}");
    person.types(&format!("COSIGN_PASSWORD=sesame {push}")).ok();
    let pulled = person.json(&format!("driver pull {}/a:1", registry.host()));
    assert_eq!(pulled["signed_by"]["key"], "cosign");
}

#[test]
fn a_signature_that_is_of_something_else_or_was_changed_does_not_count() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, digest) = pushed(&person, &registry, "scratch", "");
    person.makes_key("release");
    let pull = format!("wasmvol driver pull {reference}");
    let other = format!("sha256:{}", "0".repeat(64));
    let mut untyped = payload_of(&digest);
    untyped["critical"]["type"] = json!("something else");
    for (payload, why) in [
        (payload_of(&other), "its signature is another component's"),
        (untyped, "its signature is another component's"),
        (json!({}), "its signature is another component's"),
    ] {
        sign_by_hand(&person, &registry, &digest, "release", &payload);
        // Nobody is asked before there is a key.
        let _none = fs::remove_dir_all(person.wasmvol.config().with_file_name("keys.d"));
        person.types(&pull).ok();
        person.believes("release");
        let error = person.refused(&pull);
        assert!(error.contains(why), "{error}");
    }
    // The payload on the registry's disk, and with its digest in the manifest: the signature is not of these bytes.
    sign_by_hand(&person, &registry, &digest, "release", &payload_of(&other));
    let mut manifest = registry.manifest("drivers/scratch", &tag_of(&digest));
    let changed = payload_of(&digest).to_string();
    manifest["layers"][0]["digest"] =
        json!(registry.put_blob("drivers/scratch", changed.as_bytes()));
    manifest["layers"][0]["size"] = json!(changed.len());
    registry.put_manifest("drivers/scratch", &tag_of(&digest), &manifest);
    let error = person.refused(&pull);
    assert!(
        error.contains("none of its signatures (1) is by a key that is trusted here"),
        "{error}"
    );
    sign_by_hand(&person, &registry, &digest, "release", &payload_of(&digest));
    person.types(&pull).ok();
}

#[test]
fn the_operators_policy_says_what_comes_in() {
    let (person, registry) = (Person::with_daemon(), Registry::open());
    person.makes_key("release");
    person.makes_key("stranger");
    let (unsigned, _) = pushed(&person, &registry, "unsigned", "");
    let (strange, _) = {
        // The same bytes have the same digest, but in another repository.
        pushed(&person, &registry, "strange", "--sign stranger.key")
    };
    let (signed, _) = pushed(&person, &registry, "signed", "--sign release.key");
    let [unsigned, strange, signed] = [&unsigned, &strange, &signed].map(String::as_str);
    let (file, shipped) = (scratch(), component("drivers/tmpfs.wasm").display().to_string());
    let not_signed =
        "it is not signed, and wasmvol.toml says `signatures = \"required\"`: say `--unsigned`";
    let no_key = "no key is in `";
    let a_file = "a file has no signature, and wasmvol.toml says";
    let strangers = "none of its signatures (1) is by a key that is trusted here";
    let all = [unsigned, strange, signed, file.as_str(), shipped.as_str()];
    let ok = "";
    for (policy, has_key, more, expected) in [
        ("", false, "", [ok; 5]),
        ("", true, "", [ok, strangers, ok, ok, ok]),
        ("off", true, "", [ok; 5]),
        ("required", false, "", [no_key, no_key, no_key, a_file, ok]),
        ("required", true, "", [not_signed, strangers, ok, a_file, ok]),
        ("required", true, "--unsigned", [ok, strangers, ok, ok, ok]),
        ("required", false, "--unsigned", [ok; 5]),
    ] {
        person.configures(&match policy {
            "" => String::new(),
            policy => format!("signatures = \"{policy}\"\n"),
        });
        let _none = fs::remove_dir_all(person.wasmvol.config().with_file_name("keys.d"));
        if has_key {
            person.believes("release");
        }
        for (what, why) in all.iter().zip(expected) {
            let line = format!("wasmvol driver load {what} {more}");
            let place = format!("`{policy}`, key: {has_key}: {line}");
            if why == ok {
                assert_eq!(person.types(&line).code, Some(0), "{place}");
            } else {
                let error = person.refused(&line);
                assert!(error.contains(why) && error.contains(what), "{place}: {error}");
            }
        }
    }
}

#[test]
fn who_is_not_root_pulls_and_believes_the_operators_keys() {
    let (person, registry) = (Person::new(), Registry::open());
    person.makes_key("release");
    person.believes("release");
    let (signed, _) = pushed(&person, &registry, "signed", "--sign release.key");
    person.makes_key("stranger");
    let (strange, _) = pushed(&person, &registry, "strange", "--sign stranger.key");
    let open =
        |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(person.wasmvol.path("."), 0o755);
    open(person.file("."), 0o777);
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let pull =
        |reference: &str| format!("{nobody} wasmvol driver pull {reference} --output theirs.wasm");
    person.types(&pull(&signed)).ok();
    assert_eq!(fs::read(person.file("theirs.wasm")).unwrap(), fs::read(scratch()).unwrap());
    assert!(person.refused(&pull(&strange)).contains("is by a key that is trusted here"));
}

#[test]
fn keys_are_the_operators_alone() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, _) = pushed(&person, &registry, "scratch", "");
    person.makes_key("release");
    person.believes("release");
    let keys = person.wasmvol.config().with_file_name("keys.d");
    let pull = format!("wasmvol driver pull {reference}");
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o777)).unwrap();
    let error = person.refused(&pull);
    assert!(error.contains("others than root can write to `"), "{error}");
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(keys.join("broken.pub"), "-----BEGIN PUBLIC KEY-----\nAAAA\n").unwrap();
    let error = person.refused(&pull);
    assert!(error.contains("`broken` is no public key on the curve P-256 in PEM"), "{error}");
    fs::rename(keys.join("broken.pub"), keys.join("README")).unwrap();
    person.types(&pull).ok();
}
