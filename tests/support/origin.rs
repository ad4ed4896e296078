//! A scripted origin on a free loopback port. It speaks just enough HTTP/1.1 to be misunderstood.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::PATIENCE;

/// One request as the origin saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// From 1, over all connections.
    pub number: usize,
    /// From 1, on its connection.
    pub on_connection: usize,
    pub method: String,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("ASCII"))
    }
}

/// One thing an origin does.
#[derive(Clone, Debug)]
pub enum Step {
    Send(Vec<u8>),
    /// Waits until the test opens the gate.
    Wait(Gate),
    /// Closes in good order.
    Close,
    /// Closes with RST.
    Reset,
    /// Sends back whatever comes, until the other side closes.
    Echo,
}

/// What an origin does for one request.
pub type Reply = Vec<Step>;

/// Something that waits until a test says go.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn passed(&self) {
        let mut opened = self.0.subscribe();
        opened
            .wait_for(|open| *open)
            .await
            .expect("the gate is held");
    }
}

/// `then`, once the gate is open.
pub fn after(gate: &Gate, then: Reply) -> Reply {
    std::iter::once(Step::Wait(gate.clone()))
        .chain(then)
        .collect()
}

/// 200 with these fields and this body.
pub fn ok(body: impl AsRef<[u8]>, fields: &[(&str, &str)]) -> Reply {
    reply(200, body, fields)
}

/// A body that tells which of the origin's answers it is.
pub fn numbered(seen: &Seen, fields: &[(&str, &str)]) -> Reply {
    ok(format!("{}", seen.number), fields)
}

/// A whole response with its length.
pub fn reply(status: u16, body: impl AsRef<[u8]>, fields: &[(&str, &str)]) -> Reply {
    let body = body.as_ref();
    let mut out = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in fields {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    if status != 304 && status != 204 {
        out.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    let mut out = format!("{out}\r\n").into_bytes();
    out.extend_from_slice(body);
    vec![Step::Send(out)]
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A running origin.
pub struct Origin {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    arrived: Arc<Notify>,
    connections: Arc<AtomicUsize>,
    listening: Option<JoinHandle<()>>,
}

impl Origin {
    pub async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(0, true, script).await
    }

    /// The same on this port.
    #[allow(dead_code)] // by the tests of one crate alone
    pub async fn start_at(
        port: u16,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(port, true, script).await
    }

    /// An origin that does not remember what it was asked: for very many requests.
    #[allow(dead_code)] // by `memory.rs` alone, which is a crate of its own
    pub async fn unrecorded(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(0, false, script).await
    }

    /// An origin that answers 401 to each head and never looks at a body.
    pub async fn answering_early() -> Self {
        Self::connections_of(|mut stream| async move {
            let mut buffer = Vec::new();
            while stream
                .read_buf(&mut buffer)
                .await
                .is_ok_and(|read| read > 0)
            {
                if find(&buffer, b"\r\n\r\n").is_some() {
                    buffer.clear();
                    let refusal = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno";
                    let _ = stream.write_all(refusal).await;
                }
            }
        })
        .await
    }

    /// An origin that does this with each connection; what it is asked is not recorded.
    pub async fn connections_of<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let listening = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                tokio::spawn(serve(stream));
            }
        });
        Self {
            address,
            seen: Arc::default(),
            arrived: Arc::default(),
            connections: Arc::default(),
            listening: Some(listening),
        }
    }

    async fn listen(
        port: u16,
        records: bool,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (seen, arrived) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(Notify::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let script: Arc<Script> = Arc::new(script);
        let state = (
            Arc::clone(&seen),
            Arc::clone(&arrived),
            Arc::clone(&connections),
        );
        let listening = tokio::spawn(async move {
            let (seen, arrived, connections) = state;
            // Connections end with the listener.
            let mut serving = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                connections.fetch_add(1, Ordering::SeqCst);
                let (script, seen, arrived) =
                    (Arc::clone(&script), Arc::clone(&seen), Arc::clone(&arrived));
                serving.spawn(async move {
                    drop(serve(stream, &*script, records.then_some(&*seen), &arrived).await)
                });
            }
        });
        Self {
            address,
            seen,
            arrived,
            connections,
            listening: Some(listening),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("not poisoned").clone()
    }

    pub fn count(&self) -> usize {
        self.seen().len()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn last(&self) -> Seen {
        self.seen().pop().expect("the origin was asked")
    }

    /// Waits until so many requests have come.
    pub async fn asked(&self, count: usize) {
        let waiting = async {
            loop {
                let arrived = self.arrived.notified();
                if self.count() >= count {
                    return;
                }
                arrived.await;
            }
        };
        timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("the origin was asked {} times, not {count}", self.count()));
    }

    /// Stops: connections end, and the next one is refused.
    pub async fn stop(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            let _ = listening.await;
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
        }
    }
}

async fn serve(
    mut stream: TcpStream,
    script: &Script,
    seen: Option<&Mutex<Vec<Seen>>>,
    arrived: &Notify,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    for on_connection in 1.. {
        let Some(mut request) = read_request(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        request.on_connection = on_connection;
        if let Some(seen) = seen {
            let mut seen = seen.lock().expect("not poisoned");
            request.number = seen.len() + 1;
            seen.push(request.clone());
        }
        arrived.notify_waiters();
        for step in script(&request) {
            match step {
                Step::Send(bytes) => stream.write_all(&bytes).await?,
                Step::Wait(gate) => gate.passed().await,
                Step::Close => return stream.shutdown().await,
                Step::Reset => {
                    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
                    return Ok(());
                }
                Step::Echo => {
                    stream.write_all(&std::mem::take(&mut buffer)).await?;
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await?;
                    return writer.shutdown().await;
                }
            }
        }
    }
    Ok(())
}

async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<Seen>> {
    let end = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head: Vec<u8> = buffer.drain(..end).collect();
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Request::new(&mut fields);
    parsed.parse(&head).expect("the sidecar sends valid heads");
    let mut headers = HeaderMap::new();
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).expect("a field name");
        headers.append(
            name,
            HeaderValue::from_bytes(field.value).expect("a field value"),
        );
    }
    let mut seen = Seen {
        number: 0,
        on_connection: 0,
        method: parsed.method.expect("a method").to_owned(),
        target: parsed.path.expect("a target").to_owned(),
        headers,
        body: Vec::new(),
        trailers: String::new(),
    };
    if let Some(length) = seen.header("content-length") {
        let length: usize = length.parse().expect("a length");
        while buffer.len() < length {
            if stream.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
        seen.body = buffer.drain(..length).collect();
    } else if seen.header("transfer-encoding").is_some() {
        loop {
            let line = read_line(stream, buffer).await?;
            let size = usize::from_str_radix(line.trim(), 16).expect("a chunk size");
            if size == 0 {
                break;
            }
            while buffer.len() < size + 2 {
                stream.read_buf(buffer).await?;
            }
            seen.body.extend(buffer.drain(..size));
            buffer.drain(..2);
        }
        loop {
            let line = read_line(stream, buffer).await?;
            if line.trim().is_empty() {
                break;
            }
            seen.trailers.push_str(&line);
        }
    }
    Ok(Some(seen))
}

async fn read_line(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<String> {
    loop {
        if let Some(at) = find(buffer, b"\r\n") {
            let line: Vec<u8> = buffer.drain(..at + 2).collect();
            return Ok(String::from_utf8(line).expect("ASCII"));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
