//! A client of the plugin protocol that costs little itself: one connection, one write a request, as Docker's own client does it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Result;

/// Longer than anything that is measured here: a server that hangs ends the run instead of keeping it.
const PATIENCE: Duration = Duration::from_secs(60);
/// A bite of the socket.
const READ: usize = 64 * 1024;

/// A connection that is kept alive.
pub(crate) struct Client {
    stream: UnixStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    filled: usize,
}

/// The last answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer<'a> {
    pub(crate) head: &'a str,
    pub(crate) body: &'a [u8],
}

impl Client {
    /// Connects.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .map_err(|e| format!("cannot connect to `{}`: {e}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, request: Vec::new(), answer: vec![0; READ], filled: 0 })
    }

    /// Sends one call and reads its answer, which must be 200.
    pub(crate) fn call(&mut self, call: &str, body: &str) -> Result<Answer<'_>> {
        self.request.clear();
        write!(
            self.request,
            "POST /{call} HTTP/1.1\r\nHost: plugin\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
             Accept: application/vnd.docker.plugins.v1.2+json\r\n\r\n{body}",
            body.len()
        )?;
        self.stream.write_all(&self.request)?;
        self.filled = 0;
        let head = loop {
            if let Some(at) = find(self.read(), b"\r\n\r\n") {
                break at + 4;
            }
            self.fill()?;
        };
        let text = str::from_utf8(self.read().get(..head).unwrap_or_default())?.to_owned();
        let end = match header(&text, "content-length") {
            Some(length) => {
                let end = head + length.parse::<usize>()?;
                while self.filled < end {
                    self.fill()?;
                }
                end
            }
            None => {
                // Chunks, which only Go's lists are: the last one is empty. Their sizes stay in the body, which nobody reads.
                while !self.read().ends_with(b"\r\n0\r\n\r\n") {
                    self.fill()?;
                }
                self.filled
            }
        };
        let body = self.answer.get(head..end).unwrap_or_default();
        let head = self.answer.get(..head).unwrap_or_default();
        if !text.starts_with("HTTP/1.1 200 ") {
            return Err(format!("{call}: {}", String::from_utf8_lossy(body)).into());
        }
        Ok(Answer { head: str::from_utf8(head)?, body })
    }

    /// A call, and how long its answer took.
    pub(crate) fn timed(&mut self, call: &str, body: &str) -> Result<Duration> {
        let begin = Instant::now();
        self.call(call, body)?;
        Ok(begin.elapsed())
    }

    fn read(&self) -> &[u8] {
        self.answer.get(..self.filled).unwrap_or_default()
    }

    fn fill(&mut self) -> Result<()> {
        if self.answer.len() < self.filled + READ {
            self.answer.resize(self.filled + READ * 4, 0);
        }
        let free = self.answer.get_mut(self.filled..).unwrap_or_default();
        match self.stream.read(free)? {
            0 => Err("the server closed the connection in the middle of an answer".into()),
            n => {
                self.filled += n;
                Ok(())
            }
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A header's value; `name` in lower case.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// The body of Get, Path and Remove.
pub(crate) fn named(name: &str) -> String {
    format!("{{\"Name\":\"{name}\"}}\n")
}

/// The body of Mount and Unmount.
pub(crate) fn held(name: &str, id: &str) -> String {
    format!("{{\"Name\":\"{name}\",\"ID\":\"{id}\"}}\n")
}
