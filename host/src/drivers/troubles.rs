//! What is told of drivers that are not loaded and should be, each with the command that mends it.
//!
//! Used by [`Drivers`](super::Drivers), which knows them.

use wasmvol_plan::DriverName;

use crate::catalog::{DriverRow, Origin};
use crate::volumes::Trouble;

/// Of one that was loaded before the start, and could not be again.
pub(super) fn failed(row: &DriverRow, why: &str) -> Trouble {
    let name = &row.name;
    let component = match &row.origin {
        Some(Origin { reference, .. }) => reference,
        None => "FILE",
    };
    let or = match &row.previous {
        Some(former) => format!(", or `wasmvol driver rollback {name}` to {}", former.version),
        None => String::new(),
    };
    let cure = format!(
        "wasmvol driver load {component} --name {name}  # the same component, or a later one{or}"
    );
    trouble(name, format!("is not loaded, and its volumes wait: {why}"), cure)
}

/// Of one that came with this wasmvol and could not be loaded, whatever `stays` in its place.
pub(super) fn kept_out(name: &DriverName, stays: Option<&str>, why: &str) -> Trouble {
    let what = match stays {
        Some(version) => format!("stays {version}, and what came with this wasmvol is not loaded"),
        None => "came with this wasmvol and is not loaded".to_owned(),
    };
    let cure = "systemctl restart wasmvol  # when that is mended: what a damaged file needs is wasmvol installed again";
    trouble(name, format!("{what}: {why}"), cure.to_owned())
}

fn trouble(name: &DriverName, why: String, cure: String) -> Trouble {
    Trouble { what: format!("driver {name}"), why, cure }
}
