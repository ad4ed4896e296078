//! Connections at rest: idle for a while, they cost little, and nobody can tell.

use std::time::Duration;

use crate::support::{Client, Fixture, PATIENCE, numbered, ok, route};
use tokio::time::{sleep, timeout};

/// Longer than a connection is idle before it rests. It is the time that is tested.
const RESTED: Duration = Duration::from_millis(2300);

fn routes() -> String {
    route("ttl = \"1h\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_has_rested_goes_on_as_if_nothing_were() {
    let fixture = Fixture::start(&routes(), |seen| numbered(seen, &[])).await;
    let mut client = fixture.connect().await;
    for round in 0..2 {
        assert_eq!(client.ask("GET", "/a", &[]).await.text(), "1", "{round}");
        sleep(RESTED).await;
    }
    // What comes in pieces, and two at once. Of another host, it is something else.
    for piece in ["G", "ET /a HTTP/1.1\r\nhost: a", "\r\n\r\n"] {
        client.send(piece).await;
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.response().await.text(), "2");
    sleep(RESTED).await;
    client
        .send("GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    assert_eq!(client.response().await.text(), "2");
    assert_eq!(client.response().await.text(), "3");
    sleep(RESTED).await;
    // A request with a body.
    client
        .request("POST", "/c", &[("content-length", "3")])
        .await;
    client.send("abc").await;
    assert_eq!(client.response().await.text(), "4");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_head_is_not_lost_to_a_rest() {
    let fixture = Fixture::start(&routes(), |seen| numbered(seen, &[])).await;
    let mut client = fixture.connect().await;
    client
        .send("GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\nx-long: ")
        .await;
    assert_eq!(client.response().await.text(), "1");
    sleep(RESTED).await;
    client.send("y\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_takes_longer_than_a_rest_is_not_cut_short() {
    let body = vec![b'x'; 3 << 20];
    let whole = body.clone();
    let fixture = Fixture::start(&routes(), move |_| ok(whole.clone(), &[])).await;
    let mut client = fixture.connect().await;
    client.request("GET", "/a", &[]).await;
    sleep(RESTED).await;
    let received = timeout(PATIENCE, client.response())
        .await
        .expect("it comes");
    assert_eq!(received.body.len(), body.len());
    sleep(RESTED).await;
    assert_eq!(client.ask("GET", "/a", &[]).await.body.len(), body.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_the_process_a_connection_at_rest_is_closed_and_what_has_come_is_answered() {
    let mut fixture = Fixture::start(&routes(), |seen| numbered(seen, &[])).await;
    let (mut idle, mut asks) = (fixture.connect().await, fixture.connect().await);
    for client in [&mut idle, &mut asks] {
        client.ask("GET", "/a", &[]).await;
    }
    sleep(RESTED).await;
    let sidecar = fixture.take();
    asks.request("GET", "/a", &[]).await;
    sidecar.drain();
    let answered = asks.response().await;
    assert_eq!(answered.text(), "1");
    assert!(idle.closed().await.is_empty() && asks.closed().await.is_empty());
    tokio::task::spawn_blocking(move || sidecar.join())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_at_rest_still_has_its_time() {
    let extra = format!("[limits]\nidle_timeout = \"3s\"\n{}", routes());
    let fixture = Fixture::start(&extra, |seen| numbered(seen, &[])).await;
    let mut client = Client::connect(fixture.sidecar().address).await;
    client.ask("GET", "/a", &[]).await;
    let rest = timeout(PATIENCE, client.closed())
        .await
        .expect("it is closed");
    assert!(rest.is_empty());
}
