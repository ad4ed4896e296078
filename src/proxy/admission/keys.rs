//! Keys of requests, on routes where they are verified.
//!
//! On a route with `share = "verified"` a GET or HEAD with one credential goes one of four ways:
//! its key is good, and it is answered as any other; it is bad, and it is refused here; nobody
//! knows, and then the fleet and the source are asked, or its own request is what asks the origin
//! (it *verifies*: nothing stored answers it, it joins nobody's fetch but its key's own, and only a
//! 2xx to it is stored); or the source is ill, and 503 says so. Without a credential it goes by.

use std::time::Duration;

use crate::config::Scope;
use crate::error::{Failure, FailureKind};
use crate::guard::credential::Malformed;
use crate::guard::units::MemberId;
use crate::guard::verdicts::VerdictId;
use crate::guard::{Caller, Guard, Standing, source_is_ill, unverified};
use crate::http::fields;
use crate::policy::key::KeyBytes;
use crate::policy::{Reason, Share};
use crate::proxy::client_request::ClientRequest;
use crate::proxy::keyed_request::LetIn;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::request_key::{RequestKey, units};

use super::{Purpose, Refusal};

/// By what a request was let in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Admitted {
    /// Its caller, where keys are verified.
    pub let_in: Option<LetIn>,
    /// Keys are verified and it has none: it goes by, and is not stored.
    pub is_anonymous: bool,
}

/// What becomes of a request, as far as keys are concerned.
pub enum Admission {
    Admitted(Admitted),
    Refused(Box<Refusal>),
    /// The fleet, or the source, must be asked first.
    AskAbout(Caller),
}

impl Admission {
    fn let_in(caller: Caller, verifies: bool) -> Self {
        Self::Admitted(Admitted {
            let_in: Some(LetIn { caller, verifies }),
            is_anonymous: false,
        })
    }

    fn refused(failure: Failure, reason: Reason) -> Self {
        Self::Refused(Box::new(Refusal { failure, reason }))
    }
}

/// What the fleet and the source have said of a key.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    id: VerdictId,
    standing: Standing,
}

/// After an unknown key was turned away: what is asked is bounded by the second.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(1);

/// Lets a request in, or not; its key is written where a verdict is about that. `answered` is what
/// the fleet and the source have said of its key, where they were asked.
pub fn admit(
    plan: &Plan,
    request: &ClientRequest,
    route: Option<&PlannedRoute>,
    key: &mut RequestKey,
    answered: Option<Answered>,
    purpose: Purpose,
) -> Admission {
    let Some(route) = route else {
        return Admission::Admitted(Admitted::default());
    };
    let guard = plan.guard.as_ref().filter(|_| request.is_guarded_on(route));
    let Some(guard) = guard else {
        return match is_revoked(plan, request, route) {
            true => refused("Invalid or inactive API key"),
            false => Admission::Admitted(Admitted::default()),
        };
    };
    // Its credential is good for one connection, and proves nothing of any other.
    if fields::authenticates_connection(&request.parts.headers) {
        if is_revoked(plan, request, route) {
            return refused("Invalid or inactive API key");
        }
        return Admission::Admitted(Admitted {
            let_in: None,
            is_anonymous: true,
        });
    }
    if request.is_raw {
        let message = "the request target has no canonical spelling (a broken escape, or a \
            character that is not ASCII), and this route verifies API keys";
        let failure = Failure::new(FailureKind::BadRequest, message);
        return Admission::refused(failure, Reason::Refused);
    }
    let (caller, standing) = match caller(plan, guard, request, route, key) {
        Ok(Some(found)) => found,
        Ok(None) => {
            return Admission::Admitted(Admitted {
                let_in: None,
                is_anonymous: true,
            });
        }
        Err(Malformed::More) => return refused("More than one API key"),
        Err(Malformed::Form) => return refused("Invalid API key format"),
    };
    // What was said of it where answers are its own says nothing where they are shared.
    let answered = answered.filter(|answered| answered.id == caller.id);
    let standing = answered.map_or(standing, |answered| answered.standing);
    if answered.is_none() && purpose == Purpose::Answer {
        let is_known = !matches!(standing, Standing::Unknown { .. });
        plan.state.metrics.guard.known(is_known);
    }
    let is_known = match standing {
        Standing::Good => {
            return Admission::let_in(caller, false);
        }
        Standing::Bad => return refused("Invalid or inactive API key"),
        Standing::Unknown { known } => known,
    };
    if answered.is_none() {
        let may_ask = || match purpose {
            Purpose::Answer => guard.asks_about_unknown(),
            Purpose::Explain => guard.may_ask_about_unknown(),
        };
        if !is_known && !may_ask() {
            let failure = unverified(
                "too many unknown keys are asked about (auth.unknown_per_second)",
                UNKNOWN_AGAIN,
            );
            return Admission::refused(failure, Reason::KeyUnverified);
        }
        if guard.has_others_to_ask() {
            return Admission::AskAbout(caller);
        }
    }
    if guard.learns_from_origin() {
        return Admission::let_in(caller, true);
    }
    Admission::refused(source_is_ill(), Reason::KeyUnverified)
}

/// Whether a key was revoked by hand, on a route that tells keys apart and does not verify them. A
/// write is the origin's to refuse.
fn is_revoked(plan: &Plan, request: &ClientRequest, route: &PlannedRoute) -> bool {
    let purges = plan.state.memory.purges();
    let is_concerned = request.is_read() && route.options().share != Share::Standard;
    if !is_concerned || !purges.names_keys() {
        return false;
    }
    let mut keys = route.credentials.digests(&request.parts.headers);
    keys.any(|key| purges.is_revoked(&key.0))
}

fn refused(text: &str) -> Admission {
    let failure = Failure::new(FailureKind::KeyRefused, text);
    Admission::refused(failure, Reason::KeyRefused)
}

/// Who asks, what a verdict on them reaches, and what is known of them; `None` without a
/// credential. Where it is not proved yet that this credential may have what others have fetched,
/// the key is its own from here on.
pub fn caller(
    plan: &Plan,
    guard: &Guard,
    request: &ClientRequest,
    route: &PlannedRoute,
    key: &mut RequestKey,
) -> Result<Option<(Caller, Standing)>, Malformed> {
    let Some(credential) = route.credentials.of(&request.parts.headers)? else {
        return Ok(None);
    };
    let found = |caller: Caller| {
        let standing = guard.standing(&caller);
        Ok(Some((caller, standing)))
    };
    let Some(sharing) = route.sharing.as_ref().filter(|_| guard.needs_proof()) else {
        let scope = scope(plan, request, route, key);
        return found(guard.caller(credential, &scope));
    };
    key.write(plan, request, route);
    let [unit, agreeing] = units(sharing, route, key);
    let known = |written: &[u8]| guard.units().get(written);
    let group = guard.group(known(&unit).as_deref(), known(&agreeing).as_deref());
    let caller = guard.caller(credential, &scope(plan, request, route, key));
    // Who asks somebody else about keys learns nothing of them from what is fetched.
    let learns = guard.learns_from_origin();
    if let Some(group) = group {
        let in_group = if learns {
            caller.in_group(group)
        } else {
            caller
        };
        let standing = guard.standing(&in_group);
        // The origin's verdict for a group's answers is given to its members alone, by what each
        // was answered itself.
        let is_members = learns && matches!(standing, Standing::Good | Standing::Bad);
        let is_let_in = is_members || guard.is_member(&caller, group, &agreeing);
        if is_let_in {
            key.share_in(group);
            return Ok(Some((in_group, standing)));
        }
    }
    key.keep_apart(&credential);
    found(if learns { caller.apart() } else { caller })
}

/// Asks the fleet what is proved of what is asked for, and then about the key.
pub async fn ask_about(
    plan: &Plan,
    request: &ClientRequest,
    route: Option<&PlannedRoute>,
    mut about: Caller,
) -> Option<Answered> {
    let guard = plan.guard.as_ref()?;
    let route = route?;
    if let (Some(second), Some(sharing)) = (&plan.state.second, &route.sharing)
        && guard.needs_proof()
    {
        let mut key = RequestKey::default();
        key.write(plan, request, route);
        let ([unit, agreeing], now) = (units(sharing, route, &key), plan.state.clock.now());
        guard.units().hear(&unit, second, now).await;
        if guard.needs_agreement() {
            guard.units().hear(&agreeing, second, now).await;
            let member = MemberId::of(&about, &agreeing);
            guard.units().hear_of_member(member, second, now).await;
        }
        (about, _) = caller(plan, guard, request, route, &mut RequestKey::default()).ok()??;
    }
    let standing = match guard.standing(&about) {
        Standing::Unknown { .. } => {
            guard
                .ask(about, &request.parts.headers, &route.credentials)
                .await
        }
        known => known,
    };
    Some(Answered {
        id: about.id,
        standing,
    })
}

/// What a verdict reaches that is learned on this route by this request. It outlives a change of
/// the route's rules: of a URL it says what is asked for, of a route its host and path patterns.
fn scope(
    plan: &Plan,
    request: &ClientRequest,
    route: &PlannedRoute,
    key: &mut RequestKey,
) -> KeyBytes {
    let mut scope = KeyBytes::new();
    let rule = &route.rule;
    match rule.verdict_scope {
        Scope::Url => {
            scope.push(b'u');
            key.write(plan, request, route);
            for part in key.subject() {
                scope.extend_from_slice(part);
            }
        }
        Scope::Route => {
            scope.push(b'r');
            scope.extend_from_slice(rule.host.as_deref().unwrap_or_default().as_bytes());
            scope.push(0);
            scope.extend_from_slice(rule.path.as_bytes());
        }
        Scope::All => scope.push(b'a'),
    }
    scope
}
