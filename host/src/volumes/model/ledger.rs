//! What was acknowledged to the engines, and what of it is in doubt.
//!
//! Each verb is noted when it is asked and when it is answered. A verb that was refused has not happened; one under which the daemon
//! died may have happened wholly or not at all, and whatever is there at rest decides for good.

use std::collections::{BTreeMap, BTreeSet};

use wasmvol_plan::Id;

use super::engines::NAMES;
use crate::volumes::VolumeError;

/// The holders of one volume with their counts.
pub(super) type Counts = BTreeMap<String, u32>;

/// What a volume was made with: driver, size, whether its data is to be kept. None if it was found.
pub(super) type Asked = Option<(&'static str, &'static str, bool)>;

/// One call of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verb {
    Create { name: &'static str, asked: Asked },
    Remove { name: &'static str },
    Mount { name: &'static str, holder: String },
    Unmount { name: &'static str, holder: String },
}

impl Verb {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Create { name, .. }
            | Self::Remove { name }
            | Self::Mount { name, .. }
            | Self::Unmount { name, .. } => name,
        }
    }
}

/// A volume that was acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) id: Id,
    asked: Asked,
    /// Its removal has begun, or its making or removal is in doubt: it may go at any time.
    may_go: bool,
}

#[derive(Default)]
pub(super) struct Ledger {
    known: BTreeMap<&'static str, Known>,
    /// Names that may be there: a create is in doubt, or a backend knows one.
    may_come: BTreeSet<&'static str>,
    found: BTreeSet<&'static str>,
    /// Counts that the table may show; none but the empty ones if a name is not here.
    counts: BTreeMap<&'static str, BTreeSet<Counts>>,
    /// Volumes of a dockerd that crashed: their holders start again, or expire all at once.
    rests: BTreeSet<&'static str>,
    /// What was asked and not answered yet.
    open: BTreeMap<u64, Verb>,
    next: u64,
}

impl Ledger {
    pub(super) fn begin(&mut self, verb: Verb) -> u64 {
        self.next += 1;
        self.open.insert(self.next, verb);
        self.next
    }

    /// Whether a verb of that volume is under way.
    pub(super) fn is_busy(&self, name: &str) -> bool {
        self.open.values().any(|verb| verb.name() == name)
    }

    /// A verb was answered. `shown` is what Get shows of the volume right then.
    pub(super) fn end(&mut self, number: u64, error: Option<&VolumeError>, shown: Option<Id>) {
        let Some(verb) = self.open.remove(&number) else { return };
        match (verb, error) {
            (Verb::Create { name, asked }, None) => {
                let id = shown.expect("I7: an acknowledged volume is shown");
                match self.known.get_mut(name) {
                    Some(known) if known.id == id => {
                        let fits = known.asked.is_none() || known.asked == asked;
                        assert!(fits, "I7: {name} was acknowledged, and has other options");
                        known.may_go = false;
                    }
                    known => {
                        let may_go = known.is_none_or(|known| known.may_go);
                        assert!(may_go, "I7: {name} was acknowledged, and is another one");
                        self.is_new(name, id, asked);
                        // A create that was in doubt may have made it earlier, and a Mount been answered since.
                        if !self.may_come.contains(name) {
                            self.counts.remove(name);
                            self.rests.remove(name);
                        }
                    }
                }
            }
            (Verb::Remove { name }, None) => {
                self.known.remove(name);
                self.counts.remove(name);
                self.rests.remove(name);
            }
            (Verb::Remove { .. }, Some(VolumeError::NotFound)) => {}
            // It may have been refused, or may have begun.
            (Verb::Remove { name }, Some(_)) => self.may_go(name),
            (verb @ (Verb::Mount { .. } | Verb::Unmount { .. }), None) => {
                let name = verb.name();
                let counts = self.counts_of(name);
                self.counts
                    .insert(name, counts.iter().flat_map(|c| self.after(&verb, c)).collect());
            }
            (Verb::Create { .. } | Verb::Mount { .. } | Verb::Unmount { .. }, Some(_)) => {}
        }
    }

    /// The daemon died: each open verb has happened, or it has not.
    pub(super) fn die(&mut self) {
        for verb in std::mem::take(&mut self.open).into_values() {
            let name = verb.name();
            match verb {
                Verb::Create { .. } => drop(self.may_come.insert(name)),
                Verb::Remove { .. } => self.may_go(name),
                Verb::Mount { .. } | Verb::Unmount { .. } => {
                    let mut counts = self.counts_of(name);
                    let after: Vec<_> = counts.iter().flat_map(|c| self.after(&verb, c)).collect();
                    counts.extend(after);
                    self.counts.insert(name, counts);
                }
            }
        }
    }

    /// A dockerd was killed: what it had mounted is a rest from now on.
    pub(super) fn leave_rests(&mut self) {
        self.rests.extend(NAMES);
    }

    /// A backend knows a volume of that name, or did.
    pub(super) fn may_be_found(&mut self, name: &'static str) {
        self.found.insert(name);
    }

    pub(super) fn reboot(&mut self) {
        self.counts.clear();
        self.rests.clear();
    }

    /// The volume that was acknowledged and must be there whatever happens, if there is one.
    pub(super) fn promised(&self, name: &str) -> Option<Id> {
        self.known.get(name).filter(|known| !known.may_go).map(|known| known.id)
    }

    /// At rest: what is shown is what was acknowledged, or a doubt is settled. `is_going`: its removal is not finished.
    pub(super) fn settle(&mut self, name: &'static str, shown: Option<Id>, is_going: bool) {
        let known = self.known.get(name).cloned();
        match (known, shown) {
            (Some(known), Some(id)) if known.id == id => {
                if let Some(known) = self.known.get_mut(name) {
                    known.may_go = is_going;
                }
            }
            (Some(known), None) => {
                assert!(known.may_go, "I7: {name} was acknowledged and is gone");
                self.known.remove(name);
                self.counts.remove(name);
            }
            (known, Some(id)) => {
                let may_go = known.is_none_or(|known| known.may_go);
                assert!(may_go, "I7: {name} was acknowledged, and is another one");
                let is_expected = self.may_come.contains(name) || self.found.contains(name);
                assert!(is_expected, "I7: {name} came back");
                self.is_new(name, id, None);
                if let Some(known) = self.known.get_mut(name) {
                    known.may_go = is_going;
                }
            }
            (None, None) => {}
        }
        self.may_come.remove(name);
    }

    /// At rest, and while the daemon is away: the table holds what was acknowledged, and a doubt is settled.
    pub(super) fn settle_counts(&mut self, name: &'static str, there: &Counts) {
        let counts = self.counts_of(name);
        let has_expired = there.is_empty() && self.rests.contains(name);
        let fits = has_expired || counts.contains(there);
        assert!(fits, "I5, I6, I8, I25: holders of {name}: {there:?}, not {counts:?}");
        self.counts.insert(name, [there.clone()].into());
    }

    fn is_new(&mut self, name: &'static str, id: Id, asked: Asked) {
        self.known.insert(name, Known { id, asked, may_go: false });
    }

    fn may_go(&mut self, name: &'static str) {
        if let Some(known) = self.known.get_mut(name) {
            known.may_go = true;
        }
        let mut counts = self.counts_of(name);
        counts.insert(Counts::new());
        self.counts.insert(name, counts);
    }

    fn counts_of(&self, name: &str) -> BTreeSet<Counts> {
        self.counts.get(name).cloned().unwrap_or_else(|| [Counts::new()].into())
    }

    /// What a Mount or an Unmount makes of these counts.
    fn after(&self, verb: &Verb, before: &Counts) -> Vec<Counts> {
        let mut counts = before.clone();
        match verb {
            Verb::Mount { name, holder } => {
                let count = counts.entry(holder.clone()).or_default();
                *count += 1;
                let mut anew = before.clone();
                anew.insert(holder.clone(), 1);
                if self.rests.contains(name) { vec![counts, anew] } else { vec![counts] }
            }
            Verb::Unmount { holder, .. } => {
                if let Some(count) = counts.get_mut(holder) {
                    *count -= 1;
                }
                counts.retain(|_, count| *count > 0);
                vec![counts]
            }
            Verb::Create { .. } | Verb::Remove { .. } => vec![counts],
        }
    }
}
