//! A configuration as it takes effect: a block for the whole, and one for each route, in the order
//! in which they are tried. Nothing is wider than a terminal.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, TableStyle};

use crate::config::units::{show_duration, show_size};
use crate::config::{Config, LimitBy, OnDifference, RateLimit, Redis, Route, Scope, VerdictSource};
use crate::error::without_passwords;
use crate::policy::key::QueryRule;
use crate::policy::{Cookies, Invalidation, Options, Share, invalidate};

/// Columns of a terminal that nobody has made wider.
const WIDTH: u16 = 80;

/// What a word stands for, in lines of a block.
type Lines = Vec<(&'static str, String)>;

/// The whole configuration.
pub fn shown(config: &Config) -> String {
    let mut text = block(&whole(config));
    let mut routes: Vec<&Route> = config.routes.list().iter().map(|route| &**route).collect();
    routes.sort_by_key(|route| specificity(route));
    for route in routes {
        let methods: Vec<&str> = route.methods.iter().map(http::Method::as_str).collect();
        let host = route.host.as_deref().unwrap_or_default();
        let _ = write!(
            text,
            "\n{} {host}{}  (line {})\n{}",
            methods.join(" "),
            route.path,
            route.line,
            block(&of_route(config, route))
        );
    }
    text.push_str("\nWhat matches no route is proxied and never stored.\n");
    text
}

fn block(lines: &Lines) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    for (name, value) in lines {
        table.add_row([format!(" {name}"), value.clone()]);
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned() + "\n");
    lines.collect()
}

fn whole(config: &Config) -> Lines {
    let upstream = config.upstream.as_ref();
    let upstream = upstream.map_or("the built-in origin".to_owned(), |upstream| {
        upstream.shown()
    });
    let mut lines = vec![
        ("listen", config.listen.shown()),
        ("admin", config.admin.address.to_string()),
        ("upstream", upstream),
    ];
    for (name, named) in &config.upstreams {
        lines.push(("upstream", format!("{name}: {}", named.shown())));
    }
    lines.push(("memory", show_size(config.cache.memory)));
    lines.extend(
        config
            .cache
            .redis
            .as_ref()
            .map(|redis| ("redis", of_redis(redis))),
    );
    let routes = config.routes.list();
    if routes
        .iter()
        .any(|route| route.options.share == Share::Verified)
    {
        lines.push(("keys", of_keys(config)));
        lines.push(("proof", of_proof(config)));
    }
    lines.extend(
        config
            .rate_limits
            .iter()
            .map(|limit| ("limit", of_limit(limit))),
    );
    lines
}

fn of_redis(redis: &Redis) -> String {
    format!(
        "{}, keys {}*; waited for {}, then the origin is asked",
        without_passwords(&redis.url),
        redis.prefix,
        show_duration(redis.timeout)
    )
}

fn of_keys(config: &Config) -> String {
    let auth = &config.auth;
    let by = match &auth.source {
        VerdictSource::Origin => "the API's own answer to it".to_owned(),
        VerdictSource::Table => "the key table of [origin] database".to_owned(),
        VerdictSource::Url(url) => without_passwords(url.as_str()),
    };
    format!(
        "good by {by}, for {}; while that fails, for {} more",
        show_duration(auth.good_ttl),
        show_duration(auth.grace)
    )
}

fn of_proof(config: &Config) -> String {
    let auth = &config.auth;
    let controls = match auth.control {
        Some(every) => format!(
            "a random key and none are tried every {}",
            show_duration(every)
        ),
        None => "no controls".to_owned(),
    };
    let on_difference = match auth.on_difference {
        OnDifference::Off => "differences are not looked for".to_owned(),
        OnDifference::Warn => "answers that differ by key are warned of".to_owned(),
        OnDifference::Demote => "answers that differ by key are not shared".to_owned(),
    };
    format!("{controls}; {on_difference}")
}

fn of_limit(limit: &RateLimit) -> String {
    let by = match limit.by {
        LimitBy::Address => "address",
        LimitBy::Key => "key",
    };
    let path = limit.path.as_ref();
    let path = path.map_or_else(String::new, |path| format!(" of {path}"));
    let window = show_duration(limit.window);
    format!(
        "{} requests{path} in {window} for each {by}",
        limit.requests
    )
}

fn of_route(config: &Config, route: &Route) -> Lines {
    let options = &route.options;
    let mut lines = Lines::new();
    lines.extend(
        route
            .upstream
            .as_ref()
            .map(|name| ("upstream", name.to_string())),
    );
    // What is stored, and how, means nothing where nothing is looked up.
    if route.methods.iter().any(invalidate::is_safe) {
        lines.extend(of_reads(config, route));
    }
    for (name, wanted) in [
        ("makes stale", Invalidation::Soft),
        ("purges", Invalidation::Hard),
        (
            "purges, or makes stale when written fast",
            Invalidation::Adaptive,
        ),
    ] {
        let groups = route.invalidates.iter().filter(|(_, how)| *how == wanted);
        let groups: Vec<&str> = groups.map(|(name, _)| &**name).collect();
        if !groups.is_empty() {
            lines.push((name, groups.join(", ")));
        }
    }
    if options.bypass {
        lines.push(("bypass", "nothing is looked up or stored".to_owned()));
    }
    lines
}

fn of_reads(config: &Config, route: &Route) -> Lines {
    let options = &route.options;
    let mut lines = vec![
        ("lifetime", lifetime(options)),
        ("stale", stale(options)),
        ("share", share(config, route)),
        ("query", query(route)),
        ("cookies", cookies(options.cookies)),
    ];
    if let Some(groups) = &options.groups {
        let names: Vec<String> = groups.iter().map(ToString::to_string).collect();
        lines.push(("groups", names.join(", ")));
    }
    if let Some(when) = &options.error_when {
        lines.push((
            "failure is",
            format!("{} = {} in a 2xx", when.pointer, when.equals),
        ));
    }
    lines
}

fn joined(parts: impl IntoIterator<Item = Option<String>>) -> String {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "the origin's".to_owned()
    } else {
        parts.join(", ")
    }
}

fn lifetime(options: &Options) -> String {
    let named =
        |time: Option<Duration>, say: fn(String) -> String| time.map(show_duration).map(say);
    joined([
        named(options.force_ttl, |ttl| {
            format!("{ttl}, whatever the origin says")
        }),
        named(options.ttl.filter(|_| options.force_ttl.is_none()), |ttl| {
            format!("the origin's, else {ttl}")
        }),
        named(options.max_ttl, |ttl| format!("at most {ttl}")),
        named(options.error_ttl, |ttl| format!("errors {ttl}")),
    ])
}

fn stale(options: &Options) -> String {
    let named =
        |time: Option<Duration>, say: fn(String) -> String| time.map(show_duration).map(say);
    joined([
        named(options.stale_while_revalidate, |time| {
            format!("{time} while it is refreshed")
        }),
        named(options.stale_if_error, |time| {
            format!("{time} when the origin fails")
        }),
    ])
}

fn share(config: &Config, route: &Route) -> String {
    match route.options.share {
        Share::Standard => {
            "standard: by the RFCs, so nothing with a credential unless the origin allows it"
                .to_owned()
        }
        Share::PerKey => "per-key: each key has its own answers".to_owned(),
        Share::Verified => {
            let holds = match route.verdict_scope {
                Scope::Url => "for its URL",
                Scope::Route => "on this route",
                Scope::All => "on all routes with verdict_scope = \"all\"",
            };
            let proved = match config.auth.on_difference {
                OnDifference::Demote => " once two keys' answers agreed",
                OnDifference::Warn | OnDifference::Off => "",
            };
            format!("verified: one answer for all good keys{proved}; a key is good {holds}")
        }
    }
}

fn query(route: &Route) -> String {
    let others = if route.drops_unknown_query {
        "others are not sent on"
    } else {
        "a request with others is not looked up"
    };
    match &route.query {
        QueryRule::All => "all".to_owned(),
        QueryRule::None => format!("none; {others}"),
        QueryRule::Names(names) => format!("{}; {others}", names.join(", ")),
    }
}

fn cookies(cookies: Cookies) -> String {
    match cookies {
        Cookies::Bypass => "bypass: a request with one is not looked up",
        Cookies::Ignore => "ignore: they do not reach the origin",
        Cookies::Key => "key: each has its own answers",
        Cookies::Store => "store: as if there were none",
    }
    .to_owned()
}

/// Hosts before none, named before wildcard; then literal path segments before patterns.
fn specificity(route: &Route) -> (u8, Vec<(u8, &str)>) {
    let host = match &route.host {
        Some(host) if host.starts_with("*.") => 1,
        Some(_) => 0,
        None => 2,
    };
    let segments = route.path.split('/').map(|segment| match segment {
        segment if segment.contains("{*") => (2, segment),
        segment if segment.contains('{') => (1, segment),
        segment => (0, segment),
    });
    (host, segments.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_stand_in_the_order_in_which_they_are_tried() {
        let text = "[[route]]\npath = \"/{*rest}\"\n[[route]]\npath = \"/a/{x}\"\n[[route]]\npath \
            = \"/a/b\"\nttl = \"30s\"\n[[route]]\npath = \"/{*rest}\"\nhost = \"h.example\"\n";
        let config = Config::parse("t", text, &|_| None).unwrap();
        let shown = shown(&config);
        let begins: Vec<&str> = shown
            .lines()
            .filter(|line| line.starts_with("GET"))
            .collect();
        assert_eq!(
            begins,
            [
                "GET HEAD h.example/{*rest}  (line 8)",
                "GET HEAD /a/b  (line 5)",
                "GET HEAD /a/{x}  (line 3)",
                "GET HEAD /{*rest}  (line 1)"
            ],
            "{shown}"
        );
        assert!(shown.contains("the origin's, else 30s"), "{shown}");
    }

    #[test]
    fn nothing_is_wider_than_a_terminal_and_writes_have_no_lifetime() {
        let names: Vec<String> = (0..40)
            .map(|number| format!("\"parameter{number}\""))
            .collect();
        let text = format!(
            "[auth]\nsource = \"http://127.0.0.1:1/me\"\n[cache.redis]\nurl \
                = \"redis://:secret@127.0.0.1:1\"\n[[rate_limit]]\nby = \"key\"\nrequests = \
                5\nwindow = \"1m\"\n[[route]]\npath = \"/a\"\nttl = \"1s\"\nshare \
                = \"verified\"\nquery = [{}]\ngroups = [\"g\"]\nerror_when = {{ pointer = \"/x\", \
                equals = 0 }}\n[[route]]\npath = \"/w\"\nmethods = [\"POST\"]\ninvalidates = \
                [\"g\"]\npurges = [\"h\"]\n",
            names.join(", ")
        );
        let config = Config::parse("t", &text, &|_| None).unwrap();
        let shown = shown(&config);
        for line in shown.lines() {
            assert!(line.chars().count() <= usize::from(WIDTH), "{line}");
        }
        assert!(!shown.contains("secret"), "{shown}");
        for word in [
            "parameter39",
            "groups",
            "/x = 0",
            "makes stale",
            "5 requests in 1m for each key",
            "redis",
            "proof",
        ] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        let (_, write) = shown.split_once("POST /w").unwrap();
        assert!(
            !write.contains("lifetime") && write.contains("purges"),
            "{write}"
        );
    }
}
