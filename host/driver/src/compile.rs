//! Compiling: the one step that a hostile component can make slow or large, so it is done in a process of its own.
//!
//! [`Compiler`] starts that process under limits and ends it; [`compile_stdin_to_stdout`] is what it runs: the same program under
//! a hidden subcommand. The component comes in by a file in memory, the machine code goes out to a file, so that neither side
//! can make the other wait.

use std::ffi::OsString;
use std::fs::{DirEntry, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::RawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};

use crate::answer::{MESSAGE_MAX, one_line};
use crate::config::config;

/// Largest component, in bytes. Python's interpreter and library make one of 40 MiB.
pub const COMPONENT_MAX: usize = 64 << 20;
/// Most machine code, in bytes: 64 MiB of WebAssembly make about 250.
const COMPILED_MAX: u64 = 512 << 20;
/// Processor time for one component: 40 MiB take 40 s.
pub(crate) const CPU_MAX: Duration = Duration::from_secs(120);
/// Time on the wall for one component: a busy machine gives a third of its processor.
const WALL_MAX: Duration = Duration::from_secs(360);
/// Most private memory, in bytes. Not address space: each thread's heap reserves 64 MiB of that and touches little.
pub(crate) const MEMORY_MAX: u64 = 2 << 30;

/// Its priority: behind the daemon, and before whatever is done for nobody.
const BEHIND: i32 = 10;

/// How a compiling process is started.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// The program: `/proc/self/exe` in the daemon.
    pub program: PathBuf,
    /// Its arguments: the hidden subcommand that runs [`compile_stdin_to_stdout`].
    pub args: Vec<OsString>,
}

/// Why there is no machine code. One line each.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The compiler's own words about the component.
    #[error("component cannot be compiled: {0}")]
    Refused(String),
    /// The process was ended, by us or by its limits.
    #[error("compiling was ended: {0}")]
    Ended(String),
    /// The process could not be started or watched.
    #[error("`{program}` cannot be run to compile: {why}", program = .0.display(), why = .1)]
    Start(PathBuf, #[source] io::Error),
}

impl Compiler {
    /// Compiles `component` into `output`; blocks until it is done or over its limits.
    pub(crate) fn run(&self, component: &[u8], output: &File) -> Result<(), CompileError> {
        self.run_within(component, output, WALL_MAX)
    }

    fn run_within(
        &self,
        component: &[u8],
        output: &File,
        wall: Duration,
    ) -> Result<(), CompileError> {
        let start = |error| CompileError::Start(self.program.clone(), error);
        let mut input = File::from(
            rustix::fs::memfd_create("component", MemfdFlags::CLOEXEC)
                .map_err(|errno| start(errno.into()))?,
        );
        input.write_all(component).and_then(|()| input.rewind()).map_err(start)?;
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .env_clear()
            .stdin(input)
            .stdout(output.try_clone().map_err(start)?)
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(start)?;
        let ended = limit(&child).and_then(|()| wait(&child, wall));
        let status = reap(&mut child).map_err(start)?;
        let words = last_words(&mut child);
        match ended.map_err(start)? {
            true => judge(status, words),
            false => Err(CompileError::Ended(format!("it took over {} s", wall.as_secs()))),
        }
    }
}

/// Sets the limits of a child that has read nothing yet.
fn limit(child: &Child) -> io::Result<()> {
    let limits = [
        (Resource::Cpu, CPU_MAX.as_secs()),
        (Resource::Data, MEMORY_MAX),
        (Resource::Fsize, COMPILED_MAX),
        (Resource::Core, 0),
    ];
    for (resource, most) in limits {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        match rustix::process::prlimit(Some(Pid::from_child(child)), resource, limit) {
            // It has ended already: its status tells more.
            Ok(_) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Waits until the child has ended; false if it has not within `wall`.
fn wait(child: &Child, wall: Duration) -> io::Result<bool> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let until = Instant::now() + wall;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Ends what is left of the child's process group, and the child. Its number is its own until it is waited for.
fn reap(child: &mut Child) -> io::Result<ExitStatus> {
    let _ = rustix::process::kill_process_group(Pid::from_child(child), Signal::KILL);
    child.wait()
}

/// The last line on stderr. Everybody who could write there has ended; 4 KiB hold the line that we want.
fn last_words(child: &mut Child) -> String {
    let mut bytes = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // Half a line is better than none.
        let _ = stderr.take(4096).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    one_line(text.trim_end().lines().next_back().unwrap_or_default(), MESSAGE_MAX)
}

fn judge(status: ExitStatus, words: String) -> Result<(), CompileError> {
    if status.success() {
        return Ok(());
    }
    let is = |signal: Signal| status.signal() == Some(signal.as_raw());
    Err(if is(Signal::XCPU) {
        CompileError::Ended(format!("it took over {} s of processor time", CPU_MAX.as_secs()))
    } else if is(Signal::XFSZ) {
        CompileError::Ended(format!("it made over {} MiB of machine code", COMPILED_MAX >> 20))
    } else if status.signal().is_some() {
        let why = if words.is_empty() { "it said nothing" } else { &words };
        let memory = MEMORY_MAX >> 30;
        CompileError::Ended(format!("{status}: {why} (it may use {memory} GiB of memory)"))
    } else if words.is_empty() {
        CompileError::Refused(status.to_string())
    } else {
        CompileError::Refused(words)
    })
}

/// Compiles the component on stdin to machine code on stdout: what the hidden subcommand of the daemon's program runs.
///
/// It needs no file, no privilege and no environment. A failure is one line on stderr and exit status 1.
#[must_use]
pub fn compile_stdin_to_stdout() -> ExitCode {
    // The daemon that asked may be killed: nobody would read the answer.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // It takes all processors, and requests go first. Its threads inherit that.
    let _ = rustix::process::setpriority_process(None, BEHIND);
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(io::stderr(), "{}", one_line(&why, MESSAGE_MAX));
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    close_all_but(&[]).map_err(|error| format!("files cannot be closed: {error}"))?;
    let mut component = Vec::new();
    io::stdin()
        .take(COMPONENT_MAX as u64 + 1)
        .read_to_end(&mut component)
        .map_err(|error| format!("component cannot be read: {error}"))?;
    // An engine without a pool: this process calls nothing.
    let engine = wasmtime::Engine::new(&config()).map_err(|error| format!("{error:#}"))?;
    let code = engine.precompile_component(&component).map_err(|error| format!("{error:#}"))?;
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&code)
        .and_then(|()| stdout.flush())
        .map_err(|error| format!("machine code cannot be written: {error}"))
}

/// Closes all but stdin, stdout, stderr and these: the daemon inherits sockets and directories by number from mountd, and a command line
/// whatever its caller had open, and they are no business of a component that has found a hole.
///
/// # Errors
/// What is open cannot be listed.
pub fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let number = |entry: io::Result<DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?.filter_map(number).collect();
    for number in open.into_iter().filter(|number| *number > 2 && !kept.contains(number)) {
        // The directory that was just read is closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_that_hangs_is_ended() {
        let sleeper = Compiler { program: "/bin/sleep".into(), args: vec!["3600".into()] };
        let output = tempfile::tempfile().expect("file");
        // Larger than a pipe: nobody reads it, and nobody waits for that.
        let component = vec![0; 1 << 20];
        let error = sleeper.run_within(&component, &output, Duration::from_secs(1));
        assert_eq!(
            error.expect_err("an hour").to_string(),
            "compiling was ended: it took over 1 s"
        );
    }
}
