//! One worker: accepts, serves, and at the end drains.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::error::is_out_of_descriptors;
use crate::give_back;
use crate::metrics::latency;
use crate::proxy::Proxy;

use super::connection::Acceptor;
use super::hearts::Hearts;
use super::listen::{Accepting, Listener};
use super::phase::Watched;
use super::seat::Connections;
use super::transport::{self, Bare};

/// How long a worker pauses when the system has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a worker thread is given.
pub struct Worker {
    pub number: usize,
    pub proxy: Arc<Proxy>,
    pub connections: Arc<Connections>,
    pub phase: Watched,
    pub hearts: Arc<Hearts>,
}

/// The length of its body.
const TOO_MANY_BODY: usize = 102;

/// What a client gets that is one too many. Sent without reading its request.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: \
    102\r\n\
    proxy-status: iris-sidecar; error=connection_limit_reached\r\n\r\n\
    {\"error\":{\"message\":\"too many connections \
    (limits.connections)\",\"code\":\"OVERLOADED\",\"statusCode\":503}}";

impl Worker {
    /// Runs until the drain has ended. Blocks its thread.
    pub fn run(self, listeners: Vec<Listener>) {
        latency::use_shard(self.number);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(self.serve(listeners)),
            Err(error) => error!(%error, worker = self.number, "a worker could not start"),
        }
    }

    async fn serve(mut self, listeners: Vec<Listener>) {
        let listeners: io::Result<Vec<_>> = listeners.into_iter().map(Listener::start).collect();
        let listeners = match listeners {
            Ok(listeners) => listeners,
            Err(error) => return error!(%error, worker = self.number, "a worker could not listen"),
        };
        tokio::spawn(give_back::by_and_by());
        let (hearts, number) = (Arc::clone(&self.hearts), self.number);
        tokio::spawn(async move { hearts.beat(number).await });
        let acceptor = Arc::new(Acceptor::new(Arc::clone(&self.proxy), self.phase.clone()));
        let mut turn: usize = 0;
        loop {
            turn = turn.wrapping_add(1);
            let accepted = tokio::select! {
                biased;
                () = self.phase.closing() => break,
                accepted = accept(&listeners, turn) => accepted,
            };
            match accepted {
                Ok((stream, place)) => self.admit(stream, place, &acceptor),
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    // Out of descriptors, most likely: trying again at once would only spin.
                    if is_out_of_descriptors(&error) {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        self.connections.close();
        let passed = self.accept_backlog(listeners, &acceptor);
        self.drain(passed, &acceptor).await;
    }

    fn admit(&self, stream: Bare, place: usize, acceptor: &Arc<Acceptor>) {
        let metrics = self.proxy.metrics();
        metrics.connections_accepted.inc();
        let Some(seat) = Connections::seat(&self.connections, &self.proxy) else {
            self.turn_away(stream, place);
            return;
        };
        let acceptor = Arc::clone(acceptor);
        tokio::spawn(async move { acceptor.serve(stream, place, seat).await });
    }

    /// One connection is too many: it is told so, where that can be said without a handshake.
    fn turn_away(&self, stream: Bare, place: usize) {
        let plan = self.proxy.plan();
        let place = plan.config.listen.places.get(place);
        let is_plain = place.is_none_or(|place| place.tls.is_none());
        let said = if is_plain { TOO_MANY_BODY } else { 0 };
        if let Ok(client) = transport::peer(&stream) {
            self.proxy.refused_connection(client, said);
        }
        if is_plain {
            tokio::spawn(refuse(stream));
        }
    }

    /// The backlog: these clients saw their connection established. The socket itself is asked:
    /// tokio only knows of those that its reactor has seen. Sockets that outlive us are given back.
    fn accept_backlog(
        &self,
        listeners: Vec<Accepting>,
        acceptor: &Arc<Acceptor>,
    ) -> Vec<(usize, Accepting)> {
        let mut passed = Vec::new();
        for (place, listener) in listeners.into_iter().enumerate() {
            if listener.is_passed() {
                passed.push((place, listener));
                continue;
            }
            let Ok(listener) = listener.stop() else {
                continue;
            };
            while let Some(stream) = listener.take() {
                match stream {
                    Ok(stream) => self.admit(stream, place, acceptor),
                    Err(error) => warn!(%error, "a connection of the backlog could not be served"),
                }
            }
        }
        passed
    }

    /// Waits until what is under way has ended. At sockets that outlive us nobody else accepts
    /// until then: who comes is answered for as long as those who came before are.
    async fn drain(&self, passed: Vec<(usize, Accepting)>, acceptor: &Arc<Acceptor>) {
        let deadline = self.proxy.plan().config.listen.drain_timeout;
        let (places, passed): (Vec<usize>, Vec<Accepting>) = passed.into_iter().unzip();
        let mut turn: usize = 0;
        let gone = async {
            loop {
                turn = turn.wrapping_add(1);
                tokio::select! {
                    biased;
                    () = self.connections.early_gone() => break,
                    accepted = accept(&passed, turn) => match accepted {
                        Ok((stream, at)) => self.admit(stream, places[at], acceptor),
                        Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                    },
                }
            }
            drop(passed);
            self.connections.all_gone().await;
        };
        if timeout(deadline, gone).await.is_err() && self.number == 0 {
            let left = self.connections.open();
            info!(left, "connections were cut at the drain deadline");
        }
    }
}

/// The next connection, and by which of the listeners it came: each is the first to be looked at in
/// its turn.
async fn accept(listeners: &[Accepting], turn: usize) -> io::Result<(Bare, usize)> {
    poll_fn(|context| {
        for at in 0..listeners.len() {
            let place = turn.wrapping_add(at) % listeners.len();
            if let Poll::Ready(accepted) = listeners[place].poll_accept(context) {
                return Poll::Ready(accepted.map(|stream| (stream, place)));
            }
        }
        Poll::Pending
    })
    .await
}

async fn refuse(mut stream: Bare) {
    let _ = timeout(Duration::from_secs(1), async {
        stream.write_all(TOO_MANY).await?;
        stream.shutdown().await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(TOO_MANY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            body.len() == TOO_MANY_BODY
                && head.contains(&format!("content-length: {TOO_MANY_BODY}")),
            "{}",
            body.len()
        );
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
