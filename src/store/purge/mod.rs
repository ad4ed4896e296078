//! The purge log: what was made unusable (hard) or stale (soft), and in which order.
//!
//! A purge changes no stored response by itself. It is a mark with a position; whoever looks at a
//! stored response asks whether a mark reaches it that is newer than the position at which its
//! fetch began. So one purge costs the same whatever is stored, reaches what is still being
//! fetched, and cannot be overtaken by a fill. An entry remembers up to which position it was
//! judged: as long as nothing is purged, a hit compares two numbers.
//!
//! In a fleet the log is also a stream in Redis, which every instance follows ([`fleet`]). Trust in
//! what is stored here follows how long ago that log was heard.

mod book;
pub mod causes;
pub mod fleet;
pub mod journal;
mod named;
mod revoked;
#[cfg(test)]
mod tests;
mod written;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{Mutex, Notify, watch};
use tracing::warn;

use crate::clock::Timestamp;
use crate::policy::Groups;
use crate::policy::invalidate::Mode;
use crate::policy::key::Place;

use book::Book;
use causes::{Cause, Causes};
use fleet::{Applied, Cursor, Fleet, Outgoing, Reader, Stamp, Synced};
use journal::Journal;
use revoked::Revoked;
use written::Written;

pub use book::{Judgement, Seen};
pub use named::{LONGEST, Purge, Reach, Target, short};
pub use revoked::SWITCH;

/// Heard always: there is no fleet to hear from.
const ALONE: u64 = u64::MAX;

/// The log of this process, and what it knows of the fleet's.
#[derive(Debug)]
pub struct PurgeLog {
    /// Of the latest purge; 0 before the first.
    position: AtomicU64,
    /// Unix milliseconds up to which all purges of the fleet are known here.
    heard: AtomicU64,
    /// How long what is stored is trusted without hearing the fleet's log.
    max_silence: Duration,
    state: RwLock<State>,
    /// Whether the log has a word on any key.
    names_keys: AtomicBool,
    /// How often the log has had a word on what is switched off.
    switched: AtomicU64,
    /// Somebody has queued a purge for the fleet.
    queued: Notify,
    /// Counts what is learned of own purges: they were appended, or read back.
    learned: watch::Sender<u64>,
    /// How fast groups are written.
    pub written: Written,
    /// What asked for the latest ones.
    pub causes: Causes,
    /// What the fleet does not know yet, for when this process ends.
    journal: Option<Journal>,
    /// How often what the fleet does not know was begun to be written down, and how the last time
    /// ended.
    keepings: AtomicU64,
    kept: Arc<Mutex<Kept>>,
}

/// What was written down for after this process.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    /// The number of the keeping.
    keeping: u64,
    /// Everything that the fleet did not know is in the journal.
    is_whole: bool,
}

#[derive(Debug, Default)]
struct State {
    book: Book,
    fleet: Option<Fleet>,
    revoked: Revoked,
}

impl Default for PurgeLog {
    /// Of a process without a fleet.
    fn default() -> Self {
        Self {
            position: AtomicU64::new(0),
            heard: AtomicU64::new(ALONE),
            max_silence: Duration::MAX,
            state: RwLock::default(),
            names_keys: AtomicBool::new(false),
            switched: AtomicU64::new(0),
            queued: Notify::new(),
            learned: watch::Sender::new(0),
            written: Written::default(),
            causes: Causes::default(),
            journal: None,
            keepings: AtomicU64::new(0),
            kept: Arc::default(),
        }
    }
}

impl PurgeLog {
    /// Of one instance of a fleet that has heard nothing of its log yet.
    pub fn of_fleet(max_silence: Duration, now: Timestamp) -> Self {
        let state = State {
            fleet: Some(Fleet::default()),
            ..State::default()
        };
        Self {
            heard: AtomicU64::new(now.as_millis()),
            max_silence,
            state: RwLock::new(state),
            ..Self::default()
        }
    }

    /// With a journal, and what was left there untold: it is applied, and queued for the fleet.
    #[must_use]
    pub fn with_journal(self, journal: Journal, left: Vec<Outgoing>) -> Self {
        for Outgoing {
            purge, mode, at, ..
        } in left
        {
            self.append(purge, mode, at, Cause::Journal);
        }
        let journal = Some(journal);
        Self { journal, ..self }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write()
    }

    /// Of the latest purge: what is fetched from now on is newer than it.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Writes a purge down; its position. Whoever asks after this returns sees it; the rest of the
    /// fleet when [`PurgeLog::has_published`] says so.
    pub fn append(&self, purge: Purge, mode: Mode, now: Timestamp, cause: Cause) -> u64 {
        let mut state = self.write();
        let position = self.add(&mut state.book, purge.clone(), mode, now, cause);
        if let Target::Key(key) = purge.target {
            self.note_key(&mut state.revoked, key, mode, position, 0);
        }
        if let Some(fleet) = &mut state.fleet {
            fleet.queue(purge, mode, now, position);
            self.queued.notify_one();
        }
        position
    }

    fn note_key(&self, revoked: &mut Revoked, key: [u8; 32], mode: Mode, local: u64, shared: u64) {
        revoked.note(key, mode, local, shared);
        self.names_keys.store(true, Ordering::Release);
        if key.starts_with(&SWITCH) {
            self.switched.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How often the log has had a word on what is switched off.
    pub fn switched(&self) -> u64 {
        self.switched.load(Ordering::Acquire)
    }

    /// The digests of what is switched off.
    pub fn switches(&self) -> Vec<[u8; 32]> {
        self.read().revoked.switches().to_vec()
    }

    /// Whether any key was revoked by hand.
    pub fn names_keys(&self) -> bool {
        self.names_keys.load(Ordering::Acquire)
    }

    /// Whether a key, by its digest, was revoked by hand.
    pub fn is_revoked(&self, key: &[u8; 32]) -> bool {
        self.names_keys.load(Ordering::Acquire) && self.read().revoked.is_revoked(key)
    }

    /// Whether what was learned of a key at this position of the log here still counts.
    pub fn allows(&self, key: &[u8; 32], stamp: u64) -> bool {
        !self.names_keys.load(Ordering::Acquire) || self.read().revoked.allows(key, stamp)
    }

    /// As [`PurgeLog::allows`], of what another instance has learned.
    pub fn allows_shared(&self, key: &[u8; 32], stamp: Stamp) -> bool {
        let state = self.read();
        let Some(fleet) = &state.fleet else {
            return false;
        };
        // Of another log, or of before what this one remembers: nobody knows.
        let is_known = fleet.reaches(stamp);
        is_known && state.revoked.allows_shared(key, stamp.position)
    }

    fn add(&self, book: &mut Book, purge: Purge, mode: Mode, at: Timestamp, cause: Cause) -> u64 {
        if let Target::Group(group) = &purge.target {
            self.written.changed(group, at);
        }
        let position = self.position.load(Ordering::Relaxed) + 1;
        self.causes.note(purge.clone(), mode, position, at, cause);
        book.add(purge, mode, position, at);
        self.position.store(position, Ordering::Release);
        position
    }

    /// What the purges make of a response at `place`, and up to which position that holds.
    pub fn judge(
        &self,
        place: &Place<'_>,
        groups: Option<&Groups>,
        seen: Seen,
    ) -> (Judgement, u64) {
        let state = self.read();
        let found = state.book.judge(place, groups, seen);
        (found, self.position.load(Ordering::Relaxed))
    }

    /// Whether a fetch for `key` that began at `since` must not be joined by a request that came at
    /// `asked`.
    pub fn has_purged(&self, key: &[u8], groups: Option<&Groups>, since: u64, asked: u64) -> bool {
        let seen = Seen {
            asked,
            ..Seen::all_since(since)
        };
        since < asked
            && Place::of(key)
                .is_some_and(|place| self.judge(&place, groups, seen).0 == Judgement::Gone)
    }
    /// Whether what was received then may be used now: that, or the fleet's log being heard, was
    /// not longer ago than `max_silence`.
    pub fn is_trusted(&self, received: Timestamp, now: Timestamp) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        heard == ALONE || now.since(Timestamp::from_millis(heard).max(received)) <= self.max_silence
    }

    /// Unix milliseconds up to which the fleet's purges are known; `None` without a fleet.
    pub fn heard(&self) -> Option<Timestamp> {
        let heard = self.heard.load(Ordering::Relaxed);
        (heard != ALONE).then(|| Timestamp::from_millis(heard))
    }

    /// Waits until a purge is queued for the fleet.
    pub async fn queued(&self) {
        self.queued.notified().await;
    }

    /// What the fleet's log makes of a value with this stamp, and the local position that this
    /// holds up to: the stamp of what it becomes here.
    pub fn judge_shared(
        &self,
        place: &Place<'_>,
        groups: Option<&Groups>,
        stamp: Stamp,
    ) -> (Judgement, u64) {
        let state = self.read();
        let judged = state
            .fleet
            .as_ref()
            .map_or(Judgement::Gone, |fleet| fleet.judge(place, groups, stamp));
        (judged, self.position.load(Ordering::Relaxed))
    }

    /// How far the fleet's log had been applied at a local position; `None` where nobody knows.
    pub fn stamp_of(&self, local: u64) -> Option<Stamp> {
        self.read().fleet.as_ref()?.stamp_of(local)
    }

    /// How far the fleet's log was read.
    pub fn cursor(&self) -> Cursor {
        self.read()
            .fleet
            .as_ref()
            .map_or_else(Cursor::default, Fleet::cursor)
    }

    /// What this instance tells of itself when it looks at the fleet's log.
    pub fn reader(&self, serves: bool, admin: Option<SocketAddr>) -> Reader {
        let state = self.read();
        let known = state.fleet.as_ref();
        Reader {
            cursor: known.map_or_else(Cursor::default, Fleet::cursor),
            before: known.map_or_else(Vec::new, |fleet| fleet.before().to_vec()),
            serves,
            admin,
        }
    }

    /// Whether the fleet's log has all own purges up to this local position; without a fleet there
    /// is nobody else to tell.
    pub fn has_published(&self, local: u64) -> bool {
        let state = self.read();
        state
            .fleet
            .as_ref()
            .is_none_or(|fleet| fleet.has_published(local))
    }

    /// Waits until Redis has taken all own purges up to this local position.
    pub async fn appended(&self, local: u64) {
        let mut learned = self.learned.subscribe();
        let has_appended = || {
            let state = self.read();
            let fleet = state.fleet.as_ref();
            fleet.is_none_or(|fleet| fleet.has_appended(local))
        };
        while !has_appended() && learned.changed().await.is_ok() {}
    }

    /// Writes down what the fleet does not know of yet, so that it outlives this process; whether
    /// all of it does. Those who ask meanwhile share the next time.
    pub async fn keep_untold(self: &Arc<Self>) -> bool {
        let before = self.keepings.load(Ordering::Acquire);
        let mut kept = Arc::clone(&self.kept).lock_owned().await;
        if kept.keeping > before {
            return kept.is_whole;
        }
        let keeping = self.keepings.fetch_add(1, Ordering::AcqRel) + 1;
        let log = Arc::clone(self);
        // Whoever waits for it may leave: the next one still waits until this is done.
        let writing = tokio::task::spawn_blocking(move || {
            let is_whole = log.write_untold();
            *kept = Kept { keeping, is_whole };
            is_whole
        });
        writing.await.unwrap_or(false)
    }

    /// Blocks until it is on the disk.
    fn write_untold(&self) -> bool {
        let Some(journal) = &self.journal else {
            return false;
        };
        let untold = self.untold();
        // When it is told at last, the fleet may have a later word on the key: that it is revoked.
        let is_restored =
            |one: &Outgoing| matches!(one.purge.target, Target::Key(_)) && one.mode == Mode::Soft;
        let (restored, kept): (Vec<_>, Vec<_>) = untold.into_iter().partition(is_restored);
        match journal.keep(&kept) {
            Ok(()) => restored.is_empty(),
            Err(error) => {
                let path = journal.path().display();
                warn!(%error, "[cache.redis] journal: {path} cannot be written: purges that Redis \
                    does not take are lost with this process");
                false
            }
        }
    }

    /// Own purges that the fleet does not know of yet, in their order.
    pub fn untold(&self) -> Vec<Outgoing> {
        let state = self.read();
        state.fleet.as_ref().map_or_else(Vec::new, Fleet::untold)
    }

    /// Another instance tells these, which are all that this one could not: nothing is kept for the
    /// next start. What was purged meanwhile is.
    pub async fn handed_over(&self, told: &[Outgoing]) {
        let _kept = self.kept.lock().await;
        let untold = self.untold();
        let is_told = |one: &Outgoing| told.iter().any(|told| told.token == one.token);
        if !untold.iter().all(is_told) {
            return;
        }
        let kept = self.journal.as_ref().map(|journal| journal.keep(&[]));
        if let Some(Err(error)) = kept {
            warn!(%error, "[cache.redis] journal: what another instance tells now is told once \
                more at the next start");
        }
    }

    /// Whether something stands in the journal, or has to.
    pub fn has_untold(&self) -> bool {
        self.journal
            .as_ref()
            .is_some_and(|journal| !journal.is_empty())
            || self.pending() > 0
    }

    /// How many own purges the fleet does not know of yet.
    pub fn pending(&self) -> usize {
        self.read().fleet.as_ref().map_or(0, Fleet::pending)
    }

    /// Takes queued purges to be sent.
    pub fn take_queued(&self, most: usize) -> Vec<Outgoing> {
        let mut state = self.write();
        let fleet = state.fleet.as_mut();
        fleet.map_or_else(Vec::new, |fleet| fleet.take_queued(most))
    }

    /// How sending them ended: they were appended, or nobody knows.
    pub fn sent(&self, appended: bool) {
        if let Some(fleet) = &mut self.write().fleet {
            fleet.sent(appended);
        }
        self.learned.send_modify(|count| *count += 1);
    }

    /// Applies a look at the fleet's log that was begun at `heard`.
    pub fn apply(&self, mut synced: Synced, heard: Timestamp) -> Applied {
        // What is known already is looked at without keeping anybody waiting.
        if !synced.revoked.is_empty() {
            let state = self.read();
            synced.revoked.retain(|key| !state.revoked.is_revoked(key));
        }
        let mut state = self.write();
        let State {
            book,
            fleet,
            revoked,
        } = &mut *state;
        let Some(fleet) = fleet else {
            return Applied::default();
        };
        let before = fleet.cursor().stamp.epoch;
        if synced.epoch != before {
            revoked.forget_positions();
            // Another log has begun, and may know nothing of what was revoked: it is told.
            if before != 0 {
                fleet.queue_revoked(revoked.keys());
                self.queued.notify_one();
            }
        }
        let awaited = fleet.awaited_keys();
        for key in &synced.revoked {
            if !awaited.contains(key) {
                let local = self.position.load(Ordering::Relaxed);
                self.note_key(revoked, *key, Mode::Hard, local, synced.latest);
            }
        }
        let keys: Vec<_> = synced
            .entries
            .iter()
            .filter_map(|logged| {
                let entry = logged.entry.as_ref()?;
                match entry.purge.target {
                    Target::Key(key) => Some((key, entry.mode, logged.position)),
                    _ => None,
                }
            })
            .collect();
        // A word on a key changes nothing that is stored, and an old one nothing at all.
        let is_known = |purge: &Outgoing| match purge.purge.target {
            Target::Key(key) => purge.mode == Mode::Hard && revoked.is_revoked(&key),
            _ => false,
        };
        let applied = fleet.apply(synced, |purge| match purge {
            Some(new) if !is_known(new) => self.add(
                book,
                new.purge.clone(),
                new.mode,
                new.at,
                Cause::OtherInstance,
            ),
            Some(_) | None => self.position.load(Ordering::Relaxed),
        });
        let awaited = fleet.awaited_keys();
        for (key, mode, shared) in keys {
            if !awaited.contains(&key) {
                let local = self.position.load(Ordering::Relaxed);
                self.note_key(revoked, key, mode, local, shared);
                if mode == Mode::Soft {
                    fleet.retell_no_more(&key);
                }
            }
        }
        if !applied.is_behind {
            self.heard.store(heard.as_millis(), Ordering::Relaxed);
        }
        self.learned.send_modify(|count| *count += 1);
        applied
    }
}
