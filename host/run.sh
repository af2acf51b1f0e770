#!/bin/sh
# Serves this machine's Docker and Podman from target/release until Ctrl-C: `make run`, after `host/build.sh`. Arguments go to
# `wasmvol serve`. Uses sudo for serving only. A server that is killed is started again; one that ends by itself is not.
set -eu
cd "$(dirname "$0")/.."

wasmvol="$PWD/target/release/wasmvol"
# Where the server has its records, sockets and mounts: its own arguments may say so.
state=/var/lib/wasmvol
runtime=/run/wasmvol
plugins=/run/docker/plugins
config=/etc/wasmvol/wasmvol.toml
word=
for following in "$@" ""; do
    case $word in
    --state-dir) state=$following ;;
    --state-dir=*) state=${word#*=} ;;
    --runtime-dir) runtime=$following ;;
    --runtime-dir=*) runtime=${word#*=} ;;
    --plugin-dir) plugins=$following ;;
    --plugin-dir=*) plugins=${word#*=} ;;
    --config) config=$following ;;
    --config=*) config=${word#*=} ;;
    esac
    word=$following
done
socket=$plugins/wasmvol.sock
docker_socket=/var/run/docker.sock
# Most tries of 0.2 s that the server is given to have its drivers, before nobody waits to print what to type: the first start
# compiles them, which takes a loaded machine some seconds.
TRIES=300

sudo=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "serving mounts file systems and needs root: install sudo, or run this as root" >&2
        exit 1
    fi
    echo "serving needs root: sudo may ask for your password"
    # Not `sudo -v`: that wants a password also of whoever needs none, if another rule names them.
    sudo true
    sudo=sudo
fi

# The server that was started here, asked as root.
ask() {
    $sudo "$wasmvol" --runtime-dir "$runtime" "$@"
}

# The same as a person types it.
typed="${sudo:+sudo }$wasmvol"
[ "$runtime" = /run/wasmvol ] || typed="$typed --runtime-dir $runtime"
# Whoever writes grants says where: the server is not believed.
load="$typed driver load FILE"
[ "$config" = /etc/wasmvol/wasmvol.toml ] || load="$load --config $config"

next() {
    echo
    echo "wasmvol serves."
    if command -v docker >/dev/null; then
        if [ -z "${DOCKER_HOST:-}" ] && [ ! -S "$docker_socket" ]; then
            echo
            echo "dockerd does not run (there is no $docker_socket): ${sudo:+sudo }systemctl start docker"
        fi
        cat <<'TEXT'

In another terminal:

  docker volume create -d wasmvol data
  docker run --rm -v data:/data busybox sh -c 'echo hello >/data/greeting'
  docker run --rm -v data:/data busybox cat /data/greeting
  docker volume rm data
TEXT
    fi
    if command -v podman >/dev/null; then
        cat <<TEXT

For podman, add this to /etc/containers/containers.conf:

  [engine.volume_plugins]
  wasmvol = "$socket"

then, as root:

  podman volume create --driver wasmvol data
  podman run --rm -v data:/data docker.io/library/busybox touch /data/greeting
TEXT
    fi
    if ! command -v docker >/dev/null && ! command -v podman >/dev/null; then
        cat <<'TEXT'

Neither docker nor podman is here to use it. Install one (Debian: docker.io, podman), or end this with Ctrl-C and see
`make demo`: the same verbs without them.
TEXT
    fi
    cat <<TEXT

What there is, and what is wrong:  $typed status   and   $typed doctor
A driver of your own:  $load
Ctrl-C ends it; what is mounted stays mounted.

TEXT
}

# Says what to type once the server has its drivers: once, in the background, since the server holds the foreground.
when_ready() {
    # Else the shell that ends it would tell of that, as if something had gone wrong.
    trap 'exit 1' TERM
    tries=$TRIES
    while [ "$tries" -gt 0 ]; do
        if ask driver ls 2>/dev/null | grep -q '^tmpfs'; then
            next
            return
        fi
        sleep 0.2
        tries=$((tries - 1))
    done
    return 1
}

# What is mounted, one line each, by the names in the records; without a name where nobody may read these any more without a
# password, which is not asked for at the end.
mounted() {
    {
        $sudo ${sudo:+-n} "$wasmvol" --runtime-dir "$runtime" catalog export --state-dir "$state" 2>/dev/null || :
        cat /proc/self/mountinfo
    } | awk -v anchor="$runtime/mnt/" '
        index($0, "{\"volume\":") == 1 && match($0, /"id":"[0-9a-f]+","name":"[^"]+"/) {
            split(substr($0, RSTART, RLENGTH), part, "\"")
            name[part[4]] = part[8] " at "
        }
        index($5, anchor) == 1 { print "  " name[substr($5, length(anchor) + 1)] $5 }'
}

last_words() {
    echo
    left=$(mounted)
    if [ -n "$left" ]; then
        echo "These volumes stay mounted, and their containers go on; the next \`make run\` finds them again:"
        echo "$left"
    else
        echo "No volume is mounted."
    fi
    if command -v docker >/dev/null; then
        cat <<TEXT
While wasmvol is gone, dockerd waits 15 s for it in every request about volumes, \`docker volume ls\` too. Two cures:
  - start it again:       make run
  - or do without it:     ${sudo:+sudo }rm -f $socket && ${sudo:+sudo }systemctl restart docker
    (dockerd then forgets it; remove its volumes and containers first, or dockerd waits for each of them as it starts)
TEXT
    fi
}

if ask status >/dev/null 2>&1; then
    echo "wasmvol is served on this machine already: see \`$typed status\`" >&2
    exit 75
fi

server=
ended=
# This script outlives the server, to say what is left. Ctrl-C at a terminal reaches the server too, through sudo, which forgets its
# password after some minutes: it is asked for only where nobody else tells the server.
trap 'ended=yes; [ -z "$server" ] || $sudo ${sudo:+-n} kill "$server" 2>/dev/null || :' INT
trap 'ended=yes; [ -z "$server" ] || $sudo kill "$server" 2>/dev/null || :' TERM
when_ready &
ready=$!
while [ -z "$ended" ]; do
    started=$(date +%s)
    $sudo "$wasmvol" serve "$@" &
    server=$!
    status=0
    wait "$server" || status=$?
    if [ -n "$ended" ]; then
        # The signal ended `wait`, not yet the server.
        status=0
        wait "$server" || status=$?
        break
    fi
    # More than 128 is a signal; anything else is an end or a refusal with its reason.
    [ "$status" -gt 128 ] || break
    echo "the server was killed (status $status): it is started again" >&2
    [ $(($(date +%s) - started)) -ge 2 ] || sleep 1
done
kill "$ready" 2>/dev/null || :
# Whoever was refused has read why; the rest is for those who were served.
if wait "$ready" 2>/dev/null; then last_words; fi
exit "$status"
