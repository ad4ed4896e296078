//! A socket to the upstream, which the pool can look at while nobody reads it.
//!
//! An origin that writes head and body apart, and waits with the second for the acknowledgement of
//! the first (Nagle), costs 40 ms on every connection that the kernel takes for an interactive one.
//! So the kernel is told after each read to acknowledge at once: it forgets that by itself
//! (`TCP_QUICKACK`, tcp(7)).

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// How long an idle connection is not asked whether its other end is there, and between two
/// questions.
const PROBED_AFTER: Duration = Duration::from_secs(30);
const PROBED_EVERY: Duration = Duration::from_secs(10);

/// What was sent is acknowledged in this time, or its other end is gone (RFC 5482).
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket to the upstream; clones are the same one.
#[derive(Clone, Debug)]
pub struct Socket(Arc<Stream>);

impl Socket {
    pub async fn tcp(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        // A request head is one small write that should leave at once.
        let _ = stream.set_nodelay(true);
        let socket = SockRef::from(&stream);
        let probes = TcpKeepalive::new()
            .with_time(PROBED_AFTER)
            .with_interval(PROBED_EVERY);
        let _ = socket.set_tcp_keepalive(&probes);
        let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let _ = socket.set_tcp_quickack(true);
        Ok(Self(Arc::new(Stream::Tcp(stream))))
    }

    /// `@name` is an abstract one (unix(7)).
    pub async fn unix(path: &str) -> io::Result<Self> {
        let path = match path.strip_prefix('@') {
            Some(name) => format!("\0{name}"),
            None => path.to_owned(),
        };
        let stream = UnixStream::connect(path).await?;
        Ok(Self(Arc::new(Stream::Unix(stream))))
    }

    fn socket(&self) -> SockRef<'_> {
        match &*self.0 {
            Stream::Tcp(stream) => SockRef::from(stream),
            Stream::Unix(stream) => SockRef::from(stream),
        }
    }

    /// Whether nothing has come on a connection on which nothing was asked: neither its end, nor
    /// anything that would be taken for the next answer.
    pub fn is_silent(&self) -> bool {
        let peeked = self.socket().peek(&mut [MaybeUninit::uninit()]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &*self.0 {
            Stream::Tcp(stream) => stream.poll_read_ready(context),
            Stream::Unix(stream) => stream.poll_read_ready(context),
        }
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &*self.0 {
            Stream::Tcp(stream) => stream.poll_write_ready(context),
            Stream::Unix(stream) => stream.poll_write_ready(context),
        }
    }

    fn try_write_vectored(&self, buffers: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match &*self.0 {
            Stream::Tcp(stream) => stream.try_write_vectored(buffers),
            Stream::Unix(stream) => stream.try_write_vectored(buffers),
        }
    }
}

fn is_not_yet<T>(result: &io::Result<T>) -> bool {
    let error = result.as_ref().err().map(io::Error::kind);
    error == Some(io::ErrorKind::WouldBlock)
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_read_ready(context))?;
            let read = match &*self.0 {
                Stream::Tcp(stream) => stream.try_read_buf(buffer),
                Stream::Unix(stream) => stream.try_read_buf(buffer),
            };
            if is_not_yet(&read) {
                continue;
            }
            if let Stream::Tcp(stream) = &*self.0 {
                let _ = SockRef::from(stream).set_tcp_quickack(true);
            }
            return Poll::Ready(read.map(drop));
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(context))?;
            let written = self.try_write_vectored(buffers);
            if !is_not_yet(&written) {
                return Poll::Ready(written);
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket().shutdown(std::net::Shutdown::Write))
    }
}
