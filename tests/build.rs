//! Makes the contract's bindings for C, which the tests compare with those in `drivers/examples/c/bindings`, and those of a driver that has an
//! ability more, as `drivers/examples/README.md` says to make them.
//!
//! Here and not in a test: what a build script depends on is built for the SDK's macro already, and quickly.

use std::error::Error;
use std::fs;
use std::path::Path;

use wit_bindgen_core::Files;
use wit_bindgen_core::wit_parser::Resolve;

const CONTRACT: &str = "../wit/since_v0.1.0";

/// The file of a world of one's own.
const MINE: &str =
    "package wasmvol:driver@0.1.0;\nworld mine { include driver; include with-health; }\n";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={CONTRACT}");
    let made = std::env::var("OUT_DIR")?;
    let made = Path::new(&made);
    bind(Path::new(CONTRACT), "driver", &made.join("c"))?;
    let wit = made.join("wit");
    fs::create_dir_all(&wit)?;
    for file in fs::read_dir(CONTRACT)? {
        let file = file?;
        fs::copy(file.path(), wit.join(file.file_name()))?;
    }
    fs::write(wit.join("mine.wit"), MINE)?;
    bind(&wit, "mine", &made.join("c-mine"))
}

/// What `wit-bindgen c WIT --world WORLD --rename-world driver --out-dir DIRECTORY` does.
fn bind(wit: &Path, world: &str, directory: &Path) -> Result<(), Box<dyn Error>> {
    let mut contract = Resolve::default();
    let (package, _) = contract.push_dir(wit)?;
    let world = contract.select_world(&[package], Some(world))?;
    let mut files = Files::default();
    let rename_world = Some("driver".to_owned());
    let options = wit_bindgen_c::Opts { rename_world, ..Default::default() };
    options.build().generate(&mut contract, world, &mut files)?;
    fs::create_dir_all(directory)?;
    for (name, bytes) in files.iter() {
        fs::write(directory.join(name), bytes)?;
    }
    Ok(())
}
