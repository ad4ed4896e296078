//! The origin's head on its way in: what cannot be believed is a failure, what is of one hop goes.

use http::header::{self, CONTENT_LENGTH, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};

use crate::clock::Timestamp;
use crate::config::Via;
use crate::error::{Failure, FailureKind};
use crate::http::{dates, fields};

use super::forward::Forwarding;
use super::hops::append_via;

/// How a request was answered, for people (see [`CacheResult`](crate::metrics::CacheResult)).
pub const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// What every response from an origin goes through before anybody sees or stores it. An error says
/// that its framing cannot be believed.
pub fn clean_response<B>(
    response: &mut Response<B>,
    received: Timestamp,
    forwarding: &Forwarding,
) -> Result<(), Failure> {
    if response.status().is_informational() {
        return Err(malformed("switched protocols although nobody asked it to"));
    }
    let version = std::mem::replace(response.version_mut(), Version::HTTP_11);
    let line = "HTTP/1.1 200 \r\n".len() + response.status().canonical_reason().map_or(0, str::len);
    if line + fields::written_size(response.headers()) > forwarding.header_bytes {
        let limit = forwarding.header_bytes;
        let message =
            format!("sent a response head of more than {limit} bytes (upstream.header_bytes)");
        return Err(malformed(&message));
    }
    let is_204 = response.status() == StatusCode::NO_CONTENT;
    let wants_upgrade = response.status() == StatusCode::UPGRADE_REQUIRED;
    let headers = response.headers_mut();
    let is_coded = headers.contains_key(header::TRANSFER_ENCODING);
    let mut chunked = 0;
    for coding in fields::members(headers, header::TRANSFER_ENCODING) {
        if !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(malformed("used a transfer coding other than chunked"));
        }
        chunked += 1;
    }
    // It was decoded once: what is left is no body (RFC 9112 §7.1).
    if chunked > 1 {
        return Err(malformed("chunked its body more than once"));
    }
    let length = content_length(headers)?;
    headers.remove(CONTENT_LENGTH);
    // Chunks frame the body, whatever length is claimed beside them (RFC 9112 §6.3), and a 204 has
    // no body to be long (RFC 9110 §8.6).
    if let Some(length) = length.filter(|_| !is_coded && !is_204) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let protocols = headers.get(header::UPGRADE).cloned();
    fields::strip_hop_by_hop(headers);
    // What a 426 is about (RFC 9110 §15.5.22).
    if let Some(protocols) = protocols.filter(|_| wants_upgrade) {
        headers.insert(header::UPGRADE, protocols);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    // RFC 9110 §6.6.1: who receives a response without a date writes the time it came.
    if !headers.contains_key(header::DATE) {
        headers.insert(header::DATE, dates::format(received));
    }
    if forwarding.via == Via::Full {
        append_via(headers, version);
    }
    headers.remove(X_CACHE);
    Ok(())
}

fn malformed(what: &str) -> Failure {
    Failure::new(FailureKind::ProtocolError, format!("the upstream {what}"))
}

/// The one length that all `Content-Length` lines agree on (RFC 9110 §8.6).
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let mut found = None;
    for member in fields::members(headers, CONTENT_LENGTH) {
        let digits = member.iter().all(u8::is_ascii_digit);
        let text = std::str::from_utf8(member).ok().filter(|_| digits);
        let length = text.and_then(|text| text.parse::<u64>().ok());
        let length = length.ok_or_else(|| malformed("sent a Content-Length that is no number"))?;
        if found.replace(length).is_some_and(|before| before != length) {
            return Err(malformed("sent two lengths"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_response_without_date_gets_the_time_at_which_it_came() {
        let now = Timestamp::from_millis(784_111_777_000);
        let text = "[upstream]\nurl = \"http://a\"\n";
        let config = Config::parse("test", text, &|_| None).unwrap();
        let forwarding = Forwarding::new(&config);
        let mut response = Response::new(());
        clean_response(&mut response, now, &forwarding).unwrap();
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(response.headers()[header::DATE], date);
        clean_response(
            &mut response,
            now.plus(std::time::Duration::from_secs(9)),
            &forwarding,
        )
        .unwrap();
        assert_eq!(response.headers()[header::DATE], date);
    }
}
