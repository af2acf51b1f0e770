//! EC2's side of the driver `ebs`: what a volume's disk is there, and the signed requests that make it so.
//!
//! [`Ec2`] is opened for each call of the driver, as the operator's settings say, and asks; [`Disk`] is what EC2 answers of an EBS volume,
//! [`State`] what the volume remembers of it. It knows nothing of mounts, and what becomes of a volume the driver decides.

mod client;
mod disk;
mod disks;
mod machine;
mod signature;
mod state;
mod tags;

use wasmvol_sdk::{Error, ErrorCode, Result, secrets, settings};

pub use client::Ec2;
pub use disk::{Attachment, Disk};
pub use state::State;

use signature::Credentials;

impl Ec2 {
    /// EC2 as the operator's settings name it, and with the operator's key.
    ///
    /// # Errors
    /// `denied` names the setting, the grant or the secret that is missing.
    pub fn open() -> Result<Self> {
        let (region, name) = (setting("region")?, setting("key")?);
        // That there is no key says nothing of a disk.
        let key = secrets::reveal(&name).map_err(|error| match error.code {
            ErrorCode::NotFound => Error { code: ErrorCode::Denied, ..error },
            _ => error,
        })?;
        let odd = format!(
            "secret `{name}` is not one line `ACCESS:SECRET`: keep it again with `wasmvol secret set {name} --driver NAME`"
        );
        let key = Credentials::parse(&key).ok_or_else(|| Error::new(ErrorCode::Denied, odd))?;
        let endpoint = settings::get("endpoint");
        if endpoint.as_ref().is_some_and(|url| !url.contains("://")) {
            let why = "must be a URL, such as `https://ec2.eu-central-1.amazonaws.com`";
            return Err(Error::invalid_setting("endpoint", why));
        }
        Ok(Self::new(&region, endpoint.as_deref(), key))
    }
}

/// A setting that there must be.
///
/// # Errors
/// `denied` names it.
pub fn setting(key: &str) -> Result<String> {
    let cure = format!("give it with `wasmvol driver set NAME {key}=…`");
    let missing = || Error::new(ErrorCode::Denied, format!("setting `{key}` is missing: {cure}"));
    settings::get(key).ok_or_else(missing)
}
