//! hyper alone on one thread, answering every request with one fixed response whose head is that
//! of a cache hit: the ceiling against which `benches/peers/run` measures.
//!
//! `bare_hyper PORT`; the path `/16k.json` is 16 KiB long, and so on.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// The head of a hit on an nginx origin, as the sidecar sends it.
const HEAD: [(&str, &str); 9] = [
    ("server", "nginx/1.22.1"),
    ("content-type", "application/json"),
    ("last-modified", "Mon, 23 Nov 2026 12:00:00 GMT"),
    ("etag", "\"6921a2b0-400\""),
    ("cache-control", "public, max-age=3600"),
    ("via", "1.1 iris-sidecar"),
    ("age", "7"),
    ("x-cache", "HIT"),
    ("cache-status", "iris-sidecar; hit; ttl=3593"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args()
        .nth(1)
        .ok_or("usage: bare_hyper PORT")?
        .parse()?;
    let body = |kib: usize| Bytes::from(vec![b'x'; kib << 10]);
    let bodies = [body(1), body(16), body(256)];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let bodies = bodies.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let at = match request.uri().path() {
                    "/16k.json" => 1,
                    "/256k.json" => 2,
                    _ => 0,
                };
                let mut response = Response::new(Full::new(bodies[at].clone()));
                for (name, value) in HEAD {
                    response
                        .headers_mut()
                        .insert(name, HeaderValue::from_static(value));
                }
                async move { Ok::<_, Infallible>(response) }
            });
            let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    })
}
