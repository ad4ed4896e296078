//! Received: what is ambiguous or not for us is refused; of the rest the host is known, the fields of
//! one hop are off, and the path is in one spelling.

use std::borrow::Cow;
use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request};

use crate::http::fields;
use crate::policy::Reason;
use crate::policy::key::normalise_path;
use crate::proxy::admission::Refusal;
use crate::proxy::client_request::ClientRequest;
use crate::proxy::plan::Plan;
use crate::proxy::wire::upload::client_body;
use crate::proxy::wire::{Client, framing};

use crate::upstream::OriginBody;

/// Takes a request: what it is for, with what its client sends after the head. What is refused
/// comes with its method, to be counted.
pub fn receive<B>(
    plan: &Plan,
    request: Request<B>,
    client: Client,
    started: Instant,
) -> Result<(ClientRequest, Option<OriginBody>), (Method, Box<Refusal>)>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let (mut parts, body) = request.into_parts();
    // Before anything is selected by them: the origin will not see these fields.
    fields::strip_named(&mut parts.headers);
    let limits = &plan.config.limits;
    let host = match framing::check(&parts, limits) {
        Ok(host) => host,
        Err(failure) => {
            let reason = Reason::Refused;
            return Err((parts.method, Box::new(Refusal { failure, reason })));
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
    Ok((request, upload))
}
