//! A rolling change of the release over one Redis, both ways: the older side is a binary of an
//! earlier commit, which `tests/run` builds.

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::support::process::{Killed, Running, binary, file};
use crate::support::redis::RedisServer;
use crate::support::{Client, Origin, PATIENCE, Received, ok};

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    Older,
    This,
}

fn older_binary() -> Command {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/target/older/iris-sidecar");
    assert!(
        std::path::Path::new(path).exists(),
        "tests/run builds {path}"
    );
    Command::new(path)
}

struct Instance {
    running: Running,
    _folder: tempfile::TempDir,
}

impl Instance {
    fn start(release: Release, redis: &str, origin: &Origin) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Fields of requests are this release's alone: another rule, and another key.
        let fields = match release {
            Release::This => "request_headers = { set = { x-tier = \"gold\" } }\n",
            Release::Older => "",
        };
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\n[admin]\naddress \
                = \"127.0.0.1:0\"\n\
             [upstream]\nurl = \"{}\"\n[cache.redis]\nurl = \"{redis}\"\ntimeout = \"1s\"\n\
             [[route]]\npath = \"/ruled\"\nttl = \"1h\"\n{fields}\
             [[route]]\npath = \"/keyed\"\nttl = \"1h\"\nshare = \"per-key\"\n\
             [[route]]\npath = \"/of/{{name}}\"\nttl = \"1h\"\ngroups = [\"of\"]\n\
             [[route]]\npath = \"/write\"\nmethods = [\"POST\"]\npurges = [\"of\"]\n\
             [[route]]\npath = \"/{{*rest}}\"\nttl = \"1h\"\n",
            origin.url()
        );
        let path = file(folder.path(), &text);
        let mut command = match release {
            Release::Older => older_binary(),
            Release::This => binary(),
        };
        command.args(["serve", "--log-format", "json", "--config", &path]);
        Self {
            running: Running::launched(command),
            _folder: folder,
        }
    }

    async fn ask(&self, method: &str, target: &str, fields: &[(&str, &str)]) -> Received {
        let mut client = Client::connect(self.running.address).await;
        client.ask(method, target, fields).await
    }

    async fn get(&self, target: &str) -> (String, String) {
        let answer = self.ask("GET", target, &[]).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        (answer.text(), answer.cache().to_owned())
    }

    /// An order that holds everywhere when it is answered.
    async fn order(&self, path: &str, order: &str) {
        let told = Client::order(self.running.admin, path, order).await;
        assert_eq!(told.status, 200, "{order}: {}", told.text());
        assert_eq!(told.json()["state"], "done", "{order}: {}", told.text());
    }

    async fn written(&self, count: f64) {
        let written = async {
            loop {
                let text = Client::admin(self.running.admin, "/metrics").await.text();
                let name = "cache_l2_writes_total{result=\"stored\"} ";
                let value = text.lines().find_map(|line| line.strip_prefix(name));
                if value.is_some_and(|value| value.parse::<f64>().unwrap() >= count) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, written)
            .await
            .expect("they are written");
    }

    /// Ends it; what it has complained of.
    fn end(mut self) -> Vec<String> {
        self.running.signal("TERM");
        let Killed(child) = &mut self.running.child;
        assert!(child.wait().unwrap().success());
        let is_complaint = |line: &String| line.contains("\"WARN\"") || line.contains("\"ERROR\"");
        self.running.lines.filter(is_complaint).collect()
    }
}

/// Answers each path with how often that was changed, and the tier that the request says.
async fn api() -> (Origin, Arc<Mutex<HashMap<String, u32>>>) {
    let changes = Arc::new(Mutex::new(HashMap::<String, u32>::new()));
    let known = Arc::clone(&changes);
    let origin = Origin::start(move |seen| {
        let count = known
            .lock()
            .unwrap()
            .get(&seen.target)
            .copied()
            .unwrap_or_default();
        let tier = seen.header("x-tier").unwrap_or("none");
        let key = seen.header("authorization").unwrap_or("nobody");
        // Some have variants, some are large enough to be packed.
        let filler = "x".repeat(if seen.target.contains("large") {
            5000
        } else {
            0
        });
        let text = format!("{} {count} {tier} {key} {filler}", seen.target);
        ok(
            text,
            &[
                ("vary", "accept-language"),
                ("etag", &format!("\"{count}\"")),
            ],
        )
    })
    .await;
    (origin, changes)
}

async fn a_rolling_change(from: Release, to: Release) {
    let redis = RedisServer::start(&[]).await;
    let (origin, changes) = api().await;
    let start = |release| Instance::start(release, &redis.url(), &origin);
    let change = |target: &str| {
        *changes
            .lock()
            .unwrap()
            .entry(target.to_owned())
            .or_default() += 1
    };
    let (first, second) = (start(from), start(to));
    let targets: Vec<String> = (0..10)
        .flat_map(|n| [format!("/{n}"), format!("/large{n}")])
        .collect();
    for target in &targets {
        assert_eq!(first.get(target).await.1, "MISS", "{target}");
    }
    first.written(targets.len() as f64).await;
    // What one has stored the other serves, and as it was.
    for target in &targets {
        let (text, cache) = second.get(target).await;
        let expected = format!("{target} 0 none nobody ");
        assert!(
            text.starts_with(&expected) && cache == "HIT",
            "{target}: {cache} {text}"
        );
    }
    // A purge through either reaches both.
    for (at, (here, there)) in [(&first, &second), (&second, &first)]
        .into_iter()
        .enumerate()
    {
        let (url, prefix) = (format!("/{at}"), format!("/large{at}"));
        for (target, order) in [
            (&url, format!("{{\"url\": \"{url}\"}}")),
            (&prefix, format!("{{\"prefix\": \"{prefix}\"}}")),
        ] {
            change(target);
            here.order("/purge", &order).await;
            for instance in [there, here] {
                let (text, _) = instance.get(target).await;
                assert!(text.starts_with(&format!("{target} 1 ")), "{order}: {text}");
            }
        }
        // And so does a write.
        let target = format!("/of/{at}");
        there.get(&target).await;
        change(&target);
        assert_eq!(here.ask("POST", "/write", &[]).await.status, 200);
        let (text, _) = here.get(&target).await;
        assert!(text.starts_with(&format!("{target} 1 ")), "{text}");
        let reached = async {
            while !there
                .get(&target)
                .await
                .0
                .starts_with(&format!("{target} 1 "))
            {}
        };
        tokio::time::timeout(PATIENCE, reached)
            .await
            .expect("the write is heard of");
    }
    // A revocation through one is one for the other, and so is taking it back.
    let key = [("authorization", "Bearer sk_live_aaaaaaaaaaaaaaaaaaaaaaaa")];
    for (order, status) in [("", 401), (", \"restore\": true", 200)] {
        let order = format!("{{\"key\": \"sk_live_aaaaaaaaaaaaaaaaaaaaaaaa\"{order}}}");
        first.order("/revoke", &order).await;
        for instance in [&second, &first] {
            assert_eq!(
                instance.ask("GET", "/keyed", &key).await.status,
                status,
                "{order}"
            );
        }
    }
    // Under another rule it is another response.
    for (instance, release) in [(&first, from), (&second, to), (&first, from)] {
        let expected = if release == Release::This {
            "gold"
        } else {
            "none"
        };
        let (text, _) = instance.get("/ruled").await;
        assert!(
            text.starts_with(&format!("/ruled 0 {expected} ")),
            "{release:?}: {text}"
        );
    }
    // The one that came first goes; what it was told last is kept.
    change("/5");
    first.order("/purge", "{\"url\": \"/5\"}").await;
    assert_eq!(first.end(), Vec::<String>::new(), "{from:?}");
    let third = start(to);
    for instance in [&second, &third] {
        assert!(instance.get("/5").await.0.starts_with("/5 1 "));
        assert_eq!(instance.get("/7").await.1, "HIT");
    }
    assert_eq!(second.end(), Vec::<String>::new(), "{to:?}");
    assert_eq!(third.end(), Vec::<String>::new(), "{to:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_loses_no_purge_and_misreads_nothing() {
    a_rolling_change(Release::Older, Release::This).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downgrade_loses_no_purge_and_misreads_nothing() {
    a_rolling_change(Release::This, Release::Older).await;
}
