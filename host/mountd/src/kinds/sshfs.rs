//! sshfs: takes its mount by the number of the file, so it needs no helper.
//!
//! Pure. Called by `command`.

use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Fault, FaultKind, MountOption, MountValue, Peer, Program};

use super::command::{Command, Content, FUSE_FD, INPUT, odd};
use super::room::ROOM;
use crate::fault::fault;

/// The command line for a plan.
pub(super) fn command(program: &Program) -> Result<Command, Fault> {
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
    let is_noise =
        |line: &str| line.starts_with("read: ") || line.starts_with("remote host has disconnected");
    Ok(Command {
        path: "/usr/bin/sshfs",
        argv,
        files,
        server: Some(server),
        is_noise,
        helper: None,
        begins_blindly: false,
        keeps_files: false,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn option(key: &str, value: MountValue) -> MountOption {
        MountOption { key: key.into(), value }
    }

    fn with_key(source: &str) -> Program {
        let key = option("key", MountValue::Secret("k".into()));
        let host_key = option("host-key", MountValue::Text("ssh-rsa A".into()));
        Program { name: "sshfs".into(), source: source.into(), options: vec![key, host_key] }
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
