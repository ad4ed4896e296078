//! Redis or Valkey: alone, behind Sentinels, or as a cluster, by the scheme of its URL.
//!
//! Commands go over a pool of pipelined connections. What is more than one command is a script (in
//! `lua/`), so that it is one round trip and nothing comes between. One connection more hears of
//! ended leases and of a longer purge log.

mod listen;
mod password;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Pool;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, KeysInterface, LuaInterface};
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, TlsConfig, TlsConnector,
    UnresponsiveConfig,
};
use fred::types::{Builder, Expiration, Key, SetOptions, Value};
use rustls::ClientConfig;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

use crate::store::purge::fleet::{Cursor, Outgoing, Stamp, Synced};

use super::names::FleetNames;
use super::{
    Answer, Asking, Event, Instances, Question, SecondTier, Settlement, Taken, Taking, TierError,
    Wants,
};
use listen::{RECONNECT_MILLIS, listen};
use password::PasswordFile;
use values::{millis, number, read_answer, read_synced, to_bytes, to_number, write_purge};

/// Where it is, and how many connections it gets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `redis://`, `rediss://`, `redis-cluster://`, `redis-sentinel://`, with user, password and
    /// database where there are some.
    pub url: String,
    /// What every key begins with.
    pub prefix: String,
    pub connections: usize,
    /// Whose first line is the password, in the place of the URL's.
    pub password_file: Option<PathBuf>,
    /// Bytes of the largest response that is read.
    pub largest: u64,
    /// For `rediss…://`.
    pub tls: Option<Arc<ClientConfig>>,
}

/// What a URL can begin with; the client library takes any other for the first.
const SCHEMES: [&str; 6] = [
    "redis",
    "rediss",
    "redis-cluster",
    "rediss-cluster",
    "redis-sentinel",
    "rediss-sentinel",
];

/// Bytes of the longest note, and one more.
const LONGEST_NOTE: usize = 64 << 10;

/// How long a connection may take to be made, and a command to be answered at the very most: what
/// is asked has shorter deadlines of its own.
const PATIENCE: Duration = Duration::from_secs(1);

/// Commands that may wait for a connection.
const MOST_WAITING: usize = 10_000;

/// Messages that may come in one burst before somebody hears them.
const MOST_UNHEARD: usize = 16_384;

/// Purges of the log that stand as they came, and purges that it holds at most, compacted ones
/// included. An instance that is further behind than the first drops what it has stored.
const WINDOW: u64 = 8192;
const MOST_PURGES: u64 = 16_384;

/// Purges that one look brings.
const MOST_READ: u64 = 1024;

/// How long the log outlives its last reader.
const LOG_LIVES: Duration = Duration::from_secs(7 * 24 * 3600);

/// Responses that an hour's list of the most used holds, and how long it is of use.
const MOST_USED: u64 = 8192;
const USED_LIVES: Duration = Duration::from_secs(2 * 3600);

/// An instance that was not heard for so long is taken for gone.
const INSTANCE_LIVES: Duration = Duration::from_secs(3);

/// A script, and its name in Redis.
struct Script {
    text: &'static str,
    sha: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        let sha = fred::util::sha1_hash(text);
        Self { text, sha }
    }
}

struct Scripts {
    look_up: Script,
    settle: Script,
    renew: Script,
    append: Script,
    sync: Script,
    instances: Script,
    used: Script,
    most_used: Script,
    take: Script,
}

/// A pool of pipelined connections, and one that listens.
pub struct Redis {
    pool: Pool,
    names: FleetNames,
    /// Of this instance, random.
    instance: String,
    /// The connection that listens is of no use.
    anew: Arc<Notify>,
    scripts: Scripts,
    largest: u64,
}

impl Redis {
    /// Begins to connect, on the runtime that this is called from, and goes on trying: a server
    /// that is not there yet is no error. The URL can be one. What is heard goes to `events`.
    pub fn connect(
        settings: &Settings,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Self, TierError> {
        let builder = builder(settings)?;
        let pool = builder.build_pool(settings.connections);
        let pool = pool.map_err(|error| failed(&error))?;
        let listener = builder.build().map_err(|error| failed(&error))?;
        let names = FleetNames::new(&settings.prefix);
        let instance = uuid::Uuid::new_v4().simple().to_string();
        let channels = [
            names.grown.clone(),
            names.recalled.clone(),
            format!("{}{instance}", names.channels),
        ];
        let anew = Arc::new(Notify::new());
        let redis = Self {
            pool,
            names,
            instance,
            anew,
            largest: settings.largest,
            scripts: Scripts {
                look_up: Script::new(include_str!("../lua/look_up.lua")),
                settle: Script::new(include_str!("../lua/settle.lua")),
                renew: Script::new(include_str!("../lua/renew.lua")),
                append: Script::new(include_str!("../lua/append.lua")),
                sync: Script::new(include_str!("../lua/sync.lua")),
                instances: Script::new(include_str!("../lua/instances.lua")),
                used: Script::new(include_str!("../lua/used.lua")),
                most_used: Script::new(include_str!("../lua/most_used.lua")),
                take: Script::new(include_str!("../lua/take.lua")),
            },
        };
        drop(redis.pool.connect());
        let again = Arc::clone(&redis.anew);
        tokio::spawn(listen(listener, channels, events, again));
        Ok(redis)
    }

    /// Runs a script by its name, or by its text where the server does not know it.
    async fn run(
        &self,
        script: &Script,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<Value, TierError> {
        let known = self
            .pool
            .evalsha(script.sha.as_str(), keys.clone(), arguments.clone());
        let ran: Result<Value, Error> = match known.await {
            // Nothing ran: it can go again.
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                self.pool.eval(script.text, keys, arguments).await
            }
            ran => ran,
        };
        ran.map_err(|error| failed(&error))
    }

    /// Of this instance.
    fn channel(&self) -> String {
        format!("{}{}", self.names.channels, self.instance)
    }

    fn log(&self) -> Vec<Key> {
        let names = &self.names;
        [&names.meta, &names.stream, &names.compacted]
            .map(|name| name.as_str().into())
            .to_vec()
    }
}

fn builder(settings: &Settings) -> Result<Builder, TierError> {
    let scheme = settings.url.split("://").next().unwrap_or_default();
    if !SCHEMES.contains(&scheme) {
        let message = format!("the URL of Redis begins with one of {SCHEMES:?} and \"://\"");
        return Err(TierError::Failed(message));
    }
    // The library would make TLS settings of its own from the scheme.
    let plain = match settings.url.strip_prefix("rediss") {
        Some(rest) => format!("redis{rest}"),
        None => settings.url.clone(),
    };
    let mut config = Config::from_url(&plain).map_err(|error| failed(&error))?;
    if scheme.starts_with("rediss") {
        let tls = settings.tls.clone().ok_or_else(|| {
            TierError::Failed("a rediss:// URL, and no certificates to check it by".to_owned())
        })?;
        let connector = tokio_rustls::TlsConnector::from(tls);
        config.tls = Some(TlsConfig::from(TlsConnector::Rustls(connector)));
    }
    config.fail_fast = false;
    if let Some(path) = settings.password_file.clone() {
        let user = config.username.clone();
        config.credential_provider = Some(Arc::new(PasswordFile { user, path }));
    }
    let mut builder = Builder::from_config(config);
    builder
        .with_connection_config(|connection: &mut ConnectionConfig| {
            connection.connection_timeout = PATIENCE;
            connection.internal_command_timeout = PATIENCE;
            // A command that was sent may have been done: it is not sent again.
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = MOST_WAITING;
            connection.reconnect_on_auth_error = true;
            connection.tcp.nodelay = Some(true);
            // A server that is frozen keeps its connections open.
            connection.unresponsive = UnresponsiveConfig {
                max_timeout: Some(PATIENCE),
                interval: PATIENCE / 4,
            };
        })
        .with_performance_config(|performance: &mut PerformanceConfig| {
            performance.default_command_timeout = PATIENCE;
            performance.broadcast_channel_capacity = MOST_UNHEARD;
        })
        .set_policy(ReconnectPolicy::new_constant(0, RECONNECT_MILLIS));
    Ok(builder)
}

fn failed(error: &Error) -> TierError {
    match error.kind() {
        ErrorKind::Timeout => TierError::Late,
        _ => TierError::Failed(error.to_string()),
    }
}

impl SecondTier for Redis {
    fn look_up(&self, question: Question) -> Asking<'_, Answer> {
        Box::pin(async move {
            let Question {
                place,
                wants,
                generation,
                known,
                token,
                lease_ttl,
                position,
            } = question;
            let (wanted, over) = match wants {
                Wants::Value => ("value", Value::from("")),
                Wants::ValueAlone => ("alone", Value::from("")),
                Wants::Lease => ("lease", Value::from("")),
                Wants::LeaseOf(token) => ("lease", number(token)),
            };
            let keys = vec![place.value.as_str().into(), place.lease.as_str().into()];
            let arguments = vec![
                wanted.into(),
                generation.into(),
                number(token),
                millis(lease_ttl).into(),
                self.instance.as_str().into(),
                number(position),
                over,
                known.into(),
                number(self.largest),
            ];
            let answer = self.run(&self.scripts.look_up, keys, arguments).await?;
            read_answer(answer).ok_or_else(|| unexpected("look_up"))
        })
    }

    fn settle(&self, settlement: Settlement) -> Asking<'_, ()> {
        Box::pin(async move {
            let Settlement {
                lease,
                outcome,
                store,
            } = settlement;
            let (value, record) = match &store {
                Some(store) => {
                    let record = store.record.as_ref().map(|(name, _)| name.as_str());
                    (Some(store.value.as_str()), record)
                }
                None => (None, None),
            };
            let lease_name = lease.as_ref().map(|(name, _)| name.as_str());
            // All in one slot; what is not needed is named by what is.
            let any = lease_name.or(value).unwrap_or_default();
            let keys = [lease_name, value, record].map(|name| Key::from(name.unwrap_or(any)));
            let kind = match &store {
                None => "none",
                Some(store) if store.record.is_some() => "variant",
                Some(_) => "plain",
            };
            let mut arguments = vec![
                lease
                    .as_ref()
                    .map_or("".into(), |(_, token)| number(*token)),
                outcome.as_str().into(),
                self.names.channels.as_str().into(),
                kind.into(),
            ];
            if let Some(store) = store {
                arguments.push(store.bytes.into());
                arguments.push(millis(store.ttl).into());
                if let Some((_, names)) = store.record {
                    let generation = uuid::Uuid::new_v4().as_u64_pair().1;
                    arguments.push(names.into());
                    arguments.push(Bytes::copy_from_slice(&generation.to_be_bytes()).into());
                }
            }
            self.run(&self.scripts.settle, keys.to_vec(), arguments)
                .await?;
            Ok(())
        })
    }

    fn renew<'a>(&'a self, lease: &'a str, token: u64, ttl: Duration) -> Asking<'a, ()> {
        Box::pin(async move {
            let arguments = vec![number(token), millis(ttl).into()];
            self.run(&self.scripts.renew, vec![lease.into()], arguments)
                .await?;
            Ok(())
        })
    }

    fn delete<'a>(&'a self, value: &'a str) -> Asking<'a, ()> {
        Box::pin(async move {
            let done: Result<(), _> = self.pool.del(value).await;
            done.map_err(|error| failed(&error))
        })
    }

    fn noted(&self, name: String) -> Asking<'_, Option<Bytes>> {
        Box::pin(async move {
            // A note is short; one byte more than that shows that it is none.
            let found: Result<Bytes, _> = self.pool.getrange(name, 0, LONGEST_NOTE).await;
            let found = found.map_err(|error| failed(&error))?;
            Ok((!found.is_empty()).then_some(found))
        })
    }

    fn note(&self, name: String, value: Bytes, ttl: Duration) -> Asking<'_, ()> {
        Box::pin(async move {
            let expires = Some(Expiration::PX(millis(ttl)));
            let done: Result<(), _> = self.pool.set(name, value, expires, None, false).await;
            done.map_err(|error| failed(&error))
        })
    }

    fn note_first(&self, name: String, value: Bytes, ttl: Duration) -> Asking<'_, bool> {
        Box::pin(async move {
            let expires = Some(Expiration::PX(millis(ttl)));
            let unless = Some(SetOptions::NX);
            let done: Result<Option<String>, _> =
                self.pool.set(name, value, expires, unless, false).await;
            Ok(done.map_err(|error| failed(&error))?.is_some())
        })
    }

    fn take(&self, taking: Taking) -> Asking<'_, Taken> {
        Box::pin(async move {
            let arguments = vec![
                number(taking.limit),
                millis(taking.window).into(),
                number(taking.wanted),
                number(taking.back),
                number(taking.began),
                self.names.recalled.as_str().into(),
            ];
            let keys = vec![taking.name.into()];
            let taken = self.run(&self.scripts.take, keys, arguments).await?;
            let numbers = taken.into_array();
            let numbers: Option<Vec<u64>> = numbers.iter().map(to_number).collect();
            match numbers.as_deref() {
                Some([granted, left, retry, reset, began]) => Ok(Taken {
                    granted: *granted,
                    left: *left,
                    retry: Duration::from_millis(*retry),
                    reset: Duration::from_millis(*reset),
                    began: *began,
                }),
                _ => Err(unexpected("take")),
            }
        })
    }

    fn listen_anew(&self) {
        self.anew.notify_one();
    }

    fn ping(&self) -> Asking<'_, ()> {
        Box::pin(async move {
            let done: Result<(), _> = self.pool.ping(None).await;
            done.map_err(|error| failed(&error))
        })
    }

    fn append(&self, purges: Vec<Outgoing>) -> Asking<'_, Stamp> {
        Box::pin(async move {
            let mut arguments = vec![
                number(uuid::Uuid::new_v4().as_u64_pair().1.max(1)),
                self.names.grown.as_str().into(),
                number(WINDOW),
                number(MOST_PURGES),
                millis(LOG_LIVES).into(),
            ];
            for purge in purges {
                write_purge(purge, &mut arguments);
            }
            let mut keys = self.log();
            keys.push(self.names.revoked.as_str().into());
            let appended = self.run(&self.scripts.append, keys, arguments).await?;
            let stamp = appended.into_array();
            match &stamp[..] {
                [epoch, position] => Option::zip(to_number(epoch), to_number(position)),
                _ => None,
            }
            .map(|(epoch, position)| Stamp { epoch, position })
            .ok_or_else(|| unexpected("append"))
        })
    }

    fn sync(&self, cursor: Cursor) -> Asking<'_, Synced> {
        Box::pin(async move {
            let mut keys = self.log();
            keys.push(self.names.instances.as_str().into());
            keys.push(self.names.revoked.as_str().into());
            let arguments = vec![
                number(uuid::Uuid::new_v4().as_u64_pair().1.max(1)),
                number(cursor.stamp.epoch),
                number(cursor.stamp.position),
                number(cursor.token),
                self.instance.as_str().into(),
                number(MOST_READ),
                millis(LOG_LIVES).into(),
                self.channel().into(),
            ];
            let synced = self.run(&self.scripts.sync, keys, arguments).await?;
            read_synced(synced).ok_or_else(|| unexpected("sync"))
        })
    }

    fn instances(&self, stamp: Stamp) -> Asking<'_, Instances> {
        Box::pin(async move {
            let keys = vec![self.names.instances.as_str().into()];
            let arguments = vec![
                number(stamp.epoch),
                number(stamp.position),
                INSTANCE_LIVES.as_secs().to_string().into(),
            ];
            let counted = self.run(&self.scripts.instances, keys, arguments).await?;
            match &counted.into_array()[..] {
                [acknowledged, alive] => Option::zip(to_number(acknowledged), to_number(alive)),
                _ => None,
            }
            .map(|(acknowledged, alive)| Instances {
                acknowledged,
                alive,
            })
            .ok_or_else(|| unexpected("instances"))
        })
    }

    fn note_used(&self, hour: u64, counts: Vec<(Bytes, u64)>) -> Asking<'_, ()> {
        Box::pin(async move {
            let keys = vec![self.names.used_in(hour).into()];
            let mut arguments = vec![number(MOST_USED), millis(USED_LIVES).into()];
            for (key, uses) in counts {
                arguments.extend([key.into(), number(uses)]);
            }
            self.run(&self.scripts.used, keys, arguments).await?;
            Ok(())
        })
    }

    fn most_used(&self, hour: u64, most: usize) -> Asking<'_, Vec<(Bytes, u64)>> {
        Box::pin(async move {
            let hours = [hour, hour.saturating_sub(1)];
            let keys = hours.map(|hour| self.names.used_in(hour).into()).to_vec();
            let arguments = vec![number(most as u64)];
            let used = self.run(&self.scripts.most_used, keys, arguments).await?;
            let used = used.into_array();
            let pair = |pair: &[Value]| {
                let [key, uses] = pair else { return None };
                Some((Bytes::copy_from_slice(to_bytes(key)?), to_number(uses)?))
            };
            let used = used.chunks(2).map(pair).collect::<Option<_>>();
            used.ok_or_else(|| unexpected("most_used"))
        })
    }
}

fn unexpected(script: &str) -> TierError {
    TierError::Failed(format!("an answer to {script} that is none"))
}
