//! Memory for builds: `docker volume create -d wasmvol -o driver=scratch -o size=256m build`.

use wasmvol_sdk::{
    Created, Description, Driver, Error, OptionSpec, Plan, Result, Storage, Tmpfs, Volume,
    export_driver, settings,
};

struct Scratch;

impl Driver for Scratch {
    fn describe() -> Description {
        let version = env!("CARGO_PKG_VERSION");
        Description::new("scratch", version, "memory, up to the operator's ceiling")
            .option(OptionSpec::size("size", "most bytes the volume may hold").default("64m"))
            .option(OptionSpec::boolean("exec", "programs may run from it").default("false"))
            .owner("1777")
    }

    fn create(volume: &Volume) -> Result<Created> {
        let ceiling = settings::size("ceiling")?.unwrap_or(1 << 30);
        if volume.size("size")? > ceiling {
            return Err(Error::invalid_option("size", format!("the ceiling is {ceiling} bytes")));
        }
        Self::path(volume)?; // what could not be mounted later is refused now
        Ok(Storage::None.into())
    }

    fn path(volume: &Volume) -> Result<Plan> {
        let size = Some(volume.size("size")?);
        let plan = Plan::tmpfs(Tmpfs { size, inodes: None, owner: volume.owner()? });
        Ok(if volume.boolean("exec")? { plan } else { plan.no_exec() })
    }
}

export_driver!(Scratch);
