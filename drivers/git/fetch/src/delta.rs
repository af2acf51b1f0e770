//! A delta: what makes an object of another one. Used by `pack`, which reads it from where it lies: it is never in memory whole.

use std::io::{BufRead, BufReader, Read};

use crate::Error;

/// A delta, read piece by piece: what it is of, and orders to copy from that or to insert what follows.
pub(crate) struct Delta<R> {
    orders: BufReader<R>,
    /// Bytes of it that were not read yet.
    left: u64,
    /// How many bytes it is of.
    from: u64,
    /// How many it makes of them.
    pub(crate) to: u64,
}

impl<R: Read> Delta<R> {
    /// Of so many bytes.
    pub(crate) fn begin(delta: R, size: u64) -> Result<Self, Error> {
        let mut delta = Self { orders: BufReader::new(delta), left: size, from: 0, to: 0 };
        delta.from = delta.number()?;
        delta.to = delta.number()?;
        Ok(delta)
    }

    /// Appends to `made` what it makes of `base`.
    pub(crate) fn apply(mut self, base: &[u8], made: &mut Vec<u8>) -> Result<(), Error> {
        let to = usize::try_from(self.to).map_err(|_| wrong())?;
        if self.from != base.len() as u64 {
            return Err(wrong());
        }
        while self.left > 0 {
            let order = self.byte()?;
            if order & 0x80 == 0 {
                let mut inserted = [0; 0x7f];
                let inserted = inserted.get_mut(..usize::from(order)).unwrap_or_default();
                self.read(inserted)?;
                if inserted.is_empty() || made.len() + inserted.len() > to {
                    return Err(wrong());
                }
                made.extend_from_slice(inserted);
            } else {
                let (start, length) = (self.field(order, 0..4)?, self.field(order, 4..7)?);
                let length = if length == 0 { 0x10000 } else { length };
                let end = start.checked_add(length).ok_or_else(wrong)?;
                let copied = base.get(start..end).ok_or_else(wrong)?;
                if made.len() + copied.len() > to {
                    return Err(wrong());
                }
                made.extend_from_slice(copied);
            }
        }
        let is_at_end = self.orders.fill_buf().is_ok_and(<[u8]>::is_empty);
        if is_at_end && made.len() == to { Ok(()) } else { Err(wrong()) }
    }

    /// Seven bits of an order say which bytes of an offset and a length follow.
    fn field(&mut self, order: u8, bits: std::ops::Range<u32>) -> Result<usize, Error> {
        let mut value = 0;
        for (at, bit) in bits.enumerate() {
            if order & (1 << bit) != 0 {
                value |= usize::from(self.byte()?) << (8 * at);
            }
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<u64, Error> {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f).checked_shl(shift).ok_or_else(wrong)?;
            shift += 7;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
    }

    fn byte(&mut self) -> Result<u8, Error> {
        let mut byte = [0];
        self.read(&mut byte)?;
        let [byte] = byte;
        Ok(byte)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(wrong)?;
        self.orders.read_exact(bytes).map_err(|_| wrong())
    }
}

fn wrong() -> Error {
    Error::Server("the server's pack is broken: a delta is wrong".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(base: &[u8], delta: &[u8]) -> Result<Vec<u8>, Error> {
        let mut made = Vec::new();
        Delta::begin(delta, delta.len() as u64)?.apply(base, &mut made)?;
        Ok(made)
    }

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
