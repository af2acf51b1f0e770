//! The client: actions of the Query API, and what it makes of EC2's refusals.
//!
//! Called by what the driver asks for. A refusal is told in EC2's own words, with its code, so that they are found in Amazon's documentation.

use std::time::SystemTime;

use form_urlencoded::Serializer;
use time::OffsetDateTime;
use wasmvol_sdk::{Error, ErrorCode, Result, http};

use crate::Disk;
use crate::disk::{disks, read, text_of};
use crate::signature::Credentials;

/// The version of the API that this speaks: there is no later one.
const VERSION: &str = "2016-11-15";
/// How many disks one answer may have.
const PAGE: &str = "500";
/// Most pages that are read: with more a call would be over its limits.
const PAGES_MAX: usize = 20;

/// EC2 in one region.
pub struct Ec2 {
    region: String,
    endpoint: String,
    credentials: Credentials,
}

impl Ec2 {
    /// Speaks with `endpoint`, or with the region's own.
    pub(crate) fn new(region: &str, endpoint: Option<&str>, credentials: Credentials) -> Self {
        let own = || format!("https://ec2.{region}.amazonaws.com");
        let endpoint =
            endpoint.map_or_else(own, |endpoint| endpoint.trim_end_matches('/').to_owned());
        Self { region: region.to_owned(), endpoint, credentials }
    }

    /// A disk by its id, if it is there.
    ///
    /// # Errors
    /// Why EC2 does not tell.
    pub(crate) fn disk(&self, id: &str) -> Result<Option<Disk>> {
        match self.ask("DescribeVolumes", &[("VolumeId.1", id)]) {
            Ok(answer) => Ok(disks(&answer)?.pop()),
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All disks of which this is so: `("tag:owner", "me")`.
    ///
    /// # Errors
    /// Why EC2 does not tell.
    pub(crate) fn disks(&self, filters: &[(&str, &str)]) -> Result<Vec<Disk>> {
        let named: Vec<_> = filters
            .iter()
            .zip(1..)
            .flat_map(|((name, value), at)| {
                [(format!("Filter.{at}.Name"), *name), (format!("Filter.{at}.Value.1"), *value)]
            })
            .collect();
        let (mut found, mut next) = (Vec::new(), None::<String>);
        for _ in 0..PAGES_MAX {
            let mut parameters: Vec<_> =
                named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            parameters.push(("MaxResults", PAGE));
            parameters.extend(next.as_deref().map(|next| ("NextToken", next)));
            let answer = self.ask("DescribeVolumes", &parameters)?;
            found.extend(disks(&answer)?);
            next = text_of(&answer, "nextToken")?;
            if next.is_none() {
                return Ok(found);
            }
        }
        let why = format!("EC2 knows more than {} of these disks", found.len());
        Err(Error::new(ErrorCode::Exhausted, why))
    }

    /// Makes a disk. The same `token` means the same disk, also a second time.
    ///
    /// # Errors
    /// Why EC2 does not.
    pub(crate) fn make(
        &self,
        token: &str,
        wanted: &[(&str, String)],
        tags: &[(String, String)],
    ) -> Result<Disk> {
        let tags = numbered("TagSpecification.1.Tag", tags);
        let mut parameters =
            vec![("ClientToken", token), ("TagSpecification.1.ResourceType", "volume")];
        parameters.extend(wanted.iter().map(|(name, value)| (*name, value.as_str())));
        parameters.extend(tags.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let answer = self.ask("CreateVolume", &parameters)?;
        read(&answer)
    }

    /// Deletes a disk; one that is not there is deleted already.
    ///
    /// # Errors
    /// `in-use` where it is attached, else why EC2 does not.
    pub fn delete(&self, id: &str) -> Result<()> {
        match self.ask("DeleteVolume", &[("VolumeId", id)]) {
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Begins to attach a disk to a machine, as a device of this name.
    ///
    /// # Errors
    /// `in-use` where the disk or the name is taken, else why EC2 does not.
    pub(crate) fn attach(&self, id: &str, instance: &str, device: &str) -> Result<()> {
        let parameters = [("VolumeId", id), ("InstanceId", instance), ("Device", device)];
        self.ask("AttachVolume", &parameters).map(drop)
    }

    /// Begins to detach a disk from a machine.
    ///
    /// # Errors
    /// Why EC2 does not.
    pub(crate) fn detach(&self, id: &str, instance: &str) -> Result<()> {
        self.ask("DetachVolume", &[("VolumeId", id), ("InstanceId", instance)]).map(drop)
    }

    /// Gives a disk tags, or other values.
    ///
    /// # Errors
    /// Why EC2 does not.
    pub(crate) fn tag(&self, id: &str, tags: &[(String, String)]) -> Result<()> {
        self.change_tags("CreateTags", id, &numbered("Tag", tags))
    }

    /// Takes tags off a disk, whatever their values are by now.
    ///
    /// # Errors
    /// Why EC2 does not.
    pub(crate) fn untag(&self, id: &str, tags: &[(String, String)]) -> Result<()> {
        let mut tags = numbered("Tag", tags);
        tags.retain(|(name, _)| name.ends_with(".Key"));
        self.change_tags("DeleteTags", id, &tags)
    }

    fn change_tags(&self, action: &str, id: &str, tags: &[(String, String)]) -> Result<()> {
        let tags = tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let parameters: Vec<_> = [("ResourceId.1", id)].into_iter().chain(tags).collect();
        self.ask(action, &parameters).map(drop)
    }

    /// One request; the answer is XML.
    fn ask(&self, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let body = Serializer::new(String::new())
            .append_pair("Action", action)
            .append_pair("Version", VERSION)
            .extend_pairs(parameters)
            .finish();
        let host = self.endpoint.split_once("://").map_or("", |(_, host)| host);
        let now = OffsetDateTime::from(SystemTime::now());
        let (year, month, day) = now.to_calendar_date();
        let (hour, minute, second) = now.to_hms();
        let month = u8::from(month);
        let at = format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z");
        let form = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        let signed = [form, ("host", host), ("x-amz-date", &at)];
        let scope = (self.region.as_str(), "ec2");
        let authorization = self.credentials.authorize(scope, &at, &signed, body.as_bytes());
        let answer = http::post(format!("{}/", self.endpoint))
            .header(form.0, form.1)
            .header("x-amz-date", at)
            .header("authorization", authorization)
            .body(body)
            .send()?;
        match answer.status {
            200..300 => answer.text(),
            status => Err(refusal(status, &answer.text()?)),
        }
    }
}

/// Tags as the API numbers them.
fn numbered(prefix: &str, tags: &[(String, String)]) -> Vec<(String, String)> {
    let parts = tags.iter().zip(1..).flat_map(|((key, value), at)| {
        let name = |part| format!("{prefix}.{at}.{part}");
        [(name("Key"), key.clone()), (name("Value"), value.clone())]
    });
    parts.collect()
}

/// What EC2 refuses, with a code that the host decides by.
fn refusal(status: u16, answer: &str) -> Error {
    let part = |name| text_of(answer, name).ok().flatten();
    // Some refusals have no more to say than their code.
    let message = part("Message").unwrap_or_else(|| "it gives no reason".to_owned());
    let Some(code) = part("Code") else {
        let why = format!("EC2 answered with status {status}, and not as EC2 does");
        return Error::new(ErrorCode::Unavailable, why);
    };
    let kind = match code.as_str() {
        "InvalidVolume.NotFound" => ErrorCode::NotFound,
        "VolumeInUse" => ErrorCode::InUse,
        // A name for a device has no code of its own.
        "InvalidParameterValue" if message.contains("already in use") => ErrorCode::InUse,
        "AuthFailure"
        | "UnauthorizedOperation"
        | "InvalidClientTokenId"
        | "OptInRequired"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "Blocked"
        | "PendingVerification" => ErrorCode::Denied,
        code if code.ends_with("LimitExceeded") && code != "RequestLimitExceeded" => {
            ErrorCode::Exhausted
        }
        "InsufficientVolumeCapacity" => ErrorCode::Exhausted,
        code if ["Invalid", "Missing", "Unknown"].iter().any(|start| code.starts_with(start)) => {
            ErrorCode::InvalidOption
        }
        _ => ErrorCode::Unavailable,
    };
    let message = message.trim().trim_end_matches('.').replace(char::is_control, " ");
    Error::new(kind, format!("EC2 refuses: {message} (`{code}`)"))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use wasmvol_sdk::http::{Request, Response};
    use wasmvol_sdk::testing::with_http;

    use super::*;

    fn ec2(endpoint: Option<&str>) -> Ec2 {
        Ec2::new("eu-west-1", endpoint, Credentials::parse(b"ACCESS:SECRET").unwrap())
    }

    /// What was asked for while EC2 answered so, one answer after the other.
    fn asked<T, const N: usize>(
        answers: &[(u16, &'static str); N],
        ask: impl FnOnce() -> T,
    ) -> (Vec<Request>, T) {
        let requests = Rc::new(RefCell::new(Vec::new()));
        let (kept, mut answers) = (Rc::clone(&requests), (*answers).into_iter());
        let answer = move |request| {
            kept.borrow_mut().push(request);
            let (status, body) = answers.next().expect("one request more than there are answers");
            Ok(Response::new(status, body))
        };
        let result = with_http(answer, ask);
        (requests.take(), result)
    }

    fn body(request: &Request) -> &str {
        std::str::from_utf8(&request.body).unwrap()
    }

    #[test]
    fn a_request_is_a_signed_form_to_the_regions_endpoint_or_the_one_that_is_given() {
        let none = "<DescribeVolumesResponse><volumeSet/></DescribeVolumesResponse>";
        for (endpoint, url) in [
            (None, "https://ec2.eu-west-1.amazonaws.com/"),
            (Some("http://10.0.0.5:5000/"), "http://10.0.0.5:5000/"),
        ] {
            let (requests, disks) = asked(&[(200, none)], || ec2(endpoint).disk("vol-1"));
            assert_eq!(disks, Ok(None));
            let [request] = &requests[..] else { panic!("{requests:?}") };
            assert_eq!((request.method.as_str(), request.url.as_str()), ("POST", url));
            assert_eq!(body(request), "Action=DescribeVolumes&Version=2016-11-15&VolumeId.1=vol-1");
            let (_, signed) =
                request.headers.iter().find(|(name, _)| name == "authorization").unwrap();
            let start = "AWS4-HMAC-SHA256 Credential=ACCESS/2";
            assert!(
                signed.starts_with(start) && signed.contains("/eu-west-1/ec2/aws4_request"),
                "{signed}"
            );
            assert!(!format!("{request:?}").contains("SECRET"), "the secret leaves");
        }
    }

    #[test]
    fn all_pages_are_read_and_no_more_than_there_may_be() {
        let first = "<r><volumeSet><item><volumeId>vol-1</volumeId><status>available</status>\
                     </item></volumeSet><nextToken>t&amp;1</nextToken></r>";
        let last = "<r><volumeSet><item><volumeId>vol-2</volumeId><status>available</status>\
                    </item></volumeSet></r>";
        let find = || ec2(None).disks(&[("tag-key", "a:b"), ("size", "1")]);
        let (requests, disks) = asked(&[(200, first), (200, last)], find);
        let ids: Vec<_> = disks.unwrap().into_iter().map(|disk| disk.id).collect();
        assert_eq!(ids, ["vol-1", "vol-2"]);
        let filters = "Filter.1.Name=tag-key&Filter.1.Value.1=a%3Ab&Filter.2.Name=size\
                       &Filter.2.Value.1=1&MaxResults=500";
        assert!(body(&requests[0]).ends_with(filters), "{}", body(&requests[0]));
        assert!(body(&requests[1]).ends_with("&NextToken=t%261"), "{}", body(&requests[1]));
        let (_, endless) = asked(&[(200, first); PAGES_MAX], find);
        assert_eq!(endless.unwrap_err().code, ErrorCode::Exhausted);
    }

    #[test]
    fn a_refusal_is_told_in_ec2s_words_with_a_code_for_the_host() {
        for (code, kind) in [
            ("AuthFailure", ErrorCode::Denied),
            ("UnauthorizedOperation", ErrorCode::Denied),
            ("VolumeInUse", ErrorCode::InUse),
            ("InvalidVolume.NotFound", ErrorCode::NotFound),
            ("InvalidSnapshot.NotFound", ErrorCode::InvalidOption),
            ("UnknownVolumeType", ErrorCode::InvalidOption),
            ("VolumeLimitExceeded", ErrorCode::Exhausted),
            ("RequestLimitExceeded", ErrorCode::Unavailable),
            ("IncorrectState", ErrorCode::Unavailable),
        ] {
            let answer = format!(
                "<Response><Errors><Error><Code>{code}</Code><Message>It is\nso.</Message></Error>\
                 </Errors><RequestID>1</RequestID></Response>"
            );
            let error = refusal(400, &answer);
            assert_eq!(error.code, kind, "{code}");
            assert_eq!(error.message, format!("EC2 refuses: It is so (`{code}`)"));
        }
        let taken = "<r><Code>InvalidParameterValue</Code><Message>Invalid value '/dev/xvdba' for \
                     unixDevice. Attachment point /dev/xvdba is already in use</Message></r>";
        assert_eq!(refusal(400, taken).code, ErrorCode::InUse);
        let bare = "<r><Error><Code>InvalidSnapshot.NotFound</Code><Message/></Error></r>";
        assert_eq!(
            refusal(400, bare).message,
            "EC2 refuses: it gives no reason (`InvalidSnapshot.NotFound`)"
        );
        for odd in ["", "<html>Bad gateway", "<r><Message>alone</Message></r>"] {
            let error = refusal(502, odd);
            assert_eq!(error.message, "EC2 answered with status 502, and not as EC2 does");
            assert_eq!(error.code, ErrorCode::Unavailable);
        }
    }

    #[test]
    fn what_is_not_there_is_deleted_already_and_what_is_attached_is_not() {
        let refused = |code: &'static str| {
            let (_, deleted) = asked(&[(400, code)], || ec2(None).delete("vol-1"));
            deleted.map_err(|error| error.code)
        };
        let gone = "<r><Code>InvalidVolume.NotFound</Code><Message>m</Message></r>";
        let held = "<r><Code>VolumeInUse</Code><Message>m</Message></r>";
        assert_eq!(refused(gone), Ok(()));
        assert_eq!(refused(held), Err(ErrorCode::InUse));
    }
}
