//! Miss: the request joins the fetch of its key, leads it, or fetches alone, and is answered from
//! what comes of it: the response, what another fetched, or stale in the place of a failure.

use std::sync::Arc;
use std::time::Duration;

use http::header::COOKIE;
use http::{HeaderMap, Method, Response, StatusCode};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::clock::Timestamp;
use crate::error::{Failure, FailureKind};
use crate::flight::{Boarding, Outcome, Reader, Ticket};
use crate::guard::Standing;
use crate::metrics::CacheResult;
use crate::policy::vary::append_selecting;
use crate::policy::{self, Cookies, Decision, Options, Reason, StoredView, range};
use crate::store::{Entry, Found, Head, Judgement};
use crate::upstream::{OriginBody, empty};

use super::Proxy;
use super::asked::{Asked, flight_key};
use super::body::{Body, Pieces};
use super::deliver::{Note, Wanted};
use super::fetch::{Led, Validation};
use super::guarded;

/// Elections of a leader that one request takes part in; after that it fetches alone.
const ELECTIONS: u32 = 2;

/// Whether what another request fetched answers this one.
enum Fits {
    Yes,
    /// Another variant, or another cookie: whatever it is now, it is not this one.
    No,
    /// A purge came while it was fetched: whoever is first fetches again, for all.
    Purged,
}

impl Proxy {
    /// Miss: joins the fetch of this key or leads it.
    pub(super) async fn miss(
        self: Arc<Self>,
        asked: Asked,
        found: Found,
    ) -> (Response<Body>, Note) {
        let stored = match &found {
            Found::Entry(entry) => Some(Arc::clone(entry)),
            _ => None,
        };
        let options = asked.options().cloned().unwrap_or_default();
        let now = self.clock.now();
        let decision = policy::decide(
            asked.view(),
            stored.as_deref().map(Entry::view),
            &options,
            now,
        );
        let reason = match (&found, decision) {
            _ if asked.verifies() => Reason::KeyUnverified,
            (Found::NotShared(_), _) => Reason::HitForMiss,
            (Found::NoVariant, _) => Reason::VaryMiss,
            (_, Decision::Miss { reason, .. }) => reason,
            (_, Decision::Hit { .. } | Decision::StaleHit { .. }) => Reason::Cold,
        };
        // What was stored for requests without a cookie does not stand in for one with it either.
        let stored = stored.filter(|_| reason != Reason::Cookie);
        let note = Note::new(CacheResult::Miss, reason);
        if asked.parts.method == Method::HEAD {
            return self.pass(asked, empty(), note).await;
        }
        let validation = match decision {
            Decision::Miss { validate: true, .. } => stored.clone().map(Validation::of),
            _ => stored.clone().map(Validation::only_stale),
        };
        let flight_key = flight_key(&asked);
        let by_cookie = options.cookies == Cookies::Bypass
            && options.grants_lifetime()
            && asked.parts.headers.contains_key(COOKIE);
        let marked = flight_key.len() > asked.key.len()
            && matches!(
                self.memory
                    .get(&mut flight_key.clone(), &HeaderMap::new(), now),
                Found::NotShared(_)
            );
        let mut alone = if marked {
            Some(Reason::HitForMiss)
        } else {
            None
        };
        if by_cookie
            || matches!(
                reason,
                Reason::HitForMiss | Reason::MustValidate | Reason::ClientDirective
            )
        {
            alone = Some(reason);
        }

        if stored.is_none()
            && asked.wants_part()
            && (alone.is_some() || self.is_known_too_large(&asked))
        {
            return self.part(asked, note).await;
        }
        // Known as not storable: the origin may answer the client's conditions by itself.
        if alone == Some(Reason::HitForMiss)
            && policy::conditional::is_conditional(&asked.parts.headers)
        {
            let reason = Reason::HitForMiss;
            return self.pass(asked, empty(), Note { reason, ..note }).await;
        }

        let mut least = 0;
        for _ in 0..ELECTIONS {
            if alone.is_some() {
                break;
            }
            match self.board(&asked, least, || self.stored_meanwhile(&asked, &options)) {
                Err(served) => return served,
                Ok(Boarding::Lead(ticket)) => {
                    return self.lead(asked, ticket, validation, note).await;
                }
                Ok(Boarding::Full) => alone = Some(Reason::FlightsFull),
                Ok(Boarding::Wait(waiter)) => {
                    let limit = self.config.cache.wait_timeout;
                    let Ok(outcome) = timeout(limit, waiter.outcome()).await else {
                        alone = Some(Reason::WaitTimeout);
                        continue;
                    };
                    match outcome {
                        Outcome::Streaming(head) => {
                            let fits = self.fits(&asked, &options, &head);
                            match (fits, waiter.reader()) {
                                (Fits::Yes, Some(reader)) => {
                                    let note = self.collapsed(note);
                                    return self.stream(asked, &head, reader, note).await;
                                }
                                (Fits::Purged, _) => least = self.memory.purges().position(),
                                _ => alone = Some(reason),
                            }
                        }
                        Outcome::Stored(entry) => match self.fits(&asked, &options, &entry.head) {
                            Fits::Yes => {
                                let note = self.collapsed(note);
                                return self.give(&asked, &entry, note);
                            }
                            Fits::No => alone = Some(reason),
                            Fits::Purged => least = self.memory.purges().position(),
                        },
                        Outcome::Found => {
                            if let Some(served) = self.stored_meanwhile(&asked, &options) {
                                return served;
                            }
                        }
                        // The leader's key was refused: another one leads.
                        Outcome::NotShared(Reason::Credential) if asked.let_in.is_some() => {
                            if let Some(refused) = self.refused_meanwhile(&asked) {
                                return refused;
                            }
                            // Whoever led would be refused too.
                            if self
                                .guard
                                .as_ref()
                                .is_some_and(|guard| guard.is_in_outage())
                            {
                                let failure = guarded::source_is_ill();
                                return self.stale_or_failure(
                                    &asked,
                                    stored.as_ref(),
                                    &failure,
                                    note,
                                );
                            }
                        }
                        Outcome::NotShared(_) => alone = Some(Reason::HitForMiss),
                        Outcome::Failed(failure) => {
                            return self.stale_or_failure(&asked, stored.as_ref(), &failure, note);
                        }
                        Outcome::Abandoned => {}
                    }
                }
            }
        }
        let note = Note {
            reason: alone.unwrap_or(reason),
            ..note
        };
        let stamp = self.memory.purges().position();
        let ticket = self.flights.solo(&flight_key, stamp);
        self.lead(asked, ticket, validation, note).await
    }

    /// What a flight stored between this request's look-up and its boarding.
    fn stored_meanwhile(&self, asked: &Asked, options: &Options) -> Option<(Response<Body>, Note)> {
        // Another request with its key may have had the answer about it meanwhile.
        if let (Some(guard), Some(let_in)) = (&self.guard, asked.let_in)
            && let_in.verifies
        {
            match guard.standing(&let_in.caller) {
                Standing::Good => {}
                Standing::Bad => return self.refused_meanwhile(asked),
                Standing::Unknown { .. } => return None,
            }
        }
        let now = self.clock.now();
        let mut key = asked.primary.clone();
        let Found::Entry(entry) = self.memory.get(&mut key, &asked.parts.headers, now) else {
            return None;
        };
        let decision = policy::decide(asked.view(), Some(entry.view()), options, now);
        self.reuse(&entry, decision, &asked.parts, options, now)
    }

    /// The answer to a request whose own key was found bad while it waited.
    fn refused_meanwhile(&self, asked: &Asked) -> Option<(Response<Body>, Note)> {
        let (guard, let_in) = (self.guard.as_ref()?, asked.let_in?);
        if guard.standing(&let_in.caller) != Standing::Bad {
            return None;
        }
        let note = Note::new(CacheResult::Bypass, Reason::KeyRefused);
        let failure = Failure::new(FailureKind::KeyRefused, "Invalid or inactive API key");
        let index = asked.route.as_ref().map(|(index, _)| *index);
        let response = self.failure_on(index, &asked.parts.method, &failure, note);
        Some((response, note))
    }

    /// Whether a response that another request fetched answers this one too.
    fn fits(&self, asked: &Asked, options: &Options, head: &Head) -> Fits {
        let stale_since = match self.memory.judge(&asked.primary, head, asked.arrived) {
            Judgement::Gone => return Fits::Purged,
            Judgement::StaleSince(at) => Some(at),
            Judgement::Untouched => None,
        };
        let stored = StoredView {
            record: &head.record,
            stale_since,
        };
        let decision = policy::decide(asked.view(), Some(stored), options, self.clock.now());
        let is_usable = matches!(decision, Decision::Hit { .. } | Decision::StaleHit { .. });
        let is_selected = head.selecting.as_ref().is_none_or(|selecting| {
            let mut values = Vec::new();
            append_selecting(&selecting.names, &asked.parts.headers, &mut values);
            values == selecting.values
        });
        match (is_usable, is_selected) {
            (true, true) => Fits::Yes,
            (false, _) if stale_since.is_some() => Fits::Purged,
            _ => Fits::No,
        }
    }

    /// Answered by another request's fetch.
    fn collapsed(&self, note: Note) -> Note {
        self.metrics.coalesced_waiters.inc();
        Note {
            collapsed: true,
            ..note
        }
    }

    /// A response that may still come in. One range of it is cut out as it passes; for several, or
    /// where nobody knows how long it is, the whole is awaited first.
    async fn stream(
        self: Arc<Self>,
        asked: Asked,
        head: &Head,
        mut reader: Reader,
        note: Note,
    ) -> (Response<Body>, Note) {
        let headers = &asked.parts.headers;
        let awaits = asked.wants_part()
            && head.status == StatusCode::OK
            && (head.content_length().is_none() || !range::is_single(headers));
        let body = if awaits {
            match reader.whole().await {
                Ok(Some(pieces)) => {
                    let pieces: Pieces = pieces.into_iter().collect();
                    Body::Pieces(Box::new(pieces.of(Some(reader))))
                }
                // Too large for that: the range is the origin's to answer.
                Ok(None) => {
                    // A reader that reads no more would keep its fetch waiting.
                    drop(reader);
                    return self.part(asked, note).await;
                }
                Err(failure) => return self.stale_or_failure(&asked, None, &failure, note),
            }
        } else {
            Body::Flight(reader)
        };
        let age = head.record.age(self.clock.now());
        give(&self, &asked, head, age, body, note)
    }

    /// A response that is whole.
    fn give(&self, asked: &Asked, entry: &Entry, note: Note) -> (Response<Body>, Note) {
        let age = entry.view().age(self.clock.now());
        let body = Body::Whole(entry.body());
        give(self, asked, &entry.head, age, body, note)
    }

    /// Leads a fetch and waits for its head.
    async fn lead(
        self: Arc<Self>,
        asked: Asked,
        ticket: Ticket,
        validation: Option<Validation>,
        note: Note,
    ) -> (Response<Body>, Note) {
        // A purge since it was looked up: to have it confirmed would bring it back.
        let validation = validation
            .filter(|validation| self.memory.is_current(&asked.primary, &validation.entry));
        let stored = validation
            .as_ref()
            .map(|validation| Arc::clone(&validation.entry));
        let (sender, answered) = oneshot::channel();
        match self.fetch(&asked, ticket, validation, Some(sender)) {
            Ok(fetch) => drop(tokio::spawn(fetch.run())),
            Err(failure) => return self.stale_or_failure(&asked, None, &failure, note),
        }
        let led = answered.await.unwrap_or_else(|_| {
            Led::Failed(Failure::new(
                FailureKind::Internal,
                "the fetch ended without an answer",
            ))
        });
        match led {
            Led::Streaming { head, reader } => {
                let note = Note {
                    stored: true,
                    forward_status: Some(head.status),
                    ..note
                };
                self.stream(asked, &head, reader, note).await
            }
            Led::Stored { entry, status } => {
                let revalidated = status == StatusCode::NOT_MODIFIED;
                let result = if revalidated {
                    CacheResult::Revalidated
                } else {
                    note.result
                };
                let reason = if revalidated {
                    Reason::Revalidated
                } else {
                    note.reason
                };
                let note = Note {
                    result,
                    reason,
                    stored: true,
                    forward_status: Some(status),
                    ..note
                };
                self.give(&asked, &entry, note)
            }
            Led::Found(entry) => self.found(asked, &entry, note),
            // The whole may not be kept or is too large: what the client wants of it is asked for.
            Led::Own { response, .. }
                if response.status() == StatusCode::OK && asked.wants_part() =>
            {
                drop(response);
                self.part(asked, note).await
            }
            Led::Own { response, reason } => {
                let note = Note {
                    forward_status: Some(response.status()),
                    detail: Some(reason),
                    ..note
                };
                (self.own(&asked, response, note), note)
            }
            Led::Failed(failure) => self.stale_or_failure(&asked, stored.as_ref(), &failure, note),
        }
    }

    /// A response that the second tier had: as if it had been here all the time.
    fn found(
        self: &Arc<Self>,
        mut asked: Asked,
        entry: &Arc<Entry>,
        note: Note,
    ) -> (Response<Body>, Note) {
        let options = asked.options().cloned().unwrap_or_default();
        let now = self.clock.now();
        let decision = policy::decide(asked.view(), Some(entry.view()), &options, now);
        let fresh = Reason::SecondTier;
        let served = self.reuse_as(fresh, entry, decision, &asked.parts, &options, now);
        let Some((response, note)) = served else {
            // It was usable when it was taken.
            return self.give(&asked, entry, note);
        };
        if note.result == CacheResult::Stale && self.may_refresh(entry, now) {
            asked.ear = None;
            self.refresh(&asked, entry);
        }
        (response, note)
    }

    /// A response for this client alone; its own condition is still answered by us, for the
    /// origin was asked without it.
    fn own(&self, asked: &Asked, response: Response<OriginBody>, note: Note) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        note.write(&mut parts.headers);
        let conditional = policy::conditional::is_conditional(&asked.parts.headers);
        if conditional
            && parts.status == StatusCode::OK
            && policy::conditional::is_not_modified(&asked.parts.headers, &parts.headers, false)
        {
            let mut short = Response::new(Body::Empty);
            *short.status_mut() = StatusCode::NOT_MODIFIED;
            policy::conditional::keep_for_304(&mut parts.headers);
            *short.headers_mut() = parts.headers;
            return short;
        }
        Response::from_parts(parts, Body::Origin(body))
    }

    /// Whether a stored response may stand in for a failed origin: nothing has purged it meanwhile.
    pub(super) fn may_stand_in(&self, primary: &[u8], entry: &Entry, now: Timestamp) -> bool {
        self.memory.is_current(primary, entry)
            && self.memory.is_trusted(entry, now)
            && policy::decide::usable_on_error(entry.view(), now)
    }

    /// What the second tier has brought since the request was looked up, if it answers that.
    fn stored_by_now(&self, asked: &Asked, now: Timestamp) -> Option<Arc<Entry>> {
        self.second.as_ref().filter(|_| !asked.verifies())?;
        let mut key = asked.primary.clone();
        let Found::Entry(entry) = self.memory.get(&mut key, &asked.parts.headers, now) else {
            return None;
        };
        let options = asked.options()?;
        let decision = policy::decide(asked.view(), Some(entry.view()), options, now);
        let is_foreign = matches!(
            decision,
            Decision::Miss {
                reason: Reason::Cookie,
                ..
            }
        );
        (!is_foreign).then_some(entry)
    }

    /// Stale stands in for a failed origin where it may (RFC 5861 §4); else the failure is told.
    fn stale_or_failure(
        &self,
        asked: &Asked,
        stored: Option<&Arc<Entry>>,
        failure: &Failure,
        note: Note,
    ) -> (Response<Body>, Note) {
        let now = self.clock.now();
        let may_use_stored = self.may_use_stored(asked);
        let by_now = match stored {
            Some(_) => None,
            None if asked.verifies() && may_use_stored => self.graced(asked),
            None => self.stored_by_now(asked, now),
        };
        let stored = stored.or(by_now.as_ref()).filter(|_| may_use_stored);
        let usable = stored.filter(|entry| {
            failure.kind.is_origins() && self.may_stand_in(&asked.primary, entry, now)
        });
        let Some(entry) = usable else {
            let note = Note {
                detail: Some(Reason::OriginFailed),
                ..note
            };
            let index = asked.route.as_ref().map(|(index, _)| *index);
            // Whoever must prove a key is told that nobody can say.
            let unverified = guarded::source_is_ill();
            let failure = if asked.verifies() && failure.kind.is_origins() {
                &unverified
            } else {
                failure
            };
            return (
                self.failure_on(index, &asked.parts.method, failure, note),
                note,
            );
        };
        let ttl = entry.view().ttl(now);
        let note = Note {
            is_forwarded: true,
            forward_status: failure.status,
            ..Note::hit(CacheResult::Stale, Reason::StaleIfError, ttl)
        };
        self.give(asked, entry, note)
    }
}

/// A head and a body for the client of a missed request.
fn give(
    proxy: &Proxy,
    asked: &Asked,
    head: &Head,
    age: Duration,
    body: Body,
    note: Note,
) -> (Response<Body>, Note) {
    let options = asked.options().cloned().unwrap_or_default();
    let wanted = Wanted {
        method: &asked.parts.method,
        headers: &asked.parts.headers,
        options: &options,
    };
    (proxy.deliver(wanted, head, age, body, note), note)
}
