//! The real binary in front of a real nginx that serves files.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::process::{FREE_PORTS, Killed, Running, file};
use crate::support::{Client, route};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// nginx in the foreground as one process, on files of its own folder.
async fn nginx(folder: &Path) -> (Killed, u16) {
    let port = free_port();
    let at = folder.display();
    std::fs::create_dir(folder.join("www")).unwrap();
    for (name, size) in [("small.json", 100), ("large.json", 300_000)] {
        std::fs::write(folder.join("www").join(name), "x".repeat(size)).unwrap();
    }
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error;\nevents {{}}\nhttp {{ access_log off; default_type application/json; gzip on; gzip_types application/json; gzip_proxied any; gzip_http_version 1.1; gzip_min_length 10; gzip_vary on;\n  client_body_temp_path {at}/1; proxy_temp_path {at}/2; fastcgi_temp_path {at}/3; uwsgi_temp_path {at}/4; scgi_temp_path {at}/5;\n  server {{ listen 127.0.0.1:{port}; root {at}/www; expires 60s; }} }}\n"
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
    let listening = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, listening)
        .await
        .expect("nginx listens");
    (Killed(child), port)
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
