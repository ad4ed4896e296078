//! The cache against a reference: histories of requests and answers, made up by proptest, must end
//! the same way in both, byte for byte and question for question.

mod kept;
mod reference;
mod world;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use iris_sidecar::clock::{Clock, Timestamp};
use iris_sidecar::config::Config;
use iris_sidecar::error::{Failure, FailureKind};
use iris_sidecar::metrics::Metrics;
use iris_sidecar::proxy::{Proxy, Shared};
use iris_sidecar::upstream::{Answer, Origin, OriginBody};
use proptest::prelude::*;
use proptest::test_runner::{Config as Histories, TestRunner};

use kept::Rules;
use reference::{Reference, SHOWN, Seen};
use world::{Ask, Fields, Heard, Plan, written};

/// When histories begin; a whole second.
const START: u64 = 1_800_000_000;

#[derive(Clone, Debug)]
struct Step {
    pause: u64,
    ask: Ask,
    plan: Plan,
}

struct Planned {
    plan: Mutex<Option<Plan>>,
    heard: Mutex<Vec<Heard>>,
    clock: Clock,
}

impl Origin for Planned {
    fn answer(&self, request: Request<OriginBody>) -> Answer<'_> {
        let text = |name: &str| {
            let value = request.headers().get(name);
            value.map(|value| value.to_str().expect("ASCII").to_owned())
        };
        let heard = Heard {
            method: request.method().to_string(),
            if_none_match: text("if-none-match"),
            if_modified_since: text("if-modified-since"),
            range: text("range"),
        };
        self.heard.lock().unwrap().push(heard.clone());
        let plan = self.plan.lock().unwrap().clone().expect("a plan");
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.clock.advance(Duration::from_secs(plan.delay));
            let Some(answer) = plan.answer(&heard) else {
                let message = "the origin fails";
                return Err(Failure::new(FailureKind::ConnectionClosed, message));
            };
            let length = answer.body.len();
            let body = Full::new(Bytes::from(answer.body)).map_err(|never| match never {});
            let mut response = Response::new(body.boxed_unsync());
            *response.status_mut() = answer.status.try_into().expect("a status");
            for (name, value) in answer.fields {
                let value = value.parse().expect("a field value");
                response.headers_mut().insert(name, value);
            }
            if answer.status != 304 && heard.method != "HEAD" {
                response
                    .headers_mut()
                    .insert("content-length", length.into());
            }
            Ok(response)
        })
    }
}

/// The cache under test.
struct Cache {
    proxy: Arc<Proxy>,
    origin: Arc<Planned>,
    clock: Clock,
}

impl Cache {
    fn new(route: &str) -> Self {
        let text = format!(
            "[cache]\nmemory = \"8MiB\"\nmax_object = \"64KiB\"\nhit_for_miss \
                = \"0s\"\netag_up_to = \"0B\"\n\
             [[route]]\npath = \"/{{*rest}}\"\n{route}\n"
        );
        let config = Config::parse("test", &text, &|_| None).expect("valid");
        let clock = Clock::manual(Timestamp::from_millis(START * 1000));
        let origin = Arc::new(Planned {
            plan: Mutex::default(),
            heard: Mutex::default(),
            clock: clock.clone(),
        });
        let metrics = Arc::new(Metrics::new());
        let answers: Arc<dyn Origin> = origin.clone();
        let proxy = Proxy::new(
            Arc::new(config),
            metrics,
            answers,
            clock.clone(),
            Shared::default(),
        );
        Self {
            proxy,
            origin,
            clock,
        }
    }

    fn now(&self) -> u64 {
        self.clock.now().as_secs()
    }

    async fn exchange(&self, ask: &Ask, plan: &Plan) -> Seen {
        *self.origin.plan.lock().unwrap() = Some(plan.clone());
        let mut request = Request::builder().method(ask.method).uri(ask.path);
        request = request.header("host", "api.example");
        for (name, value) in &ask.fields {
            request = request.header(*name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let response = self.proxy.handle(request, &client.into(), None).await;
        let (parts, body) = response.expect("infallible").into_parts();
        let body = body.collect().await.expect("whole").to_bytes();
        // What goes on behind the answer belongs to it.
        while self.proxy.readings().flights > 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let status = parts.status.as_u16();
        let is_ours = parts.headers.contains_key("proxy-status");
        Seen {
            status,
            body: match is_ours {
                true => String::new(),
                false => String::from_utf8(body.into()).expect("ASCII"),
            },
            age: number(&parts.headers, "age"),
            content_range: parts
                .headers
                .get("content-range")
                .map(|value| value.to_str().unwrap().to_owned()),
            fields: match is_ours {
                true => Vec::new(),
                false => shown(&parts.headers),
            },
            heard: std::mem::take(&mut *self.origin.heard.lock().unwrap()),
        }
    }
}

fn shown(headers: &HeaderMap) -> Fields {
    let line = |name: &'static str| {
        let value = headers.get(name)?.to_str().expect("ASCII");
        Some((name, value.to_owned()))
    };
    SHOWN.into_iter().filter_map(line).collect()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

fn maybe<T: Clone + std::fmt::Debug + 'static>(
    weight: f64,
    some: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(weight, some)
}

fn one_of(choices: &'static [&'static str]) -> impl Strategy<Value = String> {
    proptest::sample::select(choices).prop_map(str::to_owned)
}

fn fields(list: Vec<(&'static str, Option<String>)>) -> Fields {
    let given = list
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    given.collect()
}

/// A date so many seconds before (or after) the beginning, or nonsense.
fn moment() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (0_u64..400).prop_map(|seconds| written(START - 200 + seconds)),
        1 => Just("0".to_owned()),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let method =
        proptest::sample::select(&["GET", "GET", "GET", "GET", "GET", "GET", "HEAD", "POST"][..]);
    let path = proptest::sample::select(&["/a", "/a", "/a", "/b"][..]);
    let directives = one_of(&[
        "no-cache",
        "no-store",
        "only-if-cached",
        "max-age=0",
        "max-age=5",
        "max-age=30",
        "min-fresh=5",
        "max-stale",
        "max-stale=20",
        "max-stale=5, max-age=50",
        "No-Cache, max-stale",
    ]);
    (
        method,
        path,
        maybe(0.3, directives),
        maybe(0.4, one_of(&["de", "en"])),
        maybe(0.2, one_of(&["\"v1\"", "\"v2\"", "W/\"v1\"", "*"])),
        maybe(0.1, moment()),
        maybe(0.15, one_of(&["Bearer k"])),
        maybe(
            0.1,
            one_of(&["bytes=0-3", "bytes=-2", "bytes=3-", "bytes=50-"]),
        ),
    )
        .prop_map(
            |(method, path, control, language, tag, since, credential, range)| Ask {
                method,
                path,
                fields: fields(vec![
                    ("cache-control", control),
                    ("accept-language", language),
                    ("if-none-match", tag),
                    ("if-modified-since", since),
                    ("authorization", credential),
                    ("range", range.filter(|_| method == "GET")),
                ]),
            },
        )
}

fn plan() -> impl Strategy<Value = Plan> {
    let word = prop_oneof![
        6 => one_of(&["max-age=10", "max-age=30", "max-age=60", "max-age=0", "s-maxage=20", "MAX-AGE=\"15\""]),
        2 => one_of(&["max-age=x", "max-age=-1", "max-age=99999999999999999999"]),
        5 => one_of(&["public", "must-revalidate", "proxy-revalidate", "no-cache", "no-store", "private"]),
        3 => one_of(&["stale-while-revalidate=20", "stale-if-error=30", "stale-if-error=0", "unknown=1"]),
    ];
    let mixed = proptest::collection::vec(word, 0..4).prop_map(|words| words.join(", "));
    let plain = one_of(&[
        "max-age=30",
        "max-age=60",
        "max-age=10, stale-while-revalidate=30",
    ]);
    let control = prop_oneof![plain, mixed];
    let status = prop_oneof![
        12 => Just(200_u16),
        3 => proptest::sample::select(&[204_u16, 301, 302, 404, 410, 500, 503][..]),
    ];
    (
        (
            0_u64..3,
            proptest::bool::weighted(0.1),
            status,
            maybe(0.8, control),
        ),
        maybe(0.3, moment()),
        maybe(0.25, moment()),
        maybe(0.15, one_of(&["0", "7", "40", "x"])),
        maybe(0.5, one_of(&["\"v1\"", "\"v2\"", "W/\"v1\""])),
        maybe(0.3, moment()),
        maybe(0.3, one_of(&["accept-language", "*"])),
        (
            maybe(0.1, one_of(&["a=1"])),
            maybe(0.5, one_of(&["1", "2", "3"])),
            proptest::sample::select(&["body-one", "body-two!", "third"][..]),
        ),
    )
        .prop_map(
            |(
                (delay, fails, status, control),
                expires,
                date,
                age,
                tag,
                modified,
                vary,
                (cookie, mark, body),
            )| Plan {
                delay,
                fails,
                status,
                body: if status == 204 { "" } else { body },
                fields: fields(vec![
                    (
                        "cache-control",
                        control.filter(|control| !control.is_empty()),
                    ),
                    ("expires", expires),
                    ("date", date),
                    ("age", age),
                    ("etag", tag),
                    ("last-modified", modified),
                    ("vary", vary),
                    ("set-cookie", cookie),
                    ("x-a", mark),
                ]),
            },
        )
}

fn histories() -> impl Strategy<Value = Vec<Step>> {
    let pause = prop_oneof![2 => Just(0_u64), 3 => 1_u64..15, 1 => 15_u64..80];
    let step = (pause, ask(), plan()).prop_map(|(pause, ask, plan)| Step { pause, ask, plan });
    proptest::collection::vec(step, 2..10)
}

/// Histories for each of the two tests; more by `HISTORIES=100000 cargo test --test model`.
fn count() -> u32 {
    let wanted = std::env::var("HISTORIES").ok();
    wanted.map_or(1200, |text| text.parse().expect("a number"))
}

/// What kind of exchange this was, so that histories which never get anywhere are noticed.
fn kind(seen: &Seen) -> &'static str {
    match (seen.status, seen.heard.as_slice()) {
        (200, []) => "hit",
        (200, [asked]) if asked.if_none_match.is_some() => "validated by tag",
        (200, [asked]) if asked.if_modified_since.is_some() => "validated by date",
        (200, [_]) => "miss",
        (_, [_, _, ..]) => "asked twice",
        (206, _) => "part",
        (304, []) => "not modified, from the store",
        (304, _) => "not modified",
        (416, _) => "out of range",
        (502, _) => "failed",
        (504, []) => "only if cached",
        _ => "other",
    }
}

fn compare(route: &str, rules: Rules, count: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut runner = TestRunner::new(Histories {
        cases: count,
        failure_persistence: None,
        ..Histories::default()
    });
    let kinds = Mutex::new(BTreeMap::<&str, u32>::new());
    let outcome = runner.run(&histories(), |history| {
        runtime.block_on(async {
            let (cache, mut reference) = (Cache::new(route), Reference::new(rules));
            for (at, step) in history.iter().enumerate() {
                cache.clock.advance(Duration::from_secs(step.pause));
                let mut now = cache.now();
                let expected = reference.exchange(&step.ask, &step.plan, &mut now);
                let found = cache.exchange(&step.ask, &step.plan).await;
                prop_assert_eq!(&found, &expected, "step {} (left: the cache)", at);
                prop_assert_eq!(cache.now(), now, "step {}: time", at);
                *kinds.lock().unwrap().entry(kind(&found)).or_default() += 1;
            }
            Ok(())
        })
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let kinds = kinds.into_inner().unwrap();
    println!("{kinds:?}");
    assert_eq!(kinds.len(), 12, "{kinds:?}");
    assert!(kinds.values().all(|seen| *seen > 10), "{kinds:?}");
}

#[test]
fn a_cache_that_obeys_its_clients_agrees_with_rfc_9111() {
    let route = "obey = \
        [\"max-age\", \"min-fresh\", \"max-stale\", \"no-cache\", \"no-store\", \"only-if-cached\"]\n\
        heuristic_max_ttl = \"1d\"\nstale_if_error = \"40s\"\nignore = [\"set-cookie\"]";
    compare(
        route,
        Rules {
            obeys: true,
            stale_if_error: 40,
            heuristic_cap: Some(86_400),
            stores_cookies: true,
        },
        count(),
    );
}

#[test]
fn a_cache_as_it_comes_agrees_with_rfc_9111() {
    compare(
        "",
        Rules {
            obeys: false,
            stale_if_error: 0,
            heuristic_cap: None,
            stores_cookies: false,
        },
        count(),
    );
}
