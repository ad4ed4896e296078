//! The same question with two keys in turn: whether what they get agrees.

use http::header::{ACCEPT_ENCODING, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Limited};

use crate::config::{Route, Scope};
use crate::guard::agreement::{Answer, Comparison, Whose};
use crate::metrics::guard::Compared;
use crate::policy::Options;
use crate::proxy::plan::Plan;
use crate::store::Entry;
use crate::upstream::empty;

/// Larger answers are not compared.
const LARGEST: usize = 1 << 20;

/// The fields of a request that say who asks.
pub fn credential_fields(options: &Options, headers: &HeaderMap) -> HeaderMap {
    let is_credential = |name: &HeaderName| {
        let in_cookies = *name == COOKIE && !options.credential_cookies.is_empty();
        options.credential_fields.contains(name) || in_cookies
    };
    let own = headers.iter().filter(|(name, _)| is_credential(name));
    own.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The same request with another credential, or with none.
pub fn with_credential(
    options: &Options,
    request: &Request<()>,
    credential: &HeaderMap,
) -> Request<()> {
    let mut other = copied(request);
    let headers = other.headers_mut();
    for name in credential_fields(options, headers).keys() {
        headers.remove(name);
    }
    headers.extend(credential.clone());
    other
}

pub fn copied<B>(request: &Request<B>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Asks with both keys in turn, until it is clear whether their answers agree; `None` where one of
/// them got no answer that can be compared.
pub async fn compare(
    plan: &Plan,
    rule: &Route,
    request: &Request<()>,
    [first, second]: [&HeaderMap; 2],
) -> Option<Compared> {
    let mut comparison = Comparison::new(fastrand::u64(..));
    while let Some(whose) = comparison.next() {
        let credential = match whose {
            Whose::First => first,
            Whose::Second => second,
        };
        let question = with_credential(&rule.options, request, credential);
        let answer = answer_to(plan, rule.verdict_scope, question).await?;
        if let Some(compared) = comparison.add(answer) {
            return Some(compared);
        }
    }
    None
}

/// What the origin answers, without what differs from answer to answer; `None` where that is no
/// answer for all.
pub async fn answer_to(plan: &Plan, scope: Scope, mut request: Request<()>) -> Option<Answer> {
    let identity = HeaderValue::from_static("identity");
    request.headers_mut().insert(ACCEPT_ENCODING, identity);
    let origin = &plan.state.origin;
    let answer = origin.answer(request.map(|()| empty())).await.ok()?;
    let status = answer.status();
    // About the key, or about what it may see. A key that must prove itself on this very URL gets
    // nothing that others have fetched there.
    let is_about_key = matches!(
        status,
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE
    );
    if !(status.is_success() || is_about_key && scope != Scope::Url) {
        return None;
    }
    let fields = answer.headers().clone();
    let body = Limited::new(answer.into_body(), LARGEST).collect().await;
    let body = body.ok()?.to_bytes();
    let volatile = &plan.config.auth.volatile;
    Some(Answer::of(status, &fields, &body, volatile))
}

/// What a client was answered; `None` where it is too large to be compared.
pub fn answer_of(plan: &Plan, entry: &Entry) -> Option<Answer> {
    let body = entry.body();
    let volatile = &plan.config.auth.volatile;
    let fields = entry.head.fields.unpack(0);
    (body.len() <= LARGEST).then(|| Answer::of(entry.head.status, &fields, &body, volatile))
}
