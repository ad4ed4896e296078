//! What is asked, by how many, and for how long: the requirements' scenarios, and the shape of any
//! other.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::template;

/// One request of the mix.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// As reports show it.
    pub name: String,
    pub method: Method,
    /// Path and query, a template.
    pub path: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// A template; `None` for no body.
    pub body: Option<String>,
    /// How often it is picked, beside the others.
    pub weight: u32,
}

impl Endpoint {
    /// What an argument names: `/path?query`, or a method before it. The error says what is wrong.
    pub fn asked(text: &str) -> Result<Self, String> {
        let expected = "expected a path such as \"/products?page=1\", or \"DELETE /carts/1\"";
        let (method, path) = match text.split_once(' ') {
            Some((method, path)) => (Method::from_bytes(method.as_bytes()).ok(), path.trim()),
            None => (Some(Method::GET), text),
        };
        let method = method.filter(|_| path.starts_with('/')).ok_or(expected)?;
        template::check(path)?;
        Ok(Self {
            name: text.to_owned(),
            method,
            path: path.to_owned(),
            headers: Vec::new(),
            body: None,
            weight: 1,
        })
    }
}

/// Up or down to a number, linearly, within a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    pub lasts: Duration,
    /// Virtual users, or requests a second.
    pub to: f64,
}

/// Who decides when the next request comes.
#[derive(Clone, Debug, PartialEq)]
pub enum Model {
    /// So many virtual users, each of whom waits for an answer, thinks, and asks again. A target
    /// that slows down slows them down too.
    Closed { think: (Duration, Duration) },
    /// So many requests a second, whatever the target does. Latency counts from the moment at which
    /// a request was due.
    Open,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    pub name: String,
    pub model: Model,
    pub stages: Vec<Stage>,
    pub endpoints: Vec<Endpoint>,
}

/// Of the requirements' script: name, stages (seconds and users), milliseconds of thinking.
type Known = (&'static str, &'static [(u64, u32)], (u64, u64));

const KNOWN: [Known; 4] = [
    ("smoke", &[(30, 1)], (1000, 2000)),
    (
        "load",
        &[(60, 10), (180, 30), (120, 50), (60, 0)],
        (500, 2000),
    ),
    (
        "stress",
        &[(60, 50), (180, 100), (180, 150), (180, 200), (60, 0)],
        (100, 500),
    ),
    (
        "spike",
        &[(60, 10), (30, 500), (60, 10), (30, 0)],
        (100, 500),
    ),
];

/// The body that both scripts post.
const TELEMETRY: &str = r#"{"expertId": "load-test-{{n}}", "eventType": "load_test", "confidence": 0.95, "latencyMs": {{random 50 500}}, "outcome": "success", "metadata": {"source": "iris-sidecar", "id": "{{uuid}}"}}"#;

/// The load test's mix, and the benchmark's endpoints, which come first.
pub fn requirements_mix() -> Vec<Endpoint> {
    let get = |name: &str, weight| Endpoint {
        name: name.to_owned(),
        method: Method::GET,
        path: format!("/api/iris/{name}"),
        headers: Vec::new(),
        body: None,
        weight,
    };
    vec![
        get("overview", 30),
        get("analytics", 20),
        Endpoint {
            method: Method::POST,
            headers: vec![(
                http::header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            )],
            body: Some(TELEMETRY.to_owned()),
            ..get("telemetry", 15)
        },
        get("events", 15),
        get("patterns", 10),
        get("reflexion", 10),
    ]
}

/// The endpoints that the requirements' benchmark asks for, each as often as the others.
pub fn benchmark_endpoints() -> Vec<Endpoint> {
    let five = requirements_mix().into_iter().take(5);
    five.map(|endpoint| Endpoint {
        weight: 1,
        ..endpoint
    })
    .collect()
}

impl Scenario {
    /// One of the requirements' four; `None` for another name.
    pub fn known(name: &str) -> Option<Self> {
        let (name, stages, think) = KNOWN.iter().find(|(known, _, _)| *known == name)?;
        let millis = Duration::from_millis;
        Some(Self {
            name: (*name).to_owned(),
            model: Model::Closed {
                think: (millis(think.0), millis(think.1)),
            },
            stages: stages
                .iter()
                .map(|(seconds, users)| Stage {
                    lasts: Duration::from_secs(*seconds),
                    to: f64::from(*users),
                })
                .collect(),
            endpoints: requirements_mix(),
        })
    }

    /// The same within a part of the time.
    pub fn scaled(mut self, scale: f64) -> Self {
        for stage in &mut self.stages {
            stage.lasts = stage.lasts.mul_f64(scale);
        }
        self
    }

    pub fn lasts(&self) -> Duration {
        self.stages.iter().map(|stage| stage.lasts).sum()
    }

    /// How many users, or requests a second, there are to be at a time after the start, and the
    /// number of its stage, from 1; `None` after the end.
    pub fn at(&self, elapsed: Duration) -> Option<(f64, usize)> {
        let (mut from, mut begins) = (self.starts_at(), Duration::ZERO);
        for (number, stage) in self.stages.iter().enumerate() {
            let ends = begins + stage.lasts;
            if elapsed < ends {
                let part = (elapsed - begins).div_duration_f64(stage.lasts);
                return Some((from + (stage.to - from) * part, number + 1));
            }
            (from, begins) = (stage.to, ends);
        }
        None
    }

    /// A scenario of one stage has all its users from the start on.
    fn starts_at(&self) -> f64 {
        match self.stages[..] {
            [only] => only.to,
            _ => 0.0,
        }
    }

    /// The most users, or requests a second, that there ever are.
    pub fn most(&self) -> f64 {
        self.stages.iter().map(|stage| stage.to).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn the_four_scenarios_are_the_requirements() {
        let load = Scenario::known("load").unwrap();
        assert_eq!(load.lasts(), seconds(420));
        assert_eq!(load.at(seconds(0)), Some((0.0, 1)));
        assert_eq!(load.at(seconds(30)), Some((5.0, 1)));
        assert_eq!(load.at(seconds(60)), Some((10.0, 2)));
        assert_eq!(load.at(seconds(150)), Some((20.0, 2)));
        assert_eq!(load.at(seconds(390)), Some((25.0, 4)));
        assert_eq!(load.at(seconds(420)), None);
        let weights: Vec<u32> = load
            .endpoints
            .iter()
            .map(|endpoint| endpoint.weight)
            .collect();
        assert_eq!(weights, [30, 20, 15, 15, 10, 10]);
        assert_eq!(
            Scenario::known("smoke").unwrap().at(seconds(1)),
            Some((1.0, 1))
        );
        assert_eq!(Scenario::known("spike").unwrap().most(), 500.0);
        let short = Scenario::known("stress").unwrap().scaled(0.1);
        assert_eq!(short.lasts(), seconds(66));
        assert_eq!(Scenario::known("other"), None);
    }

    #[test]
    fn what_is_asked_is_said_in_a_word_or_two() {
        let asked = |text: &str| Endpoint::asked(text).map(|one| (one.method, one.path));
        assert_eq!(
            asked("/a?b={{n}}"),
            Ok((Method::GET, "/a?b={{n}}".to_owned()))
        );
        assert_eq!(asked("DELETE /a"), Ok((Method::DELETE, "/a".to_owned())));
        for wrong in ["a", "G@T /a", "http://h/a", "/{{x}}", "", "GET a"] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
    }
}
