#!/bin/busybox sh
# shellcheck shell=dash
# The first program of the virtual machine of tests/vm.sh: makes it a Linux, runs the tests, switches it off.
/bin/busybox --install -s /bin
# Its own shell would run its own programs in the place of those that were brought.
ln -sf "$(PATH=/usr/bin:/bin /bin/busybox which bash)" /bin/sh
export PATH=/usr/bin:/usr/sbin:/sbin:/bin HOME=/ RUST_BACKTRACE=0 TMPDIR=/disk
mkdir -p /proc /sys /dev /run /tmp /disk /etc /mnt /export /var/lib/nfs /var/log/samba
ln -s /run /var/run
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
printf '%s:x:%s::/:/bin/sh\n' root 0:0 alice 1000:1000 _rpc 100:65534 nobody 65534:65534 >/etc/passwd
printf '%s:x:%s:\n' root 0 alice 1000 nogroup 65534 >/etc/group
printf '%s\n' '10.77.1.2 files.test' '10.77.1.2 both.test' '10.99.0.1 both.test' >/etc/hosts
# As Debian has it: a name has all the addresses that are there.
echo 'multi on' >/etc/host.conf
touch /etc/exports
while read -r module; do insmod "$module"; done </modules/order
mount -t ext4 /dev/vda /disk
chmod 1777 /disk /tmp
workspace='' kernel_tests='' system_tests=''
# shellcheck source=/dev/null
. /parameters
echo "vm: Linux $(uname -r)"
cd "$workspace" || exit
failed=0
# Meanwhile the servers start.
for number in 1 2; do bash "$workspace/tests/vm/server.sh" $number & done
for test in "$kernel_tests" "$system_tests" "$vm_tests"; do
    [ "$test" != "$vm_tests" ] || wait
    # shellcheck disable=SC2086 # a program and its arguments
    unshare --mount --propagation private sh -c 'mount --make-rshared / && exec "$@"' sh $test || failed=1
done
[ "$failed" = 1 ] || echo 'vm: every test passed'
poweroff -f
