//! What an answer tells of responses that are stored already: a 304 confirms one (RFC 9111 §4.3.4), a
//! HEAD updates it or shows that it is out of date (§4.3.5).

use std::sync::Arc;

use http::{HeaderMap, Method, Response, StatusCode};

use crate::policy::storable::ResponseView;
use crate::policy::{self, Decision, Options, Reason, RequestView, update};
use crate::store::{Entry, Found};

use super::Proxy;
use super::asked::Asked;
use super::exchange::Exchange;

impl Proxy {
    /// A stored response with the fields of an answer about it, and whether that may be stored for
    /// this request; no response where there is no room for it.
    pub(super) fn updated(
        &self,
        stored: &Entry,
        answer: &HeaderMap,
        request: &HeaderMap,
        options: &Options,
        exchange: Exchange,
    ) -> (Option<Arc<Entry>>, Result<(), Reason>) {
        let mut headers = stored.head.fields.unpack(answer.len());
        update::merge(&mut headers, answer);
        let status = stored.head.status;
        // Only responses to GET are stored, whatever asked about them.
        let view = RequestView {
            method: &Method::GET,
            headers: request,
            has_body: false,
        };
        let response = ResponseView {
            status,
            headers: &headers,
        };
        let judged = policy::storable(view, response, options, exchange.received);
        let lifetimes = judged.unwrap_or_default();
        let mut head = exchange.head(status, &headers, lifetimes, request, options);
        head.record.has_validator = stored.head.record.has_validator;
        let entry = Entry::assemble(&head, &[stored.body()], None, self.memory.charge());
        (entry.ok().map(Arc::new), judged.map(drop))
    }

    /// What the answer to a HEAD that went by tells of what is stored for the same request.
    pub(super) fn learn<B>(&self, asked: &Asked, exchange: Exchange, response: &Response<B>) {
        let is_head = asked.parts.method == Method::HEAD && !asked.primary.is_empty();
        let (Some(options), true) = (asked.options(), is_head) else {
            return;
        };
        if response.status() == StatusCode::OK {
            self.compare_part(&asked.primary, &asked.parts.headers, response.headers());
        }
        let (request, now) = (&asked.parts.headers, exchange.received);
        let mut key = asked.primary.clone();
        let Found::Entry(stored) = self.memory.get(&mut key, request, now) else {
            return;
        };
        // Only of what could have answered this request (§4.3.5): not of what is another's.
        let decision = policy::decide(asked.view(), Some(stored.view()), options, now);
        let is_foreign = matches!(
            decision,
            Decision::Miss {
                reason: Reason::Cookie,
                ..
            }
        );
        if is_foreign || stored.head.status != StatusCode::OK {
            return;
        }
        let fields = stored.head.fields.unpack(0);
        let confirms = match response.status() {
            StatusCode::OK if !update::describes(&fields, response.headers()) => {
                stored.make_stale(now);
                return self.forget_shared(&asked.primary);
            }
            // One that names nothing does not undo a purge.
            StatusCode::OK => {
                stored.view().stale_since.is_none() || update::has_validator(response.headers())
            }
            // To a condition of the client's own: about this one only if it says so.
            StatusCode::NOT_MODIFIED => {
                update::has_validator(response.headers())
                    && update::selects(&fields, response.headers())
            }
            _ => false,
        };
        if !confirms {
            return;
        }
        match self.updated(&stored, response.headers(), request, options, exchange) {
            (Some(entry), Ok(())) => drop(self.keep(&asked.primary, entry, None)),
            (_, Err(reason)) if reason.is_of_the_response() => {
                self.memory.remove(&asked.primary, &stored);
                self.forget_shared(&asked.primary);
            }
            _ => {}
        }
    }
}
