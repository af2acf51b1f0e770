//! The command line, as `wasmvol serve` writes it. Nobody types it, so there is no help, only one line for a mistake.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;

use crate::sys;

/// The form of the command line.
const USAGE: &str = "usage: wasmvol-mountd --daemon PATH --state-dir DIR --runtime-dir DIR --config-dir DIR [--drivers-dir DIR] \
     --uid N --gid N (--plugin NAME=PATH | --plugin-fd NAME=FD) (--admin PATH | --admin-fd FD) [-- ARGUMENTS OF THE DAEMON]";
const FLAGS: [&str; 11] = [
    "--daemon",
    "--state-dir",
    "--runtime-dir",
    "--config-dir",
    "--drivers-dir",
    "--uid",
    "--gid",
    "--plugin",
    "--plugin-fd",
    "--admin",
    "--admin-fd",
];

/// Where a socket comes from.
pub(crate) enum Listen {
    /// mountd binds it and unlinks it in the end.
    Path(String),
    /// systemd bound it; it listens already.
    Inherited(OwnedFd),
}

/// What mountd was told. Every path is absolute.
pub(crate) struct Args {
    pub(crate) daemon: String,
    pub(crate) state: String,
    pub(crate) runtime: String,
    pub(crate) config: String,
    pub(crate) drivers: Option<String>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The plugin's name.
    pub(crate) plugin: String,
    /// The plugin's socket and the admin's.
    pub(crate) listen: [Listen; 2],
    pub(crate) extra: Vec<String>,
}

impl Args {
    /// Reads everything after the program's name and takes over inherited sockets: to be called before any file is opened.
    ///
    /// # Errors
    /// One line that names the argument.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut args = args.into_iter().map(|arg| {
            arg.into_string().map_err(|arg| format!("argument {arg:?} is not UTF-8: rename it"))
        });
        let mut given = BTreeMap::new();
        while let Some(flag) = args.next().transpose()?.filter(|flag| flag != "--") {
            let Some(known) = FLAGS.iter().find(|known| **known == flag) else {
                return Err(format!("no argument `{flag}`; {USAGE}"));
            };
            let value =
                args.next().transpose()?.ok_or_else(|| format!("`{flag}` needs a value"))?;
            if given.insert(*known, value).is_some() {
                return Err(format!("`{flag}` is given twice"));
            }
        }
        let mut take = |flag: &str| given.remove(flag);
        let (plugin, place, inherited) = match (take("--plugin"), take("--plugin-fd")) {
            (Some(value), None) => split(&value).map(|(name, path)| (name, Some(path), None))?,
            (None, Some(value)) => split(&value).map(|(name, fd)| (name, None, Some(fd)))?,
            _ => return Err(format!("one of `--plugin` and `--plugin-fd` is needed; {USAGE}")),
        };
        let listen = [
            listen("--plugin", place, inherited)?,
            listen("--admin", take("--admin"), take("--admin-fd"))?,
        ];
        let mut required =
            |flag: &str| take(flag).ok_or_else(|| format!("`{flag}` is missing; {USAGE}"));
        Ok(Self {
            daemon: absolute("--daemon", required("--daemon")?)?,
            state: absolute("--state-dir", required("--state-dir")?)?,
            runtime: absolute("--runtime-dir", required("--runtime-dir")?)?,
            config: absolute("--config-dir", required("--config-dir")?)?,
            uid: unprivileged("--uid", &required("--uid")?)?,
            gid: unprivileged("--gid", &required("--gid")?)?,
            drivers: take("--drivers-dir").map(|dir| absolute("--drivers-dir", dir)).transpose()?,
            plugin,
            listen,
            extra: args.collect::<Result<_, _>>()?,
        })
    }
}

fn split(value: &str) -> Result<(String, String), String> {
    let (name, place) =
        value.split_once('=').ok_or_else(|| format!("`{value}` has no `=`; {USAGE}"))?;
    Ok((name.to_owned(), place.to_owned()))
}

fn listen(flag: &str, path: Option<String>, fd: Option<String>) -> Result<Listen, String> {
    match (path, fd) {
        (Some(path), None) => absolute(flag, path).map(Listen::Path),
        (None, Some(fd)) => {
            let number =
                fd.parse().map_err(|_| format!("`{flag}-fd` needs a number, not `{fd}`"))?;
            let socket = sys::inherited(number).map_err(|e| format!("`{flag}-fd` {fd}: {e}"))?;
            Ok(Listen::Inherited(socket))
        }
        _ => Err(format!("one of `{flag}` and `{flag}-fd` is needed; {USAGE}")),
    }
}

fn absolute(flag: &str, value: String) -> Result<String, String> {
    if value.starts_with('/') && !value.contains(char::is_control) {
        Ok(value)
    } else {
        Err(format!("`{flag}` needs an absolute path, not {value:?}"))
    }
}

/// The daemon must not be root, and the largest number means "nobody" to setresuid.
fn unprivileged(flag: &str, value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(id) if id != 0 && id != u32::MAX => Ok(id),
        _ => Err(format!("`{flag}` needs the number of an unprivileged id, not `{value}`")),
    }
}
