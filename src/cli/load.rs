//! `iris-sidecar bench` and `load-test`: who is measured, how, and where the report goes.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;

use crate::clock::Clock;
use crate::error::rfc3339;
use crate::load::bench::{Counts, limit_accuracy, measure};
use crate::load::client::{Target, Version};
use crate::load::compare;
use crate::load::html;
use crate::load::plan::{Endpoint, Scenario, benchmark_endpoints};
use crate::load::record::Cause;
use crate::load::report::{Report, percent, shown};
use crate::load::run::{Progress, run};
use crate::load::verdict::{Targets, is_missed, judge_limit};

use super::ending::Ending;

/// What both commands take.
#[derive(Debug, Args)]
pub struct Common {
    /// An API key, sent as Authorization: Bearer; several are used in turn
    #[arg(long = "api-key", value_name = "KEY")]
    keys: Vec<String>,
    /// Speak HTTP/2: by ALPN over https, by prior knowledge over http
    #[arg(long)]
    http2: bool,
    /// Roots to trust for https instead of the platform's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How long one request may take, with the connection that it may need
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report in the text format of Prometheus
    #[arg(long, value_name = "FILE")]
    prometheus: Option<PathBuf>,
    /// Write the report as one page with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Target: 95th percentile in ms ("none" leaves it out)
    #[arg(long, value_name = "MS", value_parser = target)]
    p95: Option<Wanted>,
    /// Target: 99th percentile in ms
    #[arg(long, value_name = "MS", value_parser = target)]
    p99: Option<Wanted>,
    /// Target: errors in %
    #[arg(long, value_name = "PERCENT", value_parser = target)]
    error_rate: Option<Wanted>,
    /// Target: answers from the cache in %
    #[arg(long, value_name = "PERCENT", value_parser = target)]
    hit_rate: Option<Wanted>,
    /// Target: requests a second
    #[arg(long, value_name = "RATE", value_parser = target)]
    throughput: Option<Wanted>,
    /// The target's admin port, such as http://127.0.0.1:9180: its memory is reported too
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// Of the admin port, where it wants one
    #[arg(long, value_name = "TOKEN")]
    admin_token: Option<String>,
    /// What looks random is the same for the same number
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Who is measured [env: BENCHMARK_URL]
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    common: Common,
    /// Requests before anything is measured, for each endpoint
    #[arg(long, default_value_t = 10)]
    warm_up: u32,
    /// Requests one after another, for each endpoint
    #[arg(long, default_value_t = 100)]
    sequential: u32,
    /// Requests several at once, for each endpoint
    #[arg(long, default_value_t = 100)]
    concurrent: u32,
    /// How many at once
    #[arg(long, default_value_t = 10)]
    concurrency: u32,
    /// The sidecar's own configuration: says who is measured, and where its admin port is
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Judge only how well a limit of so many requests holds (its window must be unused)
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..1_000_000))]
    rate_limit: Option<u32>,
    /// Measure this one too, in turn in the same run, and show before and after
    #[arg(long, value_name = "BASELINE_URL", conflicts_with = "against")]
    compare: Option<String>,
    /// Compare with the JSON report of an earlier run; exit status 1 for a regression
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// How much worse is a regression, in %
    #[arg(long, default_value_t = 10.0, value_name = "PERCENT")]
    threshold: f64,
}

#[derive(Debug, Args)]
pub struct LoadArguments {
    /// smoke, load, stress, spike, or a scenario of your own in TOML
    scenario: String,
    /// Who is measured [env: LOAD_TEST_URL]
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    common: Common,
    /// Stages last this part of their time
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    scale: f64,
}

/// A target as it was given.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    None,
    Number(f64),
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

fn target(text: &str) -> Result<Wanted, String> {
    match text {
        "none" => Ok(Wanted::None),
        text => match text.parse::<f64>() {
            Ok(number) if number.is_finite() && number >= 0.0 => Ok(Wanted::Number(number)),
            _ => Err("expected a number, or \"none\"".to_owned()),
        },
    }
}

fn scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if scale > 0.0 && scale <= 100.0 => Ok(scale),
        _ => Err("expected a number above 0, such as 0.1".to_owned()),
    }
}

/// How a measurement ended.
pub enum Measured {
    Met,
    Missed,
}

impl Common {
    fn targets(&self, defaults: Targets) -> Targets {
        let pick = |given: Option<Wanted>, default: Option<f64>, unit: f64| match given {
            None => default,
            Some(Wanted::None) => None,
            Some(Wanted::Number(number)) => Some(number * unit),
        };
        Targets {
            p95: pick(self.p95, defaults.p95, 1.0),
            p99: pick(self.p99, defaults.p99, 1.0),
            error_rate: pick(self.error_rate, defaults.error_rate, 0.01),
            hit_rate: pick(self.hit_rate, defaults.hit_rate, 0.01),
            throughput: pick(self.throughput, defaults.throughput, 1.0),
        }
    }

    fn target(&self, url: Option<&String>, prefix: &str) -> anyhow::Result<Rc<Target>> {
        let variable = |name: &str| std::env::var(format!("{prefix}_{name}")).ok();
        let url = url.cloned().or_else(|| variable("URL"));
        let url = url.with_context(|| {
            format!("who is to be measured? --url http://127.0.0.1:8080, or {prefix}_URL")
        })?;
        let mut keys = self.keys.clone();
        if keys.is_empty() {
            keys.extend(variable("API_KEY"));
        }
        let version = if self.http2 {
            Version::Http2
        } else {
            Version::Http1
        };
        let target = Target::new(&url, &keys, version, self.ca_file.as_deref(), self.timeout);
        target.map(Rc::new).map_err(|message| anyhow!(message))
    }

    /// The target's resident memory, where its admin port was given.
    fn resident(&self) -> anyhow::Result<Option<u64>> {
        let Some(url) = &self.admin else {
            return Ok(None);
        };
        let admin = Target::new(
            url,
            &[],
            Version::Http1,
            self.ca_file.as_deref(),
            self.timeout,
        );
        let admin = admin.map_err(|message| anyhow!(message))?;
        let text = runtime()?.block_on(admin.text("/metrics"));
        let text = text.map_err(|cause| unreachable(&admin, cause))?;
        let resident = text
            .lines()
            .find_map(|line| line.strip_prefix("memory_rss_bytes "));
        let bytes = resident.and_then(|number| number.parse().ok());
        bytes
            .map(Some)
            .with_context(|| format!("{url}/metrics has no memory_rss_bytes"))
    }

    /// Prints the report, and writes it wherever it is wanted.
    fn finish(&self, report: &Report) -> anyhow::Result<Measured> {
        // A pager that was closed early has seen enough.
        let _ = std::io::stdout().write_all(report.table().as_bytes());
        let write = |file: &Path, text: String| {
            std::fs::write(file, text)
                .with_context(|| format!("{} cannot be written", file.display()))
        };
        if let Some(file) = &self.json {
            write(file, serde_json::to_string_pretty(report)? + "\n")?;
        }
        if let Some(file) = &self.prometheus {
            write(file, report.prometheus())?;
        }
        if let Some(file) = &self.html {
            write(file, html::page(report))?;
        }
        Ok(if is_missed(&report.judged) {
            Measured::Missed
        } else {
            Measured::Met
        })
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("no runtime")
}

fn unreachable(target: &Target, cause: Cause) -> anyhow::Error {
    let why = match cause {
        Cause::Dns => "its name does not resolve",
        Cause::Connect => "it does not accept connections: does it run?",
        Cause::Tls => "TLS with it failed: --ca-file names the roots to trust",
        Cause::Timeout => "it does not answer in time (--timeout)",
        Cause::Closed | Cause::Protocol | Cause::Unsent => "it does not answer in HTTP",
    };
    anyhow!("{}: {why}", target.shown())
}

/// Nothing is wanted.
const NONE: Targets = Targets {
    p95: None,
    p99: None,
    error_rate: None,
    hit_rate: None,
    throughput: None,
};

impl BenchArguments {
    /// Aims at the sidecar that runs with a configuration.
    fn aim_at(&mut self, file: &Path) -> anyhow::Result<()> {
        let config = match super::ending::load(file) {
            Ok(config) => config,
            Err(Ending::Refused(mistakes)) => {
                let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                bail!(lines.join("\n"));
            }
            Err(Ending::Unreadable(error)) => return Err(error),
            Err(_) => bail!("{} cannot be read", file.display()),
        };
        let admin = config.admin.address;
        let tcp = config.listen.places.iter().find_map(|place| {
            let scheme = if place.tls.is_some() { "https" } else { "http" };
            Some(format!("{scheme}://{}", place.address.tcp()?))
        });
        if self.url.is_none() && tcp.is_none() {
            bail!("[listen] names no TCP address: say --url");
        }
        self.url = self.url.take().or(tcp);
        self.common.admin.get_or_insert(format!("http://{admin}"));
        self.common.admin_token = config.admin.token.map(|token| token.text);
        Ok(())
    }
}

pub fn bench(mut arguments: BenchArguments) -> anyhow::Result<Measured> {
    if let Some(file) = arguments.config.clone() {
        arguments.aim_at(&file)?;
    }
    let arguments = &arguments;
    let common = &arguments.common;
    let target = common.target(arguments.url.as_ref(), "BENCHMARK")?;
    let counts = Counts {
        warm_up: arguments.warm_up,
        sequential: arguments.sequential,
        concurrent: arguments.concurrent,
        concurrency: arguments.concurrency,
    };
    if counts.sequential + counts.concurrent == 0 {
        bail!("--sequential 0 and --concurrent 0: nothing would be measured");
    }
    let endpoints = benchmark_endpoints();
    let started = rfc3339(Clock::System.now());
    // Before anything is measured: an hour later would be a pity.
    let earlier = arguments.against.as_deref().map(read).transpose()?;
    if let Some(limit) = arguments.rate_limit {
        let first = endpoints.first().context("no endpoint")?;
        let measuring = limit_accuracy(&target, first, limit, counts.concurrency, common.seed);
        let accuracy = runtime()?.block_on(measuring);
        let accuracy = accuracy.map_err(|cause| unreachable(&target, cause))?;
        let mut report = Report::of_bench(&[], &[], &target.shown(), started, &NONE);
        report.judged.push(judge_limit(accuracy));
        return common.finish(&report);
    }
    if let Some(baseline) = &arguments.compare {
        return compared(arguments, baseline, &target, counts);
    }
    let measured = runtime()?.block_on(async {
        let mut measured = Vec::new();
        for endpoint in &endpoints {
            eprintln!("{} {} …", endpoint.method, endpoint.path);
            let one = measure(&target, endpoint, counts, common.seed).await;
            measured.push(one.map_err(|cause| unreachable(&target, cause))?);
        }
        Ok::<_, anyhow::Error>(measured)
    })?;
    let targets = common.targets(Targets::BENCHMARK);
    let mut report = Report::of_bench(&endpoints, &measured, &target.shown(), started, &targets);
    report.resident_bytes = common.resident()?;
    let measured = common.finish(&report)?;
    let Some(earlier) = earlier else {
        return Ok(measured);
    };
    let worse = compare::regressions(&earlier, &report, arguments.threshold / 100.0);
    for line in &worse {
        println!("worse by more than {} %: {line}", arguments.threshold);
    }
    if worse.is_empty() {
        println!(
            "nothing is worse by more than {} % than at {}",
            arguments.threshold, earlier.started
        );
        return Ok(measured);
    }
    Ok(Measured::Missed)
}

fn read(file: &Path) -> anyhow::Result<Report> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("{shown} cannot be read"))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{shown} is no report of iris-sidecar bench --json"))
}

/// Both sides in turn; the targets are judged of the one that is measured.
fn compared(
    arguments: &BenchArguments,
    baseline: &String,
    target: &Rc<Target>,
    counts: Counts,
) -> anyhow::Result<Measured> {
    let common = &arguments.common;
    let baseline = common.target(Some(baseline), "BENCHMARK")?;
    let endpoints = benchmark_endpoints();
    let started = rfc3339(Clock::System.now());
    let sides = runtime()?.block_on(async {
        let tell = |endpoint: &Endpoint| eprintln!("{} {} …", endpoint.method, endpoint.path);
        let both = [&baseline, target];
        compare::measure_both(both, &endpoints, counts, common.seed, tell).await
    });
    let [before, after] = sides
        .map_err(|(at, cause)| unreachable(if at == 0 { &baseline } else { target }, cause))?;
    let figures = compare::compare(&before, &after, common.seed);
    let names = [&*baseline.shown(), &*target.shown()];
    let _ = std::io::stdout().write_all(compare::table(&figures, names).as_bytes());
    let targets = common.targets(Targets::BENCHMARK);
    let mut report = Report::of_bench(
        &endpoints,
        &after.measured,
        &target.shown(),
        started,
        &targets,
    );
    report.resident_bytes = common.resident()?;
    common.finish(&report)
}

pub fn load_test(arguments: &LoadArguments) -> anyhow::Result<Measured> {
    let common = &arguments.common;
    let target = common.target(arguments.url.as_ref(), "LOAD_TEST")?;
    let name = &arguments.scenario;
    let scenario = match Scenario::known(name) {
        Some(scenario) => scenario,
        None => {
            let text = std::fs::read_to_string(name).with_context(|| {
                format!(
                    "{name:?} is none of smoke, load, stress, spike, and cannot be read as a file"
                )
            })?;
            Scenario::parse(name, &text).map_err(|message| anyhow!(message))?
        }
    };
    let scenario = scenario.scaled(arguments.scale);
    let started = rfc3339(Clock::System.now());
    let is_terminal = std::io::stderr().is_terminal();
    let record = runtime()?.block_on(async {
        // Nothing is measured where nobody is there.
        let mut connection = None;
        let first = scenario
            .endpoints
            .first()
            .context("the scenario asks for nothing")?;
        let asked =
            crate::load::run::question(first, 0, &mut crate::load::template::Random::new(0));
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
    report.resident_bytes = common.resident()?;
    common.finish(&report)
}

/// Over and over on one line of a terminal; every ten seconds on a line of its own elsewhere.
fn show(progress: &Progress, is_terminal: bool) {
    let seconds = progress.elapsed.as_secs();
    if !is_terminal && !seconds.is_multiple_of(10) {
        return;
    }
    let latencies = &progress.last.latencies;
    let line = format!(
        "{seconds:>4} of {} s  stage {}/{}  users {:>4.0}  {:>6} req/s  p95 {:>7} ms  {} requests, {} errors ({})",
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
