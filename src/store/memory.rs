//! The first tier: stored responses in this process's memory, within a budget of bytes.
//!
//! A primary key leads to the response itself, to the list of its variants, or to a mark that it
//! could not be shared. Each variant is an entry of its own, for a weight is frozen when an entry
//! is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};
use parking_lot::Mutex;
use quick_cache::sync::{Cache, EntryAction};
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use smallvec::SmallVec;

use crate::clock::Timestamp;
use crate::policy::Reason;
use crate::policy::key::{KeyBytes, Place};
use crate::policy::vary::append_selecting;

use super::entry::{Entry, Head};
use super::ledger::{Charge, Ledger};
use super::purge::{Judgement, Purge, PurgeLog, Seen};

/// What an entry costs beside its head, body and key: the entry itself, its two reference counts,
/// the allocator's rounding, and its place in the table. Measured by `tests/memory.rs`.
const ENTRY_OVERHEAD: u64 = 480;

/// One byte in so many is for field maps that are kept ready.
const READY_PART: u64 = 16;

/// Variants under one primary key; the one that was not used for the longest time makes room.
const MAX_VARIANTS: usize = 64;

type Key = Box<[u8]>;

#[derive(Clone, Debug)]
enum Slot {
    Entry(Arc<Entry>),
    Variants(Arc<Variants>),
    /// Not storable until then: fetched without waiting (hit-for-miss).
    NotShared {
        until: Timestamp,
        reason: Reason,
    },
}

/// The variants under one primary key, newest last.
#[derive(Clone, Debug, Default)]
struct Variants {
    list: Vec<Variant>,
    /// All of them are selected by the same fields.
    is_uniform: bool,
}

#[derive(Clone, Debug)]
struct Variant {
    names: Vec<HeaderName>,
    key: Key,
}

#[derive(Clone, Debug)]
struct ByCost;

impl Weighter<Key, Slot> for ByCost {
    fn weight(&self, key: &Key, slot: &Slot) -> u64 {
        let own = match slot {
            Slot::Entry(entry) => entry.weight(),
            // Frozen with the list: a changed list is a new slot.
            Slot::Variants(variants) => variants
                .list
                .iter()
                .map(|variant| variant.key.len() as u64 + 64)
                .sum(),
            Slot::NotShared { .. } => 0,
        };
        own + key.len() as u64 + ENTRY_OVERHEAD
    }
}

/// What was dropped so soon after it had come would likely have been asked for again.
const YOUNG: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
struct CountEvictions {
    all: Arc<AtomicU64>,
    young: Arc<AtomicU64>,
}

impl Lifecycle<Key, Slot> for CountEvictions {
    /// Evicted slots wait here until the shard's lock is released: dropping a large body is slow.
    type RequestState = SmallVec<[(Key, Slot); 2]>;

    fn on_evict(&self, state: &mut Self::RequestState, key: Key, slot: Slot) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if let Slot::Entry(entry) = &slot
            && Timestamp::from(SystemTime::now()).since(entry.head.record.received) < YOUNG
        {
            self.young.fetch_add(1, Ordering::Relaxed);
        }
        state.push((key, slot));
    }
}

/// The answer of a look-up.
#[derive(Clone, Debug)]
pub enum Found {
    Entry(Arc<Entry>),
    /// Known as not storable a moment ago, for this reason.
    NotShared(Reason),
    /// There are variants, but none for these request fields.
    NoVariant,
    Nothing,
}

/// The memory tier.
#[derive(Debug)]
pub struct Memory {
    cache: Cache<Key, Slot, ByCost, DefaultHashBuilder, CountEvictions>,
    evictions: CountEvictions,
    ledger: Arc<Ledger>,
    /// Of the field maps that are kept ready for hot responses.
    ready: Arc<Ledger>,
    purges: Arc<PurgeLog>,
    /// Held while a list of variants is read, changed and put back.
    variants: Mutex<()>,
    /// Counts variants that were stored: the time by which the use of each is told.
    variant_time: AtomicU64,
    variants_dropped: AtomicU64,
}

impl Memory {
    /// A tier for `budget` bytes, what is in flight included, and bodies up to `max_object`, judged
    /// by `purges`.
    pub fn new(budget: u64, max_object: u64, purges: Arc<PurgeLog>) -> Self {
        let ready = budget / READY_PART;
        let budget = budget - ready;
        let in_flight = (budget / 8).max(2 * max_object).min(budget / 2);
        let capacity = budget - in_flight;
        // An object is at most a quarter of a shard, or one shard's ill luck evicts it at once.
        let most_shards = (capacity / (4 * max_object.max(1))).clamp(1, 64);
        let shards = 1 << most_shards.ilog2();
        let options = OptionsBuilder::new()
            .weight_capacity(capacity)
            // A guess, which it grows beyond; as large as a machine would never give at once it is
            // none.
            .estimated_items_capacity((capacity / 1024).min(1 << 20) as usize)
            .shards(shards)
            .build();
        let evictions = CountEvictions::default();
        let cache = match options {
            Ok(options) => Cache::with_options(
                options,
                ByCost,
                DefaultHashBuilder::default(),
                evictions.clone(),
            ),
            // `build` only fails where a required field is missing, and none is.
            Err(_) => Cache::with(
                1024,
                capacity,
                ByCost,
                DefaultHashBuilder::default(),
                evictions.clone(),
            ),
        };
        Self {
            cache,
            evictions,
            ledger: Ledger::new(budget),
            ready: Ledger::new(ready),
            purges,
            variants: Mutex::new(()),
            variant_time: AtomicU64::new(0),
            variants_dropped: AtomicU64::new(0),
        }
    }

    /// A charge on this tier's budget, to be grown by what is about to be held.
    pub fn charge(&self) -> Charge {
        self.ledger.open()
    }

    /// Keeps the field map of a response that answers ready for the next ones, `own` fields of an
    /// answer included, if it is hot.
    pub fn keep_ready(&self, entry: &Entry, own: &[HeaderName]) {
        entry.head.fields.make_ready(own, &self.ready);
    }

    /// What was made unusable, and when.
    pub fn purges(&self) -> &Arc<PurgeLog> {
        &self.purges
    }

    /// Judges `entry`, stored under `key`, by the purges since it was last judged; `false` where
    /// one has made it unusable.
    pub fn is_current(&self, key: &[u8], entry: &Entry) -> bool {
        let judged = entry.judged();
        if judged == self.purges.position() {
            return true;
        }
        let Some(place) = Place::of(key) else {
            return true;
        };
        let seen = Seen {
            judged,
            ..Seen::all_since(entry.head.stamp)
        };
        let groups = entry.head.groups.as_ref();
        let (judgement, position) = self.purges.judge(&place, groups, seen);
        match judgement {
            Judgement::Gone => {
                let causes = &self.purges.causes;
                causes.note_gone(key, &place, groups, entry.head.stamp);
                return false;
            }
            Judgement::StaleSince(at) => entry.make_stale(at),
            Judgement::Untouched => {}
        }
        entry.set_judged(position);
        true
    }

    /// What the purges say of a response that is not stored yet, to a request that came at position
    /// `asked`.
    pub fn judge(&self, key: &[u8], head: &Head, asked: u64) -> Judgement {
        if head.stamp >= asked {
            return Judgement::Untouched;
        }
        let seen = Seen {
            asked,
            ..Seen::all_since(head.stamp)
        };
        let judge = |place: Place<'_>| self.purges.judge(&place, head.groups.as_ref(), seen).0;
        Place::of(key).map_or(Judgement::Untouched, judge)
    }

    /// Whether `entry` may be used as far as the fleet's purges are known.
    pub fn is_trusted(&self, entry: &Entry, now: Timestamp) -> bool {
        self.purges.is_trusted(entry.head.vouched, now)
    }

    /// Whether anything stands under exactly this key.
    pub fn holds(&self, key: &[u8]) -> bool {
        self.cache.peek(key).is_some()
    }

    /// The entry under exactly this key, unless a purge has made it unusable or may have done so
    /// unheard.
    fn get_entry(&self, key: &[u8], entry: Arc<Entry>, now: Timestamp) -> Option<Arc<Entry>> {
        if !self.is_current(key, &entry) {
            self.remove_under(key, &entry);
            return None;
        }
        self.is_trusted(&entry, now).then_some(entry)
    }

    /// Looks up `key`, a primary key, for a request with these fields. Where the response has
    /// variants, `key` becomes the variant's key: flights of different variants do not meet.
    pub fn get(&self, key: &mut KeyBytes, request: &HeaderMap, now: Timestamp) -> Found {
        match self.cache.get(&key[..]) {
            None => Found::Nothing,
            Some(Slot::Entry(entry)) => match self.get_entry(key, entry, now) {
                Some(entry) => Found::Entry(entry),
                None => Found::Nothing,
            },
            Some(Slot::NotShared { until, reason }) if now < until => Found::NotShared(reason),
            Some(Slot::NotShared { .. }) => Found::Nothing,
            Some(Slot::Variants(variants)) => self.get_variant(&variants, key, request, now),
        }
    }

    fn get_variant(
        &self,
        variants: &Variants,
        key: &mut KeyBytes,
        request: &HeaderMap,
        now: Timestamp,
    ) -> Found {
        let primary = key.len();
        // The newest list of names first, and each list once (RFC 9111 §4.1).
        let mut tried: SmallVec<[&[HeaderName]; 4]> = SmallVec::new();
        let mut best: Option<(Arc<Entry>, KeyBytes)> = None;
        let newest_alone = if variants.is_uniform { 1 } else { usize::MAX };
        for variant in variants.list.iter().rev().take(newest_alone) {
            if tried.contains(&&variant.names[..]) {
                continue;
            }
            tried.push(&variant.names);
            key.truncate(primary);
            append_selecting(&variant.names, request, key);
            match self.cache.get(&key[..]) {
                Some(Slot::Entry(entry)) => {
                    let found = self.get_entry(key, entry, now);
                    if let (Some(found), true) = (&found, variants.is_uniform) {
                        found.use_at(self.variant_time.load(Ordering::Relaxed));
                        return Found::Entry(Arc::clone(found));
                    }
                    // Of several that match, the most recent by its Date (§4).
                    let newer = found.filter(|found| {
                        best.as_ref()
                            .is_none_or(|(best, _)| found.head.date() > best.head.date())
                    });
                    best = newer.map(|entry| (entry, key.clone())).or(best);
                }
                Some(Slot::NotShared { until, reason }) if now < until && best.is_none() => {
                    return Found::NotShared(reason);
                }
                _ => {}
            }
        }
        if let Some((entry, its_key)) = best {
            entry.use_at(self.variant_time.load(Ordering::Relaxed));
            *key = its_key;
            return Found::Entry(entry);
        }
        if let Some(newest) = tried.first() {
            key.truncate(primary);
            append_selecting(newest, request, key);
        }
        Found::NoVariant
    }

    /// Stores `entry` under `primary`, or under its variant where it has a `Vary`; `false` where a
    /// purge came after its fetch had begun.
    #[must_use]
    pub fn insert(&self, primary: &[u8], entry: Arc<Entry>) -> bool {
        if !self.is_current(primary, &entry) {
            return false;
        }
        let Some(selecting) = &entry.head.selecting else {
            let before = self.cache.peek(primary);
            self.cache.insert(primary.into(), Slot::Entry(entry));
            self.remove_variants(before);
            return true;
        };
        let names = selecting.names.clone();
        let mut key = KeyBytes::from_slice(primary);
        key.extend_from_slice(&selecting.values);
        let key: Key = key[..].into();
        entry.use_at(self.variant_time.fetch_add(1, Ordering::Relaxed));
        self.cache.insert(key.clone(), Slot::Entry(entry));

        let guard = self.variants.lock();
        let mut variants = match self.cache.peek(primary) {
            Some(Slot::Variants(variants)) => (*variants).clone(),
            _ => Variants::default(),
        };
        variants.list.retain(|variant| variant.key != key);
        variants.list.push(Variant { names, key });
        let newest = &variants.list[variants.list.len() - 1].names;
        variants.is_uniform = variants.list.iter().all(|variant| variant.names == *newest);
        let dropped = if variants.list.len() > MAX_VARIANTS {
            self.variants_dropped.fetch_add(1, Ordering::Relaxed);
            Some(variants.list.remove(self.least_used(&variants.list)))
        } else {
            None
        };
        self.cache
            .insert(primary.into(), Slot::Variants(Arc::new(variants)));
        drop(guard);
        if let Some(dropped) = dropped {
            self.cache.remove(&dropped.key);
        }
        true
    }

    /// Which of the variants was not used for the longest time; one that is no longer stored before
    /// all others.
    fn least_used(&self, list: &[Variant]) -> usize {
        let used = |variant: &Variant| match self.cache.peek(&variant.key) {
            Some(Slot::Entry(entry)) => Some(entry.used_at()),
            _ => None,
        };
        let uses = list.iter().map(used).enumerate();
        uses.min_by_key(|(_, used)| *used).map_or(0, |(at, _)| at)
    }

    /// Variants that made room for others under their key.
    pub fn variants_dropped(&self) -> u64 {
        self.variants_dropped.load(Ordering::Relaxed)
    }

    /// Removes whatever is stored under `key`, all variants of it.
    pub fn forget(&self, key: &[u8]) {
        let stored = self.cache.remove(key).map(|(_, slot)| slot);
        self.remove_variants(stored);
    }

    /// The variants of a list that is not in its place any more: they are older than what came
    /// there, and must not come back with a new list.
    fn remove_variants(&self, before: Option<Slot>) {
        if let Some(Slot::Variants(variants)) = before {
            for variant in &variants.list {
                self.cache.remove(&variant.key);
            }
        }
    }

    /// Remembers until then that the response under `key` cannot be shared. A response that is
    /// stored there stays where `keep_stored` says so, a list of variants always does.
    pub fn mark_not_shared(&self, key: &[u8], until: Timestamp, reason: Reason, keep_stored: bool) {
        let keep = match self.cache.peek(key) {
            None | Some(Slot::NotShared { .. }) => false,
            Some(Slot::Entry(_)) => keep_stored,
            Some(Slot::Variants(_)) => true,
        };
        if !keep {
            self.cache
                .insert(key.into(), Slot::NotShared { until, reason });
        }
    }

    /// Why what stands under exactly this key could not be shared when it was fetched last.
    pub fn last_not_shared(&self, key: &[u8]) -> Option<Reason> {
        match self.cache.peek(key) {
            Some(Slot::NotShared { reason, .. }) => Some(reason),
            _ => None,
        }
    }

    /// Puts `again`, the same response judged again, in the place of `entry`, unless something else
    /// stands there by now.
    pub fn exchange(&self, key: &[u8], entry: &Arc<Entry>, again: &Arc<Entry>) {
        let (key, at_once): (Key, _) = (key.into(), Some(Duration::ZERO));
        let exchanged = self.cache.entry(&key, at_once, |_, slot| {
            if matches!(slot, Slot::Entry(stored) if Arc::ptr_eq(stored, entry)) {
                *slot = Slot::Entry(Arc::clone(again));
            }
            EntryAction::Retain(())
        });
        // What is not there, or being put there, is not waited for.
        drop(exchanged);
    }

    /// Removes `entry` from under its primary key, unless something else stands there by now.
    pub fn remove(&self, primary: &[u8], entry: &Arc<Entry>) {
        let mut key = KeyBytes::from_slice(primary);
        if let Some(selecting) = &entry.head.selecting {
            key.extend_from_slice(&selecting.values);
        }
        self.remove_under(&key, entry);
    }

    fn remove_under(&self, key: &[u8], entry: &Arc<Entry>) {
        self.cache.remove_if(
            key,
            |slot| matches!(slot, Slot::Entry(stored) if Arc::ptr_eq(stored, entry)),
        );
    }

    /// Judges stored responses by all purges so far, and removes those that are gone. Says of each
    /// whether one of `purges` names it; an iterator, so that the caller can pause.
    pub fn sweep<'a>(&'a self, purges: &'a [Purge]) -> impl Iterator<Item = bool> + 'a {
        self.cache.iter().filter_map(move |(key, slot)| {
            let Slot::Entry(entry) = slot else {
                return None;
            };
            let place = Place::of(&key)?;
            let groups = entry.head.groups.as_ref();
            let is_named = purges.iter().any(|purge| purge.covers(&place, groups));
            if !self.is_current(&key, &entry) {
                self.remove_under(&key, &entry);
            }
            Some(is_named)
        })
    }

    /// Weight of everything stored, and of what is kept ready of it.
    pub fn stored_bytes(&self) -> u64 {
        self.cache.weight() + self.ready.held()
    }

    pub fn stored_entries(&self) -> u64 {
        self.cache.len() as u64
    }

    /// Bytes that may be held.
    pub fn budget(&self) -> u64 {
        self.ledger.budget() + self.ready.budget()
    }

    /// Bytes charged now: stored, in flight, and evicted but still being read.
    pub fn held_bytes(&self) -> u64 {
        self.ledger.held() + self.ready.held()
    }

    pub fn evictions(&self) -> u64 {
        self.evictions.all.load(Ordering::Relaxed)
    }

    /// Those of what had come less than a minute before.
    pub fn young_evictions(&self) -> u64 {
        self.evictions.young.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
