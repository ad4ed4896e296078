//! The real binary in front of a real nginx that serves files.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use iris_sidecar::config::Config;
use iris_sidecar::process::Sidecar;

use crate::support::certificate::{Authority, Certificate};
use crate::support::process::{FREE_PORTS, Killed, Running, file};
use crate::support::{Client, route};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// nginx in the foreground as one process, with these servers; it listens where `port` says, or by
/// the socket there.
async fn nginx_with(folder: &Path, servers: &str, at: &str) -> Killed {
    let here = folder.display();
    let text = format!(
        "daemon off; master_process off; pid {here}/pid; error_log {here}/error;\nevents \
            {{}}\nhttp {{ access_log off; default_type application/json;\n  client_body_temp_path \
            {here}/1; proxy_temp_path {here}/2; fastcgi_temp_path {here}/3; uwsgi_temp_path \
            {here}/4; scgi_temp_path {here}/5;\n  {servers} }}\n"
    );
    std::fs::write(folder.join("nginx.conf"), text).unwrap();
    let mut command = Command::new("nginx");
    command
        .arg("-e")
        .arg(folder.join("error"))
        .arg("-c")
        .arg(folder.join("nginx.conf"));
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx is installed: tests/run does it");
    let is_there = async || match at.strip_prefix("unix:") {
        Some(path) => tokio::net::UnixStream::connect(path).await.is_ok(),
        None => tokio::net::TcpStream::connect(at).await.is_ok(),
    };
    let listening = async {
        while !is_there().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, listening)
        .await
        .expect("nginx listens");
    Killed(child)
}

/// One that serves files of its own folder.
async fn nginx(folder: &Path) -> (Killed, u16) {
    let port = free_port();
    let at = folder.display();
    std::fs::create_dir(folder.join("www")).unwrap();
    for (name, size) in [("small.json", 100), ("large.json", 300_000)] {
        std::fs::write(folder.join("www").join(name), "x".repeat(size)).unwrap();
    }
    let server = format!(
        "gzip on; gzip_types application/json; gzip_proxied any; gzip_http_version 1.1; \
            gzip_min_length 10; gzip_vary on; server {{ listen 127.0.0.1:{port}; root {at}/www; \
            expires 60s; }}"
    );
    let address = format!("127.0.0.1:{port}");
    (nginx_with(folder, &server, &address).await, port)
}

/// A sidecar before an upstream that is configured so.
fn before(upstream: &str) -> Sidecar {
    let text = format!("{FREE_PORTS}[upstream]\n{upstream}\n{}", route(""));
    let config = Config::parse("test.toml", &text, &|_| None).unwrap();
    Sidecar::start(config).unwrap()
}

async fn says(sidecar: &Sidecar) -> String {
    let mut client = Client::connect(sidecar.address).await;
    let answer = client.ask("GET", "/a?b", &[]).await;
    format!("{} {}", answer.status, answer.text())
}

const ECHO: &str =
    "location / { return 200 \"$server_protocol $host $request_uri $http_connection\"; }";

#[tokio::test]
async fn it_is_reached_by_a_socket_of_this_machine_with_a_path_or_without() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("app.sock");
    let at = format!("unix:{}", socket.display());
    let _nginx = nginx_with(
        folder.path(),
        &format!("server {{ listen {at}; {ECHO} }}"),
        &at,
    )
    .await;
    let sidecar = before(&format!("url = \"{at}\""));
    for _ in 0..3 {
        assert_eq!(says(&sidecar).await, "200 HTTP/1.1 api.example /a?b ");
    }
    let rewriting = before(&format!("url = \"{at}\"\nhost = \"rewrite\""));
    assert_eq!(says(&rewriting).await, "200 HTTP/1.1 localhost /a?b ");

    let name = format!("iris-sidecar-test-{}", std::process::id());
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
            &name,
        )
        .unwrap();
    let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nabstract";
        tokio::io::AsyncWriteExt::write_all(&mut stream, answer)
            .await
            .unwrap();
    });
    assert_eq!(
        says(&before(&format!("url = \"unix:@{name}\""))).await,
        "200 abstract"
    );
    // Nobody listens there.
    let nobody = before(&format!("url = \"unix:{}.none\"", socket.display()));
    let told = says(&nobody).await;
    assert!(
        told.starts_with("502") && told.contains("does not accept connections"),
        "{told}"
    );
}

#[tokio::test]
async fn it_is_spoken_to_in_http_2_with_tls_and_without() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, secured) = (free_port(), free_port());
    let authority = Authority::new();
    let server = authority.issue(&["api.internal"]);
    let (clients, us) = (Authority::new(), Certificate::of("unused"));
    clients.renew(
        &us,
        &["iris-sidecar"],
        Duration::ZERO,
        Duration::from_secs(86400),
    );
    let servers = format!(
        "server {{ listen 127.0.0.1:{plain} http2; {ECHO} }} server {{ listen 127.0.0.1:{secured} \
            ssl http2; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {}; ssl_certificate_key {}; \
            ssl_client_certificate {}; ssl_verify_client on; location / {{ return \
            200 \"$server_protocol $ssl_protocol $ssl_server_name $ssl_client_verify\"; }} }}",
        server.path(),
        server.key(),
        clients.path()
    );
    let _nginx = nginx_with(folder.path(), &servers, &format!("127.0.0.1:{plain}")).await;
    let h2c = before(&format!(
        "url = \"http://127.0.0.1:{plain}\"\nprotocol = \"h2\""
    ));
    for _ in 0..3 {
        assert_eq!(says(&h2c).await, "200 HTTP/2.0 api.example /a?b ");
    }
    let url = format!(
        "url = \"https://127.0.0.1:{secured}\"\nca_file = \"{}\"\n",
        authority.path()
    );
    let named = format!("{url}server_name = \"api.internal\"\n");
    for (protocol, spoken) in [("h2", "HTTP/2.0"), ("http/1.1", "HTTP/1.1")] {
        let keys = format!("{named}protocol = \"{protocol}\"\n{}", us.keys());
        let told = says(&before(&keys)).await;
        assert_eq!(told, format!("200 {spoken} TLSv1.3 api.internal SUCCESS"));
    }
    // Without a certificate of ours nginx answers 400; under another name its own is not right.
    assert!(says(&before(&named)).await.starts_with("400"));
    let told = says(&before(&url)).await;
    assert!(
        told.starts_with("502") && told.contains("TLS_FAILED"),
        "{told}"
    );
}

#[tokio::test]
async fn a_certificate_that_signs_itself_is_trusted_to_the_letter_and_files_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let make = |name: &str| {
        // As openssl makes them: marked as an authority's, which no server may show by the usual
        // rules.
        let (certificate, key) = (
            folder.path().join(format!("{name}.crt")),
            folder.path().join(format!("{name}.key")),
        );
        let mut command = Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]);
        command.args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
        ]);
        let made = command
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        (certificate, key)
    };
    let (own, other) = (make("own"), make("other"));
    let server = format!(
        "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; \
            {ECHO} }}",
        own.0.display(),
        own.1.display()
    );
    let _nginx = nginx_with(folder.path(), &server, &format!("127.0.0.1:{port}")).await;
    let trusted = folder.path().join("trusted.pem");
    std::fs::copy(&other.0, &trusted).unwrap();
    let text = format!(
        "{FREE_PORTS}[upstream]\nurl = \"https://localhost:{port}\"\nca_file \
            = \"{}\"\nbreaker_failures = 1000\n[reload]\nevery = \"0s\"\n",
        trusted.display()
    );
    let path = file(folder.path(), &text);
    let config = Config::load(path.as_ref(), &|_| None).unwrap();
    let sidecar = Sidecar::start(config).unwrap();
    assert!(
        says(&sidecar).await.starts_with("502"),
        "another one is not trusted"
    );
    std::fs::copy(&own.0, &trusted).unwrap();
    let told = Client::order(sidecar.admin_address, "/reload", "{}").await;
    assert!(
        told.text().contains("upstream: other roots"),
        "{}",
        told.text()
    );
    assert_eq!(says(&sidecar).await, "200 HTTP/1.1 api.example /a?b ");
    // What is no certificate changes nothing.
    std::fs::write(&trusted, "nothing").unwrap();
    let told = Client::order(sidecar.admin_address, "/reload", "{}").await;
    assert_eq!(told.status, 400, "{}", told.text());
    assert_eq!(says(&sidecar).await, "200 HTTP/1.1 api.example /a?b ");
}

#[tokio::test]
async fn files_of_nginx_are_served_from_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let (_nginx, port) = nginx(folder.path()).await;
    let text = format!(
        "{FREE_PORTS}[upstream]\nurl = \"http://127.0.0.1:{port}\"\n{}",
        route("")
    );
    let running = Running::start(&file(folder.path(), &text));
    let address = running.address;
    let mut client = Client::connect(address).await;
    for (target, length) in [("/small.json", 100), ("/large.json", 300_000)] {
        for expected in ["MISS", "HIT"] {
            let received = client.ask("GET", target, &[]).await;
            assert_eq!(
                (received.status, received.body.len(), received.cache()),
                (200, length, expected),
                "{target}"
            );
            assert!(
                received
                    .header("cache-status")
                    .unwrap()
                    .contains("iris-sidecar")
            );
        }
        let head = client.ask("HEAD", target, &[]).await;
        assert_eq!(
            (head.cache(), head.header("content-length")),
            ("HIT", Some(length.to_string().as_str()))
        );
    }
    let stored = client.ask("GET", "/small.json", &[]).await;
    let etag = stored.header("etag").unwrap().to_owned();
    let unchanged = client
        .ask("GET", "/small.json", &[("if-none-match", &etag)])
        .await;
    assert_eq!(
        (unchanged.status, unchanged.cache(), unchanged.body.len()),
        (304, "HIT", 0)
    );
    // A variant of its own: nginx compresses and says Vary.
    for expected in ["MISS", "HIT"] {
        let packed = client
            .ask("GET", "/large.json", &[("accept-encoding", "gzip")])
            .await;
        assert_eq!(
            (packed.cache(), packed.header("content-encoding")),
            (expected, Some("gzip"))
        );
        assert!(packed.body.len() < 10_000);
    }
    let part = client
        .ask("GET", "/large.json", &[("range", "bytes=0-9")])
        .await;
    assert_eq!(
        (part.status, part.body.len(), part.cache()),
        (206, 10, "HIT")
    );
    let missing = client.ask("GET", "/missing.json", &[]).await;
    assert_eq!(missing.status, 404);
}
