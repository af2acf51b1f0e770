//! An EC2 of one test's own, which looks at every signature: two machines in one zone, a disk, and a snapshot of it.

use super::moto::Moto;
use super::shell;

const PREPARE: &str = include_str!("ec2/prepare.py");

pub(crate) struct Ec2 {
    pub(crate) moto: Moto,
    /// `ACCESS:SECRET` of somebody who may do everything.
    pub(crate) key: String,
    /// The ids of two machines.
    pub(crate) machines: [String; 2],
    /// The zone of both.
    pub(crate) zone: String,
    /// The id of a disk that nobody has.
    pub(crate) disk: String,
    /// The id of its snapshot.
    pub(crate) snapshot: String,
}

impl Ec2 {
    pub(crate) fn start() -> Self {
        let moto = Moto::start();
        let said = moto.prepare(PREPARE, "");
        let words: Vec<_> = said.split(' ').map(str::to_owned).collect();
        let [key, first, second, zone, disk, snapshot] = <[String; 6]>::try_from(words).unwrap();
        Self { moto, key, machines: [first, second], zone, disk, snapshot }
    }

    /// What EC2 tells of a disk, if it is there.
    pub(crate) fn tells(&self, disk: &str) -> Option<String> {
        let answer = self.ask(&format!("DescribeVolumes&VolumeId.1={disk}"));
        (!answer.contains("<Code>InvalidVolume.NotFound</Code>")).then_some(answer)
    }

    /// Where a disk is attached, if it is: machine and device.
    pub(crate) fn place(&self, disk: &str) -> Option<(String, String)> {
        let told = self.tells(disk).expect("the disk is there");
        let part = |name: &str| {
            let rest = told.split_once(&format!("<{name}>"))?.1;
            Some(rest.split_once('<')?.0.to_owned())
        };
        Some((part("instanceId")?, part("device")?))
    }

    /// The ids of all disks that wasmvol has to do with.
    pub(crate) fn disks(&self) -> Vec<String> {
        let answer =
            self.ask("DescribeVolumes&Filter.1.Name=tag-key&Filter.1.Value.1=wasmvol%3Aid");
        assert!(answer.contains("<volumeSet"), "{answer}");
        let ids = answer.split("<volumeId>").skip(1).filter_map(|rest| rest.split_once('<'));
        let mut ids: Vec<_> = ids.map(|(id, _)| id.to_owned()).collect();
        // One that is attached is named there once more.
        ids.sort();
        ids.dedup();
        ids
    }

    /// The id of the one disk that wasmvol has to do with.
    #[track_caller]
    pub(crate) fn only_disk(&self) -> String {
        let [disk] = <[String; 1]>::try_from(self.disks()).expect("one disk");
        disk
    }

    /// Asks for an action, signed as curl signs it. moto looks at the form as it would write it itself.
    fn ask(&self, action: &str) -> String {
        let signed = format!("--aws-sigv4 aws:amz:us-east-1:ec2 --user {}", self.key);
        let form = format!("Version=2016-11-15&Action={action}");
        shell(&format!("curl --silent {signed} -d '{form}' {}/", self.moto.url()), &[]).ok()
    }
}
