#!/bin/sh
# Installs the Debian packages that are missing, with sudo if that takes it: `host/packages.sh gcc libc6-dev`.
# Called by build.sh and by tests/run.sh. Does nothing, and needs no rights, where everything is there.
set -eu

missing=
for package in "$@"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || state=
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
    sudo=sudo
fi
if ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! command -v sudo >/dev/null; }; then
    echo "please install these, by their Debian names:$missing" >&2
    exit 1
fi
echo "installing Debian packages:$missing"
$sudo apt-get -q update
# shellcheck disable=SC2086 # one word a package
$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing
