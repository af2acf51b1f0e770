//! A secret that is looked for everywhere: for the test of every driver that spends one.

use std::fs;
use std::path::{Path, PathBuf};

use super::wasmvol::Wasmvol;

/// Bytes that no other test has, and that nobody may see.
pub(crate) struct Canary(String);

impl Canary {
    pub(crate) fn new() -> Self {
        let random = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        Self(format!("canary-{}", random.trim()))
    }

    /// A part of a secret that was made elsewhere: a key.
    pub(crate) fn of(part: &str) -> Self {
        Self(part.to_owned())
    }

    /// The bytes: for the other end, which has to know them too.
    pub(crate) fn bytes(&self) -> &str {
        &self.0
    }

    /// Keeps it under a name, for one driver; `more` are peers and the like.
    #[track_caller]
    pub(crate) fn set(&self, wasmvol: &Wasmvol, name: &str, driver: &str, more: &str) {
        let file = wasmvol.path("canary");
        fs::write(&file, &self.0).unwrap();
        let file = file.display();
        wasmvol.cli(&format!("secret set {name} --driver {driver} {more} --file {file}")).ok();
        fs::remove_file(wasmvol.path("canary")).unwrap();
    }

    /// It is in nothing that anybody can look at: what these volumes and the whole daemon show, `said`, which are errors and answers of
    /// the test's own, the log, the mount tables, the processes, and every file of wasmvol's but its own.
    #[track_caller]
    pub(crate) fn is_nowhere(&self, wasmvol: &Wasmvol, volumes: &[&str], said: &[String]) {
        let seen =
            |text: &[u8]| text.windows(self.0.len()).any(|window| window == self.0.as_bytes());
        let secrets = wasmvol.state().join("secrets");
        let its_own =
            fs::read_dir(&secrets).unwrap().any(|e| seen(&fs::read(e.unwrap().path()).unwrap()));
        assert!(its_own, "it is not even in its own file: the rest would prove nothing");

        for text in said {
            assert!(!seen(text.as_bytes()), "an answer has it: {text}");
        }
        assert!(!seen(wasmvol.log().as_bytes()), "the log has it");
        for line in ["status", "volume ls", "volume ls --retained", "secret ls", "driver ls"] {
            let outcome = wasmvol.cli(&format!("{line} --json"));
            assert!(!seen(format!("{outcome:?}").as_bytes()), "`{line}` shows it");
        }
        for line in ["doctor", "catalog export", "status", "secret ls"] {
            let outcome = wasmvol.cli(line);
            assert!(!seen(format!("{outcome:?}").as_bytes()), "`{line}` shows it");
        }
        for volume in volumes {
            let shown = wasmvol.cli(&format!("volume inspect {volume}")).ok();
            assert!(!seen(shown.as_bytes()), "inspect of `{volume}` shows it: {shown}");
            let status = wasmvol.plugin().get(volume).unwrap().to_string();
            assert!(!seen(status.as_bytes()), "Status of `{volume}` shows it: {status}");
        }
        for process in fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()) {
            for file in ["cmdline", "environ", "mountinfo"] {
                // One that has just ended, or none, has nothing to show.
                let text = fs::read(process.join(file)).unwrap_or_default();
                assert!(!seen(&text), "{} has it", process.join(file).display());
            }
        }
        let anchor = wasmvol.anchor();
        let is_left_out = |path: &Path| path == secrets || path == anchor;
        for root in [wasmvol.state(), wasmvol.runtime(), wasmvol.config().parent().unwrap().into()]
        {
            for file in files(&root, &is_left_out) {
                assert!(!seen(&fs::read(&file).unwrap_or_default()), "{} has it", file.display());
            }
        }
    }
}

/// All files beneath a directory; sockets have nothing to read.
fn files(dir: &Path, is_left_out: &impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // What the reaper has just deleted has no files.
    for entry in fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if is_left_out(&path) {
            continue;
        }
        if kind.is_dir() {
            found.extend(files(&path, is_left_out));
        } else if kind.is_file() {
            found.push(path);
        }
    }
    found
}
