//! New connections to the upstream: TCP, and TLS where the URL says so.

use std::io;
use std::sync::Arc;

use http::uri::Scheme;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config;
use crate::error::{Failure, FailureKind, is_out_of_descriptors};

use super::stream::{ReadOn, WriteFailed};

/// A byte stream to the upstream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub type Connection = TokioIo<ReadOn<Box<dyn Stream>>>;

/// Opens connections to one upstream.
pub struct Connector {
    config: config::Upstream,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Connector {
    /// Reads the roots of an `https` upstream; the error says what to configure instead.
    pub fn new(config: &config::Upstream) -> Result<Self, String> {
        let tls = if config.scheme == Scheme::HTTPS {
            let name = ServerName::try_from(config.host.clone())
                .map_err(|_| format!("{:?} is no name that a certificate can hold", config.host))?;
            Some((TlsConnector::from(Arc::new(tls_config(config)?)), name))
        } else {
            None
        };
        Ok(Self {
            config: config.clone(),
            tls,
        })
    }

    /// One connection, within `connect_timeout` for all of its steps. `write_failed` is told when a
    /// write to it fails.
    pub async fn connect(&self, write_failed: &WriteFailed) -> Result<Connection, Failure> {
        let config = &self.config;
        match timeout(config.connect_timeout, self.steps()).await {
            Ok(stream) => Ok(TokioIo::new(ReadOn::new(stream?, write_failed.clone()))),
            Err(_) => Err(Failure::new(
                FailureKind::ConnectTimeout,
                format!(
                    "no connection to the upstream within {:?}",
                    config.connect_timeout
                ),
            )),
        }
    }

    async fn steps(&self) -> Result<Box<dyn Stream>, Failure> {
        let (host, port) = (self.config.host.as_str(), self.config.port);
        let addresses = tokio::net::lookup_host((host, port))
            .await
            .map_err(|error| {
                let message = format!("the upstream's name {host:?} does not resolve: {error}");
                failure(FailureKind::DnsFailed, &error, message)
            })?;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return self.secure(stream).await,
                Err(error) => last = error,
            }
        }
        let message = format!("the upstream does not accept connections: {last}");
        Err(failure(FailureKind::ConnectFailed, &last, message))
    }

    async fn secure(&self, stream: TcpStream) -> Result<Box<dyn Stream>, Failure> {
        // A request head is one small write that should leave at once.
        let _ = stream.set_nodelay(true);
        let Some((connector, name)) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let secured = connector.connect(name.clone(), stream).await;
        let secured = secured.map_err(|error| {
            Failure::new(
                FailureKind::TlsFailed,
                format!("TLS with the upstream failed: {error}"),
            )
        })?;
        Ok(Box::new(secured))
    }
}

/// A failure of this kind; or ours, where this process has no descriptors left.
fn failure(kind: FailureKind, error: &io::Error, message: String) -> Failure {
    if is_out_of_descriptors(error) {
        let message = format!("no descriptor is left for a connection to the upstream: {error}");
        return Failure::new(FailureKind::OutOfDescriptors, message);
    }
    Failure::new(kind, message)
}

fn tls_config(config: &config::Upstream) -> Result<ClientConfig, String> {
    let mut tls = crate::tls::client(config.ca_file.as_deref(), "upstream.ca_file")?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}
