//! Miss: the request joins the fetch of its key, leads it, or fetches alone, and is answered from
//! what comes of it: the response, what another fetched, or stale in the place of a failure.

use std::sync::Arc;

use tokio::time::timeout;

use crate::error::{Failure, FailureKind};
use crate::flight::{Boarding, Outcome};
use crate::guard::{Standing, source_is_ill};
use crate::metrics::CacheResult;
use crate::policy::key::KeyBytes;
use crate::policy::vary::append_selecting;
use crate::policy::{self, Reason, StoredView};
use crate::proxy::fetch::Validation;
use crate::proxy::fetch::boarding::{alone, board};
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::parts::extend::Extended;
use crate::proxy::plan::Plan;
use crate::proxy::wire::{Body, InterimListener, InterimQueue};
use crate::store::{Entry, Found, Head, Judgement};

use super::bypass::pass_keyed;
use super::course::{Course, Miss};
use super::deliver::deliver;
use super::handled::{Awaited, Delivered, Handled};
use super::note::Note;
use super::refusal::failure_on;
use super::reuse::reuse;

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

/// What comes of one boarding.
enum Boarded {
    Answered(Delivered),
    /// Once more: the leader was refused or gave up, or what it found is not for this request.
    Again,
    /// Once more, and not with what was fetched before the purge.
    AgainAfterPurge,
    /// It fetches for itself, for this reason.
    Alone(Reason),
}

/// A request that nothing stored answers, with all that its answer needs.
pub struct Missed {
    pub plan: Arc<Plan>,
    pub keyed: KeyedRequest,
    /// What may be confirmed, or stands in for a failed origin, as it was looked up.
    pub stored: Option<Arc<Entry>>,
    pub note: Note,
}

/// Has the answer to a missed request fetched. What its origin says before the final response goes
/// to `interim`.
pub fn answer_miss(
    plan: &Arc<Plan>,
    mut miss: Miss,
    interim: Option<&Arc<InterimQueue>>,
) -> Handled {
    let version = miss.keyed.request.parts.version;
    miss.keyed.interim = InterimListener::open(interim, version);
    let note = Note::new(CacheResult::Miss, miss.reason);
    let Miss {
        keyed,
        validation,
        course,
        ..
    } = miss;
    let awaited = Awaited {
        plan: Arc::clone(plan),
        route: Some(Arc::clone(&keyed.route)),
        method: keyed.request.parts.method.clone(),
        started: keyed.request.started,
        observed: keyed.request.observed.clone(),
        interim: keyed.interim.clone(),
    };
    let missed = Missed {
        plan: Arc::clone(plan),
        stored: validation.as_ref().map(|stored| Arc::clone(&stored.entry)),
        keyed,
        note,
    };
    awaited.handle(missed.take(course, validation))
}

impl Missed {
    async fn take(mut self, course: Course, validation: Option<Validation>) -> Delivered {
        match course {
            Course::Pass(reason) => {
                self.note.reason = reason;
                pass_keyed(&self.plan, self.keyed, self.note).await
            }
            Course::PassRange | Course::Extend(..) => self.range(course).await,
            Course::Alone(reason) => self.alone(reason, validation).await,
            Course::Together => self.together(validation).await,
        }
    }

    /// A range of what cannot be had whole.
    pub async fn range(mut self, course: Course) -> Delivered {
        if let Course::Extend(extension, exchange) = course {
            let extending = Note {
                reason: Reason::Partial,
                ..self.note
            };
            match extension.fetch(&self.plan, &self.keyed, exchange).await {
                Ok(Extended::Covers { part, age }) => {
                    let note = Note {
                        stored: part.is_stored,
                        forward_status: Some(http::StatusCode::PARTIAL_CONTENT),
                        ..extending
                    };
                    let body = Body::Whole(part.entry.body());
                    return self.deliver(&part.entry.head, age, body, note);
                }
                Ok(Extended::Other(mut response)) => {
                    let note = Note {
                        forward_status: Some(response.status()),
                        ..extending
                    };
                    note.write(response.headers_mut());
                    let response = response.map(Body::Origin);
                    return Delivered { response, note };
                }
                Ok(Extended::Nothing) => {}
                Err(failure) => tracing::debug!(%failure, "a stored part could not be extended"),
            }
        }
        self.note.detail = Some(Reason::Range);
        pass_keyed(&self.plan, self.keyed, self.note).await
    }

    async fn alone(mut self, reason: Reason, validation: Option<Validation>) -> Delivered {
        self.note.reason = reason;
        let ticket = alone(&self.plan.state, &self.keyed);
        self.lead(ticket, validation).await
    }

    /// Joins the fetch of this key or leads it.
    async fn together(mut self, validation: Option<Validation>) -> Delivered {
        // A flight that began before this position of the purge log is not joined.
        let mut least = 0;
        for _ in 0..ELECTIONS {
            let state = &self.plan.state;
            let boarding = match board(state, &self.keyed, least, || self.stored_meanwhile()) {
                Err(delivered) => return delivered,
                Ok(boarding) => boarding,
            };
            let waiter = match boarding {
                Boarding::Lead(ticket) => return self.lead(ticket, validation).await,
                Boarding::Full => return self.alone(Reason::FlightsFull, validation).await,
                Boarding::Wait(waiter) => waiter,
            };
            let limit = self.plan.config.cache.wait_timeout;
            let Ok(outcome) = timeout(limit, waiter.outcome()).await else {
                drop(waiter);
                return self.alone(Reason::WaitTimeout, validation).await;
            };
            let boarded = match outcome {
                Outcome::Streaming(head) => match self.fits(&head) {
                    Fits::Yes => match waiter.reader(limit).await {
                        Some(reader) => {
                            self.collapsed();
                            return self.stream(&head, reader).await;
                        }
                        None if waiter.is_open() => Boarded::Alone(Reason::WaitTimeout),
                        None => Boarded::Alone(self.note.reason),
                    },
                    Fits::Purged => Boarded::AgainAfterPurge,
                    Fits::No => Boarded::Alone(self.note.reason),
                },
                outcome => self.boarded(outcome),
            };
            // Whoever goes on by itself waits no more.
            drop(waiter);
            match boarded {
                Boarded::Answered(delivered) => return delivered,
                Boarded::Again => {}
                Boarded::AgainAfterPurge => least = self.plan.state.purge_position(),
                Boarded::Alone(reason) => return self.alone(reason, validation).await,
            }
        }
        let reason = self.note.reason;
        self.alone(reason, validation).await
    }

    /// What another request's fetch came to, where it does not stream.
    fn boarded(&mut self, outcome: Outcome) -> Boarded {
        match outcome {
            Outcome::Stored(entry) => match self.fits(&entry.head) {
                Fits::Yes => {
                    self.collapsed();
                    Boarded::Answered(self.give(&entry, self.note))
                }
                Fits::No => Boarded::Alone(self.note.reason),
                Fits::Purged => Boarded::AgainAfterPurge,
            },
            Outcome::Found => match self.stored_meanwhile() {
                Some(delivered) => Boarded::Answered(delivered),
                None => Boarded::Again,
            },
            // The leader's key was refused: another one leads.
            Outcome::NotShared(Reason::Credential) if self.keyed.let_in.is_some() => {
                if let Some(refused) = self.refused_meanwhile() {
                    return Boarded::Answered(refused);
                }
                // Whoever led would be refused too.
                let guard = self.plan.guard.as_ref();
                if guard.is_some_and(|guard| guard.is_in_outage()) {
                    return Boarded::Answered(
                        self.stale_or_failure(self.stored.as_ref(), &source_is_ill()),
                    );
                }
                Boarded::Again
            }
            Outcome::NotShared(_) => Boarded::Alone(Reason::HitForMiss),
            Outcome::Failed(failure) => {
                Boarded::Answered(self.stale_or_failure(self.stored.as_ref(), &failure))
            }
            Outcome::Abandoned | Outcome::Streaming(_) => Boarded::Again,
        }
    }

    /// What a flight stored between this request's look-up and its boarding.
    fn stored_meanwhile(&self) -> Option<Delivered> {
        // Another request with its key may have had the answer about it meanwhile.
        if let (Some(guard), Some(let_in)) = (&self.plan.guard, self.keyed.let_in)
            && let_in.verifies
        {
            match guard.standing(&let_in.caller) {
                Standing::Good => {}
                Standing::Bad => return self.refused_meanwhile(),
                Standing::Unknown { .. } => return None,
            }
        }
        let now = self.plan.state.clock.now();
        let entry = self.stored_now()?;
        let (request, options) = (self.keyed.request.view(), self.keyed.options());
        let decision = policy::decide(request, Some(entry.view()), options, now);
        let note = reuse(&entry, decision, now)?;
        Some(self.give(&entry, note))
    }

    /// What is stored for this request by now.
    pub fn stored_now(&self) -> Option<Arc<Entry>> {
        let state = &self.plan.state;
        let mut key = KeyBytes::from_slice(self.keyed.primary());
        let now = state.clock.now();
        match state.memory.get(&mut key, self.keyed.headers(), now) {
            Found::Entry(entry) => self.plan.in_force(&key, entry, self.keyed.options()),
            _ => None,
        }
    }

    /// The answer to a request whose own key was found bad while it waited.
    fn refused_meanwhile(&self) -> Option<Delivered> {
        let (guard, let_in) = (self.plan.guard.as_ref()?, self.keyed.let_in?);
        if guard.standing(&let_in.caller) != Standing::Bad {
            return None;
        }
        let note = Note::new(CacheResult::Bypass, Reason::KeyRefused);
        let failure = Failure::new(FailureKind::KeyRefused, "Invalid or inactive API key");
        Some(self.failed(&failure, note))
    }

    /// Whether a response that another request fetched answers this one too.
    fn fits(&self, head: &Head) -> Fits {
        let (keyed, state) = (&self.keyed, &self.plan.state);
        let judgement = state.memory.judge(keyed.primary(), head, keyed.arrived);
        let stale_since = match judgement {
            Judgement::Gone => return Fits::Purged,
            Judgement::StaleSince(at) => Some(at),
            Judgement::Untouched => None,
        };
        let stored = StoredView {
            record: &head.record,
            stale_since,
        };
        let (request, now) = (keyed.request.view(), state.clock.now());
        let decision = policy::decide(request, Some(stored), keyed.options(), now);
        let is_usable = matches!(
            decision,
            policy::Decision::Hit { .. } | policy::Decision::StaleHit { .. }
        );
        let is_selected = head.selecting.as_ref().is_none_or(|selecting| {
            let mut values = Vec::new();
            append_selecting(&selecting.names, keyed.headers(), &mut values);
            values == selecting.values
        });
        match (is_usable, is_selected) {
            (true, true) => Fits::Yes,
            (false, _) if stale_since.is_some() => Fits::Purged,
            _ => Fits::No,
        }
    }

    /// It is answered by another request's fetch.
    fn collapsed(&mut self) {
        self.plan.state.metrics.coalesced_waiters.inc();
        self.note.collapsed = true;
    }

    /// The response to a failed request.
    pub fn failed(&self, failure: &Failure, note: Note) -> Delivered {
        let keyed = &self.keyed;
        let method = &keyed.request.parts.method;
        let response = failure_on(&self.plan, Some(&keyed.route), method, failure, note);
        Delivered { response, note }
    }

    /// A response that is whole.
    pub fn give(&self, entry: &Entry, note: Note) -> Delivered {
        let age = entry.view().age(self.plan.state.clock.now());
        let body = Body::Whole(entry.body());
        self.deliver(&entry.head, age, body, note)
    }

    pub fn deliver(
        &self,
        head: &Head,
        age: std::time::Duration,
        body: Body,
        note: Note,
    ) -> Delivered {
        let (request, options) = (&self.keyed.request, self.keyed.options());
        let response = deliver(&self.plan, request, options, head, age, body, note);
        Delivered { response, note }
    }
}
