//! `wasmvol`: the daemon and the command line, without privileges.
//!
//! `wasmvol serve`, as root, becomes `wasmvol-mountd`, which starts this program again as the daemon, under an unprivileged uid. In
//! the order of a request: `plugin` and `admin` speak to clients through `server`; `volumes` has the verbs; `drivers` decide,
//! `mounter` asks mountd to act, `catalog` keeps.

mod admin;
mod asked;
mod catalog;
mod cli;
mod config;
mod conformance;
mod daemon;
mod drivers;
mod machine;
mod mounter;
mod plugin;
mod server;
mod volumes;

fn main() -> std::process::ExitCode {
    cli::run()
}
