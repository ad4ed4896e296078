//! A stream to the upstream of which a failed write does not hide what is still to be read.
//!
//! An upstream may answer before it has read the whole of a request, and close (RFC 9112 §9.5): the
//! next write fails, but the answer is there. hyper's client gives up at the first failed write;
//! here a write that fails waits instead, and reading goes on, to the answer or to the end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Whether a write to a stream has failed.
#[derive(Clone, Debug, Default)]
pub struct WriteFailed(Arc<AtomicBool>);

impl WriteFailed {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream that is read on when a write has failed.
pub struct ReadOn<S> {
    stream: S,
    failed: WriteFailed,
    /// Nothing more comes.
    has_ended: bool,
}

impl<S> ReadOn<S> {
    pub fn new(stream: S, failed: WriteFailed) -> Self {
        Self {
            stream,
            failed,
            has_ended: false,
        }
    }

    /// What becomes of a write once one has failed: it waits while there may be something to read.
    fn failed<T>(&self) -> Option<Poll<io::Result<T>>> {
        let failed = if self.has_ended {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        } else {
            Poll::Pending
        };
        self.failed.is_set().then_some(failed)
    }

    fn note<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(written, Poll::Ready(Err(_))) {
            self.failed.0.store(true, Ordering::Relaxed);
        }
        self.failed().unwrap_or(written)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadOn<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.has_ended = match &read {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadOn<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(failed) = self.failed() {
            return failed;
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(failed) = self.failed() {
            return failed;
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(failed) = self.failed() {
            return failed;
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.note(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
