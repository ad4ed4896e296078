//! What `bench` and `load-test` have in common: who is measured, how, and where the report goes.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;

use crate::load::client::{Target, Version};
use crate::load::html;
use crate::load::record::Cause;
use crate::load::report::Report;
use crate::load::verdict::{Targets, is_missed};

use super::ending::environment;

/// What both commands take.
#[derive(Debug, Args)]
pub struct Common {
    /// API keys, one a line, sent as Authorization: Bearer in turn; "-" is standard input. A
    /// variable of the environment holds one (an argument would stand in ps)
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
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
    /// Target: 95th percentile in ms ("none" leaves it out) [default: 150]
    #[arg(long, value_name = "MS", value_parser = target)]
    p95: Option<Wanted>,
    /// Target: 99th percentile in ms [default: 200]
    #[arg(long, value_name = "MS", value_parser = target)]
    p99: Option<Wanted>,
    /// Target: errors in % [default: 1]
    #[arg(long, value_name = "PERCENT", value_parser = target)]
    error_rate: Option<Wanted>,
    /// Target: answers from the cache in % [default: 85 of bench, none of load-test]
    #[arg(long, value_name = "PERCENT", value_parser = target)]
    hit_rate: Option<Wanted>,
    /// Target: requests a second [default: 100 of bench, none of load-test]
    #[arg(long, value_name = "RATE", value_parser = target)]
    throughput: Option<Wanted>,
    /// The target's admin port, such as http://127.0.0.1:9180: its memory is reported too
    #[arg(long, value_name = "URL", env = "IRIS_ADMIN_URL")]
    pub admin: Option<String>,
    /// What looks random is the same for the same number
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Of the admin port: from a configuration, or the environment
    #[arg(skip)]
    pub configured_token: Option<String>,
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

/// How a measurement ended.
pub enum Measured {
    Met,
    Missed,
}

impl Common {
    pub fn targets(&self, defaults: Targets) -> Targets {
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

    /// The one that is measured; `prefix` is that of the variables that say so.
    pub fn target(&self, url: Option<&String>, prefix: &str) -> anyhow::Result<Target> {
        let url = url.with_context(|| {
            format!("who is to be measured? --url http://127.0.0.1:8080, or {prefix}_URL")
        })?;
        let keys = self.keys(prefix)?;
        let version = if self.http2 {
            Version::Http2
        } else {
            Version::Http1
        };
        let target = Target::new(url, &keys, version, self.ca_file.as_deref(), self.timeout);
        target.map_err(|message| anyhow!(message))
    }

    fn keys(&self, prefix: &str) -> anyhow::Result<Vec<String>> {
        let Some(file) = &self.api_key_file else {
            let one = environment(&format!("{prefix}_API_KEY"));
            return Ok(one.filter(|key| !key.is_empty()).into_iter().collect());
        };
        let mut text = String::new();
        let read = if file.as_os_str() == "-" {
            std::io::stdin().read_to_string(&mut text)
        } else {
            File::open(file).and_then(|mut file| file.read_to_string(&mut text))
        };
        read.with_context(|| format!("--api-key-file {}", file.display()))?;
        let lines = text.lines().map(str::trim);
        Ok(lines
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect())
    }

    /// The target's resident memory, where its admin port was given; that it cannot be had is no
    /// reason to throw away what was measured.
    pub fn resident(&self) -> Option<u64> {
        let found = self.ask_resident(self.admin.as_ref()?);
        found
            .inspect_err(|error| eprintln!("the memory of the target is not known: {error:#}"))
            .ok()
    }

    fn ask_resident(&self, url: &str) -> anyhow::Result<u64> {
        let ca_file = self.ca_file.as_deref();
        let token: Vec<String> = self.token().into_iter().collect();
        let admin = Target::new(url, &token, Version::Http1, ca_file, self.timeout);
        let admin = admin.map_err(|message| anyhow!(message))?;
        let text = runtime()?.block_on(admin.text("/metrics"));
        let text = text.map_err(|cause| unreachable(&admin, cause))?;
        let resident = text
            .lines()
            .find_map(|line| line.strip_prefix("memory_rss_bytes "));
        let bytes = resident.and_then(|number| number.parse().ok());
        bytes.with_context(|| {
            format!("{url}/metrics has no memory_rss_bytes (does it want IRIS_ADMIN_TOKEN?)")
        })
    }

    /// Of the admin port.
    pub fn token(&self) -> Option<String> {
        let said = environment("IRIS_ADMIN_TOKEN").filter(|token| !token.is_empty());
        said.or_else(|| self.configured_token.clone())
    }

    /// Opens what the report is written to, before an hour is measured for nothing.
    pub fn outputs(&self) -> anyhow::Result<Outputs> {
        let open = |path: &Option<PathBuf>| path.as_deref().map(Output::open).transpose();
        Ok(Outputs {
            json: open(&self.json)?,
            prometheus: open(&self.prometheus)?,
            html: open(&self.html)?,
        })
    }
}

/// Where a report goes beside the terminal.
pub struct Outputs {
    json: Option<Output>,
    prometheus: Option<Output>,
    html: Option<Output>,
}

impl Outputs {
    /// Prints the report, and writes it wherever it is wanted.
    pub fn finish(self, report: &Report) -> anyhow::Result<Measured> {
        // A pager that was closed early has seen enough.
        let _ = std::io::stdout().write_all(report.table().as_bytes());
        if let Some(output) = self.json {
            output.write(&(serde_json::to_string_pretty(report)? + "\n"))?;
        }
        if let Some(output) = self.prometheus {
            output.write(&report.prometheus())?;
        }
        if let Some(output) = self.html {
            output.write(&html::page(report))?;
        }
        Ok(if is_missed(&report.judged) {
            Measured::Missed
        } else {
            Measured::Met
        })
    }
}

/// A file to be written at the end. One that is made for it goes again where nothing is written.
struct Output {
    path: PathBuf,
    file: File,
    goes_again: bool,
}

impl Output {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let mut options = File::options();
        options.write(true);
        let made = options.clone().create_new(true).open(path);
        let goes_again = made.is_ok();
        let file = made.or_else(|_| options.open(path));
        Ok(Self {
            file: file.with_context(|| format!("{} cannot be written", path.display()))?,
            path: path.to_owned(),
            goes_again,
        })
    }

    fn write(mut self, text: &str) -> anyhow::Result<()> {
        let is_file = self.file.metadata().is_ok_and(|about| about.is_file());
        let written = if is_file && !self.goes_again {
            // What is there stays until the new one is whole.
            let mut beside = self.path.clone().into_os_string();
            beside.push(".new");
            let place = self
                .path
                .canonicalize()
                .unwrap_or_else(|_| self.path.clone());
            std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, place))
        } else {
            self.file.write_all(text.as_bytes())
        };
        self.goes_again = false;
        written.with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.goes_again {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("no runtime")
}

pub fn unreachable(target: &Target, cause: Cause) -> anyhow::Error {
    let why = match cause {
        Cause::Dns => "its name does not resolve",
        Cause::Connect => "it does not accept connections: does it run?",
        Cause::Tls => "TLS with it failed: --ca-file names the roots to trust",
        Cause::Timeout => "it does not answer in time (--timeout)",
        Cause::Closed | Cause::Protocol | Cause::Unsent => "it does not answer in HTTP",
    };
    anyhow!("{}: {why}", target.shown())
}
