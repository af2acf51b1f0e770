//! Fetches from a real git: `git upload-pack` as an HTTP server runs it, without the HTTP.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Cursor, Read, Write};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use git_fetch::{Error, Files, Oid, check_out, fetch, resolve};

    struct Repository {
        directory: tempfile::TempDir,
    }

    impl Repository {
        fn new() -> Self {
            let repository = Self { directory: tempfile::tempdir().unwrap() };
            repository.git(&["init", "--quiet", "--initial-branch=main"]);
            repository
        }

        fn path(&self) -> &Path {
            self.directory.path()
        }

        fn git(&self, arguments: &[&str]) -> String {
            let identity = ["-c", "user.name=test", "-c", "user.email=test@example"];
            let mut command = Command::new("git");
            command.args(identity).args(arguments).current_dir(self.path());
            // Nothing of whoever runs the tests.
            command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
            let done = command.output().unwrap();
            assert!(done.status.success(), "git {arguments:?}: {done:?}");
            String::from_utf8(done.stdout).unwrap().trim().to_owned()
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) {
            let path = self.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn commit(&self) -> String {
            self.git(&["add", "--all"]);
            self.git(&["commit", "--quiet", "--message", "a commit"]);
            self.git(&["rev-parse", "HEAD"])
        }

        /// What a server answers to a GET of `/info/refs` and a POST of a command.
        fn answer(&self, body: Option<Vec<u8>>) -> Vec<u8> {
            let mut git = Command::new("git");
            git.args(["-c", "safe.directory=*", "upload-pack", "--stateless-rpc"]);
            if body.is_none() {
                git.arg("--http-backend-info-refs");
            }
            git.arg(self.path()).env("GIT_PROTOCOL", "version=2");
            git.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = git.spawn().unwrap();
            child.stdin.take().unwrap().write_all(&body.unwrap_or_default()).unwrap();
            child.wait_with_output().unwrap().stdout
        }

        fn ask(&self) -> impl FnMut(&str, Option<Vec<u8>>) -> Result<Box<dyn Read>, Error> {
            |path, body| {
                assert_eq!(body.is_none(), path.starts_with("/info/refs?"), "{path}");
                Ok(Box::new(Cursor::new(self.answer(body))))
            }
        }

        /// The files of a reference, in a directory of their own.
        fn checked_out(&self, reference: &str) -> Result<(tempfile::TempDir, Files), Error> {
            let commit = resolve(&mut self.ask(), reference)?;
            let mut objects = fetch(&mut self.ask(), commit, tempfile::tempfile().unwrap())?;
            let directory = tempfile::tempdir().unwrap();
            let files = check_out(&mut objects, commit, directory.path())?;
            Ok((directory, files))
        }
    }

    /// Every file below, with its content, in order.
    fn content(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut found, mut left) = (Vec::new(), vec![directory.to_owned()]);
        while let Some(next) = left.pop() {
            for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                if kind.is_dir() && !path.ends_with(".git") {
                    left.push(path);
                } else if kind.is_file() {
                    let name = path.strip_prefix(directory).unwrap().to_owned();
                    found.push((name, fs::read(&path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    /// Bytes that do not repeat themselves.
    fn noise(length: usize, mut seed: u64) -> Vec<u8> {
        let mut next = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn the_files_of_a_commit_are_what_git_shows_of_it() {
        let repository = Repository::new();
        repository.write("README", "hello\n");
        repository.write("empty", "");
        repository.write("src/deep/down/größe.txt", "ö");
        // Files that differ a little are kept as differences, some of them of differences.
        let mut large = noise(300_000, 1);
        for version in 0..20_u8 {
            large[1000 * usize::from(version)] ^= 0xff;
            large.extend(noise(100, u64::from(version)));
            repository.write(&format!("versions/{version}"), &large);
        }
        repository.write("bin/run", "#!/bin/sh\n");
        fs::set_permissions(repository.path().join("bin/run"), fs::Permissions::from_mode(0o755))
            .unwrap();
        symlink("../README", repository.path().join("src/link")).unwrap();
        repository.commit();
        repository.git(&["repack", "-adq", "--depth=50", "--window=50"]);

        let (directory, files) = repository.checked_out("HEAD").unwrap();
        assert_eq!(content(directory.path()), content(repository.path()));
        assert_eq!(files.executables, ["bin/run"]);
        assert_eq!(files.links, [("src/link".to_owned(), "../README".to_owned())]);
    }

    #[test]
    fn branches_tags_and_commits_are_found_by_their_names() {
        let repository = Repository::new();
        repository.write("version", "1");
        let first = repository.commit();
        repository.git(&["tag", "light"]);
        repository.git(&["tag", "--annotate", "heavy", "--message", "a tag"]);
        repository.write("version", "2");
        repository.commit();
        repository.git(&["branch", "topic/deep"]);
        repository.write("version", "3");
        repository.commit();
        let version = |reference: &str| {
            let (directory, _) = repository.checked_out(reference).unwrap();
            fs::read_to_string(directory.path().join("version")).unwrap()
        };
        for (reference, expected) in [
            ("HEAD", "3"),
            ("main", "3"),
            ("refs/heads/main", "3"),
            ("topic/deep", "2"),
            ("light", "1"),
            ("heavy", "1"),
            ("tags/heavy", "1"),
            (&first, "1"),
        ] {
            assert_eq!(version(reference), expected, "{reference}");
        }
        for reference in ["none", "", "a b", &"0".repeat(40)] {
            let error = repository.checked_out(reference).unwrap_err();
            assert!(matches!(error, Error::NoSuchReference(_)), "{reference}: {error}");
        }
    }

    #[test]
    fn a_submodule_is_an_empty_directory() {
        let (repository, inner) = (Repository::new(), Repository::new());
        inner.write("file", "inner");
        let commit = inner.commit();
        repository.write("file", "outer");
        repository.commit();
        repository.git(&[
            "update-index",
            "--add",
            "--cacheinfo",
            &format!("160000,{commit},inner"),
        ]);
        repository.git(&["commit", "--quiet", "--message", "a submodule"]);
        let (directory, files) = repository.checked_out("HEAD").unwrap();
        assert_eq!(files.submodules, 1);
        assert_eq!(fs::read_dir(directory.path().join("inner")).unwrap().count(), 0);
    }

    #[test]
    fn a_name_that_git_would_take_for_a_repository_is_refused() {
        let repository = Repository::new();
        repository.write("file", "x");
        repository.commit();
        let blob = repository.git(&["rev-parse", "HEAD:file"]);
        for name in [".git", ".GIT", "..", "."] {
            let mut entry = format!("100644 {name}\0").into_bytes();
            entry.extend(
                (0..20).map(|at| u8::from_str_radix(&blob[2 * at..2 * at + 2], 16).unwrap()),
            );
            repository.write("tree", entry);
            let tree = repository.git(&["hash-object", "-t", "tree", "-w", "--literally", "tree"]);
            let commit = repository.git(&["commit-tree", &tree, "-m", "odd"]);
            repository.git(&["branch", "--force", "odd", &commit]);
            let error = repository.checked_out("odd").unwrap_err().to_string();
            assert_eq!(error, format!("the repository holds a file named `{name}`"));
        }
    }

    #[test]
    fn a_pack_with_a_wrong_byte_anywhere_is_refused() {
        let repository = Repository::new();
        repository.write("file", noise(2000, 7));
        let commit = Oid::parse(&repository.commit()).unwrap();
        let mut whole = None;
        let mut keep = |path: &str, body: Option<Vec<u8>>| {
            let answer = repository.ask()(path, body)?;
            let mut bytes = Vec::new();
            { answer }.read_to_end(&mut bytes)?;
            whole = Some(bytes.clone());
            Ok(Box::new(Cursor::new(bytes)) as Box<dyn Read>)
        };
        fetch(&mut keep, commit, Cursor::new(Vec::new())).unwrap();
        let whole = whole.unwrap();
        let start = whole.windows(4).position(|four| four == b"PACK").unwrap();
        for at in (start..whole.len() - 4).step_by(97) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            let mut ask = |_: &str, _: Option<Vec<u8>>| {
                Ok(Box::new(Cursor::new(bytes.clone())) as Box<dyn Read>)
            };
            assert!(fetch(&mut ask, commit, Cursor::new(Vec::new())).is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_is_no_git_server_is_told_so() {
        for answer in ["<!DOCTYPE html><title>hello</title>", "", "0000", "000aversion 1\n0000"] {
            let mut ask = |_: &str, _: Option<Vec<u8>>| {
                Ok(Box::new(Cursor::new(answer.as_bytes().to_vec())) as Box<dyn Read>)
            };
            let error = resolve(&mut ask, "HEAD").unwrap_err().to_string();
            assert!(error.contains("git"), "{answer}: {error}");
        }
    }
}
