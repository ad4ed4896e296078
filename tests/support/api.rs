//! The built-in origin over a database with the golden data.

use iris_sidecar::clock::Clock;
use iris_sidecar::config::{Config, DEFAULT};
use iris_sidecar::database::Database;
use iris_sidecar::process::Sidecar;
use serde_json::Value;

use super::golden::{self, Golden};
use super::postgres::PostgresServer;
use super::process::FREE_PORTS;
use super::{Client, Received};

/// A sidecar whose origin is a database with the golden data.
pub struct Api {
    pub clock: Clock,
    pub key: String,
    /// Of another project.
    pub other_key: String,
    pub database: Database,
    pub sidecar: Option<Sidecar>,
}

impl Api {
    /// `routes`: the configuration beside the origin; none for straight at it.
    pub async fn start(url: &str, routes: &str, golden: &Golden) -> Self {
        golden.write(&golden::open(url).await).await;
        Self::over(url, routes).await
    }

    /// Over the data that is there.
    pub async fn over(url: &str, routes: &str) -> Self {
        let (clock, database) = (golden::clock(), golden::open(url).await);
        let key = async |project, name| {
            let made = database.create_key(project, name, Some("test"), clock.now());
            made.await.unwrap()
        };
        let (key, other_key) = (
            key("alpha", "Alpha Project").await,
            key("beta", "Beta").await,
        );
        let text =
            format!("{FREE_PORTS}[origin]\ndatabase = \"{url}\"\nquery_timeout = \"2s\"\n{routes}");
        let config = Config::parse("test", &text, &|_| None).unwrap();
        let starting = {
            let clock = clock.clone();
            move || Sidecar::start_with(config, clock, None).expect("it starts")
        };
        let sidecar = tokio::task::spawn_blocking(starting).await.unwrap();
        Self {
            clock,
            key,
            other_key,
            database,
            sidecar: Some(sidecar),
        }
    }

    pub async fn admin(&self, target: &str) -> Received {
        let admin = self.sidecar.as_ref().unwrap().admin_address;
        Client::admin(admin, target).await
    }

    pub async fn metrics(&self) -> String {
        self.admin("/metrics").await.text()
    }

    pub async fn send(
        &self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Received {
        let address = self.sidecar.as_ref().unwrap().address;
        let mut client = Client::connect(address).await;
        let length = body.len().to_string();
        let mut all = fields.to_vec();
        if !body.is_empty() {
            all.push(("content-length", &length));
        }
        client.request(method, target, &all).await;
        if !body.is_empty() {
            client.send(body).await;
        }
        if method == "HEAD" {
            return client.head().await;
        }
        client.response().await
    }

    pub async fn get(&self, target: &str) -> Received {
        self.get_with(target, &[]).await
    }

    pub async fn get_with(&self, target: &str, fields: &[(&str, &str)]) -> Received {
        let authorization = format!("Bearer {}", self.key);
        let mut all = vec![("authorization", authorization.as_str())];
        all.extend(fields);
        self.send("GET", target, &all, "").await
    }

    pub async fn post(&self, target: &str, body: &Value) -> Received {
        self.post_text(target, &body.to_string(), "application/json")
            .await
    }

    pub async fn post_text(&self, target: &str, body: &str, media_type: &str) -> Received {
        let authorization = format!("Bearer {}", self.key);
        let fields = [
            ("authorization", authorization.as_str()),
            ("content-type", media_type),
        ];
        self.send("POST", target, &fields, body).await
    }

    pub async fn total(&self) -> i64 {
        self.get("/api/iris/events?limit=1").await.json()["total"]
            .as_i64()
            .unwrap()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(sidecar) = self.sidecar.take() {
            sidecar.drain();
            sidecar.join();
        }
    }
}

/// Runs a part of the suite over SQLite and over Postgres, each with data of its own.
pub async fn over_both<F, R>(routes: &str, part: F)
where
    F: Fn(Api, Golden) -> R,
    R: Future<Output = ()>,
{
    let golden = || Golden::new(golden::clock().now());
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/iris.db", folder.path().display());
    let api = Api::start(&url, routes, &golden()).await;
    part(api, golden()).await;
    let server = PostgresServer::start().await;
    let api = Api::start(&server.url(), routes, &golden()).await;
    part(api, golden()).await;
}

/// The routes of the configuration that runs without a file.
pub fn default_routes() -> String {
    DEFAULT
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n")
}
