//! How a registry wants to be asked: the challenge of its 401, and the `Authorization` that answers it.
//!
//! Called by the client, which sends it to that registry alone. A password goes to the registry, or to the realm that it names.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::credentials::Login;

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// The password itself.
    Basic,
    /// A token that another server gives.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// What a token server answers; each is called otherwise by some.
#[derive(Deserialize)]
pub(crate) struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Challenge {
    /// The first of these headers that is understood, a token's before the password's.
    pub(crate) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut found: Vec<_> = headers.filter_map(Self::parse).collect();
        let bearer = found.iter().position(|challenge| *challenge != Self::Basic);
        (!found.is_empty()).then(|| found.swap_remove(bearer.unwrap_or(0)))
    }

    fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        let value = |key: &str| {
            let mut of_key = parameters.iter().filter(|(k, _)| k.eq_ignore_ascii_case(key));
            of_key.next().map(|(_, value)| value.clone())
        };
        let (realm, service, scope) = (value("realm")?, value("service"), value("scope"));
        Some(Self::Bearer { realm, service, scope })
    }
}

/// The `key="value"` of a challenge.
fn parameters(text: &str) -> Vec<(String, String)> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.find(',').map_or((after, ""), |comma| after.split_at(comma)),
        };
        found.push((key.trim_matches([' ', ',']).to_owned(), value.trim().to_owned()));
        rest = after;
    }
    found
}

/// The header of somebody who shows a password.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The request for a token: address, `Authorization`, and a form to post, each where there is one.
pub(crate) struct Plea {
    pub(crate) url: String,
    pub(crate) authorization: Option<String>,
    pub(crate) form: Option<String>,
}

impl Plea {
    pub(crate) fn new(
        realm: &str,
        service: Option<&str>,
        scope: &str,
        login: Option<&Login>,
    ) -> Self {
        let mut wanted = form(&[("scope", scope)]);
        if let Some(service) = service {
            wanted = format!("{}&{wanted}", form(&[("service", service)]));
        }
        if let Some(Login::Identity(token)) = login {
            let grant = [
                ("grant_type", "refresh_token"),
                ("client_id", "wasmvol"),
                ("refresh_token", token),
            ];
            let form = Some(format!("{}&{wanted}", form(&grant)));
            return Self { url: realm.to_owned(), authorization: None, form };
        }
        let authorization = match login {
            Some(Login::Password { user, password }) => Some(basic(user, password)),
            _ => None,
        };
        let joint = if realm.contains('?') { '&' } else { '?' };
        Self { url: format!("{realm}{joint}{wanted}"), authorization, form: None }
    }
}

impl Token {
    /// The header of somebody who shows it.
    pub(crate) fn bearer(self) -> Option<String> {
        let token = self.token.or(self.access_token).filter(|token| !token.is_empty())?;
        Some(format!("Bearer {token}"))
    }
}

fn form(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<_> =
        pairs.iter().map(|(key, value)| format!("{key}={}", escaped(value))).collect();
    pairs.join("&")
}

/// Text in an address.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.into(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn a_challenge_is_read_as_registries_write_it() {
        let choose = |headers: &[&str]| Challenge::choose(headers.iter().copied());
        assert_eq!(choose(&["Basic realm=\"basic-realm\""]), Some(Challenge::Basic));
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let token = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:a/b:pull,push"),
        );
        assert_eq!(choose(&[hub]), token);
        assert_eq!(choose(&["Basic realm=x", hub]), token);
        assert_eq!(
            choose(&["bearer realm=https://r/t , service=s"]),
            bearer("https://r/t", Some("s"), None)
        );
        assert_eq!(
            choose(&["Negotiate", "Bearer service=\"s\"", "", "Bearer realm=\"un"]),
            bearer("un", None, None)
        );
        assert_eq!(choose(&["Negotiate"]), None);
    }

    #[test]
    fn a_token_is_asked_for_with_what_there_is() {
        let scope = "repository:a/b:pull";
        let anonymous = Plea::new("https://r/t", Some("s s"), scope, None);
        assert_eq!(anonymous.url, "https://r/t?service=s%20s&scope=repository%3Aa%2Fb%3Apull");
        assert!(anonymous.authorization.is_none() && anonymous.form.is_none());
        let login = Login::Password { user: "me".into(), password: "x".into() };
        let named = Plea::new("https://r/t?a=b", None, scope, Some(&login));
        assert_eq!(named.url, "https://r/t?a=b&scope=repository%3Aa%2Fb%3Apull");
        assert_eq!(named.authorization.as_deref(), Some("Basic bWU6eA=="));
        let identity = Login::Identity("a+b".into());
        let posted = Plea::new("https://r/t", None, scope, Some(&identity));
        let form = posted.form.unwrap();
        assert_eq!(posted.url, "https://r/t");
        assert!(
            form.contains("grant_type=refresh_token") && form.contains("refresh_token=a%2Bb"),
            "{form}"
        );
    }
}
