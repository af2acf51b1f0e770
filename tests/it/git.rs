//! Does a volume start as what a server has? Against git's own server, and archives over HTTP.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::drivers::component;
use crate::support::git::Git;
use crate::support::wasmvol::Wasmvol;

/// A repository with a file of each kind, on a branch and under a tag.
const REPOSITORY: &str = "git init --quiet --initial-branch=main site && cd site && mkdir -p docs/deep bin && echo hello >README && \
    seq 20000 >docs/numbers && cp docs/numbers docs/deep/more && echo x >>docs/deep/more && printf '#!/bin/sh\\necho ran\\n' >bin/run && \
    chmod +x bin/run && ln -s ../README docs/link && git add --all && git commit --quiet -m one && git tag v1 && echo changed >README && \
    git commit --quiet -am two && git gc --quiet && cd .. && mv site/.git site.git && git -C site.git rev-parse v1";

/// A wasmvol whose `git` may ask this server.
fn with(server: &Git) -> Wasmvol {
    let wasmvol = Wasmvol::start();
    let git = component("drivers/git.wasm");
    wasmvol.cli(&format!("driver load {} --grant http={}", git.display(), server.origin())).ok();
    wasmvol
}

fn create(wasmvol: &Wasmvol, name: &str, options: &[(&str, &str)]) -> Result<(), String> {
    let options = [&[("driver", "git")], options].concat();
    wasmvol.plugin().create(name, &options)
}

#[test]
fn a_volume_starts_as_the_files_of_a_tag_with_their_programs_and_links_and_its_owner() {
    let server = Git::serve();
    server.shell(REPOSITORY);
    let wasmvol = with(&server);
    let url = format!("{}/site.git", server.origin());
    let options = [
        ("repository", url.as_str()),
        ("ref", "v1"),
        ("uid", "1000"),
        ("gid", "1001"),
        ("mode", "0750"),
    ];
    create(&wasmvol, "site", &options).unwrap();
    let path = wasmvol.plugin().mount("site", "id").unwrap();
    assert_eq!(fs::read_to_string(path.join("README")).unwrap(), "hello\n");
    let numbers = fs::read_to_string(path.join("docs/numbers")).unwrap();
    assert_eq!(fs::read_to_string(path.join("docs/deep/more")).unwrap(), numbers + "x\n");
    assert_eq!(fs::read_link(path.join("docs/link")).unwrap().to_str(), Some("../README"));
    assert_eq!(fs::metadata(path.join("bin/run")).unwrap().permissions().mode() & 0o111, 0o111);
    assert_eq!(fs::metadata(path.join("README")).unwrap().permissions().mode() & 0o111, 0);
    for name in ["", "docs/deep/more", "docs/link", "bin"] {
        let about = fs::symlink_metadata(path.join(name)).unwrap();
        assert_eq!((about.uid(), about.gid()), (1000, 1001), "{name}");
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o750);
    let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["README", "bin", "docs"]);
}

/// Three files, each of almost as many bytes as a difference may make, and little else than the one before.
const LARGE: &str = "git init --quiet --initial-branch=main large && cd large && head -c 20900000 /dev/urandom >a && (cat a; echo b) >b && \
    (echo c; cat b) >c && git add --all && git commit --quiet -m one && git gc --quiet && sha256sum a b c && \
    git verify-pack -v .git/objects/pack/*.idx | grep -c 'blob .* [12] [0-9a-f]*$' && cd .. && mv large/.git large.git";

#[test]
fn files_that_are_kept_as_differences_fit_up_to_their_limit_into_the_memory_of_a_call() {
    let server = Git::serve();
    let made = server.shell(LARGE);
    let (sums, differences) = made.rsplit_once('\n').unwrap();
    assert_eq!(differences, "2", "git keeps them otherwise");
    let wasmvol = with(&server);
    create(&wasmvol, "large", &[("repository", &format!("{}/large.git", server.origin()))])
        .unwrap();
    let path = wasmvol.plugin().mount("large", "id").unwrap();
    let found = crate::support::shell(&format!("cd {} && sha256sum a b c", path.display()), &[]);
    assert_eq!(found.ok().trim(), sums);
    wasmvol.plugin().unmount("large", "id").unwrap();
}

#[test]
fn what_was_written_since_stays_when_it_is_mounted_again() {
    let server = Git::serve();
    server.shell(REPOSITORY);
    let wasmvol = with(&server);
    let url = format!("{}/site.git", server.origin());
    create(&wasmvol, "site", &[("repository", &url)]).unwrap();
    let path = wasmvol.plugin().mount("site", "id").unwrap();
    assert_eq!(fs::read_to_string(path.join("README")).unwrap(), "changed\n");
    fs::write(path.join("README"), "mine").unwrap();
    wasmvol.plugin().unmount("site", "id").unwrap();
    create(&wasmvol, "site", &[("repository", &url)]).unwrap();
    let path = wasmvol.plugin().mount("site", "id").unwrap();
    assert_eq!(fs::read_to_string(path.join("README")).unwrap(), "mine");
}

#[test]
fn a_volume_starts_as_an_archive_compressed_or_not() {
    let server = Git::serve();
    server.shell(
        "mkdir -p top/bin && echo hello >top/README && echo run >top/bin/run && chmod +x top/bin/run && ln -s bin/run top/link && \
         tar -cf archive.tar top && tar -czf archive.tar.gz top",
    );
    let wasmvol = with(&server);
    for (name, file) in [("plain", "archive.tar"), ("packed", "archive.tar.gz")] {
        let url = format!("{}/{file}", server.origin());
        create(&wasmvol, name, &[("archive", &url), ("strip", "1")]).unwrap();
        let path = wasmvol.plugin().mount(name, "id").unwrap();
        assert_eq!(fs::read_to_string(path.join("README")).unwrap(), "hello\n");
        assert_eq!(fs::metadata(path.join("link")).unwrap().permissions().mode() & 0o111, 0o111);
    }
}

#[test]
fn an_archive_may_hold_hard_links_and_a_path_twice() {
    let server = Git::serve();
    // As `tar` does by itself with a file of two names, and with one that is added again.
    server.shell(
        "echo run >run && chmod +x run && ln run again && ln -s run link && tar -cf archive.tar run again link && \
         rm run link && echo text >run && ln -s again link && tar -rf archive.tar run link",
    );
    let wasmvol = with(&server);
    let url = format!("{}/archive.tar", server.origin());
    create(&wasmvol, "data", &[("archive", &url)]).unwrap();
    let path = wasmvol.plugin().mount("data", "id").unwrap();
    for (name, content, mode) in [("run", "text\n", 0), ("again", "run\n", 0o111)] {
        let about = fs::metadata(path.join(name)).unwrap();
        assert_eq!((about.nlink(), about.permissions().mode() & 0o111), (1, mode), "{name}");
        assert_eq!(fs::read_to_string(path.join(name)).unwrap(), content);
    }
    assert_eq!(fs::read_link(path.join("link")).unwrap().to_str(), Some("again"));
}

#[test]
fn a_password_is_a_secret_that_was_granted_and_nothing_shows_it() {
    let server = Git::serve();
    server.shell(REPOSITORY);
    server.lock("open sesame");
    let wasmvol = with(&server);
    let url = format!("{}/site.git", server.origin());
    let error = create(&wasmvol, "site", &[("repository", &url)]).unwrap_err();
    assert!(error.contains("wants another user or password"), "{error}");
    let word = wasmvol.path("word");
    fs::write(&word, "me:open sesame\n").unwrap();
    wasmvol.cli(&format!("secret set forge --driver git --file {}", word.display())).ok();
    let options = [("repository", url.as_str()), ("secret", "forge")];
    let error = create(&wasmvol, "site", &options).unwrap_err();
    assert!(error.contains("reveal=forge"), "{error}");
    let git = component("drivers/git.wasm");
    wasmvol.cli(&format!("driver load {} --grant reveal=forge", git.display())).ok();
    create(&wasmvol, "site", &options).unwrap();
    // In clear it would be read on the way; to this machine itself there is none.
    let far = [("repository", "http://git.example/team/site"), ("secret", "forge")];
    let error = create(&wasmvol, "far", &far).unwrap_err();
    assert!(
        error.contains("the secret could be read") && error.contains("use `https://`"),
        "{error}"
    );
    assert!(!wasmvol.log().contains("sesame"), "the log shows a password");
    let shown = wasmvol.plugin().get("site").unwrap().to_string();
    assert!(!shown.contains("sesame"), "Status shows a password");
}

#[test]
fn what_cannot_be_fetched_is_told_in_one_line_and_leaves_nothing() {
    let server = Git::serve();
    server.shell(REPOSITORY);
    server.shell(
        "mkfifo pipe && tar -cf pipe.tar pipe && echo hello >text && tar -cf archive.tar text && \
         head -c 1024 archive.tar >cut.tar && gzip <archive.tar | head -c -8 >damaged.tar.gz && printf 'wrong it' >>damaged.tar.gz && \
         tar -cPf out.tar --transform 's,^,../,' text",
    );
    let wasmvol = with(&server);
    let at = |path: &str| format!("{}/{path}", server.origin());
    for (options, words) in [
        (&[("repository", at("none.git"))][..], "the server has nothing there"),
        (&[("repository", at("site.git")), ("ref", "v9".into())], "no branch, tag or commit `v9`"),
        (&[("repository", at("text"))], "the server has nothing there"),
        (&[("archive", at("text"))], "the archive cannot be unpacked"),
        (&[("archive", at("pipe.tar"))], "`pipe`, which is no file, directory or link"),
        (&[("archive", at("cut.tar"))], "the archive is cut off"),
        (&[("archive", at("damaged.tar.gz"))], "the archive cannot be unpacked"),
        (&[("archive", at("out.tar"))], "the archive holds `../text`: that leads out"),
        (&[("archive", at("moved"))], "moved it to `/archive.tar`"),
        (
            &[("archive", "http://127.1.2.3:1/a.tar".into())],
            "1` cannot be asked: `http://127.1.2.3:1` is not granted: `wasmvol driver grant git 'http=http://127.1.2.3:1'`",
        ),
        (
            &[("archive", at("a.tar")), ("repository", at("site.git"))],
            "give one of `repository` and `archive`",
        ),
        (&[], "give one of `repository` and `archive`"),
        (&[("archive", "ftp://host/a.tar".into())], "use a URL"),
    ] {
        let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let error = create(&wasmvol, "site", &options).unwrap_err();
        assert!(error.contains(words) && !error.contains('\n'), "{options:?}: {error}");
    }
    assert_eq!(wasmvol.plugin().list(), [""; 0]);
    assert_eq!(fs::read_dir(wasmvol.state().join("volumes")).unwrap().count(), 0);
}
