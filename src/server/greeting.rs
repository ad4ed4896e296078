//! What comes before the first request of a connection: whom a proxy speaks for, and TLS. Bounded
//! in time by the deadline of a first head, and in number.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tracing::debug;

use crate::metrics::tls::Handshake;
use crate::proxy::{Peer, PeerTls, Proxy};
use crate::tls::server::{ServerTls, client_certificate};

use super::phase::Watched;
use super::proxy_header;
use super::seat::Seat;
use super::transport::{self, Bare, Transport};

/// How long a drain waits for what has begun.
const CLOSING_GRACE: Duration = Duration::from_millis(500);

/// What is known of a connection that was accepted just now.
pub struct Greeting<'a> {
    pub proxy: &'a Arc<Proxy>,
    /// Which of the listeners it came in by.
    pub place: usize,
    pub accepted: Instant,
    pub phase: Watched,
}

impl Greeting<'_> {
    /// The stream of requests, and whose it is; `None` where there will be none.
    pub async fn of(mut self, stream: Bare, seat: &Seat) -> Option<(Transport, Arc<Peer>)> {
        let plan = self.proxy.plan();
        let place = plan.config.listen.places.get(self.place)?;
        let address = transport::peer(&stream).ok()?;
        transport::set_nodelay(&stream);
        let speaks_for_others = place.proxy_protocol && plan.client(&address.into()).is_trusted;
        let (mut peer, tls) = (Peer::from(address), place.tls.clone());
        if !speaks_for_others && tls.is_none() {
            return Some((Either::Left(stream), Arc::new(peer)));
        }
        let until = self.accepted + plan.config.limits.head_timeout;
        // A plan is not to live as long as a handshake.
        drop(plan);
        let mut stream = stream;
        if speaks_for_others {
            let read = proxy_header::read(&mut stream);
            match self.within(until, read).await? {
                Ok(Some(client)) => peer.address = client,
                Ok(None) => peer.is_hidden = true,
                Err(error) => {
                    debug!(%address, %error, "a proxy did not say whom it speaks for");
                    self.proxy.metrics().greetings.proxy_headers_refused.inc();
                    return None;
                }
            }
        }
        let Some(tls) = tls else {
            return Some((Either::Left(stream), Arc::new(peer)));
        };
        let (stream, shown) = self.handshake(stream, &tls, until, seat).await?;
        peer.tls = Some(Arc::new(shown));
        Some((Either::Right(Box::new(stream)), Arc::new(peer)))
    }

    async fn handshake(
        &mut self,
        stream: Bare,
        tls: &ServerTls,
        until: Instant,
        seat: &Seat,
    ) -> Option<(tokio_rustls::server::TlsStream<Bare>, PeerTls)> {
        let metrics = &self.proxy.metrics().greetings;
        let Some(_under_way) = seat.handshake() else {
            metrics.ended(Handshake::TooMany);
            return None;
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
        let Some(ended) = self.within(until, acceptor.accept(stream)).await else {
            metrics.ended(Handshake::Late);
            return None;
        };
        let stream = match ended {
            Ok(stream) => stream,
            Err(error) => {
                debug!(%error, "a TLS handshake failed");
                metrics.ended(Handshake::Failed);
                return None;
            }
        };
        metrics.ended(Handshake::Done);
        let session = stream.get_ref().1;
        let shown = PeerTls {
            server_name: session.server_name().map(Into::into),
            ours: Arc::clone(&tls.names),
            certificate: session.peer_certificates().and_then(client_certificate),
        };
        Some((stream, shown))
    }

    /// What comes of it in time: by then, or soon after the process began to end.
    async fn within<T>(&mut self, until: Instant, work: impl Future<Output = T>) -> Option<T> {
        let ends = async {
            self.phase.closing().await;
            tokio::time::sleep(CLOSING_GRACE).await;
        };
        tokio::select! {
            biased;
            done = timeout_at(until, work) => done.ok(),
            () = ends => None,
        }
    }
}
