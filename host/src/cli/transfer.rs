//! `wasmvol driver pull` and `push`: components between files and registries. They need no daemon, and no root.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use wasmvol_driver::{Interfaces, LoadError, check_interfaces};
use wasmvol_plan::DriverName;
use wasmvol_registry::{Reference, SigningKey};

use super::component::{Component, PlainHttp, Pulled, announce, signed};
use super::output::Output;
use super::progress::Progress;
use super::{CliError, sandbox};
use crate::admin::types::Checked;
use crate::catalog::SignedBy;
use crate::volumes::options;

/// What was done.
#[derive(Debug, Serialize)]
struct Done<'a> {
    reference: String,
    digest: String,
    /// The component's file.
    file: &'a Path,
    size: usize,
    signed_by: Option<SignedBy>,
    /// The same in words, and where there is nobody why.
    signature: String,
    /// The reference with the digest in place of the tag.
    pinned: String,
}

/// Writes what was pulled, whole or not at all.
pub(super) fn pulled(component: Component, file: &Path, output: &Output) -> Result<(), CliError> {
    let Component { bytes, pulled, .. } = component;
    write(file, &bytes).map_err(CliError::io(format!("`{}`", file.display())))?;
    let Some(pulled) = pulled else { return Ok(()) };
    let Pulled { pinned, origin, signature } = pulled;
    output.note(&format!("wasmvol: it is in `{}`, {signature}", file.display()));
    let (reference, digest, signed_by) = (origin.reference, origin.digest, origin.signed_by);
    let done = Done { reference, digest, file, size: bytes.len(), signed_by, signature, pinned };
    Ok(output.own(&done, |done| output.line(&done.pinned))?)
}

/// Pushes a file, unless no wasmvol would load it.
pub(super) fn push(
    file: &Path,
    reference: &Reference,
    plain_http: &PlainHttp,
    sign: Option<&Path>,
    output: &Output,
) -> Result<(), CliError> {
    let shown = format!("`{}`", file.display());
    let bytes = std::fs::read(file).map_err(CliError::io(shown.clone()))?;
    let refused = |why: LoadError| CliError::Refused(format!("{shown}: {why}"));
    let Interfaces { imports, exports } = Interfaces::read(&bytes).map_err(refused)?;
    check_interfaces(&imports, &exports).map_err(refused)?;
    let key = match sign {
        Some(key) => {
            let pem = std::fs::read_to_string(key)
                .map_err(CliError::io(format!("`{}`", key.display())))?;
            Some(SigningKey::read(&key.display().to_string(), &pem)?)
        }
        None => None,
    };
    announce(&bytes, output);
    let Checked { description, .. } = sandbox::describe(&shown, &bytes)?;
    let defaults = options::check_defaults(&DriverName::parse(&description.name)?, &description);
    defaults.map_err(|why| CliError::Refused(format!("{shown}: {why}")))?;
    let progress = RefCell::new(Progress::new());
    let pushed =
        plain_http.open(reference).push(&bytes, imports, exports, key.as_ref(), &|done, size| {
            progress.borrow_mut().show(done, size);
        });
    progress.into_inner().end();
    let pushed = pushed?;
    let (reference, pinned) = (reference.to_string(), reference.pinned(&pushed.digest));
    let signature = signed(pushed.signer.as_ref());
    let signed_by = pushed.signer.map(SignedBy::from);
    let (digest, size) = (pushed.digest, bytes.len());
    let done = Done { reference, digest, file, size, signed_by, signature, pinned };
    Ok(output.own(&done, |done| output.line(&done.pinned))?)
}

/// Writes a file beside its place and moves it there; what is no file, as a pipe, is written to as it is.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    if file.metadata().is_ok_and(|about| !about.is_file()) {
        return File::options().write(true).open(file)?.write_all(bytes);
    }
    let mut draft = file.as_os_str().to_owned();
    draft.push(format!(".{}.new", std::process::id()));
    let written = File::create_new(&draft).and_then(|mut new| {
        new.write_all(bytes)?;
        new.sync_all()?;
        std::fs::rename(&draft, file)
    });
    if written.is_err() {
        // Why it could not be written is what counts.
        let _ = std::fs::remove_file(&draft);
    }
    written
}
