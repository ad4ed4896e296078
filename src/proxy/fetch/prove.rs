//! What one key has fetched is that key's alone until it is proved that it may be shared: a control
//! was taken, and a second key's own answer agreed (see [`units`](crate::guard::units)). The proofs
//! are made from the answers that clients get anyway, behind their backs, and by as few questions
//! more as will do.

use std::sync::Arc;

use http::{HeaderMap, Request, StatusCode};
use sha2::{Digest, Sha256};
use tracing::{debug, error, warn};

use crate::config::OnDifference;
use crate::guard::agreement::Answer;
use crate::guard::group::Group;
use crate::guard::stranger::with_random_key;
use crate::guard::units::{Agreement, Control, FirstKey, MemberId, Membership, Unit};
use crate::guard::{Caller, Guard, is_refusal};
use crate::metrics::guard::Compared;
use crate::policy::Mode;
use crate::policy::key::KeyBytes;
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::request_key::RequestKey;
use crate::proxy::wire::conditions::unconditional;
use crate::store::{Entry, Found};
use crate::upstream::empty;

use super::compare_keys::{answer_of, compare, copied, credential_fields, with_credential};

/// A caller's own request, whose answer may prove something.
pub struct Proving {
    plan: Arc<Plan>,
    route: Arc<PlannedRoute>,
    caller: Caller,
    /// As it is sent, without conditions.
    request: Request<()>,
    /// As the client sent them: `Vary` selects by them.
    client_headers: HeaderMap,
    /// Under which it is stored: its own, or its group's.
    key: RequestKey,
    unit: KeyBytes,
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
            key: keyed.key.clone(),
            unit: keyed.key.unit(&sharing.unit_tag),
        })
    }

    /// Its answer has come, and is stored where `entry` is that.
    pub fn answered(self, entry: Option<&Arc<Entry>>) {
        let Some(guard) = self.plan.guard.clone() else {
            return;
        };
        let now = self.plan.state.clock.now();
        let entry = entry.map(Arc::clone);
        if entry.is_none() && (guard.control_every().is_none() || guard.is_known(&self.caller)) {
            return;
        }
        let unit = guard.units().known(&self.unit);
        if self.key.is_apart() || entry.is_none() {
            tokio::spawn(async move {
                if let Some(_proving) = unit.begin().await {
                    self.prove(&guard, &unit, entry.as_ref()).await;
                }
            });
            return;
        }
        let group = guard.group(Some(&unit));
        let first = self.exchange_first(&unit, group, None);
        let first = first.filter(|first| first.group == group && group.is_some());
        let first = first.filter(|_| self.is_to_be_compared(&guard, &unit, entry.as_deref()));
        let control_is_due = guard.control_every().is_some() && unit.wants_control(now);
        if control_is_due || first.is_some() {
            tokio::spawn(async move {
                if let Some(_proving) = unit.begin().await {
                    self.keep(&guard, &unit, first).await;
                }
            });
        }
    }

    /// Whether a shared answer is to be compared once more: one of some is, one whose agreement grows
    /// old, and one that has what those that agreed had not.
    fn is_to_be_compared(&self, guard: &Guard, unit: &Unit, entry: Option<&Entry>) -> bool {
        let (auth, now) = (&self.plan.config.auth, self.plan.state.clock.now());
        let Some(sharing) = &self.route.sharing else {
            return false;
        };
        let is_new = || {
            let answer = entry.and_then(|entry| answer_of(&self.plan, entry));
            answer.is_some_and(|answer| unit.is_of_new_shape(answer.shape()))
        };
        auth.on_difference != OnDifference::Off
            && (sharing.observed.is_sampled(auth.compare_every)
                || guard.needs_agreement() && (unit.is_aging(now) || is_new()))
    }

    fn path(&self) -> &str {
        self.request.uri().path()
    }

    fn credential(&self) -> HeaderMap {
        credential_fields(self.route.options(), self.request.headers())
    }

    /// What is asked for, by whomever.
    fn asked(&self) -> [u8; 32] {
        Sha256::digest(self.key.of_group(Group::ALL).primary()).into()
    }

    /// Proves what is missing, as far as this answer allows, and then shares it.
    async fn prove(&self, guard: &Arc<Guard>, unit: &Unit, entry: Option<&Arc<Entry>>) {
        let state = &self.plan.state;
        if let Some(second) = &state.second {
            unit.hear(second, state.clock.now()).await;
        }
        let mut joined = vec![self.caller];
        if guard.needs_agreement() {
            joined = match entry {
                Some(entry) => self.find_members(guard, unit, entry).await,
                None => Vec::new(),
            };
        }
        let is_agreed = !guard.needs_agreement() || unit.group(state.clock.now()).is_some();
        if is_agreed || !guard.is_known(&self.caller) {
            self.take_control(guard, unit).await;
        }
        if !guard.is_taught(Some(unit)) {
            return;
        }
        guard.know(&self.caller);
        if let (Some(group), false) = (guard.group(Some(unit)), joined.is_empty()) {
            joined.iter().for_each(|caller| guard.widen(caller, group));
            if let Some(entry) = entry {
                let key = self.key.of_group(group);
                let _ = state.store(key.primary(), Arc::clone(entry), None);
            }
        }
    }

    /// Who gets each other's answers, now that this one has come.
    async fn find_members(&self, guard: &Guard, unit: &Unit, entry: &Entry) -> Vec<Caller> {
        let state = &self.plan.state;
        let now = state.clock.now();
        let Some(answer) = answer_of(&self.plan, entry) else {
            return Vec::new();
        };
        match unit.agreement(now) {
            Some(Agreement::Differs | Agreement::Unclear) => Vec::new(),
            Some(Agreement::Agreed) => self.join(guard, unit, &answer).await,
            // That two keys get nothing says nothing.
            None if !answer.says_something() => Vec::new(),
            None => {
                let first = self.exchange_first(unit, None, Some(answer.digest()));
                let Some(first) = first else {
                    return Vec::new();
                };
                let compared = self.agrees_with(&first, &answer, unit).await;
                self.found(unit, compared);
                if compared != Some(Compared::Same) {
                    return Vec::new();
                }
                let second = state.second.as_deref();
                let Some(group) = unit.begin_group(second, now).await else {
                    return Vec::new();
                };
                self.joins(guard, unit, &first.caller, group);
                self.joins(guard, unit, &self.caller, group);
                unit.knows_shape(answer.shape());
                self.exchange_first(unit, Some(group), Some(answer.digest()));
                vec![self.caller, first.caller]
            }
        }
    }

    fn joins(&self, guard: &Guard, unit: &Unit, caller: &Caller, group: Group) {
        let state = &self.plan.state;
        let (member, now) = (MemberId::of(caller, &self.unit), state.clock.now());
        debug_assert!(unit.group(now).is_some());
        let second = state.second.as_deref();
        guard
            .units()
            .join(member, Membership::Of(group), second, now);
    }

    /// A key that comes later is compared with what the group has fetched, or with one of its members;
    /// and so is a member, for what it has not asked for before.
    async fn join(&self, guard: &Guard, unit: &Unit, answer: &Answer) -> Vec<Caller> {
        let state = &self.plan.state;
        let now = state.clock.now();
        let Some(group) = unit.group(now) else {
            return Vec::new();
        };
        let member = MemberId::of(&self.caller, &self.unit);
        let membership = guard.units().membership(&member, now);
        if membership == Some(Membership::Unclear) {
            return Vec::new();
        }
        let mut key = KeyBytes::from_slice(self.key.of_group(group).primary());
        let shared = match state.memory.get(&mut key, &self.client_headers, now) {
            Found::Entry(shared) => answer_of(&self.plan, &shared),
            _ => None,
        };
        let first = unit.first_but(&self.caller);
        let usable = first.filter(|first| {
            first.group == Some(group) && guard.is_good(&first.caller, Some(group))
        });
        let compared = match (&shared, usable) {
            (Some(shared), _) if shared.digest() == answer.digest() => Some(Compared::Same),
            (None, _) if membership == Some(Membership::Of(group)) => Some(Compared::Same),
            (_, Some(first)) => self.agrees_with(&first, answer, unit).await,
            (_, None) => {
                // Nobody else will tell either.
                if state.second.is_none() && membership.is_none() {
                    unit.dissolve();
                }
                None
            }
        };
        match compared {
            Some(Compared::Same) => {
                state.metrics.guard.compared(Compared::Same);
                self.joins(guard, unit, &self.caller, group);
                unit.knows_shape(answer.shape());
                self.exchange_first(unit, Some(group), Some(answer.digest()));
                vec![self.caller]
            }
            Some(Compared::Unclear) => {
                state.metrics.guard.compared(Compared::Unclear);
                guard.units().join(member, Membership::Unclear, None, now);
                Vec::new()
            }
            Some(Compared::Differs) => {
                self.found(unit, Some(Compared::Differs));
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Takes the place of the key that was answered before; that one, where it is another.
    fn exchange_first(
        &self,
        unit: &Unit,
        group: Option<Group>,
        own: Option<u64>,
    ) -> Option<FirstKey> {
        unit.exchange_first(FirstKey {
            caller: self.caller,
            credential: self.credential(),
            asked: self.asked(),
            answer: own,
            group,
        })
    }

    /// Whether this key's answer agrees with another one's: by what both were answered, or else by
    /// asking again; `None` where that cannot be said now.
    async fn agrees_with(&self, first: &FirstKey, own: &Answer, unit: &Unit) -> Option<Compared> {
        if first.asked == self.asked() && first.answer == Some(own.digest()) {
            return Some(Compared::Same);
        }
        self.compare_with(first, unit).await
    }

    /// What was found of two keys' answers where nobody shares yet, or where they differ: it is
    /// remembered, counted, and told.
    fn found(&self, unit: &Unit, compared: Option<Compared>) {
        let Some(compared) = compared else { return };
        let state = &self.plan.state;
        state.metrics.guard.compared(compared);
        let (now, path) = (state.clock.now(), self.path());
        match compared {
            Compared::Same => debug!(path, "two keys' answers agree: shared from now on"),
            Compared::Unclear => {
                unit.found(Agreement::Unclear, now);
                warn!(
                    path,
                    "two keys' answers could not be compared, since they never stay the same: each key has its own; name what differs by itself in auth.volatile"
                );
            }
            Compared::Differs => {
                unit.found(Agreement::Differs, now);
                unit.tell_difference(state.second.as_deref(), now);
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
    async fn compare_with(&self, other: &FirstKey, unit: &Unit) -> Option<Compared> {
        let plan = &self.plan;
        let guard = plan.guard.as_ref()?;
        let now = plan.state.clock.now();
        // One that was revoked says nothing of the others.
        let are_good = || {
            guard.is_good(&other.caller, other.group) && guard.is_good(&self.caller, other.group)
        };
        if !are_good() || !unit.may_compare(now) || !guard.begins_proof() {
            return None;
        }
        let own = self.credential();
        let keys = [&own, &other.credential];
        let compared = compare(plan, &self.route.rule, &self.request, keys).await;
        if compared.is_none() {
            // It may be that one of them is not to see this at all.
            unit.pause(now);
        }
        compared.filter(|_| are_good())
    }

    /// The same with a random key, and with none, where that is due.
    async fn take_control(&self, guard: &Guard, unit: &Unit) {
        let state = &self.plan.state;
        if guard.control_every().is_none()
            || !unit.wants_control(state.clock.now())
            || !guard.begins_proof()
        {
            return;
        }
        let second = state.second.as_deref();
        if !unit.claim_control(second, state.clock.now()).await {
            return;
        }
        let (control, status) = self.control().await;
        guard.controlled(unit, control);
        if control != Control::Held {
            warn!(
                path = self.path(),
                status = status.map(|status| status.as_u16()),
                "a random key, or none, was not refused by 401 or 403: what is answered there says nothing of keys, and each has its own until a control holds"
            );
        }
    }

    /// What the origin makes of strangers, and the status that was no refusal.
    async fn control(&self) -> (Control, Option<StatusCode>) {
        let headers = self.request.headers();
        let Some(random) = with_random_key(&self.route.credentials, headers) else {
            return (Control::Unsent, None);
        };
        let origin = &self.plan.state.origin;
        for credential in [HeaderMap::new(), random] {
            let question = with_credential(self.route.options(), &self.request, &credential);
            let status = match origin.answer(question.map(|()| empty())).await {
                Ok(answer) => answer.status(),
                Err(failure) if !failure.kind.may_have_arrived() => {
                    return (Control::Unsent, None);
                }
                Err(_) => return (Control::Unanswered, None),
            };
            let says_nothing = status.is_server_error()
                || matches!(
                    status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                );
            match status {
                status if is_refusal(status) => {}
                status if says_nothing => return (Control::Unanswered, Some(status)),
                status => return (Control::Failed, Some(status)),
            }
        }
        (Control::Held, None)
    }

    /// Proves again what is shared.
    async fn keep(&self, guard: &Guard, unit: &Unit, first: Option<FirstKey>) {
        self.take_control(guard, unit).await;
        let state = &self.plan.state;
        let Some(first) = first else { return };
        let Some(compared) = self.compare_with(&first, unit).await else {
            return;
        };
        state.metrics.guard.compared(compared);
        match compared {
            Compared::Same => {
                let (now, group) = (state.clock.now(), first.group);
                let mut key = KeyBytes::from_slice(self.key.primary());
                if let Found::Entry(entry) = state.memory.get(&mut key, &self.client_headers, now)
                    && let Some(answer) = answer_of(&self.plan, &entry)
                {
                    unit.knows_shape(answer.shape());
                }
                if let Some(group) = group.filter(|group| unit.renew(*group, now)) {
                    unit.tell_renewed(state.second.as_deref(), group, now);
                }
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
        unit.found(Agreement::Differs, now);
        unit.tell_difference(state.second.as_deref(), now);
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
