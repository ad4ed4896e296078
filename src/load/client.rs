//! The other side of a measurement: connections to the target, and one request over one of them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::http::fields::without_brackets;

use super::record::{Answered, Cached, Cause};

const AGENT: &str = concat!("iris-sidecar/", env!("CARGO_PKG_VERSION"));

/// How an HTTP version is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    #[default]
    Http1,
    /// By ALPN over TLS, by prior knowledge without.
    Http2,
}

/// Who is measured.
pub struct Target {
    scheme: Scheme,
    host: String,
    port: u16,
    authority: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    version: Version,
    /// For one request, with the connection that it may need.
    patience: Duration,
    /// Values of `Authorization`, used in turn; none for requests without.
    keys: Vec<HeaderValue>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// One connection. HTTP/1.1 takes one request after another.
pub enum Connection {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Question {
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Option<Bytes>,
    /// The number of the request: keys are used in turn by it.
    pub number: u64,
}

impl Target {
    /// `url` without a path. The error says what is wrong with what.
    pub fn new(
        url: &str,
        keys: &[String],
        version: Version,
        ca_file: Option<&std::path::Path>,
        patience: Duration,
    ) -> Result<Self, String> {
        let expected = "expected a URL without a path, such as \"http://127.0.0.1:8080\"";
        let parsed = Url::parse(url).map_err(|error| format!("{url:?}: {error}: {expected}"))?;
        let scheme = match parsed.scheme() {
            "http" => Scheme::HTTP,
            "https" => Scheme::HTTPS,
            other => return Err(format!("{url:?}: {other:?} is not spoken here: {expected}")),
        };
        let host = parsed
            .host_str()
            .ok_or_else(|| format!("{url:?}: {expected}"))?;
        if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() {
            return Err(format!("{url:?}: {expected}"));
        }
        let port = parsed.port_or_known_default().unwrap_or(80);
        let authority = match parsed.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let host = without_brackets(host).to_owned();
        let tls = if scheme == Scheme::HTTPS {
            let name = ServerName::try_from(host.clone())
                .map_err(|_| format!("{host:?} is no name that a certificate can hold"))?;
            let mut config: ClientConfig = crate::tls::client(ca_file, "--ca-file")?;
            config.alpn_protocols = match version {
                Version::Http1 => vec![b"http/1.1".to_vec()],
                Version::Http2 => vec![b"h2".to_vec()],
            };
            Some((TlsConnector::from(Arc::new(config)), name))
        } else {
            None
        };
        let keys = keys.iter().map(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {key}"))
                .map_err(|_| "a key has characters that no header field takes".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        });
        Ok(Self {
            scheme,
            port,
            authority: HeaderValue::try_from(authority).map_err(|error| error.to_string())?,
            host,
            tls,
            version,
            patience,
            keys: keys.collect::<Result<_, _>>()?,
        })
    }

    /// As an operator reads it.
    pub fn shown(&self) -> String {
        let authority = self.authority.to_str().unwrap_or_default();
        format!("{}://{authority}", self.scheme)
    }

    /// A connection to send requests over.
    pub async fn connect(&self) -> Result<Connection, Cause> {
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses = addresses.map_err(|_| Cause::Dns)?;
        let mut stream = Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
        for address in addresses {
            stream = TcpStream::connect(address).await;
            if stream.is_ok() {
                break;
            }
        }
        let stream = stream.map_err(|_| Cause::Connect)?;
        let _ = stream.set_nodelay(true);
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some((connector, name)) => {
                let secured = connector.connect(name.clone(), stream).await;
                Box::new(secured.map_err(|_| Cause::Tls)?)
            }
        };
        let io = TokioIo::new(stream);
        match self.version {
            Version::Http1 => {
                let (sender, connection) =
                    http1::handshake(io).await.map_err(|_| Cause::Protocol)?;
                tokio::spawn(connection);
                Ok(Connection::One(sender))
            }
            Version::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                    .await
                    .map_err(|_| Cause::Protocol)?;
                tokio::spawn(connection);
                Ok(Connection::Two(sender))
            }
        }
    }

    /// Sends one request and reads its answer to the end, over the connection that is there or a
    /// new one; what is of no use any more is dropped.
    pub async fn ask(
        &self,
        connection: &mut Option<Connection>,
        question: Question,
    ) -> Result<Answered, Cause> {
        match timeout(self.patience, self.exchange(connection, question)).await {
            Ok(Ok(answered)) => Ok(answered),
            Ok(Err(cause)) => {
                *connection = None;
                Err(cause)
            }
            Err(_) => {
                *connection = None;
                Err(Cause::Timeout)
            }
        }
    }

    /// The body of a GET, as text.
    pub async fn text(&self, path: &str) -> Result<String, Cause> {
        let asking = async {
            let mut connection = self.connect().await?;
            let request = self.request(Question {
                method: Method::GET,
                path: path.to_owned(),
                headers: Vec::new(),
                body: None,
                number: 0,
            });
            let response = connection.send(request).await;
            let body = response.map_err(|_| Cause::Closed)?.into_body();
            let bytes = body.collect().await.map_err(|_| Cause::Closed)?.to_bytes();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        timeout(self.patience, asking)
            .await
            .unwrap_or(Err(Cause::Timeout))
    }

    async fn exchange(
        &self,
        connection: &mut Option<Connection>,
        question: Question,
    ) -> Result<Answered, Cause> {
        let is_usable = match connection {
            Some(connection) => connection.ready().await,
            None => false,
        };
        if !is_usable {
            *connection = Some(self.connect().await?);
        }
        let Some(connection) = connection else {
            return Err(Cause::Connect);
        };
        let request = self.request(question);
        let response = connection.send(request).await.map_err(|error| {
            if error.is_parse() {
                Cause::Protocol
            } else {
                Cause::Closed
            }
        })?;
        let (status, cached) = (response.status(), cached(response.headers()));
        let bytes = read(response).await?;
        Ok(Answered {
            status,
            cached,
            bytes,
        })
    }

    fn request(&self, question: Question) -> Request<Full<Bytes>> {
        let Question {
            method,
            path,
            headers,
            body,
            number,
        } = question;
        let length = body.as_ref().map(Bytes::len);
        let mut request = Request::new(Full::new(body.unwrap_or_default()));
        *request.method_mut() = method;
        let uri = Uri::builder().path_and_query(path.as_str());
        let uri = match self.version {
            Version::Http1 => uri,
            Version::Http2 => uri
                .scheme(self.scheme.clone())
                .authority(self.authority.as_bytes()),
        };
        *request.uri_mut() = uri.build().unwrap_or_default();
        let fields = request.headers_mut();
        if self.version == Version::Http1 {
            fields.insert(HOST, self.authority.clone());
        }
        fields.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(length) = length {
            fields.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        if !self.keys.is_empty() {
            let key = (number % self.keys.len() as u64) as usize;
            fields.insert(AUTHORIZATION, self.keys[key].clone());
        }
        for (name, value) in headers {
            fields.insert(name, value);
        }
        request
    }
}

impl Connection {
    async fn ready(&mut self) -> bool {
        match self {
            Self::One(sender) => sender.ready().await.is_ok(),
            Self::Two(sender) => sender.ready().await.is_ok(),
        }
    }

    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::One(sender) => sender.send_request(request).await,
            Self::Two(sender) => sender.send_request(request).await,
        }
    }
}

/// The bytes of a body.
async fn read(response: Response<Incoming>) -> Result<u64, Cause> {
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Cause::Closed)?;
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(bytes)
}

/// By `X-Cache` where there is one, else by the last member of `Cache-Status` (RFC 9211 §2), which
/// is that of the cache next to us.
fn cached(headers: &HeaderMap) -> Cached {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(word) = text("x-cache") {
        let word = word.split([' ', ',']).next().unwrap_or_default();
        return match word.to_ascii_uppercase().as_str() {
            "HIT" => Cached::Hit,
            "HIT-STALE" | "STALE" => Cached::Stale,
            "HIT-REVALIDATED" | "REVALIDATED" => Cached::Revalidated,
            "MISS" => Cached::Miss,
            "BYPASS" => Cached::Bypass,
            _ => Cached::Unsaid,
        };
    }
    let last = crate::http::fields::members(headers, "cache-status").last();
    let Some(last) = last.and_then(|member| std::str::from_utf8(member).ok()) else {
        return Cached::Unsaid;
    };
    let parameters: Vec<&str> = last.split(';').map(str::trim).collect();
    if parameters.contains(&"hit") {
        return Cached::Hit;
    }
    match parameters.iter().find_map(|part| part.strip_prefix("fwd=")) {
        Some("stale") if parameters.contains(&"fwd-status=304") => Cached::Revalidated,
        Some("bypass" | "method") => Cached::Bypass,
        Some(_) => Cached::Miss,
        None => Cached::Unsaid,
    }
}

/// Whether an answer counts as done well.
pub fn is_good(status: StatusCode) -> bool {
    status.as_u16() < 400
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_says_how_it_answered_in_either_field() {
        let of = |name: &'static str, value: &'static str| {
            cached(&HeaderMap::from_iter([(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(of("x-cache", "HIT"), Cached::Hit);
        assert_eq!(of("x-cache", "hit from here"), Cached::Hit);
        assert_eq!(of("x-cache", "BYPASS"), Cached::Bypass);
        for (value, expected) in [
            ("HIT-STALE", Cached::Stale),
            ("STALE", Cached::Stale),
            ("HIT-REVALIDATED", Cached::Revalidated),
        ] {
            assert_eq!(of("x-cache", value), expected);
        }
        assert_eq!(
            of("cache-status", "far; hit, near; fwd=uri-miss"),
            Cached::Miss
        );
        assert_eq!(of("cache-status", "near; hit; ttl=3"), Cached::Hit);
        let confirmed = "near; fwd=stale; fwd-status=304";
        assert_eq!(of("cache-status", confirmed), Cached::Revalidated);
        assert_eq!(of("age", "3"), Cached::Unsaid);
    }

    #[test]
    fn a_target_is_a_place_without_a_path() {
        let target = |url: &str| {
            Target::new(url, &[], Version::Http1, None, Duration::from_secs(1))
                .map(|target| target.shown())
        };
        assert_eq!(target("http://[::1]:81/"), Ok("http://[::1]:81".to_owned()));
        assert_eq!(target("http://h"), Ok("http://h".to_owned()));
        for broken in ["h", "ftp://h", "http://h/a", "http://h/?a"] {
            assert!(target(broken).is_err(), "{broken}");
        }
    }
}
