//! An EC2 in memory, for tests of the driver: it answers the Query API as Amazon documents it, and takes its time over each change.
//!
//! What is asked twice has gone on in between: a disk that is `creating` is then `available`, and so on. It looks at no signature; the real
//! one is looked at by moto, in the tests of the whole system.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;

use wasmvol_sdk::http::{Request, Response};
use wasmvol_sdk::{Result, testing};

/// The operator's settings in most tests.
pub(crate) const SETTINGS: [(&str, &str); 4] =
    [("region", "us-east-1"), ("zone", "us-east-1a"), ("instance", "i-here"), ("key", "ec2")];

/// One disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) token: String,
    pub(crate) status: String,
    /// What CreateVolume was given.
    pub(crate) given: BTreeMap<String, String>,
    pub(crate) tags: BTreeMap<String, String>,
    /// Machine, device and state.
    pub(crate) at: Option<(String, String, String)>,
}

/// All disks, by their ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cloud(pub(crate) Rc<RefCell<BTreeMap<String, Disk>>>);

impl Cloud {
    /// Runs code on a machine of this cloud.
    pub(crate) fn run<T>(&self, run: impl FnOnce() -> T) -> T {
        self.run_with(SETTINGS.to_vec(), run)
    }

    /// The same with these settings.
    pub(crate) fn run_with<T>(
        &self,
        settings: Vec<(&'static str, &'static str)>,
        run: impl FnOnce() -> T,
    ) -> T {
        let cloud = self.clone();
        let answer = move |request| Ok(cloud.answer(&request));
        let run = || testing::with_http(answer, run);
        testing::with_secrets([("ec2", "ACCESS:SECRET\n")], || {
            testing::with_settings(settings, run)
        })
    }

    /// Puts a disk there that nobody of wasmvol has made.
    pub(crate) fn put(&self, id: &str, status: &str) {
        let disk = Disk { status: status.to_owned(), ..Disk::default() };
        self.0.borrow_mut().insert(id.to_owned(), disk);
    }

    /// The only disk there is.
    pub(crate) fn only(&self) -> (String, Disk) {
        let disks = self.0.borrow();
        assert_eq!(disks.len(), 1, "{disks:?}");
        let (id, disk) = disks.first_key_value().unwrap();
        (id.clone(), disk.clone())
    }

    /// Asks for steps until one is the last, and answers how many it took.
    pub(crate) fn steps(
        &self,
        volume: &mut wasmvol_sdk::Volume,
        step: impl Fn(&wasmvol_sdk::Volume) -> Result<wasmvol_sdk::Progress>,
    ) -> Result<usize> {
        for count in 1..9 {
            match self.run(|| step(volume))? {
                wasmvol_sdk::Progress::Done(state) => {
                    volume.state = state;
                    return Ok(count);
                }
                wasmvol_sdk::Progress::Again(again) => volume.state = again.state,
            }
        }
        panic!("it takes no end: {volume:?}");
    }

    fn answer(&self, request: &Request) -> Response {
        let form: BTreeMap<_, _> = form_urlencoded::parse(&request.body).into_owned().collect();
        match self.act(&form) {
            Ok(answer) => Response::new(200, format!("<Answer>{answer}</Answer>")),
            Err(code) => {
                let error =
                    format!("<Error><Code>{code}</Code><Message>no: {code}</Message></Error>");
                Response::new(400, format!("<Response><Errors>{error}</Errors></Response>"))
            }
        }
    }

    fn act(&self, form: &BTreeMap<String, String>) -> std::result::Result<String, &'static str> {
        let text = |key: &str| form.get(key).map(String::as_str).unwrap_or_default();
        let mut disks = self.0.borrow_mut();
        match text("Action") {
            "DescribeVolumes" => return Self::describe(&mut disks, form),
            "CreateVolume" => {
                let token = text("ClientToken");
                let there = disks.iter().find(|(_, disk)| disk.token == token);
                let there = there.map(|(id, disk)| shown(id, disk));
                return Ok(there.unwrap_or_else(|| {
                    let id = format!("vol-{:017x}", disks.len() + 1);
                    let disk = Disk {
                        token: token.to_owned(),
                        status: "creating".to_owned(),
                        given: form.clone(),
                        tags: tags(form, "TagSpecification.1.Tag"),
                        at: None,
                    };
                    let answer = shown(&id, &disk);
                    disks.insert(id, disk);
                    answer
                }));
            }
            _ => {}
        }
        let id = [text("VolumeId"), text("ResourceId.1")].concat();
        let disk = disks.get_mut(&id).ok_or("InvalidVolume.NotFound")?;
        match text("Action") {
            "DeleteVolume" if disk.at.is_some() => return Err("VolumeInUse"),
            "DeleteVolume" => drop(disks.remove(&id)),
            "AttachVolume" if disk.at.is_some() => return Err("VolumeInUse"),
            "AttachVolume" if disk.status != "available" => return Err("IncorrectState"),
            "AttachVolume" => {
                disk.status = "in-use".to_owned();
                let [instance, device] = ["InstanceId", "Device"].map(|key| text(key).to_owned());
                disk.at = Some((instance, device, "attaching".to_owned()));
            }
            "DetachVolume" => match &mut disk.at {
                Some((instance, _, state)) if instance == text("InstanceId") => {
                    *state = "detaching".to_owned();
                }
                _ => return Err("IncorrectState"),
            },
            "CreateTags" => disk.tags.extend(tags(form, "Tag")),
            "DeleteTags" => {
                for (key, value) in tags(form, "Tag") {
                    // A value that is given has to be the one that is there.
                    assert_eq!(value, "");
                    disk.tags.remove(&key).unwrap();
                }
            }
            _ => return Err("InvalidAction"),
        }
        Ok(String::new())
    }

    fn describe(
        disks: &mut BTreeMap<String, Disk>,
        form: &BTreeMap<String, String>,
    ) -> std::result::Result<String, &'static str> {
        let mut filters = Vec::new();
        for at in 1.. {
            let Some(name) = form.get(&format!("Filter.{at}.Name")) else { break };
            filters.push((name.as_str(), form[&format!("Filter.{at}.Value.1")].as_str()));
        }
        let wanted = form.get("VolumeId.1");
        if wanted.is_some_and(|id| !disks.contains_key(id)) {
            return Err("InvalidVolume.NotFound");
        }
        let mut answer = String::new();
        for (id, disk) in disks {
            let is_so = |(name, value): &(&str, &str)| match name.split_once(':') {
                Some((_, key)) => disk.tags.get(key).is_some_and(|tag| tag == value),
                None if *name == "tag-key" => disk.tags.contains_key(*value),
                None if *name == "availability-zone" => {
                    disk.given.get("AvailabilityZone").is_some_and(|zone| zone == value)
                }
                None => disk.at.as_ref().is_some_and(|(instance, ..)| instance == value),
            };
            if wanted.is_none_or(|wanted| wanted == id) && filters.iter().all(is_so) {
                write!(answer, "<item>{}</item>", shown(id, disk)).unwrap();
                if wanted.is_some() {
                    disk.go_on();
                }
            }
        }
        Ok(format!("<volumeSet>{answer}</volumeSet>"))
    }
}

impl Disk {
    fn go_on(&mut self) {
        match &mut self.at {
            Some((_, _, state)) if state == "attaching" => *state = "attached".to_owned(),
            Some((_, _, state)) if state == "detaching" => {
                (self.status, self.at) = ("available".to_owned(), None);
            }
            None if self.status == "creating" => self.status = "available".to_owned(),
            _ => {}
        }
    }
}

fn shown(id: &str, disk: &Disk) -> String {
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
    let at = disk.at.as_ref().map_or_else(String::new, |(instance, device, state)| {
        format!(
            "<item><instanceId>{instance}</instanceId><device>{device}</device>\
             <status>{state}</status></item>"
        )
    });
    let tags: String = disk
        .tags
        .iter()
        .map(|(key, value)| {
            format!("<item><key>{key}</key><value>{}</value></item>", escaped(value))
        })
        .collect();
    let snapshot = disk.given.get("SnapshotId").map(String::as_str).unwrap_or_default();
    let status = &disk.status;
    format!(
        "<volumeId>{id}</volumeId><status>{status}</status><snapshotId>{snapshot}</snapshotId>\
         <createTime>2026-01-01T00:00:00.000Z</createTime><attachmentSet>{at}</attachmentSet>\
         <tagSet>{tags}</tagSet>"
    )
}

fn tags(form: &BTreeMap<String, String>, prefix: &str) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::new();
    for at in 1.. {
        let Some(key) = form.get(&format!("{prefix}.{at}.Key")) else { return tags };
        let value = form.get(&format!("{prefix}.{at}.Value"));
        tags.insert(key.clone(), value.cloned().unwrap_or_default());
    }
    tags
}
