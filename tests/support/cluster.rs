//! A real cluster: three masters, each with a replica, on free loopback ports.

use std::process::{Command, Stdio};

use tokio::time::timeout;

use super::PATIENCE;
use super::redis::RedisServer;

pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts the nodes, and returns when they are one cluster.
    pub async fn start() -> Self {
        let arguments = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-replica-validity-factor",
            "0",
            "--repl-diskless-sync-delay",
            "0",
        ];
        let mut nodes = Vec::new();
        for _ in 0..6 {
            nodes.push(RedisServer::start_with_bus(&arguments).await);
        }
        let addresses: Vec<String> = nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect();
        let create = move || {
            Command::new("redis-cli")
                .args(["--cluster", "create"])
                .args(&addresses)
                .args(["--cluster-replicas", "1", "--cluster-yes"])
                .stdout(Stdio::null())
                .status()
                .expect("redis-cli is installed: tests/run does that")
        };
        let status = tokio::task::spawn_blocking(create).await.expect("no panic");
        assert!(status.success());
        let cluster = Self { nodes };
        let whole = async {
            for node in &cluster.nodes {
                while !cluster.is_whole(node).await {
                    tokio::task::yield_now().await;
                }
            }
        };
        timeout(PATIENCE, whole)
            .await
            .expect("the cluster is whole");
        cluster
    }

    /// A node that knows of all slots, and of three replicas that follow.
    async fn is_whole(&self, node: &RedisServer) -> bool {
        let info = node.ask("CLUSTER INFO").await.unwrap_or_default();
        let nodes = node.ask("CLUSTER NODES").await.unwrap_or_default();
        let replicas = nodes.lines().filter(|line| line.contains("slave"));
        let link = node.ask("INFO replication").await.unwrap_or_default();
        info.contains("cluster_state:ok")
            && info.contains("cluster_slots_ok:16384")
            && replicas.count() == 3
            && !link.contains("master_link_status:down")
    }

    pub fn url(&self) -> String {
        let [first, rest @ ..] = &self.nodes[..] else {
            panic!("there are nodes");
        };
        let others: Vec<String> = rest
            .iter()
            .map(|node| format!("node=127.0.0.1:{}", node.port))
            .collect();
        format!(
            "redis-cluster://127.0.0.1:{}?{}",
            first.port,
            others.join("&")
        )
    }

    /// The place among the nodes of the master that has a key.
    pub async fn master_of(&self, key: &str) -> usize {
        for (at, node) in self.nodes.iter().enumerate() {
            if !node.runs() {
                continue;
            }
            let role = node.ask("ROLE").await.unwrap_or_default();
            let answer = node.ask(&format!("EXISTS {key}")).await.unwrap_or_default();
            if role.contains("master") && answer.starts_with(':') {
                return at;
            }
        }
        panic!("no master has {key}");
    }
}
