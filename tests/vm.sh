#!/bin/sh
# The tests that need no engine, on the kernel of Debian's cloud images, in a virtual machine: `tests/vm.sh [FILTER]`.
#
# Called by tests/run.sh after everything was built. Older kernels lack system calls that a newer one has (Linux 6.1 of Debian 12: no
# statmount, listmount, PAGEMAP_SCAN), and kernels of a container's host lack file systems: NFS and SMB are served and mounted here, by
# nfsd and smbd. Needs no root: the machine is qemu's, its disk and its initramfs lie beneath target/vm. Prints what the tests print;
# exit status 1 if one failed.
set -eu
cd "$(dirname "$0")/.."

host/packages.sh qemu-system-x86 busybox-static cpio kmod e2fsprogs iproute2
PATH="$PATH:${HOME:-/root}/.cargo/bin:/usr/sbin:/sbin"

# Seconds of the whole run: emulation without KVM takes some 20 times as long as the machine itself.
deadline=3000
vm=$PWD/target/vm
mkdir -p "$vm"

# The newest cloud kernel of this Debian, kept until there is a newer one.
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p')
if [ ! -d "$vm/$kernel" ]; then
    (cd "$vm" && apt-get -q download "$kernel" && dpkg -x "$kernel"_*.deb "$kernel.new" && rm "$kernel"_*.deb)
    mv "$vm/$kernel.new" "$vm/$kernel"
fi
release=${kernel#linux-image-}

# Servers and tools of the tests, unpacked and not installed: nothing of them runs on this machine. What it has already is taken from it.
packages="nfs-kernel-server rpcbind samba xfsprogs btrfs-progs cryptsetup-bin"
tools=$vm/tools
if [ "$(cat "$tools/packages" 2>/dev/null)" != "$packages" ]; then
    rm -rf "$tools" "$vm/archives"
    mkdir -p "$tools" "$vm/archives/partial"
    # shellcheck disable=SC2086 # one word a package
    apt-get -q -y --no-install-recommends --download-only \
        -o Dir::Cache::archives="$vm/archives" -o Debug::NoLocking=1 install $packages
    for archive in "$vm"/archives/*.deb; do
        [ ! -e "$archive" ] || dpkg -x "$archive" "$tools"
    done
    rm -rf "$vm/archives"
    echo "$packages" >"$tools/packages"
fi
PATH="$tools/usr/sbin:$tools/usr/bin:$tools/sbin:$PATH"
libraries=x86_64-linux-gnu
libraries=$tools/usr/lib/$libraries:$tools/lib/$libraries:$tools/usr/lib/$libraries/samba

root=$vm/root
rm -rf "$root"
mkdir -p "$root/bin" "$root/lib/modules/$release"

# Copies programs, and the libraries that they name, to the same places, which unpacked ones have beneath $tools.
take() {
    for program in "$@"; do
        file=$(command -v "$program")
        { echo "$file" && {
            LD_LIBRARY_PATH=$libraries ldd "$file" 2>/dev/null |
                sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p'
        }; } |
            while read -r each; do
                place=$root${each#"$tools"}
                mkdir -p "$(dirname "$place")"
                cp -Lf "$each" "$place"
            done
    done
}

# Modules with all that they depend on, in the order in which they are loaded.
cp -r "$vm/$kernel/lib/modules/$release/." "$root/lib/modules/$release/"
depmod -b "$root" "$release"
for module in virtio_pci virtio_blk overlay fuse loop xfs btrfs dm_crypt xts quota_v2 veth nfsd nfs nfsv3 nfsv4 \
    cifs cmac sha512_generic gcm ccm ctr ghash_generic; do
    modprobe -d "$root" -S "$release" --show-depends "$module"
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' >"$vm/modules"
mkdir "$vm/root/modules"
sed "s|^$root||" "$vm/modules" >"$root/modules/order"
find "$root/lib/modules" -name '*.ko' | grep -vxFf "$vm/modules" | xargs rm -f

# The program of a test target.
default="semantics::"
built() {
    cargo test --release --workspace --no-run --message-format json "$@" 2>/dev/null |
        sed -n 's/.*"target":{"kind":\["test"\][^}]*"name":"'"$2"'".*"executable":"\([^"]*\)".*/\1/p'
}
kernel_tests=$(built --test kernel)
system_tests=$(built --test it)
vm_tests=$(built --test vm)
# Of what busybox has too it runs its own, with fewer options, wherever it starts a program.
take /bin/busybox bash setpriv unshare nsenter setsid timeout mount umount sleep ip "$kernel_tests" "$system_tests" "$vm_tests"
take "$PWD/target/release/wasmvol" "$PWD/target/release/wasmvol-mountd"
take rpcbind nfsdcld exportfs rpc.nfsd rpc.mountd smbd smbpasswd losetup truncate dd xfs_quota
take cryptsetup mkfs.ext4 e2fsck mkfs.xfs mkfs.btrfs btrfs chattr lsattr fstrim
# Every daemon of a test compiles, slowly, all drivers that it finds in their place: most need no more than two.
mkdir -p "$root$PWD/target/drivers" "$root$PWD/target/guests"
cp target/drivers/local.wasm target/drivers/tmpfs.wasm "$root$PWD/target/drivers/"
cp target/drivers/nfs.wasm target/drivers/cifs.wasm target/drivers/image.wasm target/drivers/vfs.wasm \
    target/guests/hostile.wasm target/guests/able.wasm "$root$PWD/target/guests/"
mkdir -p "$root/etc" "$root$PWD/tests/vm"
cp tests/vm/server.sh "$root$PWD/tests/vm/"
# By these rpcbind and nfsd know what their protocols are called.
for table in netconfig services protocols rpc; do
    cp "$tools/etc/$table" "$root/etc/" 2>/dev/null || cp "/etc/$table" "$root/etc/"
done
cp tests/vm/init.sh "$root/init"
# Before Linux 6.3 a tmpfs maps no ids, before 6.6 it takes any number of inodes, and before 6.15 no overlay is laid over what is
# attached nowhere: a device, a tmpfs, a directory with its ids mapped.
newer=
for test in a_tmpfs_has_its_ids_mapped_and_is_taken_back_with_them an_option_that_the_kernel_refuses_is_told_in_its_words \
    a_read_only_directory_has_its_ids_mapped what_lies_below_an_overlay_has_its_ids_mapped \
    a_read_only_device_withstands_a_remount_by_a_container a_read_only_tmpfs_withstands_a_remount_by_a_container; do
    newer="$newer --skip $test"
done
{
    echo "workspace='$PWD'"
    echo "kernel_tests='$kernel_tests$newer $*'"
    echo "system_tests='$system_tests ${*:-$default}'"
    echo "vm_tests='$vm_tests ${*:-encryption:: quotas:: shares::}'"
} >"$root/parameters"
(cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$vm/initramfs"

rm -f "$vm/disk"
truncate -s 2G "$vm/disk"
mkfs.ext4 -q -F "$vm/disk"

timeout --foreground "$deadline" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -nographic -no-reboot -nic none \
    -kernel "$vm/$kernel/boot/vmlinuz-$release" -initrd "$vm/initramfs" \
    -drive "file=$vm/disk,format=raw,if=virtio,cache=unsafe" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off" </dev/null 2>&1 | sed -u 's/\r$//; s/\x1b\[*[?0-9;]*[a-zA-Z]//g' | tee "$vm/log"
grep -qx 'vm: every test passed' "$vm/log"
