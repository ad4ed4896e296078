//! Several places where clients come in: TCP, TLS, a socket of this machine; and proxies that say
//! first whom they speak for.

use std::net::SocketAddr;

use iris_sidecar::config::Address;
use iris_sidecar::process::Sidecar;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Command;

use crate::support::certificate::Authority;
use crate::support::{Client, Fixture, Origin, Seen, config, numbered, ok, route};

fn forwarded_for(seen: &Seen) -> String {
    seen.header("x-forwarded-for").unwrap_or("none").to_owned()
}

async fn says(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, sent: &[u8]) -> String {
    // It may be closed before all is sent.
    let _ = stream.write_all(sent).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

const ASKED: &[u8] = b"GET /a HTTP/1.1\r\nhost: api.example\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn several_places_serve_at_once_and_are_let_go_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("iris.sock");
    let authority = Authority::new();
    let certificate = authority.issue(&["api.example"]);
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    // What a process that was killed has left.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\nworkers = 2\n[[listen]]\naddress \
            = \"127.0.0.1:0\"\n[listen.tls]\n{}[[listen]]\naddress = \"unix:{}\"\n{}",
        certificate.keys(),
        socket.display(),
        route("ttl = \"1h\"")
    );
    let start = || Sidecar::start(config(&origin.url(), &text));
    let sidecar = start().unwrap();
    assert_eq!(sidecar.addresses.len(), 3);
    let tcp = |at: usize| match &sidecar.addresses[at] {
        Address::Tcp(address) => *address,
        other => panic!("{other}"),
    };
    let first = TcpStream::connect(tcp(0)).await.unwrap();
    let answer = says(first, ASKED).await;
    assert!(
        answer.contains("x-cache: MISS") && answer.ends_with('1'),
        "{answer}"
    );
    for _ in 0..8 {
        // Every worker waits there.
        let answer = says(UnixStream::connect(&socket).await.unwrap(), ASKED).await;
        assert!(
            answer.contains("x-cache: HIT") && answer.ends_with('1'),
            "{answer}"
        );
    }
    let mut command = Command::new("curl");
    command.args([
        "-si",
        "--unix-socket",
        socket.to_str().unwrap(),
        "http://api.example/a",
    ]);
    let output = command.output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("x-cache: HIT"));
    let mut command = Command::new("curl");
    command.args(["-si", "--cacert", &authority.path(), "--connect-to"]);
    command.arg(format!("api.example:443:{}", tcp(1)));
    let output = command.arg("https://api.example/a").output().await.unwrap();
    // Another scheme is another key.
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("x-cache: MISS"),
        "{output:?}"
    );

    let error = start()
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    assert!(
        error.contains(&format!("unix:{}", socket.display())),
        "{error}"
    );
    assert!(socket.exists(), "it is still the first one's");
    sidecar.drain();
    tokio::task::block_in_place(|| sidecar.join());
    assert!(!socket.exists());
}

fn trusting(networks: &str) -> String {
    format!(
        "[listen]\nproxy_protocol = true\ntrusted_proxies = [{networks}]\n{}",
        route("ttl = \"1h\"")
    )
}

async fn at(address: SocketAddr, header: &[u8]) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    says(stream, &[header, ASKED].concat()).await
}

#[tokio::test]
async fn a_trusted_proxy_says_whom_it_speaks_for_and_a_stranger_does_not() {
    let second = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..],
        &[192, 0, 2, 9, 10, 0, 0, 1, 1, 2, 0, 80],
    ]
    .concat();
    let trusted = Fixture::start(&trusting("\"127.0.0.1\""), |seen| {
        ok(forwarded_for(seen), &[])
    })
    .await;
    let address = trusted.sidecar().address;
    for (header, client) in [
        (
            &b"PROXY TCP4 192.0.2.7 10.0.0.1 258 80\r\n"[..],
            "192.0.2.7",
        ),
        (&second, "192.0.2.9"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    ] {
        let sent = [
            header,
            b"GET /x HTTP/1.1\r\nhost: h\r\nauthorization: k\r\nconnection: close\r\n\r\n",
        ]
        .concat();
        let answer = says(TcpStream::connect(address).await.unwrap(), &sent).await;
        assert!(answer.ends_with(client), "{client}: {answer}");
    }
    // Of one that the proxy does not name nothing is believed.
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let forged = b"GET /z HTTP/1.1\r\nhost: h\r\nx-forwarded-for: 10.9.9.9\r\nauthorization: \
            k\r\nconnection: close\r\n\r\n";
        let stream = TcpStream::connect(address).await.unwrap();
        let answer = says(stream, &[header, &forged[..]].concat()).await;
        assert!(answer.ends_with("\r\n\r\n127.0.0.1"), "{answer}");
    }
    // A client behind the proxy is no proxy itself: nobody believes what it says of others.
    let forged = b"PROXY TCP4 192.0.2.7 10.0.0.1 258 80\r\nGET /y HTTP/1.1\r\nhost: \
        h\r\nx-forwarded-for: 10.9.9.9\r\nconnection: close\r\n\r\n";
    let answer = says(TcpStream::connect(address).await.unwrap(), forged).await;
    assert!(answer.ends_with("192.0.2.7"), "{answer}");
    // One that says nothing is not served: whose request that is, nobody knows.
    let hostile: [&[u8]; 4] = [
        b"",
        b"PROXY TCP4 300.1.1.1 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 \
            24 25 26 27 28 29 30 31\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ];
    for header in hostile {
        assert_eq!(at(address, header).await, "", "{header:?}");
    }
    trusted
        .metric_reaches("proxy_headers_refused_total", 4.0)
        .await;

    let strange = Fixture::start(&trusting("\"10.9.9.9\""), |seen| {
        ok(forwarded_for(seen), &[])
    })
    .await;
    let address = strange.sidecar().address;
    let answer = at(address, b"PROXY TCP4 192.0.2.7 10.0.0.1 258 80\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(at(address, b"").await.ends_with("127.0.0.1"));
}

#[tokio::test]
async fn a_proxy_speaks_for_a_client_of_tls() {
    let authority = Authority::new();
    let certificate = authority.issue(&["api.example"]);
    let text = format!(
        "{}[listen.tls]\n{}",
        trusting("\"127.0.0.1\""),
        certificate.keys()
    );
    let fixture = Fixture::start(&text, |seen| ok(forwarded_for(seen), &[])).await;
    let address = fixture.sidecar().address;
    let config = iris_sidecar::tls::client(Some(authority.path().as_ref()), "ca").unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"PROXY TCP6 2001:db8::7 ::1 258 80\r\n")
        .await
        .unwrap();
    let stream = connector
        .connect("api.example".try_into().unwrap(), stream)
        .await
        .unwrap();
    assert!(says(stream, ASKED).await.ends_with("2001:db8::7"));
    // Half a header is waited for as long as a head would be, and no longer.
    let hasty = Fixture::start(
        &format!(
            "[limits]\nhead_timeout = \"300ms\"\n{}",
            trusting("\"127.0.0.1\"")
        ),
        |_| ok("x", &[]),
    )
    .await;
    let mut client = Client::connect(hasty.sidecar().address).await;
    client.send(b"PROXY TCP4 192.").await;
    assert!(client.closed().await.is_empty());
}
