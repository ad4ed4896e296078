//! A wire between an instance and its Redis, which can be cut, slowed down, and led elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub struct Wire {
    pub port: u16,
    target: Arc<AtomicU16>,
    delay: Arc<AtomicU64>,
    /// Counts cuts; odd while it is cut.
    cuts: watch::Sender<u64>,
    listening: JoinHandle<()>,
}

impl Wire {
    /// To a server on this loopback port.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let target = Arc::new(AtomicU16::new(target));
        let delay = Arc::new(AtomicU64::new(0));
        let cuts = watch::Sender::new(0);
        let (to, late, cut) = (Arc::clone(&target), Arc::clone(&delay), cuts.clone());
        let listening = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.expect("accept");
                // From before the other side is connected: a cut meanwhile is one.
                let mut seen = cut.subscribe();
                if *seen.borrow_and_update() % 2 == 1 {
                    continue;
                }
                let far = TcpStream::connect(("127.0.0.1", to.load(Ordering::SeqCst))).await;
                let Ok(far) = far else { continue };
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::spawn(carry(near_in, far_out, Arc::clone(&late), seen.clone()));
                // Late on the way there is late enough.
                tokio::spawn(carry(far_in, near_out, Arc::default(), seen));
            }
        });
        Self {
            port,
            target,
            delay,
            cuts,
            listening,
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends all connections, and new ones at once.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts |= 1);
    }

    pub fn mend(&self) {
        self.cuts.send_modify(|cuts| *cuts = (*cuts + 1) & !1);
    }

    /// What goes there takes this much longer.
    pub fn slow(&self, by: Duration) {
        self.delay.store(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Connections end, and new ones go to another server.
    pub fn lead_to(&self, port: u16) {
        self.cut();
        self.target.store(port, Ordering::SeqCst);
        self.mend();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Arc<AtomicU64>,
    mut cut: watch::Receiver<u64>,
) {
    let carrying = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let late = delay.load(Ordering::SeqCst);
            if late > 0 {
                tokio::time::sleep(Duration::from_millis(late)).await;
            }
            if to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = carrying => {}
        _ = cut.changed() => {}
    }
}
