//! `wasmvol driver new`: writes the project of a driver that builds, tests and checks as it stands.
//!
//! The projects are the examples in `drivers/examples/` under another name: each exists once, and this file says what belongs to it.
//! The contract and the Rust SDK go into the project, so that it needs nothing of this repository.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;
use wasmvol_plan::DriverName;

use super::output::{Output, say};
use super::{CliError, driver};

/// A file of a project, by its path there.
type File = (&'static str, &'static [u8]);

/// Files of this repository, by their paths below a directory of it.
macro_rules! files {
    ($directory:literal: $($path:literal)+) => {
        &[$(($path, include_bytes!(concat!("../../../", $directory, "/", $path)))),+]
    };
}

const RUST: &[File] = files!("drivers/examples/rust":
    ".gitignore" "Cargo.lock" "Cargo.toml" "Makefile" "src/lib.rs");
const PYTHON: &[File] = files!("drivers/examples/python":
    ".gitignore" "Makefile" "driver.py" "requirements.txt" "test_driver.py");
const JAVASCRIPT: &[File] = files!("drivers/examples/javascript":
    ".gitignore" "Makefile" "driver.js" "driver.test.js" "package-lock.json" "package.json");
const C: &[File] = files!("drivers/examples/c":
    ".gitignore" "Makefile" "bindings/driver.c" "bindings/driver.h" "bindings/driver_component_type.o" "driver.c" "test.c");

/// Of every project.
const README: &str = include_str!("../../../drivers/examples/project.md");

const CONTRACT: &[File] = files!("wit/since_v0.1.0":
    "abilities.wit" "imports.wit" "types.wit" "values.tsv" "volumes.wit" "worlds.wit");

const SDK: &[File] = files!("guest-sdk":
    "Cargo.toml" "README.md" "examples/scratch.rs" "src/abilities.rs" "src/bindings.rs" "src/description.rs" "src/error.rs" "src/http.rs"
    "src/lib.rs" "src/log.rs" "src/mount_options.rs" "src/plan.rs" "src/roots.rs" "src/secrets.rs" "src/settings.rs" "src/size.rs" "src/store.rs"
    "src/testing.rs" "src/testing/conformance.rs" "src/testing/parse.rs" "src/volume.rs");

/// Of a project in Rust, as this repository has them.
const RUST_TOOLCHAIN: &str = include_str!("../../../rust-toolchain.toml");
const RUSTFMT: &[u8] = include_bytes!("../../../rustfmt.toml");
const WORKSPACE: &str = include_str!("../../../Cargo.toml");
const SDK_MANIFEST: &str = include_str!("../../../guest-sdk/Cargo.toml");

/// What the examples call themselves, the README of them all, and the places of this repository that they name.
const README_NAME: &str = "DRIVER_NAME";
const EXAMPLE_CONTRACT: &str = "../../../wit/since_v0.1.0";
const EXAMPLE_SDK: &str = r#""../../../guest-sdk""#;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The driver's name, and its directory's
    #[arg(value_parser = driver::name)]
    name: DriverName,
    /// What it is written in
    #[arg(long, value_enum, default_value_t)]
    language: Language,
    /// Use the Rust SDK of this checkout of wasmvol, instead of a copy in the project
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Language {
    #[default]
    Rust,
    Python,
    Javascript,
    C,
}

impl Language {
    /// What belongs to its example, and the name of that.
    fn example(self) -> (&'static [File], &'static str) {
        match self {
            Self::Rust => (RUST, "example-rust"),
            Self::Python => (PYTHON, "example-python"),
            Self::Javascript => (JAVASCRIPT, "example-javascript"),
            Self::C => (C, "example-c"),
        }
    }
}

/// What was written.
#[derive(Serialize)]
struct New<'a> {
    name: &'a DriverName,
    language: Language,
    directory: PathBuf,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<(), CliError> {
    let Arguments { name, language, sdk } = arguments;
    if sdk.is_some() && *language != Language::Rust {
        return Err(CliError::Refused("`--sdk` is of Rust: other languages have none".to_owned()));
    }
    let directory = std::path::absolute(name.as_str()).map_err(CliError::io(name.as_str()))?;
    refuse_taken(name, &directory)?;
    write(&project(name, *language, sdk.as_deref())?, &directory)?;
    output.own(&New { name, language: *language, directory: directory.clone() }, |_| {
        output.line(name.as_str());
    })?;
    say(&format!(
        "wasmvol: `make -C {name} check` builds and checks it; `{name}/README.md` says more"
    ));
    hint(&directory);
    Ok(())
}

/// The files of a project: its path there, and what it holds.
fn project(
    name: &DriverName,
    language: Language,
    sdk: Option<&Path>,
) -> Result<Vec<(PathBuf, Vec<u8>)>, CliError> {
    let (example, its_name) = language.example();
    let sdk_place = sdk_place(sdk)?;
    let mut files =
        vec![(PathBuf::from("README.md"), README.replace(README_NAME, name.as_str()).into())];
    for (path, bytes) in example {
        let bytes = match std::str::from_utf8(bytes) {
            Ok(text) => text
                .replace(its_name, name.as_str())
                .replace(EXAMPLE_CONTRACT, "wit")
                .replace(EXAMPLE_SDK, &sdk_place)
                .into_bytes(),
            Err(_) => bytes.to_vec(),
        };
        files.push((path.into(), bytes));
    }
    let mut copy = |to: &str, from: &[File]| {
        files.extend(from.iter().map(|(path, bytes)| (Path::new(to).join(path), bytes.to_vec())));
    };
    match (language, sdk) {
        (Language::Rust, None) => {
            copy("sdk/guest-sdk", SDK);
            copy("sdk/wit/since_v0.1.0", CONTRACT);
            files.push(("sdk/Cargo.toml".into(), sdk_workspace()?.into()));
        }
        (Language::Rust, Some(_)) => {}
        _ => copy("wit", CONTRACT),
    }
    if language == Language::Rust {
        // Its comment is about this repository.
        let toolchain = RUST_TOOLCHAIN.lines().filter(|line| !line.starts_with('#'));
        let toolchain: String = toolchain.flat_map(|line| [line, "\n"]).collect();
        files.push(("rust-toolchain.toml".into(), toolchain.into()));
        files.push(("rustfmt.toml".into(), RUSTFMT.into()));
    }
    Ok(files)
}

/// Where a project in Rust finds the SDK, as its manifest says it.
fn sdk_place(checkout: Option<&Path>) -> Result<String, CliError> {
    let Some(checkout) = checkout else { return Ok(r#""sdk/guest-sdk""#.to_owned()) };
    let shown = checkout.display();
    let place = std::path::absolute(checkout).map_err(CliError::io(shown.to_string()))?;
    let place = place.join("guest-sdk");
    if !place.join("Cargo.toml").exists() {
        let why = format!("`{shown}` is no checkout of wasmvol: there is no `guest-sdk` in it");
        return Err(CliError::Refused(why));
    }
    match place.to_str() {
        Some(place) => Ok(toml::Value::from(place).to_string()),
        None => Err(CliError::Refused(format!("`{shown}` is not UTF-8, as a manifest must be"))),
    }
}

/// The workspace that the SDK's manifest refers to: what it takes of this repository's.
fn sdk_workspace() -> Result<String, CliError> {
    let unreadable = |error: &dyn std::fmt::Display| {
        CliError::Refused(format!("the SDK's workspace cannot be written: {error}"))
    };
    let mut manifest: toml::Table =
        WORKSPACE.parse().map_err(|e: toml::de::Error| unreadable(&e))?;
    manifest.retain(|key, _| key == "workspace");
    if let Some(toml::Value::Table(workspace)) = manifest.get_mut("workspace") {
        workspace.insert("members".to_owned(), vec!["guest-sdk"].into());
        if let Some(toml::Value::Table(dependencies)) = workspace.get_mut("dependencies") {
            let is_of = |line: &str, name: &str| {
                let rest = line.strip_prefix(name).unwrap_or_default();
                rest.starts_with(['.', ' ']) && rest.contains("workspace = true")
            };
            dependencies.retain(|name, _| SDK_MANIFEST.lines().any(|line| is_of(line, name)));
        }
    }
    toml::to_string(&manifest).map_err(|e| unreadable(&e))
}

/// A directory that has something in it, or anything else of that name, stays as it is.
fn refuse_taken(name: &DriverName, directory: &Path) -> Result<(), CliError> {
    let is_free = match fs::symlink_metadata(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => true,
        Ok(metadata) if metadata.is_dir() => {
            let mut entries = fs::read_dir(directory).map_err(CliError::io(name.as_str()))?;
            entries.next().is_none()
        }
        Ok(_) => false,
        Err(e) => return Err(CliError::Io(name.to_string(), e)),
    };
    let why = || format!("`{name}` is there already: take another name, or remove it");
    if is_free { Ok(()) } else { Err(CliError::Refused(why())) }
}

/// Writes all files beside their place, and puts them there at once.
fn write(files: &[(PathBuf, Vec<u8>)], directory: &Path) -> Result<(), CliError> {
    let unfinished = Unfinished::beside(directory)?;
    for (path, bytes) in files {
        let path = unfinished.0.join(path);
        let failed = |e| CliError::Io(path.display().to_string(), e);
        let parent = path.parent().unwrap_or(&unfinished.0);
        fs::create_dir_all(parent).and_then(|()| fs::write(&path, bytes)).map_err(failed)?;
    }
    // It replaces an empty directory, and nothing else.
    fs::rename(&unfinished.0, directory).map_err(CliError::io(directory.display().to_string()))
}

/// A directory that goes unless it is renamed.
struct Unfinished(PathBuf);

impl Unfinished {
    fn beside(directory: &Path) -> Result<Self, CliError> {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let path = directory.with_file_name(format!(".{name}.{}", std::process::id()));
        fs::create_dir(&path).map_err(CliError::io(path.display().to_string()))?;
        Ok(Self(path))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is not there where all went well.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Says which tools are missing: the project's own Makefile knows. To write a project needs none of them.
fn hint(directory: &Path) {
    let mut make = Command::new("make");
    make.arg("--silent").arg("--directory").arg(directory).arg("tools");
    match make.stdin(Stdio::null()).output() {
        Ok(answer) => {
            let said = String::from_utf8_lossy(&answer.stderr);
            said.lines().filter(|line| line.contains(" missing: ")).for_each(say);
        }
        Err(_) => say("make is missing: apt-get install make"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum;

    use super::*;

    fn repository() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    /// The files below a directory, but for what is built there.
    fn files_below(directory: &Path, built: &[String]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if built.contains(&name) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                let below = files_below(&entry.path(), built);
                found.extend(below.iter().map(|path| format!("{name}/{path}")));
            } else {
                found.insert(name);
            }
        }
        found
    }

    fn paths(files: &[File]) -> BTreeSet<String> {
        files.iter().map(|(path, _)| (*path).to_owned()).collect()
    }

    #[test]
    fn every_file_of_an_example_and_of_the_sdk_belongs_to_a_project() {
        for language in Language::value_variants() {
            let (files, name) = language.example();
            let directory =
                repository().join("drivers/examples").join(name.trim_start_matches("example-"));
            let ignored = fs::read_to_string(directory.join(".gitignore")).unwrap();
            let built: Vec<_> =
                ignored.lines().map(|line| line.trim_matches('/').to_owned()).collect();
            assert_eq!(paths(files), files_below(&directory, &built), "say it in {}", file!());
        }
        let tests = ["tests".to_owned()];
        assert_eq!(
            paths(SDK),
            files_below(&repository().join("guest-sdk"), &tests),
            "say it in {}",
            file!()
        );
        assert_eq!(
            paths(CONTRACT),
            files_below(&repository().join("wit/since_v0.1.0"), &[]),
            "say it in {}",
            file!()
        );
    }

    #[test]
    fn a_project_has_its_own_name_and_names_nothing_of_the_repository() {
        let name = DriverName::parse("mine").unwrap();
        for language in Language::value_variants() {
            let files = project(&name, *language, None).unwrap();
            let own: Vec<_> = files.iter().filter(|(path, _)| !path.starts_with("sdk")).collect();
            let texts = own
                .iter()
                .filter_map(|(path, bytes)| Some((path, std::str::from_utf8(bytes).ok()?)));
            for (path, text) in texts.clone() {
                for left in [language.example().1, README_NAME, "../.."] {
                    assert!(!text.contains(left), "{} has `{left}`", path.display());
                }
            }
            assert!(
                texts
                    .clone()
                    .any(|(path, text)| path.starts_with("README.md")
                        && text.contains("driver=mine"))
            );
            let source = texts.filter(|(path, _)| !path.starts_with("README.md"));
            assert!(
                source.into_iter().any(|(_, text)| text.contains("driver=mine")),
                "{language:?}"
            );
        }
    }

    #[test]
    fn what_the_examples_name_of_the_repository_is_there() {
        for (language, place) in [
            (Language::Rust, EXAMPLE_SDK.trim_matches('"')),
            (Language::Python, EXAMPLE_CONTRACT),
            (Language::Javascript, EXAMPLE_CONTRACT),
        ] {
            let (files, _) = language.example();
            let named =
                files.iter().any(|(_, bytes)| String::from_utf8_lossy(bytes).contains(place));
            assert!(named, "{language:?} does not name {place}");
            assert!(repository().join("drivers/examples/c").join(place).is_dir(), "{place}");
        }
    }
}
