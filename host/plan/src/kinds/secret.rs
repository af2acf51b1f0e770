//! Secrets: passwords, keys and configurations that an operator keeps for drivers, each in a file that only root can read.
//!
//! Root's command line writes the file and mountd reads it, both by this code: lines that say for whom it is, a blank line, and then
//! the bytes, whatever they are. Pure. Nothing here shows the bytes, and they are overwritten when they are no longer needed.

use core::net::IpAddr;
use std::fmt::{self, Write as _};

use crate::name::Quoted;
use crate::{DriverName, Fault, FaultKind, Peer, SecretName};

/// Most bytes of a secret: private keys and configurations of programs have a few KiB.
pub const BYTES_MAX: usize = 64 * 1024;
/// Most drivers, and most peers, of one secret: who needs more keeps it under two names.
pub const FOR_MAX: usize = 16;
/// Most bytes of the file: its lines, with the longest names that there can be, have under 5 KiB. Who reads it stops one byte later.
pub const FILE_MAX: usize = BYTES_MAX + 8 * 1024;

/// Fewest characters of a part of a secret: shorter ones are in any text, and give nothing away.
const PART_MIN: usize = 4;
/// Keys of a configuration whose values say where a server is and not what opens it, unless they hold a `@`.
const PUBLIC: [&str; 9] =
    ["type", "url", "host", "port", "endpoint", "remote", "vendor", "provider", "region"];

/// Bytes that are shown nowhere, and overwritten in the end.
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// Takes bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether a text holds a line of them, or what such a line gives a key that is not public.
    fn is_in(&self, text: &str) -> bool {
        let has = |part: &str| part.chars().count() >= PART_MIN && text.contains(part);
        self.0.split(|byte| *byte == b'\n').any(|line| {
            // What is no text a log shows otherwise.
            let line = str::from_utf8(line).unwrap_or_default().trim();
            let is_public = |key: &str, value: &str| PUBLIC.contains(&key) && !value.contains('@');
            let pair = line.split_once(['=', ':']).map(|(key, value)| (key.trim(), value.trim()));
            has(line) || pair.is_some_and(|(key, value)| !is_public(key, value) && has(value))
        })
    }
}

/// A text as others may read it who have none of these secrets: as it is, or that it is left out.
#[must_use]
pub fn told<'a>(secrets: &[Bytes], text: &'a str) -> &'a str {
    let is_secret = secrets.iter().any(|secret| secret.is_in(text));
    if is_secret { "what it says is left out, because it holds a part of a secret" } else { text }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.0.fill(0);
        // Else nobody would read what was written, and it would not be.
        std::hint::black_box(&self.0);
    }
}

/// A secret and for whom it is.
#[derive(Debug)]
pub struct Secret {
    /// Drivers whose volumes it is spent for.
    pub drivers: Vec<DriverName>,
    /// Servers that may get it. Without one it is for uses that name no server, as the key of an image.
    pub peers: Vec<Peer>,
    bytes: Bytes,
}

/// Who would get a secret.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// A host name or an address, as the plan has it.
    pub host: &'a str,
    /// What a name was resolved to, once it was: a secret that is kept for a network needs it.
    pub address: Option<IpAddr>,
}

impl Secret {
    /// Makes one.
    ///
    /// # Errors
    /// `Invalid` names the limit that it is beyond.
    pub fn new(drivers: Vec<DriverName>, peers: Vec<Peer>, bytes: Bytes) -> Result<Self, Fault> {
        if !(1..=FOR_MAX).contains(&drivers.len()) || peers.len() > FOR_MAX {
            return invalid(format!(
                "a secret is for 1 to {FOR_MAX} drivers and at most {FOR_MAX} peers"
            ));
        }
        match bytes.0.len() {
            0 => invalid("a secret has at least one byte, and none came"),
            length if length > BYTES_MAX => {
                invalid(format!("a secret has at most {BYTES_MAX} bytes, and more came"))
            }
            _ => Ok(Self { drivers, peers, bytes }),
        }
    }

    /// Reads the content of a secret's file.
    ///
    /// # Errors
    /// `Invalid` names the line that is not understood; nothing of it is repeated.
    pub fn parse(file: &Bytes) -> Result<Self, Fault> {
        let file = file.expose();
        let end = file.windows(2).position(|two| two == b"\n\n");
        let parts = end.and_then(|end| Some((file.get(..end)?, file.get(end + 2..)?)));
        let Some((head, bytes)) = parts else {
            return invalid("no blank line ends the lines that say for whom it is");
        };
        let head = str::from_utf8(head).unwrap_or_default();
        let (mut drivers, mut peers) = (Vec::new(), Vec::new());
        for (number, line) in (1..).zip(head.lines()) {
            let odd = || Fault::new(FaultKind::Invalid, format!("line {number} is not understood"));
            match line.split_once(' ').ok_or_else(odd)? {
                ("driver", name) => drivers.push(DriverName::parse(name).map_err(|_| odd())?),
                ("peer", peer) => peers.push(peer.parse().map_err(|_| odd())?),
                _ => return Err(odd()),
            }
        }
        Self::new(drivers, peers, Bytes::new(bytes.to_owned()))
    }

    /// The content of its file.
    pub fn file(&self) -> Bytes {
        let mut head = String::new();
        // Writing to a string cannot fail.
        self.drivers.iter().for_each(|driver| _ = writeln!(head, "driver {driver}"));
        self.peers.iter().for_each(|peer| _ = writeln!(head, "peer {peer}"));
        head.push('\n');
        Bytes::new([head.as_bytes(), self.bytes.expose()].concat())
    }

    /// The bytes, as they were given: a key, a configuration.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.expose()
    }

    /// The bytes as a password: one line of text, whose end, where it was given with one, is no part of it.
    ///
    /// # Errors
    /// `Invalid` if they are none.
    pub fn password(&self) -> Result<&str, Fault> {
        let text = str::from_utf8(self.bytes()).ok();
        let line = text.map(|text| text.strip_suffix('\n').unwrap_or(text));
        let line = line.map(|line| line.strip_suffix('\r').unwrap_or(line));
        match line.filter(|line| !line.is_empty() && !line.contains(char::is_control)) {
            Some(line) => Ok(line),
            None => invalid("it is no password, which is one line of text: set it again"),
        }
    }

    /// Says whether it may be spent for a volume of `driver`, as long as nobody knows what it will be spent on.
    ///
    /// # Errors
    /// `Denied` names what it is not for, and the command that mends it.
    pub fn check_driver(&self, name: &SecretName, driver: &DriverName) -> Result<(), Fault> {
        if self.drivers.contains(driver) {
            return Ok(());
        }
        denied(name, driver, None, &format!("driver `{driver}`"))
    }

    /// Says whether it may be spent for a volume of `driver`, and be given to `server`. Without one it is for the kernel of this machine,
    /// or a program that finds its servers in the secret itself: one with peers is for neither.
    ///
    /// # Errors
    /// `Denied` names what it is not for, and the command that mends it.
    pub fn check(
        &self,
        name: &SecretName,
        driver: &DriverName,
        server: Option<Server<'_>>,
    ) -> Result<(), Fault> {
        let denied = |what: &str| denied(name, driver, server, what);
        if !self.drivers.contains(driver) {
            return denied(&format!("driver `{driver}`"));
        }
        match server {
            Some(Server { host, address }) => {
                let may = |peer: &Peer| peer.is(host) || address.is_some_and(|at| peer.has(at));
                if self.peers.iter().any(may) {
                    return Ok(());
                }
                denied(&format!("server {}", Quoted::new(host)))
            }
            None if self.peers.is_empty() => Ok(()),
            None => denied("a use that names no server, because it has peers"),
        }
    }
}

fn denied(
    name: &SecretName,
    driver: &DriverName,
    server: Option<Server<'_>>,
    what: &str,
) -> Result<(), Fault> {
    let again = set(name, driver, server);
    let cure = format!("set it again for all that may have it, as in `{again}`");
    Err(Fault::new(FaultKind::Denied, format!("secret `{name}` is not for {what}: {cure}")))
}

/// What an operator types to keep a secret under a name.
pub fn set(name: &SecretName, driver: &DriverName, server: Option<Server<'_>>) -> String {
    // Somebody will type it: what is no host is not shown.
    let host =
        |server: Server<'_>| server.host.parse::<Peer>().map_or("HOST".into(), |p| p.to_string());
    let peer = server.map_or_else(String::new, |server| format!(" --peer {}", host(server)));
    format!("wasmvol secret set {name} --driver {driver}{peer}")
}

fn invalid<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::new(FaultKind::Invalid, why))
}
