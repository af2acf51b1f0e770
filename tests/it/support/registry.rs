//! A registry of one test's own, Debian's docker-registry: its address, and a directory that it keeps everything in. Ends with the run.
//!
//! [`Cutter`] stands between it and a client, reads what is asked, and cuts connections.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::{SOON, Scratch, mortal, own_address, shell, spawn, until};

const PORT: u16 = 5000;
/// Who is let in by a registry that asks.
pub(crate) const USER: &str = "me";

pub(crate) struct Registry {
    address: Ipv4Addr,
    scratch: Scratch,
    scheme: &'static str,
    child: Child,
}

impl Registry {
    /// One that lets everybody in.
    pub(crate) fn open() -> Self {
        Self::start(Scratch::new(), own_address(), "http", "", "")
    }

    /// One that lets [`USER`] in with a password.
    pub(crate) fn private(password: &str) -> Self {
        let scratch = Scratch::new();
        // bcrypt, which openssl does not have.
        let line = "perl -e 'print crypt($ENV{WORD}, q($2b$04$abcdefghijklmnopqrstuu))'";
        let hash = shell(line, &[("WORD", password.into())]).ok();
        let users = scratch.path().join("users");
        fs::write(&users, format!("{USER}:{hash}\n")).unwrap();
        let auth = format!("auth: {{htpasswd: {{realm: here, path: {}}}}}", users.display());
        Self::start(scratch, own_address(), "http", "", &auth)
    }

    /// One that believes tokens which the key of a certificate in `token.crt` has signed, and sends to `realm` for them.
    pub(crate) fn with_tokens(realm: &str, certificate: &std::path::Path) -> Self {
        let auth = format!(
            "auth: {{token: {{realm: '{realm}', service: the-registry, issuer: the-issuer, rootcertbundle: {}}}}}",
            certificate.display()
        );
        Self::start(Scratch::new(), own_address(), "http", "", &auth)
    }

    /// One that speaks TLS with a certificate of [`Registry::authority`].
    pub(crate) fn with_tls() -> Self {
        let (scratch, address) = (Scratch::new(), own_address());
        let line = format!(
            "cd {dir} && key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes' && \
             openssl req -x509 $key -keyout ca.key -out ca.crt -days 2 -subj /CN=authority && \
             openssl req $key -keyout tls.key -out tls.csr -subj /CN=registry && \
             echo subjectAltName=IP:{address} >ext && \
             openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out tls.crt",
            dir = scratch.path().display()
        );
        shell(&line, &[]).ok();
        let place = scratch.path().display();
        let tls = format!(", tls: {{certificate: {place}/tls.crt, key: {place}/tls.key}}");
        Self::start(scratch, address, "https", &tls, "")
    }

    fn start(
        scratch: Scratch,
        address: Ipv4Addr,
        scheme: &'static str,
        http: &str,
        more: &str,
    ) -> Self {
        let data = scratch.dir("data").display().to_string();
        let config = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: false}}}}\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\n\
             http: {{addr: '{address}:{PORT}'{http}}}\n{more}\n"
        );
        fs::write(scratch.path().join("config.yml"), config).unwrap();
        let mut command = mortal("docker-registry");
        command.args(["serve", "config.yml"]).current_dir(scratch.path());
        let log = File::create(scratch.path().join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = spawn(command);
        until("the registry listens", SOON, || TcpStream::connect((address, PORT)).ok());
        Self { address, scratch, scheme, child }
    }

    /// Host and port, as a reference begins.
    pub(crate) fn host(&self) -> String {
        format!("{}:{PORT}", self.address)
    }

    /// The certificate of who signed its own.
    pub(crate) fn authority(&self) -> PathBuf {
        self.scratch.path().join("ca.crt")
    }

    /// What it has logged: a line for each request, among others.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("log")).unwrap()
    }

    fn url(&self, repository: &str) -> String {
        format!("{}://{}/v2/{repository}", self.scheme, self.host())
    }

    /// The file of a blob, by its digest.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let data = self.scratch.path().join("data/docker/registry/v2/blobs/sha256");
        data.join(&hex[..2]).join(hex).join("data")
    }

    /// The manifest under a tag or digest.
    pub(crate) fn manifest(&self, repository: &str, at: &str) -> serde_json::Value {
        let accept = "-H 'Accept: application/vnd.oci.image.manifest.v1+json'";
        let url = self.url(repository);
        let text = shell(&format!("curl --silent --fail {accept} {url}/manifests/{at}"), &[]).ok();
        serde_json::from_str(&text).unwrap()
    }

    /// Puts some bytes into a repository, and answers their digest.
    pub(crate) fn put_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let file = self.scratch.path().join("blob");
        fs::write(&file, bytes).unwrap();
        let line = format!(
            "digest=sha256:$(sha256sum <{file} | cut -d' ' -f1) && \
             to=$(curl --silent -i -X POST {url}/blobs/uploads/ | tr -d '\\r' | sed -n 's/^Location: //p') && \
             curl --silent --fail -X PUT -H 'Content-Type: application/octet-stream' --data-binary @{file} \"$to&digest=$digest\" && \
             echo $digest",
            file = file.display(),
            url = self.url(repository),
        );
        shell(&line, &[]).ok()
    }

    /// Puts a manifest under a tag.
    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, manifest: &serde_json::Value) {
        let file = self.scratch.path().join("manifest");
        fs::write(&file, manifest.to_string()).unwrap();
        let (kind, file) = (manifest["mediaType"].as_str().unwrap(), file.display());
        let line = format!(
            "curl --silent --fail -X PUT -H 'Content-Type: {kind}' --data-binary @{file} {}/manifests/{tag}",
            self.url(repository)
        );
        shell(&line, &[]).ok();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// More than any request but one with a component.
const SENT: usize = 20_000;

/// Passes connections on, and cuts each after some bytes of its answers, or of what is uploaded.
pub(crate) struct Cutter {
    address: Ipv4Addr,
    inner: Arc<Inner>,
}

struct Inner {
    upstream: (Ipv4Addr, u16),
    /// Bytes of answers for each connection.
    after: AtomicUsize,
    /// Connections that are not hung up on at once.
    left: AtomicUsize,
    /// Connections that are still to be cut after [`SENT`] bytes of what the client sends.
    uploads: AtomicUsize,
    /// What clients have sent.
    asked: Mutex<Vec<u8>>,
    ended: AtomicBool,
}

impl Cutter {
    /// Before a registry. Every connection is cut after so many bytes.
    pub(crate) fn before(registry: &Registry, after: usize) -> Self {
        let address = own_address();
        let listener = TcpListener::bind((address, PORT)).unwrap();
        let inner = Arc::new(Inner {
            upstream: (registry.address, PORT),
            after: AtomicUsize::new(after),
            left: AtomicUsize::new(usize::MAX),
            uploads: AtomicUsize::default(),
            asked: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let shared = Arc::clone(&inner);
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A client that is gone is no fault of the test's.
                thread::spawn(move || client.map(|client| shared.pass(&client)));
            }
        });
        Self { address, inner }
    }

    pub(crate) fn host(&self) -> String {
        format!("{}:{PORT}", self.address)
    }

    /// From now on only so many connections more are passed on.
    pub(crate) fn leave(&self, connections: usize) {
        self.inner.left.store(connections, Ordering::Relaxed);
    }

    /// So many uploads break off after [`SENT`] bytes.
    pub(crate) fn cut_uploads(&self, uploads: usize) {
        self.inner.uploads.store(uploads, Ordering::Relaxed);
    }

    /// What clients have sent until now.
    pub(crate) fn take_asked(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.inner.asked.lock().unwrap()))
            .into_owned()
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.inner.ended.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _woken = TcpStream::connect((self.address, PORT));
    }
}

impl Inner {
    fn pass(&self, client: &TcpStream) {
        let one_less = |left: usize| left.checked_sub(1);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
            return;
        }
        let server = TcpStream::connect(self.upstream).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut chunk, mut sent) = ([0; 4096], 0);
                while let Ok(count @ 1..) = (&mut &*client).read(&mut chunk) {
                    sent += count;
                    let cut = || {
                        self.uploads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                    };
                    if sent > SENT && cut().is_ok() {
                        break;
                    }
                    self.asked.lock().unwrap().extend_from_slice(&chunk[..count]);
                    if (&mut &server).write_all(&chunk[..count]).is_err() {
                        break;
                    }
                }
                let _closed = server.shutdown(Shutdown::Both);
            });
            let mut left = self.after.load(Ordering::Relaxed);
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = (&mut &server).read(&mut chunk) {
                let passed = count.min(left);
                left -= passed;
                if (&mut &*client).write_all(&chunk[..passed]).is_err() || left == 0 {
                    break;
                }
            }
            let _closed = client.shutdown(Shutdown::Both);
            let _closed = server.shutdown(Shutdown::Both);
        });
    }
}
