//! Received: what is ambiguous or not for us is refused; of the rest the host is known, the fields of
//! one hop are off, and the path is in one spelling.

use std::borrow::Cow;
use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request, Response};

use crate::http::fields;
use crate::policy::Reason;
use crate::policy::key::normalise_path;
use crate::proxy::admission::Refusal;
use crate::proxy::client_request::ClientRequest;
use crate::proxy::plan::Plan;
use crate::proxy::wire::upload::client_body;
use crate::proxy::wire::{Body, Client, framing};

use crate::upstream::OriginBody;

use super::refusal::refuse;

/// A request that is refused before it has a route.
pub struct Refused {
    method: Method,
    started: Instant,
    refusal: Refusal,
}

impl Refused {
    /// Its answer, counted.
    pub fn answer(self, plan: &Plan) -> Response<Body> {
        refuse(plan, None, &self.method, self.started, &self.refusal)
    }

    pub fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}

/// A request that was checked.
pub struct Received {
    pub request: ClientRequest,
    /// What the client sends after the head.
    pub upload: Option<OriginBody>,
}

/// Checks a request as it came.
pub fn receive<B>(
    plan: &Plan,
    request: Request<B>,
    client: Client,
) -> Result<Received, Box<Refused>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let started = Instant::now();
    let (mut parts, body) = request.into_parts();
    // Before anything is selected by them: the origin will not see these fields.
    fields::strip_named(&mut parts.headers);
    let limits = &plan.config.limits;
    let host = match framing::check(&parts, limits) {
        Ok(host) => host,
        Err(failure) => {
            let refused = Refused {
                method: parts.method,
                started,
                refusal: Refusal {
                    failure,
                    reason: Reason::Refused,
                },
            };
            return Err(Box::new(refused));
        }
    };
    let normal_path = match normalise_path(parts.uri.path()) {
        Cow::Borrowed(_) => None,
        Cow::Owned(path) => Some(path.into()),
    };
    let upload = (!body.is_end_stream())
        .then(|| client_body(body, limits.request_body, limits.body_timeout));
    let request = ClientRequest {
        has_body: upload.is_some() && parts.method != Method::TRACE,
        parts,
        host,
        normal_path,
        client,
        started,
    };
    Ok(Received { request, upload })
}
