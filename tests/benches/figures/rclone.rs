//! The same calls to `rclone serve docker`, Debian's, as far as it can follow: what a client waits for at 10, 1,000 and 10,000 volumes.
//!
//! It writes its whole state at each Create, so 10,000 of them would take minutes: beyond the first ones it is started with a state
//! that has the rest.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::instance::{connect, mortal, volume};
use crate::many::{SIZES, Timed, times};
use crate::report::{Pair, Report};
use crate::{Places, Result, say};

/// Its state, in its cache directory.
const STATE: &str = "docker-plugin.state";

pub(crate) fn measure(places: &Places, own: &[Timed], report: &mut Report) -> Result<()> {
    let Some(program) = program() else {
        say("bench: no `rclone` here: left out");
        return Ok(());
    };
    let dir = places.state.join("rclone");
    let data = dir.join("data");
    for part in ["base", "cache", "data"] {
        fs::create_dir_all(dir.join(part))?;
    }
    // Volumes with the options `type` and `path` are lost when it starts again.
    let remote = format!(":local:{}", data.display());
    let body =
        |name: &str| format!("{{\"Name\":\"{name}\",\"Opts\":{{\"remote\":\"{remote}\"}}}}\n");
    for (size, own) in SIZES.into_iter().zip(own) {
        grow(&dir.join("cache").join(STATE), size)?;
        let socket = places.runtime.join("rclone.sock");
        let mut server = mortal(&program)
            .args(["serve", "docker", "--no-spec", "--log-file"])
            .arg(dir.join("log"))
            .arg("--socket-addr")
            .arg(&socket)
            .arg("--base-dir")
            .arg(dir.join("base"))
            .arg("--cache-dir")
            .arg(dir.join("cache"))
            .spawn()?;
        let theirs = connect(&socket).and_then(|mut client| {
            if size == SIZES[0] {
                (0..size).try_for_each(|n| {
                    client.call("VolumeDriver.Create", &body(&volume(n))).map(drop)
                })?;
            }
            times(&mut client, body)
        });
        server.kill()?;
        server.wait()?;
        // A killed one leaves it, and the next would not start.
        fs::remove_file(&socket)?;
        let theirs = theirs?;
        for (call, own, rclone) in [
            ("Get", own.get, theirs.get),
            ("Create", own.create, theirs.create),
            ("List", own.list, theirs.list),
        ] {
            report.pair(Pair { call: format!("{call} at {size} volumes"), own, rclone });
        }
    }
    Ok(())
}

/// Makes a state of `size` volumes like the first one; no state yet stays none. It keeps them in no order.
fn grow(state: &Path, size: usize) -> Result<()> {
    let Ok(text) = fs::read(state) else { return Ok(()) };
    let volumes: Vec<Value> = serde_json::from_slice(&text)?;
    let first = volumes.iter().map(Value::to_string).find(|text| text.contains(&volume(0)));
    let first = first.ok_or("rclone forgot its volumes")?;
    let all: Vec<_> = (0..size).map(|number| first.replace(&volume(0), &volume(number))).collect();
    Ok(fs::write(state, format!("[{}]", all.join(",")))?)
}

fn program() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("rclone")).find(|file| file.exists())
}
