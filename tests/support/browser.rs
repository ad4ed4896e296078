//! A real Chromium without a window, driven over its DevTools protocol.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{Client, PATIENCE};

/// A browser with one page.
pub struct Browser {
    child: Child,
    _folder: tempfile::TempDir,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    number: u64,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    /// Opens a page.
    pub async fn open(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let profile = format!("--user-data-dir={}", folder.path().display());
        let child = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
                "--remote-debugging-port=0",
                &profile,
                "about:blank",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tests/run installs it");
        let port = port_of(&folder.path().join("DevToolsActivePort")).await;
        let socket = page_socket(port).await;
        let mut browser = Self {
            child,
            _folder: folder,
            socket,
            number: 0,
        };
        browser.say("Page.enable", json!({})).await;
        browser.say("Page.navigate", json!({"url": url})).await;
        browser
    }

    /// Gives a command, and waits for what it comes to.
    pub async fn say(&mut self, method: &str, parameters: Value) -> Value {
        self.number += 1;
        let number = self.number;
        let command = json!({"id": number, "method": method, "params": parameters});
        let sent = self.socket.send(Message::text(command.to_string())).await;
        sent.expect("the browser listens");
        let answered = async {
            loop {
                let message = self.socket.next().await.unwrap().unwrap();
                let Ok(text) = message.to_text() else {
                    continue;
                };
                let Ok(told) = serde_json::from_str::<Value>(text) else {
                    continue;
                };
                if told["id"] == number {
                    return told["result"].clone();
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered)
            .await
            .unwrap_or_else(|_| panic!("{method} is not answered"))
    }

    /// The value of an expression on the page.
    pub async fn value(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let told = self.say("Runtime.evaluate", parameters).await;
        assert!(told["exceptionDetails"].is_null(), "{expression}: {told}");
        told["result"]["value"].clone()
    }

    /// Waits until an expression on the page is true.
    pub async fn until(&mut self, expression: &str) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while self.value(expression).await != true {
            if tokio::time::Instant::now() > end {
                let page = self.value("document.body.innerText").await;
                panic!(
                    "{expression} never came true on\n{}",
                    page.as_str().unwrap_or_default()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How the page looks at this width.
    pub async fn screenshot(&mut self, width: u32, is_dark: bool, file: &Path) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.say("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = if is_dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.say("Emulation.setEmulatedMedia", media).await;
        self.value("new Promise(done => setTimeout(() => done(true), 300))")
            .await;
        let whole = json!({"captureBeyondViewport": true, "format": "png"});
        let told = self.say("Page.captureScreenshot", whole).await;
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(told["data"].as_str().unwrap())
            .unwrap();
        std::fs::write(file, bytes).unwrap();
    }
}

async fn port_of(file: &Path) -> u16 {
    let found = async {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if let Some(port) = text.lines().next().and_then(|line| line.parse().ok()) {
                return port;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), found)
        .await
        .expect("the browser starts")
}

async fn page_socket(port: u16) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let list = async {
        loop {
            let told = Client::admin(address, "/json/list").await.json();
            let pages = told.as_array().cloned().unwrap_or_default();
            let page = pages.into_iter().find(|page| page["type"] == "page");
            if let Some(url) =
                page.and_then(|page| Some(page["webSocketDebuggerUrl"].as_str()?.to_owned()))
            {
                return url;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let url = tokio::time::timeout(PATIENCE, list)
        .await
        .expect("it has a page");
    // It names the host that it was asked by, which had no port.
    let path = url.split_once("/devtools").expect("a path of its own").1;
    let url = format!("ws://{address}/devtools{path}");
    let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    socket
}
