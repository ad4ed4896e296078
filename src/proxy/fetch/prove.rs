//! What one key has fetched is that key's alone until it is proved that it may be shared: a control
//! was taken, and a second key's own answer agreed (see [`units`](crate::guard::units)). The proofs
//! are made from the answers that clients get anyway, behind their backs, and by as few questions
//! more as will do.

use std::sync::Arc;

use http::{HeaderMap, Request};
use sha2::{Digest, Sha256};
use tracing::{debug, error, warn};

use crate::config::OnDifference;
use crate::guard::stranger::with_random_key;
use crate::guard::units::{Agreement, Control, FirstKey, MemberId, Membership, Unit};
use crate::guard::{Caller, Guard, is_refusal};
use crate::metrics::guard::Compared;
use crate::policy::Mode;
use crate::policy::key::KeyBytes;
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::wire::conditions::unconditional;
use crate::store::{Entry, Found};
use crate::upstream::empty;

use super::compare_keys::{compare, copied, credential_fields, digest_of, with_credential};

/// A caller's own request, whose answer may prove something.
pub struct Proving {
    plan: Arc<Plan>,
    route: Arc<PlannedRoute>,
    caller: Caller,
    /// As it is sent, without conditions.
    request: Request<()>,
    /// As the client sent them: `Vary` selects by them.
    client_headers: HeaderMap,
    unit: KeyBytes,
    /// Under which key all get it, once that is proved.
    common: KeyBytes,
    /// It is stored for its own key alone.
    is_apart: bool,
}

impl Proving {
    /// Of a request that is sent in this form; `None` where nothing is to be proved.
    pub fn of<B>(plan: &Arc<Plan>, keyed: &KeyedRequest, request: &Request<B>) -> Option<Self> {
        let guard = plan.guard.as_ref()?;
        let (let_in, sharing) = (keyed.let_in?, keyed.route.sharing.as_ref()?);
        let compares = plan.config.auth.on_difference != OnDifference::Off;
        if !guard.needs_proof() && !compares {
            return None;
        }
        let mut request = copied(request);
        unconditional(request.headers_mut());
        Some(Self {
            plan: Arc::clone(plan),
            route: Arc::clone(&keyed.route),
            caller: let_in.caller,
            request,
            client_headers: keyed.headers().clone(),
            unit: keyed.key.unit(&sharing.unit_tag),
            common: KeyBytes::from_slice(keyed.key.common()),
            is_apart: keyed.key.is_apart(),
        })
    }

    /// Its answer has come, and is stored.
    pub fn answered(self, entry: &Arc<Entry>) {
        let Some(guard) = self.plan.guard.clone() else {
            return;
        };
        let unit = guard.units().known(&self.unit);
        if self.is_apart {
            let entry = Arc::clone(entry);
            tokio::spawn(async move {
                if let Some(_proving) = unit.begin().await {
                    self.prove(&guard, &unit, &entry).await;
                }
            });
            return;
        }
        let first = self.exchange_first(&unit, None);
        let control_is_due =
            guard.control_every().is_some() && unit.wants_control(self.plan.state.clock.now());
        let first = first.filter(|_| self.is_to_be_compared(&guard, &unit));
        if control_is_due || first.is_some() {
            tokio::spawn(async move {
                if let Some(_proving) = unit.begin().await {
                    self.keep(&guard, &unit, first).await;
                }
            });
        }
    }

    /// Whether a shared answer is to be compared once more: one of some is, and one whose agreement
    /// grows old.
    fn is_to_be_compared(&self, guard: &Guard, unit: &Unit) -> bool {
        let (auth, now) = (&self.plan.config.auth, self.plan.state.clock.now());
        let Some(sharing) = &self.route.sharing else {
            return false;
        };
        auth.on_difference != OnDifference::Off
            && (sharing.observed.is_sampled(auth.compare_every)
                || (guard.needs_agreement() && unit.is_aging(now)))
    }

    fn path(&self) -> &str {
        self.request.uri().path()
    }

    fn credential(&self) -> HeaderMap {
        credential_fields(self.route.options(), self.request.headers())
    }

    /// Proves what is missing, as far as this answer allows, and then shares it.
    async fn prove(&self, guard: &Arc<Guard>, unit: &Unit, entry: &Arc<Entry>) {
        let state = &self.plan.state;
        if let Some(second) = &state.second {
            unit.hear(second, state.clock.now()).await;
        }
        let mut joined = Vec::new();
        if guard.needs_agreement() {
            joined = self.find_members(guard, unit, entry).await;
            let now = state.clock.now();
            for caller in &joined {
                let member = MemberId::of(caller, &self.unit);
                let second = state.second.as_deref();
                guard.units().join(member, Membership::Member, second, now);
            }
        }
        let is_agreed = !guard.needs_agreement() || unit.is_agreed(state.clock.now());
        if is_agreed || !guard.is_known(&self.caller) {
            self.take_control(guard, unit).await;
        }
        if guard.is_taught(Some(unit)) {
            joined.iter().for_each(|caller| guard.widen(caller, true));
            guard.widen(&self.caller, guard.is_member(&self.caller, &self.unit));
        }
        if guard.is_shared(Some(unit)) && guard.is_member(&self.caller, &self.unit) {
            let _ = state.store(&self.common, Arc::clone(entry), None);
        }
    }

    /// Who joins those whose answers agree, now that this answer has come.
    async fn find_members(&self, guard: &Guard, unit: &Unit, entry: &Entry) -> Vec<Caller> {
        let state = &self.plan.state;
        let now = state.clock.now();
        let member = MemberId::of(&self.caller, &self.unit);
        match unit.agreement(now) {
            Some(Agreement::Differs | Agreement::Unclear) => Vec::new(),
            None => {
                let own = digest_of(&self.plan, entry);
                let Some(first) = self.exchange_first(unit, Some(own)) else {
                    return Vec::new();
                };
                let Some(compared) = self.agrees_with(&first, own).await else {
                    return Vec::new();
                };
                self.found(unit, compared);
                match compared {
                    Compared::Same => vec![self.caller, first.caller],
                    Compared::Differs | Compared::Unclear => Vec::new(),
                }
            }
            Some(Agreement::Agreed) if guard.units().membership(&member, now).is_some() => {
                Vec::new()
            }
            Some(Agreement::Agreed) => match self.agrees_with_members(unit, entry).await {
                Some(Compared::Same) => {
                    state.metrics.guard.compared(Compared::Same);
                    vec![self.caller]
                }
                Some(Compared::Unclear) => {
                    state.metrics.guard.compared(Compared::Unclear);
                    guard.units().join(member, Membership::Unclear, None, now);
                    Vec::new()
                }
                Some(Compared::Differs) => {
                    self.found(unit, Compared::Differs);
                    Vec::new()
                }
                None => Vec::new(),
            },
        }
    }

    /// Whether the answer of a key that comes later agrees with what members have fetched, or with a
    /// member's when both are asked again; `None` where that cannot be said now.
    async fn agrees_with_members(&self, unit: &Unit, entry: &Entry) -> Option<Compared> {
        let state = &self.plan.state;
        let own = digest_of(&self.plan, entry);
        let (mut common, now) = (self.common.clone(), state.clock.now());
        if let Found::Entry(shared) = state.memory.get(&mut common, &self.client_headers, now)
            && digest_of(&self.plan, &shared) == own
        {
            return Some(Compared::Same);
        }
        let member = unit.first_but(&self.caller)?;
        self.agrees_with(&member, own).await
    }

    /// Takes the place of the key that was answered before; that one, where it is another.
    fn exchange_first(&self, unit: &Unit, own: Option<u64>) -> Option<FirstKey> {
        unit.exchange_first(FirstKey {
            caller: self.caller,
            credential: self.credential(),
            asked: Sha256::digest(&self.common).into(),
            answer: own,
        })
    }

    /// Whether this key's answer agrees with another one's: by what both were answered, or else by
    /// asking again; `None` where that cannot be said now.
    async fn agrees_with(&self, first: &FirstKey, own: u64) -> Option<Compared> {
        let asked: [u8; 32] = Sha256::digest(&self.common).into();
        if first.asked == asked && first.answer == Some(own) {
            return Some(Compared::Same);
        }
        self.compare_with(first).await
    }

    /// What was found of two keys' answers: it is remembered, counted, and told.
    fn found(&self, unit: &Unit, compared: Compared) {
        let state = &self.plan.state;
        state.metrics.guard.compared(compared);
        let agreement = match compared {
            Compared::Same => Agreement::Agreed,
            Compared::Differs => Agreement::Differs,
            Compared::Unclear => Agreement::Unclear,
        };
        let now = state.clock.now();
        unit.compared(agreement, now);
        unit.tell_agreement(state.second.as_deref(), agreement, now);
        let path = self.path();
        match agreement {
            Agreement::Agreed => debug!(path, "two keys' answers agree: shared from now on"),
            Agreement::Unclear => warn!(
                path,
                "two keys' answers could not be compared, since they never stay the same: each key has its own; name what differs by itself in auth.volatile"
            ),
            Agreement::Differs => {
                if let Some(sharing) = &self.route.sharing {
                    sharing.observed.set_why_demoted(now, path);
                }
                self.route.series.demoted();
                error!(
                    route = self.route.series.path(),
                    path,
                    "answers differ by key on a route with share = \"verified\": there each key has its own; set share = \"per-key\" for it, or name what differs by itself in auth.volatile"
                );
            }
        }
    }

    /// How this key's answers compare with another one's; `None` where that cannot be said now.
    async fn compare_with(&self, other: &FirstKey) -> Option<Compared> {
        let plan = &self.plan;
        let guard = plan.guard.as_ref()?;
        // One that was revoked says nothing of the others.
        let are_good = || guard.is_good(&other.caller) && guard.is_good(&self.caller);
        if !are_good() || !guard.begins_proof() {
            return None;
        }
        let own = self.credential();
        let keys = [&own, &other.credential];
        let compared = compare(plan, &self.route.rule, &self.request, keys).await?;
        are_good().then_some(compared)
    }

    /// The same with a random key, and with none, where that is due.
    async fn take_control(&self, guard: &Guard, unit: &Unit) {
        let state = &self.plan.state;
        let Some(every) = guard.control_every() else {
            return;
        };
        if !unit.wants_control(state.clock.now()) || !guard.begins_proof() {
            return;
        }
        let second = state.second.as_deref();
        if !unit.claim_control(second, every, state.clock.now()).await {
            return;
        }
        let control = self.control().await;
        guard.controlled(unit, control);
        if control == Control::Failed {
            warn!(
                path = self.path(),
                "a random key, or none, is let in: what is answered there says nothing of keys, and each has its own"
            );
        }
    }

    async fn control(&self) -> Control {
        let headers = self.request.headers();
        let Some(random) = with_random_key(&self.route.credentials, headers) else {
            return Control::Unsent;
        };
        let origin = &self.plan.state.origin;
        for credential in [HeaderMap::new(), random] {
            let question = with_credential(self.route.options(), &self.request, &credential);
            match origin.answer(question.map(|()| empty())).await {
                Ok(answer) if is_refusal(answer.status()) => {}
                Ok(answer) if answer.status().is_server_error() => return Control::Unanswered,
                Ok(_) => return Control::Failed,
                Err(failure) if !failure.kind.may_have_arrived() => return Control::Unsent,
                Err(_) => return Control::Unanswered,
            }
        }
        Control::Held
    }

    /// Proves again what is shared.
    async fn keep(&self, guard: &Guard, unit: &Unit, first: Option<FirstKey>) {
        self.take_control(guard, unit).await;
        let state = &self.plan.state;
        let Some(first) = first else { return };
        let Some(compared) = self.compare_with(&first).await else {
            return;
        };
        state.metrics.guard.compared(compared);
        let now = state.clock.now();
        match compared {
            Compared::Same => {
                unit.compared(Agreement::Agreed, now);
                unit.tell_agreement(state.second.as_deref(), Agreement::Agreed, now);
            }
            Compared::Differs => self.found_to_differ(unit),
            // What was proved before holds to its end.
            Compared::Unclear => debug!(path = self.path(), "two keys' answers were not clear"),
        }
    }

    /// What was shared differs by key: the route is not shared any more, on any instance.
    fn found_to_differ(&self, unit: &Unit) {
        let (pattern, path) = (self.route.series.path(), self.path());
        if self.plan.config.auth.on_difference == OnDifference::Warn {
            warn!(
                route = pattern,
                path,
                "answers differ by key on a route with share = \"verified\": set share = \"per-key\", or name what differs by itself in auth.volatile"
            );
            return;
        }
        let state = &self.plan.state;
        let now = state.clock.now();
        unit.compared(Agreement::Differs, now);
        unit.tell_agreement(state.second.as_deref(), Agreement::Differs, now);
        let Some(sharing) = &self.route.sharing else {
            return;
        };
        if let Some(purge) = sharing.demotion(state.memory.purges()) {
            sharing.observed.set_why_demoted(now, path);
            state.purge(purge, Mode::Hard);
            self.route.series.demoted();
            error!(
                route = pattern,
                path,
                "answers that were shared differ by key: the route is demoted to per-key now, on all instances; set share = \"per-key\", or name what differs by itself in auth.volatile"
            );
        }
    }
}
