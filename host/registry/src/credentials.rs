//! Passwords for registries, from where `docker login` puts them: Docker's `config.json`, and the helpers that it names.
//!
//! Nothing here is printed: a [`Login`] has no text form.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Longest `config.json`, and longest answer of a helper.
const FILE_MAX: u64 = 1 << 20;
const ANSWER_MAX: u64 = 64 << 10;
/// A helper may ask a person for the password of a keyring.
const HELPER_DEADLINE: Duration = Duration::from_secs(60);
/// The user of what is no password but an identity token.
const IDENTITY: &str = "<token>";
/// The registry that Docker knows by an address.
const HUB: &str = "index.docker.io";
const HUB_ADDRESS: &str = "https://index.docker.io/v1/";

/// Who asks, and the proof.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Password {
        user: String,
        password: String,
    },
    /// To be exchanged for a token.
    Identity(String),
}

/// A part of Docker's file. What is not here is not its.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Docker's file of this user; none where there is no home.
pub(crate) fn file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let directory = match set("DOCKER_CONFIG") {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(set("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

/// The login for a registry, if there is one. What is wrong is said in a line without a secret.
pub(crate) fn find(file: &Path, registry: &str) -> Result<Option<Login>, String> {
    let shown = format!("`{}`", file.display());
    let text = match std::fs::File::open(file) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        opened => {
            let mut text = String::new();
            let read = opened.and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
            read.map_err(|e| format!("{shown} cannot be read: {e}"))?;
            text
        }
    };
    // serde's own words may repeat a value.
    let config: Config = serde_json::from_str(&text).map_err(|e| {
        format!("{shown} is not understood: line {}, column {}", e.line(), e.column())
    })?;
    let helper = config.cred_helpers.get(registry).unwrap_or(&config.creds_store);
    if !helper.is_empty()
        && let Some(login) = ask_helper(helper, registry)?
    {
        return Ok(Some(login));
    }
    // One without a login says that it is with a helper, or was.
    let entries = config.auths.iter().filter(|(key, _)| host_of(key) == registry);
    let login = entries.map(|(_, entry)| entry.login()).find_map(Result::transpose);
    login.transpose().map_err(|why| format!("{shown}: {why}"))
}

impl Entry {
    fn login(&self) -> Result<Option<Login>, &'static str> {
        const UNREADABLE: &str = "its `auth` is not USER:PASSWORD in base64";
        if !self.identitytoken.is_empty() {
            return Ok(Some(Login::Identity(self.identitytoken.clone())));
        }
        if self.auth.is_empty() {
            let (user, password) = (self.username.clone(), self.password.clone());
            return Ok((!user.is_empty()).then_some(Login::Password { user, password }));
        }
        let bytes = STANDARD.decode(&self.auth).map_err(|_| UNREADABLE)?;
        let text = String::from_utf8(bytes).map_err(|_| UNREADABLE)?;
        let (user, password) = text.split_once(':').ok_or(UNREADABLE)?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Login::Password { user: user.to_owned(), password }))
    }
}

/// A key of `auths` may be an address with a path.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}

/// What `docker-credential-NAME get` answers; none where it has nothing.
fn ask_helper(name: &str, registry: &str) -> Result<Option<Login>, String> {
    let program = format!("docker-credential-{name}");
    if !name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.')) {
        return Err(
            "the name of the credential helper in Docker's config.json is not allowed".into()
        );
    }
    let failed = |why: &dyn std::fmt::Display| format!("`{program}`: {why}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|e| failed(&e))?;
    let server = if registry == HUB { HUB_ADDRESS } else { registry };
    let said = within(&mut child, server, HELPER_DEADLINE);
    // It has closed its stdout, or is late: there is nothing more to wait for.
    let ended = match said {
        Some(_) => child.wait(),
        None => child.kill().and_then(|()| child.wait()),
    };
    let status = ended.map_err(|e| failed(&e))?;
    let Some(said) = said else {
        return Err(failed(&format!("did not answer within {} s", HELPER_DEADLINE.as_secs())));
    };
    if !status.success() {
        // It says so on stdout, and exits with 1, as it does for every fault.
        let text = String::from_utf8_lossy(&said);
        return if text.contains("credentials not found") {
            Ok(None)
        } else {
            Err(failed(&status))
        };
    }
    let Answer { username, secret } =
        serde_json::from_slice(&said).map_err(|_| failed(&"its answer is not understood"))?;
    Ok(Some(match username.as_str() {
        IDENTITY => Login::Identity(secret),
        _ => Login::Password { user: username, password: secret },
    }))
}

/// What a child says once it was told `line`, unless it takes longer.
fn within(child: &mut Child, line: &str, deadline: Duration) -> Option<Vec<u8>> {
    if let Some(mut stdin) = child.stdin.take() {
        // One that wants no input has its own reasons.
        let _ = stdin.write_all(line.as_bytes());
    }
    let stdout = child.stdout.take()?;
    let (sender, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stdout.take(ANSWER_MAX).read_to_end(&mut bytes);
        // Nobody listens any more where it was late.
        let _ = sender.send(bytes);
    });
    said.recv_timeout(deadline).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &str, registry: &str) -> Result<Option<Login>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, config).unwrap();
        find(&file, registry)
    }

    fn password(user: &str, password: &str) -> Option<Login> {
        Some(Login::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn a_login_is_found_under_each_name_that_docker_gives_it() {
        let auth = STANDARD.encode("me:pass:word");
        for key in ["r.example:5000", "https://r.example:5000", "http://r.example:5000/v1/"] {
            let none = r#""other":{},"https://r.example:5000/":{}"#;
            let config = format!(r#"{{"auths":{{{none},"{key}":{{"auth":"{auth}"}}}}}}"#);
            let login = found(&config, "r.example:5000");
            assert!(login == Ok(password("me", "pass:word")), "{key}");
            assert!(found(&config, "r.example") == Ok(None), "another port is another registry");
        }
        let hub = format!(r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}}}}}}"#);
        assert!(found(&hub, "index.docker.io") == Ok(password("me", "pass:word")));
        let identity = r#"{"auths":{"r.example":{"auth":"bWU6","identitytoken":"long"}}}"#;
        assert!(found(identity, "r.example") == Ok(Some(Login::Identity("long".into()))));
    }

    #[test]
    fn no_file_and_no_entry_are_no_login() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(&dir.path().join("none"), "r.example") == Ok(None));
        assert!(found("{}", "r.example") == Ok(None));
        assert!(found(r#"{"auths":{"r.example":{}}}"#, "r.example") == Ok(None));
    }

    #[test]
    fn what_is_not_understood_is_refused_and_not_repeated() {
        for config in
            ["sesame", r#"{"auths":"sesame"}"#, r#"{"auths":{"r.example":{"auth":"sesame!"}}}"#]
        {
            let Err(error) = found(config, "r.example") else { panic!("{config}") };
            assert!(error.contains("config.json") && !error.contains("sesame"), "{error}");
        }
        let Err(error) = found(r#"{"credsStore":"../../sesame"}"#, "r.example") else { panic!() };
        assert!(!error.contains("sesame"), "{error}");
    }
}
