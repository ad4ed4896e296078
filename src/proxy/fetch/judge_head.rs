//! Headed: what may be done with a response, from its head alone. A pure function of what came and
//! of what was asked; acting on its word is [`headed`](super::headed)'s.

use http::{HeaderMap, StatusCode};

use crate::clock::Timestamp;
use crate::error::{Failure, FailureKind};
use crate::guard::{Ruling, is_refusal};
use crate::policy::storable::ResponseView;
use crate::policy::{self, Lifetimes, Options, Reason, RequestView, update};
use crate::proxy::parts::Beginning;

/// What the origin was sent, as far as the head of its answer is judged by it.
pub struct SentRequest<'a> {
    pub request: RequestView<'a>,
    pub options: &'a Options,
    /// The key of its caller, on a route where keys are verified.
    pub caller: Option<CallersKey>,
    /// The stored response that the origin was asked about.
    pub stored: Option<Stored<'a>>,
    /// The beginning whose rest was asked for.
    pub begun: Option<&'a Beginning>,
}

/// What the answer says of a caller's key.
#[derive(Clone, Copy, Debug)]
pub struct CallersKey {
    pub ruling: Ruling,
    /// This very request is what asks about it.
    pub verifies: bool,
}

/// A stored response that the origin was asked about.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    pub headers: &'a HeaderMap,
    /// A condition was set, which a 304 can answer.
    pub is_validated: bool,
    /// It may be used in the place of a failed origin (RFC 5861 §4).
    pub may_stand_in: bool,
}

/// What may be done with a response.
#[derive(Debug)]
pub enum Headed {
    /// The caller's key is refused, or the answer is no word on it: it is the caller's alone.
    KeyRefused,
    /// The origin refuses good keys.
    KeySourceIll,
    /// The origin failed a request that was to prove a key.
    KeyUnanswered,
    /// It brings the rest of what was begun: these are the fields of the whole.
    Completes(HeaderMap),
    /// What was begun is of another representation by now: asked again for the whole.
    BegunIsOutdated,
    /// The stored response is confirmed (RFC 9111 §4.3.4).
    Confirmed,
    /// A 304 about something that is not stored (§4.3.4): asked again without conditions.
    ConfirmsAnother,
    /// It cannot be believed.
    Malformed(Failure),
    /// An error, and the stored response stands in.
    StaleStandsIn,
    /// Its body decides whether it means failure (`error_when`); then [`judge_storing`].
    LookInside,
    /// It may be stored for so long.
    Storable(Lifetimes),
    /// It is its client's alone, or may not be kept.
    NotShared(Reason),
}

/// Judges a response head.
pub fn judge_head(asked: &SentRequest<'_>, response: ResponseView<'_>, now: Timestamp) -> Headed {
    let status = response.status;
    if let Some(refused) = judge_key(asked, status) {
        return refused;
    }
    if let Some(begun) = asked.begun {
        match status {
            StatusCode::PARTIAL_CONTENT => {
                return begun
                    .completed_by(response.headers)
                    .map_or(Headed::BegunIsOutdated, Headed::Completes);
            }
            // It is shorter by now, say, and the origin does not know If-Range.
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED => {
                return Headed::BegunIsOutdated;
            }
            _ => {}
        }
    }
    if status == StatusCode::NOT_MODIFIED {
        return match asked.stored.filter(|stored| stored.is_validated) {
            Some(stored)
                if update::selects(
                    stored.headers,
                    response.headers,
                    asked.options.weak_revalidation,
                ) =>
            {
                Headed::Confirmed
            }
            Some(_) => Headed::ConfirmsAnother,
            None => {
                let message = "the upstream answered 304 although nobody had set a condition";
                Headed::Malformed(Failure::new(FailureKind::ProtocolError, message))
            }
        };
    }
    let may_stand_in = asked.stored.is_some_and(|stored| stored.may_stand_in);
    if may_stand_in && asked.options.counts_as_failure(status) {
        return Headed::StaleStandsIn;
    }
    let rule = asked.options.error_when.as_ref();
    if rule.is_some_and(|rule| rule.concerns(status, response.headers)) {
        return Headed::LookInside;
    }
    judge_storing(asked.request, asked.options, response, now)
}

/// Whether a response that means no failure may be stored.
pub fn judge_storing(
    request: RequestView<'_>,
    options: &Options,
    response: ResponseView<'_>,
    now: Timestamp,
) -> Headed {
    match policy::storable(request, response, options, now) {
        Ok(lifetimes) => Headed::Storable(lifetimes),
        Err(reason) => Headed::NotShared(reason),
    }
}

/// What the answer to a caller says of its key; `None` where nothing is against it.
fn judge_key(asked: &SentRequest<'_>, status: StatusCode) -> Option<Headed> {
    let caller = asked.caller.filter(|_| !status.is_success())?;
    match caller.ruling {
        Ruling::Refused => Some(Headed::KeyRefused),
        Ruling::Outage => Some(Headed::KeySourceIll),
        Ruling::Passes if caller.verifies && status.is_server_error() => {
            Some(Headed::KeyUnanswered)
        }
        // A page that asks to log in, say, or a refusal that its source has no word in: nothing for
        // those whose keys are good.
        Ruling::Passes if caller.verifies || is_refusal(status) => Some(Headed::KeyRefused),
        Ruling::Passes => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{CACHE_CONTROL, ETAG};
    use http::{HeaderValue, Method};

    fn fields(fields: &[(http::HeaderName, &'static str)]) -> HeaderMap {
        let pairs = fields.iter();
        pairs
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    fn judged(asked: &SentRequest<'_>, status: u16, headers: &HeaderMap) -> Headed {
        let status = StatusCode::from_u16(status).unwrap();
        judge_head(asked, ResponseView { status, headers }, Timestamp::EPOCH)
    }

    fn asked<'a>(headers: &'a HeaderMap, options: &'a Options) -> SentRequest<'a> {
        let method = &Method::GET;
        let request = RequestView {
            method,
            headers,
            has_body: false,
        };
        SentRequest {
            request,
            options,
            caller: None,
            stored: None,
            begun: None,
        }
    }

    #[test]
    fn a_304_confirms_only_what_it_names_and_only_where_a_condition_was_set() {
        let (none, options) = (HeaderMap::new(), Options::default());
        let stored = fields(&[(ETAG, "\"a\"")]);
        let mut question = asked(&none, &options);
        assert!(matches!(
            judged(&question, 304, &none),
            Headed::Malformed(_)
        ));
        question.stored = Some(Stored {
            headers: &stored,
            is_validated: true,
            may_stand_in: true,
        });
        assert!(matches!(judged(&question, 304, &stored), Headed::Confirmed));
        let other = fields(&[(ETAG, "\"b\"")]);
        let judged_other = judged(&question, 304, &other);
        assert!(matches!(judged_other, Headed::ConfirmsAnother));
        question.stored = question.stored.map(|stored| Stored {
            is_validated: false,
            ..stored
        });
        assert!(matches!(
            judged(&question, 304, &stored),
            Headed::Malformed(_)
        ));
    }

    #[test]
    fn stale_stands_in_for_errors_that_are_the_origins() {
        let (none, options) = (HeaderMap::new(), Options::default());
        let mut question = asked(&none, &options);
        question.stored = Some(Stored {
            headers: &none,
            is_validated: false,
            may_stand_in: true,
        });
        for (status, stands_in) in [(503, true), (429, true), (404, false), (501, false)] {
            let headed = judged(&question, status, &none);
            assert_eq!(
                matches!(headed, Headed::StaleStandsIn),
                stands_in,
                "{status}"
            );
        }
    }

    #[test]
    fn a_refusal_comes_before_everything_else() {
        let (none, options) = (HeaderMap::new(), Options::default());
        let stored = fields(&[(CACHE_CONTROL, "max-age=60")]);
        let mut question = asked(&none, &options);
        let caller = |ruling, verifies| Some(CallersKey { ruling, verifies });
        question.caller = caller(Ruling::Refused, false);
        assert!(matches!(
            judged(&question, 401, &stored),
            Headed::KeyRefused
        ));
        question.caller = caller(Ruling::Outage, false);
        assert!(matches!(
            judged(&question, 401, &stored),
            Headed::KeySourceIll
        ));
        question.caller = caller(Ruling::Passes, true);
        assert!(matches!(
            judged(&question, 500, &stored),
            Headed::KeyUnanswered
        ));
        assert!(matches!(
            judged(&question, 302, &stored),
            Headed::KeyRefused
        ));
        assert!(matches!(
            judged(&question, 200, &stored),
            Headed::Storable(_)
        ));
    }
}
