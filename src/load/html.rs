//! A report as one page: figures, and charts as SVG in it, so that it can be sent around and needs
//! neither a script nor the network.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotters::prelude::*;

use super::figure::{HEADER, percent, shown};
use super::report::{BOUNDS, Named, Report};

/// Width and height of a chart, and the size of its letters: of a page that is wide, and of a
/// narrow one.
const SIZES: [(&str, u32, u32, u32); 2] = [("on-wide", 920, 280, 13), ("on-narrow", 368, 260, 12)];

/// Colours that are told apart on light and on dark; the charts' black becomes the page's own.
const BLUE: RGBColor = RGBColor(0x3b, 0x82, 0xf6);
const ORANGE: RGBColor = RGBColor(0xf5, 0x8c, 0x1f);
const RED: RGBColor = RGBColor(0xe2, 0x4a, 0x4a);
const GREEN: RGBColor = RGBColor(0x2f, 0xa8, 0x6e);

const STYLE: &str = "
:root { color-scheme: light dark; --fore: #1d232b; --back: #ffffff; --soft: #5a646f; --line: #d9dee4; }
@media (prefers-color-scheme: dark) { :root { --fore: #e6e9ee; --back: #14181d; --soft: #98a2ae; --line: #353c45; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--fore); background: var(--back); max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { color: var(--soft); overflow-wrap: anywhere; } svg { width: 100%; height: auto; }
.on-narrow { display: none; }
table { border-collapse: collapse; min-width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; white-space: nowrap; padding: .3rem .5rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back); max-width: 15rem; overflow: hidden; text-overflow: ellipsis; }
.wide { overflow-x: auto; } .met { color: #23865a; } .missed { color: #d23b3b; font-weight: 600; }
@media (max-width: 600px) { .on-wide { display: none; } .on-narrow { display: block; } body { margin: 1rem auto; } th, td { padding: .3rem; } th:first-child, td:first-child { max-width: 8rem; } }
";

/// The whole page.
pub fn page(report: &Report) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (report.name) ": " (report.target) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (report.name) }
                p {
                    "against " (report.target) ", " (report.started) ", " (format!("{:.1} s", report.seconds))
                    ", iris-sidecar " (report.version)
                    @if report.interrupted { " · " strong { "ended before its time" } }
                }
                (targets(report))
                (comparison(report))
                (requests(report))
                (chart("Latency over time, ms", |size| latency(report, size)))
                (chart("Requests a second", |size| throughput(report, size)))
                (chart("Users", |size| users(report, size)))
                (chart("Answers by latency, ms", |size| histogram(report, size)))
                (chart("Answers by status", |size| statuses(report, size)))
                p { (report.model) }
                @if let (Some(p99), Some(max)) = (report.lag_p99, report.lag_max) {
                    p {
                        "The generator itself was late by " (shown(p99)) " ms at the 99th \
                            percentile, "
                        (shown(max)) " ms at most."
                    }
                }
            }
        }
    };
    page.into_string()
}

fn targets(report: &Report) -> Markup {
    html! {
        @if !report.judged.is_empty() {
            h2 { "Targets" }
            div.wide { table {
                tr { th {} th { "wanted" } th { "found" } th {} }
                @for one in &report.judged {
                    @let word = one.outcome.shown();
                    tr {
                        td { (one.name) } td { (one.wanted) } td { (one.shown()) }
                        td class=(word.replace(' ', "-")) { (one.verdict()) }
                    }
                }
            } }
        }
    }
}

fn comparison(report: &Report) -> Markup {
    html! {
        @if let Some(compared) = &report.compared {
            h2 { "Before and after" }
            p { "Before is " (compared.baseline) ", after is " (report.target) "; asked in turn, \
                in one run." }
            div.wide { table {
                tr { @for title in HEADER { th { (title) } } }
                @for one in &compared.figures {
                    tr { @for cell in one.row() { td { (cell) } } }
                }
            } }
        }
    }
}

fn requests(report: &Report) -> Markup {
    let total = Named {
        name: "all".to_owned(),
        figures: report.total.clone(),
    };
    let millis = |value: Option<f64>| value.map_or("–".to_owned(), shown);
    let causes = report.total.causes.iter();
    let causes: Vec<String> = causes
        .map(|(cause, count)| format!("{cause}: {count}"))
        .collect();
    html! {
        h2 { "Requests; latencies in ms" }
        div.wide { table {
            tr {
                @for title in ["", "requests", "req/s", "p50", "p90", "p95", "p99", "p99.9", "max", "mean", "errors", "hits", "304"] {
                    th { (title) }
                }
            }
            @for Named { name, figures } in report.endpoints.iter().chain([&total]) {
                tr {
                    td title=(name) { (name) } td { (figures.requests) } td { (format!("{:.1}", figures.throughput)) }
                    @for value in [figures.p50, figures.p90, figures.p95, figures.p99, figures.p999, figures.max, figures.mean] {
                        td { (millis(value)) }
                    }
                    td { (percent(figures.error_rate)) }
                    td { (figures.hit_rate.map_or("–".to_owned(), percent)) }
                    td { (figures.not_modified) }
                }
            }
        } }
        @if !causes.is_empty() { p { "Failed: " (causes.join(", ")) } }
    }
}

/// One chart, drawn for each width; nothing where there is nothing to draw.
fn chart(title: &str, draw: impl Fn(Size) -> Option<String>) -> Markup {
    let drawn = SIZES.map(|(class, width, height, letters)| {
        let size = Size {
            width,
            height,
            letters,
        };
        draw(size).map(|svg| (class, svg))
    });
    html! {
        @if drawn.iter().any(Option::is_some) {
            h2 { (title) }
            @for (class, svg) in drawn.into_iter().flatten() {
                div class=(class) { (PreEscaped(svg)) }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Size {
    width: u32,
    height: u32,
    letters: u32,
}

/// A line: its name, its colour, how thick it is, and its points.
struct Line {
    name: &'static str,
    style: ShapeStyle,
    points: Vec<(f64, f64)>,
}

fn line(
    report: &Report,
    name: &'static str,
    style: impl Into<ShapeStyle>,
    of: fn(&super::report::Point) -> Option<f64>,
) -> Line {
    let points = report.over_time.iter();
    let points = points.filter_map(|point| Some((point.at, of(point)?)));
    Line {
        name,
        style: style.into().stroke_width(2),
        points: points.collect(),
    }
}

fn latency(report: &Report, size: Size) -> Option<String> {
    let all = [
        line(report, "p50", GREEN, |point| point.p50),
        line(report, "p95", ORANGE, |point| point.p95),
        line(report, "p99", RED, |point| point.p99),
    ];
    lines(&all, size)
}

fn throughput(report: &Report, size: Size) -> Option<String> {
    // Broad, and beneath: where all of them fail, or come as they are wanted, each line is seen.
    let is_open = is_open(report);
    let wanted = is_open.then(|| {
        let line = line(report, "wanted", GREEN.mix(0.35), |point| Some(point.users));
        let style = line.style.stroke_width(7);
        Line { style, ..line }
    });
    let asked = |point: &super::report::Point| Some(point.requests as f64);
    let mut asked = line(report, "requests", BLUE, asked);
    asked.style = asked.style.stroke_width(4);
    let failed = |point: &super::report::Point| Some(point.errors as f64);
    let failed = line(report, "errors", RED, failed);
    let all: Vec<Line> = wanted.into_iter().chain([asked, failed]).collect();
    lines(&all, size)
}

/// Virtual users, where there are any.
fn users(report: &Report, size: Size) -> Option<String> {
    let users = line(report, "users", GREEN, |point| Some(point.users));
    (!is_open(report)).then(|| lines(&[users], size))?
}

fn is_open(report: &Report) -> bool {
    report.model.starts_with("open")
}

/// `None` where there is nothing to draw.
fn lines(lines: &[Line], size: Size) -> Option<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let until = points().map(|(at, _)| *at).fold(0.0, f64::max);
    let most = points().map(|(_, value)| *value).fold(0.0, f64::max);
    if points().count() < 2 || until <= 0.0 {
        return None;
    }
    drawn(size, |area| {
        let letters = ("sans-serif", size.letters);
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            // Half of the last label stands there.
            .margin_right(size.letters * 2)
            .x_label_area_size(28)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..until, 0.0..(most * 1.4).max(0.001))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .x_labels(size.width as usize / 70)
            .y_labels(6)
            .x_label_formatter(&|seconds| match until {
                ..20.0 => format!("{seconds:.1} s"),
                _ => format!("{seconds:.0} s"),
            })
            .y_label_formatter(&|value| match most {
                ..0.1 => format!("{value:.3}"),
                ..10.0 => format!("{value:.1}"),
                _ => format!("{value:.0}"),
            })
            .label_style(letters)
            .draw()?;
        for Line {
            name,
            style,
            points,
        } in lines
        {
            let style = *style;
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(letters)
            .draw()?;
        Ok(())
    })
}

fn histogram(report: &Report, size: Size) -> Option<String> {
    let first = report.histogram.iter().position(|count| *count > 0)?;
    let last = report.histogram.iter().rposition(|count| *count > 0)?;
    let name = |at: usize| match BOUNDS.get(at) {
        Some(bound) => format!("≤ {bound}"),
        None => format!("> {}", BOUNDS[BOUNDS.len() - 1]),
    };
    let bars = (first..=last).map(|at| (name(at), report.histogram[at], BLUE));
    self::bars(&bars.collect::<Vec<_>>(), size)
}

fn statuses(report: &Report, size: Size) -> Option<String> {
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
    bars(&answered.chain(failed).collect::<Vec<_>>(), size)
}

/// What a label takes at most, in pixels.
const LABEL: u32 = 52;

fn bars(bars: &[(String, u64, RGBColor)], size: Size) -> Option<String> {
    let most = bars.iter().map(|(_, count, _)| *count).max()?;
    // Where they are too many for the width, every second label stands there, or every third.
    let fit = (size.width / LABEL) as usize;
    let each = bars.len().div_ceil(fit.max(1));
    drawn(size, |area| {
        // A single one would have no width.
        let last = (bars.len() as u32 - 1).max(1);
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(52)
            .build_cartesian_2d((0..last).into_segmented(), 0_u64..most + most / 10 + 1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .x_labels(bars.len())
            .y_labels(6)
            .x_label_formatter(&|place| match place {
                SegmentValue::CenterOf(at) if (*at as usize).is_multiple_of(each) => bars
                    .get(*at as usize)
                    .map_or_else(String::new, |(name, _, _)| name.clone()),
                _ => String::new(),
            })
            .label_style(("sans-serif", size.letters))
            .draw()?;
        chart.draw_series(bars.iter().enumerate().map(|(at, (_, count, colour))| {
            let (from, to) = (
                SegmentValue::Exact(at as u32),
                SegmentValue::Exact(at as u32 + 1),
            );
            let mut bar = Rectangle::new([(from, 0), (to, *count)], colour.filled());
            bar.set_margin(0, 0, 4, 4);
            bar
        }))?;
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawing = Result<(), Box<dyn std::error::Error>>;

/// An SVG that takes its black from the page.
fn drawn(size: Size, draw: impl FnOnce(&Area<'_>) -> Drawing) -> Option<String> {
    let Size { width, height, .. } = size;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        draw(&area).ok()?;
        area.present().ok()?;
    }
    let svg = svg.replace("#000000", "currentColor");
    let begin = svg.find("<svg")?;
    let fixed = format!("<svg width=\"{width}\" height=\"{height}\"");
    Some(svg[begin..].replacen(&fixed, "<svg role=\"img\"", 1))
}
