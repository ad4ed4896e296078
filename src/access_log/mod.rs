//! The access log: a line for each request, written by a thread of its own. A worker hands over
//! what it knows and goes on; where the thread cannot keep up, lines are dropped and counted.
//!
//! What a request's steps have to say of it is gathered in [`Observed`] and [`Told`]: whoever
//! exports traces (OTLP) finds all that a span needs there.

mod line;
mod writer;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};

use crate::config;
use crate::trace::{Observed, REQUEST_ID, TRACEPARENT};

pub use writer::AccessLog;

/// In the extensions of a response: how it came to be.
#[derive(Clone, Debug)]
pub struct Told {
    /// The pattern of the route; `None` where none takes it.
    pub route: Option<Arc<str>>,
    pub result: &'static str,
    pub reason: &'static str,
    pub observed: Option<Arc<Observed>>,
}

/// What is known of a request when it comes.
#[derive(Debug)]
pub struct Asked {
    at: SystemTime,
    began: Instant,
    client: IpAddr,
    method: Method,
    version: Version,
    uri: Uri,
    host: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    traceparent: Option<HeaderValue>,
    /// The operator's choice of fields, in its order.
    fields: Vec<Option<HeaderValue>>,
    /// Nobody has read what it asks: there are no method and target then.
    is_unread: bool,
}

impl Asked {
    /// What `log` wants to know of a request.
    pub fn of<B>(log: &config::AccessLog, request: &Request<B>, client: IpAddr) -> Self {
        let field = |name: &HeaderName| request.headers().get(name).cloned();
        Self {
            at: SystemTime::now(),
            began: Instant::now(),
            client,
            method: request.method().clone(),
            version: request.version(),
            uri: request.uri().clone(),
            // HTTP/2 names it in its target (RFC 9113 §8.3.1).
            host: field(&http::header::HOST).or_else(|| {
                let authority = request.uri().authority()?;
                HeaderValue::from_str(authority.as_str()).ok()
            }),
            request_id: field(&REQUEST_ID),
            traceparent: field(&TRACEPARENT),
            fields: log.fields.iter().map(field).collect(),
            is_unread: false,
        }
    }

    /// A client that is answered without its request having been read, or understood.
    fn unread(log: &config::AccessLog, client: IpAddr) -> Self {
        let nothing = Request::new(());
        Self {
            is_unread: true,
            ..Self::of(log, &nothing, client)
        }
    }

    /// With how it was answered.
    pub fn answered(self, status: StatusCode, told: Option<Told>) -> Answered {
        Answered {
            head: self.began.elapsed(),
            asked: self,
            status,
            told,
        }
    }
}

/// A request whose answer's head is on its way.
#[derive(Debug)]
pub struct Answered {
    asked: Asked,
    status: StatusCode,
    told: Option<Told>,
    head: Duration,
}

/// A request that is over.
#[derive(Debug)]
struct Entry {
    answered: Answered,
    bytes: u64,
    total: Duration,
    /// The client did not get all of it.
    is_cut: bool,
}
