//! What one key has fetched is that key's alone until it is proved that it may be shared: a control
//! was taken, and a second key's own answer agreed (see [`units`](crate::guard::units)). The proofs
//! are made from the answers that clients get anyway, behind their backs, and by as few questions
//! more as will do.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request};
use sha2::{Digest, Sha256};
use tracing::{debug, error, warn};

use crate::clock::Timestamp;
use crate::config::OnDifference;
use crate::guard::agreement::Answer;
use crate::guard::group::Group;
use crate::guard::units::{Agreement, Control, MemberId, Membership, RecentKey, Unit};
use crate::guard::{Caller, Guard};
use crate::metrics::guard::Compared;
use crate::policy::Mode;
use crate::policy::key::KeyBytes;
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::request_key::{RequestKey, units};
use crate::proxy::wire::conditions::unconditional;
use crate::store::purge::causes::Cause;
use crate::store::{Entry, Found, Purge};

use super::compare_keys::{
    answer_of, answer_to, compare, copied, credential_fields, with_credential,
};
use super::control::control;

/// Answers that came within so long of each other are of one time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Differences among members of a route, after which it is plain that its answers are not for all.
const MOST_DIFFERENCES: u64 = 100;

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
    /// The unit of which a control is taken.
    unit: KeyBytes,
    /// The one in which keys agree.
    agreeing: KeyBytes,
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
        let [unit, agreeing] = units(sharing, &keyed.route, &keyed.key);
        Some(Self {
            plan: Arc::clone(plan),
            route: Arc::clone(&keyed.route),
            caller: let_in.caller,
            request,
            client_headers: keyed.headers().clone(),
            key: keyed.key.clone(),
            unit,
            agreeing,
        })
    }

    /// Its answer has come, and is stored.
    pub fn answered(self, entry: &Arc<Entry>) {
        let Some(guard) = self.plan.guard.clone() else {
            return;
        };
        let now = self.plan.state.clock.now();
        let entry = Arc::clone(entry);
        let known = |written: &[u8]| guard.units().known(written);
        let (unit, agreeing) = (known(&self.unit), known(&self.agreeing));
        if self.key.is_apart() {
            tokio::spawn(async move {
                if let Some(_proving) = agreeing.begin().await {
                    self.prove(&guard, &unit, &agreeing, &entry).await;
                }
            });
            return;
        }
        // The group may have ended since it was asked for.
        let group = guard.group(Some(&unit), Some(&agreeing));
        if group.is_none() || self.key.group() != group {
            return;
        }
        let asked = self.asked();
        let others = agreeing.others(&self.caller).into_iter();
        let mut others: Vec<RecentKey> = others
            .filter(|other| other.group == group && other.asked == asked)
            .collect();
        self.note_key(&agreeing, group, None);
        let is_new = guard.needs_agreement() && self.has_new_place(&agreeing, &entry);
        if is_new && !others.is_empty() {
            // Nobody else gets what is new before all agree about it.
            let (state, primary) = (&self.plan.state, self.key.primary());
            state.memory.remove(primary, &entry);
            state.forget_shared(primary);
        } else if self.is_to_be_compared(&guard, &agreeing) {
            others.truncate(1);
        } else {
            others.clear();
        }
        let control_is_due = guard.control_every().is_some() && unit.wants_control(now);
        if control_is_due || !others.is_empty() {
            tokio::spawn(async move {
                if let Some(_proving) = agreeing.begin().await {
                    let units = [&*unit, &*agreeing];
                    self.keep(&guard, units, others, &entry, is_new).await;
                }
            });
        }
    }

    /// Whether an answer has something where those that agreed had nothing.
    fn has_new_place(&self, agreeing: &Unit, entry: &Entry) -> bool {
        let answer = answer_of(&self.plan, entry);
        answer.is_none_or(|answer| agreeing.has_new_place(&answer.places()))
    }

    /// Whether a shared answer is to be compared once more: one of some is, and one whose agreement
    /// grows old.
    fn is_to_be_compared(&self, guard: &Guard, agreeing: &Unit) -> bool {
        let (auth, now) = (&self.plan.config.auth, self.plan.state.clock.now());
        let Some(sharing) = &self.route.sharing else {
            return false;
        };
        auth.on_difference != OnDifference::Off
            && (sharing.observed.is_sampled(auth.compare_every)
                || guard.needs_agreement() && agreeing.is_aging(now))
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
    async fn prove(&self, guard: &Arc<Guard>, unit: &Unit, agreeing: &Unit, entry: &Arc<Entry>) {
        let state = &self.plan.state;
        if let Some(second) = &state.second {
            unit.hear(second, state.clock.now()).await;
            agreeing.hear(second, state.clock.now()).await;
        }
        let joined = if guard.needs_agreement() {
            self.find_members(guard, agreeing, entry).await
        } else {
            vec![self.caller]
        };
        if joined.is_empty() {
            return;
        }
        self.take_control(guard, unit).await;
        if let Some(group) = guard.group(Some(unit), Some(agreeing)) {
            joined.iter().for_each(|caller| guard.widen(caller, group));
            let key = self.key.of_group(group);
            let _ = state.store(key.primary(), Arc::clone(entry), None);
        }
    }

    /// Who gets each other's answers, now that this one has come.
    async fn find_members(&self, guard: &Guard, agreeing: &Unit, entry: &Entry) -> Vec<Caller> {
        let state = &self.plan.state;
        let now = state.clock.now();
        // That two keys get nothing says nothing.
        let answer = answer_of(&self.plan, entry).filter(Answer::says_something);
        let Some(answer) = answer else {
            return Vec::new();
        };
        match agreeing.agreement(now) {
            Some(Agreement::Differs | Agreement::Unclear) => Vec::new(),
            Some(Agreement::Agreed) => self.join(guard, agreeing, &answer).await,
            None => {
                let others = agreeing.others(&self.caller);
                self.note_key(agreeing, None, Some(answer.digest()));
                let Some(other) = others.into_iter().next() else {
                    return Vec::new();
                };
                let compared = self.agrees_with(&other, &answer, agreeing).await;
                self.found(agreeing, None, compared);
                if compared != Some(Compared::Same) {
                    return Vec::new();
                }
                let second = state.second.as_deref();
                let Some(group) = agreeing.begin_group(second, now).await else {
                    return Vec::new();
                };
                self.joins(guard, &other.caller, group);
                agreeing.note_key(RecentKey {
                    group: Some(group),
                    ..other.clone()
                });
                self.has_joined(guard, agreeing, group, &answer);
                // Its verdict is for what it asked.
                let callers = [
                    Some(self.caller),
                    (other.asked == self.asked()).then_some(other.caller),
                ];
                callers.into_iter().flatten().collect()
            }
        }
    }

    fn joins(&self, guard: &Guard, caller: &Caller, group: Group) {
        let state = &self.plan.state;
        let (member, now) = (MemberId::of(caller, &self.agreeing), state.clock.now());
        let second = state.second.as_deref();
        guard
            .units()
            .join(member, Membership::Of(group), second, now);
    }

    fn has_joined(&self, guard: &Guard, agreeing: &Unit, group: Group, answer: &Answer) {
        self.joins(guard, &self.caller, group);
        agreeing.knows_places(&answer.places());
        self.note_key(agreeing, Some(group), Some(answer.digest()));
    }

    /// A key that comes later is compared with what the group has fetched, or with one of its
    /// members asked again.
    async fn join(&self, guard: &Guard, agreeing: &Unit, answer: &Answer) -> Vec<Caller> {
        let state = &self.plan.state;
        let now = state.clock.now();
        let Some(group) = agreeing.group(now) else {
            return Vec::new();
        };
        let member = MemberId::of(&self.caller, &self.agreeing);
        let membership = guard.units().membership(&member, now);
        if membership == Some(Membership::Unclear) {
            return Vec::new();
        }
        let mut key = KeyBytes::from_slice(self.key.of_group(group).primary());
        let shared = match state.memory.get(&mut key, &self.client_headers, now) {
            // What it said before this answer came says nothing of now.
            Found::Entry(shared) if shared.view().age(now) <= AT_ONCE => {
                answer_of(&self.plan, &shared)
            }
            _ => None,
        };
        let is_member = |other: &RecentKey| {
            other.group == Some(group) && guard.is_good(&other.caller, other.group)
        };
        let mut others = agreeing.others(&self.caller).into_iter();
        let compared = match others.find(is_member) {
            _ if shared.is_some_and(|shared| shared.digest() == answer.digest()) => {
                Some(Compared::Same)
            }
            Some(other) => self.agrees_with(&other, answer, agreeing).await,
            None => {
                // Nobody else will tell either.
                if state.second.is_none() {
                    agreeing.dissolve();
                }
                None
            }
        };
        match compared {
            Some(Compared::Same) => {
                state.metrics.guard.compared(Compared::Same);
                self.has_joined(guard, agreeing, group, answer);
                return vec![self.caller];
            }
            Some(Compared::Unclear) => {
                state.metrics.guard.compared(Compared::Unclear);
                guard.units().join(member, Membership::Unclear, None, now);
            }
            Some(Compared::Differs) => self.found(agreeing, Some(group), compared),
            None => {}
        }
        Vec::new()
    }

    /// Remembers this key, to be compared with.
    fn note_key(&self, agreeing: &Unit, group: Option<Group>, own: Option<u64>) {
        let now = self.plan.state.clock.now();
        agreeing.note_key(RecentKey {
            caller: self.caller,
            credential: self.credential(),
            asked: self.asked(),
            answer: own.map(|digest| (digest, now)),
            group,
        });
    }

    /// Whether this key's answer agrees with another one's: by what both were answered, or else by
    /// asking again; `None` where that cannot be said now.
    async fn agrees_with(
        &self,
        other: &RecentKey,
        own: &Answer,
        agreeing: &Unit,
    ) -> Option<Compared> {
        let now = self.plan.state.clock.now();
        let is_at_once = |at: &Timestamp| now.since(*at) <= AT_ONCE;
        let theirs = other.answer.filter(|(_, at)| is_at_once(at));
        if other.asked == self.asked() && theirs.map(|(digest, _)| digest) == Some(own.digest()) {
            return Some(Compared::Same);
        }
        let are_equal = self.is_answered_alike(other, own, agreeing).await?;
        if are_equal {
            return Some(Compared::Same);
        }
        self.compare_with(other, agreeing).await
    }

    /// Whether another key is answered now as this one was a moment ago; `None` where that cannot
    /// be asked.
    async fn is_answered_alike(
        &self,
        other: &RecentKey,
        own: &Answer,
        agreeing: &Unit,
    ) -> Option<bool> {
        let plan = &self.plan;
        let guard = plan.guard.as_ref()?;
        let now = plan.state.clock.now();
        if !guard.is_good(&other.caller, other.group)
            || !agreeing.may_compare(now)
            || !guard.begins_proof()
        {
            return None;
        }
        let rule = &self.route.rule;
        let question = with_credential(&rule.options, &self.request, &other.credential);
        let theirs = answer_to(plan, rule.verdict_scope, question).await;
        if theirs.is_none() {
            // It may be that it is not to see this at all.
            agreeing.pause(now);
        }
        Some(theirs? == *own)
    }

    /// What was found of two keys' answers where nobody shares yet, or where they differ: it is
    /// remembered, counted, and told.
    fn found(&self, unit: &Unit, group: Option<Group>, compared: Option<Compared>) {
        let Some(compared) = compared else { return };
        let state = &self.plan.state;
        state.metrics.guard.compared(compared);
        let (now, path) = (state.clock.now(), self.path());
        match compared {
            Compared::Same => debug!(path, "two keys' answers agree: shared from now on"),
            Compared::Unclear => {
                unit.found_unclear(now);
                warn!(
                    path,
                    "two keys' answers could not be compared, since they never stay the same: \
                        each key has its own; name what differs by itself in auth.volatile"
                );
            }
            Compared::Differs => {
                unit.found_to_differ(state.second.as_deref(), now);
                if let Some(group) = group {
                    // What its keys have fetched is nobody else's from now on, on no instance.
                    state.purge(Purge::of_key(group.digest()), Mode::Hard, Cause::Proof);
                }
                if let Some(sharing) = &self.route.sharing {
                    sharing.observed.set_why_demoted(now, path);
                    let among_members = group.is_some();
                    if among_members && sharing.observed.differs_again() >= MOST_DIFFERENCES {
                        return self.found_to_differ(unit);
                    }
                }
                self.route.series.demoted();
                error!(
                    route = self.route.series.path(),
                    path,
                    "answers differ by key on a route with share = \"verified\": there each key \
                        has its own; set share = \"per-key\" for it, or name what differs by \
                        itself in auth.volatile"
                );
            }
        }
    }

    /// How this key's answers compare with another one's; `None` where that cannot be said now.
    async fn compare_with(&self, other: &RecentKey, unit: &Unit) -> Option<Compared> {
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
        let (control, status) = control(&self.plan, &self.route, &self.request).await;
        guard.controlled(unit, control);
        if control != Control::Held {
            warn!(
                path = self.path(),
                status = status.map(|status| status.as_u16()),
                "a random key, or none, was not refused by 401 or 403: what is answered there \
                    says nothing of keys, and each has its own until a control holds"
            );
        }
    }

    /// Proves again what is shared, by asking with each of `others`; what `is_new` was taken back
    /// until they all agree.
    async fn keep(
        &self,
        guard: &Guard,
        [unit, agreeing]: [&Unit; 2],
        others: Vec<RecentKey>,
        entry: &Arc<Entry>,
        is_new: bool,
    ) {
        self.take_control(guard, unit).await;
        let state = &self.plan.state;
        let Some(group) = others.first().and_then(|other| other.group) else {
            return;
        };
        for other in &others {
            let Some(compared) = self.compare_with(other, agreeing).await else {
                // A key that is good no more is nobody to ask.
                if guard.is_good(&other.caller, other.group) {
                    return;
                }
                continue;
            };
            state.metrics.guard.compared(compared);
            match compared {
                Compared::Same => {}
                Compared::Differs => return self.found_to_differ(agreeing),
                // What was proved before holds to its end.
                Compared::Unclear => {
                    return debug!(path = self.path(), "two keys' answers were not clear");
                }
            }
        }
        let now = state.clock.now();
        if let Some(answer) = answer_of(&self.plan, entry) {
            agreeing.knows_places(&answer.places());
        }
        if is_new && guard.group(Some(unit), Some(agreeing)) == Some(group) {
            let _ = state.store(self.key.primary(), Arc::clone(entry), None);
        }
        if agreeing.renew(group, now) {
            agreeing.tell_renewed(state.second.as_deref(), group, now);
        }
    }

    /// What was shared differs by key: the route is not shared any more, on any instance.
    fn found_to_differ(&self, unit: &Unit) {
        let (pattern, path) = (self.route.series.path(), self.path());
        if self.plan.config.auth.on_difference == OnDifference::Warn {
            warn!(
                route = pattern,
                path,
                "answers differ by key on a route with share = \"verified\": set share \
                    = \"per-key\", or name what differs by itself in auth.volatile"
            );
            return;
        }
        let state = &self.plan.state;
        let now = state.clock.now();
        unit.found_to_differ(state.second.as_deref(), now);
        let Some(sharing) = &self.route.sharing else {
            return;
        };
        if let Some(purge) = sharing.demotion(state.memory.purges()) {
            sharing.observed.set_why_demoted(now, path);
            state.purge(purge, Mode::Hard, Cause::Proof);
            self.route.series.demoted();
            error!(
                route = pattern,
                path,
                "answers that were shared differ by key: the route is demoted to per-key now, on \
                    all instances; set share = \"per-key\", or name what differs by itself in \
                    auth.volatile"
            );
        }
    }
}
