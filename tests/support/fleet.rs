//! Several sidecars in front of one origin, with one Redis among them.

use std::time::{Duration, SystemTime};

use iris_sidecar::clock::{Clock, Timestamp};
use iris_sidecar::process::Sidecar;
use tempfile::TempDir;
use tokio::time::timeout;

use super::{Client, Origin, PATIENCE, Received, Reply, Seen, config};

/// Instances of one fleet, the origin that they front, and the clock that all live by.
pub struct Fleet {
    pub origin: Origin,
    pub clock: Clock,
    instances: Vec<Option<Sidecar>>,
    extra: String,
    /// Of the instances' journals.
    folder: TempDir,
}

impl Fleet {
    /// One instance for each URL of Redis in `urls`, all with `extra` configuration.
    pub async fn start(
        urls: &[&str],
        extra: &str,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let mut fleet = Self {
            origin: Origin::start(script).await,
            clock: Clock::manual(Timestamp::from(SystemTime::now())),
            instances: Vec::new(),
            extra: extra.to_owned(),
            folder: tempfile::tempdir().expect("a folder"),
        };
        for url in urls {
            fleet.join(url).await;
        }
        fleet
    }

    /// One more instance; its place.
    pub async fn join(&mut self, url: &str) -> usize {
        let extra = self.extra.clone();
        self.join_with(url, &extra).await
    }

    /// One more instance with a configuration of its own; its place.
    pub async fn join_with(&mut self, url: &str, extra: &str) -> usize {
        // `extra` may have keys for the same table.
        // A machine that runs all tests at once is slower than a Redis that is ill.
        let patient = if extra.contains("\ntimeout = ") {
            ""
        } else {
            "timeout = \"1s\"\n"
        };
        let journal = self.folder.path().join("purges");
        let redis = format!(
            "[cache.redis]\nurl = \"{url}\"\njournal = \"{}\"\n{patient}",
            journal.display()
        );
        let text = if extra.contains("[cache.redis]\n") {
            extra.replace("[cache.redis]\n", &redis)
        } else {
            format!("{redis}{extra}")
        };
        let config = config(&self.origin.url(), &text);
        // The start waits for Redis, and what leads there may run on this thread.
        let clock = self.clock.clone();
        let starting = move || Sidecar::start_with(config, clock, None).expect("it starts");
        let sidecar = tokio::task::spawn_blocking(starting).await;
        self.instances.push(Some(sidecar.expect("no panic")));
        self.instances.len() - 1
    }

    pub fn instance(&self, at: usize) -> &Sidecar {
        self.instances[at].as_ref().expect("it runs")
    }

    /// Stops one, in good order.
    pub fn stop(&mut self, at: usize) {
        if let Some(sidecar) = self.instances[at].take() {
            sidecar.drain();
            sidecar.join();
        }
    }

    pub async fn connect(&self, at: usize) -> Client {
        Client::connect(self.instance(at).address).await
    }

    pub async fn get(&self, at: usize, target: &str) -> Received {
        self.get_with(at, target, &[]).await
    }

    pub async fn get_with(&self, at: usize, target: &str, fields: &[(&str, &str)]) -> Received {
        self.connect(at).await.ask("GET", target, fields).await
    }

    pub async fn admin(&self, at: usize, target: &str) -> Received {
        Client::admin(self.instance(at).admin_address, target).await
    }

    pub async fn get_as(&self, at: usize, key: &str, target: &str) -> Received {
        let authorization = format!("Bearer {key}");
        let fields = [("authorization", authorization.as_str())];
        self.get_with(at, target, &fields).await
    }

    /// `POST /purge` on one instance.
    pub async fn purge(&self, at: usize, order: &str) -> serde_json::Value {
        let received = self.order(at, "/purge", order).await;
        assert_eq!(received.status, 200, "{}", received.text());
        received.json()
    }

    /// An order to the admin port of one instance.
    pub async fn order(&self, at: usize, path: &str, order: &str) -> Received {
        Client::order(self.instance(at).admin_address, path, order).await
    }

    pub async fn metric(&self, at: usize, sample: &str) -> f64 {
        let text = self.admin(at, "/metrics").await.text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no sample {sample} in\n{text}"))
            .parse()
            .expect("a number")
    }

    /// Waits until a sample of an instance is at least so large.
    pub async fn metric_reaches(&self, at: usize, sample: &str, value: f64) {
        self.metric_is(at, sample, |found| found >= value).await;
    }

    pub async fn metric_is(&self, at: usize, sample: &str, is_right: impl Fn(f64) -> bool) {
        let right = async {
            while !is_right(self.metric(at, sample).await) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, right)
            .await
            .unwrap_or_else(|_| panic!("{sample} of instance {at} is not right"));
    }

    /// Waits until so many responses of an instance are in Redis.
    pub async fn written(&self, at: usize, count: f64) {
        self.metric_reaches(at, "cache_l2_writes_total{result=\"stored\"}", count)
            .await;
    }

    pub fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for at in 0..self.instances.len() {
            self.stop(at);
        }
    }
}
