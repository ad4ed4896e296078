//! `GET /explain?url=/path&method=GET&header=name:value`: why a request would be answered as it
//! would. Without a host in the URL it is asked for as on this machine.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, Request, Version};
use http_body_util::Empty;
use serde_json::Value;
use url::form_urlencoded;

use crate::proxy::{Peer, PeerTls, Proxy};

const EXPECTED: &str = "expected /explain?url=/path%3Fquery, and beside it method=GET and \
    header=name:value as often as needed";

/// What the request that the query describes would meet, from a client at this address. An error
/// says what is wrong with the query.
pub async fn explain(
    proxy: &Arc<Proxy>,
    query: Option<&str>,
    peer: IpAddr,
) -> Result<Value, String> {
    let mut request = Request::new(());
    let mut url = None;
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let wrong = || format!("{name}={value:?}: {EXPECTED}");
        match &*name {
            "url" => url = Some(value.into_owned()),
            "method" => {
                let method = Method::from_bytes(value.as_bytes());
                *request.method_mut() = method.map_err(|_| wrong())?;
            }
            "header" => {
                let (name, text) = value.split_once(':').ok_or_else(wrong)?;
                let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
                let text = HeaderValue::from_str(text.trim()).map_err(|_| wrong())?;
                request.headers_mut().append(name, text);
            }
            _ => return Err(wrong()),
        }
    }
    let url = url.ok_or_else(|| format!("no url: {EXPECTED}"))?;
    *request.uri_mut() = url
        .parse()
        .map_err(|error| format!("url={url:?}: {error}"))?;
    // As over a connection of that kind.
    let is_secure = request.uri().scheme_str() == Some("https");
    *request.version_mut() = Version::HTTP_10;
    // The host is part of what is asked for: as clients name it, or as one on this machine would.
    let named = request.uri().authority();
    let here = || {
        let address = proxy.plan().config.listen.first_tcp();
        address.map_or_else(|| "localhost".to_owned(), |address| address.to_string())
    };
    let host = named.map_or_else(here, |authority| authority.as_str().to_owned());
    let value = HeaderValue::from_str(&host).map_err(|error| format!("url={url:?}: {error}"))?;
    request.headers_mut().entry(HOST).or_insert(value);
    let host = request.headers().get(HOST).map_or(Value::Null, |host| {
        String::from_utf8_lossy(host.as_bytes()).into()
    });
    let request = request.map(|()| Empty::<Bytes>::new());
    let mut peer = Peer::from(peer);
    if is_secure {
        peer.tls = Some(Arc::new(PeerTls::unknown()));
    }
    let mut told = proxy.explain(request, &peer).await;
    told["host"] = host;
    Ok(told)
}
