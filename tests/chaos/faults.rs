//! What can happen to a fleet.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;

use super::fleet::{ChaosFleet, INSTANCES};

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Redis dies, and is back without its memory.
    RedisIsEmptied,
    /// Redis dies, and is back with an old snapshot.
    RedisIsOld,
    /// The same, twice.
    RedisIsOldTwice,
    /// The same, and all instances begin anew.
    EverythingIsOld,
    RedisIsFrozen,
    RedisForgets,
    /// Of one instance.
    WireIsCut,
    WireIsSlow,
    InstanceIsKilled,
    InstanceIsStopped,
    /// Redis is frozen, an instance purges and is killed, Redis wakes.
    InstanceDiesWhileRedisIsFrozen,
    RollingRestart,
    MasterIsKilled,
    /// The master is frozen until another has taken its place, and wakes.
    MasterIsFrozen,
}

impl Fault {
    pub fn all(has_sentinel: bool) -> Vec<Self> {
        if has_sentinel {
            return vec![
                Self::MasterIsKilled,
                Self::MasterIsFrozen,
                Self::InstanceIsKilled,
                Self::InstanceIsStopped,
            ];
        }
        vec![
            Self::RedisIsEmptied,
            Self::RedisIsOld,
            Self::RedisIsOldTwice,
            Self::EverythingIsOld,
            Self::RedisIsFrozen,
            Self::RedisForgets,
            Self::WireIsCut,
            Self::WireIsSlow,
            Self::InstanceIsKilled,
            Self::InstanceIsStopped,
            Self::InstanceDiesWhileRedisIsFrozen,
            Self::RollingRestart,
        ]
    }

    pub async fn happens(self, fleet: &mut ChaosFleet, rng: &mut Rng) {
        let place = rng.usize(0..INSTANCES);
        let a_while = Duration::from_millis(rng.u64(300..1500));
        match self {
            Self::RedisIsEmptied => {
                fleet.redis.kill();
                sleep(a_while).await;
                fleet.redis.forget_snapshots();
                fleet.redis.launch().await;
            }
            Self::RedisIsOld | Self::RedisIsOldTwice => {
                fleet.redis.ask("SAVE").await;
                sleep(a_while).await;
                let times = if matches!(self, Self::RedisIsOld) {
                    1
                } else {
                    2
                };
                for _ in 0..times {
                    fleet.redis.kill();
                    sleep(a_while / 2).await;
                    fleet.redis.launch().await;
                    sleep(a_while).await;
                }
            }
            Self::EverythingIsOld => {
                fleet.redis.ask("SAVE").await;
                sleep(a_while).await;
                for place in 0..INSTANCES {
                    fleet.ends(place, "TERM").await;
                }
                fleet.redis.kill();
                fleet.redis.launch().await;
            }
            Self::RedisIsFrozen => {
                fleet.redis.signal("STOP");
                sleep(a_while * 2).await;
                fleet.redis.signal("CONT");
            }
            Self::RedisForgets => drop(fleet.redis.ask("FLUSHALL").await),
            Self::WireIsCut => {
                fleet.wires[place].cut();
                sleep(a_while * 2).await;
            }
            Self::WireIsSlow => {
                fleet.wires[place].slow(Duration::from_millis(rng.u64(100..1500)));
                sleep(a_while * 2).await;
            }
            Self::InstanceIsKilled => fleet.ends(place, "KILL").await,
            Self::InstanceIsStopped => fleet.ends(place, "TERM").await,
            Self::InstanceDiesWhileRedisIsFrozen => {
                fleet.redis.signal("STOP");
                sleep(Duration::from_secs(3)).await;
                fleet.ends(place, "KILL").await;
                fleet.redis.signal("CONT");
            }
            Self::RollingRestart => {
                for place in 0..INSTANCES {
                    fleet.ends(place, "TERM").await;
                    fleet.launch(place).await;
                    sleep(a_while / 3).await;
                }
            }
            Self::MasterIsKilled | Self::MasterIsFrozen => {
                let old = fleet.master().await.port;
                let is_first = old == fleet.redis.port;
                let (other, sentinel) = fleet.other.as_mut().expect("there is one");
                let (master, replica) = if is_first {
                    (&mut fleet.redis, other)
                } else {
                    (other, &mut fleet.redis)
                };
                let is_killed = matches!(self, Self::MasterIsKilled);
                if is_killed {
                    master.kill();
                } else {
                    master.signal("STOP");
                }
                sentinel.knows(&replica.port.to_string()).await;
                sleep(a_while).await;
                if is_killed {
                    master.launch().await;
                } else {
                    master.signal("CONT");
                }
                // One follows the other again, at the latest when the Sentinel has seen them for a
                // while: the old one, unless the new one was silent in its turn, and they have
                // changed places once more.
                let follows = async {
                    loop {
                        for one in [&*master, &*replica] {
                            let told = one.ask("INFO replication").await.unwrap_or_default();
                            if told.contains("master_link_status:up") {
                                return;
                            }
                        }
                        sleep(Duration::from_millis(50)).await;
                    }
                };
                let limit = Duration::from_secs(120);
                let follows = tokio::time::timeout(limit, follows).await;
                follows.expect("one of the two follows the other");
            }
        }
    }
}
