//! Does a driver reach what it was granted and nothing else, and does a bad backend cost more than one call?

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};
use wasmvol_driver::{CallError, Driver, Scope};
use wasmvol_plan::kinds::http::HttpGrant;

use crate::backend::{self, Backend};
use crate::stage::{
    ENGINE, compiler, engine, guest, guest_path, logged, name, rogue, rogue_listing, volume_with,
};

/// A scope with these grants.
fn granted(grants: &[&str]) -> Scope {
    let grant = |text: &&str| HttpGrant::parse(text).expect("grant");
    Scope { http: grants.iter().map(grant).collect(), ..Scope::default() }
}

/// What comes of asking in `create`.
fn ask(driver: &Driver, how: &str, url: &str, grants: &[&str]) -> Result<String, String> {
    let volume = volume_with(how, url);
    let created = driver.create(volume.id, &volume.name, &volume.options, granted(grants));
    let state = created.map(|answer| String::from_utf8(answer.value.state).expect("text"));
    state.map_err(|error| error.to_string())
}

/// The same in `list`, which waits as long as its caller.
fn ask_within(
    how: &str,
    url: &str,
    grants: &[&str],
    within: Duration,
) -> Result<String, CallError> {
    let found = rogue_listing(how, url).list(granted(grants), within)?;
    Ok(found.into_iter().next().expect("what came of it").name)
}

#[test]
fn a_granted_origin_is_asked() {
    let backend = Backend::start(backend::good);
    let driver = rogue();
    let got = ask(&driver, "ask-get", &backend.url("/hello?x=1"), &[&backend.origin()]);
    assert_eq!(got.as_deref(), Ok("200, 22 bytes: /hello?x=1 and 0 bytes"));
    let url = format!("100000@{}", backend.url("/post"));
    let got = ask(&driver, "ask-post", &url, &[&backend.origin()]).expect("posts");
    assert!(got.ends_with("/post in pieces, 100000 and 0 bytes"), "{got}");
}

#[test]
fn what_is_not_granted_is_refused_with_the_grant_to_add() {
    let backend = Backend::start(backend::good);
    let port = backend.port();
    let driver = rogue();
    let other = [format!("http://127.0.0.2:{port}"), format!("http://127.0.0.1:{}", port ^ 1)];
    for (url, origin) in [
        (backend.url("/"), backend.origin()),
        // The scheme and the port are a part of it; who is named before the host is nobody.
        (format!("https://127.0.0.1:{port}/"), format!("https://127.0.0.1:{port}")),
        ("http://localhost/".to_owned(), "http://localhost".to_owned()),
    ] {
        let error = ask(&driver, "ask-get", &url, &[&other[0], &other[1]]).expect_err("refused");
        let start = format!("ErrorCode::HttpRequestDenied: `{origin}` is not granted: ");
        assert!(error.starts_with(&start), "{error}");
        assert!(error.contains(&format!("http={origin}")), "{error}");
    }
    let url = format!("http://granted@127.0.0.1:{port}/");
    let error = ask(&driver, "ask-get", &url, &[&backend.origin()]).expect_err("refused");
    assert!(error.contains("HttpRequestUriInvalid"), "{error}");
}

#[test]
fn a_name_leads_to_no_address_that_is_not_granted() {
    let backend = Backend::start(backend::good);
    let origin = format!("http://localhost:{}", backend.port());
    let url = format!("{origin}/");
    let driver = rogue();
    let error = ask(&driver, "ask-get", &url, &[&origin]).expect_err("loopback");
    assert!(error.starts_with("ErrorCode::DestinationIpProhibited: "), "{error}");
    assert!(error.contains(&format!("`{origin}` has the address ")), "{error}");
    assert!(error.contains(", which is not public: if it may be, "), "{error}");
    let got = ask(&driver, "ask-get", &url, &[&origin, "127.0.0.0/8", "::1/128"]);
    assert!(got.as_deref().is_ok_and(|got| got.starts_with("200, ")), "{got:?}");
}

#[test]
fn drivers_whose_backends_hang_leave_room_for_those_that_ask_nobody() {
    let cache = tempfile::tempdir().expect("cache");
    let engine = engine(cache.path(), compiler(), 4);
    let backend = Backend::start(backend::silent);
    let settings = [("do", "ask-get".to_owned()), ("with", backend.url("/"))];
    let asking = ["a", "b", "c", "d", "e"].map(|n| {
        let settings = settings.clone().map(|(key, value)| (key.to_owned(), value)).into();
        engine.load(&name(n), &guest("rogue"), settings).expect("loads")
    });
    let other = engine.load(&name("other"), &guest("hostile"), [].into()).expect("loads");
    let within = Duration::from_secs(3);
    thread::scope(|scope| {
        let calls = [0, 1, 2, 3].map(|n| {
            let driver = &asking[n];
            scope.spawn(|| driver.list(granted(&[&backend.origin()]), within).expect_err("silent"))
        });
        while calls.iter().any(|call| !call.is_finished()) {
            // Each within the 2 s that it has.
            other.path(&volume_with("nothing", "")).expect("the other driver answers");
            // How one of theirs is planned needs no backend.
            asking[4].path(&volume_with("nothing", "")).expect("it answers, too");
        }
        for call in calls {
            let error = call.join().expect("thread");
            let is_late = matches!(error, CallError::TimedOut(_) | CallError::Host(_));
            assert!(is_late, "{error:?}");
        }
    });
}

#[test]
fn a_clouds_metadata_is_not_asked_by_address_or_by_another_origins_grant() {
    let driver = rogue();
    let url = "http://169.254.169.254/latest/meta-data/";
    for grants in
        [&[][..], &["http://169.254.0.0"], &["https://169.254.169.254"], &["169.254.0.0/16"]]
    {
        let error = ask(&driver, "ask-get", url, grants).expect_err("metadata");
        assert!(error.contains("`http://169.254.169.254` is not granted"), "{grants:?}: {error}");
    }
}

#[test]
fn redirects_are_followed_by_nobody_but_the_driver_and_only_to_where_it_may_go() {
    let (here, there) = (Backend::start(backend::good), Backend::start(backend::good));
    let driver = rogue();
    let url = here.url(&format!("/to/{}", there.url("/x")));
    let got = ask(&driver, "ask-get", &url, &[&here.origin(), &there.origin()]);
    assert_eq!(got.as_deref(), Ok("302, 0 bytes: "));
    let got = ask(&driver, "ask-follow", &url, &[&here.origin(), &there.origin()]);
    assert_eq!(got.as_deref(), Ok("200, 14 bytes: /x and 0 bytes"));
    let error = ask(&driver, "ask-follow", &url, &[&here.origin()]).expect_err("elsewhere");
    assert!(error.contains(&format!("`{}` is not granted: ", there.origin())), "{error}");
    let metadata = here.url("/to/http://169.254.169.254/");
    let error = ask(&driver, "ask-follow", &metadata, &[&here.origin()]).expect_err("metadata");
    assert!(error.contains("`http://169.254.169.254` is not granted"), "{error}");
}

#[test]
fn requests_bytes_and_connections_of_a_call_are_bounded() {
    let backend = Backend::start(backend::good);
    let driver = rogue();
    let ask = |how: &str, url: &str| ask(&driver, how, url, &[&backend.origin()]);
    let error = ask("ask-many", &backend.url("/")).expect_err("over the limit");
    assert!(error.starts_with("number 64: "), "{error}");
    assert!(error.ends_with("this call has made 64 requests already"), "{error}");
    assert!(ask("ask-get", &backend.url("/size/16000000")).is_ok());
    let over = "this call may send and receive 16 MiB and no more";
    let error = ask("ask-get", &backend.url("/size/17000000")).expect_err("over the limit");
    assert!(error.ends_with(over), "{error}");
    let url = format!("17000000@{}", backend.url("/"));
    let error = ask("ask-post", &url).expect_err("over the limit");
    assert!(error.ends_with(over), "{error}");
    for how in ["ask-at-once", "ask-unread"] {
        let error = ask(how, &backend.url("/size/1000000")).expect_err("over the limit");
        assert!(error.ends_with("this call has 8 connections already"), "{how}: {error}");
    }
}

#[test]
fn a_bad_backend_is_told_in_words() {
    let driver = rogue();
    let ask = |manner| {
        let backend = Backend::start(manner);
        let error = ask(&driver, "ask-get", &backend.url("/secret/path"), &[&backend.origin()]);
        let error = error.expect_err("bad");
        assert!(!error.contains("secret"), "a path is nobody's business: {error}");
        let place = format!("`{}` cannot be asked: ", backend.origin());
        error.split_once(&place).map_or(error.clone(), |(_, words)| words.to_owned())
    };
    assert_eq!(ask(backend::hanging_up), "it hung up");
    assert_eq!(ask(backend::no_http), "what it answers is no HTTP");
    let too_much = "the head of its answer has more than 64 KiB or 100 headers";
    assert_eq!(ask(backend::endless_header), too_much);
    assert_eq!(ask(backend::endless_head), too_much);
    let error = ask(backend::half_a_body);
    assert!(error.starts_with("broke off after 10 bytes: "), "{error}");
    let error = ask(backend::endless_body);
    assert!(error.ends_with("this call may send and receive 16 MiB and no more"), "{error}");
}

#[test]
fn a_port_that_nobody_listens_at_and_a_name_that_nobody_has_are_told_in_words() {
    let driver = rogue();
    let free = TcpListener::bind("127.0.0.1:0").expect("port").local_addr();
    let origin = format!("http://{}", free.expect("address"));
    let error = ask(&driver, "ask-get", &origin, &[&origin]).expect_err("nobody listens");
    let why = format!("`{origin}` cannot be asked: it refuses the connection");
    assert_eq!(error, format!("ErrorCode::ConnectionRefused: {why}"));
    let error = ask(&driver, "ask-get", "http://nobody.invalid/", &["http://nobody.invalid"]);
    let error = error.expect_err("no such name");
    assert!(error.contains("`http://nobody.invalid` cannot be asked: "), "{error}");
    assert!(
        error.contains("its name is not known") || error.contains("nobody says what address"),
        "{error}"
    );
}

#[test]
fn a_slow_backend_costs_no_more_than_the_deadline() {
    let within = Duration::from_secs(1);
    for (what, manner) in [
        ("silent", backend::silent as fn(_) -> _),
        ("trickling head", backend::trickling_head),
        ("trickling body", backend::trickling_body),
        ("endless promises", backend::endless_promises),
    ] {
        let backend = Backend::start(manner);
        let begin = Instant::now();
        let answer = ask_within("ask-get", &backend.url("/"), &[&backend.origin()], within);
        assert_eq!(answer, Err(CallError::TimedOut(within)), "{what}");
        assert!(begin.elapsed() < within * 4, "{what} took {:?}", begin.elapsed());
    }
    let deaf = Backend::start(backend::deaf);
    let url = format!("15000000@{}", deaf.url("/"));
    let answer = ask_within("ask-post", &url, &[&deaf.origin()], within);
    assert_eq!(answer, Err(CallError::TimedOut(within)));
}

#[test]
fn what_is_waited_for_in_vain_ends_at_the_deadline() {
    let within = Duration::from_secs(1);
    for act in ["hoard-unsent", "hoard-never", "hoard-always"] {
        let answer = ask_within(act, "", &[], within);
        assert_eq!(answer, Err(CallError::TimedOut(within)), "{act}");
    }
}

#[test]
fn nothing_of_a_call_goes_on_after_it() {
    let (sender, ended) = mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let origin = format!("http://{}", listener.local_addr().expect("address"));
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        // It ends when the other end does.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        sender.send(()).expect("somebody waits");
    });
    let within = Duration::from_millis(500);
    let answer = ask_within("ask-get", &origin, &[&origin], within);
    assert_eq!(answer, Err(CallError::TimedOut(within)));
    ended.recv_timeout(Duration::from_secs(5)).expect("the connection is closed");
}

#[test]
fn a_driver_that_may_wait_for_a_backend_may_not_compute_as_long() {
    let driver = rogue();
    let begin = Instant::now();
    let error = driver.remove(&volume_with("remove-loop", ""), Scope::default());
    let error = error.expect_err("endless").to_string();
    assert_eq!(error, "driver asked for more than its limit of 2 s of computing");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn what_a_driver_keeps_of_requests_is_bounded() {
    let driver = rogue();
    for (act, why) in [
        ("hoard-fields", "driver asked for more than its limit of 128 host resources"),
        (
            "hoard-headers",
            "driver asked for more than its limit of 16 KiB of headers in one request",
        ),
        ("hoard-methods", "the method is refused: a request's method has at most 32 bytes"),
        ("hoard-paths", "the path is refused: a request's path has at most 8192 bytes"),
        (
            "hoard-authorities",
            "the authority is refused: a request's authority has at most 300 bytes",
        ),
        ("hoard-bodies", "driver asked for more than its limit of 128 host resources"),
    ] {
        let error = ask(&driver, act, "", &[]).expect_err(act);
        assert_eq!(error, why, "{act}");
    }
}

#[test]
fn requests_that_are_none_say_nothing_in_the_log() {
    let driver = rogue();
    let (answer, log) = logged(|| ask(&driver, "ask-nothing", "http://nowhere.example", &[]));
    // What is left out is the root, which was not granted.
    assert!(answer.expect_err("not granted").contains("is not granted"));
    assert_eq!(log, "");
}

#[test]
fn names_that_nobody_answers_for_hold_up_no_other_driver() {
    let cache = tempfile::tempdir().expect("cache");
    let engine = engine(cache.path(), compiler(), 64);
    let load = |n: &str| engine.load(&name(n), &guest("rogue"), [].into()).expect("loads");
    let (asking, other) = (load("asking"), load("other"));
    let grants: Vec<String> = (0..40).map(|n| format!("http://n{n}.nobody.invalid")).collect();
    let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
    let backend = Backend::start(backend::good);
    thread::scope(|scope| {
        let asking =
            scope.spawn(|| ask(&asking, "ask-names", "http://n*.nobody.invalid/", &grants));
        while !asking.is_finished() {
            let got = ask(&other, "ask-get", &backend.url("/"), &[&backend.origin()]);
            assert!(got.is_ok(), "{got:?}");
        }
    });
}

/// An authority of the test's, and certificates by it.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new(name: &str) -> Self {
        let authority = Self(tempfile::tempdir().expect("directory"));
        authority.openssl(&format!("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout ca.key -out ca.pem"));
        authority
    }

    /// A server's, for these alternative names.
    fn issue(&self, server: &str, names: &str, days: &str) -> Arc<ServerConfig> {
        fs::write(self.path("extensions"), format!("subjectAltName={names}\n")).expect("file");
        self.openssl(&format!("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={server} -keyout {server}.key -out {server}.csr"));
        self.openssl(&format!("x509 -req -in {server}.csr -CA ca.pem -CAkey ca.key -CAcreateserial {days} -extfile extensions -out {server}.pem"));
        let chain = vec![
            CertificateDer::from_pem_file(self.path(&format!("{server}.pem")))
                .expect("certificate"),
        ];
        let key = PrivateKeyDer::from_pem_file(self.path(&format!("{server}.key"))).expect("key");
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).expect("usable"))
    }

    fn openssl(&self, line: &str) {
        let mut command = Command::new("openssl");
        let output = command.args(line.split(' ')).current_dir(self.0.path()).output();
        let output = output.expect("openssl");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        self.0.path().join(file)
    }
}

/// A server that speaks TLS and says hello; its port.
fn secured(config: Arc<ServerConfig>) -> u16 {
    use std::io::{Read, Write};
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let port = listener.local_addr().expect("address").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let session = ServerConnection::new(Arc::clone(&config)).expect("session");
            let mut stream = StreamOwned::new(session, stream.expect("connection"));
            // Whoever does not trust it hangs up.
            if stream.read(&mut [0; 4096]).is_ok() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
            }
        }
    });
    port
}

/// Asks in a process of its own.
fn ask_apart(mut command: Command, url: &str, networks: &[&str]) -> Result<String, String> {
    command.arg(compiler().program).arg("create").arg(guest_path("rogue"));
    command.args(["do=ask-get", &format!("with={url}"), &format!("http={url}")]);
    command.args(networks.iter().map(|network| format!("http={network}")));
    let output = command.output().expect("call");
    let said = |bytes| String::from_utf8(bytes).expect("text").trim_end().to_owned();
    if output.status.success() { Ok(said(output.stdout)) } else { Err(said(output.stderr)) }
}

/// Asks in a process that trusts the authority in that file.
fn ask_trusting(authority: &Path, url: &str) -> Result<String, String> {
    let mut command = Command::new("env");
    command.arg("--unset=SSL_CERT_DIR").env("SSL_CERT_FILE", authority);
    ask_apart(command, url, &["127.0.0.0/8", "::1/128"])
}

/// Asks in a process that looks up names at that address alone.
fn ask_resolving(resolver: Ipv4Addr, url: &str, networks: &[&str]) -> Result<String, String> {
    let config = tempfile::NamedTempFile::new().expect("file");
    fs::write(&config, format!("nameserver {resolver}\n")).expect("file");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"").arg(config.path());
    ask_apart(command, url, networks)
}

/// A name server that says another address of every name each time: these in their order, and then the last one. Its own address.
fn fickle(answers: &'static [[u8; 4]], asked: Arc<AtomicUsize>) -> Ipv4Addr {
    let pid = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 53, pid[2], pid[3] | 1);
    let socket = UdpSocket::bind((own, 53)).expect("port 53 of an address of our own");
    thread::spawn(move || {
        let mut query = [0; 512];
        loop {
            let (length, peer) = socket.recv_from(&mut query).expect("query");
            // Behind the header stand the labels of the name, an empty one, its type and its class.
            let name = query[12..length].iter().position(|byte| *byte == 0).expect("a name");
            let question = &query[12..12 + name + 5];
            let is_v4 = question[name + 1..name + 3] == [0, 1];
            let mut answer =
                [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]].concat();
            answer.extend(question);
            if is_v4 {
                let number = asked.fetch_add(1, Ordering::SeqCst);
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(answers.get(number).or(answers.last()).expect("an address"));
            }
            socket.send_to(&answer, peer).expect("answer");
        }
    });
    own
}

#[test]
fn a_name_is_looked_up_once_and_what_was_checked_is_what_is_connected_to() {
    let listener = TcpListener::bind("127.0.0.2:0").expect("port");
    let port = listener.local_addr().expect("address").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = backend::good(stream.expect("connection"));
        }
    });
    let asked = Arc::new(AtomicUsize::new(0));
    let resolver = fickle(&[[127, 0, 0, 2], [127, 0, 0, 3]], Arc::clone(&asked));
    let url = format!("http://fickle.example:{port}");
    let got = ask_resolving(resolver, &url, &["127.0.0.2/32"]);
    assert_eq!(got.as_deref(), Ok("200, 13 bytes: / and 0 bytes"));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // The next request is looked up anew, and its address checked anew.
    let error = ask_resolving(resolver, &url, &["127.0.0.2/32"]).expect_err("not granted");
    let start = format!("ErrorCode::DestinationIpProhibited: `{url}` has the address 127.0.0.3, ");
    assert!(error.starts_with(&start), "{error}");
}

#[test]
fn tls_is_spoken_with_who_has_a_certificate_that_this_host_trusts() {
    let authority = Authority::new("ours");
    let trusted = authority.path("ca.pem");
    let good = secured(authority.issue("good", "DNS:localhost,IP:127.0.0.1", "-days 1"));
    for host in ["localhost", "127.0.0.1"] {
        let got = ask_trusting(&trusted, &format!("https://{host}:{good}"));
        assert_eq!(got.as_deref(), Ok("200, 5 bytes: hello"), "{host}");
    }
    let ask = |authority: &Path, port| {
        let error =
            ask_trusting(authority, &format!("https://127.0.0.1:{port}")).expect_err("untrusted");
        let (code, words) = error.split_once(": ").expect("a code and words");
        let place = format!("`https://127.0.0.1:{port}` cannot be asked: ");
        (code.to_owned(), words.strip_prefix(&place).expect("where").to_owned())
    };
    let untrusted = |why: &str| {
        (
            "ErrorCode::TlsCertificateError".to_owned(),
            format!("its certificate is not trusted: {why}"),
        )
    };
    let other = secured(authority.issue("other", "DNS:localhost", "-days 1"));
    assert_eq!(ask(&trusted, other), untrusted("it is for other names"));
    let expired = secured(authority.issue("old", "IP:127.0.0.1", "-days -1"));
    assert_eq!(ask(&trusted, expired), untrusted("it has expired"));
    let stranger = Authority::new("stranger");
    assert_eq!(
        ask(&stranger.path("ca.pem"), good),
        untrusted("this host does not know who issued it")
    );
    let plain = Backend::start(backend::good);
    let (code, words) = ask(&trusted, plain.port());
    assert_eq!(code, "ErrorCode::TlsProtocolError");
    assert!(words.starts_with("no TLS could be agreed on: "), "{words}");
    fs::write(stranger.path("none.pem"), "").expect("file");
    let (_, words) = ask(&stranger.path("none.pem"), good);
    assert_eq!(words, "this host trusts no authority: install ca-certificates");
}

#[test]
fn calls_that_ask_at_once_are_answered_each() {
    let backend = Backend::start(backend::good);
    let driver = ENGINE.load(&name("many"), &guest("rogue"), [].into()).expect("loads");
    let url = backend.url("/size/100000");
    thread::scope(|scope| {
        let asked =
            [(); 16].map(|()| scope.spawn(|| ask(&driver, "ask-get", &url, &[&backend.origin()])));
        for asked in asked {
            let got = asked.join().expect("thread").expect("answered");
            assert!(got.starts_with("200, 100000 bytes"), "{got}");
        }
    });
}
