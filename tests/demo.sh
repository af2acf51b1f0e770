#!/bin/sh
# A tour of wasmvol without Docker: `make demo`. Serves from target/release in a mount namespace and a directory of its own, so
# that nothing is left and nothing that is installed is touched. Needs root, or sudo.
set -eu

if [ "${1:-}" != inside ]; then
    cd "$(dirname "$0")/.."
    sudo=
    if [ "$(id -u)" != 0 ]; then
        echo "mounting needs root: sudo may ask for your password"
        sudo=sudo
    fi
    # shellcheck disable=SC2016 # expanded by the inner shell
    exec $sudo unshare --mount --propagation private sh -c 'mount --make-rshared / && exec "$@"' sh \
        "$PWD/tests/demo.sh" inside "$PWD/target/release/wasmvol"
fi

# Errors belong between the steps, in their order.
exec 2>&1
program=$2
top=$(mktemp -d /tmp/wasmvol-demo.XXXXXX)
export WASMVOL_RUNTIME_DIR="$top/run"
server=

bold=
plain=
if [ -t 1 ]; then
    bold=$(printf '\033[1m')
    plain=$(printf '\033[0m')
fi

# Ends the server and takes everything away: the mounts go with the namespace, but directories beneath them must not.
clean() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || :
        wait "$server" 2>/dev/null || :
    fi
    awk -v top="$top/" 'index($5, top) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r mount; do
        umount "$mount"
    done
    rm -rf --one-file-system "$top"
}
trap clean EXIT
trap 'exit 130' INT TERM

step() {
    printf '\n%s# %s%s\n' "$bold" "$1" "$plain"
}

# Prints a command as a person would type it, and runs it.
run() {
    printf '$ %s\n' "$*"
    "$@"
}

wasmvol() {
    "$program" "$@"
}

# Runs a command that must be refused.
refused() {
    printf '$ %s\n' "$*"
    if "$@"; then
        echo "this should have been refused"
        exit 1
    fi
}

serve() {
    echo "\$ wasmvol serve --state-dir … --runtime-dir … --plugin-dir … --config …  &"
    "$program" serve --state-dir "$top/state" --runtime-dir "$top/run" --plugin-dir "$top/plugins" \
        --config "$top/wasmvol.toml" >>"$top/log" 2>&1 &
    server=$!
    # Most tries of 0.1 s: the first start compiles the drivers, which takes a loaded machine some seconds.
    tries=600
    until "$program" driver ls 2>/dev/null | grep -q "^tmpfs"; do
        tries=$((tries - 1))
        if [ "$tries" = 0 ] || ! kill -0 "$server" 2>/dev/null; then
            echo "the server does not answer; its log:"
            cat "$top/log"
            exit 1
        fi
        sleep 0.1
    done
}

# Mounts a volume; leaves its mountpoint in `mountpoint`.
mount_volume() {
    printf '$ wasmvol volume mount %s\n' "$1"
    mountpoint=$("$program" volume mount "$1")
    echo "$mountpoint"
}

touch "$top/wasmvol.toml"

step "start the server: the part with root mounts, the part that runs drivers has no privileges"
serve
run wasmvol driver ls

step "make a volume, mount it, and write to it"
run wasmvol volume create data
mount_volume data
data=$mountpoint
printf '$ echo "written before the crash" > %s/greeting\n' "$data"
echo "written before the crash" >"$data/greeting"

step "a volume in memory, with a size that the kernel enforces"
run wasmvol volume create -d tmpfs -o size=1m scratch
mount_volume scratch
scratch=$mountpoint
refused dd if=/dev/zero of="$scratch/big" bs=64k count=32 status=none

step "an option that no driver has is refused before a driver runs"
refused wasmvol volume create -d tmpfs -o sise=1m other
refused wasmvol volume create -o size=1g other

step "kill -9 the part that runs drivers: it is back at once, and a request meanwhile just waits"
daemon=$("$program" status --json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
run kill -9 "$daemon"
run wasmvol volume ls

step "kill -9 all of it"
run kill -9 "$server"
wait "$server" 2>/dev/null || :
server=
echo "the mounts are still there, so containers would go on:"
run cat "$data/greeting"

step "start it again: it finds its volumes and mounts"
serve
run wasmvol volume ls
run cat "$data/greeting"

step "unmount and remove: then the data is gone"
for volume in data scratch; do
    run wasmvol volume unmount "$volume"
    run wasmvol volume rm "$volume"
done
run wasmvol volume ls

step "end the server"
run kill "$server"
wait "$server"
server=
echo "done: nothing is left of this tour"
