//! mountd against the real kernel, as root. Each test has a machine of its own: a mount namespace whose `/` is shared, as systemd
//! makes it, in which mountd starts this program again as its daemon, and that relays frames from the plugin socket.
//!
//! Run with `cargo test -p wasmvol-mountd --test kernel [PART OF A NAME]`. Nothing is left on the host.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::exit,
    reason = "a test program with its own main: a failure ends the test"
)]

/// Each test with its name.
macro_rules! tests {
    ($($test:ident),* $(,)?) => { &[$((stringify!($test), $test)),*] };
}

#[path = "kernel/holders.rs"]
mod holders;
#[path = "kernel/life.rs"]
mod life;

#[path = "kernel/machine.rs"]
mod machine;
#[path = "kernel/relay.rs"]
mod relay;
#[path = "kernel/volumes.rs"]
mod volumes;

fn main() {
    let mut args = std::env::args().skip(1);
    let part = args.next();
    if part.as_deref() == Some("daemon") {
        return relay::run();
    }
    if !rustix::process::geteuid().is_root() {
        println!("mountd's kernel tests need root: none was run");
        std::process::exit(i32::from(std::env::var_os("WASMVOL_REQUIRE_ROOT").is_some()));
    }
    let part = part.filter(|part| !part.starts_with('-')).unwrap_or_default();
    let mut failed = 0;
    for (name, test) in [volumes::TESTS, holders::TESTS, life::TESTS].concat() {
        if !name.contains(&part) {
            continue;
        }
        let ok = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += i32::from(!ok);
    }
    std::process::exit(i32::from(failed > 0));
}
