//! The suite in a process of its own, which root starts as nobody: no hole in the sandbox or in the compiler gives a component more than
//! that.
//!
//! That process is this program again. It gets the component on stdin, each secret as a file in memory, and one empty directory: all by
//! descriptors, since nobody may have no way to where root has them. What comes back is a report that is not trusted: it is bounded, parsed,
//! and escaped for a terminal.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use wasmvol_driver::close_all_but;

use super::{Given, Place, Report, Secrets};
use crate::admin::client::parse;
use crate::cli::output::Output;
use crate::cli::sandbox::{self, NOBODY, told};
use crate::cli::{CliError, log_to_stderr};
use crate::drivers::digest;

/// The subcommand that is that process.
const CHECK: &str = "check-driver";

/// Where a process finds what it has open.
const OPEN: &str = "/proc/self/fd/";

/// What that process is given, beside the component.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Apart {
    /// Where it may write.
    #[arg(long)]
    place: PathBuf,
    #[command(flatten)]
    given: Given,
}

/// Checks the component on stdin, and prints the report as JSON.
pub(in crate::cli) fn run_apart(apart: &Apart) -> Result<ExitCode, CliError> {
    let place = number(&apart.place);
    let secrets = apart.given.secrets.iter().filter_map(|(_, file)| number(file));
    sandbox::lock_up(&secrets.chain(place).collect::<Vec<_>>())?;
    log_to_stderr("off");
    let secrets = apart.given.secrets()?;
    // What compiles inherits what is open, and others of nobody's can look into that.
    close_all_but(place.as_slice()).map_err(CliError::io("files that were read"))?;
    let component = sandbox::component()?;
    let place = Place::Given(apart.place.clone());
    let report = super::report(&apart.given, secrets, &component, &place)?;
    Output::new(true).own(&report, |_| ())?;
    // The report itself says what came of it.
    Ok(ExitCode::SUCCESS)
}

/// Starts it, and answers its report.
pub(super) fn report(
    given: &Given,
    secrets: &Secrets,
    component: &[u8],
    place: &Place,
) -> Result<Report, CliError> {
    let directory = place.make("apart")?;
    let what = || CliError::io(format!("`{}`", directory.display()));
    chown(&directory, Some(NOBODY), Some(NOBODY)).map_err(what())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let opened = rustix::fs::open(&directory, flags, Mode::empty());
    let opened = opened.map_err(|errno| what()(errno.into()))?;
    let mut command = sandbox::command(CHECK);
    command.arg(format!("--place={}", path(&opened)));
    let pairs = |option: &'static str, pairs: &[(String, String)]| -> Vec<String> {
        pairs.iter().map(|(key, value)| format!("--{option}={key}={value}")).collect()
    };
    command.args(pairs("opt", &given.options)).args(pairs("setting", &given.settings));
    command.args(given.grants.iter().map(|grant| format!("--grant={grant}")));
    command.args(given.peers.iter().map(|peer| format!("--peer={peer}")));
    let mut handed = vec![opened];
    for (name, secret) in secrets {
        let file = in_memory(secret.bytes()).map_err(CliError::io("a file in memory"))?;
        command.arg(format!("--secret={name}={}", path(&file)));
        handed.push(file);
    }
    let answer = sandbox::ask(&mut command, component);
    drop(handed);
    read(&answer?, component)
}

/// Takes a report on a component for what it can be.
fn read(answer: &[u8], component: &[u8]) -> Result<Report, CliError> {
    let mut report: Report = parse(answer)?;
    // Of what is here, and not of what it was taken for.
    report.digest = report.digest.map(|_| digest(component));
    report.size = component.len();
    for text in [&mut report.driver, &mut report.version].into_iter().flatten() {
        *text = told(text);
    }
    for found in &mut report.checks {
        (found.check, found.detail) = (told(&found.check), told(&found.detail));
    }
    report.calls = report.calls.into_iter().map(|(verb, calls)| (told(&verb), calls)).collect();
    report.judge();
    Ok(report)
}

/// A file that has no name and goes with who has it open. A process that is started has it open, too.
fn in_memory(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("secret", MemfdFlags::empty())?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// Where whoever has it open finds it.
fn path(file: &OwnedFd) -> String {
    format!("{OPEN}{}", file.as_raw_fd())
}

/// The number of a file that is found there.
fn number(path: &Path) -> Option<RawFd> {
    path.to_str()?.strip_prefix(OPEN)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{digest, read};
    use crate::conformance::Finding;

    /// A report of one check, told as somebody wants it told.
    fn report(text: &str, ms: &str) -> String {
        let call =
            format!(r#"{{"calls": 1, "slowest-ms": {ms}, "memory": 1, "log": 1, "answer": 1}}"#);
        let check =
            format!(r#"{{"check": "{text}", "result": "fail", "detail": "{text}", "ms": 1.5}}"#);
        format!(
            r#"{{"driver": "{text}", "version": "{text}", "digest": "{text}", "size": 1, "passed": true,
                "checks": [{check}], "calls": {{"{text}": {call}}}}}"#
        )
    }

    #[test]
    fn a_report_acts_on_no_terminal_and_passes_nothing_that_failed() {
        let read = read(report(r"\u001b[2J\r\u202e", "0.25").as_bytes(), b"four").unwrap();
        let shown = r"\u{1b}[2J\u{d}\u{202e}";
        let Finding { check, detail, time, .. } = &read.checks[0];
        for text in [&read.driver, &read.version].into_iter().flatten() {
            assert_eq!(text, shown);
        }
        assert_eq!((read.size, read.digest), (4, Some(digest(b"four"))));
        assert_eq!([check, detail], [shown; 2]);
        assert_eq!(read.calls.keys().collect::<Vec<_>>(), [shown]);
        assert_eq!(time.as_micros(), 1500);
        assert!(!read.passed);
    }

    #[test]
    fn a_report_that_is_none_is_refused() {
        assert!(read(report("x", "1.5").as_bytes(), b"").is_ok());
        for answer in [String::new(), "{}".to_owned(), report("x", "-1"), report("x", "1e300")] {
            let error = read(answer.as_bytes(), b"").unwrap_err().to_string();
            assert!(error.lines().count() == 1, "{error}");
        }
    }
}
