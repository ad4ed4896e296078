//! The fleet's purge log on a real Redis: ordered, compacted, bounded, and known again.

use crate::support::PATIENCE;
use crate::support::redis::RedisServer;
use iris_sidecar::clock::Timestamp;
use iris_sidecar::policy::Mode;
use iris_sidecar::store::purge::fleet::{Cursor, Outgoing, Reader, Stamp, Synced};
use iris_sidecar::store::second::redis::Settings;
use iris_sidecar::store::second::{Appended, Instance, Redis, SecondTier};
use iris_sidecar::store::{Purge, Reach, Target};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;

async fn connect(server: &RedisServer) -> Redis {
    let (events, _) = unbounded_channel();
    let settings = Settings {
        url: server.url(),
        prefix: "iris:".to_owned(),
        connections: 1,
        password_file: None,
        largest: 1 << 20,
        tls: None,
    };
    let redis = Redis::connect(&settings, events).unwrap();
    let answers = async { while redis.ping().await.is_err() {} };
    timeout(PATIENCE, answers).await.expect("Redis answers");
    redis
}

/// A reader that serves, at this place.
fn at(cursor: Cursor) -> Reader {
    Reader {
        cursor,
        before: Vec::new(),
        serves: true,
        admin: None,
    }
}

/// Appends to whichever log is there.
async fn append(redis: &Redis, purges: Vec<Outgoing>) {
    let epoch = redis.sync(at(Cursor::default())).await.unwrap().epoch;
    let appended = redis.append(epoch, purges).await.unwrap();
    assert_eq!(appended, Appended::In);
}

fn purge(token: u64, target: Target, mode: Mode) -> Outgoing {
    Outgoing {
        token,
        purge: Purge {
            target,
            reach: Reach::Any,
        },
        mode,
        at: Timestamp::from_millis(token),
    }
}

fn group(token: u64, name: &str, mode: Mode) -> Outgoing {
    purge(token, Target::Group(name.into()), mode)
}

/// All that the log has, and the place at its end.
async fn read_all(redis: &Redis) -> (Vec<(u64, Outgoing)>, Cursor, Synced) {
    let (mut cursor, mut all) = (Cursor::default(), Vec::new());
    loop {
        let synced = redis.sync(at(cursor)).await.unwrap();
        cursor.stamp.epoch = synced.epoch;
        for logged in &synced.entries {
            cursor.stamp.position = logged.position;
            let entry = logged.entry.clone().expect("one of ours");
            cursor.token = entry.token;
            all.push((logged.position, entry));
        }
        if cursor.stamp.position >= synced.latest {
            return (all, cursor, synced);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_purge_is_read_as_it_was_written() {
    let server = RedisServer::start(&[]).await;
    let redis = connect(&server).await;
    let targets = [
        Target::All,
        Target::Url(Box::from(&b"/a\0?x=\xff\0"[..])),
        Target::Prefix("/a b/".into()),
        Target::Group("a group \u{fc}".into()),
        Target::Key([0xfe; 32]),
    ];
    let reaches = [
        Reach::Any,
        Reach::Host("h:80".into()),
        Reach::Origin(Box::from(&b"http\0h\0\0"[..])),
    ];
    let mut written = Vec::new();
    for target in &targets {
        for reach in &reaches {
            for mode in [Mode::Hard, Mode::Soft] {
                let token = u64::MAX - written.len() as u64;
                let mut one = purge(token, target.clone(), mode);
                one.purge.reach = reach.clone();
                written.push(one);
            }
        }
    }
    append(&redis, written.clone()).await;
    let (read, cursor, _) = read_all(&redis).await;
    let stamp = cursor.stamp;
    assert_eq!(stamp.position, written.len() as u64);
    let positions: Vec<u64> = read.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, (1..=stamp.position).collect::<Vec<_>>());
    let read: Vec<Outgoing> = read.into_iter().map(|(_, entry)| entry).collect();
    assert_eq!(read, written);
    // What a newer version may write purges everything.
    server
        .ask("XADD iris:{purges}log 31-0 token 1 mode hard at 1 kind galaxy value x reach any of x")
        .await;
    server.ask("HSET iris:{purges}meta position 31").await;
    let synced = redis.sync(at(cursor)).await.unwrap();
    let entry = synced.entries[0].entry.as_ref().unwrap();
    assert_eq!(entry.purge.target, Target::All);
    assert_eq!(entry.mode, Mode::Hard);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_are_compacted_and_a_reader_that_is_far_behind_begins_anew() {
    let server = RedisServer::start(&[]).await;
    let redis = connect(&server).await;
    append(&redis, vec![group(1, "first", Mode::Hard)]).await;
    let (_, early, _) = read_all(&redis).await;
    // Two groups, over and over, hard and soft.
    let mut token = 1;
    for _ in 0..100 {
        let batch = (0..128).map(|number| {
            token += 1;
            let mode = if number % 4 < 2 {
                Mode::Hard
            } else {
                Mode::Soft
            };
            group(token, ["a", "b"][number % 2], mode)
        });
        append(&redis, batch.collect()).await;
    }
    let written = 100 * 128 + 1;
    let (read, cursor, synced) = read_all(&redis).await;
    assert_eq!((cursor.stamp.position, synced.floor), (written, 0));
    // The window as it came; before it of each name the latest, of soft ones the first too.
    let compacted: Vec<_> = read
        .iter()
        .filter(|(position, _)| *position <= written - 8192)
        .map(|(position, entry)| (*position, entry.mode))
        .collect();
    assert_eq!(compacted.len(), 1 + 2 + 4, "{compacted:?}");
    assert_eq!(compacted[0], (1, Mode::Hard));
    assert_eq!(&compacted[1..3], [(4, Mode::Soft), (5, Mode::Soft)]);
    assert_eq!(read.len(), 8192 + compacted.len());
    // Who stood at what is still there goes on from there; else everything from the beginning.
    let on = redis.sync(at(early)).await.unwrap();
    assert!(!on.restarts && on.entries[0].position > 1);
    let gone = Cursor {
        stamp: Stamp {
            position: 6,
            ..early.stamp
        },
        token: 6,
    };
    let again = redis.sync(at(gone)).await.unwrap();
    assert!(again.restarts && again.entries[0].position == 1);
    assert_eq!(again.epoch, early.stamp.epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_bounded_and_says_up_to_where_it_has_forgotten() {
    let server = RedisServer::start(&[]).await;
    let redis = connect(&server).await;
    let mut token = 0;
    for _ in 0..160 {
        let batch = (0..128).map(|_| {
            token += 1;
            group(token, &format!("g{token}"), Mode::Hard)
        });
        append(&redis, batch.collect()).await;
    }
    let (read, cursor, synced) = read_all(&redis).await;
    assert_eq!(read.len(), 16_384);
    assert_eq!(synced.floor, 160 * 128 - 16_384);
    assert_eq!(read[0].0, synced.floor + 1);
    assert_eq!(cursor.stamp.position, 160 * 128);
    let names = server.ask("HLEN iris:{purges}names").await.unwrap();
    assert_eq!(names.trim(), format!(":{}", 16_384 - 8192));
    let memory = server.ask("MEMORY USAGE iris:{purges}log").await.unwrap();
    let bytes: u64 = memory.trim().trim_start_matches(':').parse().unwrap();
    assert!(bytes < 4 << 20, "{bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_another_has_replaced_is_not_taken_for_it() {
    let server = RedisServer::start(&[]).await;
    let redis = connect(&server).await;
    let batch = (1..=5).map(|token| group(token, "g", Mode::Hard));
    append(&redis, batch.collect()).await;
    let (_, cursor, _) = read_all(&redis).await;
    // Another entry where the reader stands: the one it knows was lost.
    let other = Cursor {
        token: 99,
        ..cursor
    };
    let synced = redis.sync(at(other)).await.unwrap();
    assert!(synced.restarts && synced.epoch != cursor.stamp.epoch && synced.latest == 0);
    // And so for a reader who knows more than the log.
    append(&redis, vec![group(1, "g", Mode::Hard)]).await;
    let (_, cursor, _) = read_all(&redis).await;
    let ahead = Cursor {
        stamp: Stamp {
            position: 2,
            ..cursor.stamp
        },
        ..cursor
    };
    let synced = redis.sync(at(ahead)).await.unwrap();
    assert!(synced.restarts && synced.epoch != cursor.stamp.epoch);
    // What was evicted in part is none.
    append(&redis, vec![group(1, "g", Mode::Hard)]).await;
    let (_, cursor, _) = read_all(&redis).await;
    server.ask("DEL iris:{purges}log").await;
    let epoch = cursor.stamp.epoch;
    let purges = || vec![group(2, "g", Mode::Hard)];
    let appended = redis.append(epoch, purges()).await.unwrap();
    assert_eq!(appended, Appended::OfAnotherLog);
    let synced = redis.sync(at(cursor)).await.unwrap();
    assert!(synced.begins && synced.epoch != epoch);
    assert!(synced.before.contains(&epoch), "{synced:?}");
    // Nor is anything appended to the log that another one has followed.
    let appended = redis.append(epoch, purges()).await.unwrap();
    assert_eq!(appended, Appended::OfAnotherLog);
    let appended = redis.append(synced.epoch, purges()).await.unwrap();
    assert_eq!(appended, Appended::In);
}

/// What a server that is back with an old snapshot has, as far as the log is concerned.
struct Snapshot(Vec<String>);

impl Snapshot {
    async fn of(server: &RedisServer) -> Self {
        let mut fields = Vec::new();
        for field in ["epoch", "position", "floor", "before", "run"] {
            let command = format!("HGET iris:{{purges}}meta {field}");
            let told = server.ask(&command).await.unwrap();
            let value = told.lines().nth(1).unwrap_or_default().to_owned();
            fields.push(format!("{field} \"{value}\""));
        }
        Self(fields)
    }

    /// An empty log, as it was then; `run` is the server's that wrote it.
    async fn restore(&self, server: &RedisServer, is_another_run: bool) {
        server.ask("DEL iris:{purges}meta iris:{purges}log").await;
        let fields = self.0.join(" ");
        server
            .ask(&format!("HSET iris:{{purges}}meta {fields}"))
            .await;
        if is_another_run {
            server.ask("HSET iris:{purges}meta run another").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_another_age_is_no_log_to_go_on_with() {
    let server = RedisServer::start(&[]).await;
    let redis = connect(&server).await;
    let (_, first, _) = read_all(&redis).await;
    let old = Snapshot::of(&server).await;
    let before = |cursor| Reader {
        before: vec![first.stamp.epoch],
        ..at(cursor)
    };
    // A second log follows the first, and a reader of the first goes on with it.
    server.ask("DEL iris:{purges}meta").await;
    let second = redis.sync(at(first)).await.unwrap();
    assert!(second.begins && second.before == [first.stamp.epoch]);
    let found = redis.sync(at(first)).await.unwrap();
    assert!(!found.begins && found.restarts && found.epoch == second.epoch);
    // The first one is back: for who knows the second it is none.
    old.restore(&server, false).await;
    let cursor = Cursor {
        stamp: Stamp {
            epoch: second.epoch,
            position: 0,
        },
        token: 0,
    };
    let third = redis.sync(before(cursor)).await.unwrap();
    assert!(third.begins, "{third:?}");
    let mut known = third.before.clone();
    known.sort_unstable();
    let mut expected = [first.stamp.epoch, second.epoch];
    expected.sort_unstable();
    assert_eq!(known, expected);
    // Who starts anew trusts what this run of the server has, and not what it has loaded, unless
    // somebody who knows the log was there.
    old.restore(&server, false).await;
    let fresh = redis.sync(at(Cursor::default())).await.unwrap();
    assert!(!fresh.begins && fresh.epoch == first.stamp.epoch);
    old.restore(&server, true).await;
    let fresh = redis.sync(at(Cursor::default())).await.unwrap();
    assert!(fresh.begins, "{fresh:?}");
    old.restore(&server, true).await;
    let knows = redis.sync(at(first)).await.unwrap();
    assert!(!knows.begins && !knows.restarts);
    let fresh = redis.sync(at(Cursor::default())).await.unwrap();
    assert!(!fresh.begins && fresh.epoch == first.stamp.epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_counted_by_how_far_they_are() {
    let server = RedisServer::start(&[]).await;
    let (one, other) = (connect(&server).await, connect(&server).await);
    append(&one, vec![group(1, "g", Mode::Hard)]).await;
    let (_, cursor, _) = read_all(&one).await;
    let applied = async |cursor: Cursor| {
        let all = other.instances(PATIENCE).await.unwrap();
        let has = |instance: &&Instance| instance.has_applied(cursor.stamp);
        (all.iter().filter(has).count(), all.len())
    };
    one.sync(at(cursor)).await.unwrap();
    assert_eq!(applied(cursor).await, (1, 1));
    let behind = Cursor {
        stamp: Stamp {
            position: 0,
            ..cursor.stamp
        },
        token: 0,
    };
    other.sync(at(behind)).await.unwrap();
    assert_eq!(applied(cursor).await, (1, 2));
    other.sync(at(cursor)).await.unwrap();
    assert_eq!(applied(cursor).await, (2, 2));
    // One that serves nothing any more says goodbye.
    let leaving = Reader {
        serves: false,
        ..at(cursor)
    };
    one.sync(leaving).await.unwrap();
    assert_eq!(applied(cursor).await, (1, 1));
}
