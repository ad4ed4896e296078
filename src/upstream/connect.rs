//! New connections to the upstream: to one of its addresses, with TLS where the URL says so, ready
//! to be asked in the protocol that it speaks.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::uri::Scheme;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::RwLock;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;

use crate::config::{self, Protocol};
use crate::error::{Failure, FailureKind, is_out_of_descriptors};
use crate::tls::ClientTls;

use super::OriginBody;
use super::address::{Address, Open};
use super::addresses::{Addresses, Place};
use super::sender::{Sender, Task};
use super::socket::Socket;
use super::stream::{ReadOn, WriteFailed};

/// A byte stream to the upstream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connections that failed let a name be looked up again, but not more often than this.
const LOOKED_UP_AGAIN: Duration = Duration::from_secs(1);

/// Opens connections to one upstream.
pub struct Connector {
    config: RwLock<Arc<config::Upstream>>,
    pub addresses: Arc<Addresses>,
    name: Option<ServerName<'static>>,
    tls: RwLock<Option<TlsConnector>>,
}

/// A connection that can be asked.
pub struct Connected {
    pub sender: Sender,
    pub task: Task,
    pub open: Open,
    pub socket: Socket,
}

impl Connector {
    /// Reads the roots of an `https` upstream; the error says what to configure instead.
    pub fn new(config: &config::Upstream) -> Result<Self, String> {
        let place = match &config.socket {
            Some(path) => Place::Unix(path.clone()),
            None => Place::Name {
                host: config.host.clone(),
                port: config.port,
            },
        };
        let name = config.server_name.as_ref().unwrap_or(&config.host);
        let name = (config.scheme == Scheme::HTTPS)
            .then(|| {
                ServerName::try_from(name.clone())
                    .map_err(|_| format!("{name:?} is no name that a certificate can hold"))
            })
            .transpose()?;
        let this = Self {
            addresses: Arc::new(Addresses::new(place, config.breaker_failures)),
            name,
            tls: RwLock::default(),
            config: RwLock::new(Arc::new(config.clone())),
        };
        this.renew(config)?;
        Ok(this)
    }

    /// As it is configured now.
    pub fn config(&self) -> Arc<config::Upstream> {
        let config = self.config.read();
        Arc::clone(&config)
    }

    /// Takes this configuration for connections to come: times, roots, and who we are.
    pub fn renew(&self, config: &config::Upstream) -> Result<(), String> {
        let tls = self.tls_of(config)?;
        *self.tls.write() = tls;
        *self.config.write() = Arc::new(config.clone());
        Ok(())
    }

    /// How TLS is spoken by a configuration; an error says why it cannot be.
    pub fn tls_of(&self, config: &config::Upstream) -> Result<Option<TlsConnector>, String> {
        if self.name.is_none() {
            return Ok(None);
        }
        let tls = match &config.tls {
            Some(tls) => tls.clone(),
            None => ClientTls::new(None, None, "upstream.ca_file")?,
        };
        let protocol: &[u8] = match config.protocol {
            Protocol::Http1 => b"http/1.1",
            Protocol::Http2 => b"h2",
        };
        Ok(Some(TlsConnector::from(Arc::new(tls.speaking(protocol)))))
    }

    /// One connection, within `connect_timeout` for all of its steps.
    pub async fn connect(&self) -> Result<Connected, Failure> {
        // Whose turn it is when time is over.
        let reached = OnceLock::new();
        let connected = self.in_time(self.steps(&reached)).await;
        if let (Err(_), Some(address)) = (&connected, reached.get()) {
            self.addresses.lost(address);
        }
        connected
    }

    /// One to this very address.
    pub async fn connect_to(&self, address: &Arc<Address>) -> Result<Connected, Failure> {
        self.in_time(async {
            let connected = self.addresses.connect_to(address).await;
            self.speak(connected.map_err(|error| refused(&error))?)
                .await
        })
        .await
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let limit = self.config().connect_timeout;
        timeout(limit, work).await.unwrap_or_else(|_| {
            let message = format!("no connection to the upstream within {limit:?}");
            Err(Failure::new(FailureKind::ConnectTimeout, message))
        })
    }

    async fn steps(&self, reached: &OnceLock<Arc<Address>>) -> Result<Connected, Failure> {
        let config = self.config();
        let host = &config.host;
        let unknown = |error: io::Error| {
            let message = format!("the upstream's name {host:?} does not resolve: {error}");
            failure(FailureKind::DnsFailed, &error, message)
        };
        if self.addresses.is_unknown() {
            let looked_up = self.addresses.look_up(config.resolve_every).await;
            looked_up.map_err(unknown)?;
        } else {
            self.look_up_behind(config.resolve_every.saturating_mul(2));
        }
        let connected = match self.addresses.connect().await {
            Ok(connected) => connected,
            Err(error) => {
                let known = self.addresses.all();
                let looked_up = self.addresses.look_up(LOOKED_UP_AGAIN).await;
                looked_up.map_err(unknown)?;
                let is_new = |one: &Arc<Address>| known.iter().all(|old| !Arc::ptr_eq(old, one));
                if !self.addresses.all().iter().any(is_new) {
                    return Err(refused(&error));
                }
                let again = self.addresses.connect().await;
                again.map_err(|error| refused(&error))?
            }
        };
        // From here on it has to show that it is well.
        let _ = reached.set(Arc::clone(connected.1.address()));
        self.speak(connected).await
    }

    /// Looks the name up, where nobody else does; nothing waits for it.
    fn look_up_behind(&self, older_than: Duration) {
        if self.addresses.is_older_than(older_than) {
            let addresses = Arc::clone(&self.addresses);
            tokio::spawn(async move { addresses.look_up(older_than).await });
        }
    }

    /// Speaks TLS, where that is wanted, and the protocol.
    async fn speak(&self, (socket, open): (Socket, Open)) -> Result<Connected, Failure> {
        let config = self.config();
        let stream = self.secure(socket.clone()).await?;
        let write_failed = WriteFailed::default();
        let stream = TokioIo::new(ReadOn::new(stream, write_failed.clone()));
        let hung_up = |error: hyper::Error| {
            let message = format!("the upstream hung up: {error}");
            Failure::new(FailureKind::ConnectionClosed, message)
        };
        let most_streams = Arc::new(AtomicUsize::new(usize::MAX));
        let (sender, handle) = match config.protocol {
            Protocol::Http1 => {
                let handshake = http1::Builder::new()
                    .max_buf_size(config.header_bytes)
                    .max_headers(512)
                    .handshake::<_, OriginBody>(stream);
                let (sender, connection) = handshake.await.map_err(hung_up)?;
                let task = tokio::spawn(async move {
                    if let Err(error) = connection.with_upgrades().await {
                        debug!(%error, "a connection to the upstream ended");
                    }
                });
                (Sender::Http1(sender), task.abort_handle())
            }
            Protocol::Http2 => {
                let header_bytes = u32::try_from(config.header_bytes).unwrap_or(u32::MAX);
                let handshake = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .max_header_list_size(header_bytes)
                    // One that is silent for long is asked whether it is there (RFC 9113 §6.7).
                    .keep_alive_interval(Duration::from_secs(30))
                    .keep_alive_timeout(Duration::from_secs(20))
                    .handshake::<_, OriginBody>(stream);
                let (sender, mut connection) = handshake.await.map_err(hung_up)?;
                let most = Arc::clone(&most_streams);
                let task = tokio::spawn(async move {
                    let connection = poll_fn(|context| {
                        let polled = Pin::new(&mut connection).poll(context);
                        most.store(connection.current_max_send_streams(), Ordering::Relaxed);
                        polled
                    });
                    if let Err(error) = connection.await {
                        debug!(%error, "a connection to the upstream ended");
                    }
                });
                (Sender::Http2(sender), task.abort_handle())
            }
        };
        Ok(Connected {
            sender,
            task: Task {
                handle,
                write_failed,
                most_streams,
            },
            open,
            socket,
        })
    }

    async fn secure(&self, socket: Socket) -> Result<Box<dyn Stream>, Failure> {
        let tls = self.tls.read().clone();
        let (Some(connector), Some(name)) = (tls, &self.name) else {
            return Ok(Box::new(socket));
        };
        let failed = |why: String| Failure::new(FailureKind::TlsFailed, why);
        let secured = connector.connect(name.clone(), socket).await;
        let secured =
            secured.map_err(|error| failed(format!("TLS with the upstream failed: {error}")))?;
        let spoken = secured.get_ref().1.alpn_protocol();
        if self.config().protocol == Protocol::Http2 && spoken != Some(b"h2") {
            return Err(failed(
                "the upstream does not speak HTTP/2 (ALPN): set upstream.protocol = \"http/1.1\""
                    .to_owned(),
            ));
        }
        Ok(Box::new(secured))
    }
}

fn refused(error: &io::Error) -> Failure {
    let message = format!("the upstream does not accept connections: {error}");
    failure(FailureKind::ConnectFailed, error, message)
}

/// A failure of this kind; or ours, where this process has no descriptors left.
fn failure(kind: FailureKind, error: &io::Error, message: String) -> Failure {
    if is_out_of_descriptors(error) {
        let message = format!("no descriptor is left for a connection to the upstream: {error}");
        return Failure::new(FailureKind::OutOfDescriptors, message);
    }
    Failure::new(kind, message)
}
