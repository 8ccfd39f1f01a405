//! Loss curves as an SVG picture. Knows numbers and names, not where they come from.

use crate::formats::checkpoint::replace_file;
use plotters::prelude::*;
use std::ops::Range;
use std::path::Path;

/// A named curve: `(step, value)` in the order of steps; what is not finite is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

const SIZE: (u32, u32) = (960, 540);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(255, 127, 14),
    RGBColor(148, 103, 189),
    RGBColor(90, 90, 90),
];
/// Points of a curve that are drawn: about one a pixel.
const DRAWN_MAX: usize = 1000;
/// A curve of more points is drawn thin with a smoothed one over it (a training loss), one of fewer with a mark at every
/// point (a validation loss).
const MARKED_MAX: usize = 60;
/// The part of a curve whose values, high before anything is learnt, do not stretch the axis.
const SPIKE_PART: f64 = 0.02;

/// Draws `series` and writes the picture to `path`, whole or not at all. Values above the axis run along its upper edge.
///
/// # Errors
/// When the file cannot be written.
pub fn loss_svg(path: &Path, series: &[Series], title: &str) -> anyhow::Result<()> {
    let mut svg = String::new();
    let clean: Vec<Series> = series.iter().map(finite).collect();
    draw(&mut svg, &clean, title).map_err(|error| anyhow::anyhow!("cannot draw {}: {error}", path.display()))?;
    replace_file(path, svg.as_bytes())
}

/// What several runs of one kind came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    pub name: String,
    pub values: Vec<f64>,
}

/// Draws each value of each spread as a dot and their mean as a bar, a line a spread, and writes the picture to `path`, whole or not at
/// all.
///
/// # Errors
/// When the file cannot be written.
pub fn spreads_svg(path: &Path, spreads: &[Spread], title: &str, unit: &str) -> anyhow::Result<()> {
    let mut svg = String::new();
    draw_spreads(&mut svg, spreads, [title, unit])
        .map_err(|error| anyhow::anyhow!("cannot draw {}: {error}", path.display()))?;
    replace_file(path, svg.as_bytes())
}

fn draw_spreads(
    svg: &mut String,
    spreads: &[Spread],
    [title, unit]: [&str; 2],
) -> Result<(), Box<dyn std::error::Error>> {
    const LINE: u32 = 24;
    let height = 110 + LINE * spreads.len() as u32;
    let root = SVGBackend::with_string(svg, (SIZE.0, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (low, high) = extent(spreads.iter().flat_map(|spread| spread.values.iter().copied().filter(|v| v.is_finite())));
    let margin = 0.05 * (high - low);
    // Line i is at -i, so that the first is at the top.
    let y = -(spreads.len() as f64 - 0.5)..0.5;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 24))
        .margin(14)
        .margin_right(32)
        .x_label_area_size(50)
        .y_label_area_size(230)
        .build_cartesian_2d(low - margin..high + margin, y)?;
    let label = ("sans-serif", 15);
    let name =
        |y: &f64| spreads.get((-y).round().max(0.0) as usize).map_or(String::new(), |spread| spread.name.clone());
    chart
        .configure_mesh()
        .x_desc(unit)
        .label_style(label)
        .axis_desc_style(label)
        .max_light_lines(0)
        .y_labels(2 * spreads.len())
        .disable_y_mesh()
        .y_label_formatter(&|y| if (y - y.round()).abs() < 1e-9 { name(y) } else { String::new() })
        .draw()?;
    for (i, spread) in spreads.iter().enumerate() {
        let (y, colour) = (-(i as f64), COLOURS[0]);
        let values: Vec<f64> = spread.values.iter().copied().filter(|v| v.is_finite()).collect();
        chart.draw_series(values.iter().map(|&v| Circle::new((v, y), 4, colour.mix(0.5).filled())))?;
        if !values.is_empty() {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            chart.draw_series([PathElement::new([(mean, y - 0.35), (mean, y + 0.35)], COLOURS[1].stroke_width(2))])?;
        }
    }
    root.present()?;
    Ok(())
}

fn finite(series: &Series) -> Series {
    let points = series.points.iter().copied().filter(|(step, value)| step.is_finite() && value.is_finite());
    Series { name: series.name.clone(), points: points.collect() }
}

fn draw(svg: &mut String, series: &[Series], title: &str) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (x, y) = ranges(series);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 24))
        .margin(14)
        .margin_right(32)
        .x_label_area_size(50)
        .y_label_area_size(66)
        .build_cartesian_2d(x, y.clone())?;
    let label = ("sans-serif", 17);
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss (nats)")
        .label_style(label)
        .axis_desc_style(label)
        .max_light_lines(0)
        .x_label_formatter(&|step| format!("{step}"))
        .draw()?;
    for (i, series) in series.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let clipped = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            thinned(points).into_iter().map(|(x, v)| (x, v.clamp(y.start, y.end))).collect()
        };
        let points = clipped(&series.points);
        let bold = if series.points.len() > MARKED_MAX {
            chart.draw_series(LineSeries::new(points, colour.mix(0.35).stroke_width(1)))?;
            clipped(&smoothed(&series.points))
        } else {
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
            points
        };
        chart
            .draw_series(LineSeries::new(bold, colour.stroke_width(2)))?
            .label(&series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(2)));
    }
    if !series.is_empty() {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .legend_area_size(28)
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 200, 200))
            .label_font(label)
            .draw()?;
    }
    root.present()?;
    Ok(())
}

/// Both axes: all steps, and the values past the first spike with a margin.
fn ranges(series: &[Series]) -> (Range<f64>, Range<f64>) {
    let steps = series.iter().flat_map(|series| series.points.iter().map(|point| point.0));
    let values = series.iter().flat_map(|series| {
        let n = series.points.len();
        // One or two points are all there is to see.
        let skipped = if n > 2 { ((n as f64 * SPIKE_PART) as usize).max(1) } else { 0 };
        series.points[skipped..].iter().map(|point| point.1)
    });
    let (y_low, y_high) = extent(values);
    let margin = 0.05 * (y_high - y_low);
    let (x_low, x_high) = extent(steps);
    (x_low..x_high, y_low - margin..y_high + margin)
}

/// Smallest and largest, widened where they are one; `(0, 1)` of none.
fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let least = 1e-3 * low.abs().max(high.abs()).max(1e-3);
    if high - low >= least { (low, high) } else { (low - 0.5 * low.abs().max(1.0), high + 0.5 * high.abs().max(1.0)) }
}

/// Every k-th point and the last, at most [`DRAWN_MAX`] and one.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let every = points.len().div_ceil(DRAWN_MAX).max(1);
    let mut kept: Vec<(f64, f64)> = points.iter().copied().step_by(every).collect();
    if points.len() % every != 1 && every > 1 {
        kept.extend(points.last());
    }
    kept
}

/// An exponential average. It looks back over a tenth of what there is, so that it follows the steep beginning, and over
/// a fortieth of the curve at most.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let longest = (points.len() as f64 / 40.0).max(1.0);
    let mut average = 0.0;
    let smooth = |(i, &(step, value)): (usize, &(f64, f64))| {
        average += (value - average) / (i as f64 / 10.0).clamp(1.0, longest);
        (step, average)
    };
    points.iter().enumerate().map(smooth).collect()
}
