//! Parts of a representation for the client (RFC 9110 §14, §15.3.7): one range as a slice, several
//! as `multipart/byteranges`. Bytes are never copied.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_RANGE,
    LAST_MODIFIED,
};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use uuid::Uuid;

use crate::error::Failure;
use crate::flight::Reader;
use crate::policy::range::{self, Selected, Span};

use super::deliver::Body;

/// What a GET that asked for ranges gets.
pub enum Cut {
    /// Its `Range` is ignored: the representation as it is.
    Whole(Body),
    /// 206.
    Part(Body),
    /// 416: nothing of it is in a representation of this length.
    Unsatisfiable { length: u64 },
}

/// Bytes in the order in which they are sent.
#[derive(Debug, Default)]
pub struct Pieces {
    list: VecDeque<Bytes>,
    size: u64,
}

impl Pieces {
    fn push(&mut self, piece: impl Into<Bytes>) {
        let piece = piece.into();
        self.size += piece.len() as u64;
        self.list.push_back(piece);
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn next(&mut self) -> Option<Bytes> {
        let piece = self.list.pop_front()?;
        self.size -= piece.len() as u64;
        Some(piece)
    }
}

impl Body {
    /// The bytes of a body that is there already.
    fn pieces(self) -> Vec<Bytes> {
        match self {
            Self::Whole(bytes) => vec![bytes],
            Self::Pieces(pieces) => pieces.list.into(),
            Self::Empty | Self::Flight(_) | Self::Slice(_) | Self::Origin(_) => Vec::new(),
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

/// What a GET with a `Range` gets of `body`, which is the bytes `held` of a representation that is
/// `length` bytes long. `headers` are those of the 200, and become those of the 206.
pub fn cut(
    request: &HeaderMap,
    headers: &mut HeaderMap,
    body: Body,
    held: Span,
    length: u64,
) -> Cut {
    let parts = match range::select(request, headers, length) {
        Selected::Whole => return Cut::Whole(body),
        Selected::Unsatisfiable => return Cut::Unsatisfiable { length },
        Selected::Parts(parts) => parts,
    };
    let (body, size) = match (&parts[..], body) {
        ([part], Body::Flight(reader)) => {
            let (skip, left) = (part.first - held.first, part.size());
            (Body::Slice(Slice { reader, skip, left }), left)
        }
        // Several ranges of what still comes in: the caller waits for the whole of it instead.
        (_, body @ Body::Flight(_)) => return Cut::Whole(body),
        (parts, body) => {
            let whole = body.pieces();
            let pieces = match parts {
                [part] => slice(&whole, *part, held).collect(),
                parts => multipart(headers, &whole, parts, held, length),
            };
            let size = pieces.size();
            (Body::Pieces(pieces), size)
        }
    };
    if request.contains_key(IF_RANGE) {
        // The client has these already (§15.3.7).
        for name in [CONTENT_ENCODING, CONTENT_LANGUAGE, LAST_MODIFIED] {
            headers.remove(name);
        }
        if parts.len() == 1 {
            headers.remove(CONTENT_TYPE);
        }
    }
    if let [part] = parts[..] {
        headers.insert(CONTENT_RANGE, range::content_range(part, length));
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    Cut::Part(body)
}

/// The bytes of `part` in `pieces`, which are those of `held`.
fn slice(pieces: &[Bytes], part: Span, held: Span) -> impl Iterator<Item = Bytes> {
    // Inside of the pieces, whose lengths are a usize together.
    let mut skip = (part.first - held.first) as usize;
    let mut left = part.size() as usize;
    pieces.iter().filter_map(move |piece| {
        let first = skip.min(piece.len());
        let last = first + left.min(piece.len() - first);
        skip -= first;
        left -= last - first;
        (first < last).then(|| piece.slice(first..last))
    })
}

/// §14.6: each part with its own `Content-Range`; the type of the whole becomes theirs.
fn multipart(
    headers: &mut HeaderMap,
    whole: &[Bytes],
    parts: &[Span],
    held: Span,
    length: u64,
) -> Pieces {
    let boundary = format!("iris-{}", Uuid::new_v4().simple());
    let value = HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}"));
    let content_type = headers.remove(CONTENT_TYPE);
    if let Ok(value) = value {
        headers.insert(CONTENT_TYPE, value);
    }
    let mut pieces = Pieces::default();
    for (at, part) in parts.iter().enumerate() {
        let break_line = if at == 0 { "" } else { "\r\n" };
        let mut head = format!("{break_line}--{boundary}\r\n").into_bytes();
        if let Some(content_type) = &content_type {
            head.extend_from_slice(b"Content-Type: ");
            head.extend_from_slice(content_type.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"Content-Range: ");
        head.extend_from_slice(range::content_range(*part, length).as_bytes());
        head.extend_from_slice(b"\r\n\r\n");
        pieces.push(head);
        slice(whole, *part, held).for_each(|piece| pieces.push(piece));
    }
    pieces.push(format!("\r\n--{boundary}--\r\n").into_bytes());
    pieces
}
