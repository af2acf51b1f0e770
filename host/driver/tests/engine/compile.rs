//! The compiling child has limits, and its end is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use wasmvol_driver::Compiler;

use crate::stage::{compiler, engine, guest, name, program};

fn compile_with(compiler: Compiler) -> String {
    let cache = tempfile::tempdir().expect("cache");
    let loaded =
        engine(cache.path(), compiler, 4).load(&name("x"), &guest("hostile"), BTreeMap::new());
    loaded.err().expect("not compiled").to_string()
}

#[test]
fn a_compiler_that_eats_memory_is_ended() {
    // It keeps a line that never ends. One process, as the compiler is: limits are set on a child that runs already, and what
    // that child has started before would have none.
    let error = compile_with(program("/usr/bin/tail", &["-n", "1", "/dev/zero"]));
    assert!(error.starts_with("component cannot be compiled: "), "{error}");
    assert!(error.contains("memory exhausted"), "{error}");
}

#[test]
fn a_compiler_that_writes_without_end_is_ended() {
    let error = compile_with(program("/bin/cat", &["/dev/zero"]));
    assert_eq!(error, "compiling was ended: it made over 512 MiB of machine code");
}

#[test]
fn a_compiler_that_is_not_there_is_named() {
    let error = compile_with(program("/nowhere/compiler", &[]));
    assert!(error.starts_with("`/nowhere/compiler` cannot be run to compile: "), "{error}");
}

#[test]
fn a_compiler_that_crashes_is_told_with_its_signal() {
    let error = compile_with(program("/bin/sh", &["-c", "echo deep >&2; kill -ABRT $$"]));
    assert!(error.starts_with("compiling was ended: signal: 6 (SIGABRT)"), "{error}");
    assert!(error.contains(": deep (it may use 2 GiB of memory)"), "{error}");
}

#[test]
fn the_compiling_child_keeps_nothing_that_the_daemon_has_open() {
    let directory = tempfile::tempdir().expect("directory");
    let (fifo, mut reader) = fifo(directory.path());
    let script = format!("exec 9>{}; exec \"$0\" compile-driver", fifo.display());
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .arg(compiler().program)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("child");
    // It waits for the rest of its component all the while.
    assert!(reader.wait().expect("cat").success(), "the child kept a file open");
    drop(child.stdin.take());
    child.wait().expect("child");
}

#[test]
fn what_a_compiler_leaves_running_is_ended_with_it() {
    let directory = tempfile::tempdir().expect("directory");
    let (fifo, mut reader) = fifo(directory.path());
    let script = format!("exec 9>{}; sleep 3600 & exit 3", fifo.display());
    let error = compile_with(program("/bin/sh", &["-c", &script]));
    assert_eq!(error, "component cannot be compiled: exit status: 3");
    assert!(reader.wait().expect("cat").success(), "`sleep` is still there");
}

/// A pipe with a name, and a process that ends well when nobody has it open to write any more.
fn fifo(directory: &Path) -> (PathBuf, Child) {
    let fifo = directory.join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
    assert!(made.success());
    let reader = Command::new("timeout").args(["60", "cat"]).arg(&fifo).spawn().expect("cat");
    (fifo, reader)
}
