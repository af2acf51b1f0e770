//! TLS of a driver's connections: agreed on with the authorities that this host trusts, and refused in words for a person.
//!
//! Used by `http` for an origin that is to be spoken with so. It opens no connection and knows no grants.

use std::io;
use std::sync::{Arc, LazyLock};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore};
use wasmtime_wasi_http::Error;

use super::{Failure, Stream};

/// Speaks TLS on a connection, with the authorities that this host trusts.
pub(super) async fn agree(stream: TcpStream, host: &str) -> Result<Box<dyn Stream>, Failure> {
    /// Read once: hosts have about 150 of them.
    static TLS: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        // What rustls cannot use as an authority is not one.
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err("this host trusts no authority: install ca-certificates".to_owned());
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?;
        Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    });
    let config =
        TLS.as_ref().map_err(|why| Failure::new(Error::TlsCertificateError, why.as_str()))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::new(Error::HttpRequestUriInvalid, "it is no host"))?;
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
    Ok(Box::new(stream.map_err(refused)?))
}

/// Why TLS was not agreed on.
fn refused(error: io::Error) -> Failure {
    let reason = error.get_ref().and_then(|error| error.downcast_ref());
    let Some(rustls::Error::InvalidCertificate(why)) = reason else {
        let words = match reason {
            Some(reason) => format!("no TLS could be agreed on: {reason}"),
            None => format!("no TLS could be agreed on: {error}"),
        };
        return Failure::new(Error::TlsProtocolError, words);
    };
    use CertificateError as C;
    let why = match why {
        C::UnknownIssuer => "this host does not know who issued it".to_owned(),
        C::NotValidForName | C::NotValidForNameContext { .. } => "it is for other names".to_owned(),
        C::Expired | C::ExpiredContext { .. } => "it has expired".to_owned(),
        C::NotValidYet | C::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        other => other.to_string(),
    };
    Failure::new(Error::TlsCertificateError, format!("its certificate is not trusted: {why}"))
}
