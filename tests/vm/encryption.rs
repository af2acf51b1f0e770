//! Encrypted images: is the disk without a word of what is in the volume, does only its secret open it, and does nothing of it stay?
//!
//! The kernel of this machine maps encrypted devices, which many do not.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::statvfs;

use crate::support::canary::Canary;
use crate::support::shelf::loops;
use crate::support::wasmvol::{PROGRAMS, Wasmvol};
use crate::support::{SOON, until};

const MIB: u64 = 1 << 20;
/// What is written into a volume.
const WORDS: &str = "nobody who has the disk reads these words";

/// A wasmvol whose images may be encrypted by the secret `vault`.
fn with_a_secret() -> (Wasmvol, Canary) {
    let wasmvol = Wasmvol::start();
    let image = PROGRAMS.parent().unwrap().join("guests/image.wasm");
    wasmvol.cli(&format!("driver load {} --grant image", image.display())).ok();
    let canary = Canary::new();
    canary.set(&wasmvol, "vault", "image", "");
    (wasmvol, canary)
}

/// The one file of all images.
fn file(wasmvol: &Wasmvol) -> PathBuf {
    let ids = wasmvol.entries("volumes");
    assert_eq!(ids.len(), 1);
    wasmvol.state().join("volumes").join(&ids[0]).join("image")
}

/// The mapped devices of its volumes that the kernel has.
fn mapped(wasmvol: &Wasmvol) -> usize {
    let ids = wasmvol.entries("volumes");
    let name = |device: fs::DirEntry| fs::read_to_string(device.path().join("dm/name"));
    let devices =
        fs::read_dir("/sys/block").unwrap().filter_map(|device| name(device.unwrap()).ok());
    devices.filter(|name| ids.iter().any(|id| name.contains(id.as_str()))).count()
}

/// Waits until the kernel has neither a mapped device nor a loop device of its images any more.
fn wait_freed(wasmvol: &Wasmvol) {
    let is_freed = || loops(&wasmvol.state()) == 0 && mapped(wasmvol) == 0;
    until("the devices are freed", SOON, || is_freed().then_some(()));
}

#[test]
fn an_encrypted_image_holds_its_data_and_its_disk_shows_none_of_it() {
    let (mut wasmvol, canary) = with_a_secret();
    let plugin = wasmvol.plugin();
    let options = [("driver", "image"), ("size", "64m"), ("encrypt", "vault"), ("thin", "true")];
    plugin.create("dark", &options).unwrap();
    wait_freed(&wasmvol);
    let path = plugin.mount("dark", "id").unwrap();
    fs::write(path.join("file"), WORDS).unwrap();
    let devices = |wasmvol: &Wasmvol| (loops(&wasmvol.state()), mapped(wasmvol));
    assert_eq!(devices(&wasmvol), (1, 1));
    // Who was killed finds the mapped device again, and makes no second one.
    wasmvol.kill_mountd();
    wasmvol.run();
    assert_eq!(plugin.mount("dark", "other").unwrap(), path);
    assert_eq!(devices(&wasmvol), (1, 1));
    let shown = wasmvol.json("volume resize dark 96m");
    assert_eq!(shown["status"]["options"]["size"], (96 * MIB).to_string());
    let size = statvfs(&path).unwrap();
    assert!(size.f_blocks * size.f_frsize > 64 * MIB, "it has grown");
    canary.is_nowhere(&wasmvol, &["dark"], &[]);
    for id in ["id", "other"] {
        plugin.unmount("dark", id).unwrap();
    }
    wasmvol.wait_unmounted("dark");
    wait_freed(&wasmvol);
    let disk = fs::read(file(&wasmvol)).unwrap();
    assert!(disk.starts_with(b"LUKS\xba\xbe"));
    assert!(!disk.windows(WORDS.len()).any(|window| window == WORDS.as_bytes()));
    plugin.mount("dark", "id").unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), WORDS);
    plugin.unmount("dark", "id").unwrap();
    plugin.remove("dark").unwrap();
    wasmvol.wait_reaped();
    wait_freed(&wasmvol);
}

#[test]
fn the_mapped_device_of_an_image_is_no_device_for_another_volume() {
    let (wasmvol, _canary) = with_a_secret();
    wasmvol.cli("driver grant local device=/dev").ok();
    let plugin = wasmvol.plugin();
    plugin.create("dark", &[("driver", "image"), ("size", "64m"), ("encrypt", "vault")]).unwrap();
    plugin.mount("dark", "id").unwrap();
    let device = wasmvol.volume_mounts()[0].block_device();
    assert!(device.starts_with("/dev/dm-"), "{device}");
    plugin.create("thief", &[("type", "ext4"), ("device", &device)]).unwrap();
    let error = plugin.mount("thief", "id").unwrap_err();
    let why = format!("driver `local`: device `{device}` is refused: wasmvol keeps its own files");
    assert!(error.starts_with(&why), "{error}");
    plugin.unmount("dark", "id").unwrap();
    for name in ["dark", "thief"] {
        plugin.remove(name).unwrap();
    }
    wasmvol.wait_reaped();
    wait_freed(&wasmvol);
}

#[test]
fn another_secret_opens_no_image_and_is_named() {
    let (wasmvol, canary) = with_a_secret();
    let plugin = wasmvol.plugin();
    let options = [("driver", "image"), ("size", "300m"), ("fs", "xfs"), ("encrypt", "vault")];
    let error = plugin.create("dark", &options).unwrap_err();
    assert!(error.contains("an encrypted xfs image has at least 316 MiB"), "{error}");
    plugin.create("dark", &[&options[..1], &[("size", "32m")], &options[3..]].concat()).unwrap();
    wait_freed(&wasmvol);
    Canary::new().set(&wasmvol, "vault", "image", "");
    let error = plugin.mount("dark", "id").unwrap_err();
    assert!(error.contains("secret `vault` does not open the image"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(wasmvol.volume_mounts(), []);
    wait_freed(&wasmvol);
    canary.set(&wasmvol, "vault", "image", "");
    plugin.mount("dark", "id").unwrap();
    plugin.unmount("dark", "id").unwrap();
}

#[test]
fn an_encrypted_image_that_cannot_be_mended_is_refused_with_a_cure_that_leads_to_what_is_in_it() {
    let (wasmvol, _) = with_a_secret();
    let plugin = wasmvol.plugin();
    let options = [("driver", "image"), ("size", "32m"), ("encrypt", "vault"), ("thin", "true")];
    plugin.create("dark", &options).unwrap();
    wait_freed(&wasmvol);
    // What is encrypted begins behind the header.
    let image = fs::File::options().write(true).open(file(&wasmvol)).unwrap();
    image.write_all_at(&vec![0xff; MIB as usize], 16 * MIB).unwrap();
    let error = plugin.mount("dark", "id").unwrap_err();
    let cure = format!("open `{}` by `cryptsetup`, and run `e2fsck`", file(&wasmvol).display());
    assert!(error.contains("the image is damaged") && error.contains(&cure), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(wasmvol.volume_mounts(), []);
    wait_freed(&wasmvol);
}
