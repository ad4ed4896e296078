//! The whole process, put together: configuration → origin → proxy → server and admin → drain.
//!
//! Tests start and stop it as `main` does, with a clock and an origin of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::admin::Admin;
use crate::clock::Clock;
use crate::config::{self, Address, Config, DEFAULT_UPSTREAM, JournalPlace, VerdictSource};
use crate::container;
use crate::database::{self, Database};
use crate::descriptors;
use crate::give_back;
use crate::guard::Source;
use crate::metrics::Metrics;
use crate::origin::BuiltIn;
use crate::proxy::{Proxy, Shared};
use crate::reload::Reloader;
use crate::server::hearts::{Hearts, STUCK_AFTER};
use crate::server::phase::Phases;
use crate::server::{Server, workers};
use crate::store::PurgeLog;
use crate::store::purge::fleet::Outgoing;
use crate::store::purge::journal::{Journal, Left};
use crate::store::second::redis::Settings;
use crate::store::second::seal::Seal;
use crate::store::second::tier::Extent;
use crate::store::second::{Patience, Redis, Second, SecondTier};
use crate::supervisor;
use crate::tls;
use crate::upstream::{Breaker, Origin, Several, Upstream};

/// A running sidecar.
pub struct Sidecar {
    /// The first TCP address that clients come in by; port 0 where there is none.
    pub address: SocketAddr,
    /// All of them, in the order of the configuration.
    pub addresses: Vec<Address>,
    pub admin_address: SocketAddr,
    pub proxy: Arc<Proxy>,
    /// Of the demo data, where that was made by this start: it is not seen again.
    pub demo_key: Option<String>,
    server: Server,
    phases: Arc<Phases>,
    reloader: Arc<Reloader>,
    background: Background,
}

impl Sidecar {
    /// Starts everything and returns when it is ready to serve.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        Self::start_with(config, Clock::System, None)
    }

    /// As [`Sidecar::start`], with this clock, and with `origin` in the place of the configured
    /// one.
    pub fn start_with(
        config: Config,
        clock: Clock,
        origin: Option<Arc<dyn Origin>>,
    ) -> anyhow::Result<Self> {
        let mut config = config;
        descriptors::prepare(&mut config);
        container::look_over(&config, container::memory_limit());
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::new());
        let background = Background::start()?;
        background.handle.spawn(give_back::by_and_by());
        let opening = opened_database(Arc::clone(&config), Arc::clone(&metrics), origin.is_some());
        let database = background.wait_for(opening)??;
        let key_table = database.clone();
        let source = Source::of(&config.auth, &metrics, database.as_ref());
        let source = source.map_err(|message| anyhow!(message))?;
        let (origin, demo_key) = match origin {
            Some(origin) => (origin, None),
            None => background.wait_for(configured_origin(
                Arc::clone(&config),
                Arc::clone(&metrics),
                clock.clone(),
                database,
            ))??,
        };
        let shared = background.wait_for(shared_with_fleet(
            Arc::clone(&config),
            Arc::clone(&metrics),
            clock.clone(),
        ))??;
        let proxy = Proxy::new(
            Arc::clone(&config),
            metrics,
            origin,
            clock,
            Shared { source, ..shared },
        );
        let config = Arc::clone(&proxy.plan().config);
        proxy
            .open_access_log(&config)
            .map_err(|message| anyhow!(message))?;
        let for_background = Arc::clone(&proxy);
        background.wait_for(async move { for_background.spawn_background() })?;
        let phases = Arc::new(Phases::default());
        let reloader = Reloader::new(Arc::clone(&proxy), key_table);
        background.handle.spawn(Arc::clone(&reloader).watch());

        // The admin port first: whoever sees the service port open may ask for its health.
        let wanted = config.admin.address;
        let listener = background.wait_for(TcpListener::bind(wanted))?;
        let listener = listener.with_context(|| in_use("admin", wanted))?;
        let admin_address = listener.local_addr()?;
        if let Some(address) = reached_by_others(&proxy.plan().config, admin_address) {
            proxy.set_admin(address);
        }
        let hearts = Arc::new(Hearts::new(workers(&proxy.plan().config.listen)));
        let life = (Arc::clone(&phases), Arc::clone(&hearts));
        let admin = Admin::new(Arc::clone(&reloader), life);
        background.handle.spawn(admin.serve(listener));

        let server = Server::start(&proxy, &phases, &hearts)
            .with_context(|| in_use("listen", config.listen.shown()))?;
        let addresses = server.addresses.clone();
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        phases.start();
        let lives = move || hearts.stuck(STUCK_AFTER).is_empty();
        background
            .handle
            .spawn(supervisor::say_that_it_lives(lives));
        Ok(Self {
            address: addresses.iter().find_map(Address::tcp).unwrap_or(nowhere),
            addresses,
            admin_address,
            proxy,
            demo_key,
            server,
            phases,
            reloader,
            background,
        })
    }

    /// Reads the configuration again and puts it in force; what comes of it stands in the log.
    /// `why` does too.
    pub fn reload(&self, why: &str) {
        let _ = self.reloader.reload(why);
        self.proxy.reopen_access_log();
    }

    /// Waits until the admin port orders the end.
    pub async fn end_ordered(&self) {
        self.phases.ordered().await;
    }

    /// Begins the end: readiness turns false, and each answer says that it is its connection's
    /// last. Everything else goes on as before, for the time that is given back
    /// (`listen.drain_delay`, counted from when it became unready).
    pub fn leave(&self) -> Duration {
        self.phases.order_end();
        self.phases
            .left_of(self.proxy.plan().config.listen.drain_delay)
    }

    /// Closes: what waits in the backlog is still accepted, then nothing more; requests in flight
    /// finish, or are cut at the deadline (`listen.drain_timeout`).
    pub fn drain(&self) {
        self.phases.close();
    }

    /// Waits until the drain has ended. Blocks; the admin port answers until then.
    pub fn join(self) {
        self.server.join();
        let proxy = Arc::clone(&self.proxy);
        let finishing = async move { proxy.finish(REDIS_AT_END).await };
        // The runtime ends after this, and not before.
        let _ = self.background.wait_for(finishing);
        self.background.stop();
    }
}

/// Where other instances reach the admin port: of a wildcard, the address by which this machine
/// reaches Redis.
fn reached_by_others(config: &Config, admin: SocketAddr) -> Option<SocketAddr> {
    if !admin.ip().is_unspecified() {
        return Some(admin);
    }
    let redis: url::Url = config.cache.redis.as_ref()?.url.parse().ok()?;
    let place = (redis.host_str()?, redis.port().unwrap_or(6379));
    let towards = std::net::UdpSocket::bind((admin.ip(), 0)).ok()?;
    // Nothing is sent: the system only chooses the address.
    towards.connect(place).ok()?;
    Some(SocketAddr::new(
        towards.local_addr().ok()?.ip(),
        admin.port(),
    ))
}

fn in_use(section: &str, address: impl std::fmt::Display) -> String {
    format!(
        "{address} cannot be listened on: stop what uses it, or set another address in [{section}]"
    )
}

/// Where the built-in origin's database is, as it is configured.
pub fn settings(origin: &config::Origin) -> database::Settings {
    database::Settings {
        url: origin.database.clone(),
        replicas: origin.replicas.clone(),
        connections: origin.connections,
        query_timeout: origin.query_timeout,
        may_create: true,
    }
}

/// The database, where the built-in origin or the key table needs it.
async fn opened_database(
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    has_origin: bool,
) -> anyhow::Result<Option<Database>> {
    let is_origins = config.upstream.is_none() && !has_origin;
    if !is_origins && config.auth.source != VerdictSource::Table {
        return Ok(None);
    }
    let database = Database::open(settings(&config.origin), metrics).await?;
    if let Some(file) = config.origin.password_file.clone() {
        tokio::spawn(follow_password(database.clone(), file));
    }
    Ok(Some(database))
}

/// Between two looks at a file with a password.
const PASSWORD_EVERY: Duration = Duration::from_secs(2);

/// Gives the database the password that its file says, whenever that is another one. A file that
/// cannot be read leaves the last one in force.
async fn follow_password(database: Database, file: PathBuf) {
    let mut known = String::new();
    loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Some(password) = text.lines().next().filter(|password| *password != known) {
            database.set_password(password);
            known = password.to_owned();
        }
        tokio::time::sleep(PASSWORD_EVERY).await;
    }
}

/// The origin, and the key of its demo data where that was made now.
async fn configured_origin(
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    clock: Clock,
    database: Option<Database>,
) -> anyhow::Result<(Arc<dyn Origin>, Option<String>)> {
    if let Some(upstream) = &config.upstream {
        let start = |upstream: &config::Upstream, name: Option<&str>| -> anyhow::Result<_> {
            let place = name.filter(|name| *name != DEFAULT_UPSTREAM);
            let place = place.map_or("upstream".to_owned(), |name| format!("upstream.{name}"));
            let started = Upstream::named(upstream, Arc::clone(&metrics), name.map(Into::into));
            let started = started.map_err(|message| anyhow!("[{place}]: {message}"))?;
            tokio::spawn(Upstream::reap_idle(Arc::downgrade(&started)));
            tokio::spawn(Upstream::tend(Arc::downgrade(&started)));
            Ok(started as Arc<dyn Origin>)
        };
        if config.upstreams.is_empty() {
            return Ok((start(upstream, None)?, None));
        }
        let mut named = Vec::new();
        for (name, upstream) in &config.upstreams {
            named.push((Arc::clone(name), start(upstream, Some(name))?));
        }
        let main = start(upstream, Some(DEFAULT_UPSTREAM))?;
        return Ok((Arc::new(Several { main, named }), None));
    }
    let database = database.context("the built-in origin has no database")?;
    let breaker = Breaker::new(config.origin.breaker_failures, config.origin.breaker_open);
    let (origin, key) = BuiltIn::new(database, breaker, metrics, clock)
        .await
        .context("the demo data could not be written")?;
    tokio::spawn(Arc::clone(&origin).count_uses());
    Ok((origin, key))
}

/// How long the start waits for Redis: without it, memory alone answers until it is there.
const REDIS_AT_START: Duration = Duration::from_secs(1);

/// How long the end waits for Redis to be told what it does not know yet.
const REDIS_AT_END: Duration = Duration::from_secs(1);

/// What `[cache.redis]` brings.
async fn shared_with_fleet(
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    clock: Clock,
) -> anyhow::Result<Shared> {
    let Some(redis) = &config.cache.redis else {
        return Ok(Shared::default());
    };
    let tls = if redis.url.starts_with("rediss") {
        let tls = tls::client(redis.ca_file.as_deref(), "cache.redis.ca_file");
        Some(Arc::new(
            tls.map_err(|message| anyhow!("[cache.redis]: {message}"))?,
        ))
    } else {
        None
    };
    let settings = Settings {
        url: redis.url.clone(),
        prefix: redis.prefix.clone(),
        connections: redis.connections,
        password_file: redis.password_file.clone(),
        // A head, and what is beside it, are far less.
        largest: redis.max_object + (4 << 20),
        tls,
    };
    let (events, heard) = mpsc::unbounded_channel();
    let tier =
        Redis::connect(&settings, events).map_err(|error| anyhow!("[cache.redis] url: {error}"))?;
    let patience = Patience {
        read: redis.timeout,
        failures: redis.breaker_failures,
        open: redis.breaker_open,
        queue: redis.queue,
        max_silence: redis.max_silence,
        ..Patience::default()
    };
    let extent = Extent {
        prefix: redis.prefix.clone(),
        max_object: redis.max_object,
        seal: Seal::new(config.auth.secret.as_deref()),
    };
    let background = Handle::current();
    let tier: Arc<dyn SecondTier> = Arc::new(tier);
    let second = Second::start(tier, heard, extent, patience, metrics, &background);
    let purges = PurgeLog::of_fleet(redis.max_silence, clock.now());
    let purges = Arc::new(match journal(&config, &redis.journal)? {
        Some((journal, left)) => purges.with_journal(journal, left),
        None => purges,
    });
    let following = Arc::clone(&second).follow(Arc::clone(&purges), clock);
    background.spawn(following);
    if !second.becomes_usable(REDIS_AT_START).await {
        warn!("[cache.redis]: Redis does not answer: memory alone answers until it does");
    }
    let second = Some(second);
    Ok(Shared {
        purges,
        second,
        ..Shared::default()
    })
}

/// The journal of purges that Redis does not take, and what was left in it.
fn journal(
    config: &Config,
    place: &JournalPlace,
) -> anyhow::Result<Option<(Journal, Vec<Outgoing>)>> {
    let opened = match place {
        JournalPlace::Nowhere => return Ok(None),
        JournalPlace::At(path) => Journal::open(path).with_context(|| {
            format!(
                "[cache.redis] journal: {} cannot be opened: name a file in a folder that this \
                    user may write, or \"off\"",
                path.display()
            )
        })?,
        JournalPlace::Usual => {
            let state = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
            let state = state.map(|folder| folder.join("iris-sidecar.journal"));
            let beside = config
                .file
                .as_ref()
                .map(|file| file.with_extension("journal"));
            let mut places = state.into_iter().chain(beside);
            let Some(opened) = places.find_map(|path| Journal::open(&path).ok()) else {
                warn!(
                    "[cache.redis] journal: there is no file that can be written: purges that \
                    Redis does not take are lost when this instance ends (pending-volatile)"
                );
                return Ok(None);
            };
            opened
        }
    };
    let (journal, Left { purges, unreadable }) = opened;
    if !purges.is_empty() || unreadable > 0 {
        let (path, purges) = (journal.path().display(), purges.len());
        warn!(%path, purges, unreadable, "the fleet was not told of purges before: it is now");
    }
    Ok(Some((journal, purges)))
}

/// Threads for what blocks: packing what goes to Redis, the journal, names. Each has memory of its
/// own.
const BLOCKING: usize = 4;

/// The runtime of what must outlive the workers: admin, SQL, bookkeeping. One thread.
struct Background {
    handle: Handle,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Background {
    fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING)
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("background".to_owned());
        let thread = thread.spawn(move || drop(runtime.block_on(stopped)))?;
        Ok(Self {
            handle,
            stop,
            thread,
        })
    }

    /// Runs `future` there and blocks until it is done.
    fn wait_for<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.handle.spawn(async move {
            let _ = sender.send(future.await);
        });
        receiver.recv().context("the background runtime ended")
    }

    fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}
