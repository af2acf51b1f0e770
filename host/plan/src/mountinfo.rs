//! /proc/PID/mountinfo as text: parsed here, read elsewhere. See proc(5).
//!
//! mountd judges holders by it, `doctor` looks at namespaces through it. Lines are borrowed; only a field with an escape is copied.

use std::borrow::Cow;

/// Most bytes of one mountinfo that are read: the kernel's limit of 100 000 mounts a namespace, at 320 bytes each. A longer text
/// is an unreadable one.
pub const MOUNTINFO_MAX: u64 = 32 * 1024 * 1024;

/// One mount as one line tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Number of this mount, used again after an unmount.
    pub mount_id: u64,
    /// Number of the mount that it lies on; not listed if that is beyond the process's root.
    pub parent_id: u64,
    /// Major and minor number of the superblock.
    pub device: (u32, u32),
    /// Root of the mount within its file system.
    pub root: Cow<'a, str>,
    /// Where it is, seen from the process's root.
    pub mount_point: Cow<'a, str>,
    /// Peer group that it shares with, if it is shared.
    pub shared: Option<u64>,
    /// Peer group that it receives from, if it is a slave.
    pub master: Option<u64>,
    /// File system type.
    pub filesystem: Cow<'a, str>,
    /// What was mounted, as the file system calls it.
    pub source: Cow<'a, str>,
}

impl<'a> Entry<'a> {
    /// Parses one line; none if it is not of the kernel's form.
    pub fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(' ');
        let mount_id = fields.next()?.parse().ok()?;
        let parent_id = fields.next()?.parse().ok()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        let root = unescape(fields.next()?);
        let mount_point = unescape(fields.next()?);
        let _flags = fields.next()?;
        let (mut shared, mut master) = (None, None);
        // Tags of later kernels are skipped, as proc(5) asks.
        loop {
            match fields.next()? {
                "-" => break,
                tag => match tag.split_once(':') {
                    Some(("shared", group)) => shared = Some(group.parse().ok()?),
                    Some(("master", group)) => master = Some(group.parse().ok()?),
                    _ => {}
                },
            }
        }
        Some(Self {
            mount_id,
            parent_id,
            device,
            root,
            mount_point,
            shared,
            master,
            filesystem: unescape(fields.next()?),
            source: unescape(fields.next()?),
        })
    }
}

/// Every line of a mountinfo, in its order: a mount comes after the one that it covers. None if one line cannot be parsed, because
/// half a picture is none.
pub fn parse(text: &str) -> Option<Vec<Entry<'_>>> {
    text.lines().map(Entry::parse).collect()
}

/// Whether `path` is `top` or lies beneath it; both as mountinfo's `root` spells them.
pub fn is_beneath(path: &str, top: &str) -> bool {
    match path.strip_prefix(top.trim_end_matches('/')) {
        Some(rest) => rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

/// Undoes the kernel's `\ooo`: it writes space, tab, newline, backslash and `#` so.
fn unescape(field: &str) -> Cow<'_, str> {
    if !field.contains('\\') {
        return Cow::Borrowed(field);
    }
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.push_str(plain);
        let digits = escape.split_at_checked(3);
        let code = digits.and_then(|(code, rest)| Some((u8::from_str_radix(code, 8).ok()?, rest)));
        let (c, after) = code.map_or(('\\', escape), |(code, rest)| (char::from(code), rest));
        text.push(c);
        rest = after;
    }
    text.push_str(rest);
    Cow::Owned(text)
}
