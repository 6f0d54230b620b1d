//! Plots of the figures: bars that compare the rows of a group, and curves over time.

use std::{collections::BTreeMap, fs, ops::Range, path::Path};

use anyhow::{Context as _, Result, anyhow};
use plotters::{
    coord::ranged1d::{IntoSegmentedCoord as _, SegmentValue},
    prelude::{
        ChartBuilder, Color as _, IntoDrawingArea as _, PathElement, RGBColor, Rectangle, SVGBackend,
        SeriesLabelPosition, Text, TextStyle,
    },
    style::{
        BLACK, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{Curve, Report, Row};

const OURS: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const OTHERS: RGBColor = RGBColor(0xb0, 0xb0, 0xb0);
const GOAL: RGBColor = RGBColor(0xd6, 0x27, 0x28);
const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 26;
const LABELS: u32 = 290;

/// Draws every group of rows, and of curves, into a file of its own. A group has the same unit, and names that are the same
/// up to the last colon.
pub fn draw(report: &Report, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let rows = groups(report.rows(), |row| (&row.name, row.unit));
    for ((group, unit), bars) in rows.iter().filter(|(_, bars)| bars.len() > 1) {
        let path = directory.join(file_name(group, unit));
        // The library's errors borrow the drawing.
        chart(&path, &format!("{group} ({unit})"), bars).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    }
    for ((group, unit), curves) in groups(report.curves(), |curve| (&curve.name, curve.unit)) {
        let path = directory.join(file_name(group, unit));
        over_time(&path, &format!("{group} ({unit})"), &curves)
            .map_err(|error| anyhow!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Groups things by name and unit, each with its label.
fn groups<'a, T>(
    all: &'a [T],
    named: impl Fn(&'a T) -> (&'a str, &'a str),
) -> BTreeMap<(&'a str, &'a str), Vec<(&'a str, &'a T)>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for thing in all {
        let (name, unit) = named(thing);
        if let Some((group, label)) = name.rsplit_once(": ") {
            groups.entry((group, unit)).or_default().push((label, thing));
        }
    }
    groups
}

/// File name of a plot: `wire, 1 UDP flow` in ns becomes `wire-1-udp-flow-ns.svg`.
fn file_name(group: &str, unit: &str) -> String {
    let text = format!("{group} {unit}").to_lowercase();
    let words: Vec<_> = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.join("-") + ".svg"
}

fn chart(path: &Path, title: &str, bars: &[(&str, &Row)]) -> Result<(), Box<dyn std::error::Error>> {
    let longest = bars.iter().map(|(_, row)| row.max).fold(0.0, f64::max).max(1.0);
    let count = i32::try_from(bars.len())?;
    let height = u32::try_from(bars.len())? * ROW_HEIGHT + 80;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let rows: Range<i32> = 0..count;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(24)
        .y_label_area_size(LABELS)
        .build_cartesian_2d(0.0..longest * 1.12, rows.into_segmented())?;
    let label = |at: &SegmentValue<i32>| match at {
        SegmentValue::CenterOf(at) | SegmentValue::Exact(at) => {
            // The first row is the topmost.
            usize::try_from(count - 1 - at)
                .ok()
                .and_then(|at| bars.get(at))
                .map_or(String::new(), |(label, _)| (*label).to_owned())
        }
        SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_mesh()
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_labels(bars.len())
        .y_label_formatter(&label)
        .label_style(("sans-serif", 13))
        .draw()?;
    for (at, (label, row)) in (0..count).rev().zip(bars) {
        let (low, high) = (SegmentValue::Exact(at), SegmentValue::Exact(at + 1));
        let color = if label.contains("vipgate") || label.contains("our ") { OURS } else { OTHERS };
        let mut bar = Rectangle::new([(0.0, low.clone()), (row.median, high)], color.filled());
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series([bar])?;
        // From the lowest to the highest round.
        let mut spread =
            Rectangle::new([(row.min, low), (row.max, SegmentValue::Exact(at + 1))], BLACK.mix(0.25).filled());
        spread.set_margin(11, 11, 0, 0);
        chart.draw_series([spread])?;
        let text = format!("{:.*}", usize::from(row.median < 10.0), row.median);
        let color = if row.goal_met == Some(false) { GOAL } else { BLACK };
        let style = TextStyle::from(("sans-serif", 13)).color(&color).pos(Pos::new(HPos::Left, VPos::Center));
        chart.draw_series([Text::new(text, (row.max + longest * 0.01, SegmentValue::CenterOf(at)), style)])?;
    }
    area.present()?;
    Ok(())
}

/// Colors of curves, in their order.
const COLORS: [RGBColor; 3] = [OURS, RGBColor(0xff, 0x7f, 0x0e), RGBColor(0x60, 0x60, 0x60)];
const CURVES_HEIGHT: u32 = 360;

fn over_time(path: &Path, title: &str, curves: &[(&str, &Curve)]) -> Result<(), Box<dyn std::error::Error>> {
    let highest = |of: fn(&(f64, f64)) -> f64| {
        curves.iter().flat_map(|(_, curve)| &curve.points).map(of).fold(0.0, f64::max).max(1.0)
    };
    let area = SVGBackend::new(path, (WIDTH, CURVES_HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..highest(|point| point.0), 0.0..highest(|point| point.1) * 1.05)?;
    chart.configure_mesh().disable_x_mesh().x_desc("seconds").label_style(("sans-serif", 13)).draw()?;
    for ((label, curve), color) in curves.iter().zip(COLORS.into_iter().cycle()) {
        chart
            .draw_series([PathElement::new(curve.points.clone(), color.stroke_width(2))])?
            .label(*label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 13))
        .background_style(WHITE.filled())
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Series;

    #[test]
    fn rows_of_one_group_are_one_plot_and_single_rows_are_not_plotted() {
        let mut series = Series::default();
        [3.0, 1.0, 2.0].into_iter().for_each(|value| series.push(value));
        let row = |name: &str| series.row(name, "ns");
        let mut report = Report::default();
        ["wire, 1 flow: vipgate (xdp)", "wire, 1 flow: nftables", "alone: one", "no group"]
            .into_iter()
            .for_each(|name| report.add(row(name)));
        let directory = tempfile::tempdir().expect("a directory");
        draw(&report, directory.path()).expect("drawn");
        let files: Vec<_> =
            fs::read_dir(directory.path()).expect("read").flatten().map(|file| file.file_name()).collect();
        assert_eq!(files, ["wire-1-flow-ns.svg"]);
        let plot = fs::read_to_string(directory.path().join("wire-1-flow-ns.svg")).expect("read");
        for text in ["wire, 1 flow (ns)", "vipgate (xdp)", "nftables", "2.0"] {
            assert!(plot.contains(text), "no {text} in {plot}");
        }
    }

    #[test]
    fn curves_of_one_group_are_one_plot_over_time() {
        let mut report = Report::default();
        for way in ["vipgate (xdp)", "vipgate (tc)"] {
            let points = vec![(0.0, 20.0), (1.5, 80.0)];
            report.add_curve(Curve { name: format!("goodput: {way}"), unit: "Mbit/s", points });
        }
        let directory = tempfile::tempdir().expect("a directory");
        draw(&report, directory.path()).expect("drawn");
        let plot = fs::read_to_string(directory.path().join("goodput-mbit-s.svg")).expect("read");
        for text in ["goodput (Mbit/s)", "seconds", "vipgate (xdp)", "vipgate (tc)"] {
            assert!(plot.contains(text), "no {text} in {plot}");
        }
    }
}
