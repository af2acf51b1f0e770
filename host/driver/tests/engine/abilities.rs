//! Abilities that are misused: steps without end, answers that lie, and a directory that is filled with what nobody wants.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use wasmvol_driver::{Answer, CallError, Condition, Progress, Scope};

use crate::stage::{compiler, engine, guest, name, resident, rogue, volume_with};

fn computed(error: &CallError, seconds: u64) -> bool {
    *error == CallError::OutOfBounds(format!("{seconds} s of computing"))
}

#[test]
fn an_ability_that_loops_ends_soon_also_where_it_may_wait_long() {
    let driver = rogue();
    let looping = |verb: &str| volume_with(&format!("{verb}-loop"), "");
    let none = Scope::default;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let asked = [
            scope.spawn(|| driver.attach(&looping("attach"), none()).err()),
            scope.spawn(|| driver.detach(&looping("detach"), none()).err()),
            scope.spawn(|| driver.resize(&looping("resize"), 1, none()).err()),
            scope.spawn(|| driver.migrate(&looping("migrate"), "0.0.9", none()).err()),
            scope.spawn(|| driver.check(&looping("check"), none()).err()),
        ];
        for asked in asked {
            let error = asked.join().expect("thread").expect("endless");
            assert!([2, 5].iter().any(|limit| computed(&error, *limit)), "{error:?}");
        }
    });
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}

#[test]
fn steps_are_asked_for_neither_at_once_nor_late() {
    let driver = rogue();
    let again = driver.attach(&volume_with("attach-again", ""), Scope::default());
    let after = Duration::from_millis(200);
    assert_eq!(again, Ok(Answer::from(Progress::Again { state: vec![1], after })));
    let late = driver.attach(&volume_with("attach-late", ""), Scope::default());
    let why = "wants to be asked after more than 30000 ms".to_owned();
    assert_eq!(late, Err(CallError::Contract(why.clone())));
    assert_eq!(
        driver.detach(&volume_with("detach-late", ""), Scope::default()),
        Err(CallError::Contract(why))
    );
}

#[test]
fn states_of_abilities_are_bounded_as_any() {
    let driver = rogue();
    let why = CallError::Contract("state has 65537 bytes: at most 65536 are allowed".to_owned());
    let none = Scope::default;
    assert_eq!(driver.attach(&volume_with("attach-state", ""), none()), Err(why.clone()));
    assert_eq!(driver.migrate(&volume_with("migrate-large", ""), "0.0.9", none()), Err(why));
}

#[test]
fn what_is_said_of_health_is_one_line() {
    let driver = rogue();
    let report = driver.check(&volume_with("check-long", ""), Scope::default()).expect("long");
    assert_eq!(report.condition, Condition::Degraded);
    assert!(report.message.starts_with("\\u{1b}[2Jsick\\u{a}") && report.message.len() <= 1024);
    let error = driver.check(&volume_with("check-giant", ""), Scope::default());
    assert_eq!(error, Err(CallError::OutOfBounds("1 MiB in one answer".to_owned())));
}

/// What comes of filling that directory.
fn populate(act: &str, with: &str, directory: &Path) -> Result<Vec<u8>, String> {
    let directory = File::open(directory).expect("directory").into();
    let filled = rogue().populate(&volume_with(act, with), directory, Scope::default());
    filled.map(|answer| answer.value.state).map_err(|error| error.to_string())
}

#[test]
fn a_volume_is_filled_and_nothing_beside_it() {
    let place = tempfile::tempdir().expect("place");
    let volume = place.path().join("volume");
    fs::create_dir(&volume).expect("volume");
    assert_eq!(populate("populate", "", &volume).as_deref(), Ok(&b"filled"[..]));
    assert_eq!(fs::read_to_string(volume.join("greeting")).expect("greeting"), "hello");
    // What leads out is there before it, too.
    symlink("/etc", volume.join("planted")).expect("link");
    populate("populate-out", "", &volume).expect("it found no way out");
    let beside: Vec<_> = fs::read_dir(place.path()).expect("place").collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
}

#[test]
fn programs_are_files_of_the_volume() {
    let bits = |path: &Path| fs::metadata(path).expect("file").permissions().mode() & 0o111;
    let fill = |with: &str| {
        let volume = tempfile::tempdir().expect("volume");
        let filled = populate("populate-executable", with, volume.path());
        (filled, bits(&volume.path().join("greeting")))
    };
    assert_eq!(fill("greeting"), (Ok(b"filled".to_vec()), 0o111));
    for with in ["link", "bin/sh", "../sh", "/bin/sh", "directory", "nothing", "", "gree\u{0}ting"]
    {
        let (filled, bits) = fill(with);
        let error = filled.expect_err(with);
        assert!(error.contains(" cannot be made executable: "), "{with}: {error}");
        assert_eq!((error.lines().count(), bits), (1, 0), "{with}: {error}");
    }
}

#[test]
fn an_answer_with_too_many_programs_or_too_large_ones_is_refused() {
    let volume = tempfile::tempdir().expect("volume");
    let error = populate("populate-executables", "", volume.path()).expect_err("too many");
    assert_eq!(
        error,
        "driver broke the contract: populate has 100001 executables: at most 100000 are allowed"
    );
    let error = populate("populate-giant", "", volume.path()).expect_err("too large");
    assert_eq!(error, "driver asked for more than its limit of 16 MiB in one answer");
}

#[test]
fn directories_that_are_read_and_files_that_are_open_are_bounded() {
    for act in ["populate-listings", "populate-open"] {
        let volume = tempfile::tempdir().expect("volume");
        let before = resident();
        let error = populate(act, "", volume.path()).expect_err(act);
        assert_eq!(error, "driver asked for more than its limit of 128 host resources", "{act}");
        // Each listing of its own would be a megabyte and more; other tests run beside this one.
        let grown = resident().saturating_sub(before);
        assert!(grown < 96 << 20, "{act}: {grown} bytes more");
    }
}

#[test]
fn a_disk_that_is_shared_with_others_is_not_filled() {
    for act in ["populate-disk", "populate-files", "populate-directories", "populate-links"] {
        let disk = Disk::new("64m");
        let [cache, volume] = ["cache", "volume"].map(|name| disk.0.path().join(name));
        fs::create_dir(&cache).expect("cache");
        fs::create_dir(&volume).expect("volume");
        let engine = engine(&cache, compiler(), 4);
        let driver = engine.load(&name("filling"), &guest("rogue"), [].into()).expect("loads");
        let directory = File::open(&volume).expect("directory").into();
        let filled = driver.populate(&volume_with(act, "500"), directory, Scope::default());
        let error = filled.expect_err(act).to_string();
        let start = "driver asked for more than its limit of all but ";
        assert!(error.starts_with(start) && error.ends_with(" of the disk"), "{act}: {error}");
        // There is still room for the others.
        fs::write(cache.join("other"), vec![1; 64 << 10]).expect("room");
    }
}

#[test]
fn a_disk_that_shows_late_what_is_written_to_it_is_not_filled() {
    let fill = |cache: &Path, volume: &Path, is_thin| {
        let engine = engine(cache, compiler(), 4);
        let driver = engine.load(&name("filling"), &guest("rogue"), [].into()).expect("loads");
        let directory = File::open(volume).expect("directory").into();
        let scope = Scope { is_thin, ..Scope::default() };
        // As fast as some disk: what is written between two looks is less than what is to be left.
        let filled = driver.populate(&volume_with("populate-disk", "100"), directory, scope);
        let error = filled.expect_err("too much").to_string();
        let start = "driver asked for more than its limit of all but ";
        assert!(error.starts_with(start) && error.ends_with(" MiB of the disk"), "{error}");
    };
    // An image whose blocks are taken from the disk as they are written.
    let disk = Disk::new("256m");
    let cache = disk.0.path().join("cache");
    fs::create_dir(&cache).expect("cache");
    // What ext4 may write at any time after its first mount is written before.
    let ext4 = "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0";
    for format in [ext4, "mkfs.xfs -q", "mkfs.btrfs -q"] {
        let image = Disk::of_image(&disk.0.path().join("image"), "2g", format);
        fill(&cache, image.0.path(), true);
        drop(image);
        // All of it is written now, and there is still room for the others.
        fs::write(cache.join("other"), vec![1; 4 << 20]).expect(format);
    }
    // A file system that counts what is written once it is on its disk.
    let place = Disk::new("300m");
    let disk = Disk::of_image(&place.0.path().join("image"), "256m", "mkfs.btrfs -q");
    let [cache, volume] = ["cache", "volume"].map(|name| disk.0.path().join(name));
    fs::create_dir(&cache).expect("cache");
    fs::create_dir(&volume).expect("volume");
    fill(&cache, &volume, false);
    fs::write(cache.join("other"), vec![1; 4 << 20]).expect("room");
    rustix::fs::syncfs(File::open(&cache).expect("cache")).expect("room");
}

#[test]
fn a_disk_of_its_own_may_be_filled_to_its_end() {
    let disk = Disk::new("16m");
    let error = populate("populate-disk", "", disk.0.path()).expect_err("full");
    assert_eq!(error, "I/O error (os error 29): its volume is full");
}

/// A small disk of the test's own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let place = tempfile::tempdir().expect("place");
        let options = format!("size={size},nr_inodes=4000");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "disk"]).arg(place.path());
        assert!(mount.status().expect("mount").success(), "mounting needs root");
        Self(place)
    }

    /// One in a new file that takes room as it is filled.
    fn of_image(file: &Path, size: &str, format: &str) -> Self {
        let place = tempfile::tempdir().expect("place");
        let line = "rm -f $0 && truncate -s $2 $0 && $3 $0 && exec mount -o loop $0 $1";
        let mut mount = Command::new("sh");
        mount.args(["-ec", line]).args([file, place.path()]).args([size, format]);
        assert!(mount.status().expect("mount").success(), "{format}: mounting needs root");
        Self(place)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
