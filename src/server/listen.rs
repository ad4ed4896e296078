//! The sockets that clients come in by: one of each place for each worker.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use socket2::{Domain, Protocol, Type};
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
pub struct Listener {
    socket: Socket,
    /// It was open before this process, and is after it: what waits there is not lost when we go.
    is_passed: bool,
}

/// A socket that clients come in by.
#[derive(Debug)]
pub enum Socket {
    Tcp(std::net::TcpListener),
    Unix(StdUnixListener),
}

/// A socket that is waited at.
#[derive(Debug)]
pub struct Accepting {
    socket: Waiting,
    is_passed: bool,
}

#[derive(Debug)]
enum Waiting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    /// Another handle of the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(listener) => listener.try_clone().map(Self::Unix),
        }
    }
}

impl Listener {
    fn own(socket: Socket) -> Self {
        Self {
            socket,
            is_passed: false,
        }
    }

    /// One that another process has opened, and keeps.
    pub fn passed(socket: Socket) -> Self {
        Self {
            socket,
            is_passed: true,
        }
    }

    /// Whether its path is ours to take away.
    pub fn is_own(&self) -> bool {
        !self.is_passed
    }

    /// Where it listens, of what was wanted: with the port that was free.
    pub fn address(&self, wanted: &Address) -> io::Result<Address> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Socket::Unix(_) => Ok(wanted.clone()),
        }
    }

    /// To be waited at on this thread.
    pub fn start(self) -> io::Result<Accepting> {
        let socket = match self.socket {
            Socket::Tcp(listener) => Waiting::Tcp(TcpListener::from_std(listener)?),
            Socket::Unix(listener) => Waiting::Unix(UnixListener::from_std(listener)?),
        };
        Ok(Accepting {
            socket,
            is_passed: self.is_passed,
        })
    }

    /// A connection that waits already, where there is one.
    pub fn take(&self) -> Option<io::Result<Bare>> {
        match &self.socket {
            Socket::Tcp(listener) => listener.accept().ok().map(|(stream, _)| {
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream).map(Either::Left)
            }),
            Socket::Unix(listener) => listener.accept().ok().map(|(stream, _)| {
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream).map(Either::Right)
            }),
        }
    }
}

impl Accepting {
    /// Another process has opened it, and keeps it.
    pub fn is_passed(&self) -> bool {
        self.is_passed
    }

    pub fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Bare>> {
        match &self.socket {
            Waiting::Tcp(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| Either::Left(stream)),
            Waiting::Unix(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| Either::Right(stream)),
        }
    }

    /// Back to the bare socket.
    pub fn stop(self) -> io::Result<Listener> {
        let socket = match self.socket {
            Waiting::Tcp(listener) => Socket::Tcp(listener.into_std()?),
            Waiting::Unix(listener) => Socket::Unix(listener.into_std()?),
        };
        Ok(Listener {
            socket,
            is_passed: self.is_passed,
        })
    }
}

/// So many listeners at one address.
pub fn bind(address: &Address, count: usize, send_buffer: usize) -> io::Result<Vec<Listener>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    match address {
        Address::Tcp(wanted) => {
            let listeners = bind_tcp_or_v4(*wanted, count, send_buffer).map_err(named)?;
            let sockets = listeners.into_iter().map(Socket::Tcp);
            Ok(sockets.map(Listener::own).collect())
        }
        Address::Unix(path) => {
            let first = bind_unix(path).map_err(named)?;
            // All workers wait at the one socket that its path names.
            let more = (1..count).map(|_| first.try_clone());
            let mut listeners: Vec<StdUnixListener> = more.collect::<io::Result<_>>()?;
            listeners.push(first);
            let sockets = listeners.into_iter().map(Socket::Unix);
            Ok(sockets.map(Listener::own).collect())
        }
    }
}

/// The socket of a process that has ended is still there: it is taken away, unless somebody listens
/// at it.
fn bind_unix(path: &Path) -> io::Result<StdUnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket {
        if StdUnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
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

/// The same for "all addresses" where the kernel knows no IPv6: then all of IPv4's.
fn bind_tcp_or_v4(
    wanted: SocketAddr,
    count: usize,
    send_buffer: usize,
) -> io::Result<Vec<std::net::TcpListener>> {
    match bind_tcp(wanted, count, send_buffer) {
        Err(error)
            if error.raw_os_error() == Some(NO_SUCH_FAMILY)
                && wanted.ip() == Ipv6Addr::UNSPECIFIED =>
        {
            let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, wanted.port()));
            bind_tcp(all, count, send_buffer)
        }
        bound => bound,
    }
}

/// `EAFNOSUPPORT` of Linux.
const NO_SUCH_FAMILY: i32 = 97;

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

fn socket(address: SocketAddr, shared: bool, send_buffer: usize) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Connections of a former process that linger in TIME_WAIT do not keep this one from starting.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    prepare(&socket, send_buffer)?;
    Ok(socket)
}

/// What accepted connections have too.
pub fn prepare(socket: &socket2::Socket, send_buffer: usize) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // What waits for a client that does not read waits here, once, and not in the kernel for each
    // of them.
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_send_buffer_size(send_buffer)
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
