//! A report as one page: figures, and charts as SVG in it, so that it can be sent around and needs
//! neither a script nor the network.

use std::fmt::Write as _;

use plotters::prelude::*;

use super::report::{BOUNDS, Named, Report, percent, shown};

const WIDTH: u32 = 920;
const HEIGHT: u32 = 280;

/// Colours that are told apart on light and on dark; the charts' black becomes the page's own.
const BLUE: RGBColor = RGBColor(0x3b, 0x82, 0xf6);
const ORANGE: RGBColor = RGBColor(0xf5, 0x8c, 0x1f);
const RED: RGBColor = RGBColor(0xe2, 0x4a, 0x4a);
const GREEN: RGBColor = RGBColor(0x2f, 0xa8, 0x6e);

const STYLE: &str = "
:root { color-scheme: light dark; --fore: #1d232b; --back: #ffffff; --soft: #68727f; --line: #d9dee4; }
@media (prefers-color-scheme: dark) { :root { --fore: #e6e9ee; --back: #14181d; --soft: #98a2ae; --line: #353c45; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--fore); background: var(--back); max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, .soft { color: var(--soft); } svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line); } th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } .met { color: #2fa86e; } .missed { color: #e24a4a; font-weight: 600; }
";

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n<title>{name} against {target}</title><style>{STYLE}</style></head><body>\n<h1>{name}</h1><p>against {target}, {started}, {seconds:.1} s, iris-sidecar {version}{interrupted}</p>\n",
        name = escaped(&report.name),
        target = escaped(&report.target),
        started = escaped(&report.started),
        seconds = report.seconds,
        version = escaped(&report.version),
        interrupted = if report.interrupted {
            " · <strong>ended before its time</strong>"
        } else {
            ""
        },
    );
    judged(report, &mut page);
    endpoints(report, &mut page);
    let mut chart = |title: &str, drawn: Option<String>| {
        if let Some(svg) = drawn {
            let _ = write!(page, "<h2>{title}</h2>\n{svg}\n");
        }
    };
    chart("Latency over time, ms", latency(report));
    chart("Requests a second, and users", throughput(report));
    chart("Answers by latency, ms", histogram(report));
    chart("Answers by status", statuses(report));
    let _ = write!(page, "<p>{}</p>", escaped(&report.model));
    if let (Some(p99), Some(max)) = (report.lag_p99, report.lag_max) {
        let _ = write!(
            page,
            "<p>The generator itself was late by {} ms at the 99th percentile, {} ms at most.</p>",
            shown(p99),
            shown(max)
        );
    }
    page.push_str("</body></html>\n");
    page
}

fn judged(report: &Report, page: &mut String) {
    if report.judged.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Targets</h2><table><tr><th></th><th>wanted</th><th>found</th><th></th></tr>",
    );
    for one in &report.judged {
        let found = one
            .found
            .map_or("–".to_owned(), |found| match one.name.as_str() {
                "error rate" | "hit rate" | "rate limit" => percent(found),
                _ => shown(found),
            });
        let word = one.outcome.shown();
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{found}</td><td class=\"{}\">{word}</td></tr>",
            escaped(&one.name),
            escaped(&one.wanted),
            word.replace(' ', "-")
        );
    }
    page.push_str("</table>\n");
}

fn endpoints(report: &Report, page: &mut String) {
    page.push_str("<h2>Requests</h2><div class=\"wide\"><table><tr><th></th><th>requests</th><th>req/s</th><th>p50</th><th>p90</th><th>p95</th><th>p99</th><th>p99.9</th><th>max</th><th>mean</th><th>errors</th><th>hits</th><th>304</th></tr>");
    let total = Named {
        name: "all".to_owned(),
        figures: report.total.clone(),
    };
    for Named { name, figures } in report.endpoints.iter().chain([&total]) {
        let millis = |value: Option<f64>| value.map_or("–".to_owned(), shown);
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(name),
            figures.requests,
            figures.throughput,
            millis(figures.p50),
            millis(figures.p90),
            millis(figures.p95),
            millis(figures.p99),
            millis(figures.p999),
            millis(figures.max),
            millis(figures.mean),
            percent(figures.error_rate),
            figures.hit_rate.map_or("–".to_owned(), percent),
            figures.not_modified,
        );
    }
    page.push_str("</table></div>\n");
    let causes = report.total.causes.iter();
    let causes: Vec<String> = causes
        .map(|(cause, count)| format!("{cause}: {count}"))
        .collect();
    if !causes.is_empty() {
        let _ = write!(page, "<p>Failed: {}</p>", escaped(&causes.join(", ")));
    }
}

/// A line: its name, its colour, and its points.
type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

fn latency(report: &Report) -> Option<String> {
    let line = |name, colour, of: fn(&super::report::Point) -> Option<f64>| -> Line {
        let points = report.over_time.iter();
        let points = points.filter_map(|point| Some((point.at, of(point)?)));
        (name, colour, points.collect())
    };
    lines(&[
        line("p50", GREEN, |point| point.p50),
        line("p95", ORANGE, |point| point.p95),
        line("p99", RED, |point| point.p99),
    ])
}

fn throughput(report: &Report) -> Option<String> {
    let line = |name, colour, of: fn(&super::report::Point) -> f64| -> Line {
        let points = report.over_time.iter();
        (
            name,
            colour,
            points.map(|point| (point.at, of(point))).collect(),
        )
    };
    lines(&[
        line("requests a second", BLUE, |point| point.requests as f64),
        line("errors a second", RED, |point| point.errors as f64),
        line(
            if report.model.starts_with("open") {
                "requests a second, wanted"
            } else {
                "users"
            },
            GREEN,
            |point| point.users,
        ),
    ])
}

/// `None` where there is nothing to draw.
fn lines(lines: &[Line]) -> Option<String> {
    let points = || lines.iter().flat_map(|(_, _, points)| points);
    let until = points().map(|(at, _)| *at).fold(0.0, f64::max);
    let most = points().map(|(_, value)| *value).fold(0.0, f64::max);
    if points().count() < 2 || until <= 0.0 {
        return None;
    }
    drawn(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(28)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..until, 0.0..(most * 1.3).max(0.001))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .x_label_formatter(&|seconds| match until {
                ..20.0 => format!("{seconds:.1} s"),
                _ => format!("{seconds:.0} s"),
            })
            .label_style(("sans-serif", 13))
            .draw()?;
        for (name, colour, points) in lines {
            let style = ShapeStyle::from(colour).stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(("sans-serif", 13))
            .draw()?;
        Ok(())
    })
}

fn histogram(report: &Report) -> Option<String> {
    let first = report.histogram.iter().position(|count| *count > 0)?;
    let last = report.histogram.iter().rposition(|count| *count > 0)?;
    let name = |at: usize| match BOUNDS.get(at) {
        Some(bound) => format!("≤ {bound}"),
        None => format!("> {}", BOUNDS[BOUNDS.len() - 1]),
    };
    let bars = (first..=last).map(|at| (name(at), report.histogram[at], BLUE));
    self::bars(&bars.collect::<Vec<_>>())
}

fn statuses(report: &Report) -> Option<String> {
    let colour = |status: &str| match status.as_bytes().first() {
        Some(b'1' | b'2') => GREEN,
        Some(b'3') => BLUE,
        Some(b'4') => ORANGE,
        _ => RED,
    };
    let answered = report.total.statuses.iter();
    let answered = answered.map(|(status, count)| (status.clone(), *count, colour(status)));
    let failed = report.total.causes.iter();
    let failed = failed.map(|(cause, count)| (cause.clone(), *count, RED));
    bars(&answered.chain(failed).collect::<Vec<_>>())
}

fn bars(bars: &[(String, u64, RGBColor)]) -> Option<String> {
    let most = bars.iter().map(|(_, count, _)| *count).max()?;
    drawn(|area| {
        let last = bars.len() as u32 - 1;
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(28)
            .y_label_area_size(56)
            .build_cartesian_2d((0..last).into_segmented(), 0_u64..most + most / 10 + 1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .x_labels(bars.len())
            .x_label_formatter(&|place| match place {
                SegmentValue::CenterOf(at) => bars
                    .get(*at as usize)
                    .map_or_else(String::new, |(name, _, _)| name.clone()),
                _ => String::new(),
            })
            .label_style(("sans-serif", 13))
            .draw()?;
        chart.draw_series(bars.iter().enumerate().map(|(at, (_, count, colour))| {
            let (from, to) = (
                SegmentValue::Exact(at as u32),
                SegmentValue::Exact(at as u32 + 1),
            );
            let mut bar = Rectangle::new([(from, 0), (to, *count)], colour.filled());
            bar.set_margin(0, 0, 6, 6);
            bar
        }))?;
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawing = Result<(), Box<dyn std::error::Error>>;

/// An SVG that takes its black from the page.
fn drawn(draw: impl FnOnce(&Area<'_>) -> Drawing) -> Option<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        draw(&area).ok()?;
        area.present().ok()?;
    }
    let svg = svg.replace("#000000", "currentColor");
    let begin = svg.find("<svg")?;
    let size = format!("<svg width=\"{WIDTH}\" height=\"{HEIGHT}\"");
    Some(svg[begin..].replacen(&size, "<svg role=\"img\"", 1))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
