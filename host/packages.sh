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
# What a package would start is not started: who needs it starts one of its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$sudo rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
fi
# shellcheck disable=SC2086 # one word a package
$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing
# Nor is this machine to be reached by SSH after its next boot because of a test.
case "$missing " in
*" openssh-server "*) ! command -v systemctl >/dev/null || $sudo systemctl disable ssh.service ssh.socket 2>/dev/null || : ;;
esac
