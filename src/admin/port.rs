//! The port itself: connections, who is let in, and which endpoint answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::config::Public;
use crate::error::is_out_of_descriptors;
use crate::http::fields::{single, without_brackets, without_port};

use super::endpoints::{self, Access, Endpoint, Handler, Order};
use super::purge;
use super::readings::Admin;
use super::request::AdminRequest;
use super::response::{Refused, json_response};

/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

impl Admin {
    /// Serves until the task is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut serving: VecDeque<AbortHandle> = VecDeque::new();
        let mut spare = Spare::default();
        spare.fill();
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    spare.fill();
                    serving.retain(|task| !task.is_finished());
                    if serving.len() >= self.config().connections {
                        // A probe must not be kept out by who only holds connections.
                        serving.drain(..1).for_each(|longest| longest.abort());
                    }
                    let task = tokio::spawn(Arc::clone(&self).connection(stream, peer));
                    serving.push_back(task.abort_handle());
                }
                Err(error) => {
                    warn!(%error, "an admin connection could not be accepted");
                    let has_made_room = is_out_of_descriptors(&error) && spare.spend();
                    if !has_made_room {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let service = service_fn(move |request: Request<Incoming>| {
            let admin = Arc::clone(&self);
            async move { Ok::<_, Infallible>(admin.answer(request, peer.ip()).await.map(Full::new)) }
        });
        let mut protocol = http1::Builder::new();
        protocol
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(30));
        if let Err(error) = protocol
            .serve_connection(TokioIo::new(stream), service)
            .await
        {
            debug!(%peer, %error, "an admin connection ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Bytes> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let Some(endpoint) = endpoints::find(path) else {
            return self.not_found(&parts.headers);
        };
        if !endpoint.takes(&parts.method) {
            return endpoint.not_allowed();
        }
        if let Some(refusal) = self.refusal(&parts.headers, endpoint) {
            return refusal;
        }
        let asked = AdminRequest {
            query: parts.uri.query(),
            accept: parts
                .headers
                .get(ACCEPT)
                .and_then(|accept| accept.to_str().ok()),
            peer,
            is_operator: self.is_allowed(&parts.headers),
        };
        match endpoint.handler {
            Handler::Read(read) => read(self, &asked),
            Handler::Looked(look) => look(self, &asked).await,
            // A form of another site's page cannot say that it is JSON.
            Handler::Order(_) if !is_json(&parts.headers, body.is_end_stream()) => {
                let body = json!({"error": "the body of a POST is JSON here: say so by \
                    Content-Type: application/json"});
                json_response(StatusCode::UNSUPPORTED_MEDIA_TYPE, &body)
            }
            Handler::Order(order) => self.order((path, order), body).await,
        }
    }

    fn not_found(&self, headers: &HeaderMap) -> Response<Bytes> {
        let refusal = self.refusal_of_host(headers);
        if let Some(refusal) = refusal.or_else(|| self.refusal_of_key(headers)) {
            return refusal;
        }
        let list: Vec<String> = endpoints::ENDPOINTS
            .iter()
            .map(ToString::to_string)
            .collect();
        let body = json!({"error": "Not found", "endpoints": list});
        json_response(StatusCode::NOT_FOUND, &body)
    }

    /// The answer to who may not use an endpoint, where there is one.
    fn refusal(&self, headers: &HeaderMap, endpoint: &Endpoint) -> Option<Response<Bytes>> {
        let config = self.config();
        let is_public = |what| config.public.contains(&what);
        match endpoint.access {
            // Probes come by whatever name, and health is no secret.
            Access::Unless(what @ Public::Health) if is_public(what) => return None,
            Access::Unless(what) if is_public(what) => return self.refusal_of_host(headers),
            Access::Page => return self.refusal_of_host(headers),
            Access::Unless(_) | Access::Operators => {}
        }
        let refusal = self.refusal_of_host(headers);
        refusal.or_else(|| self.refusal_of_key(headers))
    }

    /// The answer to who asks by a name that is not ours: any page that the operator looks at can
    /// make a name of its own point here.
    fn refusal_of_host(&self, headers: &HeaderMap) -> Option<Response<Bytes>> {
        let Ok(host) = single(headers, &HOST) else {
            let body = json!({"error": "the request has more than one Host"});
            return Some(json_response(StatusCode::BAD_REQUEST, &body));
        };
        let host = host?;
        let name = without_port(host.as_bytes());
        if is_of_this_machine(name) || self.config().hosts.iter().any(|known| is_host(known, name))
        {
            return None;
        }
        let body = json!({"error": format!(
            "this port is not known as {}: ask it by address, as localhost, or list the name in \
                admin.hosts",
            String::from_utf8_lossy(name)
        )});
        Some(json_response(StatusCode::MISDIRECTED_REQUEST, &body))
    }

    /// The answer to who has not the token, where there is one, and to a page of another site.
    fn refusal_of_key(&self, headers: &HeaderMap) -> Option<Response<Bytes>> {
        if !self.is_allowed(headers) {
            let body = json!({"error": "this endpoint needs the bearer token of admin.token"});
            let mut response = json_response(StatusCode::UNAUTHORIZED, &body);
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Some(response);
        }
        if is_of_another_site(headers) {
            let body = json!({"error": "a page of another site may not use this port (Origin, \
                Sec-Fetch-Site)"});
            return Some(json_response(StatusCode::FORBIDDEN, &body));
        }
        None
    }

    /// An order of the operator's: what to purge, or which key to revoke.
    async fn order(&self, (path, order): (&str, Order), body: Incoming) -> Response<Bytes> {
        let refuse = |status, error: String| json_response(status, &json!({"error": error}));
        let reading = Limited::new(body, purge::BODY_LIMIT).collect();
        let body = match timeout(BODY_TIMEOUT, reading).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let limit = purge::BODY_LIMIT;
                let error = format!("the body is larger than {limit} bytes");
                return refuse(StatusCode::PAYLOAD_TOO_LARGE, error);
            }
            Ok(Err(error)) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
            Err(_) => {
                let error = format!("the body did not come within {BODY_TIMEOUT:?}");
                return refuse(StatusCode::REQUEST_TIMEOUT, error);
            }
        };
        let carried_out = order(self, &body).await;
        // The others say it themselves, or hold a key, or are no person's.
        if carried_out.is_ok() && ["/purge", "/bypass", "/drain"].contains(&path) {
            let what: String = String::from_utf8_lossy(&body)
                .trim()
                .chars()
                .take(200)
                .collect();
            let told = format!("{} {what}", path.trim_start_matches('/'));
            self.proxy.metrics().recent.note(self.proxy.now(), told);
        }
        match carried_out {
            Ok(done) => json_response(StatusCode::OK, &done),
            Err(Refused(told)) => json_response(StatusCode::BAD_REQUEST, &told),
        }
    }

    fn is_allowed(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = self.config().token else {
            return true;
        };
        let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        // The name of a scheme has no case (RFC 9110 §11.1).
        let given = given.and_then(|value| {
            let (scheme, token) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
        });
        given.is_some_and(|token| self.token.is(token, &expected))
    }
}

/// Whether a browser sends this for a page that is not ours: without a token, any page that the
/// operator looks at could purge otherwise.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    // "none" is what an operator typed (Fetch Metadata §2.3).
    if site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return false;
    };
    let authority = origin.to_str().ok().and_then(|text| text.split_once("://"));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    authority.map(|(_, authority)| authority) != host
}

/// Whether a host is an address, or `localhost`: no name server can make that another's.
fn is_of_this_machine(host: &[u8]) -> bool {
    let text = std::str::from_utf8(host).unwrap_or_default();
    let address = without_brackets(text);
    text.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

fn is_host(known: &str, host: &[u8]) -> bool {
    known.as_bytes().eq_ignore_ascii_case(host)
}

/// An order without a body needs no words on it: where it came from was looked at.
fn is_json(headers: &HeaderMap, is_empty: bool) -> bool {
    if is_empty && !headers.contains_key(CONTENT_TYPE) {
        return true;
    }
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let media_type = value.and_then(|value| value.split(|byte| *byte == b';').next());
    media_type.is_some_and(|found| found.trim_ascii().eq_ignore_ascii_case(b"application/json"))
}

/// Descriptors held back, so that the operator can ask what is wrong when all others are taken.
#[derive(Default)]
struct Spare(Vec<std::fs::File>);

impl Spare {
    /// As many as a scrape, a probe and a person need at one time.
    const COUNT: usize = 4;

    fn fill(&mut self) {
        while self.0.len() < Self::COUNT {
            match std::fs::File::open("/dev/null") {
                Ok(file) => self.0.push(file),
                Err(_) => return,
            }
        }
    }

    /// Lets one go; whether there was one.
    fn spend(&mut self) -> bool {
        self.0.pop().is_some()
    }
}
