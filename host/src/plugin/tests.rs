//! Transcripts: bytes in, bytes out, over a real unix socket, with the real verbs in a simulated world.
//!
//! The requests are those of dockerd and podman to the byte, and those of clients that misbehave.

use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::LocalOptions;
use tokio::sync::watch;

use super::{BODY_MAX, Plugin};
use crate::server::{self, Busy};
use crate::volumes::Volumes;
use crate::volumes::model::quiet;
use crate::volumes::world::World;

/// A hang in the server must not hang the tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// Serves volumes of these names in a quiet world and runs `test` against the socket, before recovery; then drains, and runs
/// `after` on what is left.
fn with_plugin(
    names: &[&str],
    test: impl AsyncFnOnce(&Path, &dyn Daemon),
    after: impl FnOnce(&dyn Daemon),
) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wasmvol.sock");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .unwrap();
    runtime.block_on(async {
        let volumes = quiet(names).await;
        let listener = UnixListener::bind(&path).unwrap();
        let (stop, stopped) = watch::channel(false);
        let (busy, mut idle) = Busy::new();
        let plugin = Plugin::new(Rc::clone(&volumes), busy.clone());
        tokio::task::spawn_local(server::serve(listener, plugin, stopped, busy));
        tokio::time::timeout(PATIENCE, test(&path, &volumes)).await.unwrap();
        stop.send(true).unwrap();
        tokio::time::timeout(PATIENCE, idle.wait()).await.unwrap();
        after(&volumes);
    });
}

/// What a test asks of the daemon behind the socket.
trait Daemon {
    /// Lets changing verbs go on.
    fn recover(&self) -> Pin<Box<dyn Future<Output = ()> + '_>>;
    fn mounted(&self) -> Vec<String>;
}

impl<W: World> Daemon for Rc<Volumes<W>> {
    fn recover(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(Volumes::recover(self))
    }

    fn mounted(&self) -> Vec<String> {
        Volumes::mounted(self)
    }
}

/// As dockerd writes it: an empty Host, no Content-Type, a line feed after the JSON.
fn docker(call: &str, json: &str) -> String {
    let body = if json.is_empty() { String::new() } else { format!("{json}\n") };
    format!(
        "POST /{call} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
         Accept: application/vnd.docker.plugins.v1.2+json\r\n\r\n{body}",
        body.len()
    )
}

/// As podman writes it.
fn podman(call: &str, json: &str) -> String {
    format!(
        "POST /{call} HTTP/1.1\r\nHost: plugin\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
         Content-Type: application/vnd.docker.plugins.v1.1+json\r\nAccept-Encoding: gzip\r\n\r\n{json}",
        json.len()
    )
}

/// Reads one answer: its status and its body.
async fn answer(stream: &mut UnixStream) -> (u16, String) {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok()
            });
            if length == Some(body.len()) {
                return (head[9..12].parse().unwrap(), body.to_owned());
            }
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "closed after: {text}");
    }
}

async fn ask(path: &Path, request: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    answer(&mut stream).await
}

fn ok(body: &str) -> (u16, String) {
    (200, body.to_owned())
}

fn err(text: &str) -> (u16, String) {
    (500, format!(r#"{{"Err":"{text}"}}"#))
}

#[test]
fn activate_list_and_capabilities_answer_before_recovery() {
    with_plugin(
        &[],
        async |path, _| {
            let activated = ask(path, &docker("Plugin.Activate", "")).await;
            assert_eq!(activated, ok(r#"{"Implements":["VolumeDriver"]}"#));
            let scope = ask(path, &docker("VolumeDriver.Capabilities", "{}")).await;
            assert_eq!(scope, ok(r#"{"Capabilities":{"Scope":"local"}}"#));
            assert_eq!(
                ask(path, &docker("VolumeDriver.List", "{}")).await,
                ok(r#"{"Volumes":[],"Err":""}"#)
            );
            assert_eq!(
                ask(path, &podman("VolumeDriver.List", "")).await,
                ok(r#"{"Volumes":[],"Err":""}"#)
            );
            let get = ask(path, &docker("VolumeDriver.Get", r#"{"Name":"data"}"#)).await;
            assert_eq!(get, err("no such volume"));
        },
        |_| {},
    );
}

#[test]
fn a_volume_lives_as_dockerd_asks_over_one_connection() {
    with_plugin(
        &[],
        async |path, daemon| {
            daemon.recover().await;
            let mut stream = UnixStream::connect(path).await.unwrap();
            let mut say = async |call: &str, json: &str| {
                stream.write_all(docker(call, json).as_bytes()).await.unwrap();
                answer(&mut stream).await
            };
            let name = r#"{"Name":"data"}"#;
            let id = r#"{"Name":"data","ID":"0a1b"}"#;
            assert_eq!(
                say("VolumeDriver.Create", r#"{"Name":"data","Opts":null}"#).await,
                ok(r#"{"Err":""}"#)
            );
            let (status, got) = say("VolumeDriver.Get", name).await;
            let got: serde_json::Value = serde_json::from_str(&got).unwrap();
            assert_eq!((status, got["Volume"]["Name"].as_str()), (200, Some("data")));
            assert_eq!(got["Err"], "");
            assert!(got["Volume"]["Status"].is_object());
            let created = got["Volume"]["CreatedAt"].as_str().unwrap();
            use time::format_description::well_known::Rfc3339;
            time::OffsetDateTime::parse(created, &Rfc3339).unwrap();
            let mountpoint = got["Volume"]["Mountpoint"].as_str().unwrap();
            let placed = ok(&format!(r#"{{"Mountpoint":"{mountpoint}","Err":""}}"#));
            assert_eq!(say("VolumeDriver.Path", name).await, placed);
            assert_eq!(say("VolumeDriver.Mount", id).await, placed);
            let listed = format!(
                r#"{{"Volumes":[{{"Name":"data","Mountpoint":"{mountpoint}"}}],"Err":""}}"#
            );
            assert_eq!(say("VolumeDriver.List", "{}").await, ok(&listed));
            assert_eq!(say("VolumeDriver.Unmount", id).await, ok(r#"{"Err":""}"#));
            assert_eq!(say("VolumeDriver.Remove", name).await, ok(r#"{"Err":""}"#));
            assert_eq!(say("VolumeDriver.Get", name).await, err("no such volume"));
        },
        |_| {},
    );
}

#[test]
fn options_may_be_null_empty_absent_or_accompanied_by_unknown_fields() {
    with_plugin(
        &[],
        async |path, daemon| {
            daemon.recover().await;
            for (name, rest) in [
                ("v-null", r#","Opts":null"#),
                ("v-empty", r#","Opts":{}"#),
                ("v-absent", ""),
                ("v-unknown", r#","Opts":{},"Labels":{"a":[1,{}]}"#),
            ] {
                let create =
                    podman("VolumeDriver.Create", &format!(r#"{{"Name":"{name}"{rest}}}"#));
                assert_eq!(ask(path, &create).await, ok(r#"{"Err":""}"#), "{name}");
            }
        },
        |_| {},
    );
}

#[test]
fn an_empty_body_is_an_error_for_every_call_that_needs_one() {
    with_plugin(
        &[],
        async |path, daemon| {
            daemon.recover().await;
            for call in ["Create", "Remove", "Mount", "Unmount", "Get", "Path"] {
                let (status, body) = ask(path, &docker(&format!("VolumeDriver.{call}"), "")).await;
                assert_eq!(status, 500, "{call}");
                assert!(body.starts_with(r#"{"Err":"empty request"#), "{call}: {body}");
            }
        },
        |_| {},
    );
}

#[test]
fn names_that_are_none_are_refused_in_one_line() {
    with_plugin(
        &[],
        async |path, daemon| {
            daemon.recover().await;
            let long = "a".repeat(300);
            for name in ["", "../x", "/", ".x", "-x", "a b", "a\\u0000b", "a\\nb", "ä", &long] {
                for call in ["Create", "Mount", "Unmount", "Remove"] {
                    let json = format!(r#"{{"Name":"{name}","ID":"1"}}"#);
                    let (status, body) =
                        ask(path, &docker(&format!("VolumeDriver.{call}"), &json)).await;
                    assert_eq!(status, 500, "{call} {name}");
                    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
                    let text = body["Err"].as_str().unwrap();
                    assert!(!text.is_empty() && !text.contains('\n'), "{text}");
                }
            }
        },
        |_| {},
    );
}

#[test]
fn what_is_no_json_and_what_is_no_call_are_errors_that_docker_can_read() {
    with_plugin(
        &[],
        async |path, _| {
            for (call, json) in [
                ("VolumeDriver.Get", "{"),
                ("VolumeDriver.Create", r#"{"Name":["x"]}"#),
                ("VolumeDriver.Create", r#"{"Name":"x","Opts":{"size":1}}"#),
                ("VolumeDriver.Nothing", "{}"),
                ("", "{}"),
            ] {
                let (status, body) = ask(path, &docker(call, json)).await;
                assert_eq!(status, 500, "{call}");
                let body: serde_json::Value = serde_json::from_str(&body).unwrap();
                assert!(body["Err"].as_str().is_some_and(|e| !e.is_empty()), "{call}");
            }
            let get = "GET /VolumeDriver.List HTTP/1.1\r\nHost: x\r\n\r\n";
            assert_eq!(ask(path, get).await.0, 500);
        },
        |_| {},
    );
}

#[test]
fn an_odd_host_is_not_looked_at() {
    with_plugin(
        &[],
        async |path, _| {
            for host in ["plugin.moby.localhost", "%2Frun%2Fx.sock", "d"] {
                let request = format!(
                    "POST /Plugin.Activate HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"
                );
                assert_eq!(ask(path, &request).await.0, 200, "{host}");
            }
        },
        |_| {},
    );
}

#[test]
fn a_body_beyond_the_limit_is_refused_before_it_is_read() {
    with_plugin(
        &[],
        async |path, _| {
            let head = format!(
                "POST /VolumeDriver.Create HTTP/1.1\r\nHost: \r\nContent-Length: {}\r\n\r\n",
                BODY_MAX + 1
            );
            assert_eq!(ask(path, &head).await, err("request is larger than 262144 bytes"));
        },
        |_| {},
    );
}

#[test]
fn a_chunked_body_beyond_the_limit_is_refused() {
    with_plugin(
        &[],
        async |path, _| {
            let mut stream = UnixStream::connect(path).await.unwrap();
            let head =
                "POST /VolumeDriver.Get HTTP/1.1\r\nHost: \r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.into_split();
            let flood = tokio::task::spawn_local(async move {
                let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
                while write.write_all(chunk.as_bytes()).await.is_ok() {}
            });
            let mut start = [0; 12];
            read.read_exact(&mut start).await.unwrap();
            assert_eq!(&start, b"HTTP/1.1 500");
            drop(read);
            flood.await.unwrap();
        },
        |_| {},
    );
}

#[test]
fn json_of_any_depth_does_not_end_the_daemon() {
    with_plugin(
        &[],
        async |path, _| {
            let deep =
                format!(r#"{{"Name":"x","Extra":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
            ask(path, &docker("VolumeDriver.Get", &deep)).await;
            let deep = format!(r#"{{"Name":"x","Opts":{}"#, r#"{"a":"#.repeat(40_000));
            assert_eq!(ask(path, &docker("VolumeDriver.Create", &deep)).await.0, 500);
            assert_eq!(ask(path, &docker("Plugin.Activate", "")).await.0, 200);
        },
        |_| {},
    );
}

#[test]
fn silent_and_half_open_clients_delay_nobody() {
    with_plugin(
        &[],
        async |path, _| {
            let mut silent = Vec::new();
            for start in
                ["", "POST /Vol", "POST /VolumeDriver.Get HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
            {
                let mut stream = UnixStream::connect(path).await.unwrap();
                stream.write_all(start.as_bytes()).await.unwrap();
                silent.push(stream);
            }
            assert_eq!(ask(path, &docker("Plugin.Activate", "")).await.0, 200);
        },
        |_| {},
    );
}

#[test]
fn a_client_that_sends_no_http_ends_its_own_connection_only() {
    with_plugin(
        &[],
        async |path, _| {
            let mut stream = UnixStream::connect(path).await.unwrap();
            stream.write_all(b"\x16\x03\x01 nonsense\r\n\r\n").await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert_eq!(ask(path, &docker("Plugin.Activate", "")).await.0, 200);
        },
        |_| {},
    );
}

#[test]
fn a_mount_whose_client_has_gone_is_undone() {
    with_plugin(
        &["data"],
        async |path, daemon| {
            let mut stream = UnixStream::connect(path).await.unwrap();
            let mount = docker("VolumeDriver.Mount", r#"{"Name":"data","ID":"0a1b"}"#);
            stream.write_all(mount.as_bytes()).await.unwrap();
            // The first connection was accepted first: its request waits for recovery now.
            assert_eq!(ask(path, &docker("Plugin.Activate", "")).await.0, 200);
            drop(stream);
            daemon.recover().await;
        },
        |daemon| assert_eq!(daemon.mounted(), [""; 0]),
    );
}

#[test]
fn a_mount_whose_client_stays_is_kept_when_the_connection_closes_later() {
    with_plugin(
        &["data"],
        async |path, daemon| {
            daemon.recover().await;
            let mount = podman("VolumeDriver.Mount", r#"{"Name":"data","ID":"0a1b"}"#);
            assert_eq!(ask(path, &mount).await.0, 200);
        },
        |daemon| assert_eq!(daemon.mounted(), ["data"]),
    );
}

#[test]
fn an_unmount_whose_client_has_gone_is_done_all_the_same() {
    with_plugin(
        &["data"],
        async |path, daemon| {
            daemon.recover().await;
            let id = r#"{"Name":"data","ID":"0a1b"}"#;
            assert_eq!(ask(path, &docker("VolumeDriver.Mount", id)).await.0, 200);
            let mut stream = UnixStream::connect(path).await.unwrap();
            let unmount = podman("VolumeDriver.Unmount", id);
            stream.write_all(unmount.as_bytes()).await.unwrap();
            // podman reads the status line at most: the answer may meet a closed socket.
            assert_eq!(ask(path, &docker("Plugin.Activate", "")).await.0, 200);
        },
        |daemon| assert_eq!(daemon.mounted(), [""; 0]),
    );
}

#[test]
fn a_drain_answers_what_was_asked_and_begins_nothing_more() {
    with_plugin(
        &["data"],
        async |path, daemon| {
            let mut idle = UnixStream::connect(path).await.unwrap();
            idle.write_all(docker("Plugin.Activate", "").as_bytes()).await.unwrap();
            assert_eq!(answer(&mut idle).await.0, 200);
            daemon.recover().await;
        },
        |_| {},
    );
}
