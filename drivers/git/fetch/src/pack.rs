//! A pack: its objects, found once and read when they are wanted.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use flate2::bufread::ZlibDecoder;
use sha1::{Digest, Sha1};

use crate::{Error, Oid};

/// Largest object that is a delta, or what one is of, in bytes: both are held in memory, of which a call has 64 MiB.
const DELTA_MAX: u64 = 20 << 20;
/// Most bytes of objects that are kept because the next delta may want them.
const KEPT_MAX: usize = 8 << 20;
/// Most objects: their names are held in memory.
const OBJECTS_MAX: u32 = 300_000;
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
type Held = (Kind, Rc<[u8]>);

/// The objects of a pack that lies in a file.
pub struct Objects<F> {
    file: BufReader<F>,
    found: BTreeMap<Oid, u64>,
    kept: HashMap<u64, Held>,
    kept_bytes: usize,
}

fn odd(why: &str) -> Error {
    Error::Server(format!("the server's pack is broken: {why}"))
}

/// Looks through a pack: every object, by its name, and the checksum of it all.
pub(crate) fn index<F: Read + Write + Seek>(mut file: F) -> Result<Objects<F>, Error> {
    let end = check_sum(&mut file)?;
    let (found, kept) = (BTreeMap::new(), HashMap::new());
    let mut objects = Objects { file: BufReader::new(file), found, kept, kept_bytes: 0 };
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
                    let oid = hash(kind, bytes.len() as u64, &mut &*bytes)?;
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
        self.file.seek(SeekFrom::Start(offset))?;
        let entry = self.entry(offset)?;
        match entry.form {
            Form::Whole(Kind::Blob) => {
                each(&mut ZlibDecoder::new(&mut self.file), entry.size, take)
            }
            _ => {
                let bytes = self.bytes(oid, Kind::Blob)?;
                each(&mut &*bytes, bytes.len() as u64, take)
            }
        }
    }

    /// An object that is held in memory whole.
    pub(crate) fn bytes(&mut self, oid: Oid, wanted: Kind) -> Result<Rc<[u8]>, Error> {
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

    /// The object at an offset; none if what it is a delta of was not found yet.
    fn at(&mut self, offset: u64) -> Result<Option<Held>, Error> {
        let (mut chain, mut offset) = (Vec::new(), offset);
        let (kind, mut bytes) = loop {
            if let Some(kept) = self.kept.get(&offset) {
                break kept.clone();
            }
            self.file.seek(SeekFrom::Start(offset))?;
            let Entry { form, size } = self.entry(offset)?;
            if size > DELTA_MAX || chain.len() > CHAIN_MAX {
                return Err(Error::Content(format!(
                    "a file that git keeps as a difference has over {} MiB",
                    DELTA_MAX >> 20
                )));
            }
            let mut data = Vec::new();
            each(&mut ZlibDecoder::new(&mut self.file), size, |piece| {
                data.extend_from_slice(piece);
                Ok(())
            })?;
            let next = match form {
                Form::Whole(kind) => break (kind, Rc::from(data)),
                Form::Of(base) => base,
                Form::OfNamed(oid) => match self.found.get(&oid) {
                    Some(base) => *base,
                    None => return Ok(None),
                },
            };
            chain.push((offset, data));
            offset = next;
        };
        self.keep(offset, kind, &bytes);
        for (offset, delta) in chain.into_iter().rev() {
            bytes = Rc::from(apply(&bytes, &delta)?);
            self.keep(offset, kind, &bytes);
        }
        Ok(Some((kind, bytes)))
    }

    fn keep(&mut self, offset: u64, kind: Kind, bytes: &Rc<[u8]>) {
        if self.kept_bytes + bytes.len() > KEPT_MAX {
            self.kept.clear();
            self.kept_bytes = 0;
        }
        if bytes.len() <= KEPT_MAX && self.kept.insert(offset, (kind, Rc::clone(bytes))).is_none() {
            self.kept_bytes += bytes.len();
        }
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

/// What a delta makes of an object.
fn apply(base: &[u8], delta: &[u8]) -> Result<Vec<u8>, Error> {
    let wrong = || odd("a delta is wrong");
    let mut delta = delta.iter().copied();
    let mut number = || {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = delta.next()?;
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
    };
    let (from, to) = (number().ok_or_else(wrong)?, number().ok_or_else(wrong)?);
    if from != base.len() as u64 || to > DELTA_MAX {
        return Err(wrong());
    }
    let to = usize::try_from(to).map_err(|_| wrong())?;
    let mut made = Vec::with_capacity(to);
    while let Some(order) = delta.next() {
        if order & 0x80 == 0 {
            let length = usize::from(order);
            made.extend(delta.by_ref().take(length));
            if length == 0 {
                return Err(wrong());
            }
        } else {
            // Seven bits say which bytes of an offset and a length follow.
            let mut field = |bits: std::ops::Range<u32>| -> Option<usize> {
                let mut value = 0;
                for (at, bit) in bits.enumerate() {
                    if order & (1 << bit) != 0 {
                        value |= usize::from(delta.next()?) << (8 * at);
                    }
                }
                Some(value)
            };
            let (start, length) = (field(0..4).ok_or_else(wrong)?, field(4..7).ok_or_else(wrong)?);
            let length = if length == 0 { 0x10000 } else { length };
            let end = start.checked_add(length).ok_or_else(wrong)?;
            made.extend_from_slice(base.get(start..end).ok_or_else(wrong)?);
        }
        if made.len() > to {
            return Err(wrong());
        }
    }
    if made.len() == to { Ok(made) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_copies_and_inserts() {
        // 11 bytes become 14: the first 6, three new ones, the last 5.
        let delta = [11, 14, 0x90, 6, 3, b'b', b'i', b'g', 0x91, 6, 5];
        assert_eq!(apply(b"hello world", &delta).unwrap(), b"hello bigworld");
    }

    #[test]
    fn a_delta_that_lies_about_a_length_or_leaves_its_base_is_refused() {
        for delta in [
            &[10, 2, 2, b'a', b'b'][..],
            &[11, 3, 2, b'a', b'b'],
            &[11, 1, 2, b'a', b'b'],
            &[11, 6, 0x91, 9, 6],
            &[11, 1, 0],
            &[11],
            &[],
        ] {
            assert!(apply(b"hello world", delta).is_err(), "{delta:?}");
        }
    }
}
