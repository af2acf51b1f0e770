//! A Gluster server of one test's own: one node with one brick, in namespaces of its own, so that it touches nothing of the machine's and
//! needs no port of it. Ends with the run.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::wasmvol::Wasmvol;
use super::{SOON, Scratch, mortal, spawn, until};

/// It wants an address that is no loopback's, and directories that only the machine has.
const RUN: &str = r#"
set -e
for place in /var/lib/glusterd /var/log/glusterfs /run; do
    mkdir -p $place && mount -t tmpfs gluster $place
done
mkdir /run/gluster
ip link set lo up && ip addr add 10.0.0.1/32 dev lo
mkdir brick
glusterd --no-daemon --log-file="$PWD/log" --pid-file=/run/gluster/glusterd.pid &
gluster() { command gluster --mode=script "$@" >>told 2>&1; }
until gluster volume list; do sleep 0.1; done
gluster volume create "$0" 10.0.0.1:"$PWD/brick" force
gluster volume start "$0"
until command gluster volume status "$0" detail | grep -q '^Online *: Y'; do sleep 0.1; done
touch ready
exec sleep infinity
"#;

pub(crate) struct Gluster {
    /// The volume that it has.
    pub(crate) volume: String,
    scratch: Scratch,
    child: Child,
}

impl Gluster {
    pub(crate) fn start() -> Self {
        let scratch = Scratch::new();
        let number = scratch.path().file_name().unwrap().to_str().unwrap();
        let volume = format!("vol-{}-{number}", std::process::id());
        let mut command = mortal("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-c", RUN, &volume]).current_dir(scratch.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let gluster = Self { volume, child: spawn(command), scratch };
        let is_ready = || gluster.scratch.path().join("ready").exists().then_some(());
        until("the volume is online", SOON, is_ready);
        gluster
    }

    /// Starts a wasmvol whose programs reach the server.
    pub(crate) fn run(&self, wasmvol: &mut Wasmvol) {
        let net = format!("--net=/proc/{}/ns/net", self.child.id());
        let command = wasmvol.serve(&["nsenter", &net]);
        wasmvol.launch_as(command);
        wasmvol.wait_ready();
    }

    /// What it keeps the volume in.
    pub(crate) fn brick(&self) -> PathBuf {
        self.scratch.path().join("brick")
    }
}

impl Drop for Gluster {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
