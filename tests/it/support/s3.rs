//! An S3 server of one test's own: its address, and `bucket` in its memory.

use std::net::Ipv4Addr;

use super::moto::Moto;
use super::shell;

const PREPARE: &str = include_str!("s3/prepare.py");

pub(crate) struct S3 {
    pub(crate) address: Ipv4Addr,
    /// `ACCESS:SECRET` of somebody who may do everything.
    pub(crate) keys: String,
    moto: Moto,
}

impl S3 {
    /// A server that lets everybody in.
    pub(crate) fn open() -> Self {
        Self::start("open")
    }

    /// A server that looks at signatures. It reads those of requests with a `/` in their query otherwise than s3fs writes them, so what
    /// is in its bucket cannot be listed.
    pub(crate) fn closed() -> Self {
        Self::start("closed")
    }

    fn start(how: &str) -> Self {
        let moto = Moto::start();
        let keys = moto.prepare(PREPARE, how);
        Self { address: moto.address, keys, moto }
    }

    pub(crate) fn url(&self) -> String {
        self.moto.url()
    }

    /// What is in the bucket under a name, where the server looks at no signature; but it wants one.
    pub(crate) fn object(&self, name: &str) -> Option<String> {
        let signed = "-H 'Authorization: AWS4-HMAC-SHA256 Credential=me/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0'";
        let line = format!("curl --silent --fail {signed} {}/bucket/{name}", self.url());
        let outcome = shell(&line, &[]);
        (outcome.code == Some(0)).then_some(outcome.stdout)
    }
}
