//! Whether a component is signed, and by whom, or why that cannot be told: both places where signatures lie, one after the other.
//!
//! Called for an [`Offer`] by who has keys. Beside a component lies what anybody has pushed there: nothing of that may hide a signature
//! that counts, and nothing that cannot be read may pass for "not signed".

use std::time::Duration;

use crate::cosign::{self, Keys, Signer};
use crate::digest::Digest;
use crate::{Offer, Registry, RegistryError, bundle};

/// For the whole look. It is some ten small answers; a registry that is slow on purpose could take a minute for each of hundreds.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whose signature a component has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signature {
    /// Of one of the keys.
    By(Signer),
    /// There is none.
    Missing,
    /// There are some, none of which counts, for this reason.
    Refused(String),
    /// None that counts was found, and not all could be looked at, for this reason.
    Unclear(String),
    /// Nobody asked.
    NotLookedAt,
}

/// What does not count, of what lies beside a component.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Signatures.
    pub(crate) count: usize,
    /// One is by a key that is trusted, and of something else.
    pub(crate) of_others: bool,
    /// Why something was not looked at that may be a signature: the first of these reasons.
    unclear: Option<String>,
}

impl Seen {
    /// Passes over what cannot be read, and takes note of it. Who does not answer, or wants another login, ends the look.
    pub(crate) fn unless_unreadable<T>(
        &mut self,
        read: Result<T, RegistryError>,
    ) -> Result<Option<T>, RegistryError> {
        use RegistryError as E;
        let why = match read {
            Ok(read) => return Ok(Some(read)),
            Err(E::TooLarge { size, max, .. }) => {
                format!("it has {size} bytes, at most {max} are allowed")
            }
            Err(E::Mismatch(..)) => "it is not what its digest says".to_owned(),
            Err(E::Absent(_)) => "the registry has it no more".to_owned(),
            Err(E::Answer(_, why)) => why,
            Err(e @ E::Digest(_)) => e.to_string(),
            Err(e) => return Err(e),
        };
        self.passed_over(format!("what may be its signature cannot be read ({why})"));
        Ok(None)
    }

    /// Takes note of what is not looked at.
    pub(crate) fn passed_over(&mut self, why: String) {
        self.unclear.get_or_insert(why);
    }

    fn verdict(self) -> Signature {
        match self {
            Self { of_others: true, .. } => {
                Signature::Refused("its signature is another component's".to_owned())
            }
            Self { unclear: Some(why), .. } => Signature::Unclear(why),
            Self { count: 0, .. } => Signature::Missing,
            Self { count, .. } => Signature::Refused(format!(
                "none of its signatures ({count}) is by a key that is trusted here"
            )),
        }
    }
}

impl Registry {
    /// Whose signature an offer has, by these keys.
    ///
    /// # Errors
    /// The registry does not answer, not within a minute, or wants another login.
    pub fn signature(&self, offer: &Offer, keys: &Keys) -> Result<Signature, RegistryError> {
        self.signature_within(DEADLINE, &offer.digest, keys)
    }

    fn signature_within(
        &self,
        time: Duration,
        digest: &Digest,
        keys: &Keys,
    ) -> Result<Signature, RegistryError> {
        self.within(time, || {
            let mut seen = Seen::default();
            for look in [cosign::signer, bundle::signer] {
                if let Some(signer) = look(keys, self, digest, &mut seen)? {
                    return Ok(Signature::By(signer));
                }
            }
            Ok(seen.verdict())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::*;
    use crate::artifact::{IMAGE_CONFIG, INDEX, MANIFEST};
    use crate::bundle::tests::{MADE, keys};
    use crate::bundle::{BUNDLE, BUNDLE_MAX, EMPTY, INDEX_MAX, LOOKED_AT_MAX, SIGNED};

    const BUILT: &str = "https://slsa.dev/provenance/v1";
    const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

    /// Lists that go on: at a place of this registry, and of another.
    const PAGED: &str =
        "application/vnd.oci.image.index.v1+json\r\nLink: </v2/a/page>; rel=\"next\"";
    const ELSEWHERE: &str =
        "application/vnd.oci.image.index.v1+json\r\nLink: <http://127.0.0.2:1/v2/a/page>; rel=next";

    /// What `MADE` is a signature of.
    fn component() -> Digest {
        Digest::of(b"a component")
    }

    /// The places where signatures of it lie: the registry's list, the tag that stands for one, and the tag of cosign 2.
    fn places() -> [String; 3] {
        let tag = format!("manifests/sha256-{}", component().hex());
        [format!("referrers/{}", component()), tag.clone(), format!("{tag}.sig")]
    }

    /// What a registry answers: status, type and body, by path.
    #[derive(Clone, Default)]
    struct Shelf(BTreeMap<String, (u16, &'static str, String)>);

    impl Shelf {
        fn put(&mut self, at: &str, kind: &'static str, body: impl ToString) -> &mut Self {
            self.0.insert(at.to_owned(), (200, kind, body.to_string()));
            self
        }

        /// Puts a manifest of one layer, and answers how a list has it.
        fn manifest(&mut self, layer: &Value) -> Value {
            self.bytes(&manifest(std::slice::from_ref(layer)).to_string())
        }

        fn bytes(&mut self, manifest: &str) -> Value {
            let at = Digest::of(manifest.as_bytes());
            self.put(&format!("manifests/{at}"), MANIFEST, manifest);
            json!({"digest": at, "artifactType": BUNDLE})
        }

        /// Puts a bundle and its manifest.
        fn bundle(&mut self, bundle: &str) -> Value {
            self.put(&format!("blobs/{}", Digest::of(bundle.as_bytes())), "any/type", bundle);
            self.manifest(&layer(BUNDLE, bundle))
        }

        /// Puts the registry's list.
        fn list(&mut self, listed: &[Value]) -> &mut Self {
            self.put(&places()[0], INDEX, json!({"manifests": listed}))
        }

        fn signature(&self) -> Result<Signature, RegistryError> {
            self.serve(Duration::ZERO).signature_within(DEADLINE, &component(), &keys())
        }

        fn is_ours(&self) -> bool {
            matches!(self.signature().unwrap(), Signature::By(signer) if signer.key == "ours")
        }

        /// Why it cannot be told whose signature there is.
        fn unclear(&self) -> String {
            match self.signature().unwrap() {
                Signature::Unclear(why) => why,
                other => panic!("{other:?}"),
            }
        }

        /// A registry that has this and nothing else, and takes so long for each answer.
        fn serve(&self, pause: Duration) -> Registry {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let reference = format!("{}/a:1", listener.local_addr().unwrap());
            let answers = self.0.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let head = BufReader::new(&stream).lines().map(Result::unwrap);
                    let head: Vec<_> = head.take_while(|line| !line.is_empty()).collect();
                    let path = head[0].split(' ').nth(1).unwrap();
                    let nothing = (404, "text/plain", String::new());
                    let at = path.strip_prefix("/v2/a/").unwrap();
                    let (status, kind, body) = answers.get(at).unwrap_or(&nothing);
                    std::thread::sleep(pause);
                    let length = body.len();
                    // Who has seen enough hangs up.
                    let _gone = write!(
                        stream,
                        "HTTP/1.1 {status} So\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}",
                    );
                }
            });
            Registry::open(&reference.parse().unwrap(), Some(true))
        }
    }

    fn layer(kind: &str, bytes: &str) -> Value {
        json!({"mediaType": kind, "digest": Digest::of(bytes.as_bytes()), "size": bytes.len()})
    }

    fn manifest(layers: &[Value]) -> Value {
        json!({"schemaVersion": 2, "config": layer(IMAGE_CONFIG, "{}"), "layers": layers})
    }

    /// What a list says that a bundle states.
    fn stating(what: &str, mut listed: Value) -> Value {
        listed["annotations"] = json!({"dev.sigstore.bundle.predicateType": what});
        listed
    }

    #[test]
    fn a_bundle_is_found_by_the_registrys_list_and_by_the_tag_that_stands_for_one() {
        let [listed, tagged, _] = places();
        for (place, kind) in [(&listed, BUNDLE), (&listed, EMPTY), (&tagged, BUNDLE)] {
            let mut shelf = Shelf::default();
            let mut made = shelf.bundle(MADE);
            made["artifactType"] = kind.into();
            let list = json!({"manifests": [{"artifactType": "text/spdx"}, made]});
            assert!(shelf.put(place, INDEX, list).is_ours(), "{place}");
        }
        assert_eq!(Shelf::default().signature().unwrap(), Signature::Missing);
        let mut nothing = Shelf::default();
        nothing.put(&listed, INDEX, r#"{"manifests": null}"#);
        assert_eq!(nothing.signature().unwrap(), Signature::Missing);
    }

    #[test]
    fn a_referrer_that_cannot_be_read_hides_no_signature_and_does_not_pass_for_none() {
        let sha512 = format!("sha512:{}", "0".repeat(128));
        let sized = |size: u64| json!({"mediaType": BUNDLE, "digest": component(), "size": size});
        let large = sized(BUNDLE_MAX + 1);
        let other = json!({"mediaType": BUNDLE, "digest": sha512, "size": 1});
        type Put<'a> = &'a dyn Fn(&mut Shelf) -> Value;
        let cases: [(Put<'_>, &str); 9] = [
            (&|shelf| shelf.manifest(&large), "it has 262145 bytes, at most 262144 are allowed"),
            (&|_| json!({"digest": sha512, "artifactType": BUNDLE}), "is no digest"),
            (&|_| json!({"artifactType": BUNDLE}), "is no digest"),
            (&|_| json!(5), "is no digest"),
            (&|_| json!({"digest": component()}), "the registry has it no more"),
            (&|shelf| shelf.manifest(&sized(4)), "the registry has it no more"),
            (&|shelf| shelf.manifest(&other), "its manifest is not understood"),
            (&|shelf| shelf.bytes("<html>"), "its manifest is not understood"),
            (
                &|shelf| {
                    shelf.put(&format!("blobs/{}", component()), "any/type", "else");
                    shelf.manifest(&sized(4))
                },
                "it is not what its digest says",
            ),
        ];
        for (put, why) in cases {
            let mut shelf = Shelf::default();
            let (foreign, made) = (put(&mut shelf), shelf.bundle(MADE));
            assert!(shelf.list(&[foreign.clone(), made]).is_ours(), "{foreign}");
            let unclear = shelf.list(&[foreign]).unclear();
            assert!(
                unclear.starts_with("what may be its signature cannot be read (")
                    && unclear.contains(why),
                "{unclear}"
            );
        }
    }

    #[test]
    fn a_referrer_that_is_something_else_is_none() {
        let mut shelf = Shelf::default();
        let large = json!({"mediaType": BUNDLE, "digest": component(), "size": BUNDLE_MAX + 1});
        let stated = stating(BUILT, manifest(std::slice::from_ref(&large))).to_string();
        let foreign = [
            shelf.bytes("{}"),
            shelf.bytes(r#"{"layers": []}"#),
            shelf.manifest(&layer("text/spdx", "any")),
            // By its manifest, and by the list.
            shelf.bytes(&stated),
            stating(BUILT, shelf.manifest(&large)),
        ];
        assert_eq!(shelf.list(&foreign).signature().unwrap(), Signature::Missing);
        let made = shelf.bundle(MADE);
        assert!(shelf.list(&[&foreign[..], &[made]].concat()).is_ours());
    }

    #[test]
    fn a_list_that_cannot_be_read_does_not_pass_for_an_empty_one() {
        let long = " ".repeat(INDEX_MAX as usize + 1);
        let [listed, tagged, _] = places();
        for (list, why) in [
            (long.as_str(), "its list of referrers is longer than 1048576 bytes"),
            (r#"{"manifests": {}}"#, "its list of referrers is not understood"),
        ] {
            let mut shelf = Shelf::default();
            let unclear = shelf.put(&listed, INDEX, list).unclear();
            assert!(unclear.contains(why), "{unclear}");
            let made = shelf.bundle(MADE);
            assert!(shelf.put(&tagged, INDEX, json!({"manifests": [made]})).is_ours());
        }
    }

    #[test]
    fn a_list_of_several_pages_is_read_to_its_end_or_does_not_pass_for_read() {
        let [listed, ..] = places();
        let (none, mut shelf) = (r#"{"manifests": []}"#, Shelf::default());
        let made = json!({"manifests": [shelf.bundle(MADE)]});
        shelf.put(&listed, PAGED, none);
        assert_eq!(shelf.unclear(), "the list of what refers to it breaks off");
        assert!(shelf.put("page", INDEX, &made).is_ours());
        assert_eq!(shelf.put("page", INDEX, none).signature().unwrap(), Signature::Missing);
        let goes_on =
            "its registry's list of what refers to it goes on elsewhere, or after 16 pages";
        assert_eq!(shelf.put("page", PAGED, none).unclear(), goes_on);
        assert_eq!(shelf.put(&listed, ELSEWHERE, none).unclear(), goes_on);
        // What was read counts whatever comes then.
        assert!(shelf.put(&listed, ELSEWHERE, made).is_ours());
    }

    #[test]
    fn attestations_that_pile_up_hide_no_signature_and_do_not_pass_for_none() {
        let mut shelf = Shelf::default();
        let made = shelf.bundle(MADE);
        let statement = shelf.bundle(&MADE.replace("in-toto+json", "other+json"));
        let mut pile = vec![stating(BUILT, statement.clone()); LOOKED_AT_MAX + 1];
        assert_eq!(shelf.list(&pile).signature().unwrap(), Signature::Missing);
        pile.push(made.clone());
        assert!(shelf.list(&pile).is_ours());
        // Nor where the list tells of signatures alone what they are.
        let mut untold = vec![statement; LOOKED_AT_MAX];
        untold.push(stating(SIGNED, made.clone()));
        assert!(shelf.list(&untold).is_ours());
        untold.pop();
        assert_eq!(shelf.list(&untold).signature().unwrap(), Signature::Missing);
        untold.push(made);
        assert_eq!(
            shelf.list(&untold).unclear(),
            "129 things refer to it that may be its signature, and none of the first 128 is one that counts"
        );
    }

    #[test]
    fn a_signature_of_cosign_2_that_cannot_be_read_hides_no_bundle_and_does_not_pass_for_none() {
        let [_, _, tag] = places();
        let annotations = json!({"dev.cosignproject.cosign/signature": "AAAA"});
        let mut gone = layer(PAYLOAD, "gone");
        gone["annotations"] = annotations;
        let mut large = gone.clone();
        large["size"] = json!(1 << 20);
        for (held, why) in [
            ("<html>".to_owned(), "its manifest is not understood"),
            (" ".repeat((1 << 20) + 1), "its manifest is longer than"),
            (manifest(&[gone]).to_string(), "the registry has it no more"),
            (manifest(&[large]).to_string(), "it has 1048576 bytes, at most 65536 are allowed"),
            (manifest(&vec![layer(PAYLOAD, ""); 33]).to_string(), "none of the first 32 of 33"),
        ] {
            let mut shelf = Shelf::default();
            let unclear = shelf.put(&tag, MANIFEST, held).unclear();
            assert!(unclear.contains(why), "{unclear}");
            let made = shelf.bundle(MADE);
            assert!(shelf.list(&[made]).is_ours(), "{why}");
        }
    }

    #[test]
    fn a_tag_of_signatures_that_holds_none_says_that_somebody_has_signed() {
        let [_, _, tag] = places();
        let other = manifest(&[layer("text/plain", "any")]).to_string();
        for (kind, held) in [(INDEX, r#"{"manifests": []}"#), (MANIFEST, &other)] {
            let mut shelf = Shelf::default();
            let refused = shelf.put(&tag, kind, held).signature().unwrap();
            let why = "none of its signatures (1) is by a key that is trusted here";
            assert_eq!(refused, Signature::Refused(why.to_owned()));
        }
    }

    #[test]
    fn a_registry_that_refuses_or_does_not_answer_in_time_ends_the_look() {
        let [listed, ..] = places();
        let mut shelf = Shelf::default();
        shelf.0.insert(listed, (403, "text/plain", String::new()));
        assert!(matches!(shelf.signature(), Err(RegistryError::Denied { .. })));

        let mut shelf = Shelf::default();
        let foreign = shelf.bundle("{}");
        shelf.list(&vec![foreign; 100]);
        // Each answer is in time, and all of them would take 20 s.
        let slow = shelf.serve(Duration::from_millis(100));
        let begun = Instant::now();
        let ended = slow.signature_within(Duration::from_secs(1), &component(), &keys());
        assert!(matches!(ended, Err(RegistryError::Unreachable { .. })), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
