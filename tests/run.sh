#!/bin/sh
# Everything: `make test`. Builds as the caller, then runs `cargo test` as root in a mount namespace of its own whose `/` is
# shared, as on a real host. Arguments go to `cargo test`. In CI (CI=true) a test that had to be skipped is a failure.
set -eu
cd "$(dirname "$0")/.."

# What the tests start: engines, an image's content, and file system tools.
host/packages.sh docker.io podman runc busybox-static e2fsprogs
host/build.sh tests

skipped=$PWD/target/skipped-tests
rm -f "$skipped"

sudo=
if [ "$(id -u)" != 0 ]; then
    echo "mounting needs root: sudo may ask for your password"
    sudo=sudo
fi
if [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH="$HOME/.cargo/bin:$PATH"
fi

status=0
# shellcheck disable=SC2016 # expanded by the inner shell
$sudo env "PATH=$PATH:/usr/sbin:/sbin" "HOME=$HOME" "CI=${CI:-}" "CARGO_TARGET_DIR=$PWD/target" \
    "WASMVOL_SKIPPED=$skipped" \
    unshare --mount --propagation private sh -c 'mount --make-rshared / && exec "$@"' sh \
    cargo test --release --workspace --no-fail-fast "$@" </dev/null || status=$?

# What root wrote beneath target/ goes back to the caller.
[ -z "$sudo" ] || sudo find target -user root -exec chown -h "$(id -u):$(id -g)" {} +

echo
if [ -s "$skipped" ]; then
    echo "skipped:"
    sort "$skipped" | sed 's/^/  /'
    if [ -n "${CI:-}" ]; then
        echo "a skipped test is a failure here: CI is set" >&2
        exit 1
    fi
else
    echo "skipped: nothing"
fi
[ "$status" = 0 ] || echo "some tests failed (status $status)" >&2
exit "$status"
