//! Does a driver that was made when the contract was frozen still serve volumes? What to do if not: `tests/frozen/README.md`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::Value;

use crate::support::wasmvol::Wasmvol;

#[test]
fn a_driver_of_the_frozen_contract_serves_volumes() {
    let wasmvol = Wasmvol::start();
    let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("frozen/since_v0.1.0/driver.wasm");
    let without = "--without image --without http=https://api.example";
    wasmvol.cli(&format!("driver load {} {without}", driver.display())).ok();
    let shown = wasmvol.json("driver inspect frozen");
    assert_eq!(
        (&shown["name"], &shown["version"]),
        (&Value::from("frozen"), &Value::from("0.1.0"))
    );
    let plugin = wasmvol.plugin();
    let error = plugin.create("data", &[("driver", "frozen")]).unwrap_err();
    assert!(error.contains("`must`"), "{error}");

    let options = [("driver", "frozen"), ("must", "be there")];
    plugin.create("data", &options).unwrap();
    plugin.create("data", &options).unwrap();
    let path = plugin.mount("data", "id").unwrap();
    assert_eq!(fs::read_to_string(path.join("README")).unwrap(), "filled\n");
    let (program, root) =
        (fs::metadata(path.join("bin/run")).unwrap(), fs::metadata(&path).unwrap());
    assert_eq!(program.permissions().mode() & 0o7777, 0o755);
    assert_eq!((root.uid(), root.gid(), root.permissions().mode() & 0o7777), (1, 2, 0o750));
    fs::write(path.join("own"), "words").unwrap();
    plugin.unmount("data", "id").unwrap();
    plugin.mount("data", "again").unwrap();
    assert_eq!(fs::read_to_string(path.join("own")).unwrap(), "words");
    plugin.unmount("data", "again").unwrap();

    // What is not granted, and what no host serves, is told as of any driver.
    for (storage, why) in [
        ("image", "images are not granted: "),
        ("other", "storage `of-later` is not served by this version of wasmvol"),
    ] {
        let options = [&options[..], &[("storage", storage)]].concat();
        let error = plugin.create("other", &options).unwrap_err();
        assert!(error.contains(&format!("driver `frozen`: {why}")), "{error}");
    }
    plugin.remove("data").unwrap();
    assert!(plugin.list().is_empty());
    wasmvol.cli("driver unload frozen").ok();
}
