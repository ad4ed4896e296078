//! What a client's bytes come over: TCP or a socket of this machine, with TLS or without.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// A socket.
pub type Bare = Either<TcpStream, UnixStream>;

/// The bytes of a client. TLS is boxed: most connections have none, and each byte here counts once
/// for every one at rest.
pub type Transport = Either<Bare, Box<TlsStream<Bare>>>;

/// The socket below.
pub fn bare(transport: &Transport) -> &Bare {
    match transport {
        Either::Left(bare) => bare,
        Either::Right(secured) => secured.get_ref().0,
    }
}

/// The socket below, of a connection of which all is said.
pub fn into_bare(transport: Transport) -> Bare {
    match transport {
        Either::Left(bare) => bare,
        Either::Right(secured) => secured.into_inner().0,
    }
}

/// The address at the other end; who comes by a socket of this machine is on it.
pub fn peer(bare: &Bare) -> io::Result<IpAddr> {
    match bare {
        Either::Left(stream) => Ok(stream.peer_addr()?.ip()),
        Either::Right(_) => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    }
}

/// Responses leave in one write; waiting for an acknowledgement would only delay them.
pub fn set_nodelay(bare: &Bare) {
    if let Either::Left(stream) = bare {
        let _ = stream.set_nodelay(true);
    }
}

/// Whether the client has closed its side, and nothing is left to read of it.
pub fn has_left(bare: &Bare) -> bool {
    let read = match bare {
        Either::Left(stream) => stream.try_read(&mut [0]),
        Either::Right(stream) => stream.try_read(&mut [0]),
    };
    matches!(read, Ok(0))
}

/// Closing it will be a reset: what the client has not read is not kept.
pub fn set_reset(bare: &Bare) {
    let socket = match bare {
        Either::Left(stream) => SockRef::from(stream),
        Either::Right(stream) => SockRef::from(stream),
    };
    let _ = socket.set_linger(Some(Duration::ZERO));
}
