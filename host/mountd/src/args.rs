//! The command line, as `wasmvol serve` writes it. Nobody types it, so there is no help, only one line for a mistake.

use std::ffi::OsString;
use std::os::fd::RawFd;

/// The form of the command line.
const USAGE: &str = "usage: wasmvol-mountd --daemon PATH --state-dir DIR --runtime-dir DIR --config-dir DIR [--drivers-dir DIR] \
     --uid N --gid N (--plugin NAME=PATH | --plugin-fd NAME=FD) (--admin PATH | --admin-fd FD) [-- ARGUMENTS OF THE DAEMON]";

/// Where a socket comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    /// mountd binds it and unlinks it in the end.
    Path(String),
    /// systemd bound it; it listens already.
    Fd(RawFd),
}

/// What mountd was told. Every path is absolute.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) daemon: String,
    pub(crate) state: String,
    pub(crate) runtime: String,
    pub(crate) config: String,
    pub(crate) drivers: Option<String>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) plugin: String,
    pub(crate) plugin_listen: Listen,
    pub(crate) admin: Listen,
    pub(crate) extra: Vec<String>,
}

#[derive(Default)]
struct Seen {
    daemon: Option<String>,
    state: Option<String>,
    runtime: Option<String>,
    config: Option<String>,
    drivers: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    plugin: Option<(String, Listen)>,
    admin: Option<Listen>,
}

impl Args {
    /// Reads everything after the program's name.
    ///
    /// # Errors
    /// One line that names the argument.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut args = args.into_iter().map(|arg| {
            arg.into_string().map_err(|arg| format!("argument {arg:?} is not UTF-8: rename it"))
        });
        let mut seen = Seen::default();
        while let Some(flag) = args.next().transpose()? {
            if flag == "--" {
                break;
            }
            let value = args
                .next()
                .transpose()?
                .ok_or_else(|| format!("`{flag}` needs a value; {USAGE}"))?;
            seen.take(&flag, value)?;
        }
        seen.finish(args.collect::<Result<_, _>>()?)
    }
}

impl Seen {
    fn take(&mut self, flag: &str, value: String) -> Result<(), String> {
        let taken = match flag {
            "--daemon" => self.daemon.replace(absolute(flag, value)?).is_some(),
            "--state-dir" => self.state.replace(absolute(flag, value)?).is_some(),
            "--runtime-dir" => self.runtime.replace(absolute(flag, value)?).is_some(),
            "--config-dir" => self.config.replace(absolute(flag, value)?).is_some(),
            "--drivers-dir" => self.drivers.replace(absolute(flag, value)?).is_some(),
            "--uid" => self.uid.replace(unprivileged(flag, &value)?).is_some(),
            "--gid" => self.gid.replace(unprivileged(flag, &value)?).is_some(),
            "--plugin" | "--plugin-fd" => {
                let (name, place) = value
                    .split_once('=')
                    .ok_or_else(|| format!("`{flag}` needs NAME=…, not `{value}`"))?;
                let listen = listen(flag, place.to_owned())?;
                self.plugin.replace((name.to_owned(), listen)).is_some()
            }
            "--admin" | "--admin-fd" => self.admin.replace(listen(flag, value)?).is_some(),
            _ => return Err(format!("no argument `{flag}`; {USAGE}")),
        };
        if taken { Err(format!("`{flag}` is given twice")) } else { Ok(()) }
    }

    fn finish(self, extra: Vec<String>) -> Result<Args, String> {
        let missing = |flag: &str| format!("`{flag}` is missing; {USAGE}");
        let (plugin, plugin_listen) = self.plugin.ok_or_else(|| missing("--plugin"))?;
        Ok(Args {
            daemon: self.daemon.ok_or_else(|| missing("--daemon"))?,
            state: self.state.ok_or_else(|| missing("--state-dir"))?,
            runtime: self.runtime.ok_or_else(|| missing("--runtime-dir"))?,
            config: self.config.ok_or_else(|| missing("--config-dir"))?,
            drivers: self.drivers,
            uid: self.uid.ok_or_else(|| missing("--uid"))?,
            gid: self.gid.ok_or_else(|| missing("--gid"))?,
            plugin,
            plugin_listen,
            admin: self.admin.ok_or_else(|| missing("--admin"))?,
            extra,
        })
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

fn listen(flag: &str, value: String) -> Result<Listen, String> {
    if flag.ends_with("-fd") {
        let number =
            value.parse().map_err(|_| format!("`{flag}` needs a number, not `{value}`"))?;
        Ok(Listen::Fd(number))
    } else {
        absolute(flag, value).map(Listen::Path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "--daemon /d --state-dir /s --runtime-dir /r --config-dir /c --uid 7 --gid 8 \
                         --plugin wasmvol=/p.sock --admin-fd 5";

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_whole_line_is_understood_and_the_rest_is_the_daemons() {
        let args = parse(&format!("{WHOLE} -- --uid x")).unwrap();
        assert_eq!((args.uid, args.gid, args.drivers), (7, 8, None));
        assert_eq!(args.plugin_listen, Listen::Path("/p.sock".to_owned()));
        assert_eq!(args.admin, Listen::Fd(5));
        assert_eq!(args.extra, ["--uid", "x"]);
    }

    #[test]
    fn a_mistake_is_named() {
        for (more, named) in [
            ("--uid 9", "twice"),
            ("--plugin-fd other=9", "twice"),
            ("--drivers-dir relative", "absolute"),
            ("--sise 1", "--sise"),
            ("--drivers-dir", "needs a value"),
        ] {
            let error = parse(&format!("{WHOLE} {more}")).unwrap_err();
            assert!(error.contains(named), "{more}: {error}");
        }
        assert!(parse(&WHOLE.replace("--uid 7", "--uid 0")).is_err());
        assert!(parse(&WHOLE.replace("--uid 7", "")).unwrap_err().contains("--uid"));
    }
}
