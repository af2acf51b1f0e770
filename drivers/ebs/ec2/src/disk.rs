//! A disk as EC2 tells of it: XML, read into what the driver asks for.
//!
//! Called by the client for each answer. What is missing there is empty here, since EC2 leaves out what does not apply; what is no XML is
//! an answer of somebody else.

use roxmltree::{Document, Node};
use wasmvol_sdk::{Error, ErrorCode, Result};

/// An EBS volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// `vol-…`
    pub id: String,
    /// `creating`, `available`, `in-use` or `error`.
    pub status: String,
    /// The snapshot that it was made from.
    pub snapshot: Option<String>,
    /// When it was made, as text that sorts.
    pub created: String,
    /// The machines that have it, or are about to.
    pub attachments: Vec<Attachment>,
    /// Keys and values.
    pub tags: Vec<(String, String)>,
}

/// A disk at a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// `i-…`
    pub instance: String,
    /// The name that was asked for: `/dev/xvdba`.
    pub device: String,
    /// `attaching`, `attached`, `busy` or `detaching`.
    pub status: String,
}

impl Disk {
    /// A tag's value.
    pub(crate) fn tag(&self, key: &str) -> Option<&str> {
        self.tags.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }

    /// How it is attached to a machine, if it is.
    #[must_use]
    pub fn at(&self, instance: &str) -> Option<&Attachment> {
        self.attachments.iter().find(|at| at.instance == instance)
    }
}

/// The disks of an answer that has many.
pub(crate) fn disks(answer: &str) -> Result<Vec<Disk>> {
    let document = parse(answer)?;
    let disks = items(document.root_element(), "volumeSet").map(disk);
    // What is on its way out is not there any more.
    Ok(disks.filter(|disk| !matches!(disk.status.as_str(), "deleting" | "deleted")).collect())
}

/// The disk of an answer that has one.
pub(crate) fn read(answer: &str) -> Result<Disk> {
    Ok(disk(parse(answer)?.root_element()))
}

/// The text of the first element of this name.
pub(crate) fn text_of(answer: &str, name: &str) -> Result<Option<String>> {
    let document = parse(answer)?;
    let found = document.descendants().find(|node| node.has_tag_name(name));
    Ok(found.and_then(|node| node.text()).map(str::to_owned))
}

fn parse(answer: &str) -> Result<Document<'_>> {
    let odd = || Error::new(ErrorCode::Unavailable, "EC2 answered with what is no XML");
    Document::parse(answer).map_err(|_| odd())
}

fn disk(node: Node<'_, '_>) -> Disk {
    let attachment = |node| Attachment {
        instance: text(node, "instanceId"),
        device: text(node, "device"),
        status: text(node, "status"),
    };
    let snapshot = text(node, "snapshotId");
    Disk {
        id: text(node, "volumeId"),
        status: text(node, "status"),
        snapshot: (!snapshot.is_empty()).then_some(snapshot),
        created: text(node, "createTime"),
        attachments: items(node, "attachmentSet")
            .map(attachment)
            .filter(|at| at.status != "detached")
            .collect(),
        tags: items(node, "tagSet").map(|tag| (text(tag, "key"), text(tag, "value"))).collect(),
    }
}

/// The elements `item` of the list of this name.
fn items<'a, 'input>(node: Node<'a, 'input>, list: &str) -> impl Iterator<Item = Node<'a, 'input>> {
    let list = node.children().find(|child| child.has_tag_name(list));
    list.into_iter().flat_map(|list| list.children()).filter(|child| child.has_tag_name("item"))
}

fn text(node: Node<'_, '_>, name: &str) -> String {
    let child = node.children().find(|child| child.has_tag_name(name));
    child.and_then(|child| child.text()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the form of Amazon's documentation of DescribeVolumes.
    const ANSWER: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<DescribeVolumesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
  <requestId>59dbff89-35bd-4eac-99ed-be587EXAMPLE</requestId>
  <volumeSet>
    <item>
      <volumeId>vol-1</volumeId><size>80</size><snapshotId/><availabilityZone>us-east-1a</availabilityZone>
      <status>in-use</status><createTime>2026-01-02T03:04:05.000Z</createTime>
      <attachmentSet>
        <item><volumeId>vol-1</volumeId><instanceId>i-0</instanceId><device>/dev/sdf</device><status>detached</status></item>
        <item><volumeId>vol-1</volumeId><instanceId>i-1</instanceId><device>/dev/sdh</device><status>attached</status></item>
      </attachmentSet>
      <tagSet><item><key>Name</key><value>a &amp; b</value></item><item><key>empty</key><value/></item></tagSet>
    </item>
    <item><volumeId>vol-2</volumeId><snapshotId>snap-2</snapshotId><status>available</status></item>
  </volumeSet>
</DescribeVolumesResponse>"#;

    #[test]
    fn an_answer_is_read_with_its_attachments_and_tags() {
        let disks = disks(ANSWER).unwrap();
        let [first, second] = &disks[..] else { panic!("{disks:?}") };
        assert_eq!((first.id.as_str(), first.status.as_str()), ("vol-1", "in-use"));
        assert_eq!((first.snapshot.as_ref(), first.attachments.len()), (None, 1));
        assert_eq!(first.created, "2026-01-02T03:04:05.000Z");
        assert_eq!(first.at("i-0"), None);
        assert_eq!(first.at("i-1").unwrap().device, "/dev/sdh");
        assert_eq!((first.tag("Name"), first.tag("empty")), (Some("a & b"), Some("")));
        assert_eq!((first.tag("name"), second.tag("Name")), (None, None));
        assert_eq!(second.snapshot.as_deref(), Some("snap-2"));
    }

    #[test]
    fn what_is_no_xml_or_defines_entities_is_an_error() {
        let bomb = r#"<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><r>&b;</r>"#;
        for odd in ["", "{}", "<r>", bomb] {
            assert_eq!(disks(odd).unwrap_err().code, ErrorCode::Unavailable, "{odd}");
        }
    }
}
