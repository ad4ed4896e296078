//! Led: the fetch of a missed request has shown its head, or has failed, and the client is answered
//! from that.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode};
use tokio::sync::oneshot;

use crate::error::{Failure, FailureKind};
use crate::flight::{Reader, Ticket, Whole};
use crate::guard::source_is_ill;
use crate::metrics::CacheResult;
use crate::policy::{self, Decision, Reason, conditional, range};
use crate::proxy::fetch::{Led, Requested, Validation, may_stand_in, origin_failure};
use crate::proxy::wire::{Body, Pieces};
use crate::store::{Entry, Head};
use crate::upstream::OriginBody;

use super::course::Course;
use super::handled::Delivered;
use super::miss::Missed;
use super::note::Note;
use super::reuse::{may_refresh, refresh, reuse};

/// How long a request for a range waits for the end of a body of which nobody knows how long it is.
const RANGE_PATIENCE: Duration = Duration::from_millis(200);

impl Missed {
    /// Leads a fetch and waits for its head.
    pub async fn lead(mut self, ticket: Ticket, validation: Option<Validation>) -> Delivered {
        // A purge since it was looked up: to have it confirmed would bring it back.
        let (memory, primary) = (&self.plan.state.memory, self.keyed.primary());
        let validation = validation.filter(|stored| memory.is_current(primary, &stored.entry));
        self.stored = validation.as_ref().map(|stored| Arc::clone(&stored.entry));
        let (sender, answered) = oneshot::channel();
        match Requested::of(&self.plan, &self.keyed, ticket, validation, Some(sender)) {
            Ok(requested) => requested.spawn(),
            Err(failure) => return self.stale_or_failure(None, &failure),
        }
        let led = answered.await.unwrap_or_else(|_| {
            let message = "the fetch ended without an answer";
            Led::Failed(Failure::new(FailureKind::Internal, message))
        });
        match led {
            Led::Streaming { head, reader } => {
                self.note.stored = true;
                self.note.forward_status = Some(head.status);
                self.stream(&head, reader).await
            }
            Led::Stored { entry, status } => {
                if status == StatusCode::NOT_MODIFIED {
                    self.note.result = CacheResult::Revalidated;
                    self.note.reason = Reason::Revalidated;
                }
                self.note.stored = true;
                self.note.forward_status = Some(status);
                self.give(&entry, self.note)
            }
            Led::Found(entry) => self.found(&entry),
            // The whole may not be kept or is too large: what the client wants of it is asked for.
            Led::Own { response, .. }
                if response.status() == StatusCode::OK && self.keyed.request.wants_part() =>
            {
                drop(response);
                self.range_instead().await
            }
            Led::Own { response, reason } => {
                if let Some(stale) = self.stale_for_unproved(&response) {
                    return stale;
                }
                self.note.forward_status = Some(response.status());
                self.note.detail = Some(reason);
                self.own(response)
            }
            Led::Failed(failure) => self.stale_or_failure(self.stored.as_ref(), &failure),
        }
    }

    /// Stale in the place of the origin's error for a caller whose question it leaves open.
    fn stale_for_unproved(&self, response: &Response<OriginBody>) -> Option<Delivered> {
        let is_open = self.keyed.verifies() && response.status().is_server_error();
        let failure = is_open.then(|| origin_failure(response))?;
        let stored = self.stored_now().filter(|_| self.may_use_stored());
        self.standing_in(stored.as_ref(), &failure)
    }

    async fn range_instead(self) -> Delivered {
        let course = Course::range(&self.plan, &self.keyed);
        Box::pin(self.range(course)).await
    }

    /// A response that may still come in. One range of it is cut out as it passes; for several, or
    /// where nobody knows how long it is, the whole is awaited for a moment. What takes longer is
    /// sent as it comes: a `Range` may be ignored (RFC 9110 §14.2).
    pub async fn stream(mut self, head: &Head, reader: Reader) -> Delivered {
        let request = &self.keyed.request;
        let awaits = request.wants_part()
            && head.status == StatusCode::OK
            && (head.content_length().is_none() || !range::is_single(&request.parts.headers));
        let whole = if awaits {
            reader.whole(RANGE_PATIENCE).await
        } else {
            Whole::StillComing
        };
        let body = match whole {
            Whole::Pieces(pieces) => {
                let pieces: Pieces = pieces.into_iter().collect();
                Body::Pieces(Box::new(pieces.of(Some(reader))))
            }
            // The range is the origin's to answer.
            Whole::TooLarge => {
                // A reader that reads no more would keep its fetch waiting.
                drop(reader);
                self.note.stored = false;
                return self.range_instead().await;
            }
            Whole::StillComing => Body::Flight(reader),
            Whole::Broken(failure) => return self.stale_or_failure(None, &failure),
        };
        let age = head.record.age(self.plan.state.clock.now());
        self.deliver(head, age, body, self.note)
    }

    /// A response that the second tier had: as if it had been here all the time.
    fn found(mut self, entry: &Arc<Entry>) -> Delivered {
        let now = self.plan.state.clock.now();
        let (request, options) = (self.keyed.request.view(), self.keyed.options());
        let decision = policy::decide(request, Some(entry.view()), options, now);
        let Some(mut note) = reuse(entry, decision, now) else {
            // It was usable when it was taken.
            return self.give(entry, self.note);
        };
        if note.result == CacheResult::Hit {
            note.reason = Reason::SecondTier;
        }
        if note.result == CacheResult::Stale && may_refresh(entry, now) {
            self.keyed.interim = None;
            refresh(&self.plan, &self.keyed, entry);
        }
        self.give(entry, note)
    }

    /// A response for this client alone; its own condition is still answered by us, for the
    /// origin was asked without it.
    fn own(&self, response: Response<OriginBody>) -> Delivered {
        let (note, request) = (self.note, self.keyed.headers());
        let (mut parts, body) = response.into_parts();
        note.write(&mut parts.headers);
        let is_not_modified = parts.status == StatusCode::OK
            && conditional::is_conditional(request)
            && conditional::is_not_modified(request, &parts.headers, false);
        let response = if is_not_modified {
            let mut short = Response::new(Body::Empty);
            *short.status_mut() = StatusCode::NOT_MODIFIED;
            conditional::keep_for_304(&mut parts.headers);
            *short.headers_mut() = parts.headers;
            short
        } else if self.keyed.request.parts.method == Method::HEAD {
            // It may have been fetched as a GET.
            Response::from_parts(parts, Body::Empty)
        } else {
            Response::from_parts(parts, Body::Origin(body))
        };
        Delivered { response, note }
    }

    /// What the second tier has brought since the request was looked up, if it answers that.
    fn stored_by_now(&self) -> Option<Arc<Entry>> {
        let state = &self.plan.state;
        state.second.as_ref().filter(|_| !self.keyed.verifies())?;
        let entry = self.stored_now()?;
        let (request, options) = (self.keyed.request.view(), self.keyed.options());
        let now = state.clock.now();
        let decision = policy::decide(request, Some(entry.view()), options, now);
        let is_foreign = matches!(
            decision,
            Decision::Miss {
                reason: Reason::Cookie,
                ..
            }
        );
        (!is_foreign).then_some(entry)
    }

    /// Whether what is stored may be given to this request now that the origin has failed.
    fn may_use_stored(&self) -> bool {
        match (&self.plan.guard, self.keyed.let_in) {
            (Some(guard), Some(let_in)) => guard.may_use_stored(&let_in.caller),
            _ => !self.keyed.request.is_guarded_on(&self.keyed.route),
        }
    }

    /// Stale stands in for a failed origin where it may (RFC 5861 §4); else the failure is told.
    /// `stored` is what was looked up, where it still counts.
    pub fn stale_or_failure(&self, stored: Option<&Arc<Entry>>, failure: &Failure) -> Delivered {
        let keyed = &self.keyed;
        let may_use_stored = self.may_use_stored();
        let by_now = match stored {
            Some(_) => None,
            // For a caller whose question went unanswered, and that may use what is stored.
            None if keyed.verifies() && may_use_stored => self.stored_now(),
            None => self.stored_by_now(),
        };
        let stored = stored.or(by_now.as_ref()).filter(|_| may_use_stored);
        if let Some(stale) = self.standing_in(stored, failure) {
            return stale;
        }
        let note = Note {
            detail: Some(Reason::OriginFailed),
            ..self.note
        };
        // Whoever must prove a key is told that nobody can say.
        if keyed.verifies() && failure.kind.is_origins() {
            return self.failed(&source_is_ill(), note);
        }
        self.failed(failure, note)
    }

    /// A stored response that the caller may have, in the place of a failed origin.
    fn standing_in(&self, stored: Option<&Arc<Entry>>, failure: &Failure) -> Option<Delivered> {
        let state = &self.plan.state;
        let now = state.clock.now();
        let entry = stored.filter(|entry| {
            failure.kind.is_origins() && may_stand_in(state, self.keyed.primary(), entry, now)
        })?;
        let note = Note {
            is_forwarded: true,
            forward_status: failure.status,
            ..Note::hit(
                CacheResult::Stale,
                Reason::StaleIfError,
                entry.view().ttl(now),
            )
        };
        Some(self.give(entry, note))
    }
}
