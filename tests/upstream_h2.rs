//! An upstream of HTTP/2 that misbehaves: it ends connections, refuses streams, grants no window,
//! hangs up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Client, Fixture, Origin, PATIENCE, all, config, route};

type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// A server whose connections are this function's.
async fn upstream<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(Connection<TcpStream, Bytes>, u64) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            number += 1;
            if let Ok(connection) = h2::server::handshake(stream).await {
                tokio::spawn(serve(connection, number));
            }
        }
    });
    address
}

fn before(upstream: SocketAddr, extra: &str) -> iris_sidecar::process::Sidecar {
    let text = format!("[upstream]\nprotocol = \"h2\"\n{extra}");
    let config = config(&format!("http://{upstream}"), &text);
    iris_sidecar::process::Sidecar::start(config).unwrap()
}

fn answer((_, mut respond): Asked, text: &str) {
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(text.to_owned().into(), true).unwrap();
}

async fn post(address: SocketAddr, target: &str) -> (u16, String) {
    let mut client = Client::connect(address).await;
    let fields = [("content-length", "4")];
    client.request("POST", target, &fields).await;
    client.send(b"body").await;
    let answer = client.response().await;
    (answer.status, answer.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_go_over_one_connection_of_a_worker() {
    let connections = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connections);
    let address = upstream(move |mut connection, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            while let Some(Ok(asked)) = connection.accept().await {
                answer(asked, "x");
            }
        }
    })
    .await;
    let sidecar = before(address, "[listen]\nworkers = 2\n");
    let address = sidecar.address;
    for _ in 0..4 {
        let answers = all((0..40).map(|number| async move {
            let mut client = Client::connect(address).await;
            client.ask("GET", &format!("/{number}"), &[]).await.status
        }))
        .await;
        assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    }
    // Those that came at once before any stood may each have opened one.
    let opened = connections.load(Ordering::Relaxed);
    assert!(opened <= 45, "{opened} connections for 160 requests");
    let more =
        all((0..20).map(|number| async move { post(address, &format!("/{number}")).await.0 }))
            .await;
    assert!(more.iter().all(|status| *status == 200), "{more:?}");
    assert_eq!(connections.load(Ordering::Relaxed), opened);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_connection_that_ends_has_not_begun_is_asked_once_more_and_nothing_twice() {
    let begun = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&begun);
    // Each connection answers three requests and says that it ends.
    let address = upstream(move |mut connection, _| {
        let begun = Arc::clone(&counted);
        async move {
            let mut answered = 0;
            while let Some(Ok(asked)) = connection.accept().await {
                begun.fetch_add(1, Ordering::Relaxed);
                answered += 1;
                answer(asked, "x");
                if answered == 3 {
                    connection.graceful_shutdown();
                }
            }
        }
    })
    .await;
    let sidecar = before(address, "");
    let address = sidecar.address;
    for _ in 0..10 {
        let answers =
            all((0..5).map(|number| async move { post(address, &format!("/{number}")).await }))
                .await;
        assert!(
            answers.iter().all(|(status, _)| *status == 200),
            "{answers:?}"
        );
    }
    assert_eq!(begun.load(Ordering::Relaxed), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_stream_is_sent_once_more_whatever_its_method() {
    let seen = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&seen);
    let address = upstream(move |mut connection, _| {
        let seen = Arc::clone(&counted);
        async move {
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let number = seen.fetch_add(1, Ordering::Relaxed);
                let path = request.uri().path().to_owned();
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    let mut read = Vec::new();
                    while let Some(Ok(piece)) = body.data().await {
                        read.extend_from_slice(&piece);
                    }
                    if path == "/processed" {
                        respond.send_reset(h2::Reason::INTERNAL_ERROR);
                    } else if number.is_multiple_of(2) {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    } else {
                        let mut stream = respond.send_response(Response::new(()), false).unwrap();
                        stream.send_data(read.into(), true).unwrap();
                    }
                });
            }
        }
    })
    .await;
    let sidecar = before(address, "");
    assert_eq!(post(sidecar.address, "/a").await, (200, "body".to_owned()));
    assert_eq!(seen.load(Ordering::Relaxed), 2);
    // What may have been processed is not sent twice.
    let (status, _) = post(sidecar.address, "/processed").await;
    assert_eq!((status, seen.load(Ordering::Relaxed)), (502, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_grants_no_window_or_hangs_up_fails_its_request_alone() {
    let has_head = Arc::new(tokio::sync::Notify::new());
    let heard = Arc::clone(&has_head);
    let address = upstream(move |mut connection, _| {
        let heard = Arc::clone(&heard);
        async move {
            connection.set_target_window_size(65_535);
            let mut held = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                match request.uri().path() {
                    // Its body is never read, so its window is never opened again.
                    "/stuck" => held.push((request, respond)),
                    "/cut" => {
                        let head = Response::builder()
                            .header("content-length", "9")
                            .body(())
                            .unwrap();
                        let mut stream = respond.send_response(head, false).unwrap();
                        stream.send_data("half".into(), false).unwrap();
                        let heard = Arc::clone(&heard);
                        tokio::spawn(async move {
                            heard.notified().await;
                            stream.send_reset(h2::Reason::INTERNAL_ERROR);
                        });
                    }
                    _ => answer((request, respond), "well"),
                }
            }
        }
    })
    .await;
    let sidecar = before(address, "response_timeout = \"300ms\"\n");
    let address = sidecar.address;
    let stuck = tokio::spawn(async move {
        let mut client = Client::connect(address).await;
        client
            .request("POST", "/stuck", &[("content-length", "500000")])
            .await;
        client.send(vec![0; 500_000]).await;
        client.response().await.status
    });
    for _ in 0..20 {
        assert_eq!(post(address, "/well").await, (200, "well".to_owned()));
    }
    assert_eq!(stuck.await.unwrap(), 504);
    let mut client = Client::connect(address).await;
    client
        .request("POST", "/cut", &[("content-length", "0")])
        .await;
    assert_eq!(client.head().await.status, 200);
    has_head.notify_one();
    assert!(client.closed().await.len() <= 4, "it is cut, not ended");
    assert_eq!(post(address, "/well").await, (200, "well".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_its_client_resets_is_reset_there_too() {
    let resets = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&resets);
    let address = upstream(move |mut connection, _| {
        let resets = Arc::clone(&counted);
        async move {
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let resets = Arc::clone(&resets);
                let stream = respond.send_response(Response::new(()), false).unwrap();
                tokio::spawn(async move {
                    let (mut body, _stream) = (request.into_body(), stream);
                    while let Some(piece) = body.data().await {
                        if piece.is_err() {
                            resets.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    }
                });
            }
        }
    })
    .await;
    let sidecar = before(address, "");
    let stream = TcpStream::connect(sidecar.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = Request::post("http://api.example/a").body(()).unwrap();
    let (response, mut upload) = client.send_request(request, false).unwrap();
    upload.send_data("begun".into(), false).unwrap();
    let response = response.await.unwrap();
    upload.send_reset(h2::Reason::CANCEL);
    drop(response);
    let heard = async {
        while resets.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, heard)
        .await
        .expect("it is reset there");
}

#[tokio::test]
async fn one_that_speaks_no_http_2_is_said_to_be_so() {
    let origin = Origin::start(|_| crate::support::ok("x", &[])).await;
    let fixture = Fixture::in_front_of(
        origin,
        &format!("[upstream]\nprotocol = \"h2\"\n{}", route("")),
    );
    let answer = fixture.get("/a").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_once_more_is_the_same_request() {
    let seen = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&seen);
    // Each connection says that it ends when it is asked for the second time, while the first is
    // under way.
    let address = upstream(move |mut connection, _| {
        let seen = Arc::clone(&counted);
        async move {
            let mut first = None;
            while let Some(Ok((request, respond))) = connection.accept().await {
                seen.fetch_add(1, Ordering::Relaxed);
                if request.uri().path() == "/slow" && first.is_none() {
                    first = Some((request, respond));
                    connection.graceful_shutdown();
                    continue;
                }
                let authority = request.uri().authority().unwrap().to_string();
                answer((request, respond), &authority);
                if let Some(slow) = first.take() {
                    answer(slow, "slow");
                }
            }
        }
    })
    .await;
    let sidecar = before(
        address,
        &format!(
            "response_timeout = \"2s\"\n[listen]\nworkers = 1\n{}",
            route("ttl = \"1h\"")
        ),
    );
    let address = sidecar.address;
    for number in 0..5 {
        let slow = tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            client
                .ask("GET", "/slow", &[("host", "a.example")])
                .await
                .status
        });
        let before = seen.load(Ordering::Relaxed);
        while seen.load(Ordering::Relaxed) == before && !slow.is_finished() {
            tokio::task::yield_now().await;
        }
        let mut client = Client::connect(address).await;
        client
            .send(format!(
                "GET /{number} HTTP/1.1\r\nhost: tenant-a.example\r\n\r\n"
            ))
            .await;
        let answer = client.response().await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "tenant-a.example")
        );
        slow.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_shares_a_connection_and_more_are_opened_where_one_takes_no_more() {
    let connections = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connections);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(5);
            let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
            tokio::spawn(async move {
                let mut slow = Vec::new();
                while let Some(Ok(asked)) = connection.accept().await {
                    match asked.0.uri().path() {
                        "/slow" => slow.push(asked),
                        _ => answer(asked, "x"),
                    }
                }
            });
        }
    });
    let sidecar = before(address, "[listen]\nworkers = 1\n");
    let address = sidecar.address;
    let answers =
        all((0..60).map(|number| async move { post(address, &format!("/{number}")).await.0 }))
            .await;
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    // Before it has said that it takes five, the first takes more.
    let after_burst = connections.load(Ordering::Relaxed);
    assert!(after_burst <= 13, "{after_burst}");
    // Five that last fill one: what comes then does not wait behind them.
    let mut held = Vec::new();
    for _ in 0..5 * after_burst {
        let mut client = Client::connect(address).await;
        client.request("GET", "/slow", &[]).await;
        held.push(client);
    }
    let begun = std::time::Instant::now();
    assert_eq!(post(address, "/fast").await.0, 200);
    assert!(begun.elapsed() < Duration::from_secs(5));
}
