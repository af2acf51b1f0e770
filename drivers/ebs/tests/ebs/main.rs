//! What the driver asks of EC2, and what it makes of the answers.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what it expects by failing"
)]

mod cloud;

use cloud::{Cloud, SETTINGS};
use ebs::Ebs;
use wasmvol_sdk::contract::{Device, Source};
use wasmvol_sdk::{
    Attachment, Condition, Driver, Error, ErrorCode, Health, Owner, Reclaim, Result, Storage,
    Volume, testing,
};

fn volume(options: &[(&'static str, &'static str)]) -> Volume {
    testing::volume::<Ebs>("data", options.iter().copied()).unwrap()
}

/// A volume that was made in this cloud.
fn made(cloud: &Cloud, options: &[(&'static str, &'static str)]) -> Volume {
    let mut volume = volume(options);
    let created = cloud.run(|| Ebs::create(&volume)).unwrap();
    assert_eq!(created.storage, Storage::None);
    volume.state = created.state;
    volume
}

fn refused(cloud: &Cloud, options: &[(&'static str, &'static str)]) -> Error {
    let volume = volume(options);
    cloud.run(|| Ebs::create(&volume)).unwrap_err()
}

fn device(volume: &Volume) -> Device {
    let Source::Device(device) = Ebs::path(volume).unwrap().source else { panic!() };
    device
}

#[test]
fn it_keeps_the_contract() {
    let cloud = Cloud::default();
    cloud.run(|| testing::conformance::<Ebs>([("size", "1g"), ("filesystem", "xfs")]));
    assert_eq!(cloud.0.borrow().len(), 0, "conformance removes what it makes");
}

#[test]
fn a_disk_is_made_with_what_the_user_says_in_whole_gib_and_with_tags_that_tell_of_it() {
    let cloud = Cloud::default();
    let volume = made(&cloud, &[("size", "1025m"), ("kms-key", "alias/a&b"), ("iops", "4000")]);
    let (id, disk) = cloud.only();
    assert_eq!(disk.token, volume.id);
    for (key, value) in [
        ("Size", "2"),
        ("VolumeType", "gp3"),
        ("Iops", "4000"),
        ("AvailabilityZone", "us-east-1a"),
        ("KmsKeyId", "alias/a&b"),
        ("Encrypted", "true"),
    ] {
        assert_eq!(disk.given.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(disk.given.get("Throughput"), None);
    assert_eq!((disk.tags["Name"].as_str(), &disk.tags["wasmvol:id"]), ("data", &volume.id));
    assert_eq!(volume.state, format!("disk={id}").as_bytes());
}

#[test]
fn the_snapshot_that_a_disk_is_made_from_is_kept_in_the_state() {
    let cloud = Cloud::default();
    let given = [("snapshot", "snap-7"), ("zone", "us-east-1b"), ("encrypted", "false")];
    let mut volume = made(&cloud, &given);
    let (id, disk) = cloud.only();
    assert_eq!(disk.given["SnapshotId"], "snap-7");
    assert_eq!(
        (disk.given["AvailabilityZone"].as_str(), disk.given.get("Size")),
        ("us-east-1b", None)
    );
    assert_eq!(disk.given["Encrypted"], "false");
    cloud.steps(&mut volume, Ebs::attach).unwrap();
    let state = format!("disk={id} snapshot=snap-7 device=/dev/xvdba");
    assert_eq!(volume.state, state.as_bytes());
    cloud.steps(&mut volume, Ebs::detach).unwrap();
    assert_eq!(volume.state, format!("disk={id} snapshot=snap-7").as_bytes());
}

#[test]
fn it_is_attached_and_detached_in_steps_and_what_is_done_is_done_in_one() {
    let cloud = Cloud::default();
    let mut volume = made(&cloud, &[("size", "1g")]);
    // Creating, available, attaching, attached.
    assert_eq!(cloud.steps(&mut volume, Ebs::attach), Ok(4));
    assert_eq!(cloud.only().1.at.unwrap().2, "attached");
    assert_eq!(cloud.steps(&mut volume, Ebs::attach), Ok(1));
    // Attached, detaching, available.
    assert_eq!(cloud.steps(&mut volume, Ebs::detach), Ok(3));
    assert_eq!(cloud.only().1.status, "available");
    assert_eq!(cloud.steps(&mut volume, Ebs::detach), Ok(1));
}

#[test]
fn each_disk_of_a_machine_has_a_device_name_of_its_own() {
    let cloud = Cloud::default();
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut volume = made(&cloud, &[("size", "1g")]);
        cloud.steps(&mut volume, Ebs::attach).unwrap();
        let state = String::from_utf8(volume.state).unwrap();
        names.push(state.split_once("device=").unwrap().1.to_owned());
    }
    assert_eq!(names, ["/dev/xvdba", "/dev/xvdbb"]);
}

#[test]
fn a_disk_at_another_machine_is_not_taken_from_it() {
    let cloud = Cloud::default();
    let mut volume = made(&cloud, &[("size", "1g")]);
    let (id, disk) = cloud.only();
    let at = |state: &str| {
        let at = ["i-there", "/dev/xvdf", state].map(str::to_owned);
        let disk = cloud::Disk { status: "in-use".into(), at: Some(at.into()), ..disk.clone() };
        cloud.0.borrow_mut().insert(id.clone(), disk);
    };
    at("attached");
    let error = cloud.steps(&mut volume, Ebs::attach).unwrap_err();
    assert_eq!(error.code, ErrorCode::InUse);
    assert_eq!(error.message, format!("`{id}` is attached to `i-there`: unmount it there"));
    assert_eq!(cloud.steps(&mut volume, Ebs::detach), Ok(1));
    assert_eq!(cloud.only().1.at.unwrap().2, "attached", "it was detached elsewhere");
    assert_eq!(cloud.run(|| Ebs::remove(&volume)).unwrap_err().code, ErrorCode::InUse);
    // Once it is on its way out there, that is waited for.
    at("detaching");
    cloud.steps(&mut volume, Ebs::attach).unwrap();
    assert_eq!(cloud.only().1.at.unwrap().0, "i-here");
}

#[test]
fn what_was_made_is_deleted_also_by_its_tag_alone_and_what_another_machine_made_is_not() {
    let cloud = Cloud::default();
    let remove = |volume: &Volume| cloud.run(|| Ebs::remove(volume));
    let volume = made(&cloud, &[("size", "1g")]);
    // Who found it has another id for it.
    let theirs = Volume { id: "0".repeat(32), ..volume.clone() };
    assert_eq!(remove(&theirs), Ok(Reclaim::Retain));
    cloud.only();
    // A crash came before the state was kept.
    let lost = Volume { state: Vec::new(), ..volume.clone() };
    assert_eq!(remove(&lost), Ok(Reclaim::Delete));
    assert_eq!(cloud.0.borrow().len(), 0);
    assert_eq!(remove(&volume), Ok(Reclaim::Delete));
}

#[test]
fn a_disk_that_is_there_is_adopted_by_one_volume_and_never_deleted() {
    let cloud = Cloud::default();
    cloud.put("vol-0a", "available");
    let adopted = made(&cloud, &[("volume", "vol-0a")]);
    assert_eq!(adopted.state, b"disk=vol-0a");
    assert_eq!(cloud.run(|| Ebs::create(&adopted)).unwrap().state, b"disk=vol-0a");
    let error = refused(&cloud, &[("volume", "vol-0a")]);
    let why = format!("option `volume`: `vol-0a` belongs to the volume with id {}", adopted.id);
    assert_eq!(error.message, why);
    for _ in 0..2 {
        assert_eq!(cloud.run(|| Ebs::remove(&adopted)), Ok(Reclaim::Retain));
    }
    let (_, disk) = cloud.only();
    assert_eq!(disk.tags.len(), 0, "{disk:?}");
    made(&cloud, &[("volume", "vol-0a")]);
}

#[test]
fn a_disk_is_not_adopted_where_somebody_has_it_or_with_options_that_would_do_nothing() {
    let cloud = Cloud::default();
    cloud.put("vol-0a", "in-use");
    for (options, why) in [
        (vec![("volume", "vol-0a")], "option `volume`: `vol-0a` is in-use: detach it first"),
        (vec![("volume", "vol-0b")], "option `volume`: `vol-0b` is not there"),
        (
            vec![("volume", "vol-0a"), ("iops", "1")],
            "option `iops`: is for a disk that is made: leave it out",
        ),
        (vec![], "option `size`: is missing: it may be left out with `snapshot` or `volume` alone"),
        (vec![("size", "1g"), ("filesystem", "zfs")], "option `filesystem`: use `ext4` or `xfs`"),
        (vec![("size", "1g"), ("uid", "-1")], "option `uid` must be at least 0: `-1`"),
    ] {
        assert_eq!(refused(&cloud, &options).message, why);
    }
    assert_eq!(cloud.only().1.tags.len(), 0);
}

#[test]
fn the_plan_is_the_device_of_that_disk_with_a_file_system_where_it_is_blank() {
    let mut volume = volume(&[("size", "1g"), ("filesystem", "xfs"), ("uid", "7")]);
    volume.state = b"disk=vol-0abc snapshot=snap-1 device=/dev/xvdbc".into();
    let plan = device(&volume);
    assert_eq!(plan.path, "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0abc");
    assert_eq!(plan.filesystem, "xfs");
    assert_eq!(plan.make, Some(Owner { uid: 7, gid: 0, mode: 0o755 }));
    let on_xen = testing::with_settings([("device", "/dev/{name}")], || device(&volume));
    assert_eq!(on_xen.path, "/dev/xvdbc");
    let lost = Volume { state: Vec::new(), ..volume };
    assert_eq!(Ebs::path(&lost).unwrap_err().code, ErrorCode::Internal);
}

#[test]
fn other_machines_find_it_as_it_was_made() {
    let cloud = Cloud::default();
    assert_eq!(cloud.run_with(vec![], Ebs::list), Ok(Vec::new()), "nobody has set it up");
    let volume = made(&cloud, &[("size", "1g"), ("encrypted", ""), ("iops", "3000")]);
    cloud.put("vol-0a", "available");
    let found = cloud.run(Ebs::list).unwrap();
    let [one] = &found[..] else { panic!("{found:?}") };
    assert_eq!((&one.name, one.id.as_ref()), (&volume.name, Some(&volume.id)));
    assert_eq!((&one.options, &one.state, one.owned), (&volume.options, &volume.state, true));
    // Of two of one name there is one.
    made(&cloud, &[("size", "2g")]);
    assert_eq!(cloud.run(Ebs::list), Ok(found));
    // A machine of another zone could not have it.
    let elsewhere =
        SETTINGS.map(|(key, value)| if key == "zone" { (key, "z") } else { (key, value) });
    assert_eq!(cloud.run_with(elsewhere.to_vec(), Ebs::list), Ok(Vec::new()));
}

#[test]
fn its_health_is_that_of_its_attachment() {
    let cloud = Cloud::default();
    let mut volume = made(&cloud, &[("size", "1g")]);
    let condition = |volume: &Volume| cloud.run(|| Ebs::check(volume)).unwrap().condition;
    assert_eq!(condition(&volume), Condition::Unreachable);
    cloud.steps(&mut volume, Ebs::attach).unwrap();
    assert_eq!(condition(&volume), Condition::Healthy);
    cloud.run(|| Ebs::detach(&volume)).unwrap();
    assert_eq!(condition(&volume), Condition::Degraded);
    cloud.0.borrow_mut().clear();
    assert_eq!(condition(&volume), Condition::Unreachable);
    assert_eq!(cloud.steps(&mut volume, Ebs::detach), Ok(1), "what is gone is detached");
}

#[test]
fn what_the_operator_has_not_set_is_named_and_nothing_has_to_be_undone() {
    let cloud = Cloud::default();
    for missing in ["region", "zone", "instance", "key"] {
        let settings: Vec<_> = SETTINGS.into_iter().filter(|(key, _)| *key != missing).collect();
        let volume = volume(&[("size", "1g")]);
        let error = cloud.run_with(settings.clone(), || Ebs::create(&volume)).unwrap_err();
        let why = format!(
            "setting `{missing}` is missing: give it with `wasmvol driver set NAME {missing}=…`"
        );
        assert_eq!(error.message, why);
        assert_eq!(cloud.run_with(settings, || Ebs::remove(&volume)), Ok(Reclaim::Delete));
    }
    assert_eq!(cloud.0.borrow().len(), 0);
}

#[test]
fn a_key_that_is_none_is_refused_and_not_repeated_and_nothing_has_to_be_undone() {
    let volume = volume(&[("size", "1g")]);
    let ask = || -> Result<_> { Ok((Ebs::create(&volume), Ebs::remove(&volume)?)) };
    let with_key = || testing::with_secrets([("ec2", "hunter2")], ask);
    let (created, removed) = testing::with_settings(SETTINGS, with_key).unwrap();
    let error = created.unwrap_err();
    assert!(error.message.starts_with("secret `ec2` is not one line `ACCESS:SECRET`"), "{error}");
    assert!(!error.message.contains("hunter2"), "{error}");
    assert_eq!(removed, Reclaim::Delete);
}

#[test]
fn where_ec2_is_not_reached_it_is_not_known_whether_there_is_something_to_delete() {
    let volume = volume(&[("size", "1g")]);
    let away = |_| Err(Error::new(ErrorCode::Unavailable, "it refuses the connection"));
    let ask = || testing::with_http(away, || (Ebs::create(&volume), Ebs::remove(&volume)));
    let key = [("ec2", "ACCESS:SECRET")];
    let (created, removed) = testing::with_secrets(key, || testing::with_settings(SETTINGS, ask));
    assert_eq!(created.unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(removed.unwrap_err().code, ErrorCode::Unavailable);
}
