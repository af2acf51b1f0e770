#!/bin/sh
# The figures of README.md: `make bench`, or `make bench ARGS=--json`. Measures target/release in a mount namespace and directories of
# its own, durable state beneath target/ (a disk) and the rest in memory, and takes all of it away. Needs root, or sudo. About 4
# minutes on an idle machine; stdout carries the tables only.
set -eu

if [ "${1:-}" != inside ]; then
    cd "$(dirname "$0")/.."
    # What is measured side by side, and what makes and serves the file systems of volumes.
    host/packages.sh rclone e2fsprogs btrfs-progs sshfs openssh-server >&2
    PATH="$PATH:$HOME/.cargo/bin"
    export CARGO_TARGET_DIR="$PWD/target"
    # The whole workspace, as `make test` builds it: fewer packages would build their dependencies once more, with other features.
    cargo bench --workspace --bench figures --no-run >&2
    # Drivers that misbehave.
    cargo build --profile driver --target wasm32-wasip2 -p hostile -p rogue >&2
    mkdir -p target/guests
    cp target/wasm32-wasip2/driver/hostile.wasm target/wasm32-wasip2/driver/rogue.wasm target/guests/
    program=$(cargo bench --workspace --bench figures --no-run --message-format json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
    sudo=
    if [ "$(id -u)" != 0 ]; then
        echo "mounting needs root: sudo may ask for your password" >&2
        sudo=sudo
    fi
    # shellcheck disable=SC2016 # expanded by the inner shell
    exec $sudo env "PATH=$PATH" unshare --mount --propagation private \
        sh -c 'mount --make-rshared / && exec "$@"' sh "$PWD/tests/bench.sh" inside "$PWD/target" "$program" "$@"
fi

target=$2
program=$3
shift 3
state=$(mktemp -d "$target/bench.XXXXXX")
runtime=$(mktemp -d /dev/shm/wasmvol-bench.XXXXXX)
chmod 755 "$state" "$runtime"

# What was started dies with the program that measures. The mounts go with the namespace, but directories beneath them must not.
clean() {
    awk -v top="$runtime/" 'index($5, top) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r mount; do
        umount "$mount"
    done
    rm -rf --one-file-system "$runtime" "$state"
}
trap clean EXIT
trap 'exit 130' INT TERM

"$program" "$state" "$runtime" "$@"
