//! Disks of Amazon EC2: `docker volume create -d wasmvol -o driver=ebs -o size=20g database`.
//!
//! An EBS volume for each, attached to the machine that mounts it; EC2 keeps in its tags what other machines need to find it. How EC2 is
//! asked is in the crate `wasmvol-ec2`.

use std::time::Duration;

use wasmvol_ec2::{Disk, Ec2, State, setting};
use wasmvol_sdk::contract::{Device, Source};
use wasmvol_sdk::{
    Attachment, Created, Description, Driver, Error, ErrorCode, Found, Health, OptionSpec, Plan,
    Progress, Reclaim, Report, Result, Storage, Volume, export_driver, settings,
};

/// The driver.
#[derive(Debug)]
pub struct Ebs;

/// When EC2 is asked for the next step: each takes some seconds, and requests are counted.
const STEP: Duration = Duration::from_secs(2);
/// Where a disk appears on a machine with NVMe, which are all but the oldest.
const DEVICE: &str = "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol{id}";

impl Driver for Ebs {
    fn describe() -> Description {
        let help = "disks of Amazon EC2, attached to the machine that mounts them";
        let new = Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), help);
        [
            OptionSpec::size("size", "of the disk, rounded up to whole GiB"),
            OptionSpec::text("type", "its type, as EC2 calls it: gp3 if none is given"),
            OptionSpec::number("iops", "its operations a second: of gp3, io1 and io2"),
            OptionSpec::number("throughput", "its MiB a second: of gp3"),
            OptionSpec::text("zone", "its availability zone, if not the operator's"),
            OptionSpec::text("snapshot", "what is on it at first: `snap-…`"),
            OptionSpec::boolean("encrypted", "EC2 encrypts it, if it does not do so anyway"),
            OptionSpec::text("kms-key", "the key that it is encrypted with"),
            OptionSpec::text("volume", "a disk that is there, and is never deleted: `vol-…`"),
            OptionSpec::text("filesystem", "ext4 or xfs; made on a blank disk").default("ext4"),
        ]
        .into_iter()
        .fold(new, Description::option)
        .owner("0755")
        .grant("http=https://ec2.REGION.amazonaws.com")
        .grant("reveal=SECRET")
        .grant("device=/dev/disk/by-id")
    }

    fn create(volume: &Volume) -> Result<Created> {
        plan(volume, String::new())?;
        setting("instance")?;
        let disk = match volume.if_given("volume", Volume::text)? {
            Some(id) => Ec2::open()?.adopt(volume, id)?,
            None => Ec2::open()?.create(volume)?,
        };
        Ok(Created::from(Storage::None).state(State::of(&disk).text()))
    }

    fn remove(volume: &Volume) -> Result<Reclaim> {
        let found = Ec2::open().and_then(|ec2| Ok((ec2.find(volume)?, ec2)));
        match found {
            Ok((Some(disk), ec2)) if disk.is_made_for(volume) => ec2.delete(&disk.id)?,
            Ok((Some(disk), ec2)) => {
                ec2.release(volume, &disk)?;
                return Ok(Reclaim::Retain);
            }
            // Whom nobody let in has made nothing.
            Err(error) if error.code == ErrorCode::Denied && volume.state.is_empty() => {}
            other => drop(other?),
        }
        Ok(Reclaim::Delete)
    }

    fn path(volume: &Volume) -> Result<Plan> {
        let device = settings::get("device").unwrap_or_else(|| DEVICE.to_owned());
        let lost = || Error::new(ErrorCode::Internal, "which disk it is was not recorded");
        let State { disk, device: name, .. } = State::read(volume).ok_or_else(lost)?;
        // Before it is attached nobody mounts what this says.
        let name = name.unwrap_or("/dev/xvdba").trim_start_matches("/dev/");
        plan(
            volume,
            device.replace("{id}", disk.trim_start_matches("vol-")).replace("{name}", name),
        )
    }

    fn list() -> Result<Vec<Found>> {
        // Without a region nobody has told it of any machine.
        let Some(_) = settings::get("region") else { return Ok(Vec::new()) };
        let told = |disk: &Disk| disk.found(&Self::describe());
        Ok(Ec2::open()?.all()?.iter().filter_map(told).collect())
    }
}

impl Attachment for Ebs {
    fn attach(volume: &Volume) -> Result<Progress> {
        let ec2 = Ec2::open()?;
        let gone = || Error::new(ErrorCode::NotFound, "EC2 does not know its disk any more");
        let disk = ec2.find(volume)?.ok_or_else(gone)?;
        let device = ec2.bring(&disk, &setting("instance")?)?;
        let state = State { device: device.as_deref(), ..State::of(&disk) }.text();
        Ok(match device {
            Some(_) => Progress::Done(state.into()),
            None => Progress::again(state, STEP),
        })
    }

    fn detach(volume: &Volume) -> Result<Progress> {
        let ec2 = Ec2::open()?;
        let disk = ec2.find(volume)?;
        let state = disk
            .as_ref()
            .map_or_else(|| volume.state.clone(), |disk| State::of(disk).text().into());
        let is_away = disk.map_or(Ok(true), |disk| ec2.take_away(&disk, &setting("instance")?))?;
        Ok(if is_away { Progress::Done(state) } else { Progress::again(state, STEP) })
    }
}

impl Health for Ebs {
    fn check(volume: &Volume) -> Result<Report> {
        let (ec2, here) = (Ec2::open()?, setting("instance")?);
        let Some(disk) = ec2.find(volume)? else {
            return Ok(Report::unreachable("EC2 does not know its disk any more"));
        };
        let Disk { id, status, .. } = &disk;
        Ok(match disk.at(&here).map(|at| at.status.as_str()) {
            Some("attached") if status == "in-use" => Report::healthy(),
            Some(how) => Report::degraded(format!("`{id}` is {status} and {how}")),
            None => Report::unreachable(format!("`{id}` is not attached to this machine")),
        })
    }
}

fn plan(volume: &Volume, path: String) -> Result<Plan> {
    let filesystem = volume.text("filesystem")?.to_owned();
    if !["ext4", "xfs"].contains(&filesystem.as_str()) {
        return Err(Error::invalid_option("filesystem", "use `ext4` or `xfs`"));
    }
    let make = Some(volume.owner()?);
    Ok(Plan::new(Source::Device(Device { path, filesystem, options: Vec::new(), make })))
}

export_driver!(Ebs: attachment, health);
