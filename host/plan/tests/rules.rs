//! The rules that the daemon and mountd share, tried from outside: names, plans, grants, mountinfo, frames.

#[cfg(test)]
mod names {
    use wasmvol_plan::{DriverName, Id, SecretName, VolumeName};

    #[test]
    fn a_volume_name_is_plain_text_that_starts_with_a_letter_or_digit() {
        for good in ["a", "0", "data_1.old-2", &"a".repeat(128)] {
            assert_eq!(VolumeName::parse(good).unwrap().as_str(), good);
        }
        let bad = [
            "",
            ".",
            "..",
            "../x",
            "/",
            "a/b",
            "-a",
            "_a",
            "a b",
            "a\nb",
            "a\0b",
            "ä",
            "a\u{202e}b",
        ];
        for bad in bad.into_iter().chain([&*"a".repeat(129), &"a".repeat(300)]) {
            let error = VolumeName::parse(bad).unwrap_err().to_string();
            assert!(!error.contains(char::is_control) && error.len() < 400, "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_driver_name_can_be_a_file_name() {
        assert!(DriverName::parse("nfs-4").is_ok());
        for bad in ["", "4nfs", "Nfs", "n/s", "..", "n.s", &"n".repeat(33)] {
            assert!(DriverName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secrets_name_can_be_a_file_name_and_a_bad_one_is_not_repeated() {
        for good in ["nas", "0", "nas-2-", &"a".repeat(64)] {
            assert_eq!(SecretName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "-nas", "Nas", "n/s", "..", "n.new", "hunter2!", &"a".repeat(65)] {
            let error = SecretName::parse(bad).unwrap_err().to_string();
            assert!(bad.len() < 4 || !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = Id::from_bits(0xab << 64);
        assert_eq!(Id::parse(&id.to_string()), Ok(id));
        let text = id.to_string();
        for bad in
            [text.to_uppercase(), format!("+{}", &text[1..]), format!("{text}0"), String::new()]
        {
            assert!(Id::parse(&bad).is_err(), "{bad}");
        }
    }
}

#[cfg(test)]
mod plan {
    use wasmvol_plan::path::PATH_MAX;
    use wasmvol_plan::{
        Below, Directory, DriverName, Grants, NamedDirectory, Overlay, Owner, Plan, Source,
        Storage, Tmpfs, VolumeName,
    };

    const OWNER: Owner = Owner { uid: 0, gid: 0, mode: 0o755 };
    const TMPFS: Tmpfs = Tmpfs { size: None, inodes: None, owner: OWNER };

    fn directory(owner: Owner) -> Storage {
        Storage::Directory(Directory { owner, limit: None, over: None })
    }

    fn plan(source: Source, subpath: Option<&str>) -> Plan {
        let subpath = subpath.map(str::to_owned);
        Plan { source, read_only: true, no_exec: true, subpath, id_map: None }
    }

    #[test]
    fn a_mode_has_at_most_twelve_bits() {
        let grants = Grants::default();
        assert!(directory(Owner { mode: 0o7777, ..OWNER }).check(&grants).is_ok());
        assert!(directory(Owner { mode: 0o10000, ..OWNER }).check(&grants).is_err());
    }

    #[test]
    fn the_id_that_means_nobody_to_chown_is_refused() {
        assert!(directory(Owner { uid: u32::MAX, ..OWNER }).check(&Grants::default()).is_err());
        let tmpfs = Tmpfs { owner: Owner { gid: u32::MAX, ..OWNER }, ..TMPFS };
        assert!(
            plan(Source::Tmpfs(tmpfs), None).check(&Storage::None, &Grants::default()).is_err()
        );
    }

    #[test]
    fn a_limit_of_a_directory_is_at_least_one_byte_and_none_of_a_layer_or_a_chosen_place() {
        let driver = DriverName::parse("vfs").unwrap();
        let grants = Grants::parse(&driver, "host-directory=/srv").unwrap();
        let limited =
            |limit| Storage::Directory(Directory { owner: OWNER, limit: Some(limit), over: None });
        assert!(limited(1).check(&grants).is_ok());
        let fault = limited(0).check(&grants).unwrap_err();
        assert!(fault.message.contains("use at least 1"), "{fault}");
        let overlay = Overlay { lower: vec!["/srv".into()], volatile: false, reset: false };
        let over = plan(Source::Overlay(overlay), None);
        assert!(over.check(&directory(OWNER), &grants).is_ok());
        let fault = over.check(&limited(1), &grants).unwrap_err();
        assert!(fault.message.contains("a layer has no size of its own"), "{fault}");
        let named = |limit, adopt| {
            let (root, directory) = ("/srv".to_owned(), "data".to_owned());
            let name = VolumeName::parse("data").unwrap();
            NamedDirectory { root, name, directory, owner: OWNER, adopt, limit: Some(limit) }
        };
        assert!(Storage::NamedDirectory(named(1, false)).check(&grants).is_ok());
        assert!(Storage::NamedDirectory(named(0, false)).check(&grants).is_err());
        let fault = Storage::NamedDirectory(named(1, true)).check(&grants).unwrap_err();
        assert!(fault.message.contains("leave its `size` out"), "{fault}");
    }

    #[test]
    fn an_overlay_lies_over_directories_or_a_volume_and_its_layer_is_no_volume() {
        let grants = Grants::default();
        let overlay = Overlay { lower: Vec::new(), volatile: false, reset: false };
        let over = plan(Source::Overlay(overlay), None);
        let fault = over.check(&directory(OWNER), &grants).unwrap_err();
        assert!(fault.message.contains("lies over 1 to 16 directories"), "{fault}");
        let below = Some(Below { name: "base".to_owned(), id: None });
        let layer = Storage::Directory(Directory { owner: OWNER, limit: None, over: below });
        assert!(over.check(&layer, &grants).is_ok());
        let fault = plan(Source::Storage, None).check(&layer, &grants).unwrap_err();
        assert!(fault.message.contains("use the source `overlay`"), "{fault}");
    }

    #[test]
    fn a_tmpfs_of_nothing_is_refused() {
        for tmpfs in [Tmpfs { size: Some(0), ..TMPFS }, Tmpfs { inodes: Some(0), ..TMPFS }] {
            let plan = plan(Source::Tmpfs(tmpfs), None);
            assert!(plan.check(&Storage::None, &Grants::default()).is_err(), "{plan:?}");
        }
        assert!(plan(Source::Tmpfs(TMPFS), None).check(&Storage::None, &Grants::default()).is_ok());
    }

    #[test]
    fn storage_that_was_not_made_cannot_be_mounted() {
        let plan = plan(Source::Storage, None);
        assert!(plan.check(&Storage::None, &Grants::default()).is_err());
        assert!(plan.check(&directory(OWNER), &Grants::default()).is_ok());
    }

    #[test]
    fn a_subpath_stays_inside() {
        let storage = directory(OWNER);
        let check =
            |path: &str| plan(Source::Storage, Some(path)).check(&storage, &Grants::default());
        for good in ["a", "a/b c/..d", "ümlaut"] {
            assert!(check(good).is_ok(), "{good}");
        }
        let long = "a".repeat(PATH_MAX + 1);
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b", "a\nb", &long] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        let tmpfs = plan(Source::Tmpfs(TMPFS), Some("a"));
        assert!(tmpfs.check(&storage, &Grants::default()).is_err());
    }
}

#[cfg(test)]
mod grants {
    use wasmvol_plan::grants::{GRANTS_MAX, cure};
    use wasmvol_plan::{DriverName, FaultKind, Grants};

    fn driver() -> DriverName {
        DriverName::parse("nfs").unwrap()
    }

    #[test]
    fn the_command_that_grants_something_is_typed_as_it_is_shown() {
        assert_eq!(cure(Some(&driver()), "image"), "`wasmvol driver grant nfs 'image'`");
        let odd = cure(None, "device=/dev/it's");
        assert_eq!(odd, r"`wasmvol driver grant NAME 'device=/dev/it'\''s'`");
    }

    #[test]
    fn comments_and_blank_lines_grant_nothing() {
        let text = "# dev\n\n   \n\tsuid # for the build farm\r\n";
        let none = Grants { driver: Some(driver()), ..Grants::default() };
        assert_eq!(Grants::parse(&driver(), text), Ok(Grants { suid: true, ..none.clone() }));
        assert_eq!(Grants::parse(&driver(), ""), Ok(none));
    }

    #[test]
    fn an_unknown_line_is_named_and_grants_nothing() {
        let fault = Grants::parse(&driver(), "dev\nsuid,dev\n").unwrap_err();
        assert_eq!(fault.kind, FaultKind::Invalid);
        assert!(fault.message.contains("line 2: `suid,dev`"), "{fault}");
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused() {
        assert!(Grants::parse(&driver(), &"#".repeat(GRANTS_MAX)).is_ok());
        assert!(Grants::parse(&driver(), &"#".repeat(GRANTS_MAX + 1)).is_err());
    }
}

#[cfg(test)]
mod secrets {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use wasmvol_plan::secret::{BYTES_MAX, Bytes, FILE_MAX, FOR_MAX};
    use wasmvol_plan::{DriverName, Fault, FaultKind, Peer, Secret, SecretName, Server};

    fn driver(name: &str) -> DriverName {
        DriverName::parse(name).unwrap()
    }

    fn secret(peers: &[&str], bytes: &[u8]) -> Result<Secret, Fault> {
        let peers = peers.iter().map(|peer| peer.parse().unwrap()).collect();
        Secret::new(vec![driver("cifs")], peers, Bytes::new(bytes.to_owned()))
    }

    fn spent(secret: &Secret, by: &str, host: &str, address: Option<&str>) -> Result<(), Fault> {
        let name = SecretName::parse("nas").unwrap();
        let address = address.map(|address| address.parse::<IpAddr>().unwrap());
        secret.check(&name, &driver(by), Some(Server { host, address }))
    }

    #[test]
    fn a_secret_is_read_back_as_it_was_written_whatever_its_bytes_are() {
        for bytes in [&b"p"[..], b"\n\ndriver x\n", b"\0\xff\r\n", &[b'x'; BYTES_MAX]] {
            let peers = ["fs.example", "10.0.0.0/8", "::1"];
            let file = secret(&peers, bytes).unwrap().file();
            assert!(file.expose().len() <= FILE_MAX);
            let read = Secret::parse(&file).unwrap();
            assert_eq!(read.drivers, [driver("cifs")]);
            assert_eq!(read.peers.iter().map(Peer::to_string).collect::<Vec<_>>(), peers);
            assert_eq!(read.bytes(), bytes);
        }
        let file = secret(&["fs.example"], b"p\n").unwrap().file();
        assert_eq!(file.expose(), b"driver cifs\npeer fs.example\n\np\n");
    }

    #[test]
    fn the_longest_lines_fit_the_file() {
        let name = |n: usize| {
            let label = "a".repeat(61);
            format!("{n:03}.{label}.{label}.{label}.{label}aa").parse().unwrap()
        };
        let drivers = vec![driver(&"d".repeat(32)); FOR_MAX];
        let peers: Vec<Peer> = (0..FOR_MAX).map(name).collect();
        assert_eq!(peers[0].to_string().len(), 253);
        let bytes = Bytes::new(vec![b'x'; BYTES_MAX]);
        let file = Secret::new(drivers, peers, bytes).unwrap().file();
        assert!(file.expose().len() <= FILE_MAX);
        assert!(Secret::parse(&file).is_ok());
    }

    #[test]
    fn nothing_and_too_much_are_refused() {
        assert!(secret(&[], b"p").is_ok());
        assert!(secret(&[], b"").is_err());
        assert!(secret(&[], &[b'x'; BYTES_MAX + 1]).is_err());
        assert!(secret(&["a"; FOR_MAX + 1], b"p").is_err());
        let bytes = || Bytes::new(vec![b'p']);
        assert!(Secret::new(Vec::new(), Vec::new(), bytes()).is_err());
        assert!(Secret::new(vec![driver("a"); FOR_MAX + 1], Vec::new(), bytes()).is_err());
    }

    #[test]
    fn a_file_that_is_none_is_refused_and_not_repeated() {
        for text in [
            "",
            "\n",
            "hunter2",
            "hunter2\n\np",
            "driver hunter2!\n\np",
            "peer hunter2!\n\np",
            "driver cifs\nhunter2 cifs\n\np",
            "driver cifs\n\n",
            "peer a\n\nhunter2",
        ] {
            let fault = Secret::parse(&Bytes::new(text.into())).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Invalid, "{text:?}");
            assert!(!fault.message.contains("hunter2"), "{text:?}: {fault}");
        }
    }

    #[test]
    fn a_secret_is_spent_for_its_drivers_alone() {
        let secret = secret(&["fs.example"], b"p").unwrap();
        assert_eq!(spent(&secret, "cifs", "fs.example", None), Ok(()));
        let fault = spent(&secret, "sshfs", "fs.example", None).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied);
        assert!(fault.message.contains("is not for driver `sshfs`"), "{fault}");
        let cure = "`wasmvol secret set nas --driver sshfs --peer fs.example`";
        assert!(fault.message.contains(cure), "{fault}");
    }

    #[test]
    fn a_secret_goes_to_its_peers_alone() {
        let secret = secret(&["Fs.example", "10.0.0.0/8"], b"p").unwrap();
        for (host, address) in [
            ("fs.example", None),
            ("FS.EXAMPLE", None),
            ("10.1.2.3", None),
            ("other.example", Some("10.1.2.3")),
        ] {
            assert_eq!(spent(&secret, "cifs", host, address), Ok(()), "{host}");
        }
        for (host, address) in [
            ("other.example", None),
            ("other.example", Some("11.0.0.1")),
            ("fs.example.evil", None),
            ("xfs.example", None),
            ("11.0.0.1", None),
            ("", None),
        ] {
            let fault = spent(&secret, "cifs", host, address).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Denied, "{host}");
            assert!(fault.message.contains(&format!("is not for server `{host}`")), "{fault}");
        }
        let fault = spent(&secret, "cifs", "$(reboot)", None).unwrap_err();
        assert!(fault.message.ends_with("--driver cifs --peer HOST`"), "{fault}");
    }

    #[test]
    fn a_secret_without_peers_leaves_the_machine_for_nobody() {
        let secret = secret(&[], b"p").unwrap();
        let name = SecretName::parse("key").unwrap();
        assert_eq!(secret.check(&name, &driver("cifs"), None), Ok(()));
        assert!(spent(&secret, "cifs", "fs.example", None).is_err());
    }

    #[test]
    fn a_secret_with_peers_is_for_no_use_that_names_none() {
        let secret = secret(&["fs.example"], b"p").unwrap();
        let name = SecretName::parse("key").unwrap();
        let fault = secret.check(&name, &driver("cifs"), None).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied);
        assert!(fault.message.contains("is not for a use that names no server"), "{fault}");
        assert!(fault.message.ends_with("`wasmvol secret set key --driver cifs`"), "{fault}");
        // Create asks before anybody knows what it will be spent on.
        assert_eq!(secret.check_driver(&name, &driver("cifs")), Ok(()));
        assert!(secret.check_driver(&name, &driver("sshfs")).is_err());
    }

    #[test]
    fn a_password_is_one_line_without_its_end() {
        for (bytes, password) in [(&b"p w"[..], "p w"), (b"p\n", "p"), (b"p\r\n", "p")] {
            assert_eq!(secret(&[], bytes).unwrap().password(), Ok(password));
        }
        for bytes in [&b"\n"[..], b"p\nq", b"p\n\n", b"p\0", b"\xff"] {
            assert!(secret(&[], bytes).unwrap().password().is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_and_what_it_takes_comes_back(
            bytes in "((driver|peer|x) [a-c.:/0-9*]{0,9}\n){0,3}\n?.{0,9}",
        ) {
            if let Ok(secret) = Secret::parse(&Bytes::new(bytes.into_bytes())) {
                let again = Secret::parse(&secret.file()).unwrap();
                prop_assert_eq!(&again.drivers, &secret.drivers);
                prop_assert_eq!(&again.peers, &secret.peers);
                prop_assert_eq!(again.bytes(), secret.bytes());
            }
        }
    }

    #[test]
    fn what_is_printed_for_a_programmer_shows_no_byte() {
        let shown = format!("{:?}", secret(&["fs.example"], b"hunter2").unwrap());
        assert!(shown.contains("cifs") && !shown.contains("hunter2"), "{shown}");
        assert!(!shown.contains("104"), "{shown}");
    }
}

#[cfg(test)]
mod mountinfo {
    use proptest::prelude::*;
    use wasmvol_plan::mountinfo::{Entry, is_beneath, parse};

    /// As the kernel writes a field.
    fn escape(field: &str) -> String {
        field.chars().fold(String::new(), |mut text, c| {
            match c {
                ' ' | '\t' | '\n' | '\\' | '#' => text.push_str(&format!("\\{:03o}", c as u32)),
                c => text.push(c),
            }
            text
        })
    }

    #[test]
    fn a_line_with_all_optional_fields_is_understood() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:7 propagate_from:3 unbindable - ext3 /dev/root rw,errors=continue";
        let entry = Entry::parse(line).unwrap();
        assert_eq!((entry.mount_id, entry.parent_id, entry.device), (36, 35, (98, 0)));
        assert_eq!((&*entry.root, &*entry.mount_point), ("/mnt1", "/mnt 2"));
        assert_eq!((entry.shared, entry.master), (Some(7), Some(1)));
        assert_eq!((&*entry.filesystem, &*entry.source), ("ext3", "/dev/root"));
    }

    #[test]
    fn a_line_without_optional_fields_or_source_is_understood() {
        let entry = Entry::parse("1 1 0:2 / / rw - rootfs  rw").unwrap();
        assert_eq!((entry.shared, entry.master, &*entry.source), (None, None, ""));
    }

    #[test]
    fn one_broken_line_spoils_the_text() {
        assert_eq!(parse("1 1 0:2 / / rw - rootfs rootfs rw\n2 1 0:3 /"), None);
        assert_eq!(parse("").map(|lines| lines.len()), Some(0));
    }

    #[test]
    fn beneath_ends_at_a_slash() {
        assert!(is_beneath("/a/b", "/a"));
        assert!(is_beneath("/a", "/a"));
        assert!(is_beneath("/a", "/"));
        assert!(!is_beneath("/ab", "/a"));
        assert!(!is_beneath("/", "/a"));
        assert!(is_beneath("/a//deleted", "/a"));
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_is_read_back(
            numbers in any::<(u64, u64, u32, u32, Option<u64>, Option<u64>)>(),
            root in "/\\PC{0,40}", point in "/[ \\\\\t\n#a-z/é]{0,40}", source in "\\PC{1,20}",
        ) {
            let (mount_id, parent_id, major, minor, shared, master) = numbers;
            let tag = |name, group: Option<u64>| group.map(|g| format!("{name}:{g} ")).unwrap_or_default();
            let line = format!(
                "{mount_id} {parent_id} {major}:{minor} {} {} rw,nosuid {}{}- tmpfs {} rw,size=1k",
                escape(&root), escape(&point), tag("shared", shared), tag("master", master), escape(&source),
            );
            let entry = Entry::parse(&line).unwrap();
            prop_assert_eq!((entry.mount_id, entry.parent_id), (mount_id, parent_id));
            prop_assert_eq!((entry.device, entry.shared, entry.master), ((major, minor), shared, master));
            prop_assert_eq!((&*entry.root, &*entry.mount_point), (&*root, &*point));
            prop_assert_eq!(&*entry.source, &*source);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(\\PC|[ \\\\0-9:/\n-]){0,200}") {
            let _ = parse(&text);
        }
    }
}

#[cfg(test)]
mod frame {
    use proptest::prelude::*;
    use wasmvol_plan::frame::{FRAME_MAX, Frame, Mount};
    use wasmvol_plan::{
        Directory, DriverName, Facts, Fault, FaultKind, Id, Owner, Plan, Reply, Request, Source,
        Storage, Tmpfs,
    };

    fn mount() -> Frame<Request> {
        let owner = Owner { uid: 7, gid: 8, mode: 0o2770 };
        let tmpfs = Tmpfs { size: Some(1 << 40), inodes: None, owner };
        let facts = Facts {
            device: (0, 57),
            root: "/".to_owned(),
            filesystem: "tmpfs".to_owned(),
            mount_id: 612,
        };
        let body = Request::Mount(Box::new(Mount {
            id: Id::from_bits(u128::MAX),
            driver: DriverName::parse("tmpfs").unwrap(),
            storage: Storage::Directory(Directory { owner, limit: None, over: None }),
            plan: Plan {
                source: Source::Tmpfs(tmpfs),
                read_only: true,
                no_exec: false,
                subpath: Some("a/b".to_owned()),
                id_map: None,
            },
            peer: Some(1),
            last: Some(facts),
        }));
        Frame { number: u64::MAX, body }
    }

    #[test]
    fn a_frame_comes_back_as_it_went() {
        let frame = mount();
        assert_eq!(Frame::decode(&frame.encode().unwrap()), Ok(frame));
    }

    #[test]
    fn a_frame_with_a_rest_or_without_its_end_is_refused() {
        let bytes = mount().encode().unwrap();
        for end in 0..bytes.len() {
            assert!(Frame::<Request>::decode(&bytes[..end]).is_err(), "{end}");
        }
        assert!(Frame::<Request>::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn a_frame_beyond_the_limit_is_not_made() {
        let fault = Fault::new(FaultKind::Failed, "x".repeat(FRAME_MAX));
        assert!(Frame { number: 1, body: Reply::Failed(fault) }.encode().is_err());
    }

    #[test]
    fn a_name_that_no_edge_would_pass_is_refused_inside_a_frame() {
        let honest = Frame {
            number: 1,
            body: Request::Make {
                id: Id::from_bits(1),
                driver: DriverName::parse("local").unwrap(),
                storage: Storage::None,
                note: Vec::new(),
            },
        };
        let mut bytes = honest.encode().unwrap();
        let at = bytes.windows(5).position(|w| w == b"local").unwrap();
        bytes[at..at + 5].copy_from_slice(b"../..");
        assert!(Frame::<Request>::decode(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Frame::<Request>::decode(&bytes);
            let _ = Frame::<Reply>::decode(&bytes);
        }

        #[test]
        fn a_changed_byte_is_refused_or_another_whole_frame(at in 0usize..90, byte in any::<u8>()) {
            let mut bytes = mount().encode().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(frame) = Frame::<Request>::decode(&bytes) {
                prop_assert!(frame.encode().is_ok());
            }
        }
    }
}
