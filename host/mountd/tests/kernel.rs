//! mountd against the real kernel, as root. Each test has a machine of its own: a mount namespace whose `/` is shared, as systemd
//! makes it, in which mountd starts this program again as its daemon, and that relays frames from the plugin socket.
//!
//! Run with `cargo test -p wasmvol-mountd --test kernel -- [PART OF A NAME] [--skip NAME]`. Nothing is left on the host.

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

#[path = "kernel/device.rs"]
mod device;
#[path = "kernel/fill.rs"]
mod fill;
#[path = "kernel/holders.rs"]
mod holders;
#[path = "kernel/hostdir.rs"]
mod hostdir;
#[path = "kernel/images.rs"]
mod images;
#[path = "kernel/layers.rs"]
mod layers;
#[path = "kernel/life.rs"]
mod life;
#[path = "kernel/machine.rs"]
mod machine;
#[path = "kernel/named.rs"]
mod named;
#[path = "kernel/relay.rs"]
mod relay;
#[path = "kernel/secrets.rs"]
mod secrets;
#[path = "kernel/subvolumes.rs"]
mod subvolumes;
#[path = "kernel/volumes.rs"]
mod volumes;

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut part, mut left_out) = (String::new(), Vec::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "daemon" => return relay::run(),
            "--skip" => left_out.extend(args.next()),
            // What else cargo and its users give to test programs changes how libtest prints.
            other if other.starts_with('-') => {}
            other => other.clone_into(&mut part),
        }
    }
    let asked = |name: &str| name.contains(&part) && !left_out.iter().any(|left| left == name);
    let is_root = rustix::process::geteuid().is_root();
    let [mut passed, mut failed, mut ignored, mut filtered] = [0; 4];
    for (name, test) in [
        volumes::TESTS,
        hostdir::TESTS,
        named::TESTS,
        device::TESTS,
        fill::TESTS,
        layers::TESTS,
        images::TESTS,
        subvolumes::TESTS,
        holders::TESTS,
        life::TESTS,
        secrets::TESTS,
    ]
    .concat()
    {
        let (result, count) = match () {
            () if !asked(name) => {
                filtered += 1;
                continue;
            }
            () if !is_root => ("ignored, needs root", &mut ignored),
            () if std::panic::catch_unwind(test).is_ok() => ("ok", &mut passed),
            () => ("FAILED", &mut failed),
        };
        println!("test {name} ... {result}");
        *count += 1;
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {result}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {filtered} filtered out"
    );
    std::process::exit(i32::from(failed > 0));
}
