//! Parts of a representation for the client (RFC 9110 §14, §15.3.7): one range as a slice, several
//! as `multipart/byteranges`. Bytes are never copied.

use bytes::Bytes;
use http::header::{
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_RANGE,
    LAST_MODIFIED,
};
use http::{HeaderMap, HeaderValue};
use uuid::Uuid;

use crate::http::fields::DIGESTS_OF_CONTENT;
use crate::policy::range::{self, Selected, Span};

use crate::proxy::wire::body::{Body, Pieces, Slice};

/// What a GET that asked for ranges gets.
pub enum Cut {
    /// Its `Range` is ignored: the representation as it is.
    Whole(Body),
    /// 206.
    Part(Body),
    /// 416: nothing of it is in a representation of this length.
    Unsatisfiable { length: u64 },
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
        // What is held does not cover it: what there is speaks for itself.
        Selected::Parts(parts) if !parts.iter().all(|part| held.contains(*part)) => {
            return Cut::Whole(body);
        }
        Selected::Parts(parts) => parts,
    };
    let (body, size) = match (&parts[..], body) {
        ([part], Body::Flight(reader)) => {
            let (skip, left) = (part.first - held.first, part.size());
            (Body::Slice(Box::new(Slice::new(reader, skip, left))), left)
        }
        // Several ranges of what still comes in: the caller waits for the whole of it instead.
        (_, body @ Body::Flight(_)) => return Cut::Whole(body),
        (parts, body) => {
            let (whole, flight) = body.pieces();
            let pieces = match parts {
                [part] => slice(&whole, *part, held).collect::<Pieces>(),
                parts => multipart(headers, &whole, parts, held, length),
            };
            let size = pieces.size();
            (Body::Pieces(Box::new(pieces.of(flight))), size)
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
    forget_digests(headers);
    if let [part] = parts[..] {
        headers.insert(CONTENT_RANGE, range::content_range(part, length));
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    Cut::Part(body)
}

/// What is said of the bytes of one message says nothing of other bytes (RFC 9530 §2, RFC 1864);
/// `Repr-Digest` is of the whole, and stays.
pub fn forget_digests(headers: &mut HeaderMap) {
    for name in &DIGESTS_OF_CONTENT {
        headers.remove(name);
    }
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
