//! What the benchmark prints and writes: one row for each figure.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// Name and median of the figure that it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<(String, f64)>,
    /// Ratio to the baseline: the median of the rounds' ratios.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal_met: Option<bool>,
}

/// The rounds of one figure.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Whether there are no rounds.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The median round; with an even number of rounds, the higher one in the middle; 0 without rounds.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// This series divided by the baseline, round by round.
    #[must_use]
    pub fn ratios(&self, baseline: &Self) -> Self {
        Self(self.0.iter().zip(&baseline.0).map(|(own, other)| own / other).collect())
    }

    /// This series minus the baseline, round by round.
    #[must_use]
    pub fn differences(&self, baseline: &Self) -> Self {
        Self(self.0.iter().zip(&baseline.0).map(|(own, other)| own - other).collect())
    }

    /// A row of this name and unit.
    #[must_use]
    pub fn row(&self, name: impl Into<String>, unit: &'static str) -> Row {
        Row {
            name: name.into(),
            unit,
            median: self.median(),
            min: self.0.iter().copied().reduce(f64::min).unwrap_or_default(),
            max: self.0.iter().copied().reduce(f64::max).unwrap_or_default(),
            baseline: None,
            ratio: None,
            goal: None,
            goal_met: None,
        }
    }
}

impl Row {
    /// Sets the goal that the figure is at most this.
    #[must_use]
    pub fn at_most(self, goal: f64) -> Self {
        let met = self.median <= goal;
        self.add_goal(format!("at most {goal}"), Some(met))
    }

    /// Sets the goal that the figure is at least this.
    #[must_use]
    pub fn at_least(self, goal: f64) -> Self {
        let met = self.median >= goal;
        self.add_goal(format!("at least {goal}"), Some(met))
    }

    /// Sets the goal that the ratio to the baseline is at most this.
    #[must_use]
    pub fn ratio_at_most(self, goal: f64) -> Self {
        let met = self.ratio.map(|ratio| ratio <= goal);
        self.add_goal(format!("ratio at most {goal}"), met)
    }

    /// Sets the goal that the ratio to the baseline is at least this.
    #[must_use]
    pub fn ratio_at_least(self, goal: f64) -> Self {
        let met = self.ratio.map(|ratio| ratio >= goal);
        self.add_goal(format!("ratio at least {goal}"), met)
    }

    /// Adds a goal; a row meets its goals if it meets all of them.
    fn add_goal(mut self, goal: String, met: Option<bool>) -> Self {
        (self.goal, self.goal_met) = match self.goal.take() {
            None => (Some(goal), met),
            Some(others) => {
                let all = self.goal_met.zip(met).map(|(others, this)| others && this);
                (Some(format!("{others}, {goal}")), all)
            }
        };
        self
    }

    /// Compares the figure with another one, round by round.
    #[must_use]
    pub fn compared_with(mut self, name: impl Into<String>, own: &Series, baseline: &Series) -> Self {
        self.baseline = Some((name.into(), baseline.median()));
        self.ratio = Some(own.ratios(baseline).median());
        self
    }
}

/// A quantity over time, in seconds.
#[derive(Clone, Debug)]
pub struct Curve {
    pub name: String,
    pub unit: &'static str,
    pub points: Vec<(f64, f64)>,
}

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    curves: Vec<Curve>,
}

impl Report {
    /// Adds a row and prints it immediately, to show the progress of a long run.
    pub fn add(&mut self, row: Row) {
        let mut line =
            format!("{:<44} {:>9.1} {:<6} [{:.1} .. {:.1}]", row.name, row.median, row.unit, row.min, row.max);
        if let (Some((name, median)), Some(ratio)) = (&row.baseline, row.ratio) {
            line += &format!("  {ratio:.2} x {name} ({median:.1})");
        }
        if let (Some(goal), Some(met)) = (&row.goal, row.goal_met) {
            line += &format!("  goal {goal}: {}", if met { "met" } else { "NOT MET" });
        }
        println!("{line}");
        self.rows.push(row);
    }

    /// Adds a curve, which only a plot shows.
    pub fn add_curve(&mut self, curve: Curve) {
        self.curves.push(curve);
    }

    /// The figures so far.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The curves so far.
    #[must_use]
    pub fn curves(&self) -> &[Curve] {
        &self.curves
    }

    /// Writes the rows as a JSON list.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(&self.rows)?;
        fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_several_goals_meets_them_only_together() {
        let mut series = Series::default();
        series.push(99.5);
        let row = |from, to| series.row("a figure", "%").at_least(from).at_most(to);
        assert_eq!(row(99.0, 100.5).goal.as_deref(), Some("at least 99, at most 100.5"));
        for (from, to, met) in [(99.0, 100.5, true), (99.9, 100.5, false), (99.0, 99.1, false)] {
            assert_eq!(row(from, to).goal_met, Some(met));
        }
        assert_eq!(row(99.0, 100.5).ratio_at_least(1.0).goal_met, None);
    }
}
