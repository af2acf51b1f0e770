//! Does a volume get a disk of EC2's, is that attached while it is mounted and not a moment longer, and gone with the volume?
//!
//! Against moto's EC2, which looks at every signature. The device that appears on a machine once a disk is attached is stood in for by a
//! loop device.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use serde_json::json;
use wasmvol_plan::steps;

use crate::drivers::component;
use crate::support::canary::Canary;
use crate::support::container::Container;
use crate::support::ec2::Ec2;
use crate::support::loops::Loop;
use crate::support::wasmvol::Wasmvol;
use crate::support::{SOON, open_to_all, until};

/// A machine of EC2's: a wasmvol that may use its disks, and what stands in for one that is attached there.
struct Machine {
    device: Loop,
    wasmvol: Wasmvol,
}

impl Machine {
    /// The first machine of an EC2.
    fn of(ec2: &Ec2) -> Self {
        Self::number(ec2, 0)
    }

    fn number(ec2: &Ec2, number: usize) -> Self {
        let machine = Self::bare();
        machine.load(ec2, number, &machine.grants(ec2), machine.device.device());
        machine.keep(&ec2.key);
        machine
    }

    /// One that nothing was set or granted on.
    fn bare() -> Self {
        let wasmvol = Wasmvol::start();
        let device = Loop::blank(&wasmvol.path("disk"), 64 << 20);
        Self { device, wasmvol }
    }

    /// All that it needs.
    fn grants(&self, ec2: &Ec2) -> Vec<String> {
        let (url, device) = (ec2.moto.url(), self.device.device());
        vec!["reveal=ec2".to_owned(), format!("http={url}"), format!("device={device}")]
    }

    /// Loads the driver as an operator would. `device` says where disks appear.
    fn load(&self, ec2: &Ec2, number: usize, grants: &[String], device: &str) {
        let (url, zone, own) = (ec2.moto.url(), &ec2.zone, &ec2.machines[number]);
        let settings = [
            "region=us-east-1",
            "key=ec2",
            &format!("endpoint={url}"),
            &format!("zone={zone}"),
            &format!("instance={own}"),
            &format!("device={device}"),
        ];
        let component = component("drivers/ebs.wasm");
        let mut line = format!("driver load {}", component.display());
        settings.iter().for_each(|setting| line.push_str(&format!(" --setting '{setting}'")));
        grants.iter().for_each(|grant| line.push_str(&format!(" --grant {grant}")));
        self.wasmvol.cli(&line).ok();
    }

    /// Keeps a key for it.
    fn keep(&self, key: &str) {
        let file = self.wasmvol.path("key");
        fs::write(&file, key).unwrap();
        let file = file.display();
        self.wasmvol.cli(&format!("secret set ec2 --driver ebs --file {file}")).ok();
        fs::remove_file(self.wasmvol.path("key")).unwrap();
    }

    fn create(&self, name: &str, options: &[(&str, &str)]) -> Result<(), String> {
        let options: Vec<_> = [("driver", "ebs")].iter().chain(options).copied().collect();
        self.wasmvol.plugin().create(name, &options)
    }

    fn mount(&self, name: &str) -> Result<PathBuf, String> {
        self.wasmvol.plugin().mount(name, "id")
    }

    fn unmount(&self, name: &str) {
        self.wasmvol.plugin().unmount(name, "id").unwrap();
    }

    /// Nothing is half done, or waits for something.
    fn is_untroubled(&self) -> bool {
        self.wasmvol.json("status")["troubles"] == json!([])
    }
}

#[test]
fn a_disk_is_made_and_attached_while_the_volume_is_mounted_and_deleted_with_it() {
    let ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    let options = [("size", "1025m"), ("iops", "4000"), ("encrypted", "true"), ("uid", "7")];
    machine.create("data", &options).unwrap();
    let disk = ec2.only_disk();
    let told = ec2.tells(&disk).unwrap();
    for part in [
        "<size>2</size>",
        "<volumeType>gp3</volumeType>",
        "<iops>4000</iops>",
        "<encrypted>true</encrypted>",
        "<status>available</status>",
        "<key>Name</key><value>data</value>",
        &format!("<availabilityZone>{}</availabilityZone>", ec2.zone),
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }

    for file in ["one", "two"] {
        let path = machine.mount("data").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().uid(), 7);
        let place = ec2.place(&disk).unwrap();
        assert_eq!(place, (ec2.machines[0].clone(), "/dev/xvdba".to_owned()));
        fs::write(path.join(file), "kept").unwrap();
        assert_eq!(fs::read_to_string(path.join("one")).unwrap(), "kept");
        machine.unmount("data");
        assert!(!machine.wasmvol.is_mounted("data"));
        assert_eq!(ec2.place(&disk), None, "it is still attached");
    }

    let (access, secret) = ec2.key.split_once(':').unwrap();
    for part in [access, secret] {
        Canary::of(part).is_nowhere(&machine.wasmvol, &["data"], &[]);
    }
    machine.wasmvol.plugin().remove("data").unwrap();
    assert_eq!(ec2.tells(&disk), None, "it is still there");
    assert!(machine.is_untroubled());
}

#[test]
fn the_device_is_found_by_the_disks_id() {
    let ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    let dev = Dev(PathBuf::from(format!("/dev/wasmvol-it-{}", std::process::id())));
    fs::create_dir(&dev.0).unwrap();
    let granted = format!("device={}", dev.0.display());
    machine.load(&ec2, 0, &[granted], &format!("{}/vol{{id}}", dev.0.display()));
    machine.create("data", &[("size", "1g")]).unwrap();
    let name = ec2.only_disk().replace('-', "");
    let error = machine.mount("data").unwrap_err();
    assert!(error.contains(&name) && error.contains("no such file"), "{error}");
    assert_eq!(ec2.place(&ec2.only_disk()), None, "what is not mounted is not attached");
    let of_loop = machine.device.device().replace("/dev/", "../");
    symlink(of_loop, dev.0.join(&name)).unwrap();
    machine.mount("data").unwrap();
    machine.unmount("data");
}

/// A directory beneath `/dev`.
struct Dev(PathBuf);

impl Drop for Dev {
    fn drop(&mut self) {
        let _removed = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_disk_begins_as_a_snapshot_whose_id_is_kept() {
    let ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    machine.create("copy", &[("snapshot", &ec2.snapshot)]).unwrap();
    let disk = ec2.only_disk();
    let told = ec2.tells(&disk).unwrap();
    assert!(told.contains(&format!("<snapshotId>{}</snapshotId>", ec2.snapshot)), "{told}");
    machine.mount("copy").unwrap();
    machine.unmount("copy");
    let state = format!("disk={disk} snapshot={}", ec2.snapshot);
    let hex: String = state.bytes().map(|byte| format!("{byte:02x}")).collect();
    let export = machine.wasmvol.cli("catalog export").ok();
    assert!(export.contains(&hex), "{state} is not in {export}");
    let error = machine.create("none", &[("snapshot", "snap-0123456789abcdef0")]).unwrap_err();
    assert!(error.contains("InvalidSnapshot.NotFound") && !error.contains('\n'), "{error}");
    assert_eq!(ec2.disks(), [disk]);
    assert!(machine.is_untroubled());
}

#[test]
fn a_disk_that_was_there_stays_when_its_volume_goes() {
    let ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    machine.create("old", &[("volume", &ec2.disk)]).unwrap();
    assert_eq!(ec2.only_disk(), ec2.disk);
    machine.mount("old").unwrap();
    assert_eq!(ec2.place(&ec2.disk).unwrap().0, ec2.machines[0]);
    let error = machine.create("second", &[("volume", &ec2.disk)]).unwrap_err();
    assert!(error.contains("belongs to the volume with id"), "{error}");
    machine.unmount("old");
    machine.wasmvol.plugin().remove("old").unwrap();
    let told = ec2.tells(&ec2.disk).expect("it was deleted");
    assert!(told.contains("<status>available</status>") && !told.contains("wasmvol"), "{told}");
    assert!(machine.is_untroubled());
}

#[test]
fn a_disk_whose_user_wants_it_kept_is_deleted_when_it_is_purged() {
    let ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    machine.create("data", &[("size", "1g"), ("reclaim", "retain")]).unwrap();
    let disk = ec2.only_disk();
    machine.wasmvol.plugin().remove("data").unwrap();
    assert_eq!(ec2.only_disk(), disk);
    let scanned = machine.wasmvol.json("volume scan ebs");
    assert_eq!(scanned["volumes"][0]["state"], "kept", "{scanned}");
    assert_eq!(machine.wasmvol.plugin().list(), [""; 0]);
    let kept = machine.wasmvol.json("volume ls --retained");
    machine.wasmvol.cli(&format!("volume purge {}", kept[0]["id"].as_str().unwrap())).ok();
    assert_eq!(ec2.disks(), [""; 0]);
    assert!(machine.is_untroubled());
}

#[test]
fn a_disk_that_was_kept_is_taken_up_again_by_a_create_of_its_name() {
    let ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    let options = [("size", "1g"), ("reclaim", "retain")];
    machine.create("data", &options).unwrap();
    let disk = ec2.only_disk();
    fs::write(machine.mount("data").unwrap().join("file"), "kept").unwrap();
    machine.unmount("data");
    machine.wasmvol.plugin().remove("data").unwrap();
    let doctor = machine.wasmvol.cli("doctor").stderr;
    assert!(doctor.contains("data of removed volumes is kept, as asked: 1;"), "{doctor}");
    let error = machine.wasmvol.cli("driver unload ebs").refused();
    assert!(error.contains("data (kept as"), "{error}");
    let error = machine.create("data", &[("size", "2g")]).unwrap_err();
    assert!(error.contains("size"), "{error}");
    machine.create("data", &options).unwrap();
    assert_eq!(ec2.disks(), [disk]);
    let file = machine.mount("data").unwrap().join("file");
    assert_eq!(fs::read_to_string(file).unwrap(), "kept");
    machine.unmount("data");
    assert!(machine.is_untroubled());
}

#[test]
fn a_disk_is_not_taken_from_a_container_that_nobody_counts() {
    let ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    machine.create("data", &[("size", "1g")]).unwrap();
    let disk = ec2.only_disk();
    let container = Container::with(&machine.mount("data").unwrap());
    machine.unmount("data");
    let troubles = machine.wasmvol.json("status")["troubles"].to_string();
    assert!(troubles.contains("draining"), "{troubles}");
    assert!(ec2.place(&disk).is_some(), "it was taken from under the container");
    let error = machine.wasmvol.cli("volume rm --force data").refused();
    assert!(error.contains("in use"), "{error}");
    drop(container);
    until("the disk is detached", SOON, || ec2.place(&disk).is_none().then_some(()));
    until("nothing waits", SOON, || machine.is_untroubled().then_some(()));
}

#[test]
fn a_volume_whose_backend_does_not_let_it_go_is_removed_by_force_alone() {
    let mut ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    machine.create("data", &[("size", "1g"), ("reclaim", "retain")]).unwrap();
    machine.mount("data").unwrap();
    ec2.moto.stop();
    machine.unmount("data");
    assert!(!machine.wasmvol.is_mounted("data"));
    let error = machine.wasmvol.cli("volume rm data").refused();
    assert!(error.contains("is still attached: driver `ebs`: "), "{error}");
    machine.wasmvol.cli("volume rm --force data").ok();
    let kept = machine.wasmvol.json("volume ls --retained");
    let id = kept[0]["id"].as_str().unwrap();
    machine.wasmvol.cli(&format!("volume purge {id}")).refused();
    let doctor = machine.wasmvol.cli("doctor").stdout;
    assert!(
        doctor.contains("at the backend of driver `ebs` is not gone: driver `ebs`"),
        "{doctor}"
    );
    machine.wasmvol.cli(&format!("volume purge --force {id}")).ok();
    assert!(machine.is_untroubled());
}

#[test]
fn another_machine_finds_it_and_neither_takes_nor_deletes_it() {
    let ec2 = Ec2::start();
    let [first, second] = [0, 1].map(|number| Machine::number(&ec2, number));
    first.create("data", &[("size", "1g"), ("uid", "7")]).unwrap();
    let disk = ec2.only_disk();
    second.wasmvol.cli("volume scan ebs").ok();
    // The same options are the same volume.
    second.create("data", &[("size", "1g"), ("uid", "7")]).unwrap();
    assert_eq!(ec2.disks(), std::slice::from_ref(&disk));
    first.mount("data").unwrap();
    let error = second.mount("data").unwrap_err();
    let why = format!("`{disk}` is attached to `{}`: unmount it there", ec2.machines[0]);
    assert!(error.contains(&why), "{error}");
    assert_eq!(ec2.place(&disk).unwrap().0, ec2.machines[0]);
    first.unmount("data");
    second.mount("data").unwrap();
    assert_eq!(ec2.place(&disk).unwrap().0, ec2.machines[1]);
    second.unmount("data");
    second.wasmvol.plugin().remove("data").unwrap();
    assert_eq!(ec2.disks(), [disk]);
    first.wasmvol.plugin().remove("data").unwrap();
    assert_eq!(ec2.disks(), [""; 0]);
}

#[test]
fn a_key_that_ec2_does_not_know_is_a_clear_error_and_leaves_nothing() {
    let ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    let canary = Canary::new();
    let (access, _) = ec2.key.split_once(':').unwrap();
    let mut errors = Vec::new();
    for access in [access, "NOBODY"] {
        machine.keep(&format!("{access}:{}", canary.bytes()));
        errors.push(machine.create("data", &[("size", "1g")]).unwrap_err());
    }
    machine.keep(canary.bytes());
    errors.push(machine.create("data", &[("size", "1g")]).unwrap_err());
    let refused = "EC2 refuses: AWS was not able to validate the provided access credentials";
    for (error, why) in errors.iter().zip([refused, refused, "secret `ec2` is not one line"]) {
        assert!(error.starts_with(&format!("driver `ebs`: {why}")), "{error}");
        assert!(!error.contains('\n') && !error.contains("undoing"), "{error}");
    }
    canary.is_nowhere(&machine.wasmvol, &[], &errors);
    assert_eq!((ec2.disks(), machine.wasmvol.plugin().list()), (vec![], vec![]));
    assert!(machine.is_untroubled());
    machine.keep(&ec2.key);
    machine.create("data", &[("size", "1g")]).unwrap();
}

#[test]
fn what_is_not_set_granted_or_kept_is_named_and_leaves_nothing() {
    let ec2 = Ec2::start();
    let machine = Machine::bare();
    let create = || machine.create("data", &[("size", "1g")]);
    let load = |grants: &[String]| machine.load(&ec2, 0, grants, machine.device.device());
    let refused = |error: String, why: &str| {
        assert!(error.starts_with("driver `ebs`: ") && error.contains(why), "{why}: {error}");
        assert!(!error.contains("undoing") && !error.contains('\n'), "{error}");
        assert_eq!(machine.wasmvol.plugin().list(), [""; 0]);
        assert!(machine.is_untroubled());
    };
    let cure = |grant: &str| format!("`wasmvol driver grant ebs '{grant}'`");
    // As it came with wasmvol.
    refused(
        create().unwrap_err(),
        "setting `instance` is missing: give it with `wasmvol driver set ebs instance=…`",
    );
    machine.wasmvol.cli("volume scan ebs").ok();
    load(&[]);
    let grants = machine.grants(&ec2);
    refused(create().unwrap_err(), &cure(&grants[0]));
    load(&grants[..1]);
    refused(create().unwrap_err(), "no secret `ec2` is kept");
    machine.keep(&ec2.key);
    // A request is refused while its body is still being written, or before, or after.
    for _ in 0..20 {
        refused(create().unwrap_err(), &cure(&grants[1]));
    }
    load(&grants[..2]);
    create().unwrap();
    let error = machine.mount("data").unwrap_err();
    assert!(error.contains(&cure(&grants[2])), "{error}");
    assert_eq!(ec2.place(&ec2.only_disk()), None, "what is not mounted is not attached");
    load(&grants);
    machine.mount("data").unwrap();
    machine.unmount("data");
}

#[test]
fn where_ec2_is_away_a_create_says_so_and_is_undone_once_it_is_back() {
    let mut ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    ec2.moto.stop();
    let error = machine.create("data", &[("size", "1g")]).unwrap_err();
    let why = format!("`{}` cannot be asked: it refuses the connection", ec2.moto.url());
    assert!(error.starts_with(&format!("driver `ebs`: {why}")), "{error}");
    assert!(!error.contains('\n'), "{error}");
    assert_eq!(machine.wasmvol.plugin().list(), [""; 0]);
    ec2.moto.begin_anew();
    until("nothing half made is left", SOON, || machine.is_untroubled().then_some(()));
}

#[test]
fn while_ec2_hangs_an_unmount_is_answered_and_the_disk_is_detached_once_it_goes_on() {
    let ec2 = Ec2::start();
    let machine = Machine::of(&ec2);
    machine.create("data", &[("size", "1g")]).unwrap();
    let disk = ec2.only_disk();
    machine.mount("data").unwrap();
    ec2.moto.hang();
    machine.unmount("data");
    assert!(!machine.wasmvol.is_mounted("data"));
    let troubles = machine.wasmvol.json("status")["troubles"].to_string();
    ec2.moto.go_on();
    assert!(troubles.contains("data"), "{troubles}");
    until("the disk is detached", SOON, || ec2.place(&disk).is_none().then_some(()));
    until("nothing waits", SOON, || machine.is_untroubled().then_some(()));
}

/// Kills the daemon at a step of a verb, and waits until it is back.
fn killed_at(machine: &mut Machine, step: &str, endpoint: &str, body: &str) {
    let flag = open_to_all(&format!("ebs-{step}"));
    machine.wasmvol.kill_mountd();
    let armed = format!("{step}@{}", flag.display());
    machine.wasmvol.set_variables(&[(steps::KILL_AT, &armed)]);
    machine.wasmvol.run();
    fs::write(&flag, "").unwrap();
    let socket = machine.wasmvol.plugin();
    let answer = socket.try_call(endpoint, body);
    assert!(!flag.exists(), "it did not come to `{step}`: {answer:?}");
    machine.wasmvol.wait_ready();
}

#[test]
fn killed_between_attach_and_mount_it_detaches_the_disk() {
    let ec2 = Ec2::start();
    let mut machine = Machine::of(&ec2);
    machine.create("data", &[("size", "1g")]).unwrap();
    let disk = ec2.only_disk();
    killed_at(&mut machine, "reach.done", "VolumeDriver.Mount", r#"{"Name":"data","ID":"id"}"#);
    until("the disk is detached", SOON, || ec2.place(&disk).is_none().then_some(()));
    assert!(!machine.wasmvol.is_mounted("data"));
    machine.mount("data").unwrap();
    assert_eq!(ec2.place(&disk).unwrap().0, ec2.machines[0]);
    machine.unmount("data");
    assert_eq!(ec2.place(&disk), None);
}

#[test]
fn killed_after_a_disk_was_made_it_is_deleted_though_nobody_had_kept_its_id() {
    let ec2 = Ec2::start();
    let mut machine = Machine::of(&ec2);
    let body = r#"{"Name":"data","Opts":{"driver":"ebs","size":"1g"}}"#;
    killed_at(&mut machine, "create.driver", "VolumeDriver.Create", body);
    until("the disk is deleted", SOON, || ec2.disks().is_empty().then_some(()));
    assert_eq!(machine.wasmvol.plugin().list(), [""; 0]);
    machine.create("data", &[("size", "1g")]).unwrap();
    ec2.only_disk();
}
