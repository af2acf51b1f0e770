//! Holders: who has a volume mounted, counted by (mount ID, epoch).
//!
//! dockerd repeats an ID during `docker cp`, and forgets an Unmount when it dies: neither a set nor a plain count is right. So the
//! count is kept within an epoch, the life of the process that asked, and what outlives an epoch is settled by the kernel's
//! evidence. Pure: the verbs bring the clock and say which processes run. See SEMANTICS.md, "Holders".

use serde::{Deserialize, Serialize};
use wasmvol_plan::VolumeName;

/// Most holders of one volume: with the longest IDs a table row has 1.5 MB, and no machine runs more containers.
pub(crate) const HOLDERS_MAX: usize = 4096;
/// Longest mount ID in bytes. Docker's and podman's have 64.
pub(crate) const HOLDER_ID_MAX: usize = 256;
/// A holder younger than this is never dropped by Remove or by time: dockerd waits 120 s for a Mount, so its container may just
/// be starting. Counted in the machine's uptime: nobody sets that clock.
pub(crate) const GRACE_S: u64 = 120;

/// The time, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Seconds since 1970, for people: it may jump.
    pub(crate) date: u64,
    /// Seconds since the machine's boot, suspended ones too.
    pub(crate) uptime: u64,
}

/// One process and no later one that got its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Clock ticks after boot: field 22 of /proc/PID/stat.
    pub(crate) start: u64,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Caller {
    /// A dockerd, or anything that is none of the others: the epoch is its process.
    Engine(Process),
    /// podman: a short-lived process with one constant ID for all; it counts by itself, and its holder never expires by time.
    Podman(Process),
    /// `wasmvol volume …`: never expires.
    Cli,
}

impl Caller {
    /// The process whose mount namespace must see the mount.
    pub(crate) fn pid(self) -> Option<u32> {
        match self {
            Self::Engine(process) | Self::Podman(process) => Some(process.pid),
            Self::Cli => None,
        }
    }
}

/// One (volume, mount ID) with its count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// The mount ID.
    pub(crate) id: String,
    pub(crate) count: u32,
    /// Who mounted last with this ID.
    pub(crate) caller: Caller,
    /// Seconds since 1970 of that Mount, to be shown.
    pub(crate) since: u64,
    /// Seconds from the boot to that Mount: rows die with the boot. Rows that an earlier wasmvol wrote have none.
    #[serde(default)]
    pub(crate) uptime: u64,
}

impl Holder {
    fn is_young(&self, now: Now) -> bool {
        now.uptime.saturating_sub(self.uptime) < GRACE_S
    }
}

/// The holders of one volume. It is mounted while there are any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Holders(Vec<Holder>);

impl Holders {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Holder> {
        self.0.iter()
    }

    /// Counts one Mount. The same ID counts up within its epoch; after the epoch has ended its count is a rest that nobody will
    /// ever give back, and the ID starts again at one. False: there are [`HOLDERS_MAX`] others.
    pub(crate) fn add(
        &mut self,
        id: &str,
        caller: Caller,
        now: Now,
        is_running: impl Fn(Process) -> bool,
    ) -> bool {
        let Some(holder) = self.0.iter_mut().find(|h| h.id == id) else {
            let fits = self.0.len() < HOLDERS_MAX;
            if fits {
                let (id, Now { date, uptime }) = (id.to_owned(), now);
                self.0.push(Holder { id, count: 1, caller, since: date, uptime });
            }
            return fits;
        };
        let ended = match (holder.caller, caller) {
            (Caller::Engine(then), Caller::Engine(again)) => then != again && !is_running(then),
            (Caller::Engine(then), _) => !is_running(then),
            (Caller::Podman(_) | Caller::Cli, _) => false,
        };
        holder.count = if ended { 1 } else { holder.count.saturating_add(1) };
        holder.caller = caller;
        (holder.since, holder.uptime) = (now.date, now.uptime);
        true
    }

    /// Takes one count off an ID. False: the ID is unknown, and nothing changed.
    pub(crate) fn release(&mut self, id: &str) -> bool {
        let Some(at) = self.0.iter().position(|h| h.id == id) else { return false };
        if let Some(holder) = self.0.get_mut(at) {
            holder.count = holder.count.saturating_sub(1);
            if holder.count == 0 {
                self.0.remove(at);
            }
        }
        true
    }

    /// What is left when `caller` says that nobody of its own uses the volume: an engine sends Remove only then. Holders of other
    /// engines that still run stay, and so does everything younger than [`GRACE_S`].
    pub(crate) fn without_rests_of(
        &self,
        caller: Caller,
        now: Now,
        is_running: impl Fn(Process) -> bool,
    ) -> Self {
        let stays = |holder: &&Holder| {
            let rest = match (holder.caller, caller) {
                (Caller::Engine(then), Caller::Engine(asks)) => then == asks || !is_running(then),
                (Caller::Engine(then), _) => !is_running(then),
                (Caller::Podman(_), Caller::Podman(_)) => true,
                (Caller::Podman(_) | Caller::Cli, _) => false,
            };
            !rest || holder.is_young(now)
        };
        Self(self.0.iter().filter(stays).cloned().collect())
    }

    /// Whether every holder is the rest of an engine that has ended, and none is young: then the kernel alone decides.
    pub(crate) fn have_expired(&self, now: Now, is_running: impl Fn(Process) -> bool) -> bool {
        !self.0.is_empty()
            && self.0.iter().all(|holder| match holder.caller {
                Caller::Engine(then) => !is_running(then) && !holder.is_young(now),
                Caller::Podman(_) | Caller::Cli => false,
            })
    }

    /// One line for an error: how many, and who.
    pub(crate) fn describe(&self) -> String {
        let mounts: u32 = self.0.iter().map(|h| h.count).sum();
        let times = if mounts == 1 { "time" } else { "times" };
        let who = self.kinds(["docker", "podman", "`wasmvol volume mount`"]);
        format!("mounted {mounts} {times} by {}", who.join(" and "))
    }

    /// What a person types so that each of them lets go of the volume, and takes it anew if it goes on.
    pub(crate) fn restart(&self, volume: &VolumeName) -> String {
        let engine =
            |name: &str| format!("{name} ps -q --filter volume={volume} | xargs -r {name} restart");
        let ours = format!("wasmvol volume unmount {volume}");
        self.kinds([&engine("docker"), &engine("podman"), &ours]).join("; ")
    }

    /// The words of those kinds of callers that are there: an engine, podman, this program.
    fn kinds<'a>(&self, [engine, podman, cli]: [&'a str; 3]) -> Vec<&'a str> {
        let is_there = |wanted: fn(Caller) -> bool| self.0.iter().any(|h| wanted(h.caller));
        let all = [
            (is_there(|c| matches!(c, Caller::Engine(_))), engine),
            (is_there(|c| matches!(c, Caller::Podman(_))), podman),
            (is_there(|c| c == Caller::Cli), cli),
        ];
        all.into_iter().filter_map(|(is_there, word)| is_there.then_some(word)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Process = Process { pid: 10, start: 1 };
    const NEW: Process = Process { pid: 10, start: 2 };
    const NOW: Now = Now { date: 1_700_000_000, uptime: 10_000 };

    /// So many seconds later.
    fn later(seconds: u64) -> Now {
        Now { date: NOW.date + seconds, uptime: NOW.uptime + seconds }
    }

    fn only_new(process: Process) -> bool {
        process == NEW
    }

    fn count(holders: &Holders, id: &str) -> u32 {
        holders.iter().find(|h| h.id == id).map_or(0, |h| h.count)
    }

    #[test]
    fn docker_cp_repeats_the_id_and_the_container_keeps_its_mount() {
        let mut holders = Holders::default();
        holders.add("a", Caller::Engine(NEW), NOW, only_new);
        holders.add("a", Caller::Engine(NEW), NOW, only_new);
        assert!(holders.release("a"));
        assert_eq!(count(&holders, "a"), 1);
    }

    #[test]
    fn an_id_of_an_engine_that_has_ended_starts_again_at_one() {
        let mut holders = Holders::default();
        holders.add("a", Caller::Engine(OLD), NOW, |_| true);
        holders.add("a", Caller::Engine(OLD), NOW, |_| true);
        holders.add("a", Caller::Engine(NEW), NOW, only_new);
        assert_eq!(count(&holders, "a"), 1);
    }

    #[test]
    fn podmans_constant_id_counts_across_its_short_lived_processes() {
        let mut holders = Holders::default();
        holders.add("c", Caller::Podman(OLD), NOW, |_| false);
        holders.add("c", Caller::Podman(NEW), NOW, |_| false);
        assert_eq!(count(&holders, "c"), 2);
        assert!(!holders.have_expired(later(10 * GRACE_S), |_| false));
    }

    #[test]
    fn an_unknown_id_changes_nothing() {
        let mut holders = Holders::default();
        holders.add("a", Caller::Cli, NOW, only_new);
        let before = holders.clone();
        assert!(!holders.release("b"));
        assert_eq!(holders, before);
    }

    #[test]
    fn remove_drops_rests_of_its_own_engine_only_when_they_are_old() {
        let mut holders = Holders::default();
        holders.add("a", Caller::Engine(NEW), NOW, only_new);
        let young = holders.without_rests_of(Caller::Engine(NEW), later(GRACE_S - 1), only_new);
        assert!(!young.is_empty());
        let old = holders.without_rests_of(Caller::Engine(NEW), later(GRACE_S), only_new);
        assert!(old.is_empty());
    }

    #[test]
    fn a_clock_that_is_set_neither_ends_the_grace_nor_prolongs_it() {
        let mut holders = Holders::default();
        holders.add("a", Caller::Engine(OLD), NOW, |_| true);
        let young = Now { date: NOW.date + 10 * GRACE_S, ..later(GRACE_S - 1) };
        assert!(!holders.have_expired(young, only_new));
        let old = Now { date: NOW.date - 10 * GRACE_S, ..later(GRACE_S) };
        assert!(holders.have_expired(old, only_new));
    }

    #[test]
    fn remove_by_one_engine_never_drops_a_holder_of_another_that_runs() {
        let other = Process { pid: 77, start: 5 };
        let mut holders = Holders::default();
        holders.add("a", Caller::Engine(other), NOW, |_| true);
        holders.add("c", Caller::Podman(OLD), NOW, |_| true);
        let left = holders.without_rests_of(Caller::Engine(NEW), later(10 * GRACE_S), |_| true);
        assert_eq!(left, holders);
    }
}
