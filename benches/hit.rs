//! The hit path from end to end inside the process: the bytes of a request go in, the bytes of its
//! response come out, through hyper's parser and encoder over an in-memory pipe.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use iris_sidecar::clock::Clock;
use iris_sidecar::config::Config;
use iris_sidecar::metrics::Metrics;
use iris_sidecar::proxy::{Handled, Proxy, Shared};
use iris_sidecar::upstream::{Answer, Origin, OriginBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::{Builder, Runtime};

const REQUEST: &[u8] =
    b"GET /1k.json HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

/// An origin with the head of a file server.
struct Files(usize);

impl Origin for Files {
    fn answer(&self, _: Request<OriginBody>) -> Answer<'_> {
        let body = Full::new(Bytes::from(vec![b'x'; self.0]));
        let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
        let headers = response.headers_mut();
        for (name, value) in [
            ("server", "nginx/1.22.1"),
            ("content-type", "application/json"),
            ("last-modified", "Mon, 23 Nov 2026 12:00:00 GMT"),
            ("etag", "\"6921a2b0-400\""),
            ("cache-control", "public, max-age=3600"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.insert("content-length", HeaderValue::from(self.0));
        Box::pin(async { Ok(response) })
    }
}

/// One route for everything, with further keys of its own and before it.
fn proxy(size: usize, before: &str, keys: &str) -> Arc<Proxy> {
    let text = format!("{before}\n[[route]]\npath = \"/{{*rest}}\"\n{keys}\n");
    let config = Config::parse("bench", &text, &|_| None).expect("a valid configuration");
    let metrics = Arc::new(Metrics::new());
    Proxy::new(
        Arc::new(config),
        metrics,
        Arc::new(Files(size)),
        Clock::System,
        Shared::default(),
    )
}

/// Sends one request over the pipe and reads until `length` bytes have come back.
async fn ask(pipe: &mut DuplexStream, length: usize, buffer: &mut Vec<u8>) {
    pipe.write_all(REQUEST).await.expect("the server reads");
    buffer.clear();
    while buffer.len() < length {
        assert!(pipe.read_buf(buffer).await.expect("the server writes") > 0);
    }
}

/// One thread, as a worker is.
fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn parse_to_bytes(criterion: &mut Criterion) {
    eprintln!(
        "What does a hit cost inside the process, from the bytes of a request to those of its \
            response?"
    );
    let mut group = criterion.benchmark_group("hit, parse to bytes");
    for size in [1 << 10, 16 << 10] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("{} KiB", size >> 10), |bencher| {
            let runtime = runtime();
            let proxy = proxy(size, "", "");
            let (mut pipe, theirs) = tokio::io::duplex(1 << 20);
            runtime.spawn(async move {
                let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
                let service =
                    service_fn(move |request| proxy.handle(request, &client.into(), None));
                http1::Builder::new()
                    .serve_connection(TokioIo::new(theirs), service)
                    .await
            });
            let mut buffer = Vec::with_capacity(1 << 20);
            // The miss, then one hit to learn how long a hit is.
            runtime.block_on(async {
                for _ in 0..2 {
                    pipe.write_all(REQUEST).await.expect("the server reads");
                    buffer.clear();
                    while buffer.iter().filter(|byte| **byte == b'x').count() < size {
                        pipe.read_buf(&mut buffer).await.expect("the server writes");
                    }
                }
            });
            let length = buffer.len();
            bencher.iter(|| runtime.block_on(ask(&mut pipe, length, &mut buffer)));
        });
    }
    group.finish();
}

/// Request to response, in the process: as it is, with a key that is verified, and counted by two
/// limits that none of these requests reaches.
fn handle_alone(criterion: &mut Criterion) {
    const LIMITS: &str = "[[rate_limit]]\nby = \"address\"\nrequests = 1000000000\nwindow \
        = \"1h\"\n[[rate_limit]]\nby = \"key\"\nrequests = 1000000000\nwindow = \"1h\"\n";
    let mut group = criterion.benchmark_group("hit, request to response");
    for (name, before, keys) in [
        ("standard", "", ""),
        ("per-key", "", "share = \"per-key\""),
        ("verified", "", "share = \"verified\""),
        ("limited", LIMITS, ""),
    ] {
        let (runtime, proxy) = (runtime(), proxy(1 << 10, before, keys));
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let request = || {
            let request = Request::builder()
                .uri("/1k.json")
                .header("host", "127.0.0.1:8080")
                .header("user-agent", "bench")
                .header(
                    "authorization",
                    "Bearer sk_live_ZLpB5hg4M1DHhwpuPNlCdjTTVLdsBXjt8SWD-8Wlsgg",
                );
            let request = request.header("accept", "*/*");
            request.body(Full::new(Bytes::new())).expect("a request")
        };
        runtime.block_on(async {
            let response = proxy
                .handle(request(), &client.into(), None)
                .await
                .expect("infallible");
            response.into_body().collect().await.expect("a body");
        });
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                request,
                |request| match proxy.handle(request, &client.into(), None) {
                    Handled::Ready(response) => response,
                    Handled::Later(_) => panic!("a hit waits for nothing"),
                },
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, parse_to_bytes, handle_alone);
criterion_main!(benches);
