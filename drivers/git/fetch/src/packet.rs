//! Packets: four hex digits that count themselves, and as many bytes.

use std::io::{Read, Write};

use crate::Error;

/// Longest packet, as git has it.
const PACKET_MAX: usize = 65_520;
/// Most packets without data between two with some: a server that says nothing must end.
const IDLE_MAX: u32 = 10_000;

/// A command and what it asks for.
pub(crate) struct Request(Vec<u8>);

impl Request {
    pub(crate) fn command(name: &str) -> Self {
        let mut request = Self(Vec::new());
        request.line(&format!("command={name}"));
        request.line("agent=wasmvol");
        request.0.extend(b"0001");
        request
    }

    pub(crate) fn line(&mut self, line: &str) {
        self.0.extend(format!("{:04x}{line}\n", line.len() + 5).as_bytes());
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend(b"0000");
        self.0
    }
}

/// What a packet is.
enum Packet {
    Data(Vec<u8>),
    /// `0000`, `0001` or `0002`: it ends something.
    End,
}

fn next(from: &mut dyn Read) -> Result<Packet, Error> {
    let odd = || Error::Server("the server's answer is not git's".to_owned());
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let text = std::str::from_utf8(&head).map_err(|_| odd())?;
    let length = usize::from_str_radix(text, 16).map_err(|_| odd())?;
    match length {
        0..=2 => Ok(Packet::End),
        3 => Err(odd()),
        4..=PACKET_MAX => {
            let mut data = vec![0; length - 4];
            from.read_exact(&mut data)?;
            Ok(Packet::Data(data))
        }
        _ => Err(odd()),
    }
}

/// The next line of text, or none where a section ends.
pub(crate) fn text(from: &mut dyn Read) -> Result<Option<String>, Error> {
    let Packet::Data(data) = next(from)? else { return Ok(None) };
    let line = String::from_utf8_lossy(&data);
    Ok(Some(line.trim_end_matches('\n').to_owned()))
}

/// Copies the data that comes beside messages, until its end.
pub(crate) fn sideband(from: &mut dyn Read, to: &mut dyn Write) -> Result<(), Error> {
    let mut idle = 0;
    while let Packet::Data(data) = next(from)? {
        match data.split_first() {
            Some((1, data)) if !data.is_empty() => {
                to.write_all(data)?;
                idle = 0;
            }
            Some((3, why)) => {
                let why = String::from_utf8_lossy(why);
                return Err(Error::Server(format!("the server says: {}", why.trim())));
            }
            _ if idle < IDLE_MAX => idle += 1,
            _ => return Err(Error::Server("the server sends messages and no data".to_owned())),
        }
    }
    Ok(())
}
