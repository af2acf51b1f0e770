//! How much one fetch may write. Used by `archive` and `tree`, before each file is made and each piece is written.

use std::io::{self, Read, Write};

use crate::Error;

/// Most bytes of all files: a few megabytes that were sent can unpack to as much as there are disks.
const BYTES_MAX: u64 = 8 << 30;
/// Most files, directories and links: a host takes over no more of them.
const ENTRIES_MAX: u64 = 1_000_000;
/// Bytes of a piece.
const PIECE: usize = 16 << 10;

/// What may be written still.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) bytes_left: u64,
    pub(crate) entries_left: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_left: BYTES_MAX, entries_left: ENTRIES_MAX }
    }
}

impl Budget {
    /// One more file, directory or link.
    pub(crate) fn entry(&mut self) -> Result<(), Error> {
        let left = self.entries_left.checked_sub(1);
        self.entries_left = left.ok_or_else(|| {
            Error::Content(format!(
                "it has more entries than a volume may start with: {ENTRIES_MAX}"
            ))
        })?;
        Ok(())
    }

    /// So many bytes more.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<(), Error> {
        let left = self.bytes_left.checked_sub(count as u64);
        self.bytes_left = left.ok_or_else(|| {
            let most = BYTES_MAX >> 30;
            Error::Content(format!("it has more bytes than a volume may start with: {most} GiB"))
        })?;
        Ok(())
    }
}

/// Copies to the end, within what is left. What cannot be read is told by `odd`: what cannot be written is the disk's.
pub(crate) fn copy(
    from: &mut impl Read,
    to: &mut impl Write,
    budget: &mut Budget,
    odd: impl Fn(io::Error) -> Error,
) -> Result<(), Error> {
    let mut buffer = [0; PIECE];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(odd(error)),
        };
        budget.bytes(count)?;
        to.write_all(buffer.get(..count).unwrap_or_default())?;
    }
}
