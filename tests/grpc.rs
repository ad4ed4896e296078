//! gRPC through the sidecar, by a client and a server of tonic: all four kinds of calls, deadlines,
//! calls that are given up, and failures in its own words.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut};
use futures_util::{Stream, StreamExt};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::support::{PATIENCE, config, route};

/// Messages are texts.
#[derive(Default)]
struct Texts;

impl Codec for Texts {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Texts {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Texts {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

type Texted = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

/// Every call is one of two streams: what it says, and to whom it says it, is its path's.
#[derive(Clone)]
struct Echo {
    path: String,
    /// Calls that were given up by their clients.
    given_up: Arc<AtomicU64>,
}

struct GivenUp(Arc<AtomicU64>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl tonic::server::StreamingService<String> for Echo {
    type Response = String;
    type ResponseStream = Texted;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Texted>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.answer(request).await })
    }
}

impl Echo {
    async fn answer(self, request: Request<Streaming<String>>) -> Result<Response<Texted>, Status> {
        let deadline = request.metadata().get("grpc-timeout").cloned();
        let mut said = request.into_inner();
        let stream: Texted = match self.path.as_str() {
            // Each message is answered when it comes.
            "/echo/Each" => Box::pin(said.map(|text| Ok(format!("{}!", text?)))),
            // All are answered by one.
            "/echo/All" => {
                let mut all = Vec::new();
                while let Some(text) = said.next().await {
                    all.push(text?);
                }
                Box::pin(tokio_stream::once(Ok(all.join(","))))
            }
            // One is answered by many.
            "/echo/Many" => {
                let text = said.next().await.unwrap()?;
                let many = (0..1000).map(move |number| Ok(format!("{text}{number}")));
                Box::pin(tokio_stream::iter(many))
            }
            "/echo/Fails" => return Err(Status::failed_precondition("größer %")),
            "/echo/FailsLate" => Box::pin(tokio_stream::iter([
                Ok("first".to_owned()),
                Err(Status::data_loss("late")),
            ])),
            "/echo/Deadline" => {
                let deadline = deadline.unwrap().to_str().unwrap().to_owned();
                Box::pin(tokio_stream::once(Ok(deadline)))
            }
            // It keeps the deadline, as servers do.
            "/echo/Late" => {
                let text = deadline.unwrap().to_str().unwrap().to_owned();
                let micros: u64 = text.trim_end_matches('u').parse().unwrap();
                let late = async move {
                    tokio::time::sleep(Duration::from_micros(micros)).await;
                    Err(Status::deadline_exceeded("too late"))
                };
                let begun = tokio_stream::once(Ok("begun".to_owned()));
                Box::pin(begun.chain(futures_util::stream::once(late)))
            }
            _ => {
                let guard = GivenUp(self.given_up);
                let never = futures_util::stream::pending().map(move |text| {
                    let _ = &guard;
                    text
                });
                Box::pin(tokio_stream::once(Ok("begun".to_owned())).chain(never))
            }
        };
        Ok(Response::new(stream))
    }
}

async fn server() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let given_up = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&given_up);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let given_up = Arc::clone(&counted);
            let service = service_fn(move |request: http::Request<Incoming>| {
                let echo = Echo {
                    path: request.uri().path().to_owned(),
                    given_up: Arc::clone(&given_up),
                };
                async move {
                    let mut grpc = tonic::server::Grpc::new(Texts);
                    Ok::<_, Infallible>(grpc.streaming(echo, request).await)
                }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, given_up)
}

/// A client of a sidecar before that server.
struct Caller {
    grpc: tonic::client::Grpc<Channel>,
    _sidecar: iris_sidecar::process::Sidecar,
}

impl Caller {
    async fn before(upstream: SocketAddr, extra: &str) -> Self {
        let text = format!("[upstream]\nprotocol = \"h2\"\n{extra}");
        let config = config(&format!("http://{upstream}"), &text);
        let sidecar = iris_sidecar::process::Sidecar::start(config).unwrap();
        let channel = Channel::from_shared(format!("http://{}", sidecar.address)).unwrap();
        Self {
            grpc: tonic::client::Grpc::new(channel.connect().await.unwrap()),
            _sidecar: sidecar,
        }
    }

    async fn call(
        &mut self,
        path: &'static str,
        texts: impl Stream<Item = String> + Send + 'static,
        deadline: Option<Duration>,
    ) -> Result<Streaming<String>, Status> {
        self.grpc.ready().await.unwrap();
        let mut request = Request::new(texts);
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let path = PathAndQuery::from_static(path);
        let answered = self.grpc.streaming(request, path, Texts).await?;
        Ok(answered.into_inner())
    }

    /// What a call with these messages says, and how it ends.
    async fn says(&mut self, path: &'static str, texts: &[&str]) -> (Vec<String>, Code) {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let mut said = Vec::new();
        let mut stream = match self.call(path, tokio_stream::iter(texts), None).await {
            Ok(stream) => stream,
            Err(status) => return (said, status.code()),
        };
        loop {
            match stream.message().await {
                Ok(Some(text)) => said.push(text),
                Ok(None) => return (said, Code::Ok),
                Err(status) => return (said, status.code()),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_four_kinds_of_calls_pass_unchanged() {
    let (upstream, _) = server().await;
    let mut caller = Caller::before(upstream, &route("ttl = \"1h\"")).await;
    // One for one; many for one; one for many.
    assert_eq!(
        caller.says("/echo/Each", &["a"]).await,
        (vec!["a!".to_owned()], Code::Ok)
    );
    assert_eq!(
        caller.says("/echo/All", &["a", "b", "c"]).await,
        (vec!["a,b,c".to_owned()], Code::Ok)
    );
    let (many, code) = caller.says("/echo/Many", &["n"]).await;
    assert_eq!(
        (many.len(), many[999].as_str(), code),
        (1000, "n999", Code::Ok)
    );
    // Both ways at once: each message waits for the answer to the one before.
    let (sender, receiver) = mpsc::unbounded_channel();
    sender.send("0".to_owned()).unwrap();
    let texts = UnboundedReceiverStream::new(receiver);
    let mut stream = caller.call("/echo/Each", texts, None).await.unwrap();
    for number in 0..20 {
        assert_eq!(stream.message().await.unwrap(), Some(format!("{number}!")));
        sender.send((number + 1).to_string()).unwrap();
    }
    drop(sender);
    assert_eq!(stream.message().await.unwrap(), Some("20!".to_owned()));
    assert_eq!(stream.message().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_deadlines_and_calls_that_are_given_up_arrive() {
    let (upstream, given_up) = server().await;
    let mut caller = Caller::before(upstream, "").await;
    // A status without a message, in the head, and one after messages, in trailers.
    let refused = caller
        .call("/echo/Fails", tokio_stream::iter([]), None)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "größer %")
    );
    assert_eq!(
        caller.says("/echo/FailsLate", &[]).await,
        (vec!["first".to_owned()], Code::DataLoss)
    );
    let deadline = Some(Duration::from_secs(7));
    let mut stream = caller
        .call("/echo/Deadline", tokio_stream::iter([]), deadline)
        .await
        .unwrap();
    let told = stream.message().await.unwrap().unwrap();
    assert!(told.starts_with('7') || told.starts_with('6'), "{told}");
    let soon = Some(Duration::from_millis(200));
    let mut stream = caller
        .call("/echo/Late", tokio_stream::iter([]), soon)
        .await
        .unwrap();
    assert_eq!(stream.message().await.unwrap(), Some("begun".to_owned()));
    let late = stream.message().await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    // A call that is given up.
    let texts = tokio_stream::iter(["a".to_owned()]);
    let mut stream = caller.call("/echo/Never", texts, None).await.unwrap();
    assert_eq!(stream.message().await.unwrap(), Some("begun".to_owned()));
    drop(stream);
    let heard = async {
        while given_up.load(Ordering::Relaxed) < 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, heard)
        .await
        .expect("the server hears of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_ours_are_statuses_of_grpc() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = gone.local_addr().unwrap();
    drop(gone);
    let limit = "[[rate_limit]]\nby = \"address\"\nrequests = 2\nwindow = \"1h\"\n";
    let mut caller = Caller::before(nobody, limit).await;
    for _ in 0..2 {
        let failed = caller
            .call("/echo/Each", tokio_stream::iter([]), None)
            .await
            .unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
        assert!(
            failed.message().contains("does not accept connections"),
            "{failed:?}"
        );
    }
    let limited = caller
        .call("/echo/Each", tokio_stream::iter([]), None)
        .await
        .unwrap_err();
    assert_eq!(limited.code(), Code::ResourceExhausted, "{limited:?}");
    assert!(
        limited.metadata().get("grpc-retry-pushback-ms").is_some(),
        "{limited:?}"
    );
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let mut caller = Caller::before(address, "response_timeout = \"200ms\"\n").await;
    let late = caller
        .call("/echo/Each", tokio_stream::iter([]), None)
        .await
        .unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
}
