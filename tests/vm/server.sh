#!/bin/sh
# A file server for the tests, in the virtual machine of tests/vm.sh: `server.sh NUMBER` has a network of its own, in which it serves
# the same directory at 10.77.NUMBER.2 by NFS, as `/export`, and by SMB, as `share`, to the user `alice`, whose password a test sets.
# Called by init.sh; a test cuts one off by `ip -n serverNUMBER link set serverNUMBER down`. Ends when everything answers.
set -eu
number=$1
name=server$number
place=/disk/$name
mkdir -p "$place/nfs/v4recovery" "$place/samba" "$place/export"
chmod 777 "$place/export"

ip netns add "$name"
ip link add "client$number" type veth peer name "$name" netns "$name"
ip address add "10.77.$number.1/24" dev "client$number"
ip link set "client$number" up
ip -n "$name" link set lo up
ip -n "$name" address add "10.77.$number.2/24" dev "$name"
ip -n "$name" link set "$name" up

cat >"$place/smb.conf" <<END
[global]
    server role = standalone server
    server min protocol = SMB3_11
    smb encrypt = desired
    log file = $place/samba/log
    private dir = $place/samba
    lock directory = $place/samba
    state directory = $place/samba
    cache directory = $place/samba
    pid directory = $place/samba
    ncalrpc dir = $place/samba/ncalrpc
    load printers = no
    disable spoolss = yes
[share]
    path = $place/export
    read only = no
    force user = root
END

# Sockets and state of NFS have fixed places: this server's own are mounted there, where only it sees them.
cat >"$place/serve.sh" <<END
set -eu
mount -t tmpfs run /run
mount --bind $place/nfs /var/lib/nfs
mkdir -p /export
mount --bind $place/export /export
mount -t nfsd nfsd /proc/fs/nfsd
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
echo '/export *(rw,no_root_squash,no_subtree_check,insecure)' >/run/exports
mount --bind /run/exports /etc/exports
mkdir -p /var/lib/nfs/rpc_pipefs /var/lib/nfs/nfsdcld
mount -t rpc_pipefs pipefs /var/lib/nfs/rpc_pipefs
nfsdcld
rpcbind
exportfs -a
rpc.nfsd --no-udp --nfs-version 3,4,4.1,4.2 4
rpc.mountd --no-udp
smbd --configfile=$place/smb.conf --daemon --no-process-group
END
ip netns exec "$name" unshare --mount --propagation private bash "$place/serve.sh"
# smbd goes into the background before it listens.
for _ in $(seq 100); do
    if ip netns exec "$name" bash -c ': </dev/tcp/127.0.0.1/445' 2>/dev/null; then exit 0; fi
    sleep 0.1
done
echo "smbd does not listen:" >&2
tail "$place"/samba/log* >&2
exit 1
