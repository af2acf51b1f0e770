//! `wasmvol`: the daemon and the command line, without privileges.
#![allow(dead_code, reason = "skeleton")]

mod catalog;
mod volumes;

fn main() {}
