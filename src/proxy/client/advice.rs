//! What `explain` says in plain words: what would come of a request, and what to change so that it
//! is answered from the cache.

use strum::IntoEnumIterator;

use crate::policy::{Reason, Share};

/// One sentence: `GET /a would be a MISS (cold): …`.
pub fn sentence(method: &str, path: &str, result: &str, code: &str) -> String {
    let meaning = of_code(code).map_or("", Reason::meaning);
    format!("{method} {path} would be a {result} ({code}): {meaning}")
}

fn of_code(code: &str) -> Option<Reason> {
    Reason::iter().find(|reason| reason.as_str() == code)
}

/// What to change, and where, for the reason with this code on this route (path and line); `None`
/// where nothing is wrong with it, or nothing in a configuration would change it.
pub fn remedy(
    route: Option<(&str, u64)>,
    share: Option<&str>,
    path: &str,
    code: &str,
) -> Option<String> {
    let reason = of_code(code)?;
    let place = match route {
        Some((route, line)) => format!("the route {route} at line {line}"),
        None => "the configuration".to_owned(),
    };
    let change = match reason {
        Reason::NoRoute => {
            return Some(format!("add a [[route]] with path = {path:?} and a ttl"));
        }
        Reason::SwitchedOff => {
            return Some(
                "switch it on again: iris-sidecar bypass --off (with --fleet for all instances), \
                    or bypass = false where the configuration says true"
                    .to_owned(),
            );
        }
        Reason::NoLifetime => "ttl = \"30s\": the origin gives no lifetime, and nobody else does",
        Reason::UnknownQuery => {
            "name the parameter in query = [...], or say unknown_query = \"drop\""
        }
        Reason::RawTarget => "raw_target = false, if the target need not be sent letter by letter",
        Reason::Cookie => "cookies = \"ignore\" (not forwarded), \"key\" or \"store\"",
        Reason::KeyUnverified => {
            return Some(
                "nothing: the first request of a key asks the origin, and a good key's next one is \
                    answered from what is stored"
                    .to_owned(),
            );
        }
        Reason::Credential if share.is_some_and(|share| share != Share::Standard.as_str()) => {
            return Some("the request: pass a key, as -H 'Authorization: @key.txt'".to_owned());
        }
        Reason::Credential => {
            "share = \"per-key\", or \"verified\" where all good keys get one answer"
        }
        Reason::NoStore => "ignore = [\"no-store\"], if the origin's word need not count",
        Reason::Private => "share = \"per-key\", or ignore = [\"private\"]",
        Reason::SetCookie => "ignore = [\"set-cookie\"], if its cookies are nobody's own",
        Reason::MustValidate => "ignore = [\"no-cache\"], or force_ttl",
        Reason::Status => "ttl_statuses, or error_ttl for a status of 400 or more",
        Reason::ClientDirective => "obey: the words of clients that count",
        Reason::Method => "nothing: only GET is stored, and HEAD answered from it",
        Reason::TooLarge => return Some("[cache] max_object: it is larger".to_owned()),
        Reason::Budget => return Some("[cache] memory: there is no room for it".to_owned()),
        Reason::FlightsFull => return Some("[cache] max_flights: so many are fetched".to_owned()),
        Reason::WaitTimeout => return Some("[cache] wait_timeout".to_owned()),
        Reason::RateLimited => return Some("[[rate_limit]]: it allows no more".to_owned()),
        Reason::VaryAny => {
            return Some("the origin: its Vary names what no request says".to_owned());
        }
        _ => return None,
    };
    Some(format!("{place}: {change}"))
}
