//! A request of a client, checked, with what its later steps need to know of it.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method, Request, request};

use crate::config::Said;
use crate::error::Failure;
use crate::policy::key::KeyParts;
use crate::policy::{RequestView, Share, range};
use crate::trace::{self, Observed, Span};
use crate::upstream::OriginBody;

use super::plan::{Plan, PlannedRoute};
use super::wire::claims::{client_scheme, forwarded_host};
use super::wire::{Client, Conditions, Form, Forwarded, Host, InterimListener};

/// A request that was checked, with the host that it is for and its path in one spelling.
pub struct ClientRequest {
    pub parts: request::Parts,
    /// `None` for an HTTP/1.0 request that names none.
    pub host: Option<Host>,
    pub client: Client,
    pub started: Instant,
    /// There is a body that an origin may need.
    pub has_body: bool,
    /// Its target is sent as it came, and it is never stored.
    pub is_raw: bool,
    /// What its steps note of it, where somebody wants to know.
    pub observed: Option<Arc<Observed>>,
}

impl ClientRequest {
    /// Notes how long something took, where somebody wants to know.
    pub fn took(&self, span: Span, began: Instant) {
        if let Some(observed) = &self.observed {
            observed.took(span, began);
        }
    }

    pub fn host(&self) -> Option<&str> {
        self.host.as_ref().map(Host::as_str)
    }

    /// The path by which it is routed and keyed, and which is sent.
    pub fn path(&self) -> &str {
        self.parts.uri.path()
    }

    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            method: &self.parts.method,
            headers: &self.parts.headers,
            has_body: self.has_body,
        }
    }

    /// Whether this request looks at what is stored: whether its method does.
    pub fn is_read(&self) -> bool {
        matches!(self.parts.method, Method::GET | Method::HEAD)
    }

    /// Whether it asks for a part of a representation that we could make.
    pub fn wants_part(&self) -> bool {
        self.parts.method == Method::GET && range::is_wanted(&self.parts.headers)
    }

    /// Whether keys are verified on this route for such requests.
    pub fn is_guarded_on(&self, route: &PlannedRoute) -> bool {
        route.options().share == Share::Verified && self.is_read()
    }

    /// The parts of a key that say which origin, as it sees them; the rest is empty.
    pub fn origin_parts(&self, plan: &Plan) -> KeyParts<'_> {
        let hides_host = plan.forwarding.rewrites_host() && !plan.config.routes.match_hosts();
        let (parts, client) = (&self.parts, self.client);
        KeyParts {
            scheme: client_scheme(parts, client),
            host: match self.host() {
                _ if hides_host => "",
                // No host is spelled so, and the origin is told the upstream's.
                None => "?",
                Some(host) => host,
            },
            forwarded_host: forwarded_host(parts, client).filter(|_| !hides_host),
            path: "",
            query: None,
            rule: Default::default(),
            partition: &[],
        }
    }

    /// What is known of it, for the operator's fields; its id stands in `headers`.
    pub fn said(&self, route: &str, headers: &HeaderMap) -> Said {
        let id = headers.get(trace::REQUEST_ID);
        let id = id.and_then(|id| id.to_str().ok());
        Said {
            client: self.client.address,
            route: route.to_owned(),
            request_id: id.unwrap_or_default().to_owned(),
            project: None,
        }
    }

    /// The request that the origin gets, with a body to come. What the origin says before its final
    /// response goes to `interim`.
    pub fn to_origin(
        &self,
        plan: &Plan,
        route: Option<&PlannedRoute>,
        form: Form,
        conditions: Conditions<'_>,
        body: OriginBody,
        interim: Option<&InterimListener>,
    ) -> Result<Request<OriginBody>, Failure> {
        let rule = route.map(|route| &route.rule);
        let forwarding = &plan.forwarding;
        let sent = Forwarded {
            parts: &self.parts,
            host: self.host(),
            client: self.client,
            route: rule,
            query: rule
                .filter(|rule| form != Form::Own || (rule.drops_unknown_query && !self.is_raw))
                .map(|rule| (&rule.query, form != Form::Own && rule.sort_query)),
            form,
        };
        let mut request = forwarding.request(sent, conditions, body)?;
        let starts = plan.config.starts_traces;
        trace::keep_or_start(request.headers_mut(), starts, self.observed.as_deref());
        if let Some(rule) = rule.filter(|rule| !rule.request_fields.is_empty()) {
            let said = self.said(&rule.path, request.headers());
            rule.request_fields.apply(request.headers_mut(), &said);
        }
        if let Some(observed) = &self.observed {
            request.extensions_mut().insert(Arc::clone(observed));
        }
        if let Some(interim) = interim {
            interim.listen(&mut request);
        }
        Ok(request)
    }
}
