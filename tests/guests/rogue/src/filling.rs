//! Filling a volume: with too much, with too many, and with what leads out of it.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use wasip2::filesystem::preopens::get_directories;

use crate::bindings::exports::wasmvol::driver::population::Populated;
use crate::{Said, keeping};

/// More than any limit.
const MANY: usize = 100_000_000;

/// Makes a symlink, to wherever.
fn link(to: &str, name: &str) -> Said<()> {
    let (volume, _) = get_directories().into_iter().next().ok_or("no directory")?;
    volume.symlink_at(to, name).map_err(|code| code.to_string())
}

fn volume(path: &str) -> PathBuf {
    PathBuf::from("/volume").join(path)
}

pub(crate) fn fill(act: &str, with: &str) -> Said<Populated> {
    let told = |error: std::io::Error| error.to_string();
    let mut populated = Populated { state: b"filled".to_vec(), executables: Vec::new() };
    fs::write(volume("greeting"), "hello").map_err(told)?;
    // As fast as some disk.
    let pause = || std::thread::sleep(Duration::from_micros(with.parse().unwrap_or(0)));
    match act {
        "populate-disk" | "populate-thin" => {
            let mut file = File::create(volume("large")).map_err(told)?;
            loop {
                file.write_all(&[1; 64 << 10]).map_err(told)?;
                pause();
            }
        }
        "populate-files" => {
            for number in 0..MANY {
                File::create(volume(&format!("f{number}")))
                    .map_err(|error| format!("number {number}: {error}"))?;
                pause();
            }
        }
        "populate-directories" => {
            for number in 0..MANY {
                fs::create_dir(volume(&format!("d{number}")))
                    .map_err(|error| format!("number {number}: {error}"))?;
                pause();
            }
        }
        "populate-links" => {
            for number in 0..MANY {
                link("greeting", &format!("l{number}"))
                    .map_err(|error| format!("number {number}: {error}"))?;
                pause();
            }
        }
        // Long names, in a directory that is read again and again, and never to its end.
        "populate-listings" => {
            for number in 0..5_000 {
                File::create(volume(&format!("{number:0200}"))).map_err(told)?;
            }
            let mut kept = Vec::new();
            loop {
                kept.push(fs::read_dir("/volume").map_err(told)?);
            }
        }
        "populate-open" => {
            let mut kept = Vec::new();
            loop {
                kept.push(File::create(volume(&format!("f{}", kept.len()))).map_err(told)?);
            }
        }
        "populate-out" => out()?,
        // Paths that somebody else is to make executable.
        "populate-executables" => populated.executables = vec!["greeting".to_owned(); 100_001],
        "populate-executable" => {
            link("greeting", "link")?;
            link("../../../../../../../../bin", "bin")?;
            fs::create_dir(volume("directory")).map_err(told)?;
            populated.executables = vec![with.to_owned()];
        }
        // Links that a plan's subpath is to lead over.
        "plan-inside" => {
            for (to, name) in [("etc", "out"), ("", "root"), ("proc/self/root", "magic")] {
                link(&format!("../../../../../../../../{to}"), name)?;
            }
        }
        "reveal-program" => populated.executables = vec![keeping::reveal("one", with)?],
        "populate-giant" => populated.executables = vec!["x".repeat(4 << 20); 10],
        _ => {}
    }
    Ok(populated)
}

/// Every way out of its directory that it can think of.
fn out() -> Said<()> {
    // A link may say what it likes, as any that a container makes; nothing is reached through it.
    link("../../../../../../../../etc", "etc")?;
    for path in [
        "../etc/passwd",
        "../../../../../../../../etc/passwd",
        "etc/passwd",
        "/etc/passwd",
        "/proc/self/environ",
    ] {
        for path in [volume(path), PathBuf::from(path)] {
            if fs::read(&path).is_ok() || fs::write(&path, "x").is_ok() {
                return Err(format!("`{}` was there", path.display()));
            }
        }
    }
    let renamed = fs::rename(volume("greeting"), volume("../../greeting")).is_ok()
        || fs::hard_link(volume("etc/passwd"), volume("passwd")).is_ok()
        || fs::create_dir(volume("etc/hostile")).is_ok()
        || fs::remove_file(volume("etc/hostname")).is_ok();
    if renamed {
        return Err("something outside was touched".to_owned());
    }
    Ok(())
}
