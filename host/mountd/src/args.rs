//! The command line, as `wasmvol serve` writes it. Nobody types it, so there is no help, only one line for a mistake.

use std::collections::BTreeMap;
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

/// Values by their flags.
struct Given(BTreeMap<String, String>);

impl Args {
    /// Reads everything after the program's name and takes over inherited sockets: to be called before any file is opened.
    ///
    /// # Errors
    /// One line that names the argument.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut args = args.into_iter().map(|arg| {
            arg.into_string().map_err(|arg| format!("argument {arg:?} is not UTF-8: rename it"))
        });
        let mut given = Given(BTreeMap::new());
        while let Some(flag) = args.next().transpose()?.filter(|flag| flag != "--") {
            let value =
                args.next().transpose()?.ok_or_else(|| format!("`{flag}` needs a value"))?;
            if given.0.insert(flag.clone(), value).is_some() {
                return Err(format!("`{flag}` is given twice"));
            }
        }
        let named = ["--plugin", "--plugin-fd"].map(|flag| {
            let value = given.0.remove(flag)?;
            let (name, place) = value.split_once('=')?;
            given.0.insert(flag.to_owned(), place.to_owned());
            Some(name.to_owned())
        });
        let parsed = Self {
            daemon: given.path("--daemon")?,
            state: given.path("--state-dir")?,
            runtime: given.path("--runtime-dir")?,
            config: given.path("--config-dir")?,
            drivers: given
                .0
                .contains_key("--drivers-dir")
                .then(|| given.path("--drivers-dir"))
                .transpose()?,
            uid: given.id("--uid")?,
            gid: given.id("--gid")?,
            plugin: named.into_iter().flatten().next().ok_or_else(|| missing("--plugin NAME="))?,
            listen: [given.listen("--plugin")?, given.listen("--admin")?],
            extra: args.collect::<Result<_, _>>()?,
        };
        match given.0.pop_first() {
            None => Ok(parsed),
            Some((flag, _)) => Err(format!("no argument `{flag}`; {USAGE}")),
        }
    }
}

fn missing(flag: &str) -> String {
    format!("`{flag}` is missing; {USAGE}")
}

impl Given {
    fn take(&mut self, flag: &str) -> Result<String, String> {
        self.0.remove(flag).ok_or_else(|| missing(flag))
    }

    fn path(&mut self, flag: &str) -> Result<String, String> {
        let path = self.take(flag)?;
        if path.starts_with('/') && !path.contains(char::is_control) {
            return Ok(path);
        }
        Err(format!("`{flag}` needs an absolute path, not {path:?}"))
    }

    /// The daemon must not be root, and the largest number means "nobody" to setresuid.
    fn id(&mut self, flag: &str) -> Result<u32, String> {
        let value = self.take(flag)?;
        let id = value.parse().ok().filter(|id| *id != 0 && *id != u32::MAX);
        id.ok_or_else(|| format!("`{flag}` needs the number of an unprivileged id, not `{value}`"))
    }

    fn listen(&mut self, flag: &str) -> Result<Listen, String> {
        let Ok(number) = self.take(&format!("{flag}-fd")) else {
            return self.path(flag).map(Listen::Path);
        };
        let socket = number.parse().map_err(|_| Errno::INVAL).and_then(sys::inherited);
        let bad = |e| format!("`{flag}-fd` needs the number of an open file, not `{number}`: {e}");
        socket.map(Listen::Inherited).map_err(bad)
    }
}
