//! The server: one worker per core, each a current-thread runtime with a listener of its own on
//! the same address, and the drain that ends them.

mod activity;
mod connection;
pub mod hearts;
pub mod phase;
mod seat;
mod serving;
mod stream;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Listen;
use crate::proxy::Proxy;

use hearts::Hearts;
use phase::Phases;

/// Connections that may wait in the kernel while a worker is busy.
const BACKLOG: i32 = 4096;

/// A running server. Dropping it does not stop it: its [`Phases`] do.
pub struct Server {
    pub address: SocketAddr,
    workers: Vec<JoinHandle<()>>,
}

impl Server {
    /// Binds `listen.address` and starts the workers.
    pub fn start(proxy: &Arc<Proxy>, phases: &Phases, hearts: &Arc<Hearts>) -> io::Result<Self> {
        let plan = proxy.plan();
        let listen = &plan.config.listen;
        let workers = workers(listen);
        let send_buffer = plan.config.limits.send_buffer as usize;
        let listeners = bind(listen.address, workers, send_buffer)?;
        let address = listeners[0].local_addr()?;
        let connections = Arc::new(seat::Connections::default());
        let mut threads = Vec::new();
        for (number, listener) in listeners.into_iter().enumerate() {
            let worker = worker::Worker {
                number,
                proxy: Arc::clone(proxy),
                connections: Arc::clone(&connections),
                phase: phases.watched(),
                hearts: Arc::clone(hearts),
            };
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            threads.push(thread.spawn(move || worker.run(listener))?);
        }
        Ok(Self {
            address,
            workers: threads,
        })
    }

    /// Waits until all workers have ended.
    pub fn join(self) {
        for worker in self.workers {
            // A worker that panicked has said so on its way out.
            let _ = worker.join();
        }
    }
}

/// Bytes that the kernel takes for a connection beyond what is on its way.
const UNSENT: u32 = 128 << 10;

/// Workers that are started.
pub fn workers(listen: &Listen) -> usize {
    listen.workers.unwrap_or_else(cores)
}

/// Cores that this process may use: affinity and quota respected.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// One listener a worker, all on one address.
///
/// The first bind is without `SO_REUSEPORT`: a second process on the same address fails here,
/// instead of silently taking a share of the connections.
fn bind(
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
        let first = bind("127.0.0.1:0".parse().unwrap(), 2, 1 << 18).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = bind(address, 1, 1 << 18).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        bind(address, 1, 1 << 18).unwrap();
    }
}
