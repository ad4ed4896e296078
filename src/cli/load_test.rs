//! `iris-sidecar load-test`: a target under load by a scenario.

use std::io::IsTerminal;
use std::rc::Rc;

use anyhow::Context;
use clap::Args;
use fastrand::Rng;

use crate::clock::Clock;
use crate::error::rfc3339;
use crate::load::figure::{percent, shown};
use crate::load::plan::Scenario;
use crate::load::report::Report;
use crate::load::run::{Progress, question, run};
use crate::load::verdict::Targets;
use crate::load::written;

use super::ending::{environment, in_lines};
use super::measuring::{Common, Measured, runtime, unreachable};

#[derive(Debug, Args)]
#[command(after_help = LOAD_HELP)]
pub struct LoadArguments {
    /// smoke, load, stress, spike, or a scenario of your own in TOML
    scenario: String,
    /// Who is measured
    #[arg(long, env = "LOAD_TEST_URL")]
    url: Option<String>,
    #[command(flatten)]
    common: Common,
    /// Stages last this part of their time
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    scale: f64,
}

const LOAD_HELP: &str = "\
A scenario: model = \"closed\" (users) or \"open\" (a rate), think = [\"500ms\", \"2s\"], \
    [[stage]] with lasts and
users or rate, [[request]] with path, method, headers, body and weight; {{ n }}, {{uuid}}, {{now}} and
{{random 1 9}} differ from request to request.

Environment: LOAD_TEST_API_KEY is an API key; IRIS_ADMIN_TOKEN is the token of the admin port.

Example: iris-sidecar load-test smoke --scale 0.1 --url http://127.0.0.1:8080 --html report.html

Exit status: 0 all targets met, 1 a target missed, 2 bad arguments, or nothing to measure.";

fn scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if scale > 0.0 && scale <= 100.0 => Ok(scale),
        _ => Err("expected a number above 0, such as 0.1".to_owned()),
    }
}

pub fn load_test(arguments: &LoadArguments) -> anyhow::Result<Measured> {
    let common = &arguments.common;
    let target = Rc::new(common.target(arguments.url.as_ref(), "LOAD_TEST")?);
    let name = &arguments.scenario;
    let scenario = match Scenario::known(name) {
        Some(scenario) => scenario,
        None => {
            let text = std::fs::read_to_string(name).with_context(|| {
                format!(
                    "{name:?} is none of smoke, load, stress, spike, and cannot be read as a file"
                )
            })?;
            written::scenario(name, &text, &environment).map_err(in_lines)?
        }
    };
    let scenario = scenario.scaled(arguments.scale);
    let outputs = common.outputs()?;
    let started = rfc3339(Clock::System.now());
    let is_terminal = std::io::stderr().is_terminal();
    let record = runtime()?.block_on(async {
        // Nothing is measured where nobody is there.
        let mut connection = None;
        let first = scenario
            .endpoints
            .first()
            .context("the scenario asks for nothing")?;
        let asked = question(first, 0, &mut Rng::with_seed(0));
        target
            .ask(&mut connection, asked)
            .await
            .map_err(|cause| unreachable(&target, cause))?;
        drop(connection);
        let stop = async {
            // Without a signal to wait for, it runs to its end.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let tell = |progress: &Progress| show(progress, is_terminal);
        Ok::<_, anyhow::Error>(run(Rc::clone(&target), &scenario, common.seed, stop, tell).await)
    })?;
    if is_terminal {
        eprintln!();
    }
    let targets = common.targets(Targets::LOAD_TEST);
    let mut report = Report::of_scenario(&scenario, &record, &target.shown(), started, &targets);
    report.resident_bytes = common.resident();
    outputs.finish(&report)
}

/// Over and over on one line of a terminal; every ten seconds on a line of its own elsewhere.
fn show(progress: &Progress, is_terminal: bool) {
    let seconds = progress.elapsed.as_secs();
    if !is_terminal && !seconds.is_multiple_of(10) {
        return;
    }
    let latencies = &progress.last.latencies;
    let line = format!(
        "{seconds:>4} of {} s  stage {}/{}  users {:>4.0}  {:>6} req/s  p95 {:>7} ms  {} \
            requests, {} errors ({})",
        progress.of.as_secs(),
        progress.stage,
        progress.stages,
        progress.users,
        progress.last.requests,
        latencies.quantile(0.95).map_or("–".to_owned(), shown),
        progress.requests,
        progress.errors,
        percent(progress.errors as f64 / progress.requests.max(1) as f64),
    );
    if is_terminal {
        eprint!("\r\x1b[2K{line}");
    } else {
        eprintln!("{line}");
    }
}
