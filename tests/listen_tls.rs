//! TLS towards clients, seen by curl and openssl: versions, protocols, certificates by name,
//! clients' certificates, and certificates that change under traffic.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::certificate::{Authority, Certificate};
use crate::support::{Client, Fixture, Origin, numbered, ok, route};

const DAY: Duration = Duration::from_secs(86400);

fn tls(certificate: &Certificate, more: &str) -> String {
    format!("[listen.tls]\n{}{more}\n", certificate.keys())
}

/// What curl says to a sidecar known by these names.
async fn curl(fixture: &Fixture, root: &str, url: &str, more: &[&str]) -> Output {
    let address = fixture.sidecar().address;
    let place = url.split('/').nth(2).unwrap();
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--include", "--max-time", "15"]);
    command.args(["--cacert", root, "--connect-to"]);
    command.arg(format!("{place}:443:{}:{}", address.ip(), address.port()));
    command.args(more).arg(url);
    command.output().await.expect("curl is installed")
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    text
}

#[tokio::test]
async fn both_versions_and_both_protocols_are_spoken_and_the_origin_is_told() {
    let authority = Authority::new();
    let certificate = authority.issue(&["api.example"]);
    let fixture = Fixture::start(
        &format!("{}{}", tls(&certificate, ""), route("ttl = \"1h\"")),
        |seen| {
            let proto = seen
                .header("x-forwarded-proto")
                .unwrap_or("none")
                .to_owned();
            ok(proto, &[])
        },
    )
    .await;
    let root = authority.path();
    for (number, (asked, head)) in [
        (&["--http2", "--tlsv1.3"][..], "HTTP/2 200"),
        (&["--http1.1", "--tlsv1.3"], "HTTP/1.1 200"),
        (&["--http2", "--tls-max", "1.2"], "HTTP/2 200"),
        (&["--http1.1", "--tls-max", "1.2"], "HTTP/1.1 200"),
    ]
    .into_iter()
    .enumerate()
    {
        let text = said(&curl(&fixture, &root, "https://api.example/a", asked).await);
        assert!(text.starts_with(head), "{asked:?}: {text}");
        assert!(text.ends_with("https"), "{text}");
        let result = if number == 0 { "MISS" } else { "HIT" };
        assert!(
            text.contains(&format!("x-cache: {result}")),
            "{asked:?}: {text}"
        );
    }
    // Whoever does not speak TLS there is not served.
    let mut plain = fixture.connect().await;
    plain
        .send(b"GET / HTTP/1.1\r\nhost: api.example\r\n\r\n")
        .await;
    assert!(!String::from_utf8_lossy(&plain.closed().await).contains("HTTP/1.1 200"));
    let count = |outcome: &str| format!("tls_handshakes_total{{outcome=\"{outcome}\"}}");
    assert_eq!(fixture.metric(&count("done")).await, 4.0);
    fixture.metric_reaches(&count("failed"), 1.0).await;
    let expires = fixture
        .metric("tls_certificate_expiry_timestamp_seconds")
        .await;
    let in_days = (expires - fixture.clock.now().as_secs() as f64) / 86400.0;
    assert!((29.0..30.1).contains(&in_days), "{in_days}");
}

#[tokio::test]
async fn openssl_agrees_on_protocol_resumption_and_versions() {
    let authority = Authority::new();
    let certificate = authority.issue(&["api.example"]);
    let fixture = Fixture::start(&tls(&certificate, "min_version = \"1.3\""), |_| {
        ok("x", &[])
    })
    .await;
    let address = fixture.sidecar().address.to_string();
    let root = authority.path();
    let session = tempfile::NamedTempFile::new().unwrap();
    let session = session.path().to_str().unwrap();
    let s_client = async |more: &[&str]| {
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-connect",
            &address,
            "-servername",
            "api.example",
        ]);
        command
            .args(["-CAfile", &root, "-verify_return_error", "-ign_eof"])
            .args(more);
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = command
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: api.example\r\nconnection: close\r\n\r\n";
        let _ = input.write_all(request).await;
        let output = child.wait_with_output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let first = s_client(&["-alpn", "http/1.1", "-sess_out", session]).await;
    assert!(first.contains("ALPN protocol: http/1.1"), "{first}");
    assert!(
        first.contains("TLSv1.3") && first.contains("HTTP/1.1 200"),
        "{first}"
    );
    let again = s_client(&["-sess_in", session]).await;
    assert!(again.contains("Reused, TLSv1.3"), "{again}");
    let old = s_client(&["-tls1_2"]).await;
    assert!(!old.contains("HTTP/1.1 200"), "{old}");
}

#[tokio::test]
async fn a_certificate_is_chosen_by_name_and_a_request_for_another_one_is_misdirected() {
    let authority = Authority::new();
    let first = authority.issue(&["a.example"]);
    let second = authority.issue(&["b.example", "*.c.example"]);
    let more = format!("[[listen.tls.certificates]]\n{}", second.keys());
    let fixture = Fixture::start(&tls(&first, &more), |_| ok("x", &[])).await;
    let root = authority.path();
    for host in ["a.example", "b.example", "x.c.example"] {
        let text = said(&curl(&fixture, &root, &format!("https://{host}/"), &[]).await);
        assert!(text.starts_with("HTTP/2 200"), "{host}: {text}");
        // A connection for one name may be used for another one that is ours (RFC 9113 §9.1.1).
        let other = ["-H", "host: b.example:8443"];
        let text = said(&curl(&fixture, &root, &format!("https://{host}/"), &other).await);
        assert!(text.starts_with("HTTP/2 200"), "{host}: {text}");
    }
    let foreign = ["-H", "host: evil.example"];
    for protocol in ["--http1.1", "--http2"] {
        let asked = [&foreign[..], &[protocol]].concat();
        let text = said(&curl(&fixture, &root, "https://a.example/", &asked).await);
        assert!(
            text.contains(" 421") && text.contains("opened for (SNI)"),
            "{text}"
        );
    }
    // Nobody's name: the first one is shown, and is wrong for whoever wanted another.
    let wrong = curl(&fixture, &root, "https://d.example/", &[]).await;
    assert!(!wrong.status.success());
}

#[tokio::test]
async fn clients_show_certificates_which_nobody_can_forge() {
    let (authority, theirs, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let server = authority.issue(&["api.example"]);
    let client = theirs.issue(&["client-7"]);
    let stranger = strangers.issue(&["client-8"]);
    let told = |seen: &crate::support::Seen| {
        let told = seen.header("client-cert").unwrap_or("none").to_owned();
        ok(told, &[])
    };
    for (auth, without) in [("required", None), ("optional", Some("none"))] {
        let more = format!(
            "client_ca = \"{}\"\nclient_auth = \"{auth}\"\n",
            theirs.path()
        );
        let per_key = route("ttl = \"1h\"\nshare = \"per-key\"");
        let fixture = Fixture::start(&format!("{}{per_key}", tls(&server, &more)), told).await;
        let root = authority.path();
        let (url, forged) = ("https://api.example/a", "client-cert: :AAAA:");
        let (certificate, key) = (client.path(), client.key());
        let shown = ["--cert", &certificate, "--key", &key, "-H", forged];
        for result in ["MISS", "HIT"] {
            let text = said(&curl(&fixture, &root, url, &shown).await);
            assert!(
                text.ends_with(&format!(":{}:", client.base64())),
                "{auth}: {text}"
            );
            assert!(text.contains(&format!("x-cache: {result}")), "{text}");
        }
        let bare = curl(&fixture, &root, url, &["-H", forged]).await;
        match without {
            // Nor is what was stored for another one's.
            Some(told) => assert!(said(&bare).ends_with(told), "{bare:?}"),
            None => assert!(!bare.status.success(), "{bare:?}"),
        }
        let (certificate, key) = (stranger.path(), stranger.key());
        let strange = ["--cert", &certificate, "--key", &key];
        let refused = curl(&fixture, &root, url, &strange).await;
        assert!(!refused.status.success(), "{refused:?}");
    }
    // Without TLS nobody has shown one.
    let fixture = Fixture::start("", told).await;
    let answer = fixture
        .get_with(
            "/a",
            &[("client-cert", ":AAAA:"), ("client-cert-chain", ":BBBB:")],
        )
        .await;
    assert_eq!(answer.text(), "none");
}

#[tokio::test]
async fn a_shared_answer_is_not_one_to_a_certificate() {
    let (authority, theirs) = (Authority::new(), Authority::new());
    let server = authority.issue(&["api.example"]);
    let client = theirs.issue(&["client-7"]);
    let more = format!(
        "client_ca = \"{}\"\nclient_auth = \"optional\"\n",
        theirs.path()
    );
    let fixture = Fixture::start(
        &format!("{}{}", tls(&server, &more), route("ttl = \"1h\"")),
        |seen| numbered(seen, &[]),
    )
    .await;
    let (root, url) = (authority.path(), "https://api.example/a");
    let (certificate, key) = (client.path(), client.key());
    let shown = ["--cert", &certificate, "--key", &key];
    for number in ["1", "2"] {
        assert!(said(&curl(&fixture, &root, url, &shown).await).ends_with(number));
    }
    // RFC 9111 §3.5, as of any credential.
    assert!(said(&curl(&fixture, &root, url, &[]).await).ends_with('3'));
}

/// One request over a connection of its own; whether it was answered.
async fn asks(
    address: std::net::SocketAddr,
    config: &Arc<rustls::ClientConfig>,
) -> Option<Vec<u8>> {
    let stream = TcpStream::connect(address).await.ok()?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    let name = "api.example".try_into().ok()?;
    let mut stream = connector.connect(name, stream).await.ok()?;
    let shown = stream.get_ref().1.peer_certificates()?.first()?.to_vec();
    let request = b"GET /a HTTP/1.1\r\nhost: api.example\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    answer.starts_with(b"HTTP/1.1 200").then_some(shown)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_traffic_and_a_wrong_one_changes_nothing() {
    let authority = Authority::new();
    let names = ["api.example"];
    let certificate = authority.issue(&names);
    let text = format!("{}{}", tls(&certificate, ""), route("ttl = \"1h\""));
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let fixture = Fixture::with_file(origin, &text);
    let (address, admin) = (fixture.sidecar().address, fixture.sidecar().admin_address);
    let mut config = iris_sidecar::tls::client(Some(authority.path().as_ref()), "ca").unwrap();
    // A session that is resumed is by the certificate that it began with.
    config.resumption = rustls::client::Resumption::disabled();
    let config = Arc::new(config);
    let (goes_on, answered) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let mut asking = Vec::new();
    for _ in 0..4 {
        let (goes_on, answered) = (Arc::clone(&goes_on), Arc::clone(&answered));
        let config = Arc::clone(&config);
        asking.push(tokio::spawn(async move {
            while goes_on.load(Ordering::Relaxed) {
                assert!(asks(address, &config).await.is_some());
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let mut shown = std::collections::HashSet::new();
    for _ in 0..10 {
        authority.renew(&certificate, &names, Duration::ZERO, 30 * DAY);
        let reloaded = Client::order(admin, "/reload", "{}").await;
        assert_eq!(reloaded.status, 200, "{}", reloaded.text());
        shown.insert(asks(address, &config).await.expect("it answers"));
    }
    assert_eq!(shown.len(), 10);
    // A key of another one; one that is over; one that is not yet valid; none at all.
    let in_force = asks(address, &config).await.unwrap();
    let key = std::fs::read_to_string(certificate.key()).unwrap();
    for (wrong, why) in [
        (0, "is not that of the certificate"),
        (1, "has expired on"),
        (2, "is not valid before"),
        (3, "holds no certificate"),
    ] {
        match wrong {
            0 => {
                authority.renew(&certificate, &names, Duration::ZERO, DAY);
                std::fs::write(certificate.key(), &key).unwrap();
            }
            1 => authority.renew(&certificate, &names, Duration::ZERO, Duration::from_secs(9)),
            2 => authority.renew(&certificate, &names, DAY, DAY),
            _ => std::fs::write(certificate.path(), "nothing").unwrap(),
        }
        let refused = Client::order(admin, "/reload", "{}").await;
        assert_eq!(refused.status, 400, "{wrong}");
        assert!(refused.text().contains(why), "{wrong}: {}", refused.text());
        assert!(refused.text().contains("iris.toml:"), "{}", refused.text());
        assert_eq!(
            asks(address, &config).await,
            Some(in_force.clone()),
            "{wrong}"
        );
    }
    assert_eq!(Client::admin(admin, "/readyz").await.status, 200);
    goes_on.store(false, Ordering::Relaxed);
    for task in asking {
        task.await.expect("no request has failed");
    }
    assert!(answered.load(Ordering::Relaxed) > 20);
}

#[tokio::test]
async fn handshakes_half_done_are_bounded_in_number_and_in_time() {
    let authority = Authority::new();
    let certificate = authority.issue(&["api.example"]);
    let limits = "[limits]\nhandshakes = 3\nhead_timeout = \"500ms\"\n";
    let fixture = Fixture::start(&format!("{limits}{}", tls(&certificate, "")), |_| {
        ok("x", &[])
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut client = fixture.connect().await;
        client.send([0x16, 3, 1]).await;
        held.push(client);
    }
    let count = |outcome: &str| format!("tls_handshakes_total{{outcome=\"{outcome}\"}}");
    fixture.metric_reaches(&count("too_many"), 2.0).await;
    fixture.metric_reaches(&count("late"), 3.0).await;
    for mut client in held {
        assert!(client.closed().await.is_empty());
    }
    let text = said(&curl(&fixture, &authority.path(), "https://api.example/", &[]).await);
    assert!(text.starts_with("HTTP/2 200"), "{text}");
}

#[tokio::test]
async fn a_certificate_that_was_not_shown_opens_nothing_that_is_stored() {
    let (authority, theirs) = (Authority::new(), Authority::new());
    let server = authority.issue(&["api.example"]);
    let (victim, other) = (theirs.issue(&["victim"]), theirs.issue(&["other"]));
    let more = format!(
        "client_ca = \"{}\"\nclient_auth = \"optional\"\n",
        theirs.path()
    );
    let per_key = route("ttl = \"1h\"\nshare = \"per-key\"");
    let fixture = Fixture::start(&format!("{}{per_key}", tls(&server, &more)), |seen| {
        let said = |name: &str| seen.header(name).unwrap_or("none").to_owned();
        let told = format!("{} {}", said("client-cert"), said("client-cert-chain"));
        ok(told, &[("vary", "client-cert")])
    })
    .await;
    let (root, base) = (authority.path(), "https://api.example");
    let shown = |certificate: &Certificate| {
        let (path, key) = (certificate.path(), certificate.key());
        ["--cert".to_owned(), path, "--key".to_owned(), key]
    };
    let forged = format!("client-cert: :{}:", victim.base64());
    let chain = "client-cert-chain: :Zm9yZ2Vk:";
    let ask = async |path: &str, own: &[String], fields: &[&str]| {
        let mut more: Vec<&str> = own.iter().map(String::as_str).collect();
        fields.iter().for_each(|field| more.extend(["-H", field]));
        said(&curl(&fixture, &root, &format!("{base}{path}"), &more).await)
    };
    let victims = format!(":{}: none", victim.base64());
    // What is the victim's is nobody's who only says so; nor is what such a one asks for the
    // victim's.
    let (victim, other) = (shown(&victim), shown(&other));
    assert!(ask("/a", &victim, &[]).await.ends_with(&victims));
    let answer = ask("/a", &[], &[&forged, chain]).await;
    assert!(
        answer.contains("x-cache: MISS") && answer.ends_with("none none"),
        "{answer}"
    );
    assert!(ask("/b", &[], &[&forged]).await.ends_with("none none"));
    let answer = ask("/b", &victim, &[]).await;
    assert!(
        answer.contains("x-cache: MISS") && answer.ends_with(&victims),
        "{answer}"
    );
    // With a certificate of its own neither, and not by way of `Connection`.
    let answer = ask("/a", &other, &[&forged, chain, "connection: client-cert"]).await;
    assert!(
        answer.contains("x-cache: MISS") && !answer.contains("Zm9yZ2Vk"),
        "{answer}"
    );
    assert!(
        !answer.ends_with(&victims) && !answer.ends_with("none none"),
        "{answer}"
    );
    let answer = ask("/c", &victim, &["connection: client-cert"]).await;
    assert!(answer.ends_with(&victims), "{answer}");
}

#[tokio::test]
async fn a_proxy_that_encrypts_again_speaks_for_hosts_that_are_not_ours() {
    let authority = Authority::new();
    let server = authority.issue(&["sidecar.internal"]);
    let trusting = "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n";
    let fixture =
        Fixture::start(&format!("{trusting}{}", tls(&server, "")), |_| ok("x", &[])).await;
    let host = ["-H", "host: www.public.example"];
    let text = said(
        &curl(
            &fixture,
            &authority.path(),
            "https://sidecar.internal/",
            &host,
        )
        .await,
    );
    assert!(text.starts_with("HTTP/2 200"), "{text}");
}

#[tokio::test]
async fn explain_knows_what_came_over_tls() {
    let authority = Authority::new();
    let server = authority.issue(&["api.example"]);
    let text = format!("{}{}", tls(&server, ""), route("ttl = \"1h\""));
    let fixture = Fixture::start(&text, |_| ok("x", &[])).await;
    said(&curl(&fixture, &authority.path(), "https://api.example/a", &[]).await);
    for (url, reason) in [
        ("https://api.example/a", "fresh"),
        ("http://api.example/a", "cold"),
    ] {
        let told = fixture.admin(&format!("/explain?url={url}")).await.json();
        assert_eq!(told["reason"], reason, "{url}: {told}");
    }
}
