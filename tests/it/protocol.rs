//! Do we speak Docker's protocol to every client, also to one that breaks off, dawdles or sends rubbish? Raw bytes on the socket.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::plugin::{Answer, Socket, request};
use crate::support::wasmvol::{Wasmvol, send};
use crate::support::{SOON, until};

/// The calls that change something.
const MUTATORS: [&str; 4] = ["Create", "Mount", "Unmount", "Remove"];
/// What is said of a body that its path does not take.
const NOT_OURS: &str = "request is not the JSON that this path takes: ";

/// One exchange on a connection of its own.
fn exchange(wasmvol: &Wasmvol, bytes: &str) -> Answer {
    let mut socket = Socket::connect(&wasmvol.plugin().socket).unwrap();
    socket.send(bytes).unwrap();
    socket.read().unwrap()
}

/// How often an ID has the volume mounted.
fn count_of(wasmvol: &Wasmvol, volume: &str, id: &str) -> u64 {
    let shown = wasmvol.plugin().get(volume).unwrap();
    let holders = shown["Status"]["holders"].as_array().unwrap().clone();
    holders.iter().filter(|h| h["id"] == id).map(|h| h["count"].as_u64().unwrap()).sum()
}

#[test]
fn activate_and_capabilities_say_what_docker_wants_to_hear() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let activated = plugin.try_call("Plugin.Activate", "").unwrap().result().unwrap();
    assert_eq!(activated["Implements"], json!(["VolumeDriver"]));
    for body in ["", "{}"] {
        let capable = plugin.try_call("VolumeDriver.Capabilities", body).unwrap();
        assert_eq!(capable.result().unwrap()["Capabilities"]["Scope"], "local");
        assert_eq!(
            plugin.try_call("VolumeDriver.List", body).unwrap().result().unwrap()["Volumes"],
            json!([])
        );
    }
}

#[test]
fn an_empty_body_is_no_request() {
    let wasmvol = Wasmvol::start();
    for verb in MUTATORS {
        // dockerd's retry after a broken connection: the first try may have said anything.
        let answer = wasmvol.plugin().try_call(&format!("VolumeDriver.{verb}"), "").unwrap();
        let error = answer.result().unwrap_err();
        assert!(error.contains("empty request"), "{verb}: {error}");
    }
    assert_eq!(wasmvol.plugin().list(), Vec::<String>::new());
}

#[test]
fn no_options_are_said_in_four_ways() {
    let wasmvol = Wasmvol::start();
    for (i, options) in
        [r#","Opts":null"#, r#","Opts":{}"#, "", r#","Opts":{},"More":[1]"#].iter().enumerate()
    {
        let body = format!(r#"{{"Name":"volume-{i}"{options}}}"#);
        wasmvol.plugin().try_call("VolumeDriver.Create", &body).unwrap().result().unwrap();
    }
    assert_eq!(wasmvol.plugin().list().len(), 4);
}

#[test]
fn a_json_body_that_is_none_of_ours_is_an_error_and_changes_nothing() {
    let wasmvol = Wasmvol::start();
    for body in [
        "{",
        "null",
        "[]",
        r#"["ab"]"#,
        "7",
        r#""name""#,
        r#"{"Name":7}"#,
        "{\"Name\":\"a\\ud800b\"}",
        "\u{feff}{}",
        "{}{}",
    ] {
        for verb in MUTATORS.into_iter().chain(["Get", "Path"]) {
            let answer = wasmvol.plugin().try_call(&format!("VolumeDriver.{verb}"), body).unwrap();
            let error = answer.result().expect_err(body);
            assert!(error.contains(NOT_OURS), "{verb} {body}: {error}");
        }
    }
    for options in ["[1]", "7", r#"{"mode":7}"#, r#"{"mode":null}"#] {
        let body = format!(r#"{{"Name":"ab","Opts":{options}}}"#);
        let answer = wasmvol.plugin().try_call("VolumeDriver.Create", &body).unwrap();
        let error = answer.result().expect_err(options);
        assert!(error.contains(NOT_OURS), "{options}: {error}");
    }
    assert_eq!(wasmvol.plugin().list(), Vec::<String>::new());
}

#[test]
fn a_body_that_is_refused_is_not_repeated() {
    const SECRET: &str = "hunter2";
    let wasmvol = Wasmvol::start();
    let long = format!("password={}", SECRET.repeat(20_000));
    let body = json!({ "Name": "x", "Opts": long }).to_string();
    let refused = |answer: Answer| {
        let is_short = answer.body.len() < 300 && !answer.body.contains(SECRET);
        assert!(is_short, "{} bytes: {:.300}", answer.body.len(), answer.body);
    };
    let answer = wasmvol.plugin().try_call("VolumeDriver.Create", &body).unwrap();
    assert!(answer.clone().result().unwrap_err().contains("line 1 column"), "{answer:?}");
    refused(answer);
    let admin = wasmvol.runtime().join("admin.sock");
    for (path, body) in [
        ("volumes", json!({ "name": "x", "options": long }).to_string()),
        ("drivers", json!({ "name": null, "settings": long }).to_string()),
    ] {
        let mut socket = Socket::connect(&admin).unwrap();
        socket.send(request(path, &body)).unwrap();
        let answer = socket.read().unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
        refused(answer);
    }
    assert!(!wasmvol.log().contains(SECRET));
}

#[test]
fn odd_headers_do_not_matter() {
    let wasmvol = Wasmvol::start();
    let body = r#"{"Name":"plain"}"#;
    for (i, head) in [
        // As podman says it.
        "Host: plugin\r\nContent-Type: application/vnd.docker.plugins.v1.1+json\r\n",
        "Host: \r\n",
        "Host: a b c\r\n",
        "Host: plugin.moby.localhost\r\nContent-Type: text/html\r\nAccept: image/png\r\n",
        "Host: x\r\nExpect-Nothing: 1\r\nX: y\r\n",
    ]
    .iter()
    .enumerate()
    {
        let body = body.replace("plain", &format!("plain-{i}"));
        let length = body.len();
        let answer = exchange(
            &wasmvol,
            &format!(
                "POST /VolumeDriver.Create HTTP/1.1\r\n{head}Content-Length: {length}\r\n\r\n{body}"
            ),
        );
        answer.result().unwrap();
    }
    assert_eq!(wasmvol.plugin().list().len(), 5);
}

#[test]
fn a_body_may_come_in_chunks_or_in_pieces() {
    let wasmvol = Wasmvol::start();
    let chunked = "POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                   8\r\n{\"Name\":\r\n9\r\n\"chunked\"\r\n1\r\n}\r\n0\r\n\r\n";
    exchange(&wasmvol, chunked).result().unwrap();
    let mut socket = Socket::connect(&wasmvol.plugin().socket).unwrap();
    for byte in request("VolumeDriver.Create", r#"{"Name":"pieces"}"#).as_bytes() {
        socket.send([*byte]).unwrap();
    }
    socket.read().unwrap().result().unwrap();
    assert_eq!(wasmvol.plugin().list(), ["chunked", "pieces"]);
}

#[test]
fn a_connection_carries_many_requests() {
    let wasmvol = Wasmvol::start();
    let mut socket = Socket::connect(&wasmvol.plugin().socket).unwrap();
    for i in 0..100 {
        socket
            .send(request("VolumeDriver.Create", &format!(r#"{{"Name":"volume-{i}"}}"#)))
            .unwrap();
        socket.read().unwrap().result().unwrap();
        // An error does not end the connection.
        socket.send(request("VolumeDriver.Get", r#"{"Name":"absent"}"#)).unwrap();
        socket.read().unwrap().result().unwrap_err();
    }
    assert_eq!(wasmvol.plugin().list().len(), 100);
}

#[test]
fn an_unknown_path_or_method_is_answered_with_an_error_in_json() {
    let wasmvol = Wasmvol::start();
    for path in ["", "VolumeDriver.Nothing", "VolumeDriver.create", "NetworkDriver.Join", "../x"] {
        let answer = wasmvol.plugin().try_call(path, "{}").unwrap();
        let error = answer.result().unwrap_err();
        assert!(error.contains("no such request"), "{path}: {error}");
    }
    for method in ["GET", "PUT", "DELETE"] {
        let bytes =
            format!("{method} /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        let error = exchange(&wasmvol, &bytes).result().unwrap_err();
        assert!(error.contains("no such request"), "{method}: {error}");
    }
}

#[test]
fn what_is_no_http_is_told_so_and_ends_its_own_connection_only() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("bystander", &[]).unwrap();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"GET\r\n\r\n",
        b"\xff\xfe\0\0",
        b"POST /Plugin.Activate HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /Plugin.Activate HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ] {
        let shown = bytes.escape_ascii().to_string();
        let mut socket = Socket::connect(&plugin.socket).unwrap();
        socket.send(bytes).unwrap();
        let answer = socket.read().expect(&shown);
        assert_eq!((answer.status, answer.body.as_str()), (400, ""), "{shown}");
        assert!(socket.has_ended(), "{shown}");
        assert_eq!(plugin.list(), ["bystander"]);
    }
}

#[test]
fn what_never_becomes_a_request_is_closed_without_an_answer_when_its_client_ends() {
    let wasmvol = Wasmvol::start();
    let endless = [b'x'; 100_000];
    for bytes in
        [&b""[..], b"\r\n\r\n\r\n", b"POST /VolumeDriver.Create HTTP/1.1\r\nHost", &endless]
    {
        let mut socket = Socket::connect(&wasmvol.plugin().socket).unwrap();
        socket.send(bytes).unwrap();
        socket.finish();
        assert!(socket.has_ended(), "{} bytes", bytes.len());
    }
    assert_eq!(wasmvol.plugin().list(), Vec::<String>::new());
}

#[test]
fn a_body_beyond_the_limit_is_refused() {
    let wasmvol = Wasmvol::start();
    let body = json!({ "Name": "large", "Opts": { "mode": "7".repeat(1 << 20) } }).to_string();
    let chunked = format!(
        "POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    for request in [request("VolumeDriver.Create", &body), chunked] {
        let mut socket = Socket::connect(&wasmvol.plugin().socket).unwrap();
        // It answers before the end of the body, and need not read the rest.
        let _ = socket.send(request);
        let error = socket.read().unwrap().result().unwrap_err();
        assert_eq!(error, "request is larger than 262144 bytes");
        assert_eq!(wasmvol.plugin().list(), Vec::<String>::new());
    }
}

#[test]
fn a_slow_or_silent_client_delays_nobody() {
    let wasmvol = Wasmvol::start();
    let whole = request("VolumeDriver.Create", r#"{"Name":"halved"}"#);
    let mut open = Vec::new();
    for cut in (0..whole.len()).step_by(5) {
        let mut socket = Socket::connect(&wasmvol.plugin().socket).unwrap();
        socket.send(&whole.as_bytes()[..cut]).unwrap();
        open.push(socket);
    }
    let plugin = wasmvol.plugin();
    plugin.create("whole", &[]).unwrap();
    plugin.mount("whole", "id").unwrap();
    plugin.unmount("whole", "id").unwrap();
    plugin.remove("whole").unwrap();
    // Nothing was made of half a request, also when its client goes.
    drop(open);
    assert_eq!(plugin.list(), Vec::<String>::new());
}

#[test]
fn a_request_is_carried_out_though_its_client_closes_its_half_behind_it() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    // The daemon stands still meanwhile, so it finds the request and the end behind it in one turn.
    send(wasmvol.daemon(), Signal::STOP);
    let mut socket = Socket::connect(&plugin.socket).unwrap();
    socket.send(request("VolumeDriver.Create", r#"{"Name":"hasty"}"#)).unwrap();
    socket.finish();
    send(wasmvol.daemon(), Signal::CONT);
    assert_eq!(socket.read().unwrap().result().unwrap(), json!({ "Err": "" }));
    assert_eq!(plugin.list(), ["hasty"]);
    plugin.remove("hasty").unwrap();
}

/// Stands for the row "Create hangs" of Docker's faults: dockerd closes after 120 s and sends nothing more; podman after 5 s.
#[test]
fn a_create_whose_client_has_gone_is_finished() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    // mountd stands still, so the Create hangs as it would on a slow backend.
    send(wasmvol.mountd(), Signal::STOP);
    let mut socket = Socket::connect(&plugin.socket).unwrap();
    socket.send(request("VolumeDriver.Create", r#"{"Name":"late"}"#)).unwrap();
    // What was sent before has been read before.
    assert_eq!(plugin.list(), Vec::<String>::new());
    drop(socket);
    send(wasmvol.mountd(), Signal::CONT);
    until("the volume is made", SOON, || (plugin.list() == ["late"]).then_some(()));
    plugin.create("late", &[]).unwrap();
    assert_eq!(wasmvol.entries("volumes").len(), 1);
}

/// Stands for the row "Mount hangs" of Docker's faults: dockerd closes after 120 s, which is too long to wait for here, and sends no
/// Unmount. podman does it after 5 s: see `podman.rs`.
#[test]
fn a_mount_whose_client_has_gone_is_undone() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("given-up", &[]).unwrap();
    // mountd stands still, so the Mount hangs as it would on a slow backend.
    send(wasmvol.mountd(), Signal::STOP);
    let mut socket = Socket::connect(&plugin.socket).unwrap();
    socket.send(request("VolumeDriver.Mount", r#"{"Name":"given-up","ID":"gone"}"#)).unwrap();
    drop(socket);
    send(wasmvol.mountd(), Signal::CONT);
    // The next Mount waits for the one before it; it holds the volume alone.
    plugin.mount("given-up", "stays").unwrap();
    until("the given up Mount is undone", SOON, || {
        (count_of(&wasmvol, "given-up", "gone") == 0).then_some(())
    });
    assert_eq!(count_of(&wasmvol, "given-up", "stays"), 1);
    assert!(wasmvol.is_mounted("given-up"));
    plugin.unmount("given-up", "stays").unwrap();
    wasmvol.wait_unmounted("given-up");
}

#[test]
fn what_is_asked_most_is_answered_without_mountd() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("known", &[]).unwrap();
    send(wasmvol.mountd(), Signal::STOP);
    plugin.get("known").unwrap();
    plugin.path("known").unwrap();
    assert_eq!(plugin.list(), ["known"]);
    plugin.get("unknown").unwrap_err();
    plugin.call("Plugin.Activate", &json!({})).unwrap();
    plugin.call("VolumeDriver.Capabilities", &json!({})).unwrap();
    send(wasmvol.mountd(), Signal::CONT);
}

#[test]
fn the_same_id_counts() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("counted", &[]).unwrap();
    let path = plugin.mount("counted", "same").unwrap();
    assert_eq!(plugin.mount("counted", "same").unwrap(), path);
    assert_eq!(count_of(&wasmvol, "counted", "same"), 2);
    plugin.unmount("counted", "same").unwrap();
    assert!(wasmvol.is_mounted("counted"), "a container with this ID may still run");
    plugin.unmount("counted", "same").unwrap();
    wasmvol.wait_unmounted("counted");
}

#[test]
fn an_unmount_of_what_is_not_there_is_done_already() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.unmount("nowhere", "id").unwrap();
    plugin.create("here", &[]).unwrap();
    plugin.unmount("here", "stranger").unwrap();
    plugin.mount("here", "holder").unwrap();
    plugin.unmount("here", "stranger").unwrap();
    assert!(wasmvol.is_mounted("here"));
    plugin.unmount("here", "holder").unwrap();
    plugin.unmount("here", "holder").unwrap();
    wasmvol.wait_unmounted("here");
}

#[test]
fn a_mounted_volume_is_not_removed() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("held", &[]).unwrap();
    let path = plugin.mount("held", "id").unwrap();
    std::fs::write(path.join("file"), "precious").unwrap();
    let error = plugin.remove("held").unwrap_err();
    assert!(error.contains("is in use"), "{error}");
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "precious");
    plugin.unmount("held", "id").unwrap();
    plugin.remove("held").unwrap();
    plugin.get("held").unwrap_err();
}

#[test]
fn a_remove_may_come_twice() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("once", &[]).unwrap();
    plugin.remove("once").unwrap();
    // The answer to the first one may have been lost.
    plugin.remove("once").unwrap();
}

#[test]
fn a_create_may_come_twice_with_the_same_options_and_no_other() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("same", &[("driver", "tmpfs"), ("size", "1m")]).unwrap();
    let id = plugin.path("same").unwrap();
    plugin.create("same", &[("driver", "tmpfs"), ("size", "1024k")]).unwrap();
    let error = plugin.create("same", &[("driver", "tmpfs"), ("size", "2m")]).unwrap_err();
    assert!(
        error.contains("already exists with other options") && error.contains("`size`"),
        "{error}"
    );
    let error = plugin.create("same", &[]).unwrap_err();
    assert!(error.contains("driver is `tmpfs`"), "{error}");
    assert_eq!(plugin.path("same").unwrap(), id);
}

#[test]
fn get_answers_all_that_docker_decodes() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("shown", &[("driver", "tmpfs"), ("size", "1m")]).unwrap();
    let shown = plugin.get("shown").unwrap();
    assert_eq!(shown["Mountpoint"], plugin.path("shown").unwrap().to_str().unwrap());
    // RFC 3339: Go refuses the whole answer otherwise.
    let created = shown["CreatedAt"].as_str().unwrap();
    assert_eq!(
        (created.len(), &created[10..11], created.ends_with('Z')),
        (20, "T", true),
        "{created}"
    );
    for key in ["driver", "driver-version", "storage", "size", "holders", "health"] {
        assert_ne!(shown["Status"][key], Value::Null, "{key}");
    }
    assert_eq!(shown["Status"]["health"], "ok");
    assert_eq!(shown["Status"]["size"], 1 << 20);
    let error = plugin.get("absent").unwrap_err();
    assert_eq!(error, "no such volume");
}

#[test]
fn an_answer_says_its_length() {
    let wasmvol = Wasmvol::start();
    let answer = wasmvol.plugin().try_call("Plugin.Activate", "").unwrap();
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
    assert_eq!(answer.header("transfer-encoding"), None);
    assert!(answer.header("content-type").unwrap().starts_with("application/"));
}

#[test]
fn the_head_and_the_body_of_an_answer_leave_in_one_write() {
    const ANSWERS: u64 = 200;
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("written", &[]).unwrap();
    let mut socket = Socket::connect(&plugin.socket).unwrap();
    for (call, body) in [
        ("Plugin.Activate", ""),
        ("VolumeDriver.Capabilities", "{}"),
        ("VolumeDriver.Get", r#"{"Name":"written"}"#),
        ("VolumeDriver.Get", r#"{"Name":"absent"}"#),
        ("VolumeDriver.Path", r#"{"Name":"written"}"#),
        ("VolumeDriver.List", "{}"),
    ] {
        let before = wasmvol.writes();
        for _ in 0..ANSWERS {
            socket.send(request(call, body)).unwrap();
            assert!(!socket.read().unwrap().body.is_empty());
        }
        // None of these calls writes anything else. A line of the log or two may fall into the time of them.
        let writes = wasmvol.writes() - before;
        assert!(
            (ANSWERS..ANSWERS + ANSWERS / 2).contains(&writes),
            "{call}: {writes} writes for {ANSWERS} answers"
        );
    }
}

#[test]
fn a_request_in_flight_is_answered_by_the_daemon_that_ends_and_new_ones_by_the_next() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let old = wasmvol.daemon();
    let mut idle = Socket::connect(&plugin.socket).unwrap();
    idle.send(request("Plugin.Activate", "")).unwrap();
    idle.read().unwrap().result().unwrap();
    let mut busy = begun_create(&wasmvol);
    send(old, Signal::TERM);
    assert!(idle.has_ended(), "a connection without a request is closed at once");
    let mut new = Socket::connect(&plugin.socket).unwrap();
    new.send(request("VolumeDriver.Get", r#"{"Name":"drained"}"#)).unwrap();
    // To connect wakes whoever accepts: once it sleeps again, it has either answered or never will.
    until("the old daemon sleeps", SOON, || is_asleep(old).then_some(()));
    assert!(new.is_silent(), "the old daemon takes no new request");
    send(wasmvol.mountd(), Signal::CONT);
    busy.read().unwrap().result().unwrap();
    assert!(busy.has_ended());
    let got = new.read().unwrap().result().unwrap();
    assert_eq!(got["Volume"]["Name"], "drained");
    assert_ne!(wasmvol.daemon(), old);
}

#[test]
fn a_request_in_flight_is_answered_when_wasmvol_is_stopped() {
    let mut wasmvol = Wasmvol::start();
    let mut busy = begun_create(&wasmvol);
    // It arrives with the next signal.
    wasmvol.signal(Signal::TERM);
    wasmvol.signal(Signal::CONT);
    busy.read().unwrap().result().unwrap();
    assert!(busy.has_ended());
    assert!(wasmvol.wait_end().success());
    wasmvol.run();
    assert_eq!(wasmvol.plugin().list(), ["drained"]);
}

/// A Create that the daemon has taken and cannot end before mountd goes on.
fn begun_create(wasmvol: &Wasmvol) -> Socket {
    send(wasmvol.mountd(), Signal::STOP);
    let mut socket = Socket::connect(&wasmvol.plugin().socket).unwrap();
    socket.send(request("VolumeDriver.Create", r#"{"Name":"drained"}"#)).unwrap();
    // One thread reads in the order of arrival: it has read that request when it answers this one.
    assert_eq!(wasmvol.plugin().list(), Vec::<String>::new());
    socket
}

/// Whether a process's first thread waits for something.
fn is_asleep(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/task/{process}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().starts_with(" S")
}

#[test]
fn get_never_says_no_while_the_daemon_starts() {
    let mut wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("known", &[]).unwrap();
    for _ in 0..3 {
        assert!(wasmvol.stop().success());
        // The drivers are compiled anew, which takes a while.
        std::fs::remove_dir_all(wasmvol.state().join("cache")).unwrap();
        wasmvol.launch();
        until("Get is answered", SOON, || {
            let answer = plugin.try_call("VolumeDriver.Get", r#"{"Name":"known"}"#).ok()?;
            Some(answer.result().unwrap())
        });
        assert_eq!(plugin.list(), ["known"]);
        // A verb waits for the driver that it needs.
        plugin.mount("known", "id").unwrap();
        plugin.unmount("known", "id").unwrap();
        wasmvol.wait_ready();
    }
}

#[test]
fn the_socket_is_roots_alone() {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let wasmvol = Wasmvol::start();
    let metadata = std::fs::metadata(&wasmvol.plugin().socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!((metadata.mode() & 0o777, metadata.uid(), metadata.gid()), (0o600, 0, 0));
}
