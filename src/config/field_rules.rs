//! What the operator does with the fields of requests on their way to the origin, and of responses
//! on their way to clients.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// Fields that are removed, then those that replace others of their name, then those that are
/// added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldRules {
    pub remove: Vec<HeaderName>,
    pub set: Vec<(HeaderName, Template)>,
    pub add: Vec<(HeaderName, Template)>,
}

/// A field value with places for what is known of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Place(Place),
}

/// What is put into a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The client's address, as far as it is known.
    Client,
    /// The pattern of the route.
    Route,
    /// The `X-Request-Id` by which the origin knows the request.
    RequestId,
    /// The project of the key that was let in.
    Project,
}

/// The places, as they are written.
pub const PLACES: [&str; 4] = ["{client}", "{route}", "{request_id}", "{project}"];

/// What is known of a request.
#[derive(Clone, Debug)]
pub struct Said {
    pub client: IpAddr,
    pub route: String,
    pub request_id: String,
    /// `None` where nobody has said it.
    pub project: Option<Arc<str>>,
}

impl Template {
    /// `None` for what can be no field value, or names a place that there is not.
    pub fn parse(text: &str) -> Option<Self> {
        HeaderValue::from_str(text).ok()?;
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find('{') {
            let end = rest[at..].find('}')? + at + 1;
            let place = match &rest[at..end] {
                "{client}" => Place::Client,
                "{route}" => Place::Route,
                "{request_id}" => Place::RequestId,
                "{project}" => Place::Project,
                _ => return None,
            };
            parts.push(Part::Text(rest[..at].to_owned()));
            parts.push(Part::Place(place));
            rest = &rest[end..];
        }
        parts.push(Part::Text(rest.to_owned()));
        Some(Self(parts))
    }

    /// `None` where something in it is not known, or can stand in no field.
    fn fill(&self, said: &Said) -> Option<HeaderValue> {
        let filled = self.0.iter().map(|part| match part {
            Part::Text(text) => Some(text.clone()),
            Part::Place(Place::Client) => Some(said.client.to_string()),
            Part::Place(Place::Route) => Some(said.route.clone()),
            Part::Place(Place::RequestId) => Some(said.request_id.clone()),
            Part::Place(Place::Project) => said.project.as_deref().map(str::to_owned),
        });
        HeaderValue::try_from(filled.collect::<Option<String>>()?).ok()
    }

    pub fn names_project(&self) -> bool {
        let is_project = |part: &Part| matches!(part, Part::Place(Place::Project));
        self.0.iter().any(is_project)
    }

    /// As it is written.
    pub fn shown(&self) -> String {
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => text,
            Part::Place(Place::Client) => PLACES[0],
            Part::Place(Place::Route) => PLACES[1],
            Part::Place(Place::RequestId) => PLACES[2],
            Part::Place(Place::Project) => PLACES[3],
        });
        parts.collect()
    }
}

impl FieldRules {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        let given = self.set.iter().chain(&self.add).map(|(name, _)| name);
        self.remove.iter().chain(given)
    }

    /// Whether a value is made of the project of a key.
    pub fn names_project(&self) -> bool {
        let mut values = self.set.iter().chain(&self.add);
        values.any(|(_, value)| value.names_project())
    }

    pub fn apply(&self, headers: &mut HeaderMap, said: &Said) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            match value.fill(said) {
                Some(value) => drop(headers.insert(name.clone(), value)),
                // What somebody else says under this name is not ours.
                None => drop(headers.remove(name)),
            }
        }
        for (name, value) in &self.add {
            if let Some(value) = value.fill(said) {
                headers.append(name.clone(), value);
            }
        }
    }
}

/// Whose pages may read answers (Fetch, "CORS protocol").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// Origins to the letter.
    pub origins: Vec<HeaderValue>,
    pub methods: Vec<Method>,
    /// Fields that a page may send; `None`: those that it asks for.
    pub headers: Option<Vec<HeaderName>>,
    /// Fields that a page may read.
    pub expose: Vec<HeaderName>,
    /// Its user's cookies and keys may come along.
    pub credentials: bool,
    /// How long the answer to a preflight may be remembered.
    pub max_age: Duration,
}

impl Cors {
    /// Whether a page of this origin may read answers: said in the answer, whoever asked, for a
    /// shared cache before us tells answers apart by it.
    pub fn apply(&self, headers: &mut HeaderMap, origin: Option<&HeaderValue>) {
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            headers.remove(name);
        }
        headers.append(VARY, HeaderValue::from_static("origin"));
        let Some(origin) = origin.filter(|origin| self.origins.contains(origin)) else {
            return;
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        if let Some(list) = joined(&self.expose) {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, list);
        }
    }

    /// The fields of the answer to a preflight with these.
    pub fn preflight(&self, asked: &HeaderMap) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let origin = asked.get(ORIGIN);
        self.apply(&mut headers, origin);
        headers.remove(ACCESS_CONTROL_EXPOSE_HEADERS);
        let varies = "access-control-request-method, access-control-request-headers";
        headers.append(VARY, HeaderValue::from_static(varies));
        if !headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            return headers;
        }
        let methods: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        if let Ok(list) = HeaderValue::try_from(methods.join(", ")) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, list);
        }
        let allowed = match &self.headers {
            Some(list) => joined(list),
            None => asked.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
        };
        if let Some(list) = allowed {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, list);
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.as_secs().into());
        headers
    }
}

fn joined(names: &[HeaderName]) -> Option<HeaderValue> {
    let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
    let list = HeaderValue::try_from(names.join(", ")).ok()?;
    (!names.is_empty()).then_some(list)
}
