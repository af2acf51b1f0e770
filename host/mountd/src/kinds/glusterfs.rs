//! glusterfs: a volume of a Gluster cluster, or a directory in one.
//!
//! Pure. Called by `command`. Its servers tell it what it loads and where it goes from there; as it runs as nobody, they can have it do
//! no more than nobody can.

use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Fault, FaultKind, MountOption, MountValue, Peer, Program};

use super::command::{Command, MOUNTPOINT, odd};
use super::room::ROOM;

/// Most servers that are asked in turn.
const SERVERS_MAX: usize = 16;

/// The command line for a plan.
pub(super) fn command(program: &Program) -> Result<Command, Fault> {
    let (servers, volume) = parts(&program.source)?;
    let mut argv = ["glusterfs", "--no-daemon", "--log-level=INFO"].map(str::to_owned).to_vec();
    argv.push(format!("--log-file={ROOM}/log"));
    argv.extend(servers.iter().map(|server| format!("--volfile-server={server}")));
    argv.push(format!("--volfile-id={volume}"));
    for MountOption { key, value } in &program.options {
        match (key.as_str(), value) {
            ("subdir", MountValue::Text(path)) if is_path(path) => {
                argv.push(format!("--subdir-mount={path}"));
            }
            ("port", MountValue::Number(port @ 1..=65535)) => {
                argv.push(format!("--volfile-server-port={port}"));
            }
            ("direct-io", MountValue::Present) => argv.push("--direct-io-mode=enable".to_owned()),
            ("acl", MountValue::Present) => argv.push("--acl".to_owned()),
            _ => return odd(program, key),
        }
    }
    argv.push(MOUNTPOINT.to_owned());
    Ok(Command {
        path: "/usr/sbin/glusterfs",
        argv,
        files: Vec::new(),
        server: None,
        // Errors say why, but for those of a mount that it could not make or take away by itself; that a server does not answer is none.
        is_noise: |line| {
            let says_why = line.contains("] E [") && !line.contains("[mount.c:");
            !says_why && !line.contains("disconnected from remote-host")
        },
        helper: Some("/usr/bin/fusermount-glusterfs"),
        begins_blindly: true,
        keeps_files: false,
    })
}

/// Servers and volume of `server,server:/volume`.
fn parts(source: &str) -> Result<(Vec<&str>, &str), Fault> {
    let parts = source.split_once(":/").and_then(|(servers, volume)| {
        let servers: Vec<_> = servers.split(',').collect();
        let is_host = |host: &&str| !host.contains('/') && host.parse::<Peer>().is_ok();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let is_volume = !volume.is_empty() && volume.bytes().all(plain);
        let are_servers = servers.len() <= SERVERS_MAX && servers.iter().all(is_host);
        (is_volume && are_servers).then_some((servers, volume))
    });
    let shown = Quoted::new(source);
    parts.ok_or_else(|| {
        Fault::new(FaultKind::Invalid, format!("{shown} is no `server,server:/volume`"))
    })
}

fn is_path(path: &str) -> bool {
    let is_name = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.strip_prefix('/').is_some_and(|path| path.split('/').all(is_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(source: &str, more: &[(&str, MountValue)]) -> Program {
        let more = more.iter().cloned();
        let options = more.map(|(key, value)| MountOption { key: key.into(), value }).collect();
        Program { name: "glusterfs".into(), source: source.into(), options }
    }

    #[test]
    fn servers_are_asked_in_turn() {
        let argv = command(&program("a.example,10.0.0.1,::1:/vol", &[])).unwrap().argv;
        for server in ["a.example", "10.0.0.1", "::1"] {
            assert!(argv.contains(&format!("--volfile-server={server}")), "{argv:?}");
        }
        assert!(argv.contains(&"--volfile-id=vol".to_owned()), "{argv:?}");
    }

    #[test]
    fn what_is_no_server_and_volume_is_no_source() {
        for source in ["vol", "a:vol", "a:/", "a:/vol/x", "a,:/vol", "a b:/vol", "10.0.0.0/8:/vol"]
        {
            command(&program(source, &[])).unwrap_err();
        }
    }

    #[test]
    fn an_option_without_a_place_on_the_command_line_is_refused() {
        for (key, value) in [
            ("volfile", MountValue::Text("/etc/x".into())),
            ("subdir", MountValue::Text("/a/../b".into())),
            ("subdir", MountValue::Text("a".into())),
            ("port", MountValue::Number(0)),
        ] {
            let refused = command(&program("a:/vol", &[(key, value)])).unwrap_err().message;
            assert!(refused.contains(&format!("`{key}`")), "{refused}");
        }
    }
}
