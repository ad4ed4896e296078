//! `iris-sidecar bench`: each endpoint of a target measured, alone, beside another one, or against
//! an earlier report.

use std::cell::Cell;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use fastrand::Rng;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use crate::clock::Clock;
use crate::error::rfc3339;
use crate::load::bench::{self, Counts, Phase, Standing, limit_accuracy, measure};
use crate::load::client::Target;
use crate::load::compare;
use crate::load::figure::Comparison;
use crate::load::plan::{Endpoint, benchmark_endpoints};
use crate::load::record::Cause;
use crate::load::report::Report;
use crate::load::verdict::{Targets, judge_limit};
use crate::load::written;

use super::ending::{Ending, environment, in_lines, load};
use super::measuring::{Common, Measured, runtime, unreachable};
use super::place::{self, Place};

#[derive(Debug, Args)]
#[command(after_help = BENCH_HELP)]
pub struct BenchArguments {
    /// What is asked: /path?query, or a method before it ("DELETE /carts/{{ n }}"); without any, the
    /// five endpoints of the Iris API
    #[arg(value_name = "PATH", value_parser = Endpoint::asked)]
    paths: Vec<Endpoint>,
    /// What is asked, from a file in TOML: path, method, headers, body and weight of each "request"
    #[arg(long, value_name = "FILE", conflicts_with_all = ["paths", "discover"])]
    requests: Option<PathBuf>,
    /// Ask for what the sidecar has been asked for most, as its admin port says: so many [default:
    /// 10]
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "10", conflicts_with = "paths")]
    discover: Option<u16>,
    /// Who is measured
    #[arg(long, env = "BENCHMARK_URL")]
    url: Option<String>,
    #[command(flatten)]
    common: Common,
    /// Requests before anything is measured, for each endpoint
    #[arg(long, default_value_t = 10)]
    warm_up: u32,
    /// Requests one after another, for each endpoint of mean weight
    #[arg(long, default_value_t = 100)]
    sequential: u32,
    /// Requests several at once, for each endpoint of mean weight
    #[arg(long, default_value_t = 100)]
    concurrent: u32,
    /// How many at once
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// The sidecar's own configuration: says who is measured, and where its admin port is
    #[arg(long, short, value_name = "FILE", env = "IRIS_CONFIG", value_parser = place::path())]
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

const BENCH_HELP: &str = "\
Environment: BENCHMARK_API_KEY is an API key; IRIS_ADMIN_TOKEN is the token of the admin port.

A file of requests has, for each of them:
    [[request]]
    path = \"/search?q={{ n }}\"
    weight = 3

Example: iris-sidecar bench --url http://127.0.0.1:8080 /products '/search?q={{ n }}' --html \
    report.html

Exit status: 0 all targets met, 1 a target missed or a regression, 2 bad arguments, or nothing to \
    measure.";

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
        let config = match load(file) {
            Ok(config) => config,
            Err(Ending::Refused(mistakes)) => return Err(in_lines(mistakes)),
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
        self.common.configured_token = config.admin.token.map(|token| token.text);
        Ok(())
    }

    fn counts(&self) -> anyhow::Result<Counts> {
        if self.sequential.saturating_add(self.concurrent) == 0 {
            bail!("--sequential 0 and --concurrent 0: nothing would be measured");
        }
        Ok(Counts {
            warm_up: self.warm_up,
            sequential: self.sequential,
            concurrent: self.concurrent,
            concurrency: self.concurrency,
        })
    }

    /// What is asked, and whether somebody has said so.
    fn endpoints(&self) -> anyhow::Result<(Vec<Endpoint>, bool)> {
        if let Some(file) = &self.requests {
            let shown = file.display().to_string();
            let text = std::fs::read_to_string(file);
            let text = text.with_context(|| format!("--requests {shown}"))?;
            let read = written::requests(&shown, &text, &environment).map_err(in_lines)?;
            return Ok((read, true));
        }
        if let Some(most) = self.discover {
            return Ok((discovered(&self.common, most)?, true));
        }
        if self.paths.is_empty() {
            return Ok((benchmark_endpoints(), false));
        }
        Ok((self.paths.clone(), true))
    }
}

/// What a sidecar was asked for most, as its admin port says.
fn discovered(common: &Common, most: u16) -> anyhow::Result<Vec<Endpoint>> {
    let admin = common.admin.as_deref().context(
        "--discover asks the sidecar's admin port: name it by --admin http://127.0.0.1:9180, or \
            --config FILE",
    )?;
    let place = Place::at(admin, common.token())?;
    let told = place.told(Method::GET, &format!("/seen?most={most}"), &Value::Null)?;
    let seen = told["seen"].as_array().into_iter().flatten();
    let endpoints: Vec<Endpoint> = seen.filter_map(endpoint_of).collect();
    if endpoints.is_empty() {
        bail!(
            "the sidecar at {admin} has not been asked for anything yet that it looks up: ask it \
                first, or name paths"
        );
    }
    Ok(endpoints)
}

fn endpoint_of(seen: &Value) -> Option<Endpoint> {
    let endpoint = Endpoint::asked(seen["target"].as_str()?).ok()?;
    let host = HeaderValue::from_str(seen["host"].as_str()?).ok()?;
    Some(Endpoint {
        headers: vec![(header::HOST, host)],
        weight: u32::try_from(seen["requests"].as_u64()?).unwrap_or(u32::MAX),
        ..endpoint
    })
}

/// That the target is no Iris API, where nobody has said what to ask.
async fn expect_iris(target: &Target, endpoints: &[Endpoint]) -> anyhow::Result<()> {
    let (mut connection, mut random) = (None, Rng::with_seed(0));
    for endpoint in endpoints.iter().filter(|one| one.method == Method::GET) {
        let sample = bench::ask(target, &mut connection, endpoint, 0, &mut random).await;
        let answered = sample.outcome.map_err(|cause| unreachable(target, cause))?;
        if answered.status != StatusCode::NOT_FOUND {
            return Ok(());
        }
    }
    bail!(
        "{}: 404 for everything that the Iris API has ({} …): say what to ask: paths, such as  \
            bench /products '/search?q=a', --requests FILE, or --discover",
        target.shown(),
        endpoints.first().map_or("", |endpoint| &endpoint.path)
    )
}

pub fn bench(mut arguments: BenchArguments) -> anyhow::Result<Measured> {
    if let Some(file) = place::given(arguments.config.as_ref()).map(Path::to_owned) {
        arguments.aim_at(&file)?;
    }
    let arguments = &arguments;
    let common = &arguments.common;
    let target = common.target(arguments.url.as_ref(), "BENCHMARK")?;
    let counts = arguments.counts()?;
    let (endpoints, is_said) = arguments.endpoints()?;
    // Before anything is measured: an hour later would be a pity.
    let earlier = arguments.against.as_deref().map(read).transpose()?;
    if let Some(earlier) = &earlier {
        asked_the_same(earlier, &endpoints)?;
    }
    let outputs = common.outputs()?;
    let started = rfc3339(Clock::System.now());
    if let Some(limit) = arguments.rate_limit {
        let first = endpoints.first().context("no endpoint")?;
        let meter = Meter::new(std::slice::from_ref(first), counts);
        let tell = |standing: Standing<'_>| meter.tell(standing);
        let measuring = limit_accuracy(
            &target,
            first,
            limit,
            counts.concurrency,
            common.seed,
            &tell,
        );
        let accuracy = runtime()?.block_on(measuring);
        meter.ends();
        let accuracy = accuracy.map_err(|cause| unreachable(&target, cause))?;
        let mut report = Report::of_bench(&[], &[], &target.shown(), started, &NONE);
        report.judged.push(judge_limit(accuracy));
        return outputs.finish(&report);
    }
    if !is_said {
        runtime()?.block_on(expect_iris(&target, &endpoints))?;
    }
    let measured = match &arguments.compare {
        Some(baseline) => {
            let baseline = common.target(Some(baseline), "BENCHMARK")?;
            let both = [&baseline, &target];
            measure_both(both, &endpoints, counts, common.seed)?
        }
        None => {
            let all = measure_all(&target, &endpoints, counts, common.seed);
            (all.map_err(|cause| unreachable(&target, cause))?, None)
        }
    };
    let (measured, compared) = measured;
    let targets = common.targets(Targets::BENCHMARK);
    let mut report = Report::of_bench(&endpoints, &measured, &target.shown(), started, &targets);
    report.resident_bytes = common.resident();
    report.compared = compared;
    let worse = earlier.map(|earlier| {
        let worse = compare::regressions(&earlier, &report, arguments.threshold / 100.0);
        (earlier, worse)
    });
    let measured = outputs.finish(&report)?;
    let Some((earlier, worse)) = worse else {
        return Ok(measured);
    };
    for line in &worse {
        println!(
            "worse by more than {} % and than noise: {line}",
            arguments.threshold
        );
    }
    if earlier.noise.is_none() || report.noise.is_none() {
        println!("latencies and throughput are not compared: too few answers to tell noise by");
    }
    if worse.is_empty() {
        println!(
            "nothing is worse by more than {} %, beyond the noise of both, than at {}",
            arguments.threshold, earlier.started
        );
        return Ok(measured);
    }
    Ok(Measured::Missed)
}

/// Figures of other endpoints tell nothing.
fn asked_the_same(earlier: &Report, now: &[Endpoint]) -> anyhow::Result<()> {
    let sorted = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.join(", ")
    };
    let was = sorted(
        earlier
            .endpoints
            .iter()
            .map(|one| one.name.as_str())
            .collect(),
    );
    let is = sorted(now.iter().map(|one| one.name.as_str()).collect());
    if was != is {
        bail!("--against: the earlier report is of other requests: {was}; and this run of {is}");
    }
    Ok(())
}

fn measure_all(
    target: &Target,
    endpoints: &[Endpoint],
    counts: Counts,
    seed: u64,
) -> Result<Vec<bench::Measured>, Cause> {
    let meter = Meter::new(endpoints, counts);
    let tell = |standing: Standing<'_>| meter.tell(standing);
    let runtime = runtime().map_err(|_| Cause::Unsent)?;
    let measured = runtime.block_on(async {
        let mut measured = Vec::new();
        for endpoint in endpoints {
            let counts = counts.of(endpoint, endpoints);
            measured.push(measure(target, endpoint, counts, seed, &tell).await?);
        }
        Ok(measured)
    });
    meter.ends();
    measured
}

/// Both sides in turn: what was measured of the second, and beside it the first.
fn measure_both(
    [baseline, target]: [&Target; 2],
    endpoints: &[Endpoint],
    counts: Counts,
    seed: u64,
) -> anyhow::Result<(Vec<bench::Measured>, Option<Comparison>)> {
    let meter = Meter::new(endpoints, counts);
    let tell = |standing: Standing<'_>| meter.tell(standing);
    let measuring = compare::measure_both([baseline, target], endpoints, counts, seed, &tell);
    let sides = runtime()?.block_on(measuring);
    meter.ends();
    let [before, after] =
        sides.map_err(|(at, cause)| unreachable(if at == 0 { baseline } else { target }, cause))?;
    let compared = compare::compare(&baseline.shown(), &before, &after, seed);
    Ok((after.measured, Some(compared)))
}

fn read(file: &Path) -> anyhow::Result<Report> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("{shown} cannot be read"))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{shown} is no report of iris-sidecar bench --json"))
}

/// Tells how far a benchmark is: over and over on one line of a terminal, elsewhere at the
/// beginning of each endpoint and every ten seconds.
struct Meter<'a> {
    endpoints: &'a [Endpoint],
    counts: Counts,
    begun: Instant,
    /// When it was told last, and of which endpoint.
    told: Cell<Option<(Instant, usize)>>,
    is_terminal: bool,
}

impl<'a> Meter<'a> {
    fn new(endpoints: &'a [Endpoint], counts: Counts) -> Self {
        Self {
            endpoints,
            counts,
            begun: Instant::now(),
            told: Cell::new(None),
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    fn tell(&self, standing: Standing<'_>) {
        let all = self.endpoints.iter();
        let at = all
            .clone()
            .position(|one| std::ptr::eq(one, standing.endpoint));
        let at = at.unwrap_or(0);
        let pause = Duration::from_millis(if self.is_terminal { 100 } else { 10_000 });
        let is_due = match self.told.get() {
            Some((last, endpoint)) => endpoint != at || last.elapsed() >= pause,
            None => true,
        };
        if !is_due {
            return;
        }
        self.told.set(Some((Instant::now(), at)));
        let requests = |endpoint: &Endpoint| self.counts.of(endpoint, self.endpoints).all();
        let of_all: u64 = all.clone().map(requests).sum();
        let before: u64 = all.take(at).map(requests).sum();
        let own = self.counts.of(standing.endpoint, self.endpoints);
        let phases = match standing.phase {
            Phase::WarmUp => 0,
            Phase::Sequential => own.warm_up,
            Phase::Concurrent => own.warm_up + own.sequential,
        };
        let done = before + u64::from(phases + standing.done);
        let elapsed = self.begun.elapsed();
        let left = elapsed.mul_f64(of_all.saturating_sub(done) as f64 / done.max(1) as f64);
        // The first answers tell nothing of the others.
        let left = match elapsed.as_secs() {
            0 => String::new(),
            _ => format!("  about {} s left", left.as_secs()),
        };
        let line = format!(
            "{}/{} {} {}  {} {}/{}{left}",
            at + 1,
            self.endpoints.len(),
            standing.endpoint.method,
            standing.endpoint.path,
            standing.phase.as_str(),
            standing.done,
            standing.of,
        );
        if self.is_terminal {
            eprint!("\r\x1b[2K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    /// Nothing more is told.
    fn ends(&self) {
        if self.is_terminal {
            eprint!("\r\x1b[2K");
        }
    }
}
