//! A client that writes raw bytes and reads responses one by one, pieces as they come.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;
use super::origin::find;

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// One response.
#[derive(Clone, Debug)]
pub struct Received {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: String,
    /// The body ended before its framing said so.
    pub is_cut: bool,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("ASCII"))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn cache(&self) -> &str {
        self.header("x-cache").unwrap_or("none")
    }

    pub fn cache_status(&self) -> &str {
        self.header("cache-status").unwrap_or("none")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address)
            .await
            .expect("the server accepts");
        Self::over(stream)
    }

    pub fn over(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    #[allow(dead_code, reason = "of tests/chaos")]
    /// Sends one request and reads its response; `None` where the server is gone before that is
    /// whole.
    pub async fn try_ask(
        &mut self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Option<Received> {
        let mut out = format!("{method} {target} HTTP/1.1\r\n");
        for (name, value) in fields {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method != "GET" {
            out.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        out.push_str(&format!("\r\n{body}"));
        self.stream.write_all(out.as_bytes()).await.ok()?;
        while find(&self.buffer, b"\r\n\r\n").is_none() {
            if !self.more().await {
                return None;
            }
        }
        Some(self.response().await).filter(|received| !received.is_cut)
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .await
            .expect("the server reads");
    }

    /// Sends one request without body and reads its response.
    pub async fn ask(&mut self, method: &str, target: &str, fields: &[(&str, &str)]) -> Received {
        self.request(method, target, fields).await;
        if method == "HEAD" {
            self.head().await
        } else {
            self.response().await
        }
    }

    pub async fn request(&mut self, method: &str, target: &str, fields: &[(&str, &str)]) {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !fields
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            head.push_str("host: api.example\r\n");
        }
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        self.send(format!("{head}\r\n")).await;
    }

    /// Asks an admin port.
    pub async fn admin(address: SocketAddr, target: &str) -> Received {
        let mut client = Self::connect(address).await;
        client.ask("GET", target, &[("host", "127.0.0.1")]).await
    }

    /// Gives an admin port an order.
    pub async fn order(address: SocketAddr, path: &str, order: &str) -> Received {
        let mut client = Self::connect(address).await;
        let length = order.len().to_string();
        let fields = [
            ("host", "127.0.0.1"),
            ("content-type", "application/json"),
            ("content-length", &length),
        ];
        client.request("POST", path, &fields).await;
        client.send(order).await;
        client.response().await
    }

    async fn more(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer))
            .await
            .expect("the server answers in time");
        matches!(read, Ok(count) if count > 0)
    }

    /// Reads a response head; the body is left.
    pub async fn head(&mut self) -> Received {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            assert!(
                self.more().await,
                "closed before a head: {:?}",
                String::from_utf8_lossy(&self.buffer)
            );
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut parsed = httparse::Response::new(&mut fields);
        parsed.parse(&head).expect("a valid head");
        let mut headers = HeaderMap::new();
        for field in parsed.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes()).expect("a field name");
            headers.append(
                name,
                HeaderValue::from_bytes(field.value).expect("a field value"),
            );
        }
        Received {
            status: parsed.code.expect("a status"),
            headers,
            body: Vec::new(),
            trailers: String::new(),
            is_cut: false,
        }
    }

    /// Reads a whole response, or as much of it as comes.
    pub async fn response(&mut self) -> Received {
        let mut received = self.head().await;
        if matches!(received.status, 100..=199 | 204 | 304) {
            return received;
        }
        if received.header("transfer-encoding") == Some("chunked") {
            loop {
                match self.chunk().await {
                    None => {
                        received.is_cut = true;
                        return received;
                    }
                    Some(chunk) if chunk.is_empty() => break,
                    Some(chunk) => received.body.extend(chunk),
                }
            }
            while let Some(line) = self.line().await {
                if line == "\r\n" {
                    break;
                }
                received.trailers.push_str(&line);
            }
            return received;
        }
        let length = received
            .header("content-length")
            .map(|length| length.parse::<usize>().expect("a length"));
        while length.is_none_or(|length| self.buffer.len() < length) {
            if !self.more().await {
                received.is_cut = length.is_some();
                received.body = std::mem::take(&mut self.buffer);
                return received;
            }
        }
        received.body = self.buffer.drain(..length.unwrap_or(0)).collect();
        received
    }

    /// One chunk of a chunked body; empty at its end, `None` where it breaks off.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line().await?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        if size == 0 {
            return Some(Vec::new());
        }
        while self.buffer.len() < size + 2 {
            if !self.more().await {
                return None;
            }
        }
        let chunk = self.buffer.drain(..size).collect();
        self.buffer.drain(..2);
        Some(chunk)
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// What comes up to, and with, these bytes.
    pub async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut searched = 0;
        loop {
            let from = searched - end.len().min(searched);
            if let Some(at) = find(&self.buffer[from..], end) {
                return self.buffer.drain(..from + at + end.len()).collect();
            }
            searched = self.buffer.len();
            assert!(self.more().await, "closed before {end:?}");
        }
    }

    /// Waits until the server closes; what it still sent.
    pub async fn closed(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.buffer)
    }

    /// Reads exactly `count` bytes, as after a switch of protocols.
    pub async fn raw(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.more().await, "closed early");
        }
        self.buffer.drain(..count).collect()
    }

    /// Whether nothing has come so far.
    pub fn is_silent(&mut self) -> bool {
        let mut byte = [0];
        self.buffer.is_empty()
            && matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}
