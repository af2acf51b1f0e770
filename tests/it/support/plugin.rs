//! Docker's side of the volume plugin protocol, byte by byte: HTTP/1.1 over a unix socket with nothing in between.
//!
//! [`Socket`] sends any bytes; [`Plugin`] speaks as dockerd does.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// Longest wait for an answer: what dockerd waits for a Mount.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);

/// One connection.
pub(crate) struct Socket {
    stream: BufReader<UnixStream>,
}

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The answer's content, or the sentence of its error. Any other shape is a failure of the test.
    #[track_caller]
    pub(crate) fn result(&self) -> Result<Value, String> {
        let value = self.json();
        let error = value.get("Err").and_then(Value::as_str).unwrap_or("").to_owned();
        match self.status {
            200 => {
                assert_eq!(error, "", "podman overlooks an error with status 200: {self:?}");
                Ok(value)
            }
            500 => {
                assert_ne!(error, "", "an error says what is wrong: {self:?}");
                assert!(!error.contains('\n'), "an error is one line: {self:?}");
                Err(error)
            }
            _ => panic!("neither 200 nor 500: {self:?}"),
        }
    }
}

impl Socket {
    /// Connects.
    pub(crate) fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Writes these bytes.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())
    }

    /// Reads one answer; an error if the connection ends before.
    pub(crate) fn read(&mut self) -> std::io::Result<Answer> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(broken)?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let mut body = Vec::new();
        match length.and_then(|(_, value)| value.parse::<usize>().ok()) {
            Some(length) => {
                body.resize(length, 0);
                self.stream.read_exact(&mut body)?;
            }
            None => self.read_chunks(&mut body)?,
        }
        let body = String::from_utf8(body).map_err(|_| broken())?;
        Ok(Answer { status, headers, body })
    }

    /// Whether nothing has arrived that was not read yet.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.stream.get_ref().set_nonblocking(true).unwrap();
        let arrived = self.stream.fill_buf().map(<[u8]>::len);
        self.stream.get_ref().set_nonblocking(false).unwrap();
        arrived.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Waits for the next bytes; true if the other end closed instead.
    pub(crate) fn has_ended(&mut self) -> bool {
        match self.stream.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            // Closed over something that it had not read.
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Closes the half on which requests go.
    pub(crate) fn finish(&self) {
        self.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    }

    fn read_chunks(&mut self, body: &mut Vec<u8>) -> std::io::Result<()> {
        loop {
            let size = usize::from_str_radix(&self.line()?, 16).map_err(|_| broken())?;
            let mut chunk = vec![0; size];
            self.stream.read_exact(&mut chunk)?;
            self.line()?;
            if size == 0 {
                return Ok(());
            }
            body.extend(chunk);
        }
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(broken());
        }
        Ok(line.trim_end().to_owned())
    }
}

fn broken() -> std::io::Error {
    std::io::Error::other("the connection ended in the middle of an answer")
}

/// A request as dockerd writes it: no Host, no Content-Type, a JSON body with a newline.
pub(crate) fn request(endpoint: &str, body: &str) -> String {
    format!(
        "POST /{endpoint} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
         Accept: application/vnd.docker.plugins.v1.2+json\r\nAccept-Encoding: gzip\r\n\r\n{body}",
        body.len()
    )
}

/// A client that speaks as dockerd does: one connection a call, every call to its end.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    pub(crate) socket: PathBuf,
}

impl Plugin {
    /// Sends one request and reads its answer; an error if there is none, as when the daemon is killed.
    pub(crate) fn try_call(&self, endpoint: &str, body: &str) -> std::io::Result<Answer> {
        let mut socket = Socket::connect(&self.socket)?;
        socket.send(request(endpoint, body))?;
        socket.read()
    }

    /// Sends one request; there must be an answer.
    #[track_caller]
    pub(crate) fn call(&self, endpoint: &str, body: &Value) -> Result<Value, String> {
        let answer = self.try_call(endpoint, &format!("{body}\n"));
        answer.unwrap_or_else(|e| panic!("{endpoint} {body}: {e}")).result()
    }

    #[track_caller]
    pub(crate) fn create(&self, name: &str, options: &[(&str, &str)]) -> Result<(), String> {
        let options: serde_json::Map<String, Value> =
            options.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        self.call("VolumeDriver.Create", &json!({ "Name": name, "Opts": options })).map(drop)
    }

    #[track_caller]
    pub(crate) fn mount(&self, name: &str, id: &str) -> Result<PathBuf, String> {
        let answer = self.call("VolumeDriver.Mount", &json!({ "Name": name, "ID": id }))?;
        Ok(PathBuf::from(answer["Mountpoint"].as_str().unwrap()))
    }

    #[track_caller]
    pub(crate) fn unmount(&self, name: &str, id: &str) -> Result<(), String> {
        self.call("VolumeDriver.Unmount", &json!({ "Name": name, "ID": id })).map(drop)
    }

    #[track_caller]
    pub(crate) fn remove(&self, name: &str) -> Result<(), String> {
        self.call("VolumeDriver.Remove", &json!({ "Name": name })).map(drop)
    }

    #[track_caller]
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf, String> {
        let answer = self.call("VolumeDriver.Path", &json!({ "Name": name }))?;
        Ok(PathBuf::from(answer["Mountpoint"].as_str().unwrap()))
    }

    /// The `Volume` of Get's answer.
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> Result<Value, String> {
        self.call("VolumeDriver.Get", &json!({ "Name": name })).map(|mut v| v["Volume"].take())
    }

    /// The names of all volumes.
    #[track_caller]
    pub(crate) fn list(&self) -> Vec<String> {
        let answer = self.call("VolumeDriver.List", &json!({})).unwrap();
        let name = |volume: &Value| volume["Name"].as_str().unwrap().to_owned();
        answer["Volumes"].as_array().unwrap().iter().map(name).collect()
    }
}
