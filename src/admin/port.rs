//! The port itself: connections, who is let in, and which endpoint answers.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::http::fields::without_port;

use super::endpoints::{self, Access, Handler, Order};
use super::purge;
use super::readings::Admin;
use super::request::AdminRequest;
use super::response::json_response;

/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

impl Admin {
    /// Serves until the task is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    drop(tokio::spawn(Arc::clone(&self).connection(stream, peer)))
                }
                Err(error) => {
                    warn!(%error, "an admin connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
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
        if endpoint.access == Access::Operators
            && let Some(refusal) = self.refusal(&parts.headers)
        {
            return refusal;
        }
        let asked = AdminRequest {
            query: parts.uri.query(),
            peer,
        };
        match endpoint.handler {
            Handler::Read(read) => read(self, &asked),
            Handler::Order(order) => self.order(order, body).await,
        }
    }

    fn not_found(&self, headers: &HeaderMap) -> Response<Bytes> {
        if let Some(refusal) = self.refusal(headers) {
            return refusal;
        }
        let list: Vec<String> = endpoints::ENDPOINTS
            .iter()
            .map(ToString::to_string)
            .collect();
        let body = json!({"error": "Not found", "endpoints": list});
        json_response(StatusCode::NOT_FOUND, &body)
    }

    /// The answer to who has not the token, where there is one, and to a page of another site.
    fn refusal(&self, headers: &HeaderMap) -> Option<Response<Bytes>> {
        if !self.is_allowed(headers) {
            let body = json!({"error": "this endpoint needs the bearer token of admin.token"});
            let mut response = json_response(StatusCode::UNAUTHORIZED, &body);
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Some(response);
        }
        if is_of_another_site(headers, self.token.is_some()) {
            let body = json!({"error": "a page of another site may not use this port (Origin)"});
            return Some(json_response(StatusCode::FORBIDDEN, &body));
        }
        None
    }

    /// An order of the operator's: what to purge, or which key to revoke.
    async fn order(&self, order: Order, body: Incoming) -> Response<Bytes> {
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
        match order(&self.proxy, &body).await {
            Ok(done) => json_response(StatusCode::OK, &done),
            Err(error) => refuse(StatusCode::BAD_REQUEST, error),
        }
    }

    fn is_allowed(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.token else {
            return true;
        };
        let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = given.and_then(|value| value.strip_prefix(b"Bearer "));
        given.is_some_and(|token| <[u8; 32]>::from(Sha256::digest(token)) == *expected)
    }
}

/// Whether a browser sends this for a page that is not ours: without a token, any page that the
/// operator looks at could purge otherwise.
/// By a name that it makes point here, a page can be of the same site: so without a token the host
/// must be an address.
fn is_of_another_site(headers: &HeaderMap, has_token: bool) -> bool {
    let Some(origin) = headers.get(ORIGIN) else {
        return false;
    };
    let authority = origin.to_str().ok().and_then(|text| text.split_once("://"));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let bare = host.map(|host| without_port(host.as_bytes()));
    let is_address = bare.is_some_and(|bare| {
        let text = std::str::from_utf8(bare).unwrap_or_default();
        let address = text.trim_start_matches('[').trim_end_matches(']');
        text == "localhost" || address.parse::<IpAddr>().is_ok()
    });
    authority.map(|(_, authority)| authority) != host || !(has_token || is_address)
}
