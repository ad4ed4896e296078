//! What the origin's answer to a caller says of its key, on routes where keys are verified.

use http::header::{ACCEPT, AUTHORIZATION, HOST};
use http::{HeaderValue, Request, StatusCode};

use crate::guard::Ruling;
use crate::http::fields;
use crate::proxy::keyed_request::LetIn;
use crate::proxy::plan::Plan;
use crate::proxy::wire::claims::{X_FORWARDED_HOST, X_FORWARDED_PROTO};
use crate::upstream::{OriginBody, empty};

/// Whether an answer can prove a key good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It is one to a plain GET of the whole: a 2xx proves the key.
    Proves,
    /// It is one to a condition, to a range or to another method.
    ProvesNothing,
}

/// What the origin's answer to a caller says of its key. `probe` is the request to send once more
/// with the probe key, where there is one.
pub async fn rule(
    plan: &Plan,
    let_in: Option<LetIn>,
    status: StatusCode,
    proof: Proof,
    probe: Option<Request<()>>,
) -> Ruling {
    let (Some(guard), Some(let_in)) = (&plan.guard, let_in) else {
        return Ruling::Passes;
    };
    let probing = probe.map(|probe| async {
        let answer = plan.state.origin.answer(probe.map(|()| empty())).await;
        answer.ok().map(|response| response.status())
    });
    let is_proof = proof == Proof::Proves;
    guard
        .answered(&let_in.caller, status, is_proof, probing)
        .await
}

/// A plain GET of the same with the probe key, and nothing else that the caller sent: what it
/// sent could make the answer one about anything.
pub fn probe_of(
    plan: &Plan,
    let_in: Option<LetIn>,
    request: &Request<OriginBody>,
) -> Option<Request<()>> {
    let guard = plan.guard.as_ref().filter(|_| let_in.is_some())?;
    let key = guard.probe_key()?;
    let mut probe = Request::new(());
    *probe.uri_mut() = request.uri().clone();
    let headers = probe.headers_mut();
    for name in [HOST, X_FORWARDED_HOST, X_FORWARDED_PROTO] {
        fields::set(headers, name.clone(), request.headers().get(name).cloned());
    }
    let mut value = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
    value.set_sensitive(true);
    headers.insert(AUTHORIZATION, value);
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    Some(probe)
}
