//! Scenarios and lists of requests as they are written in TOML: every mistake is told, with its
//! place.

use std::path::Path;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use crate::config::section::Section;
use crate::config::source::Source;
use crate::config::{Environment, Mistake, units};

use super::plan::{Endpoint, Model, Scenario, Stage, requirements_mix};
use super::template;

/// The most users, or requests a second.
const MOST: f64 = 1e6;

/// A scenario: `name`, `model`, `think`, `[[stage]]` and `[[request]]`.
pub fn scenario(
    file: &str,
    text: &str,
    environment: Environment<'_>,
) -> Result<Scenario, Vec<Mistake>> {
    read(file, text, environment, |root| {
        let name = root.parsed("name", "a name", |text| Some(text.to_owned()));
        let expected = "\"closed\" (users who wait for answers) or \"open\" (a rate)";
        let is_open = root.parsed("model", expected, |text| match text {
            "closed" => Some(false),
            "open" => Some(true),
            _ => None,
        });
        let is_open = is_open.is_some_and(|at| at.value);
        let think = root.list("think", units::DURATION, units::duration);
        let think = match think.as_deref() {
            None => (Duration::ZERO, Duration::ZERO),
            Some(_) if is_open => {
                wrong(
                    root,
                    "think is for model = \"closed\": an open model has no users",
                );
                (Duration::ZERO, Duration::ZERO)
            }
            Some([least, most]) if least <= most => (*least, *most),
            Some([least, most]) => {
                let shown = [least, most].map(|time| units::show_duration(*time));
                wrong(
                    root,
                    &format!("think: {} is more than {}", shown[0], shown[1]),
                );
                (Duration::ZERO, Duration::ZERO)
            }
            Some(_) => {
                wrong(
                    root,
                    "think: expected [\"least\", \"most\"], such as [\"500ms\", \"2s\"]",
                );
                (Duration::ZERO, Duration::ZERO)
            }
        };
        let sections = root.tables("stage");
        let written = sections.len();
        let stages: Vec<Stage> = sections
            .into_iter()
            .filter_map(|section| stage(section, is_open))
            .collect();
        // What is wrong with a stage is said of it.
        if stages.len() == written && stages.iter().all(|stage| stage.lasts.is_zero()) {
            wrong(root, "no [[stage]] that lasts: expected lasts = \"30s\"");
        }
        let endpoints = endpoints(root);
        Scenario {
            name: name.map_or_else(|| stem(file), |at| at.value),
            model: if is_open {
                Model::Open
            } else {
                Model::Closed { think }
            },
            stages,
            endpoints: if endpoints.is_empty() {
                requirements_mix()
            } else {
                endpoints
            },
        }
    })
}

/// What a file is called without its folder and its ending.
fn stem(file: &str) -> String {
    let stem = Path::new(file).file_stem();
    stem.map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// A list of `[[request]]`.
pub fn requests(
    file: &str,
    text: &str,
    environment: Environment<'_>,
) -> Result<Vec<Endpoint>, Vec<Mistake>> {
    read(file, text, environment, |root| {
        let endpoints = endpoints(root);
        if endpoints.is_empty() {
            wrong(
                root,
                "no [[request]]: expected at least one, with path = \"/…\"",
            );
        }
        endpoints
    })
}

fn read<T>(
    file: &str,
    text: &str,
    environment: Environment<'_>,
    read: impl FnOnce(&mut Section<'_, '_>) -> T,
) -> Result<T, Vec<Mistake>> {
    let source = Source::new(file, text, environment);
    let table = source.parse();
    let mut root = Section::root(&source, &table);
    let found = read(&mut root);
    root.finish();
    match source.into_mistakes() {
        mistakes if mistakes.is_empty() => Ok(found),
        mistakes => Err(mistakes),
    }
}

fn wrong(section: &Section<'_, '_>, message: &str) {
    section.source().mistake(section.span(), message);
}

fn stage(mut section: Section<'_, '_>, is_open: bool) -> Option<Stage> {
    let lasts = section.duration("lasts");
    if section.is_missing("lasts") {
        wrong(&section, "[[stage]]: expected lasts = \"30s\"");
    }
    let [users, rate] = ["users", "rate"].map(|key| {
        let number = section.scalar(key)?;
        let number = number
            .as_f64()
            .filter(|number| (0.0..=MOST).contains(number));
        if number.is_none() {
            wrong(
                &section,
                &format!("[[stage]] {key}: expected a number from 0 to {MOST}"),
            );
        }
        number
    });
    let is_right = section.is_missing("rate") != is_open && section.is_missing("users") == is_open;
    if !is_right {
        wrong(
            &section,
            match is_open {
                false => "[[stage]]: expected users = … and no rate, for model = \"closed\"",
                true => {
                    "[[stage]]: expected rate = … (requests a second) and no users, for model \
                        = \"open\""
                }
            },
        );
    }
    section.finish();
    let to = if is_open { rate } else { users };
    Some(Stage {
        lasts: lasts?,
        to: to?,
    })
}

/// Those of `[[request]]`: none where there are none.
fn endpoints(root: &mut Section<'_, '_>) -> Vec<Endpoint> {
    let sections = root.tables("request");
    let are_some = !sections.is_empty();
    let endpoints: Vec<Endpoint> = sections.into_iter().filter_map(endpoint).collect();
    let all_idle = endpoints.iter().all(|endpoint| endpoint.weight == 0);
    if are_some && !endpoints.is_empty() && all_idle {
        wrong(root, "[[request]]: every weight is 0");
    }
    endpoints
}

fn endpoint(mut section: Section<'_, '_>) -> Option<Endpoint> {
    let name = section.parsed("name", "a name", |text| Some(text.to_owned()));
    let path = section.parsed("path", "a path that begins with \"/\"", |text| {
        text.starts_with('/').then(|| text.to_owned())
    });
    if section.is_missing("path") {
        wrong(&section, "[[request]]: expected path = \"/…\"");
    }
    let body = section.parsed("body", "a text", |text| Some(text.to_owned()));
    let expected = "a method such as \"GET\"";
    let method = section.parsed("method", expected, |text| {
        Method::from_bytes(text.as_bytes()).ok()
    });
    let weight = section.integer("weight", 0..1_000_001);
    let mut headers = Vec::new();
    for (name, value) in section.pairs("headers") {
        let field = HeaderName::from_bytes(name.value.as_bytes()).ok();
        match field.zip(HeaderValue::from_str(&value.value).ok()) {
            Some(field) => headers.push(field),
            None => {
                let message = format!("headers: {:?}: expected a header field", name.value);
                section.source().mistake(name.span, message);
            }
        }
    }
    for at in [&path, &body].into_iter().flatten() {
        if let Err(error) = template::check(&at.value) {
            section.source().mistake(at.span.clone(), error);
        }
    }
    section.finish();
    let (path, body) = (path?.value, body.map(|at| at.value));
    let usual = if body.is_some() {
        Method::POST
    } else {
        Method::GET
    };
    let method = method.map_or(usual, |at| at.value);
    Some(Endpoint {
        name: name.map_or_else(|| format!("{method} {path}"), |at| at.value),
        method,
        path,
        headers,
        body,
        weight: weight.unwrap_or(1) as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> String {
        let mistakes = scenario("t.toml", text, &|_| None).unwrap_err();
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    #[test]
    fn a_scenario_of_ones_own_is_read() {
        let text = "name = \"mine\"\nmodel = \"open\"\n[[stage]]\nlasts = \"10s\"\nrate = \
            100\n[[request]]\npath = \"/a?x={{n}}\"\nweight = 3\nheaders = { accept \
            = \"text/html\" }\n[[request]]\npath = \"/b\"\nbody = \"{}\"\n";
        let read = scenario("t.toml", text, &|_| None).unwrap();
        assert_eq!((read.model, read.endpoints.len()), (Model::Open, 2));
        assert_eq!(read.endpoints[1].method, Method::POST);
        assert_eq!(read.endpoints[0].name, "GET /a?x={{n}}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, says) in [
            (
                "[[stage]]\nlasts = \"1s\"\nusers = 1\nrate = 2\n",
                "expected users",
            ),
            (
                "model = \"open\"\n[[stage]]\nlasts = \"1s\"\nusers = 1\n",
                "expected rate",
            ),
            ("[[stage]]\nlasts = \"soon\"\nusers = 1\n", "t.toml:2:9"),
            (
                "[[stage]]\nlasts = \"1s\"\nusers = \"two\"\n",
                "expected a number",
            ),
            (
                "[[stage]]\nlasts = \"0s\"\nusers = 1\n",
                "no [[stage]] that lasts",
            ),
            ("[[stages]]\n", "did you mean \"stage\""),
            (
                "think = [\"2s\", \"1s\"]\n[[stage]]\nlasts = \"1s\"\nusers = 1\n",
                "is more than",
            ),
            (
                "[[stage]]\nlasts = \"1s\"\nusers = 1\n[[request]]\npath = \"a\"\n",
                "begins with",
            ),
            (
                "[[stage]]\nlasts = \"1s\"\nusers = 1\n[[request]]\npath = \"/{{x}}\"\n",
                "{{x}}",
            ),
            (
                "[[stage]]\nlasts = \"1s\"\nusers = 1\n[[request]]\npath = \"/\"\nweight = 0\n",
                "every weight",
            ),
        ] {
            let told = mistakes(text);
            assert!(told.contains(says), "{text}: {told}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = "model = \"ajar\"\n[[stage]]\nlasts = \"soon\"\nusers = 1\n[[request]]\npath \
            = \"a\"\nmethod = \"G T\"\n[[request]]\npth = \"/\"\n";
        let told = mistakes(text);
        for place in [
            "t.toml:1:",
            "t.toml:3:",
            "t.toml:6:",
            "t.toml:7:",
            "t.toml:9:",
        ] {
            assert!(told.contains(place), "{place}: {told}");
        }
    }

    #[test]
    fn a_list_of_requests_is_read_and_nothing_else() {
        let text = "[[request]]\npath = \"/a\"\nweight = 3\n[[request]]\npath = \"/b\"\n";
        let read = requests("t.toml", text, &|_| None).unwrap();
        assert_eq!((read.len(), read[0].weight, read[1].weight), (2, 3, 1));
        assert!(requests("t.toml", "", &|_| None).is_err());
        assert!(requests("t.toml", "[[stage]]\n", &|_| None).is_err());
    }
}
