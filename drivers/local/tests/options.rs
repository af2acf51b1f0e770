//! What `local` makes of its options: a directory without any, and of Docker's own what Docker would mount.

#[cfg(test)]
mod tests {
    use local::Local;
    use wasmvol_sdk::contract::{Device, IdMap, IdRange, MountOption, MountValue, Overlay, Source};
    use wasmvol_sdk::{
        Created, Driver, ErrorCode, Owner, Plan, Reclaim, Result, Share, Storage, Tmpfs, testing,
    };

    type Given = [(&'static str, &'static str)];

    fn created(options: &Given) -> Result<Created> {
        Local::create(&testing::volume::<Local>("data", options.iter().copied())?)
    }

    fn planned(options: &Given) -> Result<Plan> {
        Local::path(&testing::volume::<Local>("data", options.iter().copied())?)
    }

    /// Docker's three options.
    fn docker(
        kind: &'static str,
        device: &'static str,
        o: &'static str,
    ) -> [(&'static str, &'static str); 3] {
        [("type", kind), ("device", device), ("o", o)]
    }

    fn refused(options: &Given) -> String {
        let error = created(options).expect_err("refused");
        assert_eq!(error.code, ErrorCode::InvalidOption);
        assert_eq!(error.message.lines().count(), 1);
        error.message
    }

    fn memory(size: Option<u64>, inodes: Option<u64>, (uid, gid, mode): (u32, u32, u32)) -> Plan {
        Plan::tmpfs(Tmpfs { size, inodes, owner: Owner { uid, gid, mode } })
    }

    fn options(given: &[(&str, MountValue)]) -> Vec<MountOption> {
        let option = |(key, value): &(&str, MountValue)| MountOption {
            key: (*key).to_owned(),
            value: value.clone(),
        };
        given.iter().map(option).collect()
    }

    fn text(text: &str) -> MountValue {
        MountValue::Text(text.to_owned())
    }

    #[test]
    fn it_keeps_the_contract() {
        testing::conformance::<Local>([]);
        testing::conformance::<Local>([("uid", "1000"), ("mode", "2770")]);
        testing::conformance::<Local>(docker("none", "/srv/data", "bind"));
        testing::conformance::<Local>(docker("tmpfs", "tmpfs", "size=100m,uid=1000"));
        testing::conformance::<Local>(docker("nfs", ":/srv/data", "addr=10.0.0.5,rw"));
        testing::conformance::<Local>(docker("overlay", "overlay", "lowerdir=/srv/a:/srv/b"));
    }

    #[test]
    fn a_volume_without_options_is_a_directory_of_root() {
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        assert_eq!(created(&[]), Ok(Storage::directory(owner).into()));
    }

    #[test]
    fn owner_and_mode_reach_the_directory() {
        let owner = Owner { uid: 1000, gid: 100, mode: 0o750 };
        for mode in ["0750", "750"] {
            let made = created(&[("uid", "1000"), ("gid", "100"), ("mode", mode)]);
            assert_eq!(made, Ok(Storage::directory(owner).into()));
        }
    }

    #[test]
    fn the_storage_is_mounted_as_it_is_and_deleted_with_the_volume() {
        let volume = testing::volume::<Local>("data", []).expect("a volume");
        assert_eq!(Local::path(&volume), Ok(Plan::storage()));
        assert_eq!(Local::remove(&volume), Ok(Reclaim::Delete));
    }

    #[test]
    fn a_size_is_the_limit_of_a_directory_and_of_nothing_else() {
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        let limited = Storage::limited_directory(owner, Some(1 << 30));
        assert_eq!(created(&[("size", "1g")]), Ok(limited.into()));
        for given in [docker("tmpfs", "tmpfs", ""), docker("none", "/srv", "bind")] {
            let message = refused(&[&given[..], &[("size", "1g")]].concat());
            assert!(message.starts_with("option `size`: is for a volume without"), "{message}");
            assert!(message.contains("`o=size=…`"), "{message}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        for (key, value) in [
            ("mode", "10000"),
            ("mode", "0x1ed"),
            ("mode", "+755"),
            ("mode", "789"),
            ("mode", ""),
            ("uid", "-1"),
            ("uid", "4294967295"),
            ("gid", "9223372036854775807"),
            ("gid", "staff"),
        ] {
            let message = refused(&[(key, value)]);
            assert!(message.starts_with(&format!("option `{key}` ")), "{message}");
            assert!(message.ends_with(&format!(": `{value}`")), "{message}");
        }
    }

    #[test]
    fn docker_s_options_mean_what_they_mean_to_docker() {
        let bind = |path| Plan::host_directory(path, None);
        let everybodys = (0, 0, 0o1777);
        for ((kind, device, o), plan) in [
            (("none", "/srv/data", "bind"), bind("/srv/data")),
            (("none", "/srv/data", "bind,rw,noatime,nosuid,nodev"), bind("/srv/data")),
            (("bind", "/srv/data", "ro,bind"), bind("/srv/data").read_only()),
            (("ext4", "/srv/data", "bind,ro,rw"), bind("/srv/data")),
            (("none", "/srv/data", "defaults,bind,noexec"), bind("/srv/data").no_exec()),
            (("none", "/srv/data", "bind,noexec,exec,"), bind("/srv/data")),
            (("tmpfs", "tmpfs", ""), memory(None, None, everybodys)),
            (
                ("tmpfs", "none", "size=100m,uid=1000"),
                memory(Some(100 << 20), None, (1000, 0, 0o1777)),
            ),
            (("tmpfs", "t", "size=1G,mode=0700,gid=5"), memory(Some(1 << 30), None, (0, 5, 0o700))),
            (("tmpfs", "t", "size=4096,nr_inodes=1k"), memory(Some(4096), Some(1024), everybodys)),
            (("tmpfs", "t", "ro,noexec"), memory(None, None, everybodys).read_only().no_exec()),
        ] {
            assert_eq!(planned(&docker(kind, device, o)), Ok(plan), "{kind} {device} {o}");
        }
    }

    #[test]
    fn a_share_is_where_addr_says_or_the_device() {
        let present = MountValue::Present;
        let share = |kind: &str, server: &str, path: &str, given: &[(&str, MountValue)]| {
            let [kind, server, path] = [kind, server, path].map(str::to_owned);
            Plan::new(Source::Share(Share {
                kind,
                server,
                path,
                options: options(given),
                make: None,
            }))
        };
        let soft = ("soft", present.clone());
        for ((kind, device, o), plan) in [
            (("nfs", ":/srv/data", "addr=10.0.0.5,rw"), share("nfs", "10.0.0.5", "/srv/data", &[])),
            (
                ("nfs", ":/srv", "addr=files.lan,nfsvers=4.1,soft,timeo=30"),
                share(
                    "nfs4",
                    "files.lan",
                    "/srv",
                    &[soft.clone(), ("timeo", MountValue::Number(30)), ("vers", text("4.1"))],
                ),
            ),
            (("nfs4", "[fd00::1]:/", "ro"), share("nfs4", "fd00::1", "/", &[]).read_only()),
            (
                ("nfs", "here:/a", "addr=10.0.0.5,vers=3,noatime"),
                share("nfs", "10.0.0.5", "/a", &[("vers", text("3"))]),
            ),
            (
                ("cifs", "//files/team/a", "user=bob,vers=3.0,file_mode=0777,uid=5"),
                share(
                    "cifs",
                    "files",
                    "team/a",
                    &[
                        ("username", text("bob")),
                        ("vers", text("3.0")),
                        ("file_mode", text("0777")),
                        ("uid", MountValue::Number(5)),
                    ],
                ),
            ),
        ] {
            assert_eq!(planned(&docker(kind, device, o)), Ok(plan), "{kind} {device} {o}");
        }
    }

    #[test]
    fn the_password_of_a_share_is_the_name_of_a_secret() {
        let given = docker("cifs", "//files/team", "username=bob");
        let plan = planned(&[&given[..], &[("secret", "nas")]].concat()).expect("a plan");
        let Source::Share(share) = plan.source else { panic!("no share") };
        let password = MountValue::Secret("nas".to_owned());
        assert_eq!(share.options, options(&[("username", text("bob")), ("password", password)]));
        let message =
            refused(&[&docker("none", "/srv", "bind")[..], &[("secret", "nas")]].concat());
        assert!(message.starts_with("option `secret`:"), "{message}");
    }

    #[test]
    fn an_overlay_of_docker_s_without_a_layer_is_only_read() {
        let plan = planned(&docker("overlay", "overlay", "lowerdir=/srv/a:/srv/b"));
        let lower = ["/srv/a", "/srv/b"].map(str::to_owned).to_vec();
        let overlay = Plan::new(Source::Overlay(Overlay { lower, volatile: false, reset: false }));
        assert_eq!(plan, Ok(overlay.read_only()));
        let message = refused(&docker("overlay", "x", "lowerdir=/a,upperdir=/b,workdir=/c"));
        assert!(message.contains("`-o driver=overlay -o lower=…`"), "{message}");
    }

    #[test]
    fn any_other_type_is_a_file_system_on_a_device() {
        let plan = planned(&docker("ext4", "/dev/sdb1", "noatime,commit=30,data=journal,discard"));
        let options = options(&[
            ("noatime", MountValue::Present),
            ("commit", MountValue::Number(30)),
            ("data", text("journal")),
            ("discard", MountValue::Present),
        ]);
        let (path, filesystem) = ("/dev/sdb1".to_owned(), "ext4".to_owned());
        let device = Device { path, filesystem, options, make: None };
        assert_eq!(plan, Ok(Plan::new(Source::Device(device))));
    }

    #[test]
    fn a_missing_directory_is_made_when_that_is_asked() {
        let given = docker("none", "/srv/data", "bind");
        let make = |more: &Given| planned(&[&given[..], more].concat());
        let owner = Owner { uid: 5, gid: 0, mode: 0o700 };
        let made = make(&[("make", "true"), ("uid", "5"), ("mode", "0700")]);
        assert_eq!(made, Ok(Plan::host_directory("/srv/data", Some(owner))));
        assert_eq!(make(&[("make", "false")]), Ok(Plan::host_directory("/srv/data", None)));
        assert!(make(&[("uid", "5")]).is_err(), "nothing is made that it could own");
        assert!(planned(&[("make", "true")]).is_err());
    }

    #[test]
    fn ids_are_mapped_whatever_is_mounted() {
        let range = vec![IdRange { disk: 0, shown: 100_000, count: 65536 }];
        let map = Some(IdMap { users: range.clone(), groups: range });
        for given in [&[][..], &docker("none", "/srv", "bind"), &docker("xfs", "/dev/sdb", "")] {
            let plan = planned(&[given, &[("uidmap", "0:100000:65536")]].concat());
            assert_eq!(plan.expect("a plan").id_map, map);
        }
    }

    #[test]
    fn what_docker_refuses_is_refused_with_the_option_and_the_cause() {
        for (given, start) in [
            (&[("type", "tmpfs")][..], "option `type`: needs `device`, too"),
            (&[("device", "/srv")], "option `device`: needs `type`, too"),
            (&[("o", "bind")], "option `o`: needs `type` and `device`, too"),
            (&[("type", "none"), ("o", "bind")], "option `type`: needs `device`, too"),
            (&docker("none", "/srv", ""), "option `type`: `none` needs `o=bind`"),
            (&docker("tmpfs", "t", "nonsense"), "option `o`: tmpfs takes no `nonsense`"),
            (&docker("tmpfs", "t", "size=big"), "option `o`: `size` is not a number"),
            (&docker("tmpfs", "t", "mode=999"), "option `o`: `mode` is not a number"),
            (&docker("nfs", "/srv", "addr=h"), "option `device`: must be like `:/srv/data`"),
            (&docker("nfs", ":/srv", "rw"), "option `o`: needs `addr=SERVER`"),
            (&docker("cifs", "files/team", ""), "option `device`: must be like `//server/share`"),
            (&docker("overlay", "overlay", ""), "option `o`: needs `lowerdir=…`"),
        ] {
            let message = refused(given);
            assert!(message.starts_with(start), "{given:?}: {message}");
        }
    }

    #[test]
    fn what_docker_would_do_and_no_volume_can_have_is_refused_by_name() {
        for (o, named) in [
            ("bind,suid", "`suid`"),
            ("bind,dev", "`dev`"),
            ("rbind", "`rbind`"),
            ("bind,rshared", "`rshared`"),
            ("remount,bind", "`remount`"),
            ("bind,uid=5", "`uid`"),
        ] {
            let message = refused(&docker("none", "/srv", o));
            assert!(message.starts_with("option `o`: ") && message.contains(named), "{message}");
        }
        for size in ["size=50%", "size=0"] {
            let message = refused(&docker("tmpfs", "t", size));
            assert!(message.starts_with("option `o`: `size`"), "{message}");
        }
    }
}
