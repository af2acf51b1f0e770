//! s3fs: a bucket, or what begins with a prefix in one.
//!
//! Pure. Called by `command`. The secret is for the host in the URL: s3fs asks that host, and subdomains of it that are called as buckets.

use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Fault, FaultKind, MountOption, MountValue, Peer, Program};

use super::command::{Command, Content, KEPT, MOUNTPOINT, odd};
use super::room::ROOM;
use crate::fault::fault;

/// Where its files are, if a plan says nothing.
const AMAZON: &str = "https://s3.amazonaws.com";

/// The command line for a plan.
pub(super) fn command(program: &Program) -> Result<Command, Fault> {
    check(&program.source)?;
    let mut argv: Vec<String> =
        ["s3fs", &program.source, MOUNTPOINT, "-f"].map(str::to_owned).into();
    let mut word = |text: &str| argv.extend(["-o".to_owned(), text.to_owned()]);
    // Who may do what the kernel decides, by the modes that s3fs shows.
    word("allow_other");
    word(&format!("passwd_file={ROOM}/passwd"));
    // What is read and written passes through files there.
    word(&format!("tmpdir={KEPT}"));
    // Short enough for its five tries within the time that a child may take.
    word("connect_timeout=6");
    // The old way to sign is tried by nothing that would not take the new one.
    word("sigv4");
    let (mut files, mut url) = (Vec::new(), AMAZON);
    for MountOption { key, value } in &program.options {
        match (key.as_str(), value) {
            ("secret", MountValue::Secret(name)) => {
                files.push(("passwd", Content::Password(name.clone())));
            }
            ("url", MountValue::Text(text)) => url = text,
            ("region", MountValue::Text(text)) if is_plain(text) => {
                word(&format!("endpoint={text}"));
            }
            ("path-style", MountValue::Present) => word("use_path_request_style"),
            ("uid" | "gid", MountValue::Number(id @ 0..=0xffff_fffe)) => {
                word(&format!("{key}={id}"));
            }
            ("umask", MountValue::Number(umask @ 0..=0o777)) => word(&format!("umask={umask:04o}")),
            _ => return odd(program, key),
        }
    }
    let server = server(url)?.to_owned();
    word(&format!("url={url}"));
    if files.is_empty() {
        return fault(FaultKind::Invalid, "s3fs needs `secret`: `ACCESS:SECRET`");
    }
    Ok(Command {
        path: "/usr/bin/s3fs",
        argv,
        files,
        server: Some(server),
        is_noise: |line| line.contains("Z [INF] "),
        helper: Some("/bin/fusermount"),
        begins_blindly: false,
        keeps_files: true,
    })
}

/// The host of `http://host` or `https://host:port`; s3fs gets no path of a URL.
fn server(url: &str) -> Result<&str, Fault> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.and_then(|rest| match rest.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().is_ok().then_some(host),
        None => Some(rest),
    });
    let is_host = |host: &&str| !host.contains('/') && host.parse::<Peer>().is_ok();
    let odd = || {
        let shown = Quoted::new(url);
        Fault::new(
            FaultKind::Invalid,
            format!("{shown} is no `https://HOST` or `http://HOST:PORT`"),
        )
    };
    host.filter(is_host).ok_or_else(odd)
}

/// A bucket, and a path in it after a colon.
fn check(source: &str) -> Result<(), Fault> {
    let (bucket, path) = source.split_once(':').unwrap_or((source, "/"));
    if is_plain(bucket) && path.starts_with('/') && path.split('/').all(|part| part != "..") {
        return Ok(());
    }
    let shown = Quoted::new(source);
    fault(FaultKind::Invalid, format!("{shown} is no `bucket` or `bucket:/prefix`"))
}

fn is_plain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !text.is_empty() && !text.starts_with(['-', '.']) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(source: &str, more: &[(&str, MountValue)]) -> Program {
        let mut options =
            vec![MountOption { key: "secret".into(), value: MountValue::Secret("s".into()) }];
        let more = more.iter().cloned();
        options.extend(more.map(|(key, value)| MountOption { key: key.into(), value }));
        Program { name: "s3fs".into(), source: source.into(), options }
    }

    #[test]
    fn a_secret_is_for_the_host_of_the_url() {
        for (url, host) in [
            ("https://s3.example", "s3.example"),
            ("http://10.0.0.1:9000", "10.0.0.1"),
            ("https://minio.local:443", "minio.local"),
        ] {
            let wanted = program("b", &[("url", MountValue::Text(url.into()))]);
            assert_eq!(command(&wanted).unwrap().server.unwrap(), host);
        }
        assert_eq!(command(&program("b", &[])).unwrap().server.unwrap(), "s3.amazonaws.com");
    }

    #[test]
    fn what_could_be_more_than_a_host_is_no_url() {
        for url in [
            "s3.example",
            "ftp://s3.example",
            "https://s3.example@evil.example",
            "https://s3.example/x",
            "https://10.0.0.0/8",
            "https://a b",
            "https://s3.example:99999",
            "https://",
        ] {
            command(&program("b", &[("url", MountValue::Text(url.into()))])).unwrap_err();
        }
    }

    #[test]
    fn only_a_bucket_with_a_prefix_is_a_source() {
        for source in ["bucket", "my-bucket.1", "bucket:/a b/c"] {
            command(&program(source, &[])).unwrap();
        }
        for source in ["-ouid=0", "a/b", "bucket:a", "bucket:/a/../b", "", "evil.example/x"] {
            command(&program(source, &[])).unwrap_err();
        }
    }

    #[test]
    fn an_option_without_a_place_on_the_command_line_is_refused() {
        for (key, value) in [
            ("passwd_file", MountValue::Text("/etc/shadow".into())),
            ("region", MountValue::Text("eu use_cache=/".into())),
            ("umask", MountValue::Number(0o1777)),
            ("path-style", MountValue::Text("yes".into())),
        ] {
            let refused = command(&program("b", &[(key, value)])).unwrap_err().message;
            assert!(refused.contains(&format!("`{key}`")), "{refused}");
        }
    }
}
