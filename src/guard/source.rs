//! Whom verdicts come from.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, COOKIE, HOST};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use url::{Position, Url};

use crate::config::{Auth, Upstream, VerdictSource};
use crate::database::Database;
use crate::http::fields::without_brackets;
use crate::metrics::Metrics;
use crate::metrics::guard::VerdictBy;
use crate::trace;
use crate::upstream::{self, Origin, empty};

use super::credential::Credentials;
use super::outage::Met;
use super::stranger;
use super::units::Control;

/// How long a source is waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of the longest name of a project.
const LONGEST_PROJECT: usize = 255;

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
        /// The field that names the project of a key.
        project: Option<HeaderName>,
    },
    /// The key table.
    Table(Database),
}

impl Source {
    /// A service at this URL.
    pub fn service(
        url: &Url,
        project: Option<HeaderName>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let is_https = url.scheme() == "https";
        let scheme = if is_https {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        let host = url.host_str().unwrap_or_default();
        let host = without_brackets(host).to_owned();
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
            project,
        })
    }

    /// As it is configured; an error says what is wrong with that.
    pub fn of(
        auth: &Auth,
        metrics: &Arc<Metrics>,
        database: Option<&Database>,
    ) -> Result<Self, String> {
        match (&auth.source, database) {
            (VerdictSource::Url(url), _) => {
                Self::service(url, auth.project_field.clone(), Arc::clone(metrics))
                    .map_err(|message| format!("[auth] source: {message}"))
            }
            (VerdictSource::Table, Some(database)) => Ok(Self::Table(database.clone())),
            _ => Ok(Self::Origin),
        }
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

/// What a source says of a key.
#[derive(Clone, Debug)]
pub struct Answer {
    pub met: Met,
    /// The project of a key that is good, where the source names it.
    pub project: Option<Arc<str>>,
}

impl Answer {
    /// A project that can stand in no field, or is longer than a field says, is none.
    fn good(project: Option<&str>) -> Self {
        let is_sayable = |text: &&str| {
            (1..=LONGEST_PROJECT).contains(&text.len()) && HeaderValue::from_str(text).is_ok()
        };
        Self {
            met: Met::Accepted,
            project: project.filter(is_sayable).map(Arc::from),
        }
    }
}

impl From<Met> for Answer {
    fn from(met: Met) -> Self {
        Self { met, project: None }
    }
}

/// What of a request its source needs.
pub struct Question {
    key: Option<String>,
    credential: HeaderMap,
}

impl Question {
    pub fn of(credentials: &Credentials, headers: &HeaderMap) -> Self {
        let text = credentials.text(headers).ok().flatten();
        let key = text.and_then(|(key, _)| String::from_utf8(key.to_vec()).ok());
        let follows = [trace::TRACEPARENT, trace::TRACESTATE, trace::REQUEST_ID];
        let carries = |name: &HeaderName| {
            *name == COOKIE || credentials.is_field(name) || follows.contains(name)
        };
        let carried = headers.iter().filter(|(name, _)| carries(name));
        Self {
            key,
            credential: carried
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }

    /// Two questions about nobody: with a random key, and with none.
    pub fn strange(credentials: &Credentials, headers: &HeaderMap) -> [Self; 2] {
        let random = stranger::with_random_key(credentials, headers);
        [random, None].map(|headers| match headers {
            Some(headers) => Self::of(credentials, &headers),
            None => Self {
                key: None,
                credential: HeaderMap::new(),
            },
        })
    }
}

/// 401 and 403 are about the caller; nothing else is.
pub fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

impl Source {
    /// As a unit is written, whose control says whether what it accepts means anything; `None`
    /// where it is known to.
    pub fn written(&self) -> Option<Vec<u8>> {
        match self {
            Self::Origin | Self::Table(_) => None,
            Self::Service { target, host, .. } => {
                let parts = [b"source ", host.as_bytes(), target.as_str().as_bytes()];
                Some(parts.concat())
            }
        }
    }

    /// Whether it refuses a random key, and none.
    pub async fn control(&self, strange: [Question; 2]) -> Control {
        for question in strange {
            match self.answer(question, |_| ()).await.met {
                Met::Refused => {}
                Met::Accepted => return Control::Failed,
                Met::Failed => return Control::Unanswered,
            }
        }
        Control::Held
    }

    /// What it says of a key. What it says that is neither good nor bad goes to `complain`.
    pub async fn answer(
        &self,
        question: Question,
        complain: impl Fn(&(dyn std::fmt::Display + Sync)),
    ) -> Answer {
        let met = match self {
            Self::Origin => Met::Failed,
            Self::Table(database) => {
                let Some(key) = question.key else {
                    return Met::Refused.into();
                };
                match database.find_key(&key).await {
                    Ok(Some(found)) => return Answer::good(Some(&found.project_id)),
                    Ok(None) => Met::Refused,
                    Err(error) => {
                        complain(&error);
                        Met::Failed
                    }
                }
            }
            Self::Service {
                service,
                target,
                host,
                project,
            } => {
                let mut request = Request::new(empty());
                *request.uri_mut() = Uri::from(target.clone());
                *request.headers_mut() = question.credential;
                request.headers_mut().insert(HOST, host.clone());
                let any = HeaderValue::from_static("*/*");
                request.headers_mut().insert(ACCEPT, any);
                match service.answer(request).await {
                    Ok(response) if response.status().is_success() => {
                        let named = project
                            .as_ref()
                            .map(|name| response.headers().get_all(name));
                        let mut named = named.into_iter().flatten();
                        // Named twice, nobody knows which.
                        let one = named.next().filter(|_| named.next().is_none());
                        return Answer::good(one.and_then(|value| value.to_str().ok()));
                    }
                    Ok(response) if is_refusal(response.status()) => Met::Refused,
                    Ok(response) => {
                        complain(&response.status());
                        Met::Failed
                    }
                    Err(failure) => {
                        complain(&failure);
                        Met::Failed
                    }
                }
            }
        };
        met.into()
    }
}
