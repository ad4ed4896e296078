//! Sockets that systemd has opened before this process began (`sd_listen_fds(3)`), and keeps open
//! when it ends: who connects between two of them waits, and is refused by nobody.

use std::io;

use listenfd::ListenFd;
use socket2::SockRef;

use crate::config::Address;

use super::listen::{Listener, Socket, prepare};

/// What was passed, in its order: one for each place of `[listen]`.
pub struct Passed {
    sockets: ListenFd,
    taken: usize,
}

impl Passed {
    pub fn from_environment() -> Self {
        Self {
            sockets: ListenFd::from_env(),
            taken: 0,
        }
    }

    /// The next one for each of so many workers, for the place with this address; `None` where
    /// there is none. All workers wait at the one socket.
    pub fn next(
        &mut self,
        address: &Address,
        count: usize,
        send_buffer: usize,
    ) -> io::Result<Option<Vec<Listener>>> {
        let at = self.taken;
        if at >= self.sockets.len() {
            return Ok(None);
        }
        self.taken += 1;
        let named = |error: io::Error| {
            let message = format!("the socket that systemd passes for {address}: {error}");
            io::Error::new(error.kind(), message)
        };
        let first = match address {
            Address::Tcp(_) => {
                let socket = self.sockets.take_tcp_listener(at).map_err(named)?;
                if let Some(socket) = &socket {
                    prepare(&SockRef::from(socket), send_buffer).map_err(named)?;
                }
                socket.map(Socket::Tcp)
            }
            Address::Unix(_) => {
                let socket = self.sockets.take_unix_listener(at).map_err(named)?;
                if let Some(socket) = &socket {
                    socket.set_nonblocking(true).map_err(named)?;
                }
                socket.map(Socket::Unix)
            }
        };
        let Some(first) = first else { return Ok(None) };
        let more = (1..count).map(|_| first.try_clone());
        let mut all = more.collect::<io::Result<Vec<Socket>>>().map_err(named)?;
        all.push(first);
        Ok(Some(all.into_iter().map(Listener::passed).collect()))
    }

    /// Whether all that was passed has its place.
    pub fn all_taken(&self) -> io::Result<()> {
        if self.sockets.len() <= self.taken {
            return Ok(());
        }
        let (passed, taken) = (self.sockets.len(), self.taken);
        let message = format!(
            "systemd passes {passed} sockets, and [listen] has {taken} places: expected one for \
                each (ListenStream= in the .socket unit, [[listen]] in the configuration)"
        );
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }
}
