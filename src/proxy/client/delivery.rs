//! What the operator does with answers of a route on their way to clients, whatever is stored of
//! them: fields, and whose pages may read them.

use std::sync::Arc;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{HeaderValue, Method, Response, StatusCode};

use crate::config::{Cors, Said};
use crate::guard::credential::KeyId;
use crate::metrics::CacheResult;
use crate::policy::Reason;
use crate::proxy::client_request::ClientRequest;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::wire::Body;

use super::handled::Handled;
use super::note::Note;
use super::refusal::count;

/// What is to be done with the answer to one request.
pub struct Delivery {
    route: Arc<PlannedRoute>,
    said: Said,
    /// The key whose project is said.
    key: Option<KeyId>,
    origin: Option<HeaderValue>,
}

impl Delivery {
    /// `None` where nothing is to be done.
    pub fn of(request: &ClientRequest, route: Option<&Arc<PlannedRoute>>) -> Option<Self> {
        let rule = &route?.rule;
        if rule.response_fields.is_empty() && rule.cors.is_none() {
            return None;
        }
        let names_project = rule.response_fields.names_project();
        let asked = route
            .filter(|_| names_project)
            .map(|route| &route.credentials);
        let credential = asked.and_then(|known| known.of(&request.parts.headers).ok()?);
        Some(Self {
            key: credential.map(|credential| credential.key),
            route: Arc::clone(route?),
            said: request.said(&rule.path, &request.parts.headers),
            origin: request.parts.headers.get(ORIGIN).cloned(),
        })
    }

    pub fn apply(mut self, plan: &Plan, mut response: Response<Body>) -> Response<Body> {
        let known = plan.guard.as_ref().zip(self.key);
        self.said.project = known.and_then(|(guard, key)| guard.project(&key));
        let rule = &self.route.rule;
        let headers = response.headers_mut();
        rule.response_fields.apply(headers, &self.said);
        if let Some(cors) = &rule.cors {
            cors.apply(headers, self.origin.as_ref());
        }
        response
    }
}

/// The route whose `cors` answers a preflight (Fetch, "CORS-preflight request") for what it takes;
/// `None` where a request is none.
pub fn preflighted<'p>(
    plan: &'p Plan,
    request: &ClientRequest,
) -> Option<(&'p Arc<PlannedRoute>, &'p Cors)> {
    let headers = &request.parts.headers;
    if request.parts.method != Method::OPTIONS || !headers.contains_key(ORIGIN) {
        return None;
    }
    let wanted = headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    let wanted = Method::from_bytes(wanted.as_bytes()).ok()?;
    let host = request.host().unwrap_or_default();
    let route = plan.route(&wanted, host, request.path())?;
    Some((route, route.rule.cors.as_ref()?))
}

/// The answer to a preflight.
pub fn preflight(plan: &Plan, request: &ClientRequest) -> Option<Handled> {
    let (route, cors) = preflighted(plan, request)?;
    let (result, reason) = PREFLIGHT;
    let note = Note::new(result, reason);
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    *response.headers_mut() = cors.preflight(&request.parts.headers);
    note.write(response.headers_mut());
    let asked = (&request.parts.method, request.started);
    let observed = request.observed.as_ref();
    count(plan, Some(route), asked, observed, &note, &mut response);
    Some(Handled::now(response))
}

/// How a preflight is answered.
pub const PREFLIGHT: (CacheResult, Reason) = (CacheResult::Bypass, Reason::Preflight);
