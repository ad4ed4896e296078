//! Few descriptors: what cannot be opened is nobody's fault but ours, and the operator can still
//! ask.

use crate::support::process::{FREE_PORTS, Running, file};
use crate::support::{Client, Origin, ok, route};

#[tokio::test]
async fn a_flood_of_connections_fails_neither_misses_nor_the_admin_port() {
    let origin = Origin::start(|_| ok("x", &[])).await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{FREE_PORTS}[upstream]\nurl = \"{}\"\n{}",
        origin.url(),
        route("ttl = \"60s\"")
    );
    let running = Running::start_with_descriptors(256, &file(folder.path(), &text));
    let mut first = Client::connect(running.address).await;
    assert_eq!(first.ask("GET", "/first", &[]).await.status, 200);
    let mut flood = Vec::new();
    for _ in 0..400 {
        flood.push(Client::connect(running.address).await);
    }
    // The last ones are told so.
    let refused = flood.last_mut().unwrap().response().await;
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("limits.connections"));
    for at in 0..20 {
        let missed = first.ask("GET", &format!("/{at}"), &[]).await;
        assert_eq!((missed.status, missed.cache()), (200, "MISS"));
        let health = Client::admin(running.admin, "/healthz").await;
        assert_eq!(health.status, 200);
    }
    let metrics = Client::admin(running.admin, "/metrics").await.text();
    assert!(metrics.contains("\nupstream_breaker_open 0\n"), "{metrics}");
}
