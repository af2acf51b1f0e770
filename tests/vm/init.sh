#!/bin/busybox sh
# shellcheck shell=dash
# The first program of the virtual machine of tests/vm.sh: makes it a Linux, runs the tests, switches it off.
/bin/busybox --install -s /bin
# Its own shell would run its own programs in the place of those that were brought.
ln -sf "$(PATH=/usr/bin:/bin /bin/busybox which bash)" /bin/sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/ RUST_BACKTRACE=0 TMPDIR=/disk
mkdir -p /proc /sys /dev /run /tmp /disk /etc /mnt /var/lib
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
echo 'root:x:0:0::/:/bin/sh' >/etc/passwd
while read -r module; do insmod "$module"; done </modules/order
mount -t ext4 /dev/vda /disk
chmod 1777 /disk /tmp
workspace='' kernel_tests='' system_tests=''
# shellcheck source=/dev/null
. /parameters
echo "vm: Linux $(uname -r)"
cd "$workspace" || exit
failed=0
for test in "$kernel_tests" "$system_tests"; do
    # shellcheck disable=SC2086 # a program and its arguments
    unshare --mount --propagation private sh -c 'mount --make-rshared / && exec "$@"' sh $test || failed=1
done
[ "$failed" = 1 ] || echo 'vm: every test passed'
poweroff -f
