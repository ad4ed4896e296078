//! One client connection: HTTP/1.1 or HTTP/2 by prior knowledge, its deadlines, and its rest.
//!
//! hyper's own header timeout also runs while a connection is idle, and its protocol detection has
//! none. So the clock is ours: one timer a connection, looked at when it fires, which tells apart
//! a client that never asked, one that is idle, and one that no longer reads.
//!
//! A connection that is idle for a moment is at rest: the stream is waited for, and what hyper
//! holds of it, most of that buffers, is let go until there is something to read.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use smallvec::SmallVec;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::debug;

use crate::config::Limits;
use crate::proxy::Proxy;

use super::activity::{Activity, Verdict};
use super::greeting::Greeting;
use super::phase::{self, Phase};
use super::seat::Seat;
use super::serving::Serving;
use super::stream::Watched;
use super::transport::{Bare, Transport};

/// How long a connection may take to close after it was asked to.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How long a drain waits for the first request of a connection.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// How soon it is looked again whether a client has asked for anything.
const ASKED_BY_NOW: Duration = Duration::from_millis(50);

/// Idle for so long, a connection is at rest.
const REST_AFTER: Duration = Duration::from_secs(1);

/// What a connection of HTTP/2 begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves connections by the limits of the plan that is in force when they come.
pub struct Acceptor {
    proxy: Arc<Proxy>,
    phase: phase::Watched,
}

/// A connection at rest, or one that has not begun.
struct Resting {
    stream: Transport,
    seat: Seat,
    /// What was read of it and not looked at yet.
    first: Bytes,
}

enum Protocol {
    Http1,
    Http2,
}

impl Acceptor {
    pub fn new(proxy: Arc<Proxy>, phase: phase::Watched) -> Self {
        Self { proxy, phase }
    }

    /// Serves one connection to its end. `seat` goes with the stream: a tunnel keeps it.
    pub async fn serve(&self, stream: Bare, place: usize, seat: Seat) {
        let activity = Arc::new(Activity::new(Arc::clone(&self.phase.leaves)));
        let greeting = Greeting {
            proxy: &self.proxy,
            place,
            accepted: activity.accepted,
            phase: self.phase.clone(),
        };
        let Some((stream, peer)) = Box::pin(greeting.of(stream, &seat)).await else {
            return;
        };
        // Its own: a plan is not to live as long as a connection.
        let limits = self.proxy.plan().config.limits.clone();
        let mut clock = Clock::new(limits, self.phase.clone(), Arc::clone(&activity));
        let serving = || Serving {
            proxy: Arc::clone(&self.proxy),
            peer: Arc::clone(&peer),
            activity: Arc::clone(&activity),
        };
        let mut resting = Resting {
            stream,
            seat,
            first: Bytes::new(),
        };
        loop {
            let woken = resting.wakes(&mut clock).await;
            let Resting {
                stream,
                seat,
                first,
            } = resting;
            let from = (Arc::clone(&self.proxy), peer.address);
            let watched = Watched::new(stream, first, Arc::clone(&activity), from, seat);
            let ended = match woken {
                // What is left of the stream ends in good order.
                None => return drop(watched),
                // In a place of their own: one at rest needs none.
                Some(Protocol::Http2) => {
                    let connection = http_2(&clock.limits).serve_connection(watched, serving());
                    Box::pin(to_end(connection, &mut clock)).await.err()
                }
                Some(Protocol::Http1) => {
                    let connection = http_1(&clock.limits).serve_connection(watched, serving());
                    match Box::pin(to_rest(connection, &mut clock)).await {
                        Ok(Some(again)) => {
                            resting = again;
                            continue;
                        }
                        ended => ended.err(),
                    }
                }
            };
            if let Some(error) = ended {
                debug!(peer = %peer.address, %error, "a connection ended early");
            }
            return;
        }
    }
}

fn http_1(limits: &Limits) -> http1::Builder {
    let mut http1 = http1::Builder::new();
    http1
        .max_buf_size(limits.header_bytes)
        .max_headers(limits.header_count)
        // Ours tells an idle connection from a slow one.
        .header_read_timeout(None)
        .timer(TokioTimer::new());
    http1
}

fn http_2(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(256)
        .max_send_buf_size(64 << 10)
        .timer(TokioTimer::new());
    http2
}

impl Resting {
    /// Waits until there is something to read, and tells the protocol by how it begins; `None` at
    /// the end of the connection.
    async fn wakes(&mut self, clock: &mut Clock) -> Option<Protocol> {
        // Of one that has rested: what its last request left over.
        let mut first: SmallVec<[u8; PREFACE.len()]> = SmallVec::from_slice(&self.first);
        loop {
            let mut piece = [0; PREFACE.len()];
            let (read, closes) = tokio::select! {
                biased;
                read = self.stream.read(&mut piece) => (read.ok()?, false),
                tick = clock.tick(false) => match tick {
                    Tick::Close => (0, true),
                    Tick::End => return None,
                    Tick::Leave | Tick::Rest => continue,
                }
            };
            let has_ended = read == 0 && !closes;
            let read = if closes {
                // What has come by now is answered.
                self.stream.read(&mut piece).now_or_never()?.ok()?
            } else {
                read
            };
            first.extend_from_slice(&piece[..read]);
            if first.is_empty() {
                return None;
            }
            self.first = Bytes::copy_from_slice(&first);
            // Only the first bytes of all tell anything, and not yet where they are too few.
            let is_part = PREFACE.starts_with(&first) && first.len() < PREFACE.len();
            if clock.activity.has_asked() || has_ended || closes || !is_part {
                return Some(Protocol::of(&first));
            }
        }
    }
}

impl Protocol {
    /// The protocol of a connection that begins so.
    fn of(first: &[u8]) -> Self {
        match first.starts_with(PREFACE) {
            true => Self::Http2,
            false => Self::Http1,
        }
    }
}

/// A connection's timer and the end of the process, for what they ask of it.
struct Clock {
    activity: Arc<Activity>,
    limits: Limits,
    timer: Pin<Box<Sleep>>,
    phase: phase::Watched,
    /// What the connection was told.
    told: Phase,
    /// Its client is to be told to go elsewhere, as soon as it has asked for anything.
    leaves: bool,
    is_closing: bool,
}

/// What time asks of a connection.
enum Tick {
    /// To tell its client to go elsewhere next.
    Leave,
    /// To end after what is under way.
    Close,
    /// To end now.
    End,
    /// To rest.
    Rest,
}

impl Clock {
    fn new(limits: Limits, phase: phase::Watched, activity: Arc<Activity>) -> Self {
        let first = limits
            .head_timeout
            .min(limits.idle_timeout)
            .min(limits.body_timeout);
        Self {
            timer: Box::pin(sleep_until(activity.accepted + first)),
            activity,
            limits,
            phase,
            told: Phase::Serving,
            leaves: false,
            is_closing: false,
        }
    }

    /// Waits until time asks for something; that it rests, only where it can (`rests`). Can be
    /// dropped and called again.
    async fn tick(&mut self, rests: bool) -> Tick {
        if rests {
            self.look_again_by(Instant::now() + REST_AFTER);
        }
        loop {
            tokio::select! {
                biased;
                () = self.timer.as_mut() => {}
                phase = self.phase.other_than(self.told), if self.told < Phase::Closing => {
                    self.told = phase;
                    self.leaves = phase == Phase::Leaving;
                    let has_asked = self.activity.has_asked();
                    if phase == Phase::Closing && has_asked {
                        self.is_closing = true;
                        return Tick::Close;
                    }
                    if phase == Phase::Closing {
                        // Accepted, and its first request perhaps still unread in the socket.
                        self.timer.as_mut().reset(Instant::now() + FIRST_REQUEST_GRACE);
                        continue;
                    }
                }
            }
            // A client that is told before it has asked anything would only come again.
            if self.leaves && self.activity.has_asked() {
                self.leaves = false;
                return Tick::Leave;
            }
            match self.activity.verdict(&self.limits) {
                _ if self.told == Phase::Closing && !self.is_closing => return self.closes(),
                Verdict::WaitUntil(until) => {
                    self.timer.as_mut().reset(until);
                    if self.leaves {
                        self.look_again_by(Instant::now() + ASKED_BY_NOW);
                    }
                    if rests && !self.is_closing {
                        if self.activity.rests_for() >= REST_AFTER {
                            return Tick::Rest;
                        }
                        self.look_again_by(Instant::now() + REST_AFTER);
                    }
                }
                Verdict::Idle if !self.is_closing => return self.closes(),
                Verdict::Idle => return Tick::End,
                Verdict::Cut(why) => {
                    debug!(why, "a connection was cut");
                    self.activity.cut();
                    return Tick::End;
                }
            }
        }
    }

    fn closes(&mut self) -> Tick {
        self.is_closing = true;
        self.timer.as_mut().reset(Instant::now() + CLOSE_GRACE);
        Tick::Close
    }

    fn look_again_by(&mut self, at: Instant) {
        if at < self.timer.deadline() {
            self.timer.as_mut().reset(at);
        }
    }
}

/// Serves HTTP/2 to its end.
async fn to_end(
    connection: http2::Connection<Watched, Serving, TokioExecutor>,
    clock: &mut Clock,
) -> hyper::Result<()> {
    let mut connection = std::pin::pin!(connection);
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            tick = clock.tick(false) => match tick {
                Tick::Close | Tick::Leave => connection.as_mut().graceful_shutdown(),
                Tick::End => return Ok(()),
                Tick::Rest => {}
            }
        }
    }
}

/// Serves HTTP/1.1 until it is idle: what is left then goes to rest. `None` at the end.
async fn to_rest(
    mut connection: http1::Connection<Watched, Serving>,
    clock: &mut Clock,
) -> hyper::Result<Option<Resting>> {
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => {
                ended?;
                break;
            }
            tick = clock.tick(true) => match tick {
                Tick::Close => Pin::new(&mut connection).graceful_shutdown(),
                Tick::End => return Ok(None),
                // The next answer says so.
                Tick::Leave => {}
                Tick::Rest => {
                    let http1::Parts { io, read_buf, .. } = connection.into_parts();
                    let rested = io.into_rest();
                    return Ok(rested.map(|(stream, seat)| Resting {
                        stream,
                        seat,
                        // Even an empty piece would hold the whole buffer.
                        first: Bytes::copy_from_slice(&read_buf),
                    }));
                }
            }
        }
    }
    // It has ended: with a switch of protocols, whoever asked for that waits for the stream.
    if let Some(offered) = clock.activity.take_offered() {
        let http1::Parts {
            mut io, read_buf, ..
        } = connection.into_parts();
        io.put_back(read_buf);
        offered.accept(Box::new(TokioIo::new(io)));
    }
    Ok(None)
}
