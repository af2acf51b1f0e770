//! A driver's own key-value space: what one call sees of it, and what the call did with it.
//!
//! The daemon hands each call the space as it is, shared and never changed; a call's writes stay with the call. [`Uses`] tells the daemon
//! what was read and what is to be written: it commits that with the record, if what was read is still so, and else asks again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::types::ErrorCode;

/// Most bytes of a key.
pub(crate) const KEY_MAX: usize = 128;
/// Most bytes of a value: what is larger belongs into the backend.
pub(crate) const VALUE_MAX: usize = 16 << 10;
/// Most bytes of all keys and values of a driver: every driver's space lies in the daemon's memory.
pub(crate) const BYTES_MAX: usize = 1 << 20;
/// Most keys of a driver.
pub(crate) const KEYS_MAX: usize = 1024;

/// A driver's keys and values.
pub type Store = BTreeMap<String, Arc<[u8]>>;

/// What a call may do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It sees an empty one: its answer may be kept for later.
    None,
    /// It may look.
    Read,
    /// It may change it.
    Write,
}

/// Questions of a call that are remembered one by one; a call that asks for more has seen all.
const SEEN_MAX: usize = 1024;

/// What a call did with its driver's store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uses {
    /// What was there.
    before: Arc<Store>,
    seen: Seen,
    /// Each key that it wrote last, or deleted.
    writes: BTreeMap<String, Option<Arc<[u8]>>>,
}

/// What a call has seen of what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// Keys, and prefixes of keys.
    Some {
        keys: BTreeSet<String>,
        prefixes: BTreeSet<String>,
    },
    All,
}

impl Default for Seen {
    fn default() -> Self {
        Self::Some { keys: BTreeSet::new(), prefixes: BTreeSet::new() }
    }
}

impl Seen {
    /// Remembers a question.
    fn note(&mut self, what: &str, is_prefix: bool) {
        let Self::Some { keys, prefixes } = self else { return };
        if keys.len() + prefixes.len() == SEEN_MAX {
            *self = Self::All;
        } else {
            let seen = if is_prefix { prefixes } else { keys };
            seen.insert(what.to_owned());
        }
    }

    /// Whether what was seen of one store is the same in another.
    fn is_same(&self, before: &Store, now: &Store) -> bool {
        match self {
            Self::All => before == now,
            Self::Some { keys: seen, prefixes } => {
                seen.iter().all(|key| before.get(key) == now.get(key))
                    && prefixes.iter().all(|prefix| keys(before, prefix).eq(keys(now, prefix)))
            }
        }
    }
}

impl Uses {
    /// What is to be written: a key and its value, or that it goes. Empty if the call changed nothing.
    #[must_use]
    pub fn writes(&self) -> &BTreeMap<String, Option<Arc<[u8]>>> {
        &self.writes
    }

    /// The store after this call, if it has not been changed meanwhile in what the call saw of it, and if all of it still fits.
    #[must_use]
    pub fn applied(&self, store: &Store) -> Option<Store> {
        if !self.seen.is_same(&self.before, store) {
            return None;
        }
        let mut store = store.clone();
        for (key, value) in &self.writes {
            match value {
                Some(value) => drop(store.insert(key.clone(), Arc::clone(value))),
                None => drop(store.remove(key)),
            }
        }
        fits(&store).then_some(store)
    }
}

/// The store as one call has it.
#[derive(Debug)]
pub(crate) struct View {
    access: Access,
    uses: Uses,
}

impl View {
    pub(crate) fn new(before: Arc<Store>, access: Access) -> Self {
        let before = if access == Access::None { Arc::default() } else { before };
        Self { access, uses: Uses { before, ..Uses::default() } }
    }

    pub(crate) fn into_uses(self) -> Uses {
        self.uses
    }

    /// The value of a key, the call's own writes first.
    pub(crate) fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        if let Some(own) = self.uses.writes.get(key) {
            return own.as_deref().map(<[u8]>::to_vec);
        }
        // What is no key was never there and will not be: it need not be remembered.
        if is_key(key) && self.access != Access::None {
            self.uses.seen.note(key, false);
        }
        self.uses.before.get(key).map(|value| value.to_vec())
    }

    /// Sets a key, or deletes it.
    pub(crate) fn put(
        &mut self,
        key: &str,
        value: Option<Vec<u8>>,
    ) -> Result<(), (ErrorCode, String)> {
        if self.access != Access::Write {
            return Err((ErrorCode::Denied, "this call may not write to the store".into()));
        }
        if !is_key(key) {
            let why = format!("a key of the store has 1 to {KEY_MAX} bytes on one line");
            return Err((ErrorCode::InvalidOption, why));
        }
        if value.as_ref().is_some_and(|value| value.len() > VALUE_MAX) {
            let why = format!("a value of the store has at most {} KiB", VALUE_MAX >> 10);
            return Err((ErrorCode::Exhausted, why));
        }
        if value.is_none() && !self.uses.before.contains_key(key) {
            // It is deleted already, as long as nobody else has set it.
            self.uses.writes.remove(key);
            self.uses.seen.note(key, false);
            return Ok(());
        }
        let before = self.uses.writes.insert(key.to_owned(), value.map(Arc::from));
        if self.is_full() {
            match before {
                Some(before) => self.uses.writes.insert(key.to_owned(), before),
                None => self.uses.writes.remove(key),
            };
            let why = format!("the store has at most {KEYS_MAX} keys and {} KiB", BYTES_MAX >> 10);
            return Err((ErrorCode::Exhausted, why));
        }
        Ok(())
    }

    /// The keys that begin so, in order.
    pub(crate) fn keys(&mut self, prefix: &str) -> Vec<String> {
        if self.access == Access::None {
            return Vec::new();
        }
        if prefix.len() <= KEY_MAX {
            self.uses.seen.note(prefix, true);
        }
        let mut all: Vec<String> = keys(&self.uses.before, prefix).cloned().collect();
        all.retain(|key| self.uses.writes.get(key) != Some(&None));
        let own = self.uses.writes.iter().filter(|(_, value)| value.is_some());
        all.extend(own.map(|(key, _)| key.clone()).filter(|key| key.starts_with(prefix)));
        all.sort();
        all.dedup();
        all
    }

    /// Whether what is there with what was written is too much. What was written alone is bounded, too: a key that goes counts until
    /// it has gone.
    fn is_full(&self) -> bool {
        let before = self.uses.before.iter();
        let kept = before.filter(|(key, _)| !self.uses.writes.contains_key(*key));
        let own = self.uses.writes.iter();
        let sizes = kept
            .map(|(key, value)| key.len() + value.len())
            .chain(own.map(|(key, value)| key.len() + value.as_ref().map_or(0, |v| v.len())));
        let (count, bytes) = sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size));
        count > KEYS_MAX || bytes > BYTES_MAX
    }
}

fn keys<'a>(store: &'a Store, prefix: &'a str) -> impl Iterator<Item = &'a String> {
    store
        .range(prefix.to_owned()..)
        .map(|(key, _)| key)
        .take_while(move |key| key.starts_with(prefix))
}

fn fits(store: &Store) -> bool {
    let bytes: usize = store.iter().map(|(key, value)| key.len() + value.len()).sum();
    store.len() <= KEYS_MAX && bytes <= BYTES_MAX
}

fn is_key(key: &str) -> bool {
    (1..=KEY_MAX).contains(&key.len()) && !key.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(pairs: &[(&str, &str)]) -> Arc<Store> {
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), Arc::from(value.as_bytes()));
        Arc::new(pairs.iter().map(pair).collect())
    }

    #[test]
    fn a_call_sees_what_it_wrote_and_leaves_the_rest_alone() {
        let before = store(&[("a", "1"), ("b", "2"), ("other", "3")]);
        let mut view = View::new(Arc::clone(&before), Access::Write);
        view.put("b", None).unwrap();
        view.put("b2", Some(b"4".to_vec())).unwrap();
        assert_eq!(view.get("b"), None);
        assert_eq!(view.get("b2").unwrap(), b"4");
        assert_eq!(view.keys("b"), ["b2"]);
        let after = view.into_uses().applied(&before).unwrap();
        assert_eq!(Arc::new(after), store(&[("a", "1"), ("b2", "4"), ("other", "3")]));
    }

    #[test]
    fn what_another_call_has_changed_meanwhile_is_noticed_where_it_was_looked_at() {
        let before = store(&[("count", "1")]);
        let look = |look: &dyn Fn(&mut View)| {
            let mut view = View::new(Arc::clone(&before), Access::Write);
            look(&mut view);
            view.put("mine", Some(b"x".to_vec())).unwrap();
            view.into_uses()
        };
        let changed = store(&[("count", "2"), ("new", "1")]);
        assert!(look(&|_| {}).applied(&changed).is_some());
        assert!(look(&|view| _ = view.get("count")).applied(&changed).is_none());
        assert!(look(&|view| _ = view.get("new")).applied(&changed).is_none());
        assert!(look(&|view| _ = view.keys("ne")).applied(&changed).is_none());
        assert!(look(&|view| _ = view.keys("z")).applied(&changed).is_some());
        assert!(look(&|view| _ = view.get("count")).applied(&before).is_some());
    }

    #[test]
    fn a_key_that_is_not_there_is_deleted_already_even_in_a_full_store() {
        let full: Store = (0..KEYS_MAX).map(|n| (format!("k{n}"), Arc::from(*b""))).collect();
        let full = Arc::new(full);
        let mut view = View::new(Arc::clone(&full), Access::Write);
        view.put("mine", None).unwrap();
        let uses = view.into_uses();
        assert!(uses.writes().is_empty());
        assert_eq!(uses.applied(&full).as_ref(), Some(&*full));
        // Unless somebody else has set it meanwhile: the call is made again, and finds it.
        assert!(uses.applied(&store(&[("mine", "1")])).is_none());
        let mut view = View::new(Arc::default(), Access::Write);
        view.put("mine", Some(b"1".to_vec())).unwrap();
        view.put("mine", None).unwrap();
        assert_eq!(view.get("mine"), None);
        assert!(view.into_uses().writes().is_empty());
    }

    #[test]
    fn what_a_call_has_seen_takes_a_bounded_room_and_all_of_it_is_looked_at() {
        let before = store(&[("a", "1"), ("b", "2")]);
        let mut view = View::new(Arc::clone(&before), Access::Write);
        for n in 0..SEEN_MAX {
            view.get(&format!("k{n}"));
        }
        assert!(matches!(&view.uses.seen, Seen::Some { keys, .. } if keys.len() == SEEN_MAX));
        view.keys("k");
        assert_eq!(view.uses.seen, Seen::All);
        let uses = view.into_uses();
        assert!(uses.applied(&before).is_some());
        assert!(uses.applied(&store(&[("a", "1"), ("b", "3")])).is_none());
    }

    #[test]
    fn a_call_that_may_not_write_cannot_and_one_whose_answer_is_kept_sees_nothing() {
        let before = store(&[("a", "1")]);
        let mut view = View::new(Arc::clone(&before), Access::Read);
        assert_eq!(view.put("a", None).unwrap_err().0, ErrorCode::Denied);
        assert_eq!(view.get("a").unwrap(), b"1");
        let mut view = View::new(before, Access::None);
        assert_eq!(view.get("a"), None);
        assert_eq!(view.keys(""), Vec::<String>::new());
    }

    #[test]
    fn the_store_has_limits_of_keys_and_bytes_and_what_is_refused_was_not_written() {
        let mut view = View::new(Arc::default(), Access::Write);
        for n in 0..KEYS_MAX {
            view.put(&format!("k{n}"), Some(Vec::new())).unwrap();
        }
        assert_eq!(view.put("more", Some(Vec::new())).unwrap_err().0, ErrorCode::Exhausted);
        assert_eq!(view.get("more"), None);
        let mut view = View::new(Arc::default(), Access::Write);
        let most = BYTES_MAX / VALUE_MAX;
        let written =
            (0..=most).take_while(|n| view.put(&n.to_string(), Some(vec![0; VALUE_MAX])).is_ok());
        assert_eq!(written.count(), most - 1);
        assert_eq!(
            view.put("v", Some(vec![0; VALUE_MAX + 1])).unwrap_err().0,
            ErrorCode::Exhausted
        );
        for key in ["", "a\nb", &"k".repeat(KEY_MAX + 1)] {
            assert_eq!(view.put(key, None).unwrap_err().0, ErrorCode::InvalidOption);
        }
    }
}
