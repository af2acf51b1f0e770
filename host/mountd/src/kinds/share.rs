//! What a server shares, mounted by the kernel: its address asked for and checked, its options set one by one, its mount made.
//!
//! Called in a child, because a server may never answer; the parent only moves what comes out, and lets go of it again: see
//! [`wait`](super::wait). No helper of the distribution's is run, no option becomes part of a string, and a secret goes into the
//! kernel alone.

use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::open_tree;
use wasmvol_plan::frame::Mount;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{
    DriverName, Fault, FaultKind, Grants, Id, MountOption, MountValue, Server, Share,
};

use super::{Assembled, Shows, directory, host_directory};
use crate::anchor::{CLONE, create, superblock};
use crate::fault::{Context, fault, text};
use crate::mounter::Mounter;
use crate::places::PLACE;

pub(super) fn assemble(
    mounter: &Mounter,
    wanted: &Mount,
    share: &Share,
    grants: &Grants,
) -> Result<Assembled, Fault> {
    let address = resolve(share, grants)?;
    let options = options(mounter, wanted, share, address)?;
    let read_only = wanted.plan.read_only && !needs_a_seal(share);
    let tree = create(&share.kind, &options, read_only).map_err(|(errno, words)| {
        let (source, why) = (share.source(), text(errno));
        let kind = if errno == Errno::NODEV { FaultKind::Invalid } else { FaultKind::Failed };
        Fault::new(kind, format!("cannot mount `{source}`: {why}{words}{}", cure(share, errno)))
    })?;
    Ok(Assembled { tree: show(mounter, wanted, share, tree)?, shows: Shows::Unknown })
}

pub(super) fn is_it(wanted: &Mount, share: &Share, line: &Entry<'_>) -> bool {
    if wanted.plan.read_only && needs_a_seal(share) {
        return line.filesystem == "overlay" && line.source == seal(wanted.id);
    }
    // Behind it NFS names the directory inside, which the plan's subpath may be.
    line.filesystem == share.kind && line.source.starts_with(&share.source())
}

/// Whether the kernel takes no `ro` for a file system of this kind: then an overlay without an upper layer refuses writes. NFS takes it,
/// and could not be read through an overlay by others than root, whom servers trust least.
fn needs_a_seal(share: &Share) -> bool {
    share.kind == "cifs"
}

/// The source of that overlay. It is not the volume's own file system: others use the share too.
fn seal(id: Id) -> String {
    format!("{SEAL}{id}")
}
const SEAL: &str = "wasmvol-share-";

/// The first address of a server, all of which must be granted: a name's owner may point it anywhere.
fn resolve(share: &Share, grants: &Grants) -> Result<IpAddr, Fault> {
    let Share { kind, server, .. } = share;
    let addresses: Vec<IpAddr> = match server.parse() {
        Ok(address) => vec![address],
        Err(_) => match (server.as_str(), 0).to_socket_addrs() {
            Ok(found) => found.map(|socket| socket.ip()).collect(),
            Err(e) => {
                let why = e.to_string();
                let why = why.strip_prefix("failed to lookup address information: ");
                let why = why.unwrap_or("no answer").to_lowercase();
                return fault(
                    FaultKind::Failed,
                    format!(
                        "cannot resolve server `{server}`: {why}: see whether this machine knows that name"
                    ),
                );
            }
        },
    };
    addresses.iter().try_for_each(|address| grants.share(kind, server, *address))?;
    match addresses.first() {
        Some(address) => Ok(*address),
        None => fault(FaultKind::Failed, format!("server `{server}` has no address")),
    }
}

/// Every option with its value; an empty one is a flag.
fn options(
    mounter: &Mounter,
    wanted: &Mount,
    share: &Share,
    address: IpAddr,
) -> Result<Vec<(String, String)>, Fault> {
    let fixed: &[(&str, &str)] = match share.kind.as_str() {
        // A server may name another one, which nobody granted.
        "cifs" => &[("nodfs", "")],
        // Otherwise it would be the file system of whoever has mounted the same to write.
        _ if wanted.plan.read_only => &[("nosharecache", "")],
        _ => &[],
    };
    let pin = if share.kind == "cifs" { "ip" } else { "addr" };
    let mut options =
        vec![("source".to_owned(), share.source()), (pin.to_owned(), address.to_string())];
    options.extend(fixed.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    for MountOption { key, value } in &share.options {
        let value = match value {
            MountValue::Present => String::new(),
            MountValue::Text(text) => text.clone(),
            MountValue::Number(number) => number.to_string(),
            MountValue::Secret(name) => secret(
                mounter,
                &wanted.driver,
                name,
                Server { host: &share.server, address: Some(address) },
            )?,
        };
        options.retain(|(other, _)| other != key);
        options.push((key.clone(), value));
    }
    Ok(options)
}

/// The text of a secret that this server may have.
fn secret(
    mounter: &Mounter,
    driver: &DriverName,
    name: &str,
    server: Server<'_>,
) -> Result<String, Fault> {
    let secret = mounter.places.secret(name, driver, Some(server))?;
    let text = str::from_utf8(secret.bytes()).map(|text| text.strip_suffix('\n').unwrap_or(text));
    match text {
        Ok(text) if !text.is_empty() && !text.contains(char::is_control) => Ok(text.to_owned()),
        _ => fault(FaultKind::Invalid, format!("secret `{name}` is no line of text: set it again")),
    }
}

/// What a person can do about a mount that failed.
fn cure(share: &Share, errno: Errno) -> String {
    let cure = match errno {
        Errno::ACCESS | Errno::PERM if share.kind == "cifs" => {
            "see whether the user, the domain and the secret are right"
        }
        Errno::ACCESS | Errno::PERM => "see whether the server exports it to this machine",
        Errno::NOENT | Errno::NXIO => "see whether the server shares it under that name",
        Errno::NODEV => "this kernel has no such file system: install it, or load its module",
        Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::INVAL => {
            "see whether the server speaks that version with these options"
        }
        Errno::CONNREFUSED
        | Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::TIMEDOUT
        | Errno::HOSTDOWN => "see whether the server runs and can be reached",
        _ => return String::new(),
    };
    format!(": {cure}")
}

/// What the volume shows of a share: a directory inside it, made where it is missing, and nothing else; sealed where that is needed.
fn show(mounter: &Mounter, wanted: &Mount, share: &Share, tree: OwnedFd) -> Result<OwnedFd, Fault> {
    let sealed = wanted.plan.read_only && needs_a_seal(share);
    if wanted.plan.subpath.is_none() && !sealed {
        return Ok(tree);
    }
    let subpath = wanted.plan.subpath.as_deref().unwrap_or_default();
    let what = format!("open {} in `{}`", Quoted::new(subpath), share.source());
    let top = tree.try_clone().trying(&what)?;
    let inside = host_directory::descend(top, subpath, share.make, &what)?;
    mounter.attach_unseen(&tree).trying(&what)?;
    let empty = format!("{}/empty", mounter.places.runtime);
    let empty = rustix::fs::open(empty, PLACE, Mode::empty()).trying(&what)?;
    if !sealed {
        return open_tree(&inside, "", CLONE).trying(&what);
    }
    let layers = directory::joined([&inside, &empty]);
    superblock("overlay", &[("source", seal(wanted.id)), ("lowerdir", layers)], true)
}

/// Whether a mount asks a server.
pub(super) fn is_remote(line: &Entry<'_>) -> bool {
    matches!(&*line.filesystem, "nfs" | "nfs4" | "cifs" | "smb3")
        || line.filesystem.starts_with("fuse")
        || line.source.starts_with(SEAL)
}
