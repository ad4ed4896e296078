//! Redis or Valkey: alone, behind Sentinels, or as a cluster, by the scheme of its URL.
//!
//! Commands go over a pool of pipelined connections. What is more than one command is a script (in
//! `lua/`), so that it is one round trip and nothing comes between. One connection more hears of
//! ended leases and of a longer purge log, and one appends to that log.

mod advice;
mod listen;
mod log;
mod password;
mod settings;
mod values;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, Pool};
use fred::error::Error;
use fred::interfaces::{ClientLike, KeysInterface, LuaInterface};
use fred::types::{Expiration, Key, SetOptions, Value};
use tokio::sync::{Notify, mpsc};

use crate::error::without_passwords;
use crate::store::purge::fleet::{Outgoing, Reader, Synced};

use super::names::FleetNames;
use super::{
    Answer, Appended, Asking, Event, Instance, Question, SecondTier, Settlement, Taken, Taking,
    TierError, Wants,
};
use listen::listen;
use settings::{builder, for_listening};
use values::{failed, millis, number, read_answer, to_bytes, to_number, unexpected};

pub use settings::Settings;

/// Bytes of the longest note, and one more.
const LONGEST_NOTE: usize = 64 << 10;

/// Responses that an hour's list of the most used holds, and how long it is of use.
const MOST_USED: u64 = 8192;
const USED_LIVES: Duration = Duration::from_secs(2 * 3600);

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

    /// Runs it by its name, or by its text where the server does not know it.
    async fn run(
        &self,
        client: &impl LuaInterface,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<Value, TierError> {
        let known = client.evalsha(self.sha.as_str(), keys.clone(), arguments.clone());
        let ran: Result<Value, Error> = match known.await {
            // Nothing ran: it can go again.
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                client.eval(self.text, keys, arguments).await
            }
            ran => ran,
        };
        ran.map_err(|error| failed(&error))
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

/// A pool of pipelined connections, one that listens, and one that appends to the purge log.
pub struct Redis {
    pool: Pool,
    /// Of its own: it waits for replicas.
    log: Client,
    /// The server has had replicas.
    has_had_replicas: AtomicBool,
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
        let mut builder = builder(settings)?;
        let pool = builder.build_pool(settings.connections);
        let pool = pool.map_err(|error| failed(&error))?;
        let log = builder.build().map_err(|error| failed(&error))?;
        for_listening(&mut builder);
        let listener = builder.build().map_err(|error| failed(&error))?;
        let names = FleetNames::new(&settings.prefix);
        let instance = instance_name();
        let channels = [
            names.grown.clone(),
            names.recalled.clone(),
            format!("{}{instance}", names.channels),
        ];
        let anew = Arc::new(Notify::new());
        let redis = Self {
            pool,
            log,
            has_had_replicas: AtomicBool::new(false),
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
        drop(redis.log.connect());
        let again = Arc::clone(&redis.anew);
        let place = without_passwords(&settings.url);
        tokio::spawn(listen(listener, place, channels, events, again));
        Ok(redis)
    }

    async fn run(
        &self,
        script: &Script,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<Value, TierError> {
        script.run(&self.pool, keys, arguments).await
    }

    /// Of this instance.
    fn channel(&self) -> String {
        format!("{}{}", self.names.channels, self.instance)
    }
}

/// Host, process and random digits: an operator finds it, and no two have the same.
fn instance_name() -> String {
    // Of the system itself: /proc may show less.
    let host = gethostname::gethostname();
    let host = host.to_string_lossy();
    let random = uuid::Uuid::new_v4().as_fields().0;
    let host = host.trim();
    let host = if host.is_empty() { "host" } else { host };
    format!("{host}-{}-{random:08x}", std::process::id())
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
                number(taking.used),
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

    fn append(&self, epoch: u64, purges: Vec<Outgoing>) -> Asking<'_, Appended> {
        Box::pin(self.append_to_log(epoch, purges))
    }

    fn sync(&self, reader: Reader) -> Asking<'_, Synced> {
        Box::pin(self.read_log(reader))
    }

    fn instances(&self, within: Duration) -> Asking<'_, Vec<Instance>> {
        Box::pin(self.read_instances(within))
    }

    fn name(&self) -> &str {
        &self.instance
    }

    fn advice(&self) -> Asking<'_, Vec<String>> {
        Box::pin(self.look_over())
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
