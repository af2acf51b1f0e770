//! Does a registry that wants a password or TLS get what it wants, and nobody else the password?

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

use super::{Person, scratch};
use crate::support::registry::{Registry, USER};
use crate::support::{own_address, shell};

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

/// A server that answers each request by its path and whether it was sent a login; and the heads of what it was asked.
pub(super) fn server(
    address: Ipv4Addr,
    port: u16,
    answer: impl Fn(&str, bool) -> String + Send + 'static,
) -> Arc<Mutex<Vec<String>>> {
    let (listener, asked) = (TcpListener::bind((address, port)).unwrap(), Arc::default());
    let heads: Arc<Mutex<Vec<String>>> = Arc::clone(&asked);
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let lines = BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok);
            let head = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
            let path = head.split(' ').nth(1).unwrap_or_default();
            let has_login = head.to_lowercase().contains("authorization:");
            let answer = answer(path, has_login);
            heads.lock().unwrap().push(head);
            let end = "Content-Length: 0\r\nConnection: close\r\n\r\n";
            client.write_all(format!("HTTP/1.1 {answer}\r\n{end}").as_bytes()).unwrap();
        }
    });
    asked
}

#[test]
fn a_storage_that_a_registry_sends_to_gets_no_login_and_names_no_token_server() {
    for is_same_host in [true, false] {
        let (person, here) = (Person::new(), own_address());
        let host = format!("{here}:5000");
        let address = if is_same_host { here } else { own_address() };
        let storage = format!("http://{address}:5002");
        let to = format!("{storage}/blob");
        let registry = server(here, 5000, move |_, has_login| match has_login {
            true => format!("307 Temporary Redirect\r\nLocation: {to}"),
            false => "401 Unauthorized\r\nWWW-Authenticate: Basic realm=here".to_owned(),
        });
        let challenge =
            format!("401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"{storage}/token\"");
        let asked = server(address, 5002, move |_, _| challenge.clone());
        log_in(&person, &host, "open-sesame");
        person.refused(&format!("wasmvol driver pull {host}/drivers/scratch:1.0"));
        assert!(registry.lock().unwrap().last().unwrap().to_lowercase().contains("authorization:"));
        let asked = asked.lock().unwrap();
        let [one] = &asked[..] else { panic!("{asked:?}") };
        assert!(one.starts_with("GET /blob ") || one.starts_with("HEAD /blob "), "{one}");
        assert!(!one.to_lowercase().contains("authorization"), "{one}");
    }
}

#[test]
fn a_registry_that_sends_to_itself_gets_the_login_there_too() {
    let (person, address) = (Person::new(), own_address());
    let asked =
        server(address, 5000, |path, has_login| match (has_login, path.contains("/old/")) {
            (false, _) => "401 Unauthorized\r\nWWW-Authenticate: Basic realm=here".to_owned(),
            (true, true) => {
                format!("307 Temporary Redirect\r\nLocation: {}", path.replace("/old/", "/new/"))
            }
            (true, false) => "404 Not Found".to_owned(),
        });
    let host = format!("{address}:5000");
    log_in(&person, &host, "open-sesame");
    let error = person.refused(&format!("wasmvol driver pull {host}/drivers/old/scratch:1.0"));
    assert!(error.contains("the registry has no such tag or digest"), "{error}");
    let asked = asked.lock().unwrap();
    let last = asked.last().unwrap();
    assert!(last.contains("/new/") && last.to_lowercase().contains("authorization: "), "{asked:?}");
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
