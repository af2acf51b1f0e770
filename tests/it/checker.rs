//! Is everything as it was promised? One checker for every test that kills something.
//!
//! A [`Ledger`] holds what was acknowledged. [`check`] looks at wasmvol from outside (the kernel's mounts, the directories, the
//! command line, the exported catalog) and names each invariant that does not hold by its number. What was asked and not
//! acknowledged is a doubt: it may have happened wholly, or not at all.
//!
//! Which invariant is looked at where:
//!
//! | | here | elsewhere |
//! |---|---|---|
//! | I1 to I7, I9 to I17, I24, I25 | by name, at rest after each kill | in memory and at every step: `host/src/volumes/model/check.rs` |
//! | I8 not acknowledged: wholly or not at all | each doubt is tried both ways, and nothing in between lies about | the model's `ledger.rs` |
//! | I18 no file stays open | no descriptor leads into a volume, mountd has no more than at first | 1000 cycles: `limits.rs`; mountd alone: `host/mountd/tests/kernel/volumes.rs` |
//! | I19 a second recovery changes nothing | [`digest`], which `crash.rs` compares | `model.rs` |
//! | I20 what hangs delays nobody else | [`answers_from_memory`], while mountd stands still | drivers that loop: `drivers.rs`; how fast: `make bench` |
//! | I21 a driver reaches nothing of another | | no file, no network, no environment: `host/driver/tests/engine/hostile.rs` |
//! | I22 secrets are in no line | | a canary is looked for everywhere: `support/canary.rs`, `secrets.rs`; what may be one is not repeated: `host/src/volumes/options.rs` |
//! | I23 limits | | `limits.rs`, `host/driver/tests/engine/hostile.rs` |
//! | I26 one verb a volume, and none waits for another's | [`answers_from_memory`]; afterwards every volume's turn comes | two requests at once: the model's `kernel.rs` |

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde_json::Value;

use crate::support::container::Container;
use crate::support::mounts::{self, Mount};
use crate::support::try_until;
use crate::support::wasmvol::Wasmvol;

/// What is tried again by itself is tried within seconds.
const SETTLE: Duration = Duration::from_secs(60);

/// What was acknowledged of one volume.
#[derive(Debug, Clone)]
pub(crate) struct Promise {
    pub(crate) driver: String,
    /// None until it is seen for the first time.
    pub(crate) id: Option<String>,
    pub(crate) holders: BTreeMap<String, u64>,
    /// Device and root of its mount when that was acknowledged.
    pub(crate) mount: Option<(String, String)>,
    /// Content of the file `canary`, once it was written.
    pub(crate) canary: Option<String>,
    /// A container has it, whatever its engine says.
    pub(crate) is_held: bool,
}

/// What was acknowledged, and what must not be touched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    pub(crate) volumes: BTreeMap<String, Promise>,
    /// Ids of volumes that were removed.
    removed: BTreeSet<String>,
    strangers: Vec<Stranger>,
    /// How few files mountd had open when it was looked at.
    files: Option<usize>,
}

/// A file that belongs to nobody, in or beside our directories.
#[derive(Debug, Clone)]
struct Stranger {
    path: PathBuf,
    inode: u64,
}

/// A call that changes something.
#[derive(Debug, Clone)]
pub(crate) enum Verb {
    Create { name: String, driver: String },
    Mount { name: String, id: String },
    Unmount { name: String, id: String },
    Remove { name: String },
}

impl Ledger {
    /// The ledger after a verb has happened.
    pub(crate) fn after(mut self, verb: &Verb) -> Self {
        match verb {
            Verb::Create { name, driver } => {
                let promise = Promise {
                    driver: driver.clone(),
                    id: None,
                    holders: BTreeMap::new(),
                    mount: None,
                    canary: None,
                    is_held: false,
                };
                self.volumes.entry(name.clone()).or_insert(promise);
            }
            Verb::Mount { name, id } => {
                *self.promise(name).holders.entry(id.clone()).or_default() += 1;
            }
            Verb::Unmount { name, id } => {
                let promise = self.promise(name);
                if let Some(count) = promise.holders.get_mut(id) {
                    *count -= 1;
                }
                promise.holders.retain(|_, count| *count > 0);
                if promise.holders.is_empty() && !promise.is_held {
                    promise.mount = None;
                }
            }
            Verb::Remove { name } => {
                if let Some(promise) = self.volumes.remove(name) {
                    self.removed.extend(promise.id);
                }
            }
        }
        self
    }

    pub(crate) fn promise(&mut self, name: &str) -> &mut Promise {
        self.volumes.get_mut(name).unwrap()
    }

    /// Puts files where wasmvol must leave them alone: beside its directories and, unknown to it, inside.
    pub(crate) fn plant_strangers(&mut self, wasmvol: &Wasmvol) {
        let state = wasmvol.state();
        for place in [
            wasmvol.path("outside"),
            state.join("volumes/not-an-id"),
            state.join("volumes/0123456789abcdef0123456789abcdef"),
            state.join("trash/not-an-id"),
        ] {
            fs::create_dir_all(place.join("below")).unwrap();
            let path = place.join("below/file");
            fs::write(&path, "precious").unwrap();
            let inode = fs::metadata(&path).unwrap().ino();
            self.strangers.push(Stranger { path, inode });
        }
    }
}

/// What is to be seen from outside.
struct Seen<'a> {
    wasmvol: &'a Wasmvol,
    anchors: Vec<Mount>,
    mounts: Vec<Mount>,
    /// Volumes as the command line shows them, by name.
    views: BTreeMap<String, Value>,
    /// Records of the exported catalog.
    records: Vec<Value>,
    troubles: Vec<Value>,
    storage: BTreeSet<String>,
    /// Where the open files of mountd and of the daemon lead.
    files: [Vec<PathBuf>; 2],
    containers: &'a BTreeMap<String, Container>,
}

impl<'a> Seen<'a> {
    fn look(wasmvol: &'a Wasmvol, containers: &'a BTreeMap<String, Container>) -> Self {
        let anchor = wasmvol.anchor();
        let views = wasmvol.json("volume ls");
        let by_name = |view: &Value| (text(&view["name"]), view.clone());
        let export = wasmvol.cli("catalog export").ok();
        let lines = export.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        Self {
            wasmvol,
            anchors: mounts::all().into_iter().filter(|m| Path::new(&m.path) == anchor).collect(),
            mounts: wasmvol.volume_mounts(),
            views: views.as_array().unwrap().iter().map(by_name).collect(),
            records: lines.filter_map(|mut line| Some(line.get_mut("volume")?.take())).collect(),
            troubles: wasmvol.json("status")["troubles"].as_array().unwrap().clone(),
            storage: wasmvol.entries("volumes").into_iter().collect(),
            files: [wasmvol.mountd(), wasmvol.daemon()].map(open_files),
            containers,
        }
    }

    fn id(&self, name: &str) -> Option<String> {
        self.views.get(name).map(|view| text(&view["status"]["id"]))
    }

    fn mounts_of(&self, id: &str) -> Vec<&Mount> {
        let path = self.wasmvol.anchor().join(id);
        self.mounts.iter().filter(|m| Path::new(&m.path) == path).collect()
    }
}

/// Every invariant that a crash test can see, by its number.
type Invariant = fn(&Seen<'_>, &Ledger) -> Result<(), String>;
const INVARIANTS: [(&str, Invariant); 18] = [
    ("I1 every mount under the anchor is of one volume", every_mount_has_a_volume),
    ("I2 a mounted volume is mounted once, with its own file system", mounted_once),
    ("I3 mounts are nosuid, nodev and private; the anchor is shared and read-only", flags),
    ("I4 a volume is mounted while it has holders, or a container has it", mounted_while_held),
    ("I5, I6, I25 holders are those that were acknowledged, and no others", holders),
    ("I5 a mount that was acknowledged is still the same", same_mount),
    ("I7 what was created is there, and what was removed is not", there_or_gone),
    ("I8 nothing lies about that is neither before nor after a verb", nothing_in_between),
    ("I9 no record is half done", nothing_half_done),
    ("I10 what is not ours is untouched", strangers_untouched),
    ("I11 the data of every volume is what was written", data),
    ("I12 no loop device is left", no_loops),
    ("I13 no process is left", no_helpers),
    (
        "I14 the directories hold what the records name, and what is unknown is reported",
        directories,
    ),
    ("I15 one superblock a volume", one_superblock),
    ("I16 nothing lies under a mountpoint", underlay),
    ("I17, I24 stores are whole, and no id serves twice", stores),
    ("I18 no file of a volume is open, and none too many", no_file_left_open),
];

/// Checks every invariant. Of the doubts any may have happened; the ledger afterwards holds what did. Recovery is given a while for
/// what needs a driver: drivers are taken up beside it.
pub(crate) fn check(
    wasmvol: &Wasmvol,
    ledger: &mut Ledger,
    containers: &BTreeMap<String, Container>,
    doubts: &[Verb],
) {
    let mut nearest = String::new();
    let kept = try_until(SETTLE, || {
        let seen = Seen::look(wasmvol, containers);
        nearest.clear();
        let found = what_happened(&seen, ledger, doubts);
        found.map_err(|why| nearest = why).ok()
    });
    *ledger = kept.unwrap_or_else(|| panic!("not as it was promised, {nearest}"));
    // Last, because it makes wasmvol look at volumes that it must have come back to by itself.
    for name in ledger.volumes.keys() {
        let turn = wasmvol.plugin().unmount(name, "nobody");
        assert_eq!(turn, Ok(()), "I26 a verb is left under way for `{name}`");
    }
}

/// While mountd stands still and verbs of some volumes wait for it: what is answered from memory is answered (I20), and each of those
/// verbs has begun, whatever the others wait for (I26).
pub(crate) fn answers_from_memory(wasmvol: &Wasmvol, ledger: &Ledger) {
    let plugin = wasmvol.plugin();
    let listed = plugin.list();
    for name in ledger.volumes.keys() {
        assert!(plugin.get(name).is_ok(), "I20 Get of `{name}`");
        assert!(plugin.path(name).is_ok(), "I20 Path of `{name}`");
        assert!(listed.contains(name), "I20 List with `{name}`");
    }
}

/// The ledger that holds in every point; or what is wrong with the one that comes nearest.
fn what_happened(seen: &Seen<'_>, ledger: &Ledger, doubts: &[Verb]) -> Result<Ledger, String> {
    let mut nearest: Option<(Vec<&Verb>, Vec<String>)> = None;
    for happened in 0..1_usize << doubts.len() {
        let did = |i: &usize| happened & (1 << i) != 0;
        let verbs = (0..doubts.len()).filter(did).map(|i| &doubts[i]);
        let mut candidate = verbs.clone().fold(ledger.clone(), Ledger::after);
        for (name, promise) in &mut candidate.volumes {
            promise.id = promise.id.take().or_else(|| seen.id(name));
        }
        // A child of its own may have been seen at first.
        let count = seen.files[0].len();
        candidate.files = Some(candidate.files.map_or(count, |least| least.min(count)));
        let broken = broken(seen, &candidate);
        if broken.is_empty() {
            return Ok(candidate);
        }
        if nearest.as_ref().is_none_or(|(_, fewest)| broken.len() < fewest.len()) {
            nearest = Some((verbs.collect(), broken));
        }
    }
    let (verbs, broken) = nearest.unwrap();
    Err(format!("even if {verbs:?} happened:\n  {}", broken.join("\n  ")))
}

fn broken(seen: &Seen<'_>, ledger: &Ledger) -> Vec<String> {
    let wrong = |(name, invariant): &(&str, Invariant)| {
        invariant(seen, ledger).err().map(|why| format!("{name}: {why}"))
    };
    INVARIANTS.iter().filter_map(wrong).collect()
}

/// All that recovery decides about, as text: the same before and after another recovery (I19).
pub(crate) fn digest(wasmvol: &Wasmvol) -> String {
    let mut lines: Vec<String> =
        wasmvol.cli("catalog export").ok().lines().map(str::to_owned).collect();
    lines.extend(wasmvol.entries("volumes"));
    for mount in wasmvol.volume_mounts() {
        lines.push(format!("{} {} {} {}", mount.id, mount.path, mount.device, mount.root));
    }
    for view in wasmvol.json("volume ls").as_array().unwrap() {
        let status = &view["status"];
        lines.push(format!("{} {} {}", view["name"], status["mounted"], status["holders"]));
    }
    lines.sort();
    lines.join("\n")
}

fn every_mount_has_a_volume(seen: &Seen<'_>, _: &Ledger) -> Result<(), String> {
    for mount in &seen.mounts {
        let id = mount.path.rsplit('/').next().unwrap_or_default();
        let records = seen.records.iter().filter(|r| r["id"] == id).count();
        ensure(records == 1, || format!("{mount:?} has {records} records"))?;
    }
    Ok(())
}

fn mounted_once(seen: &Seen<'_>, _: &Ledger) -> Result<(), String> {
    for (name, view) in &seen.views {
        let id = text(&view["status"]["id"]);
        let mounts = seen.mounts_of(&id);
        let is_mounted = view["status"]["mounted"] == true;
        ensure(mounts.len() == usize::from(is_mounted), || format!("`{name}`: {view} {mounts:?}"))?;
        for mount in mounts {
            let fits = match view["status"]["driver"].as_str() {
                Some("tmpfs") => mount.filesystem == "tmpfs" && mount.root == "/",
                _ => mount.root.ends_with(&format!("/volumes/{id}/data")),
            };
            ensure(fits, || format!("`{name}`: {mount:?}"))?;
        }
    }
    Ok(())
}

fn flags(seen: &Seen<'_>, _: &Ledger) -> Result<(), String> {
    let has = |mount: &Mount, flag: &str| mount.flags.iter().any(|f| f == flag);
    for mount in &seen.mounts {
        let fits = has(mount, "nosuid") && has(mount, "nodev") && !mount.is_shared;
        ensure(fits, || format!("{mount:?}"))?;
    }
    match &seen.anchors[..] {
        [anchor] => ensure(has(anchor, "ro") && anchor.is_shared, || format!("{anchor:?}")),
        anchors => Err(format!("anchors: {anchors:?}")),
    }
}

fn mounted_while_held(seen: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    for (name, promise) in &ledger.volumes {
        let Some(view) = seen.views.get(name) else { continue };
        let is_wanted = !promise.holders.is_empty() || promise.is_held;
        ensure(view["status"]["mounted"] == is_wanted, || format!("`{name}`: {view}"))?;
        let is_draining = promise.holders.is_empty() && promise.is_held;
        let word = if is_draining { "draining: " } else { "ok" };
        ensure(text(&view["status"]["health"]).starts_with(word), || format!("`{name}`: {view}"))?;
    }
    Ok(())
}

fn holders(seen: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    for (name, promise) in &ledger.volumes {
        let Some(view) = seen.views.get(name) else { continue };
        let shown = view["status"]["holders"].as_array().unwrap().iter();
        let shown: BTreeMap<String, u64> =
            shown.map(|h| (text(&h["id"]), h["count"].as_u64().unwrap())).collect();
        ensure(shown == promise.holders, || {
            format!("`{name}`: {shown:?}, not {:?}", promise.holders)
        })?;
    }
    Ok(())
}

fn same_mount(seen: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    for (name, promise) in &ledger.volumes {
        let (Some(id), Some((device, root))) = (&promise.id, &promise.mount) else { continue };
        for mount in seen.mounts_of(id) {
            let same = (&mount.device, &mount.root) == (device, root);
            ensure(same, || format!("`{name}`: {mount:?}, not {device} {root}"))?;
        }
    }
    Ok(())
}

fn there_or_gone(seen: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    let shown: Vec<_> = seen.views.keys().collect();
    let promised: Vec<_> = ledger.volumes.keys().collect();
    ensure(shown == promised, || format!("{shown:?} are shown, {promised:?} were promised"))?;
    ensure(seen.records.len() == promised.len(), || format!("records: {:?}", seen.records))?;
    for (name, promise) in &ledger.volumes {
        let view = &seen.views[name];
        let same =
            view["status"]["driver"] == promise.driver.as_str() && seen.id(name) == promise.id;
        ensure(same, || format!("`{name}`: {view}, not {promise:?}"))?;
        ensure(seen.wasmvol.plugin().get(name).is_ok(), || format!("Get says no to `{name}`"))?;
    }
    for id in &ledger.removed {
        ensure(!seen.storage.contains(id), || format!("the storage of removed {id} is there"))?;
        ensure(seen.mounts_of(id).is_empty(), || format!("removed {id} is mounted"))?;
    }
    Ok(())
}

fn nothing_in_between(seen: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    let places: BTreeSet<_> = fs::read_dir(seen.wasmvol.anchor())
        .unwrap()
        .map(|entry| entry.unwrap().path().to_string_lossy().into_owned())
        .collect();
    let mounted: BTreeSet<_> = seen.mounts.iter().map(|mount| mount.path.clone()).collect();
    ensure(places == mounted, || format!("mountpoints: {places:?}, mounts: {mounted:?}"))?;
    let trash = seen.wasmvol.state().join("trash");
    let is_planted = |name: &&String| {
        ledger.strangers.iter().any(|stranger| stranger.path.starts_with(trash.join(name)))
    };
    let waste = seen.wasmvol.entries("trash").into_iter().find(|name| !is_planted(&name));
    ensure(waste.is_none(), || format!("{waste:?} stays in the trash"))
}

fn nothing_half_done(seen: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    let half = seen.records.iter().find(|record| record["phase"] != "ready");
    ensure(half.is_none(), || format!("{half:?}"))?;
    for trouble in &seen.troubles {
        let what = subject_of(trouble);
        let is_draining = ledger.volumes.get(&what).is_some_and(|p| p.is_held);
        let is_planted =
            ledger.strangers.iter().any(|s| s.path.to_string_lossy().contains(what.as_str()));
        ensure(is_draining || is_planted, || trouble.to_string())?;
    }
    Ok(())
}

fn strangers_untouched(_: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    for Stranger { path, inode } in &ledger.strangers {
        let found = fs::metadata(path).map(|m| m.ino()).ok();
        ensure(found == Some(*inode), || format!("{} has gone", path.display()))?;
        let text = fs::read_to_string(path).unwrap_or_default();
        ensure(text == "precious", || format!("{} holds {text:?}", path.display()))?;
    }
    Ok(())
}

fn data(seen: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    for (name, promise) in &ledger.volumes {
        let (Some(id), Some(canary)) = (&promise.id, &promise.canary) else { continue };
        let is_mounted = !seen.mounts_of(id).is_empty();
        let place = match promise.driver.as_str() {
            "tmpfs" if is_mounted => seen.wasmvol.anchor().join(id),
            // Empty at each first mount.
            "tmpfs" => continue,
            _ => seen.wasmvol.state().join("volumes").join(id).join("data"),
        };
        let found = fs::read_to_string(place.join("canary")).ok();
        ensure(found.as_ref() == Some(canary), || {
            format!("`{name}` holds {found:?}, not {canary}")
        })?;
    }
    Ok(())
}

fn no_loops(seen: &Seen<'_>, _: &Ledger) -> Result<(), String> {
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        let is_ours = Path::new(&file).starts_with(seen.wasmvol.state());
        ensure(!is_ours, || format!("{:?} backs {file}", device.file_name()))?;
    }
    Ok(())
}

fn no_helpers(seen: &Seen<'_>, _: &Ledger) -> Result<(), String> {
    // The reaper may still be at work.
    let is_alone = || seen.wasmvol.children() == [seen.wasmvol.daemon()];
    let alone = try_until(SETTLE, || is_alone().then_some(()));
    alone.ok_or_else(|| format!("mountd's children: {:?}", seen.wasmvol.children()))
}

fn directories(seen: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    let of_volumes = ledger.volumes.values().filter(|p| p.driver != "tmpfs");
    let mut expected: BTreeSet<String> = of_volumes.filter_map(|p| p.id.clone()).collect();
    for Stranger { path, .. } in &ledger.strangers {
        let inside = path.strip_prefix(seen.wasmvol.state()).ok();
        let Some(name) = inside.and_then(|path| path.iter().nth(1)) else { continue };
        if path.starts_with(seen.wasmvol.state().join("volumes")) {
            expected.insert(name.to_string_lossy().into_owned());
        }
        let is_told = seen.troubles.iter().any(|t| subject_of(t) == name.to_string_lossy());
        ensure(is_told, || format!("nobody is told of {}", path.display()))?;
    }
    ensure(seen.storage == expected, || format!("volumes/: {:?}, not {expected:?}", seen.storage))
}

fn one_superblock(seen: &Seen<'_>, _: &Ledger) -> Result<(), String> {
    for (name, container) in seen.containers {
        let Some(id) = seen.id(name) else { continue };
        let inside = container.mount();
        for mount in seen.mounts_of(&id) {
            let same = (&mount.device, &mount.root) == (&inside.device, &inside.root);
            ensure(same, || format!("`{name}`: {inside:?} in a container, {mount:?} here"))?;
        }
    }
    Ok(())
}

fn underlay(seen: &Seen<'_>, _: &Ledger) -> Result<(), String> {
    // A clone that is not recursive shows what the mounts cover.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(CWD, seen.wasmvol.anchor(), flags).map_err(|e| e.to_string())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&clone);
    for entry in fs::read_dir(format!("/proc/self/fd/{number}")).unwrap() {
        let path = entry.unwrap().path();
        let count = fs::read_dir(&path).map(Iterator::count);
        ensure(matches!(count, Ok(0)), || format!("{} holds {count:?} entries", path.display()))?;
    }
    Ok(())
}

fn stores(seen: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    let mut ids = BTreeSet::new();
    for record in &seen.records {
        let id = text(&record["id"]);
        ensure(!ledger.removed.contains(&id), || format!("{id} serves again: {record}"))?;
        ensure(ids.insert(id), || format!("an id is there twice: {record}"))?;
    }
    for driver in seen.wasmvol.json("driver ls").as_array().unwrap() {
        let file = format!("drivers/{}.wasm", text(&driver["digest"]));
        ensure(seen.wasmvol.state().join(&file).exists(), || format!("{file} has gone"))?;
    }
    Ok(())
}

fn no_file_left_open(seen: &Seen<'_>, ledger: &Ledger) -> Result<(), String> {
    let volumes = [seen.wasmvol.anchor(), seen.wasmvol.state().join("volumes")];
    let is_inside = |file: &&PathBuf| volumes.iter().any(|v| *file != v && file.starts_with(v));
    let inside = seen.files.iter().flatten().find(is_inside);
    ensure(inside.is_none(), || format!("{inside:?} is open"))?;
    let count = seen.files[0].len();
    ensure(count > 0 && ledger.files == Some(count), || {
        format!("mountd has {count} files open, not {:?}: {:?}", ledger.files, seen.files[0])
    })
}

fn open_files(pid: u32) -> Vec<PathBuf> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).collect()
}

/// What a trouble is about, without the quotes of a name that nobody has checked.
fn subject_of(trouble: &Value) -> String {
    text(&trouble["what"]).trim_matches('`').to_owned()
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
