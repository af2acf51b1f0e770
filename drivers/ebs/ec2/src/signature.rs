//! AWS's signature version 4 of what is posted to `/`.
//!
//! Called by the client for each request. The secret goes into the signature alone, by which nobody finds it again.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// What signs requests. No `Debug`: it would show the secret.
pub(crate) struct Credentials {
    access: String,
    secret: String,
}

impl Credentials {
    /// Reads one line, `ACCESS:SECRET`.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let (access, secret) = std::str::from_utf8(line).ok()?.trim_end().split_once(':')?;
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic());
        let is_both = is_word(access) && !access.contains(['/', ',']) && is_word(secret);
        is_both.then(|| Self { access: access.to_owned(), secret: secret.to_owned() })
    }

    /// The header `authorization` of a request with these headers, by their lower-case names and in that order, for a service of a region.
    /// `at` is what its header `x-amz-date` says: `20150830T123600Z`.
    pub(crate) fn authorize(
        &self,
        (region, service): (&str, &str),
        at: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> String {
        let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String =
            headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let request = format!("POST\n/\n\n{lines}\n{names}\n{:x}", Sha256::digest(body));
        let day = at.split_once('T').map_or(at, |(day, _)| day);
        let scope = format!("{day}/{region}/{service}/aws4_request");
        let text =
            format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{:x}", Sha256::digest(request.as_bytes()));
        let first = format!("AWS4{}", self.secret).into_bytes();
        let key = [day, region, service, "aws4_request"]
            .into_iter()
            .fold(first, |key, part| mac(&key, part).finalize().into_bytes().to_vec());
        let signature = mac(&key, &text).finalize().into_bytes();
        let access = &self.access;
        format!(
            "AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, Signature={signature:x}"
        )
    }
}

#[expect(clippy::expect_used, reason = "a key of any length is one")]
fn mac(key: &[u8], text: &str) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("a key").chain_update(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "20150830T123600Z";

    fn signature(headers: &[(&str, &str)], body: &str) -> String {
        let credentials =
            Credentials::parse(b"AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY\n").unwrap();
        credentials.authorize(("us-east-1", "service"), DATE, headers, body.as_bytes())
    }

    /// `post-vanilla` of the test suite that AWS published with the signature.
    #[test]
    fn an_empty_request_is_signed_as_awss_own_is() {
        let headers = [("host", "example.amazonaws.com"), ("x-amz-date", DATE)];
        let shown = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                     SignedHeaders=host;x-amz-date, \
                     Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b";
        assert_eq!(signature(&headers, ""), shown);
    }

    /// Its `post-x-www-form-urlencoded`.
    #[test]
    fn a_request_with_a_body_is_signed_as_awss_own_is() {
        let form = ("content-type", "application/x-www-form-urlencoded");
        let headers = [form, ("host", "example.amazonaws.com"), ("x-amz-date", DATE)];
        let shown = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                     SignedHeaders=content-type;host;x-amz-date, \
                     Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a";
        assert_eq!(signature(&headers, "Param1=value1"), shown);
    }

    #[test]
    fn credentials_are_one_line_with_a_colon() {
        for bad in ["", "ACCESS", ":SECRET", "ACCESS:", "A B:S", "A:S\nmore", "A/B:S", "\u{e4}:S"] {
            assert!(Credentials::parse(bad.as_bytes()).is_none(), "{bad:?}");
        }
        assert!(Credentials::parse(b"ACCESS:SEC:RET+/=\r\n").is_some());
    }
}
