//! `request_headers`, `response_headers` and `cors` of a route.

use std::time::Duration;

use http::header::{HOST, RANGE};
use http::{HeaderName, HeaderValue, Method};

use crate::policy::Share;

use super::field_rules::{Cors, FieldRules, PLACES, Template};
use super::read_value::field_name;
use super::section::Section;

/// Reads one of the tables; `is_ours` says which names are not the operator's there, `no_project`
/// why there is no project to speak of.
fn rules(
    mut section: Section<'_, '_>,
    is_ours: impl Fn(&HeaderName) -> bool,
    no_project: Option<&str>,
) -> FieldRules {
    let name = |text: &str| field_name(text).filter(|name| !is_ours(name));
    let expected = "an end-to-end field name that is not decided elsewhere";
    let remove = section.list("remove", expected, name).unwrap_or_default();
    let mut templates = |key: &'static str| {
        let mut found = Vec::new();
        for (field, value) in section.pairs(key) {
            let path = format!("{}.{key}", section.name());
            let source = section.source();
            let Some(field_name) = name(&field.value) else {
                let message = format!("{path}: {:?}: expected {expected}", field.value);
                source.mistake(field.span, message);
                continue;
            };
            let template = Template::parse(&value.value);
            if let (true, Some(why)) = (
                template.as_ref().is_some_and(Template::names_project),
                no_project,
            ) {
                let message = format!("{path}.{field_name} = {:?}: {why}", value.value);
                source.mistake(value.span, message);
                continue;
            }
            match template {
                Some(template) => found.push((field_name, template)),
                None => {
                    let places = PLACES.join(", ");
                    let message = format!(
                        "{path}.{field_name} = {:?}: expected a field value, with no places but \
                            {places}",
                        value.value
                    );
                    source.mistake(value.span, message);
                }
            }
        }
        found
    };
    let (set, add) = (templates("set"), templates("add"));
    section.finish();
    FieldRules { remove, set, add }
}

/// What is done with requests on their way to the origin. Conditions and ranges are the cache's,
/// and where keys count, so are they.
pub fn of_requests(
    section: &mut Section<'_, '_>,
    share: Share,
    credentials: &[HeaderName],
) -> FieldRules {
    let is_ours = |name: &HeaderName| {
        let is_condition = name.as_str().starts_with("if-") || *name == RANGE || *name == HOST;
        is_condition || (share != Share::Standard && credentials.contains(name))
    };
    let why = "an answer is for all whose key is good, whatever their project: expected {project} \
        in response_headers alone";
    rules(section.table("request_headers"), is_ours, Some(why))
}

/// What is done with responses on their way to clients; what is stored stays as it came.
pub fn of_responses(
    section: &mut Section<'_, '_>,
    share: Share,
    names_projects: bool,
) -> FieldRules {
    let no_project = match (share, names_projects) {
        (Share::Verified, true) => None,
        (Share::Verified, false) => Some(
            "nobody says which project a key is of: expected auth.source = \"table\", or a URL \
                with auth.project_field",
        ),
        _ => Some("keys are verified where share = \"verified\" alone: expected {project} there"),
    };
    let frames = ["age", "cache-status", "content-encoding", "content-range"];
    let is_ours = |name: &HeaderName| frames.contains(&name.as_str());
    rules(section.table("response_headers"), is_ours, no_project)
}

/// Whose pages may read answers, where the operator says so.
pub fn cors(
    section: &mut Section<'_, '_>,
    methods: &[Method],
    origin: impl Fn(&str) -> Option<HeaderValue>,
) -> Option<Cors> {
    let mut section = section.table("cors");
    if !section.is_present() {
        return None;
    }
    let expected = "an origin such as \"https://app.example.org\"";
    let origins = section.list("origins", expected, origin);
    if section.is_missing("origins") {
        let message = format!(
            "{} has no origins: expected origins = [...], each {expected}",
            section.name()
        );
        section.source().mistake(section.span(), message);
    }
    let method = |text: &str| Method::from_bytes(text.as_bytes()).ok();
    let named = section.list("methods", "a method such as \"GET\"", method);
    let headers = section.list("headers", "a field name", field_name);
    let expose = section.list("expose", "a field name", field_name);
    let credentials = section.boolean("credentials").unwrap_or(false);
    let max_age = section.duration("max_age");
    section.finish();
    Some(Cors {
        origins: origins.unwrap_or_default(),
        methods: named.unwrap_or_else(|| methods.to_vec()),
        headers,
        expose: expose.unwrap_or_default(),
        credentials,
        max_age: max_age.unwrap_or(Duration::from_secs(600)),
    })
}
