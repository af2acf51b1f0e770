//! A shallow fetch of one commit over git's smart HTTP protocol, version 2, and the files of its tree; and archives, unpacked.
//!
//! Used by the driver `git`, in WebAssembly: it asks by a function that the driver hands it, writes into a directory, and keeps of the pack
//! little more in memory than one object and what it is a delta of. It knows no history, no submodules and no repository on the disk.
//! The formats are git's own documents `gitprotocol-v2`, `gitformat-pack` and `gitprotocol-http`.

mod archive;
mod budget;
mod delta;
mod pack;
mod packet;
mod tree;
mod url;

use std::fmt;
use std::io::{self, Read, Seek, Write};

pub use archive::unpack;
pub use tree::{Files, check_out};
pub use url::check_url;

/// Longest name of a reference, in bytes.
const NAME_MAX: usize = 1024;
/// Most references that are looked through: a server with more is asked for one by its prefix, and sends no others.
const REFERENCES_MAX: usize = 10_000;

/// An object's name: its SHA-1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid([u8; 20]);

impl Oid {
    /// Reads 40 hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 20];
        if text.len() != 40 || !text.is_ascii() {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why nothing was fetched: one line, lower case.
#[derive(Debug)]
pub enum Error {
    /// The server said no, or something that is not git's.
    Server(String),
    /// There is no such branch, tag or commit.
    NoSuchReference(String),
    /// Its content cannot be made into files here.
    Content(String),
    /// The transport or the disk.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(why) | Self::Content(why) => f.write_str(why),
            Self::NoSuchReference(name) => {
                write!(f, "the repository has no branch, tag or commit `{name}`")
            }
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Asks a repository: the path behind its URL, and what is posted there, if it is a POST. Its answer is read as it comes.
pub type Ask<'a> = &'a mut dyn FnMut(&str, Option<Vec<u8>>) -> Result<Box<dyn Read>, Error>;

/// Finds the commit that a branch, a tag or 40 hex digits name, or `HEAD`.
///
/// # Errors
/// The repository has none of that name, or is none.
pub fn resolve(ask: Ask<'_>, reference: &str) -> Result<Oid, Error> {
    if let Some(oid) = Oid::parse(reference) {
        return Ok(oid);
    }
    if reference.is_empty() || reference.len() > NAME_MAX || reference.contains(char::is_whitespace)
    {
        return Err(Error::NoSuchReference(reference.to_owned()));
    }
    announce(ask)?;
    let names = [
        reference.to_owned(),
        format!("refs/{reference}"),
        format!("refs/tags/{reference}"),
        format!("refs/heads/{reference}"),
    ];
    let mut wanted = packet::Request::command("ls-refs");
    wanted.line("peel");
    names.iter().for_each(|name| wanted.line(&format!("ref-prefix {name}")));
    let mut answer = ask(UPLOAD_PACK, Some(wanted.finish()))?;
    let mut found: [Option<Oid>; 4] = [None; 4];
    for _ in 0..REFERENCES_MAX {
        let Some(line) = packet::text(&mut answer)? else { break };
        let mut words = line.split(' ');
        let (oid, name) = (words.next().and_then(Oid::parse), words.next().unwrap_or_default());
        // Of an annotated tag the commit is wanted, which it is peeled to.
        let peeled = words.find_map(|word| Oid::parse(word.strip_prefix("peeled:")?));
        for (_, slot) in names.iter().zip(&mut found).filter(|(wanted, _)| *wanted == name) {
            *slot = peeled.or(oid);
        }
    }
    found.into_iter().flatten().next().ok_or_else(|| Error::NoSuchReference(reference.to_owned()))
}

/// Fetches one commit without its history into `pack`, a file that is empty, and finds its objects there.
///
/// # Errors
/// The server does not give it, or what it gives is no whole pack.
pub fn fetch<F: Read + Write + Seek>(
    ask: Ask<'_>,
    commit: Oid,
    mut pack: F,
) -> Result<Objects<F>, Error> {
    let mut wanted = packet::Request::command("fetch");
    for line in ["no-progress", "ofs-delta", "deepen 1", &format!("want {commit}"), "done"] {
        wanted.line(line);
    }
    let mut answer = ask(UPLOAD_PACK, Some(wanted.finish()))?;
    // What comes before the pack tells where history was cut off.
    let mut lines = 0;
    loop {
        match packet::text(&mut answer)?.as_deref() {
            Some("packfile") => break,
            Some(line) if line.starts_with("ERR ") => {
                let why = line.trim_start_matches("ERR ");
                if why.contains("not our ref") {
                    return Err(Error::NoSuchReference(commit.to_string()));
                }
                return Err(Error::Server(format!("the server says: {why}")));
            }
            _ if lines < REFERENCES_MAX => lines += 1,
            _ => return Err(Error::Server("the server sent no pack".to_owned())),
        }
    }
    packet::sideband(&mut answer, &mut pack)?;
    pack::index(pack)
}

pub use pack::Objects;

/// Where a repository answers commands.
const UPLOAD_PACK: &str = "/git-upload-pack";

/// Sees that the server speaks version 2: an older one would take a command for something else.
fn announce(ask: Ask<'_>) -> Result<(), Error> {
    let mut answer = ask("/info/refs?service=git-upload-pack", None)?;
    let not_git = || Error::Server("it is no git repository, or its server is no git's".to_owned());
    let mut line = packet::text(&mut answer).map_err(|_| not_git())?;
    // Some servers say first which service this is, and end that.
    if line.as_deref().is_some_and(|line| line.starts_with("# service=")) {
        packet::text(&mut answer)?;
        line = packet::text(&mut answer)?;
    }
    match line.as_deref() {
        Some("version 2") => Ok(()),
        Some(_) => {
            Err(Error::Server("its server does not speak version 2 of git's protocol".into()))
        }
        None => Err(not_git()),
    }
}
