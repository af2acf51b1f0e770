//! What a driver may ask for of a server, and what an option of a share may not do.

use std::net::IpAddr;

use wasmvol_plan::{DriverName, Grants, MountOption, MountValue, Plan, Share, Source, Storage};

fn granted(grants: &str) -> Result<Grants, String> {
    let driver = DriverName::parse("nas").map_err(|error| error.to_string())?;
    Grants::parse(&driver, grants).map_err(|fault| fault.message)
}

fn share(kind: &str, path: &str, options: &[(&str, MountValue)]) -> Share {
    let option = |(key, value): &(&str, MountValue)| MountOption {
        key: (*key).into(),
        value: value.clone(),
    };
    let (kind, server, path) = (kind.into(), "files.test".into(), path.into());
    Share { kind, server, path, options: options.iter().map(option).collect(), make: None }
}

/// What the check says of a share for which everything is granted.
fn checked(share: Share) -> Result<(), String> {
    let grants =
        "share=nfs:files.test\nshare=nfs4:files.test\nshare=cifs:files.test\nshare=9p:files.test";
    let grants = granted(grants)?;
    let source = Source::Share(share);
    let plan = Plan { source, read_only: false, no_exec: false, subpath: None, id_map: None };
    plan.check(&Storage::None, &grants).map_err(|fault| fault.message)
}

fn text(text: &str) -> MountValue {
    MountValue::Text(text.into())
}

#[test]
fn each_kind_takes_the_options_that_it_is_known_for() {
    let number = MountValue::Number(600);
    let nfs = [("vers", text("4.2")), ("hard", MountValue::Present), ("timeo", number.clone())];
    let password = MountValue::Secret("alice".into());
    let cifs = [("uid", number), ("file_mode", text("0640")), ("password", password)];
    assert_eq!(checked(share("nfs4", "/", &nfs)), Ok(()));
    assert_eq!(checked(share("cifs", "team/inner", &cifs)), Ok(()));
}

#[test]
fn no_option_names_another_server_a_file_or_a_password_in_clear() {
    for (kind, path) in [("nfs", "/export"), ("nfs4", "/export"), ("cifs", "team")] {
        for key in
            ["addr", "ip", "mountaddr", "mounthost", "clientaddr", "source", "unc", "credentials"]
        {
            let error = checked(share(kind, path, &[(key, text("10.9.9.9"))])).expect_err(key);
            assert!(error.contains(&format!("take no mount option `{key}`")), "{error}");
        }
    }
    let error = checked(share("cifs", "team", &[("password", text("sesame"))])).expect_err("clear");
    assert_eq!(error, "mount option `password` takes the name of a secret");
}

#[test]
fn an_option_of_another_type_or_word_is_refused() {
    for (key, value, takes) in [
        ("vers", text("4.2"), "one of 3"),
        ("soft", text("yes"), "no value"),
        ("timeo", text("10"), "a number"),
        ("sec", MountValue::Number(1), "one of sys"),
    ] {
        let error = checked(share("nfs", "/export", &[(key, value)])).expect_err(key);
        assert!(error.starts_with(&format!("mount option `{key}` takes {takes}")), "{error}");
    }
    let error = checked(share("cifs", "team", &[("dir_mode", text("0888"))])).expect_err("mode");
    assert_eq!(error, "mount option `dir_mode` takes an octal mode");
}

#[test]
fn a_path_is_one_that_a_server_of_its_kind_can_share() {
    for (kind, path) in [
        ("nfs", "export"),
        ("nfs4", "/export/../etc"),
        ("nfs4", "/export,addr=10.9.9.9"),
        ("cifs", "/team"),
        ("cifs", "team\\inner"),
        ("cifs", ""),
    ] {
        let error = checked(share(kind, path, &[])).expect_err(path);
        assert!(error.contains(&format!("a server of kind {kind} shares")), "{error}");
    }
    let error = checked(share("9p", "/export", &[])).expect_err("kind");
    assert!(error.contains("use nfs, nfs4 or cifs"), "{error}");
}

#[test]
fn where_a_network_is_granted_each_address_of_a_name_must_lie_in_it() {
    let grants = granted("share=nfs4:10.0.0.0/8\nshare=nfs4:files.test").expect("grants");
    let inside: IpAddr = "10.1.2.3".parse().expect("an address");
    let outside: IpAddr = "192.0.2.1".parse().expect("an address");
    assert_eq!(grants.share("nfs4", "other.test", inside), Ok(()));
    assert_eq!(grants.share("nfs4", "files.test", outside), Ok(()));
    let refused = grants.share("nfs4", "other.test", outside).expect_err("outside").message;
    assert!(refused.contains("`wasmvol driver grant nas 'share=nfs4:192.0.2.1'`"), "{refused}");
    assert!(grants.share("cifs", "files.test", inside).is_err());
}
