//! `explain` takes the same steps as a request: for generated configurations, stores and requests
//! its words are those of the response that follows.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use iris_sidecar::clock::{Clock, Timestamp};
use iris_sidecar::config::Config;
use iris_sidecar::error::{Failure, FailureKind};
use iris_sidecar::metrics::Metrics;
use iris_sidecar::metrics::text::Format;
use iris_sidecar::policy::{Mode, Reason};
use iris_sidecar::proxy::{Proxy, Shared};
use iris_sidecar::store::{Purge, Reach, Target};
use iris_sidecar::upstream::{Answer, Origin, OriginBody};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRng, TestRunner};
use strum::IntoEnumIterator;

/// Each reason that a look-up can give must have been foreseen so often.
const AT_LEAST: u64 = 20;

const BIG: usize = 9000;

/// What the origin says if it is asked now.
#[derive(Clone, Debug, Default)]
struct Script {
    fails: bool,
    cache_control: &'static str,
    vary: bool,
}

/// Knows keys, never confirms anything, and counts what it is asked.
#[derive(Default)]
struct Scripted {
    script: Mutex<Script>,
    asked: Mutex<u64>,
}

impl Origin for Scripted {
    fn answer(&self, request: Request<OriginBody>) -> Answer<'_> {
        let script = self.script.lock().unwrap().clone();
        let mut asked = self.asked.lock().unwrap();
        *asked += 1;
        let number = *asked;
        Box::pin(async move {
            if script.fails {
                return Err(Failure::new(FailureKind::ConnectFailed, "down"));
            }
            Ok(answer(&request, &script, number))
        })
    }
}

fn answer(request: &Request<OriginBody>, script: &Script, number: u64) -> Response<OriginBody> {
    let header = |name| {
        request
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap())
    };
    let key = header("authorization").unwrap_or_default();
    let respond = |status: u16, body: Bytes, fields: &[(&str, &str)]| {
        let mut response = Response::builder().status(status);
        response = response.header("content-length", body.len());
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            response = response.header(*name, *value);
        }
        let body = Full::new(body).map_err(|never| match never {});
        response.body(body.boxed_unsync()).unwrap()
    };
    let path = request.uri().path();
    if path == "/big" {
        let whole = Bytes::from(vec![b'x'; BIG]);
        let fields = [("etag", "\"big\""), ("cache-control", "public, max-age=30")];
        let range = header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let Some((first, last)) = range else {
            return respond(200, whole, &fields);
        };
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let span = format!("bytes {first}-{last}/{BIG}");
        let fields = [fields[0], fields[1], ("content-range", &span)];
        return respond(206, whole.slice(first..=last), &fields);
    }
    let is_guarded = path.starts_with("/verified") || path.starts_with("/differs");
    if is_guarded && !key.starts_with("Bearer good") {
        return respond(401, Bytes::from_static(b"no"), &[]);
    }
    let body = match path {
        "/differs" => format!("{{\"of\": \"{key}\"}}"),
        path if path.starts_with("/verified") => "{}".to_owned(),
        _ => format!("{number}"),
    };
    let etag = format!("\"{number}\"");
    let vary = if script.vary { "accept-language" } else { "" };
    let fields = [
        ("cache-control", script.cache_control),
        ("etag", &etag),
        ("vary", vary),
        ("content-type", "application/json"),
    ];
    respond(200, body.into(), &fields)
}

#[derive(Clone, Debug)]
struct Ask {
    method: &'static str,
    path: &'static str,
    fields: Vec<(&'static str, &'static str)>,
    has_body: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Ask(Ask, Script),
    Advance(u64),
    Purge(&'static str, Mode),
    Switch { off: bool },
}

const CONFIGURATIONS: [&str; 3] = ["", LIMITED, WITH_GRACE];

const LIMITED: &str = "[[rate_limit]]\nby = \"address\"\nrequests = 30\nwindow = \"60s\"\n";
const WITH_GRACE: &str = "[[rate_limit]]\nby = \"key\"\nrequests = 12\nwindow = \"30s\"\n";

fn config(number: usize) -> Config {
    let extra = CONFIGURATIONS[number];
    let grace = if number == 2 {
        "stale_while_revalidate = \"20s\"\nstale_if_error = \"60s\"\n"
    } else {
        "stale_if_error = \"60s\"\n"
    };
    let text = format!(
        "
[cache]
memory = \"4MiB\"
max_object = \"8KiB\"
[auth]
compare_every = 1
unknown_per_second = 20
bad_ttl = \"10s\"
{extra}
[[route]]
path = \"/own\"
obey = [\"max-age\", \"max-stale\", \"no-cache\", \"only-if-cached\"]
methods = [\"GET\", \"HEAD\", \"POST\"]
{grace}
[[route]]
path = \"/granted\"
obey = [\"max-age\", \"max-stale\", \"no-cache\", \"only-if-cached\"]
ttl = \"10s\"
languages = [\"de\", \"en\"]
{grace}
[[route]]
path = \"/forced\"
force_ttl = \"10s\"
query = [\"a\"]
unknown_query = \"drop\"
[[route]]
path = \"/picky\"
query = \"none\"
[[route]]
path = \"/big\"
[[route]]
path = \"/per-key\"
share = \"per-key\"
ttl = \"10s\"
[[route]]
path = \"/verified/{{*rest}}\"
share = \"verified\"
ttl = \"10s\"
{grace}
[[route]]
path = \"/differs\"
share = \"verified\"
ttl = \"10s\"
"
    );
    Config::parse("test", &text, &|_| None).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

struct World {
    proxy: Arc<Proxy>,
    origin: Arc<Scripted>,
    metrics: Arc<Metrics>,
    clock: Clock,
    counted: BTreeMap<(String, String), u64>,
}

impl World {
    fn new(number: usize) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let origin = Arc::new(Scripted::default());
        let metrics = Arc::new(Metrics::new());
        let answers: Arc<dyn Origin> = origin.clone();
        let proxy = Proxy::new(
            Arc::new(config(number)),
            Arc::clone(&metrics),
            answers,
            clock.clone(),
            Shared::default(),
        );
        Self {
            proxy,
            origin,
            metrics,
            clock,
            counted: BTreeMap::new(),
        }
    }

    /// The result and the reason of the one request that was answered since the last look.
    fn words(&mut self) -> (String, String) {
        let text = self
            .metrics
            .encode(self.proxy.readings(), Format::Classic)
            .unwrap();
        let lines = text.lines();
        let counted: BTreeMap<(String, String), u64> = lines
            .filter_map(|line| line.strip_prefix("cache_results_total{result=\""))
            .map(|line| {
                let (result, rest) = line.split_once("\",reason=\"").unwrap();
                let (reason, count) = rest.split_once("\"} ").unwrap();
                let words = (result.to_owned(), reason.to_owned());
                (words, count.parse().unwrap())
            })
            .collect();
        let before = std::mem::replace(&mut self.counted, counted);
        let is_new = |(words, count): &(&(String, String), &u64)| {
            **count > before.get(*words).copied().unwrap_or(0)
        };
        let mut new = self.counted.iter().filter(is_new);
        let (words, _) = new.next().expect("every answer is counted");
        assert!(new.next().is_none(), "one request, one word");
        let (result, reason) = words.clone();
        // As X-Cache says it.
        let result = match result.as_str() {
            "STALE" | "REVALIDATED" => format!("HIT-{result}"),
            _ => result,
        };
        (result, reason)
    }

    /// Asks for an explanation and then for the answer; the reason that both have named.
    async fn ask(&mut self, ask: &Ask, script: &Script) -> Result<String, TestCaseError> {
        *self.origin.script.lock().unwrap() = script.clone();
        let request = |body: Full<Bytes>| {
            let mut request = Request::builder().method(ask.method).uri(ask.path);
            for (name, value) in &ask.fields {
                request = request.header(*name, *value);
            }
            if !ask.fields.iter().any(|(name, _)| *name == "host") {
                request = request.header("host", "api.example");
            }
            request.body(body).expect("a request")
        };
        let body = if ask.has_body { "body" } else { "" };
        let sent = request(Full::from(body));
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let asked = *self.origin.asked.lock().unwrap();
        let told = self
            .proxy
            .explain(request(Full::from(body)), &client.into())
            .await;
        prop_assert_eq!(*self.origin.asked.lock().unwrap(), asked);
        let response = self.proxy.handle(sent, &client.into(), None).await;
        let (parts, body) = response.expect("infallible").into_parts();
        let _ = body.collect().await;
        while self.proxy.readings().flights > 0 {
            tokio::task::yield_now().await;
        }
        // Comparisons and refreshes behind the answer.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let (result, reason) = self.words();
        let shown = parts
            .headers
            .get("x-cache")
            .map(|value| value.to_str().unwrap());
        prop_assert_eq!(shown, Some(result.as_str()));
        let has_failed = script.fails && *self.origin.asked.lock().unwrap() > asked;
        let foreseen = told["reason"].as_str().unwrap_or_default();
        let is_stale = (result.as_str(), reason.as_str()) == ("HIT-STALE", "stale-if-error");
        if has_failed && (is_stale || foreseen == "partial") {
            // Nobody can foresee that the origin fails.
            return Ok(foreseen.to_owned());
        }
        prop_assert_eq!(&told["result"], &result, "{:?}: {} {}", ask, reason, told);
        prop_assert_eq!(&told["reason"], &reason, "{:?}: {}", ask, told);
        Ok(reason)
    }

    async fn take(&mut self, step: &Step) -> Result<Option<String>, TestCaseError> {
        match step {
            Step::Ask(ask, script) => return self.ask(ask, script).await.map(Some),
            Step::Advance(millis) => self.clock.advance(Duration::from_millis(*millis)),
            Step::Purge(path, mode) => {
                let target = Target::Prefix((*path).into());
                let reach = Reach::Any;
                self.proxy.purge(Purge { target, reach }, *mode);
            }
            Step::Switch { off: true } => drop(self.proxy.switch_off(None, None, false)),
            Step::Switch { off: false } => drop(self.proxy.switch_on(None, false)),
        }
        Ok(None)
    }
}

fn paths() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        4 => Just("/own"),
        3 => Just("/granted"),
        2 => Just("/forced?a=1&b=2"),
        3 => Just("/big"),
        1 => Just("/per-key"),
        3 => Just("/verified/a"),
        1 => Just("/verified/b"),
        2 => Just("/differs"),
        1 => Just("/own?q=100%"),
        1 => Just("/picky?x=1"),
        1 => Just("/nowhere"),
    ]
}

fn fields() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let field = prop_oneof![
        3 => Just(("authorization", "Bearer good1")),
        2 => Just(("authorization", "Bearer good2")),
        1 => Just(("authorization", "Bearer bad")),
        1 => Just(("authorization", "Basic a b")),
        1 => Just(("x-api-key", "good1")),
        2 => Just(("cookie", "a=b")),
        2 => Just(("accept-language", "de")),
        2 => Just(("accept-language", "fr")),
        2 => Just(("range", "bytes=0-99")),
        2 => Just(("range", "bytes=50-199")),
        1 => Just(("range", "lines=1-2")),
        1 => Just(("if-match", "\"a\"")),
        1 => Just(("if-none-match", "\"1\"")),
        1 => Just(("upgrade", "websocket")),
        1 => Just(("cache-control", "no-cache")),
        1 => Just(("cache-control", "only-if-cached")),
        2 => Just(("cache-control", "max-stale=1000")),
        1 => Just(("host", "a/b")),
    ];
    prop::collection::vec(field, 0..3).prop_map(|mut fields| {
        if fields.iter().any(|(name, _)| *name == "upgrade") {
            fields.push(("connection", "upgrade"));
        }
        fields
    })
}

fn script() -> impl Strategy<Value = Script> {
    let cache_control = prop_oneof![
        4 => Just("max-age=5"),
        2 => Just(""),
        1 => Just("no-store"),
        1 => Just("private"),
        2 => Just("no-cache"),
        1 => Just("public, max-age=5"),
    ];
    let fails = prop::bool::weighted(0.15);
    (cache_control, fails, prop::bool::weighted(0.2)).prop_map(|(cache_control, fails, vary)| {
        Script {
            fails,
            cache_control,
            vary,
        }
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let method = prop_oneof![10 => Just("GET"), 1 => Just("HEAD"), 1 => Just("POST")];
    let has_body = prop::bool::weighted(0.05);
    let ask = (method, paths(), fields(), has_body, script());
    let ask = ask.prop_map(|(method, path, fields, has_body, script)| {
        let ask = Ask {
            method,
            path,
            fields,
            has_body,
        };
        Step::Ask(ask, script)
    });
    let mode = prop_oneof![Just(Mode::Hard), Just(Mode::Soft)];
    let step = prop_oneof![
        20 => ask.prop_map(|ask| vec![ask]),
        1 => Just(extended_part()),
        1 => Just(failing_origin()),
        1 => Just(taken_stale()),
        1 => Just(switched_off()),
        5 => quiet(mode).prop_map(|step| vec![step]),
    ];
    prop::collection::vec(step, 20..50).prop_map(|steps| steps.concat())
}

fn quiet(mode: impl Strategy<Value = Mode>) -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0_u64..4000).prop_map(Step::Advance),
        1 => (4000_u64..40_000).prop_map(Step::Advance),
        1 => (prop_oneof![Just("/"), Just("/own"), Just("/granted")], mode)
            .prop_map(|(path, mode)| Step::Purge(path, mode)),
    ]
}

fn get(path: &'static str, fields: &[(&'static str, &'static str)], fails: bool) -> Step {
    let ask = Ask {
        method: "GET",
        path,
        fields: fields.to_vec(),
        has_body: false,
    };
    let script = Script {
        fails,
        cache_control: "max-age=5",
        vary: false,
    };
    Step::Ask(ask, script)
}

/// A part of what is too large to be stored whole, and then a little more of it.
fn extended_part() -> Vec<Step> {
    vec![
        Step::Purge("/big", Mode::Hard),
        get("/big", &[("range", "bytes=0-99")], false),
        get("/big", &[("range", "bytes=0-99")], false),
        get("/big", &[("range", "bytes=50-199")], false),
    ]
}

/// An origin that fails, and is given a pause.
fn failing_origin() -> Vec<Step> {
    vec![
        Step::Purge("/own", Mode::Hard),
        get("/own", &[], false),
        Step::Advance(30_000),
        get("/own", &[], true),
        get("/own", &[], true),
        get("/own", &[], false),
    ]
}

/// Caching is switched off for a moment.
fn switched_off() -> Vec<Step> {
    vec![
        Step::Switch { off: true },
        get("/granted", &[], false),
        get("/own", &[], false),
        Step::Switch { off: false },
    ]
}

/// A client that takes what is stale.
fn taken_stale() -> Vec<Step> {
    let takes = [("cache-control", "max-stale=1000")];
    vec![
        get("/granted", &[], false),
        Step::Advance(12_000),
        get("/granted", &takes, false),
    ]
}

#[test]
fn what_is_explained_is_what_happens() {
    let cases = Cases {
        cases: 300,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Cases::default()
    };
    // The same histories in every run: a failure here is one that can be looked at.
    let rng = TestRng::deterministic_rng(cases.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(cases, rng);
    let seen: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let histories = (0..CONFIGURATIONS.len(), steps());
    let outcome = runner.run(&histories, |(number, steps)| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new(number);
            for step in &steps {
                if let Some(reason) = world.take(step).await? {
                    *seen.lock().unwrap().entry(reason).or_default() += 1;
                }
            }
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let seen = seen.into_inner().unwrap();
    let rare: Vec<(&str, u64)> = Reason::iter()
        .filter(|reason| reason.is_of_look_up())
        .map(|reason| reason.as_str())
        .map(|reason| (reason, seen.get(reason).copied().unwrap_or(0)))
        .filter(|(_, count)| *count < AT_LEAST)
        .collect();
    assert!(rare.is_empty(), "seldom: {rare:?}; seen: {seen:?}");
    let others = seen.keys().filter(|reason| {
        let found = Reason::iter().find(|known| known.as_str() == reason.as_str());
        !found.is_some_and(Reason::is_of_look_up)
    });
    assert_eq!(others.count(), 0, "{seen:?}");
}
