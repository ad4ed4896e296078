//! Faults at every place of a write: what got 201 is there, and what did not is not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::api::Api;
use crate::support::golden;
use crate::support::postgres::PostgresServer;

/// A wire to Postgres that breaks after so many bytes of one direction, for once.
struct Fuse {
    port: u16,
    /// Bytes that still pass towards the database, and from it.
    left: [Arc<AtomicI64>; 2],
}

const WHOLE: i64 = i64::MAX;

impl Fuse {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap().port();
        let left = [0, 1].map(|_| Arc::new(AtomicI64::new(WHOLE)));
        let fuse = left.clone();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (near, far) = (near.into_split(), far.into_split());
                let (blown, _) = watch::channel(false);
                let blown = Arc::new(blown);
                tokio::spawn(carry(
                    near.0,
                    far.1,
                    Arc::clone(&fuse[0]),
                    Arc::clone(&blown),
                ));
                tokio::spawn(carry(far.0, near.1, Arc::clone(&fuse[1]), blown));
            }
        });
        Self { port: here, left }
    }

    /// The wire breaks after so many bytes of a direction.
    fn after(&self, direction: usize, bytes: i64) {
        self.left[direction].store(bytes, Ordering::SeqCst);
    }

    fn passed(&self, direction: usize) -> i64 {
        let left = self.left[direction].swap(WHOLE, Ordering::SeqCst);
        if left == WHOLE { i64::MAX } else { left }
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    left: Arc<AtomicI64>,
    blown: Arc<watch::Sender<bool>>,
) {
    let (mut piece, mut ends) = (vec![0; 4096], blown.subscribe());
    loop {
        let read = tokio::select! {
            read = from.read(&mut piece) => read.unwrap_or(0),
            _ = ends.wait_for(|blown| *blown) => return,
        };
        if read == 0 {
            blown.send_replace(true);
            return;
        }
        let before = left.load(Ordering::SeqCst);
        let passes = before.min(read as i64).max(0) as usize;
        let _ = to.write_all(&piece[..passes]).await;
        if passes < read {
            // Only this connection: the next one is whole.
            left.store(WHOLE, Ordering::SeqCst);
            blown.send_replace(true);
            return;
        }
        if before != WHOLE {
            left.fetch_sub(read as i64, Ordering::SeqCst);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_postgres_that_breaks_anywhere_in_a_write_leaves_no_doubt() {
    let server = PostgresServer::start().await;
    golden::open(&server.url()).await.migrate().await.unwrap();
    let direct = server.url();
    let real: url::Url = direct.parse().unwrap();
    let fuse = Fuse::to(real.port().unwrap()).await;
    let mut fused = real;
    fused.set_port(Some(fuse.port)).unwrap();
    let routes = "connections = 1\nbreaker_failures = 1000\n";
    let api = Api::over(fused.as_str(), routes).await;
    let write = async |name: &str| {
        let event = json!({"expertId": name, "message": "x"});
        api.post("/api/iris/telemetry", &event).await.status
    };
    // How much of each direction a write is.
    let mut sizes = [0, 0];
    for _ in 0..2 {
        (0..2).for_each(|direction| fuse.after(direction, 1 << 40));
        assert_eq!(write("whole").await, 201);
        sizes = [0, 1].map(|direction| (1 << 40) - fuse.passed(direction));
    }
    assert!(
        sizes.iter().all(|size| (200..8000).contains(size)),
        "{sizes:?}"
    );
    let (mut written, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for (direction, size) in sizes.into_iter().enumerate() {
        for bytes in (0..size).step_by(13) {
            fuse.after(direction, bytes);
            let name = format!("w{direction}-{bytes}");
            match write(&name).await {
                201 => written.insert(name),
                _ => refused.insert(name),
            };
            fuse.passed(direction);
            // And the next one is not the worse for it.
            assert_eq!(write("whole").await, 201, "after {direction} {bytes}");
        }
    }
    let database = sqlx::PgPool::connect(&direct).await.unwrap();
    let stored =
        sqlx::query_scalar("SELECT expert_id FROM iris_telemetry WHERE expert_id LIKE 'w%-%'");
    let stored: Vec<String> = stored.fetch_all(&database).await.unwrap();
    let stored: BTreeSet<String> = stored.into_iter().collect();
    assert_eq!(stored, written, "refused: {refused:?}");
    assert!(!refused.is_empty() && !written.is_empty());
}
