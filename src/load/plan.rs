//! What is asked, by how many, and for how long: the requirements' scenarios, and any in TOML.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;

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

/// The endpoints that the benchmark asks for, one after another.
pub fn benchmark_endpoints() -> Vec<Endpoint> {
    let mut all = requirements_mix();
    all.truncate(5);
    all
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

    /// From TOML. The error has the place of what is wrong.
    pub fn parse(file: &str, text: &str) -> Result<Self, String> {
        let written: Written = toml::from_str(text).map_err(|error| format!("{file}: {error}"))?;
        written.check().map_err(|error| format!("{file}: {error}"))
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<String>,
    /// `"closed"` or `"open"`.
    #[serde(default)]
    model: Word,
    #[serde(default)]
    think: Option<[String; 2]>,
    #[serde(rename = "stage")]
    stages: Vec<WrittenStage>,
    #[serde(rename = "request", default)]
    requests: Vec<WrittenRequest>,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Word {
    #[default]
    Closed,
    Open,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStage {
    lasts: String,
    users: Option<f64>,
    rate: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRequest {
    name: Option<String>,
    #[serde(default)]
    method: Option<String>,
    path: String,
    body: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    weight: Option<u32>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?}: expected a duration such as \"30s\" or \"500ms\"");
    humantime::parse_duration(text).map_err(|_| expected())
}

impl Written {
    fn check(self) -> Result<Scenario, String> {
        let is_open = self.model == Word::Open;
        if is_open && self.think.is_some() {
            return Err("think is for model = \"closed\": an open model has no users".to_owned());
        }
        let think = match self.think {
            None => (Duration::ZERO, Duration::ZERO),
            Some([least, most]) => (duration(&least)?, duration(&most)?),
        };
        if think.0 > think.1 {
            return Err("think: expected [\"least\", \"most\"]".to_owned());
        }
        let mut stages = Vec::new();
        for stage in &self.stages {
            let to = match (is_open, stage.users, stage.rate) {
                (false, Some(users), None) => users,
                (true, None, Some(rate)) => rate,
                (false, ..) => return Err("[[stage]]: expected users = … and no rate, for model = \"closed\"".to_owned()),
                (true, ..) => return Err("[[stage]]: expected rate = … (requests a second) and no users, for model = \"open\"".to_owned()),
            };
            if !(0.0..=1e6).contains(&to) {
                return Err(format!(
                    "[[stage]]: {to}: expected a number from 0 to 1000000"
                ));
            }
            stages.push(Stage {
                lasts: duration(&stage.lasts)?,
                to,
            });
        }
        if stages.iter().all(|stage| stage.lasts.is_zero()) {
            return Err("no [[stage]] that lasts: expected lasts = \"30s\"".to_owned());
        }
        let endpoints = if self.requests.is_empty() {
            requirements_mix()
        } else {
            let read: Result<_, _> = self
                .requests
                .into_iter()
                .map(WrittenRequest::check)
                .collect();
            read?
        };
        if endpoints.iter().all(|endpoint| endpoint.weight == 0) {
            return Err("[[request]]: every weight is 0".to_owned());
        }
        Ok(Scenario {
            name: self.name.unwrap_or_else(|| "custom".to_owned()),
            model: if is_open {
                Model::Open
            } else {
                Model::Closed { think }
            },
            stages,
            endpoints,
        })
    }
}

impl WrittenRequest {
    fn check(self) -> Result<Endpoint, String> {
        let at = |what: &str| format!("[[request]] path = {:?}: {what}", self.path);
        if !self.path.starts_with('/') {
            return Err(at("expected a path that begins with \"/\""));
        }
        let method = self.method.as_deref().unwrap_or(match self.body {
            Some(_) => "POST",
            None => "GET",
        });
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| {
            at(&format!(
                "method = {method:?}: expected a method such as \"GET\""
            ))
        })?;
        let mut headers = Vec::new();
        for (name, value) in &self.headers {
            let wrong = || at(&format!("headers: {name:?}: expected a header field"));
            headers.push((
                HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?,
                HeaderValue::from_str(value).map_err(|_| wrong())?,
            ));
        }
        super::template::check(&self.path).map_err(|error| at(&error))?;
        super::template::check(self.body.as_deref().unwrap_or_default())
            .map_err(|error| at(&error))?;
        Ok(Endpoint {
            name: self
                .name
                .clone()
                .unwrap_or_else(|| format!("{method} {}", self.path)),
            method,
            headers,
            weight: self.weight.unwrap_or(1),
            path: self.path,
            body: self.body,
        })
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
    fn a_scenario_of_ones_own_is_read_and_checked() {
        let text = "name = \"mine\"\nmodel = \"open\"\n[[stage]]\nlasts = \"10s\"\nrate = 100\n[[request]]\npath = \"/a?x={{n}}\"\nweight = 3\nheaders = { accept = \"text/html\" }\n[[request]]\npath = \"/b\"\nbody = \"{}\"\n";
        let read = Scenario::parse("t.toml", text).unwrap();
        assert_eq!((read.model, read.endpoints.len()), (Model::Open, 2));
        assert_eq!(read.endpoints[1].method, Method::POST);
        for (text, says) in [
            (
                "[[stage]]\nlasts = \"1s\"\nusers = 1\nrate = 2\n",
                "expected users",
            ),
            (
                "model = \"open\"\n[[stage]]\nlasts = \"1s\"\nusers = 1\n",
                "expected rate",
            ),
            (
                "[[stage]]\nlasts = \"soon\"\nusers = 1\n",
                "expected a duration",
            ),
            (
                "[[stage]]\nlasts = \"0s\"\nusers = 1\n",
                "no [[stage]] that lasts",
            ),
            ("[[stages]]\n", "unknown field"),
            (
                "[[stage]]\nlasts = \"1s\"\nusers = 1\n[[request]]\npath = \"a\"\n",
                "begins with",
            ),
            (
                "[[stage]]\nlasts = \"1s\"\nusers = 1\n[[request]]\npath = \"/{{x}}\"\n",
                "{{x}}",
            ),
            (
                "[[stage]]\nlasts = \"1s\"\nusers = 1\n[[request]]\npath = \"/\"\nweight = 0\n",
                "every weight",
            ),
        ] {
            let error = Scenario::parse("t.toml", text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
