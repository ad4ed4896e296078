//! The end of a process: requests in flight finish, nothing new is accepted, out by a deadline.

use std::time::Duration;

use crate::support::{Client, Fixture, Gate, Step, after, ok};
use tokio::net::TcpStream;

#[tokio::test]
async fn requests_in_flight_finish_and_nothing_new_is_accepted() {
    let gate = Gate::new();
    let held = gate.clone();
    let mut fixture = Fixture::start("[listen]\ndrain_timeout = \"20s\"\n", move |_| {
        after(&held, ok("finished", &[]))
    })
    .await;
    let (mut busy, mut idle) = (fixture.connect().await, fixture.connect().await);
    busy.request("GET", "/slow", &[]).await;
    fixture.origin.asked(1).await;
    let sidecar = fixture.take();
    let (address, admin) = (sidecar.address, sidecar.admin_address);
    sidecar.drain();
    let ready = Client::admin(admin, "/readyz").await;
    assert_eq!(
        (ready.status, ready.json()["draining"].as_bool()),
        (503, Some(true))
    );
    assert_eq!(Client::admin(admin, "/healthz").await.status, 200);
    idle.closed().await;
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(crate::support::PATIENCE, refused)
        .await
        .expect("the listener closes");
    gate.open();
    let received = busy.response().await;
    assert_eq!(
        (received.text().as_str(), received.header("connection")),
        ("finished", Some("close"))
    );
    tokio::task::spawn_blocking(move || sidecar.join())
        .await
        .unwrap();
}

#[tokio::test]
async fn what_waits_in_the_backlog_is_still_answered() {
    let gate = Gate::new();
    let held = gate.clone();
    let mut fixture = Fixture::start(
        "[listen]\nworkers = 1\ndrain_timeout = \"20s\"\n",
        move |_| after(&held, ok("x", &[])),
    )
    .await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = fixture.connect().await;
        client.request("GET", "/a", &[]).await;
        clients.push(client);
    }
    let sidecar = fixture.take();
    sidecar.drain();
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    tokio::task::spawn_blocking(move || sidecar.join())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_request_that_does_not_finish_is_cut_at_the_deadline() {
    let never = Gate::new();
    let held = never.clone();
    let mut fixture = Fixture::start("[listen]\ndrain_timeout = \"150ms\"\n", move |_| {
        vec![Step::Wait(held.clone())]
    })
    .await;
    let mut client = fixture.connect().await;
    client.request("GET", "/never", &[]).await;
    fixture.origin.asked(1).await;
    let sidecar = fixture.take();
    sidecar.drain();
    let joined = tokio::task::spawn_blocking(move || sidecar.join());
    tokio::time::timeout(Duration::from_secs(10), joined)
        .await
        .expect("the deadline holds")
        .unwrap();
    client.closed().await;
    never.open();
}
