//! Whether an origin refuses strangers where good keys are accepted.

use http::{HeaderMap, Request, StatusCode};

use crate::guard::is_refusal;
use crate::guard::stranger::with_random_key;
use crate::guard::units::Control;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::upstream::empty;

use super::compare_keys::with_credential;

/// What the origin makes of strangers, and the status that was no refusal.
pub async fn control(
    plan: &Plan,
    route: &PlannedRoute,
    request: &Request<()>,
) -> (Control, Option<StatusCode>) {
    let Some(random) = with_random_key(&route.credentials, request.headers()) else {
        return (Control::Unsent, None);
    };
    let origin = &plan.state.origin;
    for credential in [HeaderMap::new(), random] {
        let question = with_credential(route.options(), request, &credential);
        let status = match origin.answer(question.map(|()| empty())).await {
            Ok(answer) => answer.status(),
            Err(failure) if !failure.kind.may_have_arrived() => {
                return (Control::Unsent, None);
            }
            Err(_) => return (Control::Unanswered, None),
        };
        let says_nothing = status.is_server_error()
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
            );
        match status {
            status if is_refusal(status) => {}
            status if says_nothing => return (Control::Unanswered, Some(status)),
            status => return (Control::Failed, Some(status)),
        }
    }
    (Control::Held, None)
}
