//! The command line, as `wasmvol serve` writes it: in this order. Nobody types it, so there is no help, only one line for a mistake.

use std::ffi::OsString;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::sys;

/// The form of the command line.
const USAGE: &str = "usage: wasmvol-mountd --daemon PATH --state-dir DIR --runtime-dir DIR --config-dir DIR [--drivers-dir DIR] \
     --uid N --gid N (--plugin NAME=PATH | --plugin-fd NAME=FD) (--admin PATH | --admin-fd FD) [-- ARGUMENTS OF THE DAEMON]";

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

/// The words that were not read yet, the next one last.
struct Words(Vec<String>);

impl Args {
    /// Reads everything after the program's name and takes over inherited sockets: to be called before any file is opened. An error
    /// is one line that names the argument.
    pub(crate) fn parse(args: impl DoubleEndedIterator<Item = OsString>) -> Result<Self, String> {
        let text = |arg: OsString| arg.into_string().map_err(|arg| format!("{arg:?} is not UTF-8"));
        let mut words = Words(args.rev().map(text).collect::<Result<_, _>>()?);
        let (daemon, state) = (words.path("--daemon")?, words.path("--state-dir")?);
        let (runtime, config) = (words.path("--runtime-dir")?, words.path("--config-dir")?);
        let has_drivers = words.0.last().is_some_and(|word| word == "--drivers-dir");
        let drivers = has_drivers.then(|| words.path("--drivers-dir")).transpose()?;
        let (uid, gid) = (words.id("--uid")?, words.id("--gid")?);
        let (flag, named) = words.either("--plugin", "--plugin-fd")?;
        let (plugin, place) = named.split_once('=').ok_or_else(|| expected("NAME=", &named))?;
        let plugin_socket = listen(&flag, place)?;
        let (flag, place) = words.either("--admin", "--admin-fd")?;
        let (plugin, listen) = (plugin.to_owned(), [plugin_socket, listen(&flag, &place)?]);
        if let Some(word) = words.0.pop().filter(|word| word != "--") {
            return Err(expected("--", &word));
        }
        let extra = words.0.into_iter().rev().collect();
        Ok(Self { daemon, state, runtime, config, drivers, uid, gid, plugin, listen, extra })
    }
}

fn expected(what: &str, found: &str) -> String {
    format!("expected `{what}`, not `{found}`; {USAGE}")
}

fn absolute(flag: &str, path: String) -> Result<String, String> {
    let fits = path.starts_with('/') && !path.contains(char::is_control);
    if fits { Ok(path) } else { Err(format!("`{flag}` needs an absolute path, not {path:?}")) }
}

fn listen(flag: &str, place: &str) -> Result<Listen, String> {
    if !flag.ends_with("-fd") {
        return absolute(flag, place.to_owned()).map(Listen::Path);
    }
    let socket = place.parse().map_err(|_| Errno::INVAL).and_then(sys::inherited);
    let bad = |e| format!("`{flag}` needs the number of an open file, not `{place}`: {e}");
    socket.map(Listen::Inherited).map_err(bad)
}

impl Words {
    /// The next flag, which is one of two, and its value.
    fn either(&mut self, flag: &str, other: &str) -> Result<(String, String), String> {
        let found = self.0.pop().unwrap_or_default();
        if found != flag && found != other {
            return Err(expected(flag, &found));
        }
        let value = self.0.pop().ok_or_else(|| format!("`{found}` needs a value"))?;
        Ok((found, value))
    }

    fn path(&mut self, flag: &str) -> Result<String, String> {
        self.either(flag, flag).and_then(|(_, path)| absolute(flag, path))
    }

    /// The daemon must not be root, and the largest number means "nobody" to setresuid.
    fn id(&mut self, flag: &str) -> Result<u32, String> {
        let (_, value) = self.either(flag, flag)?;
        let id = value.parse().ok().filter(|id| *id != 0 && *id != u32::MAX);
        id.ok_or_else(|| format!("`{flag}` needs the number of an unprivileged id, not `{value}`"))
    }
}
