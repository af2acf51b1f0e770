//! What a driver writes: its log lines, stdout and stderr, on their way into the daemon's log.
//!
//! Every line is bounded, escaped and carries the driver's name. A call and a minute have their limits; what is beyond is counted
//! and dropped, and a driver that writes is never blocked by it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult, pipe::SinkOutputStream};
use wasmvol_plan::{DriverName, secret};

use crate::answer::{MESSAGE_MAX, one_line};

/// Most bytes that one call may log.
pub(crate) const CALL_MAX: usize = 16 << 10;
/// Most bytes that one driver may log in a minute.
pub(crate) const MINUTE_MAX: usize = 256 << 10;
/// Longest line in bytes; a longer one is broken on a stream, and cut in a message.
const LINE_MAX: usize = 1 << 10;
/// What a line costs beside its own bytes: the time, the level and the driver's name are written for each.
const LINE_COST: usize = 64;
/// Bytes that a stream takes in one write; WASI asks before each.
const WRITE_MAX: usize = 4 << 10;

/// How urgent a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// The log of one driver, over all of its calls.
#[derive(Debug)]
pub(crate) struct Log {
    driver: DriverName,
    minute: Mutex<Minute>,
}

#[derive(Debug)]
struct Minute {
    began: Instant,
    used: usize,
    dropped: usize,
}

/// The log of one call.
#[derive(Debug)]
pub(crate) struct Journal {
    log: Arc<Log>,
    left: usize,
    out: Vec<u8>,
    err: Vec<u8>,
    last: String,
    /// What the call was told, and nobody else is.
    secrets: Vec<secret::Bytes>,
}

/// A journal as the streams of a call share it.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Mutex<Journal>>);

impl Log {
    /// The log of a driver that was just loaded.
    pub(crate) fn new(driver: DriverName) -> Arc<Self> {
        let minute = Minute { began: Instant::now(), used: 0, dropped: 0 };
        Arc::new(Self { driver, minute: Mutex::new(minute) })
    }

    /// Whose it is.
    pub(crate) fn driver(&self) -> &DriverName {
        &self.driver
    }

    /// Takes `bytes` from what is left of the minute. Says so once when a minute's first line is dropped, and how much it was
    /// when a later minute begins.
    fn admit(&self, bytes: usize, call_is_full: bool) -> bool {
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.began.elapsed() >= Duration::from_secs(60) {
            if minute.dropped > 0 {
                let why = format!("{} more bytes were dropped", minute.dropped);
                self.emit(Level::Warn, &why);
            }
            *minute = Minute { began: Instant::now(), used: 0, dropped: 0 };
        }
        if call_is_full || minute.used.saturating_add(bytes) > MINUTE_MAX {
            if minute.dropped == 0 {
                let limits =
                    format!("{} KiB a call, {} a minute", CALL_MAX >> 10, MINUTE_MAX >> 10);
                self.emit(
                    Level::Warn,
                    &format!("log is over its limit of {limits}: the rest is dropped"),
                );
            }
            minute.dropped = minute.dropped.saturating_add(bytes);
            return false;
        }
        minute.used += bytes;
        true
    }

    fn emit(&self, level: Level, line: &str) {
        let driver = &self.driver;
        match level {
            Level::Error => tracing::error!(target: "driver", %driver, "{line}"),
            Level::Warn => tracing::warn!(target: "driver", %driver, "{line}"),
            Level::Info => tracing::info!(target: "driver", %driver, "{line}"),
            Level::Debug => tracing::debug!(target: "driver", %driver, "{line}"),
        }
    }
}

impl Shared {
    /// An empty journal for one call.
    pub(crate) fn new(log: &Arc<Log>) -> Self {
        let (log, last, secrets) = (Arc::clone(log), String::new(), Vec::new());
        let (out, err) = (Vec::new(), Vec::new());
        let journal = Journal { log, left: CALL_MAX, out, err, last, secrets };
        Self(Arc::new(Mutex::new(journal)))
    }

    /// The journal itself.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Journal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The call's stdout.
    pub(crate) fn stdout(&self) -> Stream {
        Stream { journal: self.clone(), level: Level::Info }
    }

    /// The call's stderr.
    pub(crate) fn stderr(&self) -> Stream {
        Stream { journal: self.clone(), level: Level::Warn }
    }
}

impl Journal {
    /// Logs a message of the driver's, line by line.
    pub(crate) fn write(&mut self, level: Level, message: &str) {
        for line in message.lines() {
            self.line(level, line);
        }
    }

    /// Ends the call: logs what has no line end yet.
    pub(crate) fn finish(&mut self) {
        for level in [Level::Info, Level::Warn] {
            let rest = std::mem::take(self.buffer(level));
            if !rest.is_empty() {
                self.raw_line(level, &rest);
            }
        }
    }

    /// From now on no text with a part of this is told.
    pub(crate) fn keep(&mut self, secret: secret::Bytes) {
        self.secrets.push(secret);
    }

    /// A text of the driver's, as others may read it.
    pub(crate) fn told<'a>(&self, text: &'a str) -> &'a str {
        secret::told(&self.secrets, text)
    }

    /// The last line on stderr that says something: why it crashed.
    pub(crate) fn last_words(&self) -> &str {
        &self.last
    }

    /// How much of what a call may log it has used up.
    pub(crate) fn logged(&self) -> usize {
        CALL_MAX - self.left
    }

    fn take(&mut self, level: Level, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let buffer = self.buffer(level);
            buffer.extend_from_slice(piece);
            if buffer.ends_with(b"\n") || buffer.len() >= LINE_MAX {
                let line = std::mem::take(buffer);
                self.raw_line(level, &line);
            }
        }
    }

    fn buffer(&mut self, level: Level) -> &mut Vec<u8> {
        if level == Level::Warn { &mut self.err } else { &mut self.out }
    }

    fn raw_line(&mut self, level: Level, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        // Rust ends every panic with advice that no operator of a driver can follow.
        if level == Level::Warn && !line.is_empty() && !line.starts_with("note: run with `RUST_") {
            self.last = one_line(self.told(line), MESSAGE_MAX);
        }
        self.line(level, line);
    }

    fn line(&mut self, level: Level, line: &str) {
        if line.is_empty() {
            return;
        }
        let line = one_line(self.told(line), LINE_MAX);
        let cost = line.len() + LINE_COST;
        // The first line that does not fit ends the log of this call: a log with holes misleads.
        self.left = if cost <= self.left { self.left } else { 0 };
        if self.log.admit(cost, self.left == 0) {
            self.left -= cost;
            self.log.emit(level, &line);
        }
    }
}

/// stdout or stderr of one call.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    journal: Shared,
    level: Level,
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this form, which is not on offer.
        SinkOutputStream.async_stream()
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.journal.lock().take(self.level, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_MAX)
    }
}
