//! InterimQueue responses: what the origin says before its final one, `103 Early Hints` above all,
//! on its way to the client (RFC 9110 §15.2). They are never stored and never part of the final
//! response.
//!
//! hyper's client hands them over, but its server has no call to send them. It flushes the stream
//! beneath it whenever nothing of its own is left to be written, though: then, or just before the
//! first byte of the final response, the stream writes what stands in a queue of its connection.
//! Where the response before is not out yet by then, they are dropped. That is HTTP/1.1; over
//! HTTP/2, where the frames are hyper's own, they are left out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, Request, StatusCode, Version};
use parking_lot::{Mutex, MutexGuard};

use crate::http::fields;

/// What one request may have waiting, in bytes; more is dropped.
const MOST: usize = 64 << 10;

/// The interim responses of one connection that are not written yet.
#[derive(Debug, Default)]
pub struct InterimQueue {
    /// Something waits: all that most connections ever look at.
    waits: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Wakes the connection's task.
    waker: Option<Waker>,
    /// Counts requests, and their ends: what comes for one that is answered is dropped.
    turn: u64,
    /// The final response of this turn is not there yet.
    is_open: bool,
}

impl InterimQueue {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Who is to be woken when there is something to write.
    pub fn wake(&self, waker: &Waker) {
        self.queue().waker = Some(waker.clone());
    }

    /// What is to be written now. `is_before` says that nothing of the final response can have been
    /// written yet; without that word what is left when it is there is dropped.
    pub fn take(&self, is_before: bool) -> Bytes {
        if !self.waits.load(Ordering::Acquire) {
            return Bytes::new();
        }
        let mut queue = self.queue();
        self.waits.store(false, Ordering::Relaxed);
        let bytes = std::mem::take(&mut queue.bytes);
        if is_before || queue.is_open {
            bytes.into()
        } else {
            Bytes::new()
        }
    }

    /// Drops what waits, where the final response is there: it can no longer come before it.
    pub fn drop_late(&self) {
        if self.waits.load(Ordering::Acquire) {
            let mut queue = self.queue();
            if !queue.is_open {
                self.waits.store(false, Ordering::Relaxed);
                queue.bytes.clear();
            }
        }
    }
}

/// Where the interim responses for one request go.
#[derive(Clone, Debug)]
pub struct InterimListener {
    connection: Arc<InterimQueue>,
    turn: u64,
}

impl InterimListener {
    /// For a request that waits from now on; `None` where its client cannot be told
    /// (RFC 9110 §15.2: never an HTTP/1.0 one).
    pub fn open(connection: Option<&Arc<InterimQueue>>, version: Version) -> Option<Self> {
        let connection = connection.filter(|_| version == Version::HTTP_11)?;
        let mut queue = connection.queue();
        queue.turn += 1;
        queue.is_open = true;
        Some(Self {
            turn: queue.turn,
            connection: Arc::clone(connection),
        })
    }

    /// The final response is there.
    pub fn close(&self) {
        let mut queue = self.connection.queue();
        if queue.turn == self.turn {
            queue.turn += 1;
            queue.is_open = false;
        }
    }

    /// Hears what comes for this request to the origin.
    pub fn listen<B>(&self, request: &mut Request<B>) {
        let listener = self.clone();
        hyper::ext::on_informational(request, move |response| {
            listener.hear(response.status(), response.headers());
        });
    }

    fn hear(&self, status: StatusCode, headers: &HeaderMap) {
        // The client's own wish to continue was answered by us.
        if status == StatusCode::CONTINUE || status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let mut headers = headers.clone();
        fields::strip_hop_by_hop(&mut headers);
        headers.remove(CONTENT_LENGTH);
        headers.remove(DATE);
        let mut out = format!("HTTP/1.1 {status}\r\n").into_bytes();
        for (name, value) in &headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(b"\r\n");
        let mut queue = self.connection.queue();
        if queue.turn == self.turn && queue.bytes.len() + out.len() <= MOST {
            queue.bytes.append(&mut out);
            self.connection.waits.store(true, Ordering::Release);
            if let Some(waker) = queue.waker.take() {
                waker.wake();
            }
        }
    }
}
