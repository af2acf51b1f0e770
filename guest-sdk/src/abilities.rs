//! What a driver may be able to do beside the verbs of [`Driver`]: a trait and a cargo feature of this crate for each.
//!
//! `wasmvol-sdk = { …, features = ["attachment"] }`, `impl Attachment for Disk`, `export_driver!(Disk: attachment);`: the component exports
//! the interface, by which the host sees that the driver is able.

use crate::{Driver, Result, Volume};

/// For storage that must first be made reachable on this machine, as a disk of a cloud.
#[cfg(feature = "attachment")]
pub trait Attachment: Driver {
    /// Makes the volume reachable here; called before the first Mount's `path`, which gets the state that this returns. Where it is
    /// already, that is done.
    ///
    /// # Errors
    /// Why the backend does not.
    fn attach(volume: &Volume) -> Result<crate::Progress>;

    /// The opposite, after the last Unmount.
    ///
    /// # Errors
    /// Why the backend does not; it is tried again later.
    fn detach(volume: &Volume) -> Result<crate::Progress>;
}

#[cfg(feature = "attachment")]
impl crate::Progress {
    /// It is not done yet: the host asks again after so much time, at most 30 s, and with this state.
    #[must_use]
    pub fn again(state: impl Into<Vec<u8>>, after: std::time::Duration) -> Self {
        let after = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        Self::Again(crate::bindings::attachment::Again { state: state.into(), after })
    }
}

/// For volumes that can get another size.
#[cfg(feature = "resizing")]
pub trait Resizing: Driver {
    /// Gives the volume `size` bytes where its backend keeps them, and says what the host must do. Never less than it has.
    ///
    /// # Errors
    /// Why the backend does not.
    fn resize(volume: &Volume, size: u64) -> Result<crate::Resized>;
}

/// For volumes that do not start empty.
#[cfg(feature = "population")]
pub trait Population: Driver {
    /// Fills a new volume: `directory`, the one that the call has. What is written there is the volume's, once this has returned.
    ///
    /// # Errors
    /// Why there is nothing to fill it with; the volume is not made then.
    fn populate(volume: &Volume, directory: &std::path::Path) -> Result<crate::Populated>;
}

/// Makes a symlink in the directory that [`Population::populate`] fills: `path` is relative to it. The target is relative, too: the host
/// makes no link that leads to an absolute path.
///
/// # Errors
/// `unsupported` where the host makes no such link.
#[cfg(feature = "population")]
pub fn make_link(directory: &std::path::Path, path: &str, target: &str) -> Result<()> {
    let refused = |why: &str| {
        let message = format!("the link `{path}` to `{target}` cannot be made: {why}");
        crate::Error::new(crate::ErrorCode::Unsupported, message)
    };
    if target.starts_with('/') {
        return Err(refused("it is absolute"));
    }
    #[cfg(target_family = "wasm")]
    {
        use wasip2::filesystem::preopens::get_directories;
        let all = get_directories();
        let volume = all.iter().find(|(_, name)| std::path::Path::new(name) == directory);
        let (volume, _) = volume.ok_or_else(|| refused("its directory is not the volume's"))?;
        volume.symlink_at(target, path).map_err(|code| refused(code.message()))
    }
    #[cfg(not(target_family = "wasm"))]
    std::os::unix::fs::symlink(target, directory.join(path)).map_err(|e| refused(&e.to_string()))
}

/// For backends that can tell how a volume is.
#[cfg(feature = "health")]
pub trait Health: Driver {
    /// How a mounted volume is; asked in the background.
    ///
    /// # Errors
    /// Why that is not known: shown as something that is wrong.
    fn check(volume: &Volume) -> Result<crate::Report>;
}

#[cfg(feature = "health")]
impl crate::Report {
    /// All is well.
    #[must_use]
    pub fn healthy() -> Self {
        Self { condition: crate::Condition::Healthy, message: String::new() }
    }

    /// It works, and something is wrong: one sentence for people.
    #[must_use]
    pub fn degraded(message: impl Into<String>) -> Self {
        Self { condition: crate::Condition::Degraded, message: message.into() }
    }

    /// It does not answer.
    #[must_use]
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { condition: crate::Condition::Unreachable, message: message.into() }
    }
}

/// For a version of a driver that cannot read the state of an older one.
#[cfg(feature = "migration")]
pub trait Migration: Driver {
    /// The volume's state as this version writes it; `from` is the version that wrote the one that it has.
    ///
    /// # Errors
    /// Why it cannot be read; then the old version stays.
    fn migrate(volume: &Volume, from: &str) -> Result<Vec<u8>>;
}
