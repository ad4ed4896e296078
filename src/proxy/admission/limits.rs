//! Rate limits of a request: with whom it counts, and whether it is one too many.

use crate::error::{Failure, FailureKind};
use crate::guard::address;
use crate::guard::limits::Who;
use crate::policy::Reason;
use crate::proxy::client_request::ClientRequest;
use crate::proxy::plan::{Plan, PlannedRoute};

use super::Refusal;

/// With whom a request counts. Refused is one with two keys, where keys are counted: nobody can say
/// which one to count, and a second one that the origin ignores must not hide the first.
pub fn who<'a>(
    plan: &Plan,
    request: &ClientRequest,
    route: Option<&'a PlannedRoute>,
) -> Result<Who<'a>, Box<Refusal>> {
    let headers = &request.parts.headers;
    let trusted = &plan.config.listen.trusted_proxies;
    let key = if plan.limits.counts_keys() {
        let credentials = route.map_or(&plan.credentials, |route| &*route.credentials);
        credentials.counted(headers).map_err(|_| {
            Box::new(Refusal {
                failure: Failure::new(FailureKind::KeyRefused, "More than one API key"),
                reason: Reason::KeyRefused,
            })
        })?
    } else {
        None
    };
    Ok(Who {
        address: address::of(headers, request.client.address, trusted),
        key,
        path: route.map(|route| &*route.rule.path),
    })
}
