//! A git server of one test's own: `git http-backend` behind a few lines of Python, with repositories and files beneath one directory.
//! Ends with the run.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Child;

use super::{SOON, Scratch, mortal, own_address, shell, spawn, until};

const PORT: u16 = 8080;

/// Answers what git asks by the program that git has for it, and everything else from the directory, `/moved` from elsewhere. Whoever
/// asks must be `me`, if there is a file `password`.
const SERVER: &str = r#"
import base64, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get('content-length', 0)))
        path, _, query = self.path.partition('?')
        if os.path.exists('password'):
            word = 'me:' + open('password').read()
            wanted = 'Basic ' + base64.b64encode(word.encode()).decode()
            if self.headers.get('authorization') != wanted:
                return self.answer(401, {}, b'')
        if path == '/moved':
            return self.answer(302, {'location': '/archive.tar'}, b'')
        if '.git/' not in path:
            file = path.lstrip('/')
            found = os.path.isfile(file)
            return self.answer(200 if found else 404, {}, open(file, 'rb').read() if found else b'')
        environment = dict(os.environ, GIT_PROJECT_ROOT=os.getcwd(), GIT_HTTP_EXPORT_ALL='1', PATH_INFO=path,
            QUERY_STRING=query, REQUEST_METHOD=self.command, CONTENT_TYPE=self.headers.get('content-type', ''),
            CONTENT_LENGTH=str(len(body)), GIT_PROTOCOL=self.headers.get('git-protocol', ''))
        done = subprocess.run(['git', '-c', 'safe.directory=*', 'http-backend'], env=environment, input=body, capture_output=True)
        head, _, content = done.stdout.partition(b'\r\n\r\n')
        headers = dict(line.split(': ', 1) for line in head.decode().split('\r\n') if line)
        self.answer(int(headers.pop('Status', '200').split()[0]), headers, content)

    do_POST = do_GET

    def answer(self, status, headers, content):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('content-length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"#;

pub(crate) struct Git {
    pub(crate) address: Ipv4Addr,
    scratch: Scratch,
    child: Child,
}

impl Git {
    pub(crate) fn serve() -> Self {
        let (address, scratch) = (own_address(), Scratch::new());
        let mut command = mortal("python3");
        command.args(["-c", SERVER, &address.to_string(), &PORT.to_string()]);
        command.current_dir(scratch.path());
        let child = spawn(command);
        until("the server listens", SOON, || TcpStream::connect((address, PORT)).ok());
        Self { address, scratch, child }
    }

    /// What is granted, and what its URLs begin with.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}:{PORT}", self.address)
    }

    /// A path of what it serves.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Lets only those in who are `me` with this password.
    pub(crate) fn lock(&self, password: &str) {
        fs::write(self.path("password"), password).unwrap();
    }

    /// Runs lines of a shell in its directory, with git's configuration of nobody.
    pub(crate) fn shell(&self, lines: &str) -> String {
        let all = format!(
            "cd {} && export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b \
             GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b && {lines}",
            self.scratch.path().display()
        );
        shell(&all, &[]).ok().trim().to_owned()
    }
}

impl Drop for Git {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
