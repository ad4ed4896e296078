//! The body of a response on its way to the client: stored, made here, or still coming in.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::error::Failure;
use crate::flight::Reader;
use crate::upstream::OriginBody;

use super::trailers;

/// The body of a response on its way to the client.
#[derive(Debug, Default)]
pub enum Body {
    #[default]
    Empty,
    /// Stored, or made here.
    Whole(Bytes),
    /// Several pieces of what is stored, one after another.
    // Boxed: it is rare, and every hit moves its body by value.
    Pieces(Box<Pieces>),
    /// Read from a flight, perhaps while it still comes in.
    Flight(Reader),
    /// One range of it.
    Slice(Box<Slice>),
    /// Passed through.
    Origin(OriginBody),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Pieces(pieces) => Poll::Ready(pieces.next().map(|piece| Ok(Frame::data(piece)))),
            Self::Flight(reader) => reader.poll_frame(context),
            Self::Slice(slice) => slice.poll_frame(context),
            Self::Origin(body) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
                Poll::Ready(frame.map(|frame| frame.map(|frame| trailers::cleaned(frame, &[]))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Pieces(pieces) => pieces.size() == 0,
            Self::Flight(_) => false,
            Self::Slice(slice) => slice.left() == 0,
            Self::Origin(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Pieces(pieces) => SizeHint::with_exact(pieces.size()),
            Self::Flight(_) => SizeHint::default(),
            Self::Slice(slice) => SizeHint::with_exact(slice.left()),
            Self::Origin(body) => body.size_hint(),
        }
    }
}

/// Bytes in the order in which they are sent.
#[derive(Debug, Default)]
pub struct Pieces {
    list: VecDeque<Bytes>,
    size: u64,
    /// Where they come from a flight: it has them charged.
    flight: Option<Reader>,
}

impl Pieces {
    pub fn push(&mut self, piece: impl Into<Bytes>) {
        let piece = piece.into();
        self.size += piece.len() as u64;
        self.list.push_back(piece);
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Holds on to the flight that they come from.
    pub fn of(mut self, flight: Option<Reader>) -> Self {
        self.flight = flight;
        self
    }

    pub fn next(&mut self) -> Option<Bytes> {
        let piece = self.list.pop_front()?;
        self.size -= piece.len() as u64;
        Some(piece)
    }
}

impl Body {
    /// The bytes of a body that is there already, and the flight that has them charged.
    pub fn pieces(self) -> (Vec<Bytes>, Option<Reader>) {
        match self {
            Self::Whole(bytes) => (vec![bytes], None),
            Self::Pieces(pieces) => (pieces.list.into(), pieces.flight),
            Self::Empty | Self::Flight(_) | Self::Slice(_) | Self::Origin(_) => (Vec::new(), None),
        }
    }
}

impl FromIterator<Bytes> for Pieces {
    fn from_iter<T: IntoIterator<Item = Bytes>>(pieces: T) -> Self {
        let mut all = Self::default();
        pieces.into_iter().for_each(|piece| all.push(piece));
        all
    }
}

/// One range of a body that still comes in.
#[derive(Debug)]
pub struct Slice {
    reader: Reader,
    skip: u64,
    left: u64,
}

impl Slice {
    /// `left` bytes, after the first `skip`.
    pub fn new(reader: Reader, skip: u64, left: u64) -> Self {
        Self { reader, skip, left }
    }

    pub fn left(&self) -> u64 {
        self.left
    }

    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        while self.left > 0 {
            let frame = match ready!(self.reader.poll_frame(context)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            let Ok(mut piece) = frame.into_data() else {
                continue;
            };
            let size = piece.len() as u64;
            let skipped = self.skip.min(size);
            self.skip -= skipped;
            // Both are at most the length of the piece.
            piece = piece.split_off(skipped as usize);
            piece.truncate(self.left.min(size - skipped) as usize);
            if !piece.is_empty() {
                self.left -= piece.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(None)
    }
}
