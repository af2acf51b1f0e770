//! Whole-system tests: the shipped programs, a real dockerd, a real podman, real mounts, `kill -9`.
//!
//! One module a question. Everything runs as root in a mount namespace of its own, which `make test` makes; see `support`.
//! Tests speak to wasmvol from outside only: its sockets, its command line, the kernel's mount table and the disk.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test says what it expects by failing"
)]

mod abilities;
mod absence;
mod bad_input;
mod bad_places;
mod check;
mod checker;
mod cli;
mod crash;
mod deeds;
mod docker;
mod docs;
mod drivers;
mod ebs;
mod engines;
mod frozen;
mod git;
mod glusterfs;
mod grants;
mod hostile;
mod images;
mod layers;
mod limits;
mod local;
mod lost;
mod names;
mod new;
mod outage;
mod plans;
mod podman;
mod population;
mod programs;
mod protocol;
mod rclone;
mod registry;
mod removal;
mod run;
mod s3fs;
mod secrets;
mod semantics;
mod support;
mod swap;
mod units;
mod usage;
mod vfs;
