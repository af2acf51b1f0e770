//! Secrets: read for a plan that may spend them, and for nobody else.
//!
//! Called by every kind that gives one to a server, a program or the kernel, and once at create, to refuse what could not be mounted.
//! Root's command line wrote the file; the bytes go into no answer and no log.

use std::fs::File;
use std::io::Read;

use rustix::fs::{FileType, Mode, OFlags, openat2};
use rustix::io::Errno;
use wasmvol_plan::frame::{REVEAL_MAX, Revealed};
use wasmvol_plan::grants::cure;
use wasmvol_plan::secret::{Bytes, FILE_MAX, set};
use wasmvol_plan::{DriverName, Fault, FaultKind, Grants, Secret, SecretName, Server};

use crate::fault::{Context, fault};
use crate::places::{BENEATH, Places};

impl Places {
    /// Says whether a secret is kept under that name for volumes of `driver`.
    pub(crate) fn find_secret(&self, name: &SecretName, driver: &DriverName) -> Result<(), Fault> {
        let secret = self.read(name, &format!("keep it with `{}`", set(name, driver, None)))?;
        secret.check_driver(name, driver)
    }

    /// The secret of that name, if it is for volumes of `driver` and for `server`, or for a use that names none.
    pub(crate) fn secret(
        &self,
        name: &str,
        driver: &DriverName,
        server: Option<Server<'_>>,
    ) -> Result<Secret, Fault> {
        let name =
            SecretName::parse(name).map_err(|e| Fault::new(FaultKind::Invalid, e.to_string()))?;
        let secret = self.read(&name, &format!("keep it with `{}`", set(&name, driver, server)))?;
        secret.check(&name, driver, server)?;
        Ok(secret)
    }

    /// The bytes of a secret, if the driver was granted to have them and no server is named that alone may.
    pub(crate) fn reveal(
        &self,
        name: &SecretName,
        driver: &DriverName,
        grants: &Grants,
    ) -> Result<Revealed, Fault> {
        if !grants.reveals.contains(name) {
            let cure = cure(Some(driver), &format!("reveal={name}"));
            let why = format!("secret `{name}` may not be revealed to driver `{driver}`: {cure}");
            return fault(FaultKind::Denied, why);
        }
        let secret = self.secret(name.as_str(), driver, None)?;
        if secret.bytes().len() > REVEAL_MAX {
            let most = format!("at most {} KiB are revealed", REVEAL_MAX >> 10);
            return fault(FaultKind::Exhausted, format!("secret `{name}` is too long: {most}"));
        }
        Ok(Revealed(secret.bytes().to_vec()))
    }

    fn read(&self, name: &SecretName, cure: &str) -> Result<Secret, Fault> {
        let what = format_args!("read secret `{name}`");
        let odd = |why: &str| fault(FaultKind::Denied, format!("secret `{name}` {why}: {cure}"));
        // What is no file must not hold this process up before it is seen.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat2(&self.secrets, name.as_str(), flags, Mode::empty(), BENEATH) {
            Err(Errno::NOENT) => {
                let why = format!("no secret `{name}` is kept: {cure}");
                return fault(FaultKind::Missing, why);
            }
            Err(Errno::LOOP | Errno::XDEV) => return odd("is a link or a mount"),
            opened => opened.trying(what)?,
        };
        let stat = rustix::fs::fstat(&file).trying(what)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return odd("is no plain file");
        }
        if stat.st_uid != 0 || stat.st_mode & 0o077 != 0 {
            return odd("lies in a file that others than root may open");
        }
        // A buffer that had to grow would leave a copy behind.
        let mut bytes = Vec::with_capacity(FILE_MAX + 1);
        File::from(file).take(FILE_MAX as u64 + 1).read_to_end(&mut bytes).trying(what)?;
        Secret::parse(&Bytes::new(bytes)).or_else(|fault| odd(&format!("is none: {fault}")))
    }
}
