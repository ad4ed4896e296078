//! Log lines on stderr: how they look, and which there are.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing::warn;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::ending::environment;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    Human,
    Json,
}

/// As [`LogFormat`] is written; nothing is the usual one.
pub fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "" => Ok(LogFormat::Human),
        text => LogFormat::from_str(text, false)
            .map_err(|_| "expected \"human\" or \"json\"".to_owned()),
    }
}

/// The time of a line for people, in UTC.
struct Seconds;

impl FormatTime for Seconds {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        let now = std::time::SystemTime::now();
        write!(out, "{}", humantime::format_rfc3339_seconds(now))
    }
}

/// Logs to stderr what `RUST_LOG` says ("debug", or "info,iris_sidecar::guard=debug"), by default
/// what an operator wants to know.
pub fn start_logging(format: LogFormat) {
    let wanted = environment("RUST_LOG").filter(|text| !text.is_empty());
    let read = wanted.as_deref().map(str::parse::<Targets>);
    let usual = Targets::new()
        .with_default(LevelFilter::INFO)
        // Notices of Postgres, such as what is there already and therefore skipped.
        .with_target("sqlx", LevelFilter::WARN);
    let (targets, wrong) = match read {
        None => (usual, None),
        Some(Ok(targets)) => (targets, None),
        Some(Err(error)) => (usual, Some(error)),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Human => lines
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .with_timer(Seconds)
            .boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(targets))
        .init();
    if let Some(error) = wrong {
        warn!(%error, "RUST_LOG is not understood: expected levels such \
            as \"info,iris_sidecar::guard=debug\"; info is logged");
    }
}
