//! What a hit costs in allocations, stated: from the parsed request to its response and body.

#![allow(clippy::expect_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use iris_sidecar::clock::Clock;
use iris_sidecar::config::Config;
use iris_sidecar::metrics::Metrics;
use iris_sidecar::proxy::{Handled, Proxy, Shared};
use iris_sidecar::upstream::{Answer, Origin, OriginBody};

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Fixed;

impl Origin for Fixed {
    fn answer(&self, _: Request<OriginBody>) -> Answer<'_> {
        Box::pin(async {
            let body = Full::new(Bytes::from(vec![b'x'; 1024]))
                .map_err(|never| match never {})
                .boxed_unsync();
            let mut response = Response::new(body);
            for (name, value) in [
                ("server", "nginx/1.22.1"),
                ("date", "Mon, 23 Nov 2026 12:00:00 GMT"),
                ("content-type", "application/json"),
                ("content-length", "1024"),
                ("last-modified", "Mon, 23 Nov 2026 12:00:00 GMT"),
                ("etag", "\"6921a2b0-400\""),
            ] {
                response
                    .headers_mut()
                    .insert(name, value.parse().expect("a field value"));
            }
            Ok(response)
        })
    }
}

fn request() -> Request<Empty<Bytes>> {
    let request = Request::builder()
        .uri("/api/iris/overview?page=1")
        .header("host", "api.example");
    let request = request.header("user-agent", "test").header("accept", "*/*");
    request.body(Empty::new()).expect("a request")
}

#[tokio::test]
async fn a_hit_makes_two_allocations() {
    let text = "[[route]]\npath = \"/api/iris/{project}\"\nforce_ttl = \"1h\"\n";
    let config = Arc::new(Config::parse("test", text, &|_| None).expect("valid"));
    let metrics = Arc::new(Metrics::new());
    let proxy = Proxy::new(
        config,
        metrics,
        Arc::new(Fixed),
        Clock::System,
        Shared::default(),
    );
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    // A response that is asked for often has its fields ready.
    for _ in 0..500 {
        let response = proxy
            .handle(request(), &client.into(), None)
            .await
            .expect("infallible");
        response.into_body().collect().await.expect("a body");
    }
    let asked = request();
    let before = COUNT.get();
    let handled = proxy.handle(asked, &client.into(), None);
    let Handled::Ready(Some(response)) = handled else {
        panic!("a hit waits for nothing");
    };
    let (parts, body) = response.into_parts();
    let mut body = std::pin::pin!(body);
    let frame = body
        .as_mut()
        .frame()
        .await
        .expect("a frame")
        .expect("no failure");
    let count = COUNT.get() - before;
    assert_eq!(parts.headers["x-cache"], "HIT");
    assert_eq!(frame.into_data().expect("data").len(), 1024);
    println!("allocations of one hit: {count}");
    // The two halves of the response's field map; nothing else.
    assert!(count <= 2, "{count} allocations");
}
