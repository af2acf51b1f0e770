//! The programs that mountd knows, each with its command line: an option of a plan has a place in it, or is refused.
//!
//! Pure. Called by `program`, in a child. Nothing of a plan becomes a part of a word that a program would read as more than a value, and
//! no secret is in a word: it lies in a file of the room, or comes through stdin.

use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Fault, FaultKind, MountOption, MountValue, Peer, Program};

use super::room::ROOM;
use crate::fault::fault;

/// What is in a file of the room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Text(String),
    /// A secret of that name, as it is.
    Secret(String),
    /// A secret of that name, as one line.
    Password(String),
}

/// A program and how it is started.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) path: &'static str,
    pub(super) argv: Vec<String>,
    /// Files of the room by their names; [`INPUT`] is stdin.
    pub(super) files: Vec<(&'static str, Content)>,
    /// Who gets the secrets, where the command line says it.
    pub(super) server: Option<String>,
    /// Beginnings of lines that it writes after it has said why it ends.
    pub(super) noise: &'static [&'static str],
}

/// The file that becomes stdin, and goes.
pub(super) const INPUT: &str = "input";
/// The number under which a program has its `/dev/fuse`.
pub(super) const FUSE_FD: i32 = 7;

/// The command line for a plan.
pub(super) fn command(program: &Program) -> Result<Command, Fault> {
    match program.name.as_str() {
        "sshfs" => sshfs(program),
        name => fault(FaultKind::Invalid, format!("this host knows no program `{name}`")),
    }
}

fn sshfs(program: &Program) -> Result<Command, Fault> {
    let server = server(&program.source)?;
    let mut argv = vec!["sshfs".to_owned(), program.source.clone(), format!("/dev/fd/{FUSE_FD}")];
    // No file of the host's says how ssh goes anywhere, and no agent or terminal is asked.
    argv.extend(["-f", "-F", "/dev/null"].map(str::to_owned));
    let mut word = |text: &str| argv.extend(["-o".to_owned(), text.to_owned()]);
    for text in ["GlobalKnownHostsFile=/dev/null", "IdentityAgent=none", "IdentitiesOnly=yes"] {
        word(text);
    }
    for text in ["StrictHostKeyChecking=yes", "UpdateHostKeys=no"] {
        word(text);
    }
    // Long enough for a server far away; with what comes after it, shorter than a child may take.
    for text in ["ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=3"] {
        word(text);
    }
    word(&format!("UserKnownHostsFile={ROOM}/known_hosts"));
    let (mut files, mut port) = (Vec::new(), None);
    for MountOption { key, value } in &program.options {
        match (key.as_str(), value) {
            ("port", MountValue::Number(number @ 1..=65535)) => port = Some(*number),
            ("uid" | "gid", MountValue::Number(id @ 0..=0xffff_fffe)) => {
                word(&format!("{key}={id}"));
            }
            ("reconnect", MountValue::Present) => word("reconnect"),
            ("compression", MountValue::Present) => word("Compression=yes"),
            // This file is for one mount: whatever its server is called, this is its key.
            ("host-key", MountValue::Text(text)) => {
                files.push(("known_hosts", Content::Text(format!("* {text}\n"))));
            }
            ("key", MountValue::Secret(name)) => {
                word(&format!("IdentityFile={ROOM}/key"));
                word("BatchMode=yes");
                files.push(("key", Content::Secret(name.clone())));
            }
            ("password", MountValue::Secret(name)) => {
                for text in
                    ["password_stdin", "PubkeyAuthentication=no", "NumberOfPasswordPrompts=1"]
                {
                    word(text);
                }
                files.push((INPUT, Content::Password(name.clone())));
            }
            _ => return odd(program, key),
        }
    }
    if let Some(port) = port {
        argv.extend(["-p".to_owned(), port.to_string()]);
    }
    let has = |name| files.iter().any(|(file, _)| *file == name);
    if !has("known_hosts") || has("key") == has(INPUT) {
        let why = "sshfs needs `host-key`, and either `key` or `password`";
        return fault(FaultKind::Invalid, why);
    }
    let noise = &["read: ", "remote host has disconnected"];
    Ok(Command { path: "/usr/bin/sshfs", argv, files, server: Some(server), noise })
}

/// The host of `user@host:/path`.
fn server(source: &str) -> Result<String, Fault> {
    let parts = source.split_once('@').and_then(|(user, rest)| {
        let (host, path) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once("]:")?,
            None => rest.split_once(':')?,
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let is_user = !user.is_empty() && user.bytes().all(plain);
        let is_host = !host.contains('/') && host.parse::<Peer>().is_ok();
        (is_user && is_host && path.starts_with('/')).then(|| host.to_owned())
    });
    let shown = Quoted::new(source);
    let odd = || Fault::new(FaultKind::Invalid, format!("{shown} is no `user@host:/path`"));
    parts.ok_or_else(odd)
}

fn odd<T>(program: &Program, key: &str) -> Result<T, Fault> {
    let name = &program.name;
    fault(FaultKind::Invalid, format!("{name} has no option `{key}`, or not with such a value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(key: &str, value: MountValue) -> MountOption {
        MountOption { key: key.into(), value }
    }

    fn program(name: &str, source: &str, options: Vec<MountOption>) -> Program {
        Program { name: name.into(), source: source.into(), options }
    }

    fn with_key(source: &str) -> Program {
        let key = option("key", MountValue::Secret("k".into()));
        program(
            "sshfs",
            source,
            vec![key, option("host-key", MountValue::Text("ssh-rsa A".into()))],
        )
    }

    #[test]
    fn what_could_be_more_than_a_server_is_no_source() {
        for source in ["me@host:/d", "me@[::1]:/d", "me@10.0.0.1:/a b,c"] {
            command(&with_key(source)).unwrap();
        }
        for source in [
            "host:/d",
            "me@-oProxyCommand=x:/d",
            "me@host",
            "a b@host:/d",
            "@host:/d",
            "me@10.0.0.0/8:/d",
        ] {
            command(&with_key(source)).unwrap_err();
        }
    }

    #[test]
    fn an_option_without_a_place_on_the_command_line_is_refused() {
        for (key, value) in [
            ("ProxyCommand", MountValue::Text("sh".into())),
            ("port", MountValue::Text("22".into())),
            ("port", MountValue::Number(65536)),
            ("reconnect", MountValue::Text("yes".into())),
        ] {
            let mut wanted = with_key("me@host:/d");
            wanted.options.push(option(key, value));
            let refused = command(&wanted).unwrap_err().message;
            assert!(refused.contains(&format!("`{key}`")), "{refused}");
        }
    }
}
