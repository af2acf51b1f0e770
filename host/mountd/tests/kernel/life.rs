//! mountd as a parent: privileges, restarts, locks, sockets; and the reaper.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use rustix::process::{Signal, kill_process};
use wasmvol_plan::frame::{FRAME_MAX, Inventory};
use wasmvol_plan::steps::MOUNTD;
use wasmvol_plan::{FaultKind, Reply, Request};

use crate::machine::{
    Machine, OWNER, UID, directory, eventually, id, make, mount_request, plain, tmpfs, trash,
};

pub(crate) const TESTS: &[(&str, fn())] = tests![
    the_daemon_has_no_privileges,
    the_daemon_gets_of_roots_environment_what_is_meant_for_it,
    the_daemon_has_no_other_files_and_reaches_its_own,
    a_killed_daemon_is_started_again_while_its_sockets_are_held,
    a_killed_mountd_takes_its_daemon_along_and_leaves_the_mounts,
    a_daemon_that_cannot_run_as_configured_is_not_started_again,
    a_second_mountd_is_sent_away_with_the_number_of_the_first,
    an_orderly_end_leaves_mounts_and_no_sockets,
    sockets_of_systemd_are_used_and_left,
    a_stale_socket_is_replaced_and_a_living_one_is_not,
    a_frame_that_cannot_be_read_is_answered_with_number_0,
    a_kill_at_any_step_leaves_nothing_half_done,
    what_was_mounted_over_the_anchor_is_taken_away,
    an_anchor_that_is_out_of_reach_is_left_alone_at_every_start,
    an_anchor_that_is_not_ours_is_refused,
    directories_of_others_are_refused,
    volumes_on_another_mount_than_the_trash_are_refused_with_the_cure,
    a_mistake_on_the_command_line_is_named_in_one_line,
    the_reaper_deletes_a_deep_tree_and_goes_on_after_a_kill,
    the_reaper_never_reaches_what_is_mounted_below,
    an_entry_that_cannot_be_deleted_stays_listed_and_delays_no_other,
];

fn the_daemon_gets_of_roots_environment_what_is_meant_for_it() {
    let mut machine = Machine::empty();
    let flag = machine.dir.join("flag").display().to_string();
    let meant = [
        ("LISTEN_FDS", "3"),
        ("NOTIFY_SOCKET", "/run/notify"),
        ("WASMVOL_LOG", "debug"),
        ("RUST_BACKTRACE", "1"),
        ("WASMVOL_KILL_AT", flag.as_str()),
    ];
    machine.boot(&[&meant[..], &[("TOKEN", "of root's"), ("LD_LIBRARY_PATH", "/tmp")]].concat());
    let daemon = machine.daemon().as_raw_nonzero();
    let environment = fs::read(format!("/proc/{daemon}/environ")).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    let mut found: Vec<_> =
        environment.split_terminator('\0').map(|line| line.split_once('=').unwrap()).collect();
    found.sort_unstable();
    let own = [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "131072")];
    let mut meant = [&meant[..], &own].concat();
    meant.sort_unstable();
    assert_eq!(found, meant);
}

fn the_daemon_has_no_privileges() {
    let machine = Machine::start();
    let daemon = machine.daemon().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{daemon}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), [UID.to_string().as_str(); 4].join(" "));
    assert_eq!(field("Gid:"), [UID.to_string().as_str(); 4].join(" "));
    assert_eq!(field("Groups:"), "");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("SigBlk:"), "0000000000000000");
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities), "0000000000000000", "{capabilities}");
    }
}

fn the_daemon_has_no_other_files_and_reaches_its_own() {
    // The machine's directory is 0700: nothing beneath it can be reached by path.
    let machine = Machine::start();
    let daemon = machine.daemon().as_raw_nonzero();
    let mut files: Vec<i32> = fs::read_dir(format!("/proc/{daemon}/fd"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().ok())
        .filter(|number| *number > 2 && *number <= 10)
        .collect();
    files.sort_unstable();
    assert_eq!(files, (3..=10).collect::<Vec<_>>());
    let named = |number| fs::read_link(format!("/proc/{daemon}/fd/{number}")).unwrap();
    let dir = |name| machine.dir.join(name);
    for (number, name) in
        [(6, "state/catalog"), (7, "state/drivers"), (8, "state/cache"), (9, "run/table")]
    {
        assert_eq!(named(number), dir(name));
        let stat = fs::metadata(dir(name)).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (UID, UID, 0o700));
    }
    assert_eq!(named(10), dir("etc/grants.d"));
    for name in ["state/volumes", "state/trash", "state/secrets"] {
        let stat = fs::metadata(dir(name)).unwrap();
        assert_eq!((stat.uid(), stat.mode() & 0o7777), (0, 0o700));
    }
    let socket = fs::metadata(dir("plugins/wasmvol.sock")).unwrap();
    assert_eq!((socket.uid(), socket.mode() & 0o7777), (0, 0o600));
}

fn a_killed_daemon_is_started_again_while_its_sockets_are_held() {
    let mut machine = Machine::start();
    machine.mount(id(1), tmpfs()).unwrap();
    let daemon = machine.daemon();
    kill_process(daemon, Signal::KILL).unwrap();
    machine.hang_up();
    // The very next connection is answered, by another daemon.
    assert_eq!(machine.survey(Inventory::Mounts).0, [id(1)]);
    assert_ne!(machine.daemon(), daemon);
}

fn a_killed_mountd_takes_its_daemon_along_and_leaves_the_mounts() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let facts = [machine.mount(id(1), plain()).unwrap(), machine.mount(id(2), tmpfs()).unwrap()];
    fs::write(machine.volume(id(2)).join("file"), "kept").unwrap();
    machine.kill();
    assert_eq!(fs::read_to_string(machine.volume(id(2)).join("file")).unwrap(), "kept");
    machine.boot(&[]);
    assert_eq!(machine.mount(id(1), plain()).as_ref(), Ok(&facts[0]));
    assert_eq!(
        machine.mount_for(id(2), tmpfs(), None, Some(facts[1].clone())).as_ref(),
        Ok(&facts[1])
    );
    machine.mount(id(3), tmpfs()).unwrap();
    assert_eq!(machine.survey(Inventory::Mounts).0, [id(1), id(2), id(3)]);
}

fn a_daemon_that_cannot_run_as_configured_is_not_started_again() {
    let machine = Machine::empty();
    let mut mountd = machine.mountd();
    let status = mountd.args(["--", "--end-with", "78"]).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(78));
    assert!(!machine.dir.join("plugins/wasmvol.sock").exists());
}

fn a_second_mountd_is_sent_away_with_the_number_of_the_first() {
    let mut machine = Machine::start();
    let output = machine.mountd().output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{text}");
    assert!(text.contains(&format!("(process {})", machine.pid().as_raw_nonzero())), "{text}");
    assert_eq!(text.lines().count(), 1);
    machine.survey(Inventory::Mounts);
}

fn an_orderly_end_leaves_mounts_and_no_sockets() {
    let mut machine = Machine::start();
    machine.mount(id(1), tmpfs()).unwrap();
    kill_process(machine.pid(), Signal::TERM).unwrap();
    assert_eq!(machine.mountd.take().unwrap().wait().unwrap().code(), Some(0));
    assert!(!machine.dir.join("plugins/wasmvol.sock").exists());
    assert!(!machine.dir.join("run/admin.sock").exists());
    assert_eq!(machine.lines(id(1)).len(), 1);
}

fn sockets_of_systemd_are_used_and_left() {
    let mut machine = Machine::empty();
    fs::create_dir(machine.dir.join("plugins")).unwrap();
    let path = machine.dir.join("plugins/wasmvol.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut command = machine.mountd();
    let args: Vec<_> = command
        .get_args()
        .map(|arg| match arg.to_str().unwrap() {
            "--plugin" => "--plugin-fd".to_owned(),
            arg if arg.starts_with("wasmvol=") => "wasmvol=0".to_owned(),
            arg => arg.to_owned(),
        })
        .collect();
    // Standard input cannot be a socket of systemd's, so a shell moves it to 5.
    let line = format!(
        "exec 5<&0 </dev/null; exec nsenter {}",
        args.join(" ").replace("wasmvol=0", "wasmvol=5")
    );
    command = std::process::Command::new("sh");
    command.args(["-c", &line]).stdin(std::os::fd::OwnedFd::from(listener));
    machine.mountd = Some(command.spawn().unwrap());
    machine.survey(Inventory::Mounts);
    kill_process(machine.pid(), Signal::TERM).unwrap();
    assert!(machine.mountd.take().unwrap().wait().unwrap().success());
    assert!(path.exists());
}

fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let mut machine = Machine::start();
    machine.kill();
    assert!(machine.dir.join("plugins/wasmvol.sock").exists());
    machine.boot(&[]);
    machine.kill();
    let path = machine.dir.join("run/admin.sock");
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    assert_eq!(machine.mountd().stderr(Stdio::null()).status().unwrap().code(), Some(75));
    UnixStream::connect(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert_eq!(machine.mountd().stderr(Stdio::null()).status().unwrap().code(), Some(1));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

fn a_frame_that_cannot_be_read_is_answered_with_number_0() {
    let mut machine = Machine::start();
    for frame in [vec![7; 40], vec![0; FRAME_MAX + 1], vec![9]] {
        let reply = machine.raw(&frame);
        assert_eq!(reply.number, 0);
        assert!(matches!(reply.body, Reply::Failed(fault) if fault.kind == FaultKind::Invalid));
    }
    machine.survey(Inventory::Mounts);
}

fn a_kill_at_any_step_leaves_nothing_half_done() {
    for step in MOUNTD {
        let mut machine = Machine::empty();
        let flag = machine.dir.join("flag");
        fs::write(&flag, "").unwrap();
        let armed = format!("{step}@{}", flag.display());
        machine.boot(&[("WASMVOL_KILL_AT", &armed)]);
        let make = make(id(1), directory());
        let life = [
            make.clone(),
            mount_request(id(1), plain(), None, None),
            Request::Unmount { id: id(1), attached: None },
            trash(id(1)),
        ];
        for request in life {
            // Killed, it is started again and asked again, as recovery does.
            if let Some(reply) = machine.try_ask(request.clone()) {
                assert!(!matches!(reply, Reply::Failed(_)), "{step}: {reply:?}");
                continue;
            }
            assert!(!flag.exists(), "{step}");
            machine.boot(&[]);
            let lines = machine.lines(id(1));
            assert!(
                lines.len() <= 1 && !lines.iter().any(|line| line.contains("shared:")),
                "{lines:?}"
            );
            let dirs = fs::read_dir(machine.inside("run/mnt")).unwrap().count();
            assert_eq!(dirs, lines.len(), "{step}");
            let reply = machine.ask(request);
            assert!(!matches!(reply, Reply::Failed(_)), "{step}: {reply:?}");
        }
        assert!(!flag.exists(), "{step} was never reached");
        eventually("the trash is empty", || {
            machine.survey(Inventory::Trash).0.is_empty().then_some(())
        });
        assert_eq!(machine.survey(Inventory::Volumes).0, []);
        assert_eq!(machine.survey(Inventory::Mounts).0, []);
    }
}

fn what_was_mounted_over_the_anchor_is_taken_away() {
    let mut machine = Machine::start();
    machine.mount(id(1), tmpfs()).unwrap();
    assert!(machine.sh("mount -t tmpfs cover run/mnt"));
    // Running, it does not even notice.
    machine.mount(id(2), tmpfs()).unwrap();
    machine.unmount(id(2));
    machine.kill();
    machine.boot(&[]);
    assert_eq!(machine.survey(Inventory::Mounts).0, [id(1)]);
    assert!(machine.volume(id(1)).exists());
}

fn an_anchor_that_is_out_of_reach_is_left_alone_at_every_start() {
    let mut machine = Machine::start();
    machine.kill();
    assert!(machine.sh("mount -t tmpfs -o mode=0755 cover run"));
    machine.boot(&[]);
    let facts = machine.mount(id(1), tmpfs()).unwrap();
    machine.kill();
    machine.boot(&[]);
    assert_eq!(machine.survey(Inventory::Mounts).0, [id(1)]);
    assert_eq!(machine.mount(id(1), tmpfs()), Ok(facts));
}

fn an_anchor_that_is_not_ours_is_refused() {
    let machine = Machine::empty();
    assert!(machine.sh("mkdir -p run/mnt && mount -t tmpfs other run/mnt"));
    let output = machine.mountd().output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("something else is mounted"));
}

fn directories_of_others_are_refused() {
    let machine = Machine::empty();
    fs::create_dir(machine.dir.join("state")).unwrap();
    fs::set_permissions(machine.dir.join("state"), fs::Permissions::from_mode(0o777)).unwrap();
    let output = machine.mountd().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("chmod go-w"));
    fs::set_permissions(machine.dir.join("state"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(machine.dir.join("state/catalog")).unwrap();
    std::os::unix::fs::chown(machine.dir.join("state/catalog"), Some(5), Some(5)).unwrap();
    let output = machine.mountd().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("belongs to uid 5"));
}

fn volumes_on_another_mount_than_the_trash_are_refused_with_the_cure() {
    for lines in [
        "mount -t tmpfs data state/volumes",
        // The same file system, and still no rename between the two.
        "mkdir data && mount --bind data state/volumes",
    ] {
        let mut machine = Machine::empty();
        assert!(machine.sh(&format!("mkdir -p state/volumes && {lines}")), "{lines}");
        let output = machine.mountd().output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{lines}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        let state = machine.dir.join("state");
        let cure = format!("mount the file system at `{}` itself", state.display());
        assert!(said.contains(&cure), "{said}");

        assert!(machine.sh("umount state/volumes && mount -t tmpfs -o mode=755 data state"));
        machine.boot(&[]);
        machine.make(id(1), OWNER);
        assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    }
}

fn a_mistake_on_the_command_line_is_named_in_one_line() {
    let machine = Machine::empty();
    let right: Vec<_> = machine.mountd().get_args().map(|arg| arg.to_owned()).collect();
    let program = right.iter().position(|arg| arg == "--daemon").unwrap();
    for (place, wrong, named) in [
        (1, "relative", "absolute"),
        (2, "--sise", "`--state-dir`"),
        (9, "0", "unprivileged"),
        (13, "nameless", "NAME="),
        (12, "--plugin-fd", "open file"),
        (15, "", "absolute"),
    ] {
        let mut args = right[program..].to_vec();
        args[place] = wrong.into();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_wasmvol-mountd"));
        let output = command.args(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{text}");
        assert!(text.contains(named) && text.lines().count() == 1, "{wrong}: {text}");
    }
    assert!(!machine.dir.join("state").exists());
}

/// Waits until nothing of a volume is left in the trash.
fn emptied(machine: &mut Machine) {
    eventually("the trash is empty", || {
        machine.survey(Inventory::Trash).0.is_empty().then_some(())
    });
    assert_eq!(fs::read_dir(machine.dir.join("state/trash")).unwrap().count(), 0);
}

fn the_reaper_deletes_a_deep_tree_and_goes_on_after_a_kill() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let data = format!("state/volumes/{}/data", id(1));
    // Longer than any path may be, so no path leads to its end.
    let deep = format!(
        "cd {data}; d=0123456789/0123456789/0123456789/0123456789/0123456789;
        for i in $(seq 200); do mkdir -p $d; cd -P $d; touch a b c; done"
    );
    assert!(machine.sh(&deep));
    assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    machine.kill();
    machine.boot(&[]);
    emptied(&mut machine);
}

fn the_reaper_never_reaches_what_is_mounted_below() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let data = format!("state/volumes/{}/data", id(1));
    assert!(machine.sh(&format!("mkdir -p precious {data}/a/b && touch precious/file {data}/a/c")));
    assert!(machine.sh(&format!("mount --bind precious {data}/a/b")));
    assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    eventually("the rest is deleted", || {
        let found = machine
            .command("find")
            .arg(machine.dir.join("state/trash"))
            .args(["-name", "c"])
            .output();
        found.unwrap().stdout.is_empty().then_some(())
    });
    assert!(machine.dir.join("precious/file").exists());
    assert_eq!(machine.survey(Inventory::Trash).0, [id(1)]);
    assert!(machine.sh("umount precious || umount state/trash/*/.reap-*/b"));
    machine.kill();
    machine.boot(&[]);
    emptied(&mut machine);
    assert!(machine.dir.join("precious/file").exists());
}

fn an_entry_that_cannot_be_deleted_stays_listed_and_delays_no_other() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    machine.make(id(2), OWNER);
    let stuck = machine.dir.join(format!("state/volumes/{}/data/stuck", id(1)));
    fs::write(&stuck, "").unwrap();
    if !machine.sh(&format!("chattr +i {}", stuck.display())) {
        println!("no immutable files here: one test was not run");
        return;
    }
    for number in [1, 2] {
        assert_eq!(machine.ask(trash(id(number))), Reply::Trashed);
    }
    eventually("the other is deleted", || {
        (machine.survey(Inventory::Trash).0 == [id(1)]).then_some(())
    });
    machine.kill();
    assert!(machine.sh("chattr -R -i state/trash"));
    machine.boot(&[]);
    emptied(&mut machine);
}
