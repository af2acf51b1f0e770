//! Which URLs may be asked, and with what. Used by the driver when a volume is created.

use std::net::IpAddr;

/// Sees that a URL is one of a server's, and that a secret is not sent there in clear.
///
/// # Errors
/// What is wrong with it, for who wrote it.
pub fn check_url(url: &str, has_secret: bool) -> Result<(), &'static str> {
    let is_plain = url.starts_with("http://");
    let rest = url.strip_prefix("https://").or(url.strip_prefix("http://")).unwrap_or_default();
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    if authority.is_empty() || url.contains(char::is_whitespace) {
        return Err("use a URL that begins with `https://` or `http://`");
    }
    if has_secret && is_plain && !is_loopback(authority) {
        return Err("the secret could be read by everybody on the way: use `https://`");
    }
    Ok(())
}

/// Whether what is sent to a host does not leave this machine.
fn is_loopback(authority: &str) -> bool {
    if authority.contains('@') {
        return false;
    }
    // A port follows a name or an address, and that of version 6 stands in brackets.
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::check_url;

    #[test]
    fn a_secret_is_sent_by_tls_or_within_this_machine() {
        for url in [
            "https://git.example/site",
            "http://localhost:3000/site",
            "http://127.0.0.1/site",
            "http://127.8.9.10:8080/site",
            "http://[::1]:3000/site",
        ] {
            assert_eq!(check_url(url, true), Ok(()), "{url}");
        }
        for url in [
            "http://git.example/site",
            "http://127.0.0.1.example/site",
            "http://localhost.example",
            "http://10.0.0.5:3000/site",
            "http://[2001:db8::1]/site",
            "http://localhost@git.example/site",
            "http://localhost:word@git.example/site",
            "http://127.0.0.1:80@git.example",
        ] {
            assert!(check_url(url, true).is_err_and(|why| why.contains("secret")), "{url}");
            assert_eq!(check_url(url, false), Ok(()), "{url}");
        }
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused() {
        for url in ["", "git.example", "ftp://host/a", "http://", "https:///a", "http://a b/c"] {
            assert!(check_url(url, false).is_err_and(|why| why.contains("use a URL")), "{url}");
        }
    }
}
