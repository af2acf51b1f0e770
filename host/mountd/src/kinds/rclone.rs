//! rclone: any remote that its configuration names, which is a secret as a whole.
//!
//! Pure. Called by `command`. The configuration says which server gets what password: no option of a plan can name another one.

use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Fault, FaultKind, MountOption, MountValue, Program};

use super::command::{Command, Content, KEPT, MOUNTPOINT, odd};
use super::room::ROOM;
use crate::fault::fault;

/// Its ways to keep files on the disk, and whether one does.
const CACHES: [(&str, bool); 4] =
    [("off", false), ("minimal", true), ("writes", true), ("full", true)];

/// The command line for a plan.
pub(super) fn command(program: &Program) -> Result<Command, Fault> {
    check(&program.source)?;
    let mut argv: Vec<String> =
        ["rclone", "mount", &program.source, MOUNTPOINT].map(str::to_owned).into();
    let mut word = |name: &str, value: String| argv.push(format!("--{name}={value}"));
    word("config", format!("{ROOM}/config"));
    word("cache-dir", KEPT.to_owned());
    // Nobody can answer it, and what it says last is told without a date.
    word("ask-password", "false".to_owned());
    word("log-format", String::new());
    // The modes that are asked for are the modes that are shown.
    word("umask", "0".to_owned());
    // Short enough for a second try within the time that a child may take.
    word("contimeout", "15s".to_owned());
    let (mut files, mut keeps_files) = (Vec::new(), false);
    for MountOption { key, value } in &program.options {
        match (key.as_str(), value) {
            ("config", MountValue::Secret(name)) => {
                files.push(("config", Content::Config(name.clone())));
            }
            ("cache", MountValue::Text(wanted)) => {
                let known = CACHES.iter().find(|(name, _)| name == wanted);
                let Some((name, keeps)) = known else { return odd(program, key) };
                keeps_files = *keeps;
                word("vfs-cache-mode", (*name).to_owned());
            }
            ("cache-size", MountValue::Number(bytes)) => {
                word("vfs-cache-max-size", format!("{bytes}B"));
            }
            ("buffer-size", MountValue::Number(bytes)) => word("buffer-size", format!("{bytes}B")),
            ("cache-age", MountValue::Number(ms)) => word("vfs-cache-max-age", format!("{ms}ms")),
            ("write-back", MountValue::Number(ms)) => word("vfs-write-back", format!("{ms}ms")),
            ("list-age", MountValue::Number(ms)) => word("dir-cache-time", format!("{ms}ms")),
            ("uid" | "gid", MountValue::Number(id @ 0..=0xffff_fffe)) => word(key, id.to_string()),
            ("file-mode", MountValue::Number(mode @ 0..=0o777)) => {
                word("file-perms", format!("{mode:04o}"));
            }
            ("dir-mode", MountValue::Number(mode @ 0..=0o777)) => {
                word("dir-perms", format!("{mode:04o}"));
            }
            _ => return odd(program, key),
        }
    }
    if files.is_empty() {
        return fault(FaultKind::Invalid, "rclone needs `config`, a secret");
    }
    Ok(Command {
        path: "/usr/bin/rclone",
        argv,
        files,
        server: None,
        is_noise: |_| false,
        helper: Some("/bin/fusermount"),
        begins_blindly: true,
        keeps_files,
    })
}

/// A source names a remote of the configuration, and nothing that it does not know: no path of this host, no remote made up on the
/// spot, and no option of one.
fn check(source: &str) -> Result<(), Fault> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_it = source.split_once(':').is_some_and(|(name, path)| {
        let is_name = !name.is_empty() && name.chars().all(plain);
        is_name && path.split('/').all(|part| part != "..")
    });
    if is_it {
        return Ok(());
    }
    let shown = Quoted::new(source);
    fault(FaultKind::Invalid, format!("{shown} is no `remote:path`, or has a `..` in it"))
}

/// Refuses a configuration that rclone would not understand: it repeats such a line in what it says.
pub(super) fn check_config(name: &str, config: &[u8]) -> Result<(), Fault> {
    let is_one = |line: &str| {
        let is_section = line.starts_with('[') && line.ends_with(']');
        line.is_empty() || line.starts_with(['#', ';']) || is_section || line.contains(['=', ':'])
    };
    let text = str::from_utf8(config).unwrap_or("no text");
    match text.lines().position(|line| !is_one(line.trim())) {
        None => Ok(()),
        Some(at) => {
            let number = at + 1;
            let why = format!(
                "secret `{name}` is no rclone.conf in clear: line {number} is neither `[NAME]` nor `KEY = VALUE`"
            );
            fault(FaultKind::Invalid, why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_is_none_is_refused_and_not_repeated() {
        let encrypted = b"# Encrypted\n\nRCLONE_ENCRYPT_V0:\nhunter2";
        for (config, line) in [
            (&b"hunter2"[..], "line 1 "),
            (b"[nas]\ntype = memory\nhunter2\n", "line 3 "),
            (b"[hunter2", "line 1 "),
            (b"\xffhunter2 = x", "line 1 "),
            (encrypted, "line 4 "),
        ] {
            let refused = check_config("nas", config).unwrap_err().message;
            assert!(refused.contains(line) && !refused.contains("hunter2"), "{refused}");
        }
        let config = b"; made by hand\r\n# so\n\n[nas]\r\ntype = memory\r\n  user: me\n";
        check_config("nas", config).unwrap();
    }

    fn program(source: &str, more: &[(&str, MountValue)]) -> Program {
        let mut options =
            vec![MountOption { key: "config".into(), value: MountValue::Secret("c".into()) }];
        let more = more.iter().cloned();
        options.extend(more.map(|(key, value)| MountOption { key: key.into(), value }));
        Program { name: "rclone".into(), source: source.into(), options }
    }

    #[test]
    fn only_a_remote_of_the_configuration_is_a_source() {
        for source in ["nas:", "nas:a b/c,d", "my.nas-1:/x:y", "nas:a/..b"] {
            command(&program(source, &[])).unwrap();
        }
        for source in ["/etc", "nas", ":local:/etc", "nas,url=x:y", ":", "nas:a/../b", "a b:c"] {
            command(&program(source, &[])).unwrap_err();
        }
    }

    #[test]
    fn an_option_without_a_place_on_the_command_line_is_refused() {
        for (key, value) in [
            ("password-command", MountValue::Text("sh".into())),
            ("cache", MountValue::Text("all".into())),
            ("cache-size", MountValue::Text("1G --config=x".into())),
            ("file-mode", MountValue::Number(0o1777)),
            ("allow-root", MountValue::Present),
        ] {
            let refused = command(&program("nas:", &[(key, value)])).unwrap_err().message;
            assert!(refused.contains(&format!("`{key}`")), "{refused}");
        }
    }

    #[test]
    fn files_are_kept_on_the_disk_only_where_a_cache_is_asked_for() {
        for (cache, keeps) in CACHES {
            let cache = ("cache", MountValue::Text(cache.into()));
            assert_eq!(command(&program("nas:", &[cache])).unwrap().keeps_files, keeps);
        }
    }
}
