//! The endpoints that there are.

use http::Method;

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint<'a> {
    Overview,
    OverviewOptimized,
    Analytics,
    Patterns,
    Events,
    Reflexion,
    Telemetry,
    Evaluate,
    Anomalies,
    ModelRun,
    Consensus,
    Project(&'a str),
    Metrics,
}

const READ: &[Method] = &[Method::GET, Method::HEAD];
const READ_AND_WRITE: &[Method] = &[Method::GET, Method::HEAD, Method::POST];
const WRITE: &[Method] = &[Method::POST];

/// The endpoints under `/api/iris/` that have names of their own.
const NAMED: [(&str, Endpoint<'static>); 11] = [
    ("overview", Endpoint::Overview),
    ("overview-optimized", Endpoint::OverviewOptimized),
    ("analytics", Endpoint::Analytics),
    ("patterns", Endpoint::Patterns),
    ("events", Endpoint::Events),
    ("reflexion", Endpoint::Reflexion),
    ("telemetry", Endpoint::Telemetry),
    ("evaluate", Endpoint::Evaluate),
    ("anomalies", Endpoint::Anomalies),
    ("model-run", Endpoint::ModelRun),
    ("consensus", Endpoint::Consensus),
];

impl<'a> Endpoint<'a> {
    pub fn of(path: &'a str) -> Option<Self> {
        if path == "/api/metrics" {
            return Some(Self::Metrics);
        }
        let name = path.strip_prefix("/api/iris/")?;
        let named = NAMED.iter().find(|(known, _)| *known == name);
        let is_project = !name.is_empty() && !name.contains('/');
        let project = is_project.then_some(Self::Project(name));
        named.map(|(_, endpoint)| *endpoint).or(project)
    }

    pub fn methods(self) -> &'static [Method] {
        match self {
            Self::Events | Self::Reflexion => READ_AND_WRITE,
            Self::Telemetry | Self::ModelRun | Self::Consensus => WRITE,
            _ => READ,
        }
    }
}

/// What there is, for whoever asks for something else.
pub fn listed() -> Vec<String> {
    let line = |path: String, endpoint: Endpoint<'_>| {
        let methods: Vec<&str> = endpoint.methods().iter().map(Method::as_str).collect();
        format!("{} {path}", methods.join(", "))
    };
    let named = NAMED
        .iter()
        .map(|(name, endpoint)| line(format!("/api/iris/{name}"), *endpoint));
    let project = "/api/iris/{the key's project}".to_owned();
    let others = [
        line(project, Endpoint::Project("")),
        line("/api/metrics".to_owned(), Endpoint::Metrics),
    ];
    named.chain(others).collect()
}
