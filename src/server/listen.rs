//! The sockets that clients come in by: one of each place for each worker.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use crate::config::Address;

use super::transport::Bare;

/// Connections that may wait in the kernel while a worker is busy.
const BACKLOG: i32 = 4096;

/// Bytes that the kernel takes for a connection beyond what is on its way.
const UNSENT: u32 = 128 << 10;

/// A socket of one worker, bound and not waited at yet.
#[derive(Debug)]
pub enum Listener {
    Tcp(std::net::TcpListener),
    Unix(StdUnixListener),
}

/// A socket that is waited at.
#[derive(Debug)]
pub enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Where it listens, of what was wanted: with the port that was free.
    pub fn address(&self, wanted: &Address) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(_) => Ok(wanted.clone()),
        }
    }

    /// To be waited at on this thread.
    pub fn start(self) -> io::Result<Accepting> {
        match self {
            Self::Tcp(listener) => TcpListener::from_std(listener).map(Accepting::Tcp),
            Self::Unix(listener) => UnixListener::from_std(listener).map(Accepting::Unix),
        }
    }

    /// A connection that waits already, where there is one.
    pub fn take(&self) -> Option<io::Result<Bare>> {
        match self {
            Self::Tcp(listener) => listener.accept().ok().map(|(stream, _)| {
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream).map(Either::Left)
            }),
            Self::Unix(listener) => listener.accept().ok().map(|(stream, _)| {
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream).map(Either::Right)
            }),
        }
    }
}

impl Accepting {
    pub fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Bare>> {
        match self {
            Self::Tcp(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| Either::Left(stream)),
            Self::Unix(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| Either::Right(stream)),
        }
    }

    /// Back to the bare socket.
    pub fn stop(self) -> io::Result<Listener> {
        match self {
            Self::Tcp(listener) => listener.into_std().map(Listener::Tcp),
            Self::Unix(listener) => listener.into_std().map(Listener::Unix),
        }
    }
}

/// So many listeners at one address.
pub fn bind(address: &Address, count: usize, send_buffer: usize) -> io::Result<Vec<Listener>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    match address {
        Address::Tcp(wanted) => {
            let listeners = bind_tcp(*wanted, count, send_buffer).map_err(named)?;
            Ok(listeners.into_iter().map(Listener::Tcp).collect())
        }
        Address::Unix(path) => {
            let first = bind_unix(path).map_err(named)?;
            // All workers wait at the one socket that its path names.
            let more = (1..count).map(|_| first.try_clone());
            let mut listeners: Vec<StdUnixListener> = more.collect::<io::Result<_>>()?;
            listeners.push(first);
            Ok(listeners.into_iter().map(Listener::Unix).collect())
        }
    }
}

/// The socket of a process that has ended is still there: it is taken away, unless somebody listens at it.
fn bind_unix(path: &Path) -> io::Result<StdUnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket {
        if StdUnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Takes the sockets of this machine away, of a process that listens no more.
pub fn remove<'a>(addresses: impl IntoIterator<Item = &'a Address>) {
    let path = |address: &Address| -> Option<PathBuf> {
        match address {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp(_) => None,
        }
    };
    for path in addresses.into_iter().filter_map(path) {
        // Whoever came after us has made it anew, or it is gone.
        if StdUnixStream::connect(&path).is_err() {
            let _ = fs::remove_file(path);
        }
    }
}

/// One listener a worker, all on one address.
///
/// The first bind is without `SO_REUSEPORT`: a second process on the same address fails here,
/// instead of silently taking a share of the connections.
fn bind_tcp(
    address: SocketAddr,
    count: usize,
    send_buffer: usize,
) -> io::Result<Vec<std::net::TcpListener>> {
    let probe = socket(address, false, send_buffer)?;
    probe.bind(&address.into())?;
    let taken = probe.local_addr()?.as_socket();
    drop(probe);
    let address = taken.unwrap_or(address);
    (0..count)
        .map(|_| {
            let socket = socket(address, true, send_buffer)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

fn socket(address: SocketAddr, shared: bool, send_buffer: usize) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Connections of a former process that linger in TIME_WAIT do not keep this one from starting.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // Accepted connections have it too: what waits for a client that does not read waits here, once,
    // and not in the kernel for each of them.
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_send_buffer_size(send_buffer)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_on_the_same_address_fails_to_start() {
        let first = bind_tcp("127.0.0.1:0".parse().unwrap(), 2, 1 << 18).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = bind_tcp(address, 1, 1 << 18).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        bind_tcp(address, 1, 1 << 18).unwrap();
    }
}
