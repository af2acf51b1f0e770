//! Is the table of limits in the driver author's guide true? It is made of the constants here, and compared with the page.
//!
//! A test and nothing else: the constants stand where they are used, each with its reason.

use std::time::Duration;

use crate::answer::{
    EXECUTABLES_MAX, FOUND_MAX, GRANTS_MAX, HELP_MAX, KEY_MAX, MESSAGE_MAX, OPTIONS_MAX, STATE_MAX,
    VALUE_MAX,
};
use crate::call::{
    ATTACH, CHANGE, CHECK, DESCRIBE, FETCH, LIST, MIGRATE, PATH, POPULATE, RANDOM_MAX,
    RESOURCES_MAX, REVEALS_MAX, TALK, Verb,
};
use crate::compile::{COMPONENT_MAX, CPU_MAX, MEMORY_MAX as COMPILER_MAX};
use crate::config::{INSTANCES_MAX, MEMORY_MAX, STACK_MAX, TABLE_ELEMENTS_MAX};
use crate::http::{ANSWER_MAX, CONNECTIONS_MAX, HEADERS_MAX};
use crate::journal::{CALL_MAX, MINUTE_MAX};
use crate::store;
use crate::wasi::PATH_MAX;

/// Bytes as a person writes them.
fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs())
}

/// How long a verb may take, and how long where the driver asks hosts.
fn deadline(verb: Verb) -> String {
    if verb.deadline == verb.network {
        return seconds(verb.deadline);
    }
    format!("{}; {} of a driver that asks hosts", seconds(verb.deadline), seconds(verb.network))
}

fn rows() -> Vec<(&'static str, String)> {
    let size = |bytes: usize| size(bytes as u64);
    vec![
        ("a component", size(COMPONENT_MAX)),
        (
            "compiling it",
            format!(
                "{} of processor time, {} of memory",
                seconds(CPU_MAX),
                self::size(COMPILER_MAX)
            ),
        ),
        ("memory of a call", size(MEMORY_MAX)),
        ("stack of a call", size(STACK_MAX)),
        (
            "core instances, table elements of a call",
            format!("{INSTANCES_MAX}, {TABLE_ELEMENTS_MAX}"),
        ),
        ("`describe`, `path`", format!("{}, {}", deadline(DESCRIBE), deadline(PATH))),
        ("`create`, `remove`, `resize`", deadline(CHANGE)),
        ("`list`", deadline(LIST)),
        ("a step of `attach` or `detach`", deadline(ATTACH)),
        ("`populate`", deadline(POPULATE)),
        ("`check`", deadline(CHECK)),
        ("`migrate`", deadline(MIGRATE)),
        ("one answer, or one call of the host", size(CHANGE.answer_max)),
        (
            "an answer of `list`, of `populate`",
            format!("{}, {}", size(LIST.answer_max), size(POPULATE.answer_max)),
        ),
        ("state", size(STATE_MAX)),
        ("options, grants that are declared", format!("{OPTIONS_MAX}, {GRANTS_MAX}")),
        (
            "an option's key, value, help",
            format!("{}, {}, {}", size(KEY_MAX), size(VALUE_MAX), size(HELP_MAX)),
        ),
        ("an error's sentence; it is cut", size(MESSAGE_MAX)),
        ("volumes in `list`", FOUND_MAX.to_string()),
        ("executables of `populate`", EXECUTABLES_MAX.to_string()),
        ("log", format!("{} a call, {} a minute", size(CALL_MAX), size(MINUTE_MAX))),
        (
            "store",
            format!(
                "{} keys of {}, values of {}, {} in all",
                store::KEYS_MAX,
                size(store::KEY_MAX),
                size(store::VALUE_MAX),
                size(store::BYTES_MAX)
            ),
        ),
        ("HTTP of a call", format!("{} requests, {}", TALK.requests, self::size(TALK.bytes))),
        ("HTTP of `populate`", format!("{} requests, {}", FETCH.requests, self::size(FETCH.bytes))),
        (
            "connections at once; a request's headers, path; an answer's head",
            format!(
                "{CONNECTIONS_MAX}; {}, {}; {}",
                size(HEADERS_MAX),
                size(PATH_MAX),
                size(ANSWER_MAX)
            ),
        ),
        ("secrets that a call asks for", REVEALS_MAX.to_string()),
        ("host resources at once: streams, headers", RESOURCES_MAX.to_string()),
        ("random bytes at once", self::size(RANDOM_MAX)),
    ]
}

#[test]
fn the_guides_table_of_limits_is_what_the_host_keeps() {
    let guide = include_str!("../../../guest-sdk/README.md");
    let missing: Vec<_> = rows()
        .into_iter()
        .map(|(what, limit)| format!("| {what} | {limit} |"))
        .filter(|row| !guide.contains(row.as_str()))
        .collect();
    assert!(missing.is_empty(), "guest-sdk/README.md lacks these rows:\n{}", missing.join("\n"));
}
