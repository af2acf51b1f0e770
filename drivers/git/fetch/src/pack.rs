//! A pack: its objects, found once and read when they are wanted.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use flate2::bufread::ZlibDecoder;
use sha1::{Digest, Sha1};

use crate::delta::Delta;
use crate::{Error, Oid};

/// Largest object that is made by a delta, or that one is of, in bytes: both are held in memory, of which a call has 64 MiB. The names of
/// all objects take up to 14 MiB of that.
const DELTA_MAX: usize = 20 << 20;
/// Most bytes of small objects that are kept because the next delta may want them.
const KEPT_MAX: usize = 4 << 20;
/// From so many bytes on an object is large: there are two at once.
const LARGE: usize = 1 << 20;
/// Most objects: their names are held in memory.
const OBJECTS_MAX: u32 = 200_000;
/// Longest chain of deltas; git makes none over 250 by itself.
const CHAIN_MAX: usize = 4096;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Commit,
    Tree,
    Blob,
    Tag,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Tree => "tree",
            Self::Blob => "blob",
            Self::Tag => "tag",
        }
    }
}

/// How an object lies in the pack.
enum Form {
    Whole(Kind),
    /// A delta of the object at this offset.
    Of(u64),
    /// A delta of the object with this name.
    OfNamed(Oid),
}

struct Entry {
    form: Form,
    /// Bytes of the object, or of the delta.
    size: u64,
}

/// An object that is held in memory, and what it is.
type Held = (Kind, Rc<Vec<u8>>);

/// The objects of a pack that lies in a file.
pub struct Objects<F> {
    file: BufReader<F>,
    found: BTreeMap<Oid, u64>,
    kept: HashMap<u64, Held>,
    kept_bytes: usize,
    /// The last large objects, at their offsets. Their buffers have one size and are used again: memory that was given back would be
    /// found in pieces.
    large: Vec<(u64, Held)>,
}

fn odd(why: &str) -> Error {
    Error::Server(format!("the server's pack is broken: {why}"))
}

/// Looks through a pack: every object, by its name, and the checksum of it all.
pub(crate) fn index<F: Read + Write + Seek>(mut file: F) -> Result<Objects<F>, Error> {
    let end = check_sum(&mut file)?;
    let (found, kept) = (BTreeMap::new(), HashMap::new());
    let (file, large) = (BufReader::new(file), Vec::new());
    let mut objects = Objects { file, found, kept, kept_bytes: 0, large };
    objects.file.seek(SeekFrom::Start(0))?;
    let mut head = [0; 12];
    objects.file.read_exact(&mut head)?;
    let [magic @ .., a, b, c, d] = head;
    let count = u32::from_be_bytes([a, b, c, d]);
    if magic != *b"PACK\0\0\0\x02" || count > OBJECTS_MAX {
        return Err(odd("it is none of version 2, or has too many objects"));
    }
    let mut deltas = Vec::new();
    for _ in 0..count {
        let offset = objects.file.stream_position()?;
        let Entry { form, size } = objects.entry(offset)?;
        if let Form::Whole(kind) = form {
            let oid = hash(kind, size, &mut ZlibDecoder::new(&mut objects.file))?;
            objects.found.insert(oid, offset);
        } else {
            skip(&mut ZlibDecoder::new(&mut objects.file), size)?;
            deltas.push(offset);
        }
    }
    if objects.file.stream_position()? != end {
        return Err(odd("it has bytes after its last object"));
    }
    // A delta of a named object may come before that one.
    let mut left = usize::MAX;
    while !deltas.is_empty() && deltas.len() < left {
        left = deltas.len();
        let mut later = Vec::new();
        for offset in deltas {
            match objects.at(offset)? {
                Some((kind, bytes)) => {
                    let oid = hash(kind, bytes.len() as u64, &mut bytes.as_slice())?;
                    objects.found.insert(oid, offset);
                }
                None => later.push(offset),
            }
        }
        deltas = later;
    }
    if deltas.is_empty() { Ok(objects) } else { Err(odd("what a delta is of is not there")) }
}

/// Compares the checksum at the end with what is before it; answers where that ends.
fn check_sum<F: Read + Seek>(file: &mut F) -> Result<u64, Error> {
    let length = file.seek(SeekFrom::End(0))?;
    let end = length.checked_sub(20).ok_or_else(|| odd("it is too short"))?;
    file.seek(SeekFrom::Start(0))?;
    let (mut left, mut buffer, mut hasher) = (end, [0; 16 << 10], Sha1::new());
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let (piece, _) = buffer.split_at_mut(most);
        file.read_exact(piece)?;
        hasher.update(&*piece);
        left -= piece.len() as u64;
    }
    let mut sum = [0; 20];
    file.read_exact(&mut sum)?;
    if hasher.finalize().as_slice() == sum { Ok(end) } else { Err(odd("its checksum is wrong")) }
}

/// The name of an object, read to its end.
fn hash(kind: Kind, size: u64, from: &mut dyn Read) -> Result<Oid, Error> {
    let mut hasher = Sha1::new();
    hasher.update(format!("{} {size}\0", kind.name()));
    each(from, size, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    Ok(Oid(hasher.finalize().into()))
}

fn skip(from: &mut dyn Read, size: u64) -> Result<(), Error> {
    each(from, size, |_| Ok(()))
}

/// Reads exactly `size` bytes and the end behind them.
fn each(
    from: &mut dyn Read,
    size: u64,
    mut take: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut buffer, mut left) = ([0; 16 << 10], size);
    loop {
        let read = from.read(&mut buffer).map_err(|_| odd("it cannot be unpacked"))?;
        let piece = buffer.get(..read).unwrap_or_default();
        match (read, left) {
            (0, 0) => return Ok(()),
            (0, _) => return Err(odd("an object is shorter than it says")),
            _ => {}
        }
        left =
            left.checked_sub(read as u64).ok_or_else(|| odd("an object is longer than it says"))?;
        take(piece)?;
    }
}

impl<F: Read + Write + Seek> Objects<F> {
    /// Hands an object that is a file's content to `take`, piece by piece.
    pub(crate) fn blob(
        &mut self,
        oid: Oid,
        take: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let offset = *self.found.get(&oid).ok_or_else(|| odd("an object is missing"))?;
        let entry = self.entry_at(offset)?;
        match entry.form {
            Form::Whole(Kind::Blob) => {
                each(&mut ZlibDecoder::new(&mut self.file), entry.size, take)
            }
            _ => {
                let bytes = self.bytes(oid, Kind::Blob)?;
                each(&mut bytes.as_slice(), bytes.len() as u64, take)
            }
        }
    }

    /// An object that is held in memory whole.
    pub(crate) fn bytes(&mut self, oid: Oid, wanted: Kind) -> Result<Rc<Vec<u8>>, Error> {
        let offset = *self.found.get(&oid).ok_or_else(|| odd("an object is missing"))?;
        match self.at(offset)? {
            Some((kind, bytes)) if kind == wanted => Ok(bytes),
            _ => Err(odd("an object is of another kind than it should be")),
        }
    }

    /// What an object is, without its content: a tag names a commit.
    pub(crate) fn kind(&mut self, oid: Oid) -> Result<Kind, Error> {
        let offset = *self.found.get(&oid).ok_or_else(|| odd("an object is missing"))?;
        let (kind, _) = self.at(offset)?.ok_or_else(|| odd("an object is missing"))?;
        Ok(kind)
    }

    /// The object at an offset; none if what it is a delta of was not found yet. Of the deltas on the way only the places are noted:
    /// each is read while it is applied.
    fn at(&mut self, offset: u64) -> Result<Option<Held>, Error> {
        let (mut chain, mut offset) = (Vec::new(), offset);
        let (kind, mut bytes) = loop {
            if let Some(kept) = self.kept(offset) {
                break kept;
            }
            let Entry { form, size } = self.entry_at(offset)?;
            let next = match form {
                Form::Whole(kind) => {
                    let mut bytes = self.buffer(size)?;
                    each(&mut ZlibDecoder::new(&mut self.file), size, |piece| {
                        bytes.extend_from_slice(piece);
                        Ok(())
                    })?;
                    break self.keep(offset, kind, bytes);
                }
                Form::Of(base) => base,
                Form::OfNamed(oid) => match self.found.get(&oid) {
                    Some(base) => *base,
                    None => return Ok(None),
                },
            };
            if chain.len() >= CHAIN_MAX {
                return Err(odd("a chain of deltas is too long"));
            }
            chain.push(offset);
            offset = next;
        };
        for offset in chain.into_iter().rev() {
            let Entry { size, .. } = self.entry_at(offset)?;
            let place = self.file.stream_position()?;
            // How large it becomes is said at its begin.
            let becomes = Delta::begin(ZlibDecoder::new(&mut self.file), size)?.to;
            let mut made = self.buffer(becomes)?;
            self.file.seek(SeekFrom::Start(place))?;
            Delta::begin(ZlibDecoder::new(&mut self.file), size)?.apply(&bytes, &mut made)?;
            (_, bytes) = self.keep(offset, kind, made);
        }
        Ok(Some((kind, bytes)))
    }

    /// An object that is in memory.
    fn kept(&self, offset: u64) -> Option<Held> {
        let large = self.large.iter().find(|(at, _)| *at == offset).map(|(_, held)| held);
        self.kept.get(&offset).or(large).cloned()
    }

    /// An empty buffer for an object of so many bytes.
    fn buffer(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let size = usize::try_from(size).ok().filter(|size| *size <= DELTA_MAX);
        let size = size.ok_or_else(|| {
            let most = DELTA_MAX >> 20;
            Error::Content(format!("a file that git keeps as a difference has over {most} MiB"))
        })?;
        if size < LARGE {
            return Ok(Vec::with_capacity(size));
        }
        let is_free = |(_, (_, bytes)): &(u64, Held)| Rc::strong_count(bytes) == 1;
        let free = self.large.iter().position(is_free).map(|at| self.large.swap_remove(at));
        let free = free.and_then(|(_, (_, bytes))| Rc::try_unwrap(bytes).ok());
        let mut buffer = free.unwrap_or_else(|| Vec::with_capacity(DELTA_MAX));
        buffer.clear();
        Ok(buffer)
    }

    fn keep(&mut self, offset: u64, kind: Kind, bytes: Vec<u8>) -> Held {
        let (size, held) = (bytes.len(), (kind, Rc::new(bytes)));
        if size >= LARGE {
            self.large.push((offset, held.clone()));
            return held;
        }
        if self.kept_bytes + size > KEPT_MAX {
            self.kept.clear();
            self.kept_bytes = 0;
        }
        if self.kept.insert(offset, held.clone()).is_none() {
            self.kept_bytes += size;
        }
        held
    }

    /// The head of the object at an offset; its content is read next.
    fn entry_at(&mut self, offset: u64) -> Result<Entry, Error> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.entry(offset)
    }

    /// Reads the head of the object that begins here.
    fn entry(&mut self, offset: u64) -> Result<Entry, Error> {
        let first = self.byte()?;
        let (mut size, mut shift, mut byte) = (u64::from(first & 15), 4, first);
        while byte & 0x80 != 0 {
            byte = self.byte()?;
            if shift > 56 {
                return Err(odd("a size is too large"));
            }
            size |= u64::from(byte & 0x7f) << shift;
            shift += 7;
        }
        let form = match (first >> 4) & 7 {
            1 => Form::Whole(Kind::Commit),
            2 => Form::Whole(Kind::Tree),
            3 => Form::Whole(Kind::Blob),
            4 => Form::Whole(Kind::Tag),
            6 => {
                let mut byte = self.byte()?;
                let mut back = u64::from(byte & 0x7f);
                while byte & 0x80 != 0 {
                    byte = self.byte()?;
                    let next = back.checked_add(1).filter(|next| *next < 1 << 56);
                    back = (next.ok_or_else(|| odd("an offset is too large"))? << 7)
                        | u64::from(byte & 0x7f);
                }
                let base = offset.checked_sub(back).filter(|base| *base < offset);
                Form::Of(base.ok_or_else(|| odd("a delta is of what comes after it"))?)
            }
            7 => {
                let mut oid = [0; 20];
                self.file.read_exact(&mut oid)?;
                Form::OfNamed(Oid(oid))
            }
            _ => return Err(odd("it has an object of no kind")),
        };
        Ok(Entry { form, size })
    }

    fn byte(&mut self) -> Result<u8, Error> {
        let mut byte = [0];
        self.file.read_exact(&mut byte)?;
        let [byte] = byte;
        Ok(byte)
    }
}
