//! Figures with their units, alone and beside those of another side, as they are shown.

use comfy_table::{ContentArrangement, Table, TableStyle};
use serde::{Deserialize, Serialize};

/// What a figure is measured in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    #[default]
    Milliseconds,
    /// Of 1, shown in %.
    Part,
    PerSecond,
}

impl Unit {
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Milliseconds => format!("{} ms", shown(value)),
            Self::Part => percent(value),
            Self::PerSecond => format!("{} req/s", shown(value)),
        }
    }
}

/// Three digits that count.
pub fn shown(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// A part of 1, in %.
pub fn percent(part: f64) -> String {
    format!("{:.2} %", part * 100.0)
}

/// One figure of both sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compared {
    pub name: String,
    pub unit: Unit,
    pub before: f64,
    pub after: f64,
    /// After to before; `None` where there is nothing to compare with.
    pub ratio: Option<f64>,
    /// Where the ratio lies with 95 % confidence; `None` where that cannot be said.
    pub interval: Option<(f64, f64)>,
}

/// Two sides beside one another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// Who was measured as the baseline.
    pub baseline: String,
    pub figures: Vec<Compared>,
}

impl Compared {
    /// What became of it, in a word: noise is no difference.
    pub fn change(&self) -> String {
        let Some(ratio) = self.ratio else {
            return "–".to_owned();
        };
        if self.interval.is_none() && self.unit != Unit::Part {
            return "too few to tell".to_owned();
        }
        let is_noise = |(from, to): (f64, f64)| from <= 1.0 && 1.0 <= to;
        if ratio == 1.0 || self.interval.is_some_and(is_noise) {
            return "no difference".to_owned();
        }
        let arrow = if ratio < 1.0 { "↓" } else { "↑" };
        format!("{:.0} % {arrow}", (ratio - 1.0).abs() * 100.0)
    }

    /// As a table shows it: name, before, after, ratio, interval, change.
    pub fn row(&self) -> [String; 6] {
        let none = || "–".to_owned();
        [
            self.name.clone(),
            self.unit.show(self.before),
            self.unit.show(self.after),
            self.ratio.map_or_else(none, |ratio| format!("{ratio:.3}")),
            self.interval
                .map_or_else(none, |(from, to)| format!("{from:.3} – {to:.3}")),
            self.change(),
        ]
    }
}

/// What a table of [`Compared::row`] has above it.
pub const HEADER: [&str; 6] = [
    "",
    "before",
    "after",
    "ratio",
    "95 % of it within",
    "change",
];

impl Comparison {
    /// The table of the requirements: before, after, and what became of it.
    pub fn table(&self, target: &str) -> String {
        let mut table = Table::new();
        table
            .load_style(TableStyle::new())
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(HEADER);
        for one in &self.figures {
            table.add_row(one.row());
        }
        format!(
            "before: {}   after: {target}   asked in turn, in one run\n{table}\n",
            self.baseline
        )
    }
}
