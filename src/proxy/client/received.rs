//! Received: what is ambiguous or not for us is refused; of the rest the host is known, the fields of
//! one hop are off, and the path is in one spelling.

use std::borrow::Cow;

use http::request;

use crate::http::fields;
use crate::policy::Reason;
use crate::policy::key::normalise_path;
use crate::proxy::admission::Refusal;
use crate::proxy::plan::Plan;
use crate::proxy::wire::{Host, framing};

/// What is known of a request that was checked.
pub struct Received {
    /// `None` for an HTTP/1.0 request that names none.
    pub host: Option<Host>,
    /// The path in one spelling, where that is not the one that was sent.
    pub normal_path: Option<Box<str>>,
}

/// Checks a request as it came, and takes the fields of one hop off.
pub fn receive(plan: &Plan, parts: &mut request::Parts) -> Result<Received, Box<Refusal>> {
    // Before anything is selected by them: the origin will not see these fields.
    fields::strip_named(&mut parts.headers);
    let host = framing::check(parts, &plan.config.limits).map_err(|failure| {
        let reason = Reason::Refused;
        Box::new(Refusal { failure, reason })
    })?;
    let normal_path = match normalise_path(parts.uri.path()) {
        Cow::Borrowed(_) => None,
        Cow::Owned(path) => Some(path.into()),
    };
    Ok(Received { host, normal_path })
}
