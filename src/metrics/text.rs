//! The registry's text as a scraper asks for it: OpenMetrics, or the classic format of Prometheus;
//! with twins in seconds of the histograms that operators already chart in milliseconds.

use std::fmt::Write as _;

/// A format of exposition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    /// What every scraper and every person reads.
    #[default]
    Classic,
}

impl Format {
    /// The format that an `Accept` asks for; OpenMetrics only where it is named (RFC 9110 §12.5.1).
    pub fn of(accept: Option<&str>) -> Self {
        let mut best = (0.0, Self::Classic);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default() {
                "application/openmetrics-text" => Self::OpenMetrics,
                "text/plain" | "text/*" | "*/*" => Self::Classic,
                _ => continue,
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
            let weight: f32 = weight.unwrap_or(1.0);
            let is_better = weight > best.0 || (weight >= best.0 && format == Self::OpenMetrics);
            if weight > 0.0 && is_better {
                best = (weight, format);
            }
        }
        best.1
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A family in the text of a registry: its lines.
struct Family<'t> {
    name: &'t str,
    kind: &'t str,
    help: &'t str,
    samples: Vec<&'t str>,
}

/// The text in a format, with the twins in seconds.
pub fn in_format(text: &str, format: Format) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for family in families(text) {
        write_family(
            &mut out,
            &family,
            family.name,
            family.samples.iter().copied(),
            format,
        );
        let is_time = matches!(family.kind, "histogram" | "gauge");
        let Some(base) = family.name.strip_suffix("_ms").filter(|_| is_time) else {
            continue;
        };
        let twin = format!("{base}_seconds");
        let samples: Vec<String> = family
            .samples
            .iter()
            .filter_map(|line| in_seconds(line, family.name, &twin))
            .collect();
        write_family(
            &mut out,
            &family,
            &twin,
            samples.iter().map(String::as_str),
            format,
        );
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn families(text: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            families.push(Family {
                name,
                help,
                kind: "unknown",
                samples: Vec::new(),
            });
        } else if let (Some(rest), Some(family)) =
            (line.strip_prefix("# TYPE "), families.last_mut())
        {
            family.kind = rest.split_once(' ').map_or("unknown", |(_, kind)| kind);
        } else if let (false, Some(family)) = (line.starts_with('#'), families.last_mut()) {
            family.samples.push(line);
        }
    }
    families
}

fn write_family<'l>(
    out: &mut String,
    family: &Family<'_>,
    name: &str,
    samples: impl Iterator<Item = &'l str>,
    format: Format,
) {
    let help = if name == family.name {
        family.help.to_owned()
    } else {
        let help = family.help.trim_end_matches('.');
        format!("{}, in seconds", help.replacen("Milliseconds", "Time", 1))
    };
    let (shown, kind) = match (format, family.kind) {
        // There the name of a family is that of its samples.
        (Format::Classic, "counter") => (format!("{name}_total"), "counter"),
        (Format::Classic, "info") => (format!("{name}_info"), "gauge"),
        (Format::Classic, "unknown") => (name.to_owned(), "untyped"),
        (_, kind) => (name.to_owned(), kind),
    };
    let _ = writeln!(out, "# HELP {shown} {help}\n# TYPE {shown} {kind}");
    for line in samples {
        out.push_str(line);
        out.push('\n');
    }
}

/// A sample in milliseconds, of a histogram or a gauge, as one in seconds.
fn in_seconds(line: &str, name: &str, twin: &str) -> Option<String> {
    let rest = line.strip_prefix(name)?;
    let (series, value) = rest.rsplit_once(' ')?;
    let seconds = |text: &str| Some(text.parse::<f64>().ok()? / 1000.0);
    let is_gauge = series.is_empty() || series.starts_with('{');
    if series.starts_with("_sum") || is_gauge {
        return Some(format!("{twin}{series} {}", seconds(value)?));
    }
    let Some(bound) = series.strip_prefix("_bucket{le=\"") else {
        return Some(format!("{twin}{series} {value}"));
    };
    let (bound, after) = bound.split_once('"')?;
    let bound = match bound {
        "+Inf" => bound.to_owned(),
        bound => format!("{:?}", seconds(bound)?),
    };
    Some(format!("{twin}_bucket{{le=\"{bound}\"{after} {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a Things.\n# TYPE a counter\na_total{x=\"1\"} 2\n# HELP d_ms \
        Milliseconds of it.\n# TYPE d_ms histogram\nd_ms_sum{p=\"/\"} \
        1500.0\nd_ms_count{table=\"t\",p=\"/\"} 3\nd_ms_bucket{le=\"0.1\",p=\"/\"} \
        1\nd_ms_bucket{le=\"+Inf\",p=\"/\"} 3\n# HELP build Build.\n# TYPE build \
        info\nbuild_info{version=\"1\"} 1\n# EOF\n";

    #[test]
    fn each_format_has_its_names_and_histograms_a_twin_in_seconds() {
        let classic = in_format(TEXT, Format::Classic);
        for line in [
            "# TYPE a_total counter",
            "a_total{x=\"1\"} 2",
            "# TYPE d_ms histogram",
            "# HELP d_seconds Time of it, in seconds",
            "d_seconds_sum{p=\"/\"} 1.5",
            "d_seconds_count{table=\"t\",p=\"/\"} 3",
            "d_seconds_bucket{le=\"0.0001\",p=\"/\"} 1",
            "d_seconds_bucket{le=\"+Inf\",p=\"/\"} 3",
            "# TYPE build_info gauge",
        ] {
            assert!(
                classic.lines().any(|known| known == line),
                "{line} in\n{classic}"
            );
        }
        assert!(!classic.contains("EOF"));
        let open = in_format(TEXT, Format::OpenMetrics);
        assert!(
            open.contains("# TYPE a counter\n") && open.ends_with("# EOF\n"),
            "{open}"
        );
        assert!(open.contains("# TYPE build info\n"));
    }

    #[test]
    fn an_accept_decides_and_openmetrics_must_be_named() {
        for (accept, format) in [
            (None, Format::Classic),
            (Some("*/*"), Format::Classic),
            (Some("text/html"), Format::Classic),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (
                Some(
                    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
                ),
                Format::OpenMetrics,
            ),
            (
                Some("application/openmetrics-text;q=0.2,text/plain;q=0.9"),
                Format::Classic,
            ),
            (Some("application/openmetrics-text;q=0"), Format::Classic),
        ] {
            assert_eq!(Format::of(accept), format, "{accept:?}");
        }
    }
}
