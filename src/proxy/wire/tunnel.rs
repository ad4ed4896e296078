//! What is not a plain exchange: the client's body on its way up, and switched protocols.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, StatusCode, request};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::error::{Failure, FailureKind};
use crate::upstream::OriginBody;

use super::body::Body;

/// Ties both connections together after the origin agreed to switch protocols (RFC 9110 §7.8).
pub fn switch(
    parts: &mut request::Parts,
    response: &mut Response<OriginBody>,
    asked_for: Option<HeaderValue>,
) -> Result<Response<Body>, Failure> {
    let ours = parts.extensions.remove::<OnUpgrade>();
    let (Some(_), Some(ours)) = (asked_for, ours) else {
        let message = "the upstream switched protocols although nobody asked it to";
        return Err(Failure::new(FailureKind::ProtocolError, message));
    };
    let theirs = hyper::upgrade::on(&mut *response);
    tokio::spawn(async move {
        let (ours, theirs) = match futures_util::future::try_join(ours, theirs).await {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "a switch of protocols failed"),
        };
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        if let Err(error) = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await {
            tracing::debug!(%error, "a tunnel broke off");
        }
    });
    let mut switched = Response::new(Body::Empty);
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = response.headers().clone();
    let headers = switched.headers_mut();
    let protocol = response.headers().get(UPGRADE).cloned();
    crate::http::fields::strip_hop_by_hop(headers);
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    Ok(switched)
}
