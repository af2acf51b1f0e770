//! The contract as components speak it: one file for each line of versions, and the choice between them.
//!
//! Called by the engine. Generated types live and end below here.

#[cfg(test)]
mod next;
mod since_v0_1_0;

use std::sync::Arc;

use wasmtime::component::{Component, InstancePre, Linker};
use wasmvol_plan::{Id, Plan, VolumeName};

use crate::LoadError;
use crate::answer::{MESSAGE_MAX, one_line};
use crate::call::{Call, State};
use crate::types::{
    Abilities, Answer, CallError, Created, Description, Found, Options, Populated, Progress,
    Reclaim, Report, Resized, Volume,
};
use crate::wasi;

/// The interface that every driver exports.
const VOLUMES: &str = "wasmvol:driver/volumes";

/// A component's verbs, in the host's own words, whatever line of versions it speaks.
pub(crate) trait Contract: Send + Sync {
    fn abilities(&self) -> Abilities;
    fn describe(&self, call: Call<'_>) -> Result<Description, CallError>;
    fn create(
        &self,
        call: Call<'_>,
        id: Id,
        name: &VolumeName,
        options: &Options,
    ) -> Result<Answer<Created>, CallError>;
    fn remove(&self, call: Call<'_>, volume: &Volume) -> Result<Answer<Reclaim>, CallError>;
    fn path(&self, call: Call<'_>, volume: &Volume) -> Result<Plan, CallError>;
    fn list(&self, call: Call<'_>) -> Result<Vec<Found>, CallError>;
    fn attach(&self, call: Call<'_>, volume: &Volume) -> Result<Answer<Progress>, CallError>;
    fn detach(&self, call: Call<'_>, volume: &Volume) -> Result<Answer<Progress>, CallError>;
    fn resize(
        &self,
        call: Call<'_>,
        volume: &Volume,
        size: u64,
    ) -> Result<Answer<Resized>, CallError>;
    fn populate(&self, call: Call<'_>, volume: &Volume) -> Result<Answer<Populated>, CallError>;
    fn check(&self, call: Call<'_>, volume: &Volume) -> Result<Report, CallError>;
    fn migrate(&self, call: Call<'_>, volume: &Volume, from: &str) -> Result<Vec<u8>, CallError>;
}

/// A line of versions that this host speaks: how its versions begin, and what makes a component's verbs of it.
struct Line {
    versions: &'static str,
    make: fn(InstancePre<State>) -> wasmtime::Result<Arc<dyn Contract>>,
}

/// The lines, the oldest first. One that was released is never taken away but with a major version of wasmvol.
const LINES: &[Line] = &[
    Line { versions: "0.1.", make: since_v0_1_0::contract },
    #[cfg(test)]
    Line { versions: "0.2.", make: next::contract },
];

/// What a driver may import beside its own line: these packages, in these lines. WASI's files and sockets are among them because
/// language runtimes ask for them; the context gives none.
const OFFERED: [(&str, &str); 7] = [
    ("wasi:cli", "0.2."),
    ("wasi:clocks", "0.2."),
    ("wasi:filesystem", "0.2."),
    ("wasi:http", "0.2."),
    ("wasi:io", "0.2."),
    ("wasi:random", "0.2."),
    ("wasi:sockets", "0.2."),
];

/// Everything that a driver may import, of every line.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasi::offer(&mut linker)?;
    since_v0_1_0::offer(&mut linker)?;
    #[cfg(test)]
    next::offer(&mut linker)?;
    Ok(linker)
}

/// Checks what a component imports and exports, and prepares its instances.
pub(crate) fn contract(
    linker: &Linker<State>,
    component: &Component,
) -> Result<Arc<dyn Contract>, LoadError> {
    let (imports, exports) = interfaces(component);
    let line = check(&imports, &exports)?;
    let told = |error: wasmtime::Error| one_line(&format!("{error:#}"), MESSAGE_MAX);
    let pre = linker.instantiate_pre(component).map_err(|error| LoadError::Import(told(error)))?;
    (line.make)(pre).map_err(|error| LoadError::Export(told(error)))
}

/// Says whether a component with these imports and exports would be loaded, as far as their names tell.
///
/// # Errors
/// It is no driver, speaks a contract that this host does not, or needs what is not on offer.
pub fn check_interfaces(imports: &[String], exports: &[String]) -> Result<(), LoadError> {
    check(imports, exports).map(drop)
}

/// The names of the interfaces that a component imports and exports.
pub(crate) fn interfaces(component: &Component) -> (Vec<String>, Vec<String>) {
    let (ty, engine) = (component.component_type(), component.engine());
    let imports = ty.imports(engine).map(|(name, _)| name.to_owned()).collect();
    let exports = ty.exports(engine).map(|(name, _)| name.to_owned()).collect();
    (imports, exports)
}

fn check(imports: &[String], exports: &[String]) -> Result<&'static Line, LoadError> {
    let mut versions = exports.iter().filter_map(|name| split(name)).filter(|n| n.0 == VOLUMES);
    let Some((_, version)) = versions.next() else {
        let why = format!("does not export `{VOLUMES}`: it is no wasmvol driver");
        return Err(LoadError::Export(why));
    };
    let Some(line) = LINES.iter().find(|line| version.starts_with(line.versions)) else {
        let lines: Vec<_> = LINES.iter().map(|line| format!("{}x", line.versions)).collect();
        let lines = lines.join(" and ");
        let why = format!("speaks version {version} of the contract: this host speaks {lines}");
        return Err(LoadError::Export(why));
    };
    for name in imports {
        let on_offer = split(name).is_some_and(|(interface, version)| {
            let package = interface.split('/').next().unwrap_or_default();
            let own = package == "wasmvol:driver" && version.starts_with(line.versions);
            own || OFFERED.iter().any(|(p, line)| *p == package && version.starts_with(line))
        });
        if !on_offer {
            let why = format!("imports `{name}`, which is not on offer to drivers");
            return Err(LoadError::Import(why));
        }
    }
    Ok(line)
}

/// `package/interface@version` in two.
fn split(name: &str) -> Option<(&str, &str)> {
    name.split_once('@')
}
