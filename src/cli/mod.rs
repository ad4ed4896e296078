//! The command line: arguments → one function a subcommand → exit status.

mod bench;
mod check;
mod control;
mod ending;
mod load_test;
mod logging;
mod measuring;
mod origin;
mod place;
mod running;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};

use crate::config::{Config, units, variables};
use crate::give_back;
use crate::process::{Sidecar, settings};
use crate::server::cores;
use crate::supervisor;

use ending::{Ending, environment, load as load_config};
use logging::{LogFormat, log_format, start_logging};
use measuring::Measured;

/// The release, and the commit that it was built from.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("IRIS_COMMIT"), ")");

/// The same, with what is in it.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("IRIS_COMMIT"),
    ")\ntarget:   ",
    env!("IRIS_TARGET"),
    "\nclients:  HTTP/1.1, HTTP/2, TLS 1.2 and 1.3 (rustls, aws-lc-rs, X25519MLKEM768), PROXY \
        protocol",
    "\nupstream: HTTP/1.1, HTTP/2, gRPC, TLS, Unix sockets",
    "\nshared:   Redis (alone, Sentinel, cluster)",
    "\norigin:   SQLite, Postgres",
    "\nbeside:   Prometheus, systemd"
);

/// A reverse caching proxy that runs beside an HTTP API and makes it fast without touching it.
///
/// Without a command it serves, and without a file it serves its built-in demo API on
/// 127.0.0.1:8080 with metrics on 127.0.0.1:9180.
#[derive(Debug, Parser)]
#[command(name = "iris-sidecar", version = VERSION, long_version = LONG_VERSION)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
#[command(
    after_help = "Example: iris-sidecar                        (the demo API, and what to \
        try)\n         iris-sidecar --config iris.toml\n\nExit status: 0 done, 1 failed while \
        running or targets missed, 2 bad arguments or configuration, or nothing to measure."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT
    #[command(
        after_help = "Example: iris-sidecar serve --config iris.toml\n\nExit status: 0 ended by a \
            signal, 1 failed while running, 2 a mistake in arguments or configuration."
    )]
    Serve(ServeArguments),
    /// The built-in origin's database: tables, demo data, API keys
    #[command(
        after_help = "Example: iris-sidecar origin create-key --project my-project --database \
            sqlite:iris.db\n\nExit status: 0 done, 1 the database failed or has no such key, 2 a \
            mistake in arguments or configuration."
    )]
    Origin(OriginArguments),
    /// Measure a target: each endpoint, sequentially and concurrently, against targets
    Bench(Box<bench::BenchArguments>),
    /// Put a target under load: smoke, load, stress, spike, or a scenario of your own
    LoadTest(Box<load_test::LoadArguments>),
    /// Check a configuration and print its routes as they take effect
    #[command(after_help = "Example: iris-sidecar check iris.toml --against \
            http://127.0.0.1:9180\n\nExit status: 0 valid (warnings included), 1 the sidecar of \
            --against does not answer, 2 mistakes.")]
    Check {
        /// The configuration to check
        file: PathBuf,
        /// Print what differs from what this sidecar runs with
        #[arg(long, value_name = "ADMIN_URL")]
        against: Option<String>,
    },
    /// Print this message, or the help of a command
    #[command(
        after_help = "Example: iris-sidecar help origin create-key\n\nExit status: 0 done, 2 no \
            such command."
    )]
    Help {
        /// The command, such as: origin create-key
        #[arg(value_name = "COMMAND")]
        words: Vec<String>,
    },
    /// Print what a shell needs to complete commands: bash, zsh, fish, elvish or powershell
    #[command(after_help = "Example: iris-sidecar completions bash > \
            /etc/bash_completion.d/iris-sidecar\n\nExit status: 0 done, 2 no such shell.")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    #[command(flatten)]
    Control(control::Order),
}

#[derive(Debug, Args)]
struct OriginArguments {
    /// The configuration whose [origin] is meant
    #[arg(long, short, value_name = "FILE", global = true, env = "IRIS_CONFIG", value_parser = place::path())]
    config: Option<PathBuf>,
    /// The database, in the place of the configured one
    #[arg(long, value_name = "URL", global = true)]
    database: Option<String>,
    #[command(subcommand)]
    task: origin::Task,
}

#[derive(Debug, Args)]
struct ServeArguments {
    /// The configuration; see config/reference.toml for every key, and the README for variables of
    /// the environment that say the most used ones
    #[arg(long, short, value_name = "FILE", env = "IRIS_CONFIG", value_parser = place::path())]
    config: Option<PathBuf>,
    /// How log lines look on stderr, "human" or "json"; RUST_LOG sets what is logged
    #[arg(long, value_parser = log_format, default_value = "human", value_name = "FORMAT", env = "IRIS_LOG_FORMAT")]
    log_format: LogFormat,
}

/// Runs the command that the arguments name. Bad arguments end the process with status 2.
///
/// `give_back` gives what the calling thread has freed back to the system: the threads of a sidecar
/// call it by and by.
pub fn main(give_back: fn()) -> ExitCode {
    give_back::by(give_back);
    let arguments = Arguments::parse();
    let ending = match arguments.command {
        None => serve(&arguments.serve),
        Some(Command::Serve(arguments)) => serve(&arguments),
        Some(Command::Check { file, against }) => check::check(&file, against.as_deref()),
        Some(Command::Completions { shell }) => {
            let (mut command, name) = (Arguments::command(), "iris-sidecar");
            clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
            Ending::Done
        }
        Some(Command::Help { words }) => help(&words),
        Some(Command::Control(order)) => control::carry_out(&order),
        Some(Command::Origin(arguments)) => carry_out(arguments),
        Some(Command::Bench(arguments)) => measured(bench::bench(*arguments)),
        Some(Command::LoadTest(arguments)) => measured(load_test::load_test(&arguments)),
    };
    match ending {
        Ending::Done => ExitCode::SUCCESS,
        Ending::Missed => ExitCode::from(1),
        Ending::Failed(error) => {
            error!("{error:#}");
            ExitCode::from(1)
        }
        Ending::Unreadable(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
        Ending::Refused(mistakes) => {
            for mistake in &mistakes {
                eprintln!("{mistake}");
            }
            let (count, plural) = (mistakes.len(), if mistakes.len() == 1 { "" } else { "s" });
            eprintln!("{count} mistake{plural}: nothing was started");
            ExitCode::from(2)
        }
    }
}

fn help(words: &[String]) -> Ending {
    let mut command = Arguments::command();
    command.build();
    let mut found = &mut command;
    for word in words {
        let names: Vec<String> = found
            .get_subcommands()
            .map(|one| one.get_name().to_owned())
            .collect();
        let Some(inner) = found.find_subcommand_mut(word) else {
            let message = format!("no command {word:?}: expected one of {}", names.join(", "));
            return Ending::Unreadable(anyhow::anyhow!(message));
        };
        found = inner;
    }
    // A pager that was closed early has seen enough.
    let _ = found.print_long_help();
    Ending::Done
}

fn serve(arguments: &ServeArguments) -> Ending {
    start_logging(arguments.log_format);
    if let Some(wrong) = misspelt() {
        return Ending::Unreadable(wrong);
    }
    let file = place::given(arguments.config.as_ref());
    let config = match file {
        Some(file) => load_config(file),
        None => Config::built_in(&environment).map_err(Ending::Refused),
    };
    match config {
        Err(ending) => ending,
        Ok(config) => match run(config, file, arguments.log_format) {
            Ok(()) => Ending::Done,
            Err(error) => Ending::Failed(error),
        },
    }
}

/// A variable of the environment that is nearly one of ours: what it was to say would be missed.
fn misspelt() -> Option<anyhow::Error> {
    std::env::vars_os().find_map(|(name, _)| {
        let name = name.to_str()?;
        let meant = variables::meant_by(name)?;
        let message =
            format!("the environment variable {name} is not known: did you mean {meant}?");
        Some(anyhow::anyhow!(message))
    })
}

fn carry_out(arguments: OriginArguments) -> Ending {
    start_logging(LogFormat::Human);
    let config = match place::given(arguments.config.as_ref()) {
        Some(file) => load_config(file),
        None => Config::built_in(&environment).map_err(Ending::Refused),
    };
    let config = match config {
        Ok(config) => config,
        Err(ending) => return ending,
    };
    let mut settings = settings(&config.origin);
    if let Some(url) = arguments.database {
        settings.url = url;
    }
    settings.may_create = arguments.task.may_create();
    if settings.url == "sqlite::memory:" {
        let is_fronted = config.upstream.is_some();
        let message = if is_fronted {
            "the configuration has an [upstream], and so no database of its own: name one by \
                --database, e.g. --database sqlite:iris.db"
        } else {
            "a database in memory is gone with this command: name one by --database or \
                --config, e.g. --database sqlite:iris.db"
        };
        return Ending::Unreadable(anyhow::anyhow!(message));
    }
    match origin::run(&config, settings, arguments.task) {
        Ok(()) => Ending::Done,
        Err(error) => Ending::Failed(error),
    }
}

fn measured(done: anyhow::Result<Measured>) -> Ending {
    match done {
        Ok(Measured::Met) => Ending::Done,
        Ok(Measured::Missed) => Ending::Missed,
        Err(error) => Ending::Unreadable(error),
    }
}

/// Starts, waits for a signal, drains.
fn run(config: Config, file: Option<&Path>, format: LogFormat) -> anyhow::Result<()> {
    let lines = Started::of(&config, file);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Whoever sees it serve may send one at once.
    let signals = {
        let _entered = runtime.enter();
        Signals::hear()?
    };
    let sidecar = Sidecar::start(config)?;
    let addresses = sidecar.addresses.iter().map(ToString::to_string);
    let (address, admin) = (
        addresses.collect::<Vec<_>>().join(" "),
        sidecar.admin_address,
    );
    info!(%address, %admin, "serving");
    lines.tell();
    info!("see what it does:  http://{admin}/");
    if lines.is_demo {
        let (key, of_whom) = match &sidecar.demo_key {
            Some(key) => (key.as_str(), "twice"),
            None => ("sk_live_…", "with a key of: iris-sidecar origin create-key"),
        };
        info!("try it, {of_whom}:");
        let first = sidecar
            .addresses
            .first()
            .map_or_else(String::new, ToString::to_string);
        let (curl, url) = (
            format!("curl -i -H 'Authorization: Bearer {key}'"),
            format!("http://{first}/api/iris/overview"),
        );
        match format {
            LogFormat::Json => info!("{curl} {url}"),
            // To be copied, from a terminal that may be narrow.
            LogFormat::Human => eprintln!("    {curl} \\\n      {url}"),
        }
    }
    supervisor::ready(&format!("serving on {address}, admin on {admin}"));
    runtime.block_on(until_closed(&sidecar, signals));
    let deadline = sidecar.proxy.plan().config.listen.drain_timeout;
    info!(deadline = %units::show_duration(deadline), "closing: what is under way ends");
    sidecar.drain();
    sidecar.join();
    info!("done");
    Ok(())
}

/// What of a configuration is told at the start, in lines that fit a terminal.
struct Started {
    file: String,
    upstream: String,
    routes: usize,
    workers: usize,
    memory: String,
    /// The built-in origin answers.
    is_demo: bool,
}

impl Started {
    fn of(config: &Config, file: Option<&Path>) -> Self {
        let upstream = config.upstream.as_ref();
        let file = file.map(|file| file.display().to_string());
        Self {
            file: file.unwrap_or_else(|| "none: built-in".to_owned()),
            upstream: upstream.map_or_else(
                || "the built-in origin".to_owned(),
                |upstream| upstream.shown(),
            ),
            routes: config.routes.list().len(),
            workers: config.listen.workers.unwrap_or_else(cores),
            memory: units::show_size(config.cache.memory),
            is_demo: upstream.is_none(),
        }
    }

    fn tell(&self) {
        let Self {
            file,
            upstream,
            routes,
            workers,
            memory,
            ..
        } = self;
        info!(file, routes, "configuration");
        info!(upstream, "answers come from");
        info!(workers, memory, "uses");
    }
}

/// The signals of an operator, heard from when this is made.
struct Signals {
    hang_up: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// On the runtime that is entered.
    fn hear() -> std::io::Result<Self> {
        Ok(Self {
            hang_up: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Runs until it is time to close: a signal or the admin port has ordered the end, and those who
/// send clients have had time to see that.
async fn until_closed(sidecar: &Sidecar, signals: Signals) {
    let Signals {
        mut hang_up,
        mut terminate,
        mut interrupt,
    } = signals;
    let why = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            () = sidecar.end_ordered() => break "POST /drain",
            _ = hang_up.recv() => sidecar.reload("SIGHUP"),
        }
    };
    supervisor::stopping("what is under way ends");
    let delay = sidecar.leave();
    let shown = units::show_duration(Duration::from_millis(
        delay.as_micros().div_ceil(1000) as u64
    ));
    info!(why, delay = %shown, "unready, and going on for the delay (listen.drain_delay); a \
        second signal skips it");
    // Where the admin port has ordered it (a preStop hook, say), the first signal is no second one.
    let mut signals = usize::from(why != "POST /drain");
    let mut delay = std::pin::pin!(tokio::time::sleep(delay));
    while signals < 2 {
        tokio::select! {
            () = &mut delay => break,
            _ = terminate.recv() => signals += 1,
            _ = interrupt.recv() => signals += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_has_an_example_and_says_the_exit_statuses() {
        fn look(command: &mut clap::Command, path: &str, seen: &mut u32) {
            let help = command.render_long_help().to_string();
            for words in ["Example: iris-sidecar", "Exit status: 0 "] {
                assert!(help.contains(words), "{path}: {help}");
            }
            *seen += 1;
            for inner in command.get_subcommands_mut() {
                let path = format!("{path} {}", inner.get_name());
                look(inner, &path, seen);
            }
        }
        let (mut command, mut seen) = (Arguments::command(), 0);
        command.build();
        look(&mut command, "iris-sidecar", &mut seen);
        assert!(seen >= 20, "{seen}");
    }
}
