//! Questions about keys that are under way: each is asked once, however many wait for its answer.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::timeout;

use super::outage::Met;
use super::source::{Answer, PATIENCE};
use super::verdicts::VerdictId;

/// Questions that are under way at one time: an unknown key more is answered 503.
const MOST_ASKED: usize = 1024;

type Answering = Shared<BoxFuture<'static, Met>>;

type Open = Mutex<HashMap<[u8; 32], Answering>>;

/// The questions that are under way.
#[derive(Default)]
pub struct Asking {
    open: Arc<Open>,
}

impl Asking {
    /// What `question` comes to, or what the same question came to that somebody else has asked.
    /// `heard` is told once, whoever asked.
    pub async fn ask(
        &self,
        id: VerdictId,
        question: impl Future<Output = Answer> + Send + 'static,
        heard: impl FnOnce(Answer) + Send + 'static,
    ) -> Met {
        let VerdictId(id) = id;
        let answering = {
            let mut open = lock(&self.open);
            match open.get(&id) {
                Some(answering) => answering.clone(),
                None if open.len() >= MOST_ASKED => return Met::Failed,
                None => {
                    let closing = Closing {
                        open: Arc::clone(&self.open),
                        id,
                    };
                    // Whoever leaves does not take the answer along.
                    let task = tokio::spawn(async move {
                        let _closing = closing;
                        let answer = timeout(PATIENCE, question).await;
                        let answer = answer.unwrap_or(Met::Failed.into());
                        let met = answer.met;
                        heard(answer);
                        met
                    });
                    let answering = task.map(|met| met.unwrap_or(Met::Failed)).boxed().shared();
                    open.insert(id, answering.clone());
                    answering
                }
            }
        };
        answering.await
    }
}

fn lock(open: &Open) -> MutexGuard<'_, HashMap<[u8; 32], Answering>> {
    open.lock()
}

/// Closes a question, whichever way it ends.
struct Closing {
    open: Arc<Open>,
    id: [u8; 32],
}

impl Drop for Closing {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.id);
    }
}
