//! Whom verdicts come from, and how one question is asked once, however many wait for its answer.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::header::{ACCEPT, COOKIE, HOST};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use tokio::time::timeout;
use tracing::warn;
use url::{Position, Url};

use crate::config::Upstream;
use crate::database::Database;
use crate::metrics::Metrics;
use crate::metrics::guard::VerdictBy;
use crate::upstream::{self, Origin, empty};

use super::outage::Met;
use super::verdicts::VerdictId;
use super::{Caller, Guard};

/// How long a source is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Milliseconds between two complaints.
const COMPLAINS_EVERY: u64 = 10_000;

/// Questions that are under way at one time: an unknown key more is answered 503.
const MOST_ASKED: usize = 1024;

/// Who says whether a key is good.
#[derive(Clone, Default)]
pub enum Source {
    /// The origin, by its answers: there is nobody to ask before.
    #[default]
    Origin,
    /// A service that is asked with the caller's credential.
    Service {
        service: Arc<dyn Origin>,
        target: PathAndQuery,
        host: HeaderValue,
    },
    /// The key table.
    Table(Database),
}

impl Source {
    /// A service at this URL.
    pub fn service(url: &Url, metrics: Arc<Metrics>) -> Result<Self, String> {
        let is_https = url.scheme() == "https";
        let scheme = if is_https {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        let host = url.host_str().unwrap_or_default();
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = url.port_or_known_default().unwrap_or(80);
        let place = Upstream {
            response_timeout: PATIENCE,
            ..Upstream::at(scheme, host, port)
        };
        let wrong = |error: &dyn std::fmt::Display| format!("{url}: {error}");
        let host = HeaderValue::try_from(place.authority()).map_err(|error| wrong(&error))?;
        let target = &url[Position::BeforePath..];
        let target = target
            .parse::<PathAndQuery>()
            .map_err(|error| wrong(&error))?;
        let service = upstream::Upstream::new(&place, metrics)?;
        Ok(Self::Service {
            service,
            target,
            host,
        })
    }

    /// The label in metrics.
    pub fn label(&self) -> VerdictBy {
        match self {
            Self::Origin => VerdictBy::Origin,
            Self::Service { .. } => VerdictBy::Url,
            Self::Table(_) => VerdictBy::Table,
        }
    }
}

type Answering = Shared<BoxFuture<'static, Met>>;

/// The questions that are under way.
#[derive(Default)]
pub struct Asking {
    open: Mutex<HashMap<[u8; 32], Answering>>,
}

impl Asking {
    /// What the source says; `None` where the origin is the source.
    pub async fn verdict(
        &self,
        guard: &Arc<Guard>,
        caller: Caller,
        headers: &HeaderMap,
    ) -> Option<Met> {
        if matches!(guard.source, Source::Origin) {
            return None;
        }
        let VerdictId(id) = caller.id;
        let answering = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            match open.get(&id) {
                Some(answering) => answering.clone(),
                None if open.len() >= MOST_ASKED => return Some(Met::Failed),
                None => {
                    let question = guard.question(headers);
                    let guard = Arc::clone(guard);
                    // Whoever leaves does not take the answer along.
                    let task = tokio::spawn(async move {
                        let open = Open { guard, id };
                        let met = timeout(PATIENCE, open.guard.answer(question)).await;
                        let met = met.unwrap_or(Met::Failed);
                        open.guard.source_answered(&caller, met);
                        met
                    });
                    let answering = task.map(|met| met.unwrap_or(Met::Failed)).boxed().shared();
                    open.insert(id, answering.clone());
                    answering
                }
            }
        };
        Some(answering.await)
    }

    fn close(&self, id: &[u8; 32]) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(id);
    }
}

/// A question that is under way; closed whichever way it ends.
struct Open {
    guard: Arc<Guard>,
    id: [u8; 32],
}

impl Drop for Open {
    fn drop(&mut self) {
        self.guard.state.asking.close(&self.id);
    }
}

/// What of a request its source needs.
struct Question {
    key: Option<String>,
    credential: HeaderMap,
}

impl Guard {
    fn question(&self, headers: &HeaderMap) -> Question {
        let text = self.credentials.text(headers).ok().flatten();
        let key = text.and_then(|(key, _)| String::from_utf8(key.to_vec()).ok());
        let carries = |name: &HeaderName| *name == COOKIE || self.credentials.is_field(name);
        let carried = headers.iter().filter(|(name, _)| carries(name));
        Question {
            key,
            credential: carried
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }

    /// Once in a while: every unknown key meets it.
    fn complain(&self, cause: &dyn std::fmt::Display) {
        let now = self.state.clock.now().as_millis();
        let last = self.state.complained.load(Ordering::Relaxed);
        if now.abs_diff(last) >= COMPLAINS_EVERY {
            self.state.complained.store(now, Ordering::Relaxed);
            warn!(%cause, "auth.source says neither good nor bad: unknown keys get 503");
        }
    }

    async fn answer(&self, question: Question) -> Met {
        match &self.source {
            Source::Origin => Met::Failed,
            Source::Table(database) => {
                let Some(key) = question.key else {
                    return Met::Refused;
                };
                match database.find_key(&key).await {
                    Ok(Some(_)) => Met::Accepted,
                    Ok(None) => Met::Refused,
                    Err(error) => {
                        self.complain(&error);
                        Met::Failed
                    }
                }
            }
            Source::Service {
                service,
                target,
                host,
            } => {
                let mut request = Request::new(empty());
                *request.uri_mut() = Uri::from(target.clone());
                *request.headers_mut() = question.credential;
                request.headers_mut().insert(HOST, host.clone());
                let any = HeaderValue::from_static("*/*");
                request.headers_mut().insert(ACCEPT, any);
                match service.answer(request).await {
                    Ok(response) if response.status().is_success() => Met::Accepted,
                    Ok(response) if super::is_refusal(response.status()) => Met::Refused,
                    Ok(response) => {
                        self.complain(&response.status());
                        Met::Failed
                    }
                    Err(failure) => {
                        self.complain(&failure);
                        Met::Failed
                    }
                }
            }
        }
    }
}
