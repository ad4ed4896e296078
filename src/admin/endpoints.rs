//! The endpoints of the admin port, written once: which method and path, who may ask, what it is
//! for, and who answers. Routing, 404, 405 with `Allow` and the README's list all come from here.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use http::header::ALLOW;
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::config::Public;
use crate::server::phase::Phase;

use super::readings::Admin;
use super::request::AdminRequest;
use super::response::{Refused, json_response};
use super::{control, page, purge, revoke};

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, where the operator says so; else who has the token.
    Unless(Public),
    /// Everybody who asks by a name of ours: it shows nothing without the token.
    Page,
    /// Who has the token, where one is configured.
    Operators,
}

/// Carries out what the body of a POST says.
pub type Order = for<'a> fn(&'a Admin, &'a [u8]) -> Carrying<'a>;

type Looking<'a> = Pin<Box<dyn Future<Output = Response<Bytes>> + Send + 'a>>;
type Carrying<'a> = Pin<Box<dyn Future<Output = Result<Value, Refused>> + Send + 'a>>;

/// Who answers.
#[derive(Clone, Copy)]
pub enum Handler {
    /// GET and HEAD.
    Read(fn(&Admin, &AdminRequest<'_>) -> Response<Bytes>),
    /// The same, where somebody else is asked.
    Looked(for<'a> fn(&'a Admin, &'a AdminRequest<'a>) -> Looking<'a>),
    /// POST.
    Order(Order),
}

/// One endpoint.
pub struct Endpoint {
    pub path: &'static str,
    /// What follows the path in a list for people.
    usage: &'static str,
    pub access: Access,
    /// One line for operators.
    meaning: &'static str,
    pub handler: Handler,
}

/// All endpoints, in the order in which they are listed.
pub const ENDPOINTS: [Endpoint; 17] = [
    Endpoint {
        path: "/",
        usage: "",
        access: Access::Page,
        meaning: "the live page: what it is doing right now, explain, purge",
        handler: Handler::Read(|_, _| page::page()),
    },
    Endpoint {
        path: "/metrics",
        usage: "",
        access: Access::Unless(Public::Metrics),
        meaning: "all metrics, as OpenMetrics or as the classic text, by `Accept`",
        handler: Handler::Read(|admin, asked| admin.metrics(asked)),
    },
    Endpoint {
        path: "/api/metrics",
        usage: "",
        access: Access::Operators,
        meaning: "a summary of them, as JSON",
        handler: Handler::Read(|admin, _| {
            json_response(StatusCode::OK, &admin.proxy.metrics().summary())
        }),
    },
    Endpoint {
        path: "/status",
        usage: "",
        access: Access::Operators,
        meaning: "what the live page shows, as JSON",
        handler: Handler::Read(|admin, _| admin.status()),
    },
    Endpoint {
        path: "/healthz",
        usage: "",
        access: Access::Unless(Public::Health),
        meaning: "200 while the process runs",
        handler: Handler::Read(|_, _| json_response(StatusCode::OK, &json!({"status": "ok"}))),
    },
    Endpoint {
        path: "/startup",
        usage: "",
        access: Access::Unless(Public::Health),
        meaning: "200 once clients can come, whether the upstream and Redis are there or not",
        handler: Handler::Read(|admin, _| admin.startup()),
    },
    Endpoint {
        path: "/livez",
        usage: "",
        access: Access::Unless(Public::Health),
        meaning: "200, or 503 where a worker has not come back from what it does for 10 s",
        handler: Handler::Read(|admin, _| admin.liveness()),
    },
    Endpoint {
        path: "/readyz",
        usage: "",
        access: Access::Unless(Public::Health),
        meaning: "200, or 503 while draining; the breakers, the purge log, the configuration and \
            what is bypassed",
        handler: Handler::Read(|admin, asked| admin.readiness(asked)),
    },
    Endpoint {
        path: "/config",
        usage: "",
        access: Access::Operators,
        meaning: "every key as it takes effect, and where its value came from; secrets masked",
        handler: Handler::Read(|admin, _| admin.effective()),
    },
    Endpoint {
        path: "/explain",
        usage: "?url=/path",
        access: Access::Operators,
        meaning: "why a request would be answered as it would",
        handler: Handler::Looked(|admin, asked| Box::pin(admin.explained(asked))),
    },
    Endpoint {
        path: "/seen",
        usage: "?most=10",
        access: Access::Operators,
        meaning: "what was asked for most among what is looked up (a sample; nothing with a \
            secret in its query)",
        handler: Handler::Read(|admin, asked| admin.seen(asked)),
    },
    Endpoint {
        path: "/purge",
        usage: "",
        access: Access::Operators,
        meaning: "makes stored responses unusable, or stale",
        handler: Handler::Order(|admin, body| {
            Box::pin(async { Ok(purge::purge(&admin.proxy, body).await?) })
        }),
    },
    Endpoint {
        path: "/revoke",
        usage: "",
        access: Access::Operators,
        meaning: "refuses a key from now on, or takes that back",
        handler: Handler::Order(|admin, body| {
            Box::pin(async { Ok(revoke::revoke(&admin.proxy, body).await?) })
        }),
    },
    Endpoint {
        path: "/bypass",
        usage: "",
        access: Access::Operators,
        meaning: "nothing is looked up or stored from now on; `{\"for\": \"30m\"}`, `{\"fleet\": \
            true}`, `{\"route\": \"/path\"}`, `{\"off\": true}` ends it",
        handler: Handler::Order(|admin, body| Box::pin(control::bypass(admin, body))),
    },
    Endpoint {
        path: "/reload",
        usage: "",
        access: Access::Operators,
        meaning: "reads the configuration again and puts it in force, unless it has mistakes",
        handler: Handler::Order(|admin, body| Box::pin(control::reload(admin, body))),
    },
    Endpoint {
        path: "/drain",
        usage: "",
        access: Access::Operators,
        meaning: "takes this instance out, and ends it as SIGTERM does; `{\"end\": false}` leaves \
            it running, `{\"back\": true}` puts it back",
        handler: Handler::Order(|admin, body| Box::pin(control::drain(admin, body))),
    },
    Endpoint {
        path: "/told",
        usage: "",
        access: Access::Operators,
        meaning: "for the fleet itself: purges of an instance that ended before Redis took them",
        handler: Handler::Order(|admin, body| {
            Box::pin(async {
                // It may be itself that it tells: the address of another machine's loopback leads
                // here.
                if admin.phases.now() != Phase::Serving {
                    return Err("this instance ends: it takes nothing over"
                        .to_owned()
                        .into());
                }
                Ok(purge::told(&admin.proxy, body).await?)
            })
        }),
    },
];

pub fn find(path: &str) -> Option<&'static Endpoint> {
    const { &ENDPOINTS }
        .iter()
        .find(|endpoint| endpoint.path == path)
}

impl Endpoint {
    fn methods(&self) -> (&'static [Method], &'static str) {
        match self.handler {
            Handler::Read(_) | Handler::Looked(_) => (&[Method::GET, Method::HEAD], "GET, HEAD"),
            Handler::Order(_) => (&[Method::POST], "POST"),
        }
    }

    pub fn takes(&self, method: &Method) -> bool {
        self.methods().0.contains(method)
    }

    pub fn not_allowed(&self) -> Response<Bytes> {
        let (path, allowed) = (self.path, self.methods().1);
        let body = json!({"error": format!("Method not allowed: {path} takes {allowed}")});
        let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &body);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(allowed));
        response
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.handler {
            Handler::Read(_) | Handler::Looked(_) => "GET",
            Handler::Order(_) => "POST",
        };
        write!(
            out,
            "{method} {}{}: {}",
            self.path, self.usage, self.meaning
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_lists_the_endpoints_as_they_are() {
        let readme = include_str!("../../README.md");
        let line = |endpoint: &Endpoint| {
            let text = endpoint.to_string();
            let (what, meaning) = text.split_once(": ").unwrap();
            format!("| `{what}` | {meaning} |")
        };
        let table: Vec<String> = ENDPOINTS.iter().map(line).collect();
        let table = table.join("\n");
        assert!(readme.contains(&table), "the README wants:\n{table}");
    }
}
