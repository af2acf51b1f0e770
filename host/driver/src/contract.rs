//! The contract as components speak it: one file for each line of versions, and the choice between them.
//!
//! Called by the engine. Generated types live and end below here.

mod since_v0_1_0;

use wasmtime::component::{Component, Linker};

use crate::LoadError;
use crate::call::{State, offer_wasi};
pub(crate) use since_v0_1_0::Contract;

/// The interface that every driver exports.
const VOLUMES: &str = "wasmvol:driver/volumes";
/// The line of versions that this host speaks.
const LINE: &str = "0.1.";
/// What a driver may import: these packages, in these lines. WASI's files and sockets are among them because language runtimes
/// ask for them; the context gives none.
const OFFERED: [(&str, &str); 7] = [
    ("wasmvol:driver", LINE),
    ("wasi:cli", "0.2."),
    ("wasi:clocks", "0.2."),
    ("wasi:filesystem", "0.2."),
    ("wasi:io", "0.2."),
    ("wasi:random", "0.2."),
    ("wasi:sockets", "0.2."),
];

/// Everything that a driver may import.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    offer_wasi(&mut linker)?;
    since_v0_1_0::offer(&mut linker)?;
    Ok(linker)
}

/// The names of the interfaces that a component imports and exports.
pub(crate) fn interfaces(component: &Component) -> (Vec<String>, Vec<String>) {
    let (ty, engine) = (component.component_type(), component.engine());
    let imports = ty.imports(engine).map(|(name, _)| name.to_owned()).collect();
    let exports = ty.exports(engine).map(|(name, _)| name.to_owned()).collect();
    (imports, exports)
}

/// Refuses a component that is no driver, or needs what is not on offer.
fn check(component: &Component) -> Result<(), LoadError> {
    let (imports, exports) = interfaces(component);
    let mut versions = exports.iter().filter_map(|name| split(name)).filter(|n| n.0 == VOLUMES);
    match versions.next() {
        Some((_, version)) if version.starts_with(LINE) => {}
        Some((_, version)) => {
            let why = format!("speaks version {version} of the contract: this host speaks {LINE}x");
            return Err(LoadError::Export(why));
        }
        None => {
            let why = format!("does not export `{VOLUMES}`: it is no wasmvol driver");
            return Err(LoadError::Export(why));
        }
    }
    for name in &imports {
        let on_offer = split(name).is_some_and(|(interface, version)| {
            let package = interface.split('/').next().unwrap_or_default();
            OFFERED.iter().any(|(p, line)| *p == package && version.starts_with(line))
        });
        if !on_offer {
            let why = format!("imports `{name}`, which is not on offer to drivers");
            return Err(LoadError::Import(why));
        }
    }
    Ok(())
}

/// `package/interface@version` in two.
fn split(name: &str) -> Option<(&str, &str)> {
    name.split_once('@')
}
