//! Before and after, by the requirements' own load mix: an origin that takes 180 ms for what it
//! asks its database, directly and through the sidecar, in one run; see `benches/before-after/run`.
//!
//! With `INVALIDATION=adaptive` a read after an isolated write is looked at too: by each key, it
//! must show what was written. `QUERY_MS`, `KEYS` and `WRITES` (their share of the mix, in percent)
//! are others then.
//!
//! Exit status 1 where an aim is missed.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use iris_sidecar::config::Config;
use iris_sidecar::load::client::{Target, Version};
use iris_sidecar::load::plan::{Endpoint, Model, Scenario, Stage, requirements_mix};
use iris_sidecar::load::record::{Record, Sums};
use iris_sidecar::load::run::run;
use iris_sidecar::process::Sidecar;
use tokio::net::TcpListener;

/// For all that an answer needs of the database, in milliseconds.
const QUERY_MS: u64 = 180;

/// Queries about the key, of every request (requirements, "How the deployed origin misbehaves").
const KEY_QUERIES: u64 = 3;

/// As the deployed API: routes of its own, soft invalidation by every write.
const ROUTES: &str = r#"
[listen]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
[[route]]
path = "/api/iris/overview"
force_ttl = "30s"
stale_while_revalidate = "120s"
share = "verified"
groups = ["all"]
[[route]]
path = "/api/iris/{rest}"
force_ttl = "30s"
stale_while_revalidate = "120s"
share = "per-key"
groups = ["all"]
[[route]]
path = "/api/iris/telemetry"
methods = ["POST"]
invalidates = ["all"]
invalidation = "INVALIDATION"
"#;

/// The keys that the API knows.
fn keys(count: u64) -> Vec<String> {
    let key = |number| format!("sk_live_before_and_after_{number:010}");
    (0..count).map(key).collect()
}

/// Queries of its own that an endpoint makes.
fn queries(path: &str) -> u64 {
    match path.rsplit('/').next() {
        Some("overview" | "analytics") => 4,
        Some("events" | "reflexion") => 2,
        _ => 1,
    }
}

/// Its answers say how often it was written to.
async fn origin(counted: Arc<AtomicU64>, query: Duration) -> SocketAddr {
    let written = Arc::new(AtomicU64::new(0));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            let _ = stream.set_nodelay(true);
            let (counted, written) = (Arc::clone(&counted), Arc::clone(&written));
            let service = service_fn(move |request: Request<Incoming>| {
                let (counted, written) = (Arc::clone(&counted), Arc::clone(&written));
                async move {
                    let (parts, body) = request.into_parts();
                    let _ = body.collect().await;
                    counted.fetch_add(KEY_QUERIES + queries(parts.uri.path()), Ordering::Relaxed);
                    let known = keys(100);
                    let given = parts.headers.get("authorization");
                    let given = given
                        .and_then(|value| value.to_str().ok())
                        .unwrap_or_default();
                    let is_known = known.iter().any(|key| given.ends_with(key.as_str()));
                    tokio::time::sleep(query).await;
                    let status = match parts.method {
                        _ if !is_known => 401,
                        Method::POST => 201,
                        _ => 200,
                    };
                    let writes = match status {
                        201 => written.fetch_add(1, Ordering::SeqCst) + 1,
                        _ => written.load(Ordering::SeqCst),
                    };
                    let data = "x".repeat(4000);
                    let body =
                        format!("{{\"success\":true,\"writes\":{writes},\"data\":\"{data}\"}}");
                    let response = Response::builder()
                        .status(status)
                        .header("content-type", "application/json")
                        .header("cache-control", "public, max-age=0, must-revalidate")
                        .body(Full::new(Bytes::from(body)));
                    Ok::<_, Infallible>(response.expect("a response"))
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// One side, measured on a thread of its own.
fn measured(url: String, scenario: Scenario, keys: &[String]) -> Record {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let patience = Duration::from_secs(30);
    let target = Target::new(&url, keys, Version::Http1, None, patience).expect("a target");
    runtime.block_on(run(
        Rc::new(target),
        &scenario,
        1,
        std::future::pending(),
        |_| {},
    ))
}

/// All GETs, and all POSTs.
fn split(record: &Record, scenario: &Scenario) -> (Sums, Sums) {
    let (mut gets, mut posts) = (Sums::default(), Sums::default());
    for (endpoint, sums) in scenario.endpoints.iter().zip(&record.by_endpoint) {
        match endpoint.method {
            Method::GET => gets.merge(sums),
            _ => posts.merge(sums),
        }
    }
    (gets, posts)
}

/// What each key reads of the overview after one write, and whether that shows it.
async fn reads_after_a_write(address: SocketAddr, keys: &[String]) -> bool {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ask = async |method: Method, path: &str, key: &str| {
        let stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("it listens");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("a connection");
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "bench.example")
            .header("authorization", format!("Bearer {key}"))
            .body(Full::new(Bytes::new()))
            .expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        let body = answer
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        body["writes"].as_u64().expect("a number")
    };
    let mut seen = true;
    for path in ["/api/iris/overview", "/api/iris/analytics"] {
        for key in keys {
            ask(Method::GET, path, key).await;
        }
    }
    for round in 0..3 {
        let writer = &keys[round % keys.len()];
        let written = ask(Method::POST, "/api/iris/telemetry", writer).await;
        for path in ["/api/iris/overview", "/api/iris/analytics"] {
            for key in keys.iter().rev() {
                seen &= ask(Method::GET, path, key).await == written;
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    seen
}

/// Clients that keep what they were given and ask whether it still holds, as browsers do: so many
/// polls of the overview each, and every hundredth is a write. Bytes of the bodies that they are
/// sent, a poll.
async fn polled(address: SocketAddr, key: &str, clients: usize, polls: usize) -> f64 {
    let mut connections = Vec::new();
    for _ in 0..clients {
        let stream = tokio::net::TcpStream::connect(address).await;
        let stream = TokioIo::new(stream.expect("it listens"));
        let (sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .expect("a connection");
        tokio::spawn(connection);
        connections.push((sender, None));
    }
    let mut bytes = 0;
    for poll in 0..polls {
        for (number, (sender, known)) in connections.iter_mut().enumerate() {
            let asks = (poll * clients + number) % 100 != 99;
            let mut request = Request::builder()
                .method(if asks { Method::GET } else { Method::POST })
                .uri(if asks {
                    "/api/iris/overview"
                } else {
                    "/api/iris/telemetry"
                })
                .header("host", "bench.example")
                .header("authorization", format!("Bearer {key}"));
            if let Some(tag) = known.as_ref().filter(|_| asks) {
                request = request.header("if-none-match", tag);
            }
            let request = request.body(Full::new(Bytes::new())).expect("a request");
            let answer = sender.send_request(request).await.expect("an answer");
            if let Some(tag) = answer.headers().get("etag").filter(|_| asks) {
                *known = Some(tag.clone());
            }
            let body = answer.into_body().collect().await.expect("a body");
            bytes += if asks { body.to_bytes().len() } else { 0 };
        }
    }
    bytes as f64 / (clients * polls) as f64
}

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The requirements' mix, with so many writes in a hundred requests.
fn mix(writes: u64) -> Vec<Endpoint> {
    let mut mix = requirements_mix();
    let reads: u32 = mix
        .iter()
        .filter(|endpoint| endpoint.method == Method::GET)
        .map(|endpoint| endpoint.weight)
        .sum();
    for endpoint in &mut mix {
        endpoint.weight = match endpoint.method {
            Method::GET => endpoint.weight * (100 - writes as u32),
            _ => writes as u32 * reads,
        };
    }
    mix
}

fn main() -> ExitCode {
    eprintln!(
        "What becomes of a slow API's latency, queries and bytes when the sidecar stands before it?"
    );
    let (seconds, users) = (number("SECONDS_EACH", 30), number("USERS", 20));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let query = Duration::from_millis(number("QUERY_MS", QUERY_MS));
    let keys = keys(number("KEYS", 1).clamp(1, 100));
    let invalidation = std::env::var("INVALIDATION").unwrap_or_else(|_| "soft".to_owned());
    let is_adaptive = invalidation == "adaptive";
    let counted = Arc::new(AtomicU64::new(0));
    let address = runtime.block_on(origin(Arc::clone(&counted), query));
    let routes = ROUTES.replace("INVALIDATION", &invalidation);
    let text = format!("[upstream]\nurl = \"http://{address}\"\n{routes}");
    let config = Config::parse("bench", &text, &|_| None).expect("it is valid");
    let sidecar = Sidecar::start(config).expect("it starts");
    let scenario = Scenario {
        name: "the load mix without thinking".to_owned(),
        model: Model::Closed {
            think: (Duration::ZERO, Duration::ZERO),
        },
        stages: vec![Stage {
            lasts: Duration::from_secs(seconds),
            to: users as f64,
        }],
        endpoints: mix(number("WRITES", 15)),
    };
    let side = |url: String| {
        let before = counted.load(Ordering::Relaxed);
        let record = measured(url, scenario.clone(), &keys);
        let queries = counted.load(Ordering::Relaxed) - before;
        let requests = record.total().requests.max(1);
        (record, queries as f64 / requests as f64)
    };
    let (direct, direct_queries) = side(format!("http://{address}"));
    let (through, through_queries) = side(format!("http://{}", sidecar.address));
    let (direct_gets, direct_posts) = split(&direct, &scenario);
    let (gets, posts) = split(&through, &scenario);

    let quantile = |sums: &Sums, part| sums.latencies.quantile(part).unwrap_or(f64::NAN);
    let rate = |sums: &Sums| sums.hit_rate().unwrap_or(0.0) * 100.0;
    let (rate_before, rate_after) = (direct.throughput(), through.throughput());
    println!("{users} users, {seconds} s a side; the claim beside what was measured");
    println!("                         claim           measured (GETs)");
    let row = |name: &str, claim: &str, before: f64, after: f64| {
        println!(
            "{name:20} {claim:>15}   {before:9.2} → {after:9.2}   {:+.0} %",
            (after / before - 1.0) * 100.0
        );
    };
    for (name, claim, part) in [
        ("p95, ms", "280 → 95", 0.95),
        ("p99, ms", "420 → 150", 0.99),
    ] {
        row(
            name,
            claim,
            quantile(&direct_gets, part),
            quantile(&gets, part),
        );
    }
    println!(
        "{:20} {:>15}   {:9.2} → {:9.2}",
        "hit rate, %",
        "18 → 92",
        rate(&direct_gets),
        rate(&gets)
    );
    row("throughput, req/s", "45 → 125", rate_before, rate_after);
    row("queries a request", "–", direct_queries, through_queries);
    let posted = |sums: &Sums| quantile(sums, 0.95);
    row("POST p95, ms", "–", posted(&direct_posts), posted(&posts));
    // Of the GETs alone: what writes cost is theirs.
    let get_queries = through_queries * through.total().requests as f64
        - posts.requests as f64 * (KEY_QUERIES + 1) as f64;
    let direct_get_queries = direct_queries * direct.total().requests as f64
        - direct_posts.requests as f64 * (KEY_QUERIES + 1) as f64;
    let each = |queries: f64, sums: &Sums| queries / sums.requests.max(1) as f64;
    let (before, after) = (
        each(direct_get_queries, &direct_gets),
        each(get_queries, &gets),
    );
    row("queries a GET", "-70 %", before, after);
    let polls = (10, (seconds as usize).min(20));
    let polled = |address| runtime.block_on(polled(address, &keys[0], polls.0, polls.1));
    row(
        "bytes a poll",
        "-40 %",
        polled(address),
        polled(sidecar.address),
    );

    let mut aims = vec![
        ("GETs: p95 under 5 ms", quantile(&gets, 0.95) < 5.0),
        ("GETs: p99 under 190 ms", quantile(&gets, 0.99) < 190.0),
        ("GETs: hit rate over 97 %", rate(&gets) > 97.0),
        ("GETs: queries -95 %", after < before * 0.05),
        (
            "throughput at least 5 times",
            rate_after >= rate_before * 5.0,
        ),
        (
            "POST p95 at most 2 ms over direct",
            posted(&posts) <= posted(&direct_posts) + 2.0,
        ),
        ("no error", through.total().errors == 0),
    ];
    if is_adaptive {
        let shows = runtime.block_on(reads_after_a_write(sidecar.address, &keys));
        aims = vec![
            ("GETs: p95 under 10 ms", quantile(&gets, 0.95) < 10.0),
            ("GETs: hit rate over 95 %", rate(&gets) > 95.0),
            (
                "a read after an isolated write sees it, whoever reads",
                shows,
            ),
            ("no error", through.total().errors == 0),
        ];
    }
    for (aim, is_met) in &aims {
        println!("{:6} {aim}", if *is_met { "met" } else { "MISSED" });
    }
    sidecar.drain();
    sidecar.join();
    if aims.iter().all(|(_, is_met)| *is_met) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
