//! The byte stream of one connection: notes when the client does not read, says in our words what
//! hyper refuses in its own, and closes so that the last response arrives.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::Response;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::error::FailureKind;
use crate::proxy::Proxy;

use super::activity::Activity;
use super::seat::Seat;
use super::transport::{self, Transport};

/// How long a closed connection is still read: at most, and without a byte. A client that sends all
/// of its request before it reads is answered too.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_SILENCE: Duration = Duration::from_secs(1);

/// Bytes that one connection may write before others of its worker have a turn.
const TURN: usize = 512 << 10;

/// What hyper writes by itself, without a body, for a head that it cannot parse.
const CANNED: [(&[u8], FailureKind); 3] = [
    (
        b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n",
        FailureKind::InvalidHead,
    ),
    (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: \
            0\r\n",
        FailureKind::HeadTooLarge,
    ),
    (
        b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\n",
        FailureKind::TargetTooLong,
    ),
];

/// The socket, and whether what it has brought since the last response goes beyond one line.
struct Socket {
    stream: Transport,
    /// What was read of it already, and comes first.
    first: Bytes,
    has_line: bool,
    /// The client sends no more.
    has_ended: bool,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = if self.first.is_empty() {
            Pin::new(&mut self.stream).poll_read(context, buffer)
        } else {
            let first = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first.split_to(first));
            Poll::Ready(Ok(()))
        };
        if !self.has_line {
            self.has_line = buffer.filled()[before..].contains(&b'\n');
        }
        let is_empty = buffer.filled().len() == before && buffer.remaining() > 0;
        self.has_ended |= is_empty && matches!(read, Poll::Ready(Ok(())));
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_line = false;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.has_line = false;
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A client's stream.
pub struct Watched {
    /// Taken out when this is dropped.
    stream: Option<TokioIo<Socket>>,
    activity: Arc<Activity>,
    proxy: Arc<Proxy>,
    peer: IpAddr,
    seat: Option<Seat>,
    /// hyper refused the head: said by us when the stream is let go.
    refused: Option<FailureKind>,
    /// Interim responses that are being written.
    interim: Bytes,
    /// The last write did not take all that it was offered: something of a response is left.
    is_behind: bool,
    /// Bytes written in this turn.
    in_turn: usize,
}

impl Watched {
    /// `first` was read of the stream before.
    pub fn new(
        stream: Transport,
        first: Bytes,
        activity: Arc<Activity>,
        (proxy, peer): (Arc<Proxy>, IpAddr),
        seat: Seat,
    ) -> Self {
        Self {
            stream: Some(TokioIo::new(Socket {
                stream,
                first,
                has_line: false,
                has_ended: false,
            })),
            activity,
            proxy,
            peer,
            seat: Some(seat),
            refused: None,
            interim: Bytes::new(),
            is_behind: false,
            in_turn: 0,
        }
    }

    /// What was read and is not used comes once more.
    pub fn put_back(&mut self, bytes: Bytes) {
        if let Some(stream) = &mut self.stream {
            stream.inner_mut().first = bytes;
        }
    }

    /// The bare stream, of a connection on which nothing is under way.
    pub fn into_rest(mut self) -> Option<(Transport, Seat)> {
        let socket = self.stream.take()?.into_inner();
        Some((socket.stream, self.seat.take()?))
    }

    fn with_stream<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut TokioIo<Socket>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.stream {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Writes the interim responses that wait, where they come before the final one: hyper asks for
    /// a flush when it has nothing to write, and for a write (`is_before`) when it begins.
    fn poll_interim(&mut self, context: &mut Context<'_>, is_before: bool) -> Poll<io::Result<()>> {
        loop {
            if self.interim.is_empty() {
                self.interim = self.activity.interim.take(is_before);
            }
            if self.interim.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let bytes = self.interim.clone();
            let written = self.with_stream(|stream| stream.poll_write(context, &bytes));
            self.activity.wrote(written.is_ready(), 0);
            self.interim.advance(ready!(written)?);
        }
    }

    /// A write may be the rest of a response, perhaps with the head of the next: nothing goes
    /// between.
    fn poll_before_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_behind && self.interim.is_empty() {
            self.activity.interim.drop_late();
            return Poll::Ready(Ok(()));
        }
        self.poll_interim(context, true)
    }

    fn wrote(&mut self, written: &Poll<io::Result<usize>>, offered: usize) {
        let bytes = match written {
            Poll::Ready(Ok(bytes)) => *bytes,
            _ => 0,
        };
        self.activity.wrote(written.is_ready(), bytes);
        self.in_turn += bytes;
        self.is_behind = !matches!(written, Poll::Ready(Ok(_))) || bytes < offered;
    }

    /// Whether this connection has written enough for now: the worker's others come first then.
    fn yields(&mut self, context: &Context<'_>) -> bool {
        let yields = self.in_turn >= TURN;
        if yields {
            self.in_turn = 0;
            context.waker().wake_by_ref();
        }
        yields
    }

    /// Whether `bytes` are hyper's own refusal, which is kept back for ours.
    fn keeps_back(&mut self, bytes: &[u8]) -> bool {
        // Every response of ours has more fields before these.
        let found = CANNED.iter().find(|(text, _)| bytes.starts_with(text));
        // A head that is too large before its first line ends has too long a target (RFC 9110
        // §15.5.15).
        let in_line = self
            .stream
            .as_ref()
            .is_some_and(|stream| !stream.inner().has_line);
        if let Some((_, kind)) = found {
            self.refused = Some(match kind {
                FailureKind::HeadTooLarge if in_line => FailureKind::TargetTooLong,
                kind => *kind,
            });
        }
        found.is_some()
    }
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let has_ended = |this: &Self| {
            let stream = this.stream.as_ref();
            stream.is_some_and(|stream| stream.inner().has_ended)
        };
        let read = if has_ended(&self) {
            Poll::Ready(Ok(()))
        } else {
            self.with_stream(|stream| stream.poll_read(context, buffer))
        };
        // hyper would take the end of what is sent for the end of the wish to read.
        if has_ended(&self) && self.activity.is_answering(context) {
            return Poll::Pending;
        }
        read
    }
}

impl Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.keeps_back(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        if self.yields(context) {
            return Poll::Pending;
        }
        ready!(self.poll_before_write(context))?;
        let offered = bytes.len();
        let piece = &bytes[..offered.min(TURN)];
        let written = self.with_stream(|stream| stream.poll_write(context, piece));
        self.wrote(&written, offered);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_interim(context, false))?;
        self.with_stream(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.refused.is_some() {
            return Poll::Ready(Ok(()));
        }
        self.with_stream(|stream| stream.poll_shutdown(context))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if buffers.first().is_some_and(|first| self.keeps_back(first)) {
            return Poll::Ready(Ok(buffers.iter().map(|buffer| buffer.len()).sum()));
        }
        if self.yields(context) {
            return Poll::Pending;
        }
        ready!(self.poll_before_write(context))?;
        let offered = buffers.iter().map(|buffer| buffer.len()).sum();
        let written = if offered <= TURN {
            self.with_stream(|stream| stream.poll_write_vectored(context, buffers))
        } else {
            let piece = first_bytes(buffers, TURN);
            self.with_stream(|stream| stream.poll_write_vectored(context, &piece))
        };
        self.wrote(&written, offered);
        written
    }
}

impl Drop for Watched {
    /// Closing a socket whose input was not read to its end makes the kernel reset it, and the
    /// reset can overtake the last response (RFC 9112 §9.6): so close our half, and read on a
    /// little before closing the rest.
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else {
            return;
        };
        let (refused, seat) = (self.refused, self.seat.take());
        let Socket { stream, .. } = stream.into_inner();
        if refused.is_none() && self.activity.is_cut() {
            // What it has not read would stay in the kernel for as long as it likes.
            transport::set_reset(transport::bare(&stream));
            return;
        }
        if refused.is_none() && transport::has_left(transport::bare(&stream)) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (proxy, peer) = (Arc::clone(&self.proxy), self.peer);
        runtime.spawn(async move {
            let response = refused.map(|kind| serialise(&proxy.refuse_head(kind, peer)));
            let lingering = linger(stream, response.unwrap_or_default());
            let _ = timeout(LINGER, lingering).await;
            drop(seat);
        });
    }
}

/// The first `limit` bytes of some buffers.
fn first_bytes<'b>(buffers: &'b [io::IoSlice<'_>], limit: usize) -> SmallVec<[io::IoSlice<'b>; 8]> {
    let mut left = limit;
    let pieces = buffers.iter().map(|buffer| {
        let piece = &buffer[..buffer.len().min(left)];
        left -= piece.len();
        io::IoSlice::new(piece)
    });
    pieces.filter(|piece| !piece.is_empty()).collect()
}

async fn linger(mut stream: Transport, last: Vec<u8>) -> io::Result<()> {
    stream.write_all(&last).await?;
    stream.shutdown().await?;
    // What still comes is not even decrypted.
    let mut stream = transport::into_bare(stream);
    let mut buffer = vec![0; 16 << 10];
    while timeout(LINGER_SILENCE, stream.read(&mut buffer)).await?? > 0 {}
    Ok(())
}

fn serialise(response: &Response<Bytes>) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("content-length: {}\r\n\r\n", response.body().len()).as_bytes());
    out.extend_from_slice(response.body());
    out
}
