//! Answers that ask the host for what the driver was not given.
//!
//! What is asked for is `with`: its parts with `|` between, and `%0a` for what an option's text may not hold. A mount option is `key`,
//! `key=text`, `key:number` or `key@secret`.

use crate::Said;
use crate::bindings::wasmvol::driver::types::{
    Device, Directory, Filesystem, HostDirectory, Image, MountOption, MountValue, NamedDirectory,
    Other, Overlay, Owner, Plan, Program, Share, Source, Storage,
};

const OWNER: Owner = Owner { uid: 0, gid: 0, mode: 0o755 };

/// What is to be made for the volume: a directory, if nothing else is said.
pub(crate) fn storage(act: &str, with: &str) -> Said<Storage> {
    let parts = parts(with)?;
    let part = |at| part(&parts, at);
    Ok(match act {
        "make-named" => Storage::NamedDirectory(NamedDirectory {
            root: part(0),
            directory: Some(part(1)),
            owner: OWNER,
            limit: None,
        }),
        "reveal-directory" => Storage::NamedDirectory(NamedDirectory {
            root: "/srv".to_owned(),
            directory: Some(part(0) + "\n"),
            owner: OWNER,
            limit: None,
        }),
        "populate-thin" => Storage::Image(Image {
            size: 600 << 20,
            thin: true,
            filesystem: Filesystem::Ext4,
            encrypt: None,
            owner: OWNER,
        }),
        "make-image" => Storage::Image(Image {
            size: 8 << 20,
            thin: true,
            filesystem: Filesystem::Ext4,
            encrypt: parts.first().cloned(),
            owner: OWNER,
        }),
        "make-other" | "reveal-kind" => {
            Storage::Other(Other { kind: part(0), options: Vec::new() })
        }
        _ => Storage::Directory(Directory { owner: OWNER, limit: None, over: None }),
    })
}

/// Where the volume's data is said to be: in its storage, if nothing else is said.
pub(crate) fn plan(act: &str, with: &str) -> Said<Plan> {
    let parts = parts(with)?;
    let part = |at| part(&parts, at);
    let options = |from| parts.iter().skip(from).map(|text| option(text)).collect::<Said<Vec<_>>>();
    let source = match act {
        "plan-directory" => Source::HostDirectory(HostDirectory { path: part(0), make: None }),
        "plan-make" => Source::HostDirectory(HostDirectory { path: part(0), make: Some(OWNER) }),
        "plan-overlay" => {
            Source::Overlay(Overlay { lower: parts.clone(), volatile: false, reset: false })
        }
        "plan-share" => Source::Share(Share {
            kind: part(0),
            server: part(1),
            path: part(2),
            options: options(3)?,
            make: None,
        }),
        "plan-device" => Source::Device(Device {
            path: part(0),
            filesystem: part(1),
            options: options(2)?,
            make: None,
        }),
        // What is on it is made anew, if nothing seems to be.
        "plan-blank" => Source::Device(Device {
            path: part(0),
            filesystem: part(1),
            options: Vec::new(),
            make: Some(OWNER),
        }),
        "plan-program" => {
            Source::Program(Program { name: part(0), source: part(1), options: options(2)? })
        }
        "plan-other" => Source::Other(Other { kind: part(0), options: options(1)? }),
        _ => Source::Storage,
    };
    let subpath = (act == "plan-inside").then(|| part(0));
    Ok(Plan { source, read_only: false, no_exec: false, subpath, id_map: None })
}

fn part(parts: &[String], at: usize) -> String {
    parts.get(at).cloned().unwrap_or_default()
}

fn parts(with: &str) -> Said<Vec<String>> {
    with.split('|').map(decoded).collect()
}

fn decoded(text: &str) -> Said<String> {
    let mut pieces = text.split('%');
    let mut decoded = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(code.ok_or("two digits follow a `%`")?.into());
        decoded.push_str(&piece[2..]);
    }
    Ok(decoded)
}

fn option(text: &str) -> Said<MountOption> {
    let (key, value) = match text.find(['=', ':', '@']) {
        None => (text, MountValue::Present),
        Some(at) => {
            let (key, value) = (&text[..at], &text[at + 1..]);
            let value = match &text[at..=at] {
                "=" => MountValue::Text(value.to_owned()),
                ":" => MountValue::Number(value.parse().map_err(|_| "no number")?),
                _ => MountValue::Secret(value.to_owned()),
            };
            (key, value)
        }
    };
    Ok(MountOption { key: key.to_owned(), value })
}
