//! The server: one worker per core, each a current-thread runtime with a listener of its own on
//! the same address, and the drain that ends them.

mod activity;
mod connection;
mod greeting;
pub mod hearts;
mod listen;
mod passed;
pub mod phase;
mod proxy_header;
mod seat;
mod serving;
mod stream;
mod transport;
mod worker;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::config::{Address, Listen};
use crate::proxy::Proxy;

use hearts::Hearts;
use listen::Listener;
use passed::Passed;
use phase::Phases;

/// A running server. Dropping it does not stop it: its [`Phases`] do.
pub struct Server {
    /// In the order of the configuration, with the ports that were free.
    pub addresses: Vec<Address>,
    /// Those that this process has bound itself.
    bound: Vec<Address>,
    workers: Vec<JoinHandle<()>>,
}

impl Server {
    /// Binds all places of `[listen]` that no socket was passed for, and starts the workers.
    pub fn start(proxy: &Arc<Proxy>, phases: &Phases, hearts: &Arc<Hearts>) -> io::Result<Self> {
        let plan = proxy.plan();
        let listen = &plan.config.listen;
        let workers = workers(listen);
        let send_buffer = plan.config.limits.send_buffer as usize;
        let mut of_workers: Vec<Vec<Listener>> = (0..workers).map(|_| Vec::new()).collect();
        let (mut addresses, mut bound) = (Vec::new(), Vec::new());
        let mut passed = Passed::from_environment();
        for place in &listen.places {
            let listeners = match passed.next(&place.address, workers, send_buffer)? {
                Some(passed) => passed,
                None => listen::bind(&place.address, workers, send_buffer)?,
            };
            let address = listeners[0].address(&place.address)?;
            if listeners[0].is_own() {
                bound.push(address.clone());
            }
            addresses.push(address);
            for (own, listener) in of_workers.iter_mut().zip(listeners) {
                own.push(listener);
            }
        }
        passed.all_taken()?;
        let connections = Arc::new(seat::Connections::default());
        let mut threads = Vec::new();
        for (number, listeners) in of_workers.into_iter().enumerate() {
            let worker = worker::Worker {
                number,
                proxy: Arc::clone(proxy),
                connections: Arc::clone(&connections),
                phase: phases.watched(),
                hearts: Arc::clone(hearts),
            };
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            threads.push(thread.spawn(move || worker.run(listeners))?);
        }
        Ok(Self {
            addresses,
            bound,
            workers: threads,
        })
    }

    /// Waits until all workers have ended.
    pub fn join(self) {
        for worker in self.workers {
            // A worker that panicked has said so on its way out.
            let _ = worker.join();
        }
        listen::remove(&self.bound);
    }
}

/// Workers that are started.
pub fn workers(listen: &Listen) -> usize {
    listen.workers.unwrap_or_else(cores)
}

/// Cores that this process may use: affinity and quota respected.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
