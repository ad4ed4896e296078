//! `bench` and `load-test` as a user runs them, against targets whose latencies are known.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::process::{binary, file};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

/// A target that answers each request after a time of its own.
struct Known {
    address: SocketAddr,
    asked: Arc<AtomicU64>,
    serving: tokio::task::JoinHandle<()>,
}

impl Known {
    /// `answer` gives the status of the request of this number, from 0, and how long it takes.
    async fn start(answer: impl Fn(u64) -> (u16, Duration) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicU64::new(0));
        let (count, answer) = (asked.clone(), Arc::new(answer));
        let serving = tokio::spawn(async move {
            // Ends with this task.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (count, answer) = (count.clone(), answer.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let number = count.fetch_add(1, Ordering::SeqCst);
                    let (status, takes) = answer(number);
                    async move {
                        tokio::time::sleep(takes).await;
                        let cache = if request.method() == "GET" {
                            "HIT"
                        } else {
                            "BYPASS"
                        };
                        let response = Response::builder()
                            .status(status)
                            .header("x-cache", cache)
                            .body(Full::new(Bytes::from_static(b"0123456789")));
                        Ok::<_, Infallible>(response.unwrap())
                    }
                });
                connections
                    .spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            address,
            asked,
            serving,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = binary();
    command
        .args(arguments)
        .env_remove("BENCHMARK_URL")
        .env_remove("IRIS_ADMIN_URL")
        .env_remove("LOAD_TEST_URL");
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    let Output {
        status,
        stdout,
        stderr,
    } = running.await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_benchmark_finds_latencies_that_are_known_and_judges_by_them() {
    // Nine of ten take 20 ms, one takes 60.
    let target = Known::start(|number| (200, millis(if number % 10 == 9 { 60 } else { 20 }))).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (json, html, prometheus) = (path("r.json"), path("r.html"), path("r.prom"));
    let url = target.url();
    let mut arguments = vec![
        "bench",
        "--url",
        &url,
        "--sequential",
        "40",
        "--concurrent",
        "40",
    ];
    arguments.extend([
        "--json",
        &json,
        "--html",
        &html,
        "--prometheus",
        &prometheus,
    ]);
    // One after another it cannot be as fast as that.
    arguments.extend(["--throughput", "none"]);
    let (status, out, error) = run(&arguments).await;
    assert_eq!(status, Some(0), "{out}{error}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let total = &report["total"];
    // Whether it is Iris; ten of warm-up, forty and forty, of five endpoints.
    assert_eq!(target.asked.load(Ordering::SeqCst), 451);
    assert_eq!(
        (&total["requests"], &total["errors"]),
        (&400.into(), &0.into())
    );
    assert_eq!(total["bytes"], 4000);
    assert_eq!(total["hit_rate"], 1.0);
    // A timer is late rather than early, and a machine that runs all tests more so.
    let figure = |name: &str| total[name].as_f64().unwrap();
    assert!((20.0..40.0).contains(&figure("p50")), "{total}");
    assert!((60.0..100.0).contains(&figure("p99")), "{total}");
    assert!((60.0..150.0).contains(&figure("max")), "{total}");
    assert!((20.0..30.0).contains(&figure("min")), "{total}");
    assert!(out.contains("p95        < 150 ms"), "{out}");
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(
        page.contains("<svg") && !page.contains("<script"),
        "{page:.300}"
    );
    assert!(
        std::fs::read_to_string(&prometheus)
            .unwrap()
            .contains("load_hit_ratio")
    );
    // Other targets, which it misses; and one that is left out.
    let (status, out, _) = run(&[&arguments[..], &["--p99", "50"]].concat()).await;
    assert_eq!(status, Some(1), "{out}");
    assert!(out.contains("< 50 ms") && out.contains("missed"), "{out}");
    assert!(!out.contains("≥"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_by_status_and_by_cause() {
    let target = Known::start(|number| match number % 4 {
        3 => (500, millis(0)),
        _ => (200, millis(0)),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let scenario = file(
        folder.path(),
        "[[stage]]\nlasts = \"1s\"\nusers = 3\n[[request]]\npath = \"/a\"\n",
    );
    let json = folder.path().join("r.json").to_str().unwrap().to_owned();
    let url = target.url();
    let (status, out, _) = run(&["load-test", &scenario, "--url", &url, "--json", &json]).await;
    assert_eq!(status, Some(1), "{out}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let rate = report["total"]["error_rate"].as_f64().unwrap();
    assert!((rate - 0.25).abs() < 0.02, "{rate}");
    assert!(report["total"]["statuses"]["500"].as_u64().unwrap() > 0);
    // Nobody there at all: nothing can be measured.
    target.serving.abort();
    let _ = target.serving.await;
    for command in ["bench", "load-test"] {
        let mut arguments = vec![command];
        if command == "load-test" {
            arguments.push("smoke");
        }
        arguments.extend(["--url", &url]);
        let (status, _, error) = run(&arguments).await;
        assert_eq!(status, Some(2), "{error}");
        assert!(error.contains("does it run?"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_dies_half_way_is_reported_and_not_waited_for() {
    let target = Known::start(|_| (200, millis(1))).await;
    let folder = tempfile::tempdir().unwrap();
    let scenario = file(
        folder.path(),
        "[[stage]]\nlasts = \"2s\"\nusers = 4\n[[request]]\npath = \"/a\"\n",
    );
    let json = folder.path().join("r.json").to_str().unwrap().to_owned();
    let url = target.url();
    let dying = {
        let (asked, serving) = (target.asked.clone(), target.serving);
        tokio::spawn(async move {
            while asked.load(Ordering::SeqCst) < 200 {
                tokio::task::yield_now().await;
            }
            serving.abort();
        })
    };
    let (status, out, _) = run(&["load-test", &scenario, "--url", &url, "--json", &json]).await;
    dying.await.unwrap();
    assert_eq!(status, Some(1), "{out}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert!(
        report["total"]["statuses"]["200"].as_u64().unwrap() >= 190,
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_model_does_not_hide_how_long_callers_would_wait() {
    // The target stops for half a second, once; a request was due every 10 ms meanwhile.
    let stall = std::sync::Mutex::new(None::<std::time::Instant>);
    let target = Known::start(move |number| {
        let mut stall = stall.lock().unwrap();
        if number == 50 {
            *stall = Some(std::time::Instant::now() + millis(500));
        }
        let left = stall.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(std::time::Instant::now())
        });
        (200, left)
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let scenario = file(
        folder.path(),
        "model = \"open\"\n[[stage]]\nlasts = \"2s\"\nrate = 100\n[[request]]\npath = \"/a\"\n",
    );
    let json = folder.path().join("r.json").to_str().unwrap().to_owned();
    let url = target.url();
    run(&["load-test", &scenario, "--url", &url, "--json", &json]).await;
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let total = &report["total"];
    let requests = total["requests"].as_u64().unwrap();
    assert!((190..=201).contains(&requests), "{requests}");
    // Of 200 requests 50 waited, 250 ms on average: the 90th percentile is among them.
    let p90 = total["p90"].as_f64().unwrap();
    assert!((150.0..600.0).contains(&p90), "{total}");
    assert!(report["model"].as_str().unwrap().contains("was due"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_with_the_report_of_what_was_run() {
    let target = Known::start(|_| (200, millis(1))).await;
    let mut command = binary();
    let url = target.url();
    command
        .args(["load-test", "load", "--url", &url])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null());
    let child = command.spawn().unwrap();
    while target.asked.load(Ordering::SeqCst) < 3 {
        tokio::task::yield_now().await;
    }
    let id = child.id().to_string();
    let killed = std::process::Command::new("kill")
        .args(["-INT", &id])
        .status();
    assert!(killed.unwrap().success());
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let ended = ended.await.unwrap();
    let out = String::from_utf8(ended.stdout).unwrap();
    assert!(out.contains("ended before its time"), "{out}");
    assert_eq!(ended.status.code(), Some(0), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_targets_are_compared_in_one_run_and_a_report_with_an_earlier_one() {
    let slow = Known::start(|_| (200, millis(40))).await;
    let fast = Known::start(|_| (200, millis(10))).await;
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("r.json").to_str().unwrap().to_owned();
    let (slow_url, fast_url) = (slow.url(), fast.url());
    let few = [
        "--sequential",
        "20",
        "--concurrent",
        "20",
        "--throughput",
        "none",
    ];
    fn bench<'a>(few: &[&'a str], arguments: &[&'a str]) -> Vec<&'a str> {
        [&["bench"], few, arguments].concat()
    }
    let compare = bench(&few, &["--url", &fast_url, "--compare", &slow_url]);
    let (status, out, error) = run(&compare).await;
    assert_eq!(status, Some(0), "{out}{error}");
    assert!(out.contains("asked in turn"), "{out}");
    let line = out
        .lines()
        .find(|line| line.trim_start().starts_with("p50"))
        .unwrap();
    // p50, and both figures with their units.
    let words: Vec<&str> = line.split_whitespace().collect();
    let ratio: f64 = words[5].parse().unwrap();
    assert!((0.2..0.5).contains(&ratio), "{line}");
    assert!(
        line.ends_with('↓') || line.trim_end().ends_with('↓'),
        "{line}"
    );
    // Each was asked as often, and the one that is measured once more: whether it is Iris.
    let count = |target: &Known| target.asked.load(Ordering::SeqCst);
    assert_eq!(count(&slow) + 1, count(&fast));
    // Against itself nothing is worse; the slow one is, against the fast one's report.
    let (status, _, _) = run(&bench(&few, &["--url", &fast_url, "--json", &json])).await;
    assert_eq!(status, Some(0));
    let patient = ["--url", &fast_url, "--against", &json, "--threshold", "100"];
    let (status, out, _) = run(&bench(&few, &patient)).await;
    assert_eq!(status, Some(0), "{out}");
    let (status, out, _) = run(&bench(&few, &["--url", &slow_url, "--against", &json])).await;
    assert_eq!(status, Some(1), "{out}");
    assert!(
        out.contains("worse by more than 10 % and than noise: p50"),
        "{out}"
    );
    let (status, _, error) = run(&bench(
        &few,
        &["--url", &fast_url, "--against", "/no/such/file"],
    ))
    .await;
    assert_eq!(status, Some(2));
    assert!(error.contains("cannot be read"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_a_sidecar_is_reported_where_its_admin_port_is_given() {
    let fixture = crate::support::Fixture::start(&crate::support::route("ttl = \"60s\""), |seen| {
        crate::support::numbered(seen, &[])
    })
    .await;
    let url = format!("http://{}", fixture.sidecar().address);
    let admin = format!("http://{}", fixture.sidecar().admin_address);
    let arguments = [
        "bench",
        "--url",
        &url,
        "--admin",
        &admin,
        "--sequential",
        "30",
        "--concurrent",
        "30",
    ];
    let (status, out, error) = run(&arguments).await;
    assert_eq!(status, Some(0), "{out}{error}");
    assert!(out.contains("memory of the target"), "{out}");
    // Four GETs of the five endpoints, of which the first of each filled the cache in the warm-up.
    assert!(out.contains("100.00 %"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_and_the_sidecars_own_configuration_says_where() {
    let fixture = crate::support::Fixture::start(&crate::support::route("ttl = \"60s\""), |seen| {
        crate::support::numbered(seen, &[])
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = fixture.sidecar();
    let config = file(
        folder.path(),
        &format!(
            "[listen]\naddress = \"{}\"\n[admin]\naddress = \"{}\"\n",
            sidecar.address, sidecar.admin_address
        ),
    );
    let few = ["--sequential", "30", "--concurrent", "30", "--http2"];
    let arguments = [&["bench", "--config", &config], &few[..]].concat();
    let (status, out, error) = run(&arguments).await;
    assert_eq!(status, Some(0), "{out}{error}");
    assert!(out.contains("memory of the target"), "{out}");
    assert!(out.contains("200: 300"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_with_roots_that_are_named_and_failures_say_what_failed() {
    let certificate = crate::support::certificate::Certificate::of("127.0.0.1");
    let read = |path: String| std::fs::read(path).unwrap();
    use rustls::pki_types::pem::PemObject;
    let chain =
        vec![rustls::pki_types::CertificateDer::from_pem_slice(&read(certificate.path())).unwrap()];
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(&read(certificate.key())).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(async |_: Request<Incoming>| {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
                });
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                let _ = serving.await;
            });
        }
    });
    let few = [
        "--sequential",
        "10",
        "--concurrent",
        "10",
        "--throughput",
        "none",
    ];
    let roots = certificate.path();
    let trusting = [&["bench", "--url", &url, "--ca-file", &roots], &few[..]].concat();
    let (status, out, error) = run(&trusting).await;
    assert_eq!(status, Some(0), "{out}{error}");
    let (status, _, error) = run(&[&["bench", "--url", &url], &few[..]].concat()).await;
    assert_eq!(status, Some(2));
    assert!(error.contains("--ca-file"), "{error}");
    let nowhere = ["bench", "--url", "http://no-such-host.invalid"];
    let (status, _, error) = run(&nowhere).await;
    assert_eq!(status, Some(2));
    assert!(error.contains("does not resolve"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_well_a_rate_limit_holds_is_judged_where_that_is_asked_for() {
    let limited = |requests: u32| {
        format!(
            "[[rate_limit]]\nby = \"address\"\nrequests = {requests}\nwindow = \"1h\"\n{}",
            crate::support::route("ttl = \"60s\"")
        )
    };
    for (requests, expected) in [(300, Some(0)), (330, Some(1))] {
        let fixture = crate::support::Fixture::start(&limited(requests), |seen| {
            crate::support::numbered(seen, &[])
        })
        .await;
        let url = format!("http://{}", fixture.sidecar().address);
        let (status, out, error) = run(&["bench", "--url", &url, "--rate-limit", "300"]).await;
        assert_eq!(status, expected, "{out}{error}");
        assert!(out.contains("rate limit"), "{out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_of_ones_own_is_measured_by_what_is_named() {
    // It is not Iris, and knows its callers by a key.
    let fixture = crate::support::Fixture::start(&crate::support::route("ttl = \"60s\""), |seen| {
        let knows = seen.header("authorization") == Some("Bearer one");
        match seen.target.split('?').next() {
            Some("/api/products" | "/api/search") => {
                crate::support::reply(200, if knows { "yes" } else { "no" }, &[])
            }
            Some("/api/orders") if seen.method == "POST" => crate::support::reply(201, "", &[]),
            _ => crate::support::reply(404, "", &[]),
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://{}", fixture.sidecar().address);
    let admin = format!("http://{}", fixture.sidecar().admin_address);
    let bench = async |arguments: &[&str]| {
        let few = [
            "bench",
            "--url",
            &url,
            "--sequential",
            "10",
            "--concurrent",
            "10",
        ];
        let none = [
            "--throughput",
            "none",
            "--p95",
            "none",
            "--p99",
            "none",
            "--error-rate",
            "none",
        ];
        run(&[&few[..], &none, arguments].concat()).await
    };
    // Without a word it says that this is another API, and what to do.
    let (status, _, error) = bench(&[]).await;
    assert_eq!(status, Some(2), "{error}");
    for word in ["404", "/api/iris/overview", "--requests", "--discover"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "one\n").unwrap();
    let (json, keys) = (folder.path().join("r.json"), keys.to_str().unwrap());
    let json = json.to_str().unwrap();
    let report =
        || -> Value { serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap() };
    let paths = ["/api/products", "/api/search?q={{n}}", "POST /api/orders"];
    let with = ["--json", json, "--api-key-file", keys];
    let (status, out, error) = bench(&[&paths[..], &with].concat()).await;
    assert_eq!(status, Some(0), "{out}{error}");
    assert_eq!(report()["total"]["statuses"]["200"], 40);
    assert_eq!(report()["total"]["statuses"]["201"], 20);
    assert!(error.contains("3/3 POST /api/orders"), "{error}");
    // A report of other requests is nothing to compare with; and a rate of few is not judged.
    let (status, _, error) = bench(&["/api/products", "--against", json]).await;
    assert_eq!(status, Some(2), "{error}");
    assert!(error.contains("/api/orders"), "{error}");
    let (_, out, _) = bench(&["/api/products", "--hit-rate", "80"]).await;
    assert!(out.contains("not judged: 20 GETs"), "{out}");
    let seen = fixture.origin.seen();
    assert!(
        seen.iter()
            .any(|seen| seen.header("authorization") == Some("Bearer one"))
    );
    // By a file, with weights.
    let requests = file(
        folder.path(),
        "[[request]]\npath = \"/api/products\"\nweight = 3\n[[request]]\npath \
            = \"/api/orders\"\nmethod = \"POST\"\n",
    );
    let (status, out, error) = bench(&["--requests", &requests, "--json", json]).await;
    assert_eq!(status, Some(0), "{out}{error}");
    let endpoints = report()["endpoints"].clone();
    assert_eq!(
        (&endpoints[0]["requests"], &endpoints[1]["requests"]),
        (&30.into(), &10.into())
    );
    // By what was asked for most.
    let (status, out, error) = bench(&["--discover", "--admin", &admin, "--json", json]).await;
    assert_eq!(status, Some(0), "{out}{error}");
    assert_eq!(report()["endpoints"][0]["name"], "/api/products");
    // Two sides of one thing: both tables, in the page too.
    let html = folder.path().join("r.html").to_str().unwrap().to_owned();
    let (status, out, error) = bench(&["/api/products", "--compare", &url, "--html", &html]).await;
    assert_eq!(status, Some(0), "{out}{error}");
    assert!(
        std::fs::read_to_string(&html)
            .unwrap()
            .contains("Before and after")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_or_read_is_said_before_anything_is_measured() {
    let target = Known::start(|_| (200, millis(0))).await;
    let folder = tempfile::tempdir().unwrap();
    let url = target.url();
    let scenario = file(
        folder.path(),
        "[[stage]]\nlasts = \"soon\"\nusers = 1\n[[request]]\npath = \"a\"\n",
    );
    let json = folder.path().join("new.json");
    let new = json.to_str().unwrap();
    for arguments in [
        &[
            "bench",
            "--url",
            &url,
            "--html",
            "/no/such/folder/r.html",
            "--json",
            new,
        ][..],
        &[
            "bench",
            "--url",
            &url,
            "--api-key-file",
            "/no/such/file",
            "--json",
            new,
        ],
        &["bench", "--url", &url, "--requests", "/no/such/file"],
        &["bench", "--url", &url, "--discover"],
        &["bench", "--url", &url, "products"],
        &[
            "load-test",
            "smoke",
            "--url",
            &url,
            "--prometheus",
            "/no/such/folder/r",
        ],
        &["load-test", &scenario, "--url", &url],
    ] {
        let (status, _, error) = run(arguments).await;
        assert_eq!(status, Some(2), "{arguments:?}: {error}");
    }
    assert_eq!(target.asked.load(Ordering::SeqCst), 0);
    assert!(!json.exists());
    // All that is wrong with it, at once.
    let (_, _, error) = run(&["load-test", &scenario, "--url", &url]).await;
    assert!(
        error.contains("iris.toml:2:") && error.contains("iris.toml:5:"),
        "{error}"
    );
}
