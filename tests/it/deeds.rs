//! What hostile drivers do at their worst: a corpus. `hostile.rs` asks whether each is contained, the figures of `make bench` how much
//! slower others get meanwhile.

/// What a deed is done with, by a driver that takes that.
pub(crate) const WITH: &str = "key";

/// Whose deeds, which, and what the error says. Some are no error at all.
pub(crate) const DEEDS: &[(&str, &str, &str)] = &[
    ("hostile", "loop", "driver did not answer within 2000 ms"),
    ("hostile", "copy-storm", "driver did not answer within 2000 ms"),
    ("hostile", "sleep", "driver did not answer within 2000 ms"),
    ("hostile", "recurse", "limit of 512 KiB of stack"),
    ("hostile", "grow", "limit of 64 MiB of memory"),
    ("hostile", "hoard-resources", "limit of 128 host resources"),
    ("hostile", "panic", "driver crashed: out of cheese"),
    ("hostile", "exit", "driver exited with status 1"),
    ("hostile", "giant-error", "limit of 1 MiB in one answer"),
    ("hostile", "giant-state", "limit of 1 MiB in one answer"),
    ("hostile", "log-flood", ""),
    ("hostile", "stderr-flood", ""),
    ("hostile", "endless-line", ""),
    ("rogue", "store-keys", "the store has at most 1024 keys and 1024 KiB"),
    ("rogue", "store-bytes", "the store has at most 1024 keys and 1024 KiB"),
    ("rogue", "store-full", ""),
    ("rogue", "store-reads", "limit of 2 s of computing"),
    ("rogue", "store-lists", "limit of 2 s of computing"),
    ("rogue", "reveal-probe", "may not be revealed to driver `rogue`"),
    ("rogue", "reveal-flood", "this call has asked for 16 secrets already"),
    ("rogue", "hoard-fields", "limit of 128 host resources"),
    ("rogue", "hoard-headers", "limit of 16 KiB of headers in one request"),
    ("rogue", "hoard-methods", "a request's method has at most 32 bytes"),
    ("rogue", "hoard-authorities", "a request's authority has at most 300 bytes"),
    ("rogue", "hoard-bodies", "limit of 128 host resources"),
    ("rogue", "hoard-always", "limit of 2 s of computing"),
    ("rogue", "populate-listings", "limit of 128 host resources"),
    ("rogue", "populate-open", "limit of 128 host resources"),
    ("rogue", "populate-executables", "at most 100000 are allowed"),
    ("rogue", "populate-giant", "limit of 16 MiB in one answer"),
    ("rogue", "populate-out", ""),
];

/// A component whose one module has so many functions that its compiler needs more memory than it may have.
pub(crate) fn bomb() -> Vec<u8> {
    const FUNCTIONS: usize = 1_000_000;
    let number = |mut number: usize| {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let section = |id: u8, content: Vec<u8>| [vec![id], number(content.len()), content].concat();
    // Each of them takes a number and answers it.
    let types = section(1, b"\x01\x60\x01\x7f\x01\x7f".to_vec());
    let functions = section(3, [number(FUNCTIONS), vec![0; FUNCTIONS]].concat());
    let bodies = b"\x04\x00\x20\x00\x0b".repeat(FUNCTIONS);
    let code = section(10, [number(FUNCTIONS), bodies].concat());
    let module = [b"\0asm\x01\0\0\0".to_vec(), types, functions, code].concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(1, module)].concat()
}
