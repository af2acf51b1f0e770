#!/bin/sh
# Builds what `make run` serves: target/release/wasmvol, target/release/wasmvol-mountd and target/drivers/NAME.wasm.
# `host/build.sh tests` builds the tests as well. Builds as the caller: root's files in somebody's tree are a trap, so under
# sudo it goes back to the user who called it.
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$(stat -c %U Cargo.toml)" = "$SUDO_USER" ]; then
    if [ "$SUDO_USER" != root ]; then
        echo "building as $SUDO_USER, whose tree this is, not as root"
        # A login shell, because rustup puts cargo into PATH there.
        # shellcheck disable=SC2016 # expanded by the inner shell
        exec sudo -H -u "$SUDO_USER" sh -lc 'exec "$0" "$@"' "$PWD/host/build.sh" "$@"
    fi
fi

PATH="$PATH:${HOME:-/root}/.cargo/bin"
if ! command -v cargo >/dev/null; then
    echo "cargo is not here: install it from https://rustup.rs, then run this again" >&2
    exit 1
fi
command -v cc >/dev/null || host/packages.sh gcc libc6-dev

# rustup would do this by itself, but not where RUSTUP_AUTO_INSTALL=0 is set.
if command -v rustup >/dev/null; then
    channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    if ! rustup run "$channel" rustc --version >/dev/null 2>&1; then
        rustup toolchain install "$channel" --profile minimal --component clippy --component rustfmt
    fi
    if ! rustup target list --installed --toolchain "$channel" | grep -qx wasm32-wasip2; then
        rustup target add --toolchain "$channel" wasm32-wasip2
    fi
fi

# The paths that the README names hold, whatever the caller's own habit is.
export CARGO_TARGET_DIR="$PWD/target"

if ! ls target/release/deps/libwasmtime-*.rlib >/dev/null 2>&1; then
    echo "the first build compiles wasmtime: about 6 minutes on 2 processors (this machine has $(nproc))"
fi

# The whole workspace both times: cargo unites the features of the packages it is asked for, and to ask for the two binaries
# alone would build wasmtime once more.
case ${1:-} in
tests) cargo test --release --workspace --no-run ;;
esac
cargo build --release --workspace --bins

# Puts a component into a directory of target/. Renamed into place: a daemon that runs from here may be reading the old one.
place() {
    mkdir -p "target/$1"
    cp "target/wasm32-wasip2/driver/$2.wasm" "target/$1/.new"
    mv "target/$1/.new" "target/$1/$(basename "$2").wasm"
}

for driver in btrfs glusterfs image local overlay rclone s3fs sshfs tmpfs vfs nfs cifs; do
    plain="${plain:-} $driver"
    packages="${packages:-} -p $driver"
done
# shellcheck disable=SC2086 # one word a package
cargo build --profile driver --target wasm32-wasip2 $packages
# Each of those that have abilities alone: cargo unites the features of what it builds together, and a driver whose SDK has an ability
# that it does not export cannot be linked.
for driver in ebs git; do
    able="${able:-} $driver"
    cargo build --profile driver --target wasm32-wasip2 -p "$driver"
done
for driver in $plain $able; do
    place drivers "$driver"
done
if [ "${1:-}" = tests ]; then
    cargo build --profile driver --target wasm32-wasip2 -p able -p hostile -p next -p rogue
    cargo build --profile driver --target wasm32-wasip2 -p wasmvol-sdk --example scratch
    # By itself: an ability of the SDK that is asked for must be exported.
    cargo build --profile driver --target wasm32-wasip2 -p faulty
    place guests faulty
    place guests able
    place guests hostile
    place guests rogue
    cargo build --profile driver --target wasm32-wasip2 -p version --examples
    for example in scratch version1 version1greedy version2 version2later version3 version4; do
        place guests "examples/$example"
    done
    # An example that is a workspace of its own, as a driver elsewhere is; tests build projects like it in the same place.
    CARGO_TARGET_DIR="$PWD/target/new/rust-target" make --directory drivers/examples/rust driver.wasm test
fi
