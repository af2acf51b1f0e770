//! Makes the contract's bindings for C, which the tests compare with those in `drivers/examples/c/bindings`.
//!
//! Here and not in a test: what a build script depends on is built for the SDK's macro already, and quickly.

use std::error::Error;
use std::path::Path;

use wit_bindgen_core::Files;
use wit_bindgen_core::wit_parser::Resolve;

const CONTRACT: &str = "../wit/since_v0.1.0";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={CONTRACT}");
    let mut contract = Resolve::default();
    let (package, _) = contract.push_dir(CONTRACT)?;
    let world = contract.select_world(&[package], Some("driver"))?;
    let mut files = Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut contract, world, &mut files)?;
    let directory = Path::new(&std::env::var("OUT_DIR")?).join("c");
    std::fs::create_dir_all(&directory)?;
    for (name, bytes) in files.iter() {
        std::fs::write(directory.join(name), bytes)?;
    }
    Ok(())
}
