//! Mount options in one text, with commas between, as mount(8) and Docker's local driver take them: `ro,noatime,size=64m`.
//!
//! What is the mount's own is taken out and told apart; the rest is the file system's. What no volume can have is refused by name.

use crate::contract::{MountOption, MountValue};
use crate::{Error, Owner, Plan, Result, Tmpfs};

/// Mount options that were read.
#[derive(Debug, Default)]
pub struct MountOptions<'a> {
    /// A directory is shown as it is: `bind`.
    pub bind: bool,
    /// Nobody can write: `ro`.
    pub read_only: bool,
    /// No program is run: `noexec`.
    pub no_exec: bool,
    /// How times of access are written: `noatime` and the like. Only a file system on a device asks.
    times: Vec<&'a str>,
    key: &'a str,
    rest: Vec<(&'a str, &'a str)>,
}

impl<'a> MountOptions<'a> {
    /// Reads what a user gave as the option `key`.
    ///
    /// # Errors
    /// `invalid-option` names what no volume can have, such as `suid` or `shared`.
    pub fn read(key: &'a str, text: &'a str) -> Result<Self> {
        let mut read = Self { key, ..Self::default() };
        for option in text.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" | "rw" => read.read_only = option == "ro",
                "noexec" | "exec" => read.no_exec = option == "noexec",
                "bind" => read.bind = true,
                // So it is in any case.
                "defaults" | "nosuid" | "nodev" | "nomand" | "atime" | "diratime"
                | "norelatime" | "nostrictatime" => {}
                "noatime" | "nodiratime" | "relatime" | "strictatime" => read.times.push(option),
                "suid" | "dev" => {
                    let cure = "leave it out, and let the operator grant it to the driver";
                    return Err(
                        read.refuse(&format!("`{option}` is not a volume's to have: {cure}"))
                    );
                }
                "rbind" => return Err(read.refuse("`rbind` takes other mounts along: use `bind`")),
                "remount" | "mand" | "private" | "rprivate" | "shared" | "rshared" | "slave"
                | "rslave" | "unbindable" | "runbindable" => {
                    return Err(
                        read.refuse(&format!("`{option}` is not for volumes: leave it out"))
                    );
                }
                other => read.rest.push(other.split_once('=').unwrap_or((other, ""))),
            }
        }
        Ok(read)
    }

    /// Takes one option of the file system's out; one without a value is empty.
    pub fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.rest.iter().position(|(other, _)| *other == key)?;
        Some(self.rest.remove(at).1)
    }

    /// Takes out a number, which `parse` reads.
    ///
    /// # Errors
    /// `invalid-option` where `parse` answers nothing.
    pub fn take_number<T>(&mut self, key: &str, parse: fn(&str) -> Option<T>) -> Result<Option<T>> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let why = || self.refuse(&format!("`{key}` is not a number that it can be: `{text}`"));
        parse(text).map(Some).ok_or_else(why)
    }

    /// Takes out what a tmpfs takes: `size`, `nr_inodes`, `mode`, `uid` and `gid`; it is everybody's where they say nothing else.
    ///
    /// # Errors
    /// `invalid-option` names the one that is no number.
    pub fn take_tmpfs(&mut self) -> Result<Tmpfs> {
        let mut id = |key| self.take_number(key, |text| text.parse().ok());
        let (uid, gid) = (id("uid")?.unwrap_or(0), id("gid")?.unwrap_or(0));
        let owner = Owner { uid, gid, mode: self.take_number("mode", octal)?.unwrap_or(0o1777) };
        let size = self.take_number("size", amount)?;
        Ok(Tmpfs { size, inodes: self.take_number("nr_inodes", amount)?, owner })
    }

    /// Takes out all that is left, as [`take_rest`](Self::take_rest), behind how times of access are written.
    pub fn take_all(&mut self) -> Vec<MountOption> {
        let present = |key: &str| MountOption { key: key.to_owned(), value: MountValue::Present };
        let mut all: Vec<_> = self.times.drain(..).map(present).collect();
        all.extend(self.take_rest());
        all
    }

    /// Takes out all that is left, typed: a number where the text is one and looks like no version and no mode.
    pub fn take_rest(&mut self) -> Vec<MountOption> {
        let typed = |(key, text): (&str, &str)| {
            let key = if key == "user" { "username" } else { key };
            let is_text = text.starts_with('0') && text.len() > 1
                || ["vers", "mode", "mask"].iter().any(|word| key.ends_with(word));
            let value = match text.parse() {
                _ if text.is_empty() => MountValue::Present,
                Ok(number) if !is_text => MountValue::Number(number),
                _ => MountValue::Text(text.to_owned()),
            };
            MountOption { key: key.to_owned(), value }
        };
        self.rest.drain(..).map(typed).collect()
    }

    /// Refuses what is left, since `what` does not take it.
    ///
    /// # Errors
    /// `invalid-option` names the first option that nobody took out.
    pub fn none_left(&self, what: &str) -> Result<()> {
        let refuse = |(key, _): &(&str, &str)| {
            Err(self.refuse(&format!("{what} takes no `{key}`: leave it out")))
        };
        self.rest.first().map_or(Ok(()), refuse)
    }

    /// The plan with what is the mount's own.
    #[must_use]
    pub fn applied(&self, plan: Plan) -> Plan {
        let plan = if self.read_only { plan.read_only() } else { plan };
        if self.no_exec { plan.no_exec() } else { plan }
    }

    /// A refusal of these options.
    #[must_use]
    pub fn refuse(&self, why: &str) -> Error {
        Error::invalid_option(self.key, why)
    }
}

/// A count with the kernel's suffixes `k`, `m`, `g` and `t`, at least 1: to most file systems 0 means "no limit".
fn amount(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|amount| *amount > 0)
}

/// Permission bits in octal.
fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)
}
