//! A backend of the tests' own, and the many ways in which one can be a bad one.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// A server on this machine's own address, for as long as the test runs.
pub(crate) struct Backend {
    address: SocketAddr,
}

/// What a backend does with a connection.
type Manner = fn(TcpStream) -> io::Result<()>;

impl Backend {
    pub(crate) fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        thread::spawn(move || {
            for stream in listener.incoming() {
                // Whoever hangs up meanwhile does what it is meant to.
                thread::spawn(move || manner(stream.expect("a connection")));
            }
        });
        Self { address }
    }

    /// Its origin, which is also its grant.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// A good one: `/size/N` has that many bytes, `/to/URL` leads elsewhere, and what is posted is counted.
pub(crate) fn good(stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(&stream);
    while let Some((path, length)) = head(&mut reader)? {
        let received = io::copy(&mut (&mut reader).take(length), &mut io::sink())?;
        let mut writer = &stream;
        if let Some(url) = path.strip_prefix("/to/") {
            let head =
                format!("HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n");
            writer.write_all(head.as_bytes())?;
            continue;
        }
        let body = match path.strip_prefix("/size/").and_then(|size| size.parse().ok()) {
            Some(size) => vec![b'x'; size],
            None => format!("{path} and {received} bytes").into_bytes(),
        };
        write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
        writer.write_all(&body)?;
    }
    Ok(())
}

/// The path and the length of the body of the next request; nothing if there is none.
fn head(reader: &mut impl BufRead) -> io::Result<Option<(String, u64)>> {
    let (mut path, mut length, mut chunked) = (None, 0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        path = path.or_else(|| line.split(' ').nth(1).map(str::to_owned));
        if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().map_err(io::Error::other)?,
                "transfer-encoding" => chunked = true,
                _ => {}
            }
        }
    }
    // Nobody here needs what comes in pieces, but how much it is.
    if chunked {
        length = skip_chunks(reader)?;
        return Ok(path.map(|path| (format!("{path} in pieces, {length}"), 0)));
    }
    Ok(path.map(|path| (path, length)))
}

fn skip_chunks(reader: &mut impl BufRead) -> io::Result<u64> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        length += io::copy(&mut (&mut *reader).take(size), &mut io::sink())?;
        reader.read_line(&mut line)?;
        if size == 0 {
            return Ok(length);
        }
    }
}

/// Reads what comes, and never answers.
pub(crate) fn silent(mut stream: TcpStream) -> io::Result<()> {
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// Reads nothing, and never answers.
pub(crate) fn deaf(stream: TcpStream) -> io::Result<()> {
    // Until the other end goes, which is seen without a read.
    let mut byte = [0; 1];
    while stream.peek(&mut byte)? > 0 {
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Says the beginning, and then a byte at a time.
pub(crate) fn trickling_head(stream: TcpStream) -> io::Result<()> {
    said(&stream, b"HTTP/1.1 200 OK\r\nX-Long: ")?;
    trickle(stream)
}

/// The same in the body.
pub(crate) fn trickling_body(stream: TcpStream) -> io::Result<()> {
    said(&stream, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
    trickle(stream)
}

fn trickle(mut stream: TcpStream) -> io::Result<()> {
    loop {
        stream.write_all(b"x")?;
        thread::sleep(Duration::from_millis(100));
    }
}

/// A head that does not end.
pub(crate) fn endless_head(stream: TcpStream) -> io::Result<()> {
    said(&stream, b"HTTP/1.1 200 OK\r\n")?;
    flood(stream, &b"X-More: of the same\r\n".repeat(1000))
}

/// A header that does not end.
pub(crate) fn endless_header(stream: TcpStream) -> io::Result<()> {
    said(&stream, b"HTTP/1.1 200 OK\r\nX-Long: ")?;
    flood(stream, &[b'x'; 64 << 10])
}

/// Answers of which each says that another comes.
pub(crate) fn endless_promises(stream: TcpStream) -> io::Result<()> {
    said(&stream, b"")?;
    flood(stream, &b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(100))
}

/// A body that does not end.
pub(crate) fn endless_body(stream: TcpStream) -> io::Result<()> {
    said(&stream, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    flood(stream, &[b"10000\r\n".to_vec(), vec![b'x'; 64 << 10], b"\r\n".to_vec()].concat())
}

/// One that ends in the middle.
pub(crate) fn half_a_body(stream: TcpStream) -> io::Result<()> {
    said(&stream, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf of it")
}

/// Hangs up without a word.
pub(crate) fn hanging_up(stream: TcpStream) -> io::Result<()> {
    said(&stream, b"")
}

/// What speaks something else.
pub(crate) fn no_http(stream: TcpStream) -> io::Result<()> {
    said(&stream, b"220 mail.example ESMTP\r\n")
}

/// Waits for the end of a request's head, and answers these bytes.
fn said(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    head(&mut BufReader::new(stream))?.ok_or(ErrorKind::UnexpectedEof)?;
    stream.write_all(bytes)
}

fn flood(mut stream: TcpStream, bytes: &[u8]) -> io::Result<()> {
    loop {
        stream.write_all(bytes)?;
    }
}
