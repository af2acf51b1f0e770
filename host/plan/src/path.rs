//! Paths as text: what may be one, and what is beneath another. The kernel resolves them, beneath an opened directory; this refuses what
//! could only be a mistake or a trick.

/// Longest path in bytes: the kernel's own limit.
pub const PATH_MAX: usize = 4096;

/// Whether a relative path is made of plain names: none empty, `.` or `..`, no control characters.
pub fn is_plain(path: &str) -> bool {
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    !path.split('/').any(odd) && !path.chars().any(char::is_control)
}

/// What is left of an absolute path beneath a root: nothing where they are equal, `None` where it is elsewhere.
pub fn rest<'a>(root: &str, path: &'a str) -> Option<&'a str> {
    match path.strip_prefix(root)? {
        "" => Some(""),
        rest => rest.strip_prefix('/'),
    }
}
