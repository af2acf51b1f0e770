//! Is it true what the pages say? Every example of every page is typed into a shell, in its order, and must print what it shows.
//!
//! An example is a line that begins with `$ ` in a block marked `console`; what follows it is what it prints. A page is one
//! session. What builds is not built again: of this project's own `make` the target must be there.

mod contract;

use std::fs;
use std::path::{Path, PathBuf};

use crate::drivers::component;
use crate::support::Scratch;
use crate::support::docker::Docker;
use crate::support::pair::Pair;
use crate::support::registry::Registry;
use crate::support::wasmvol::{PROGRAMS, Wasmvol};

/// How many there are at least. A page whose blocks are marked otherwise would lose its examples without a word.
const EXAMPLES_MIN: usize = 40;

/// One line that a reader types, and what it prints; nothing where the page leaves that out.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    line: String,
    prints: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The pages of the project: every Markdown file beneath a directory, build trees left out.
fn pages(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        let is_left_out =
            name == "target" || name == "node_modules" || name.to_string_lossy().starts_with('.');
        if entry.file_type().unwrap().is_dir() && !is_left_out {
            found.extend(pages(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn examples(page: &str) -> Vec<Example> {
    let mut found: Vec<Example> = Vec::new();
    let mut is_console = false;
    for line in page.lines() {
        if line.starts_with("```") {
            is_console = line == "```console";
        } else if let Some(typed) = line.strip_prefix("$ ").filter(|_| is_console) {
            found.push(Example { line: typed.to_owned(), prints: String::new() });
        } else if let Some(example) = found.last_mut().filter(|_| is_console) {
            example.prints.push_str(line);
            example.prints.push('\n');
        }
    }
    found
}

#[test]
fn an_example_is_a_line_and_what_it_prints() {
    let page = "$ no example\n```console\n$ one\n$ two\nfirst\nsecond\n```\n```sh\n$ three\n```\n";
    let example = |line: &str, prints: &str| Example { line: line.into(), prints: prints.into() };
    assert_eq!(examples(page), [example("one", ""), example("two", "first\nsecond\n")]);
}

#[test]
fn every_example_of_every_page_does_what_it_shows() {
    let mut typed = 0;
    for page in pages(root()) {
        let examples = examples(&fs::read_to_string(&page).unwrap());
        if examples.is_empty() {
            continue;
        }
        let session = Session::of(&page);
        for example in &examples {
            session.type_in(example, &page);
            typed += 1;
        }
    }
    assert!(typed >= EXAMPLES_MIN, "only {typed} examples were found");
}

fn on_btrfs() -> Pair<Docker> {
    let engine = Docker::start();
    let mut wasmvol = Wasmvol::install_on("btrfs", 1 << 30);
    wasmvol.run_for(&engine.plugins());
    Pair { wasmvol, engine }
}

/// A shell in an empty directory, with a docker and a wasmvol of its own.
struct Session {
    pair: Pair<Docker>,
    /// What pages call `registry.example`.
    registry: Option<Registry>,
    directory: Scratch,
}

impl Session {
    fn of(page: &Path) -> Self {
        let directory = Scratch::new();
        // The page of that driver begins with the file system that it needs.
        let is_of_btrfs = page.ends_with("drivers/btrfs/README.md");
        let pair = if is_of_btrfs { on_btrfs() } else { Pair::own() };
        let text = fs::read_to_string(page).unwrap();
        let registry = text.contains("registry.example/").then(Registry::open);
        Self { pair, registry, directory }
    }

    fn type_in(&self, example: &Example, page: &Path) {
        let Example { line, prints } = example;
        let place = format!("{}: `{line}`", page.display());
        let mut words = line.split_whitespace();
        match words.next() {
            // A project that the page has made is built for real.
            Some("make") if !line.contains(" -C ") => {
                let target = format!("{}:", words.next().unwrap());
                let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
                assert!(
                    makefile.lines().any(|l| l.starts_with(&target)),
                    "{place}: no such target"
                );
            }
            _ => {
                // Where the components lie once wasmvol is installed.
                let ours = component("drivers");
                let line = line.replace("/usr/lib/wasmvol/drivers", &ours.display().to_string());
                // Where the configuration lies.
                let config = self.pair.wasmvol.config();
                let config = config.parent().unwrap().display().to_string();
                let line = line.replace("/etc/wasmvol", &config);
                let line = match &self.registry {
                    Some(registry) => line.replace("registry.example", &registry.host()),
                    None => line,
                };
                let directory = self.directory.path().display();
                let crates = PROGRAMS.parent().unwrap().join("new/rust-target");
                let kept = format!("export CARGO_TARGET_DIR={}", crates.display());
                let outcome = self.pair.shell(&format!("cd {directory} && {kept} && {line}"));
                let shown = format!("{}{}", outcome.stdout, outcome.stderr);
                let fails = prints.starts_with("Error");
                assert_eq!(outcome.code == Some(0), !fails, "{place}: {shown}");
                assert!(
                    prints.is_empty() || shown == *prints,
                    "{place} printed\n{shown}and not\n{prints}"
                );
            }
        }
    }
}
