#!/bin/sh
# Everything: `make test`. Builds as the caller, then runs `cargo test` as root in a mount namespace of its own whose `/` is
# shared, as on a real host. Arguments go to `cargo test`. In CI (CI=true) a test that was skipped is a failure.
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" = 0 ] && [ "${SUDO_USER:-root}" = "$(stat -c %U Cargo.toml)" ] && [ "${SUDO_USER:-root}" != root ]; then
    echo "run this without sudo: it builds as $SUDO_USER, and asks for root where it mounts" >&2
    exit 1
fi

# What the tests start: engines, the content of an image, chattr, what makes file systems, programs that serve volumes with their
# servers, and what drivers in other languages are built with.
host/packages.sh docker.io podman runc busybox-static e2fsprogs xfsprogs btrfs-progs systemd sshfs openssh-server openssl rclone s3fs \
    python3-venv curl git docker-registry glusterfs-server glusterfs-client iproute2 make clang lld wasi-libc libclang-rt-dev-wasm32
# Node of another origin may bring its own npm, and does not go with Debian's.
command -v npm >/dev/null || host/packages.sh nodejs npm
# Since Debian 13 the `docker` command is a package of its own.
command -v docker >/dev/null || host/packages.sh docker-cli
host/build.sh tests

sudo=
if [ "$(id -u)" != 0 ]; then
    echo "mounting needs root: sudo may ask for your password"
    sudo=sudo
fi
HOME=${HOME:-/root}
PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"

log=target/test.log
result=target/test.status
# shellcheck disable=SC2016 # expanded by the inner shell
{
    status=0
    $sudo env "PATH=$PATH" "HOME=$HOME" "CI=${CI:-}" ${WASMVOL_WRITE:+"WASMVOL_WRITE=$WASMVOL_WRITE"} "CARGO_TARGET_DIR=$PWD/target" \
        unshare --mount --propagation private sh -c 'mount --make-rshared / && exec "$@"' sh \
        cargo test --release --workspace --no-fail-fast "$@" </dev/null || status=$?
    echo "$status" >"$result"
} 2>&1 | tee "$log"
status=$(cat "$result")

# The same on an older kernel, where everything was asked for.
if [ "$#" = 0 ]; then
    tests/vm.sh 2>&1 | tee -a "$log"
    grep -qx 'vm: every test passed' "$log" || status=1
fi

# What root wrote beneath target/ goes back to the caller.
[ -z "$sudo" ] || sudo find target -user root -exec chown -h "$(id -u):$(id -g)" {} +

echo
awk '/^test result: / { passed += $4; failed += $6; skipped += $8; left_out += $12 }
     END { printf "%d passed, %d failed, %d skipped, %d not asked for\n", passed, failed, skipped, left_out }' "$log"
grep '^test .* \.\.\. ignored' "$log" | sed 's/^test /skipped: /' || :
grep '^test .* \.\.\. FAILED' "$log" | sed 's/^test /failed: /' || :
if [ "$status" = 0 ] && [ -n "${CI:-}" ] && grep -q '^test .* \.\.\. ignored' "$log"; then
    echo "a skipped test is a failure here: CI is set" >&2
    exit 1
fi
exit "$status"
