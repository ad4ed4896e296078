//! Liveness: a worker that does not come back from what it does is seen, and seen to come back.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use iris_sidecar::clock::{Clock, Timestamp};
use iris_sidecar::process::Sidecar;
use iris_sidecar::upstream::{Answer, Origin, OriginBody, empty};

use crate::support::{Client, config};

/// An origin in this process that keeps the thread of whoever asks for `/stuck`, until it is let
/// go.
#[derive(Default)]
struct Sticky {
    is_free: Mutex<bool>,
    freed: Condvar,
}

impl Origin for Sticky {
    fn answer(&self, request: Request<OriginBody>) -> Answer<'_> {
        if request.uri().path() == "/stuck" {
            let is_free = self.is_free.lock().unwrap();
            drop(self.freed.wait_while(is_free, |is_free| !*is_free).unwrap());
        }
        Box::pin(std::future::ready(Ok(Response::new(empty()))))
    }
}

/// Waits until liveness answers so.
async fn becomes(sidecar: &Sidecar, status: u16) -> serde_json::Value {
    let asking = async {
        loop {
            let told = Client::admin(sidecar.admin_address, "/livez").await;
            if told.status == status {
                return told.json();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // It is looked for as long as a probe of an orchestrator would.
    let told = tokio::time::timeout(Duration::from_secs(60), asking).await;
    told.unwrap_or_else(|_| panic!("liveness does not become {status}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_stuck_fails_liveness_and_the_others_go_on() {
    let origin = Arc::new(Sticky::default());
    let sidecar = Sidecar::start_with(
        config("http://127.0.0.1:1", "[listen]\nworkers = 2\n"),
        Clock::manual(Timestamp::from(SystemTime::now())),
        Some(Arc::clone(&origin) as Arc<dyn Origin>),
    )
    .unwrap();
    assert_eq!(
        Client::admin(sidecar.admin_address, "/livez").await.status,
        200
    );
    let mut stuck = Client::connect(sidecar.address).await;
    stuck.request("GET", "/stuck", &[]).await;
    let told = becomes(&sidecar, 503).await;
    assert_eq!(told["stuck"].as_array().unwrap().len(), 1, "{told}");
    assert!(
        told["stuck"][0]["silent_ms"].as_u64().unwrap() > 10_000,
        "{told}"
    );

    *origin.is_free.lock().unwrap() = true;
    origin.freed.notify_all();
    assert_eq!(stuck.response().await.status, 200);
    becomes(&sidecar, 200).await;
    sidecar.drain();
    tokio::task::block_in_place(|| sidecar.join());
}
