//! The fleet's purge log: appended to, read, and who has read it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Key, Value};

use crate::store::purge::fleet::{Outgoing, Reader, Stamp, Synced};

use super::super::{Appended, Instance, TierError};
use super::values::{millis, number, read_synced, to_number, to_text, unexpected, write_purge};
use super::{Redis, advice};

/// Purges of the log that stand as they came, and purges that it holds at most, compacted ones
/// included. An instance that is further behind than the first drops what it has stored.
const WINDOW: u64 = 8192;
const MOST_PURGES: u64 = 16_384;

/// Purges that one look brings.
const MOST_READ: u64 = 1024;

/// How long the log outlives its last reader.
const LOG_LIVES: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long replicas are waited for to have a purge.
const REPLICATED_WITHIN: Duration = Duration::from_millis(200);

impl Redis {
    fn log_keys(&self) -> Vec<Key> {
        let names = &self.names;
        [&names.meta, &names.stream, &names.compacted]
            .map(|name| name.as_str().into())
            .to_vec()
    }

    pub(super) async fn append_to_log(
        &self,
        epoch: u64,
        purges: Vec<Outgoing>,
    ) -> Result<Appended, TierError> {
        let mut arguments = vec![
            number(epoch),
            self.names.grown.as_str().into(),
            number(WINDOW),
            number(MOST_PURGES),
            millis(LOG_LIVES).into(),
        ];
        for purge in purges {
            write_purge(purge, &mut arguments);
        }
        let mut keys = self.log_keys();
        keys.push(self.names.revoked.as_str().into());
        let appended = self.scripts.append.run(&self.log, keys, arguments).await?;
        let numbers = appended.into_array();
        let numbers: Option<Vec<u64>> = numbers.iter().map(to_number).collect();
        match numbers.as_deref() {
            Some([0, _]) => return Ok(Appended::OfAnotherLog),
            Some([_, 0]) => {}
            Some([_, _]) => self.has_had_replicas.store(true, Ordering::Relaxed),
            _ => return Err(unexpected("append")),
        }
        let needs_replica = self.has_had_replicas.load(Ordering::Relaxed);
        let is_safe = !needs_replica || self.is_replicated().await;
        Ok(if is_safe {
            Appended::In
        } else {
            Appended::InOneServer
        })
    }

    /// Whether a replica has what was appended last: asked on the connection that did.
    async fn is_replicated(&self) -> bool {
        let slot = Key::from(self.names.meta.as_str()).cluster_hash();
        let wait = CustomCommand::new_static("WAIT", ClusterHash::Custom(slot), false);
        let arguments = vec![Value::from(1), millis(REPLICATED_WITHIN).into()];
        let replicas: Result<u64, _> = self.log.custom(wait, arguments).await;
        replicas.is_ok_and(|replicas| replicas > 0)
    }

    pub(super) async fn read_log(&self, reader: Reader) -> Result<Synced, TierError> {
        let mut keys = self.log_keys();
        keys.push(self.names.instances.as_str().into());
        keys.push(self.names.revoked.as_str().into());
        let Reader {
            cursor,
            before,
            serves,
            admin,
        } = reader;
        let before: Vec<String> = before.iter().map(u64::to_string).collect();
        let new = uuid::Uuid::new_v4().as_u64_pair().1.max(1);
        let arguments = vec![
            number(new),
            number(cursor.stamp.epoch),
            number(cursor.stamp.position),
            number(cursor.token),
            self.instance.as_str().into(),
            number(MOST_READ),
            millis(LOG_LIVES).into(),
            self.channel().into(),
            before.join(" ").into(),
            number(serves.into()),
            admin
                .map_or_else(String::new, |admin| admin.to_string())
                .into(),
        ];
        let synced = self.run(&self.scripts.sync, keys, arguments).await?;
        let mut synced = read_synced(synced).ok_or_else(|| unexpected("sync"))?;
        synced.begins = synced.epoch == new;
        Ok(synced)
    }

    pub(super) async fn read_instances(
        &self,
        within: Duration,
    ) -> Result<Vec<Instance>, TierError> {
        let keys = vec![self.names.instances.as_str().into()];
        let arguments = vec![number(within.as_secs())];
        let alive = self.run(&self.scripts.instances, keys, arguments).await?;
        let alive = alive.into_array();
        let instance = |told: &[Value]| {
            let [name, silent, epoch, position, admin] = told else {
                return None;
            };
            Some(Instance {
                name: to_text(name)?.to_owned(),
                silent: Duration::from_secs(to_number(silent)?),
                admin: to_text(admin).and_then(|admin| admin.parse().ok()),
                stamp: Stamp {
                    epoch: to_number(epoch)?,
                    position: to_number(position)?,
                },
            })
        };
        let alive: Option<_> = alive.chunks(5).map(instance).collect();
        alive.ok_or_else(|| unexpected("instances"))
    }

    /// What the server's settings, as far as it tells them, keep it from promising.
    pub(super) async fn look_over(&self) -> Result<Vec<String>, TierError> {
        let info = CustomCommand::new_static("INFO", ClusterHash::Random, false);
        let info: Result<String, _> = self.pool.custom(info, Vec::<Value>::new()).await;
        let Ok(info) = info else {
            return Ok(vec![advice::NO_INFO.to_owned()]);
        };
        let mut settings = Vec::new();
        for name in advice::SETTINGS {
            let get = CustomCommand::new_static("CONFIG", ClusterHash::Random, false);
            let got: Result<Vec<String>, _> = self.pool.custom(get, vec!["GET", name]).await;
            // Managed servers do not tell.
            if let Some(value) = got.ok().and_then(|got| got.into_iter().nth(1)) {
                settings.push((name, value));
            }
        }
        Ok(advice::advice(&info, &settings))
    }
}
