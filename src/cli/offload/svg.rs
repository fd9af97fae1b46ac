//! The curve of a fit as a picture: how right all answers are over the share that stays on the device.

use cutlayer_generation::offload::{Fit, Outcome};
use std::fmt::Write;

/// Size of the picture, and of its margins, in pixels.
const SIZE: (f64, f64) = (640.0, 420.0);
const MARGIN: (f64, f64) = (64.0, 48.0);
/// Least span of the vertical axis: what varies less is flat.
const SPAN_MIN: f64 = 0.02;
/// Marks on each axis.
const TICKS: usize = 5;

/// From shares to pixels.
struct Axes {
    least: f64,
    most: f64,
}

impl Axes {
    fn of(outcomes: impl Iterator<Item = Outcome> + Clone) -> Self {
        let least = outcomes.clone().map(|outcome| outcome.accuracy).fold(f64::INFINITY, f64::min);
        let most = outcomes.map(|outcome| outcome.accuracy).fold(f64::NEG_INFINITY, f64::max);
        let (middle, half) = ((least + most) / 2.0, ((most - least) * 0.55).max(SPAN_MIN / 2.0));
        Self { least: middle - half, most: middle + half }
    }

    fn at(&self, share_local: f64, accuracy: f64) -> (f64, f64) {
        let (width, height) = (SIZE.0 - 2.0 * MARGIN.0, SIZE.1 - 2.0 * MARGIN.1);
        (MARGIN.0 + share_local * width, MARGIN.1 + (self.most - accuracy) / (self.most - self.least) * height)
    }

    fn place(&self, outcome: Outcome) -> (f64, f64) {
        self.at(outcome.share_local, outcome.accuracy)
    }
}

/// The picture.
pub(super) fn draw(fit: &Fit) -> String {
    let marks = [
        ("all by the large model", fit.always_edge, "#1f6feb"),
        ("all on the device", fit.always_local, "#8250df"),
        ("oracle", fit.oracle, "#1a7f37"),
        ("the policy", fit.chosen.outcome, "#cf222e"),
        ("as many by chance", fit.random, "#6e7781"),
    ];
    let curve = fit.curve.iter().map(|point| point.outcome);
    let axes = Axes::of(curve.clone().chain(marks.iter().map(|(_, outcome, _)| *outcome)));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        SIZE.0, SIZE.1
    );
    draw_axes(&mut svg, &axes);
    let ((x1, y1), (x2, y2)) = (axes.place(fit.always_edge), axes.place(fit.always_local));
    line(&mut svg, (x1, y1), (x2, y2), "#6e7781\" stroke-dasharray=\"4 4");
    let points: Vec<String> = curve.map(|outcome| axes.place(outcome)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(svg, "<polyline fill=\"none\" stroke=\"#cf222e\" stroke-width=\"1.5\" points=\"{}\"/>", points.join(" "));
    for (place, (name, outcome, colour)) in marks.into_iter().enumerate() {
        let ((x, y), row) = (axes.place(outcome), SIZE.1 - MARGIN.1 - 88.0 + 16.0 * place as f64);
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\"/>");
        let _ = writeln!(svg, "<circle cx=\"{}\" cy=\"{row}\" r=\"4\" fill=\"{colour}\"/>", MARGIN.0 + 16.0);
        let words = format!("{name}: {:.3}", outcome.accuracy);
        text(&mut svg, (MARGIN.0 + 26.0, row + 4.0), "start", &words);
    }
    svg + "</svg>\n"
}

fn draw_axes(svg: &mut String, axes: &Axes) {
    let (left, right) = (MARGIN.0, SIZE.0 - MARGIN.0);
    let bottom = SIZE.1 - MARGIN.1;
    for tick in 0..=TICKS {
        let share = tick as f64 / TICKS as f64;
        let accuracy = axes.least + share * (axes.most - axes.least);
        let ((x, _), (_, y)) = (axes.at(share, axes.least), axes.at(0.0, accuracy));
        line(svg, (left, y), (right, y), "#eaeef2");
        text(svg, (x, bottom + 18.0), "middle", &format!("{:.0} %", share * 100.0));
        text(svg, (left - 6.0, y + 4.0), "end", &format!("{accuracy:.3}"));
    }
    line(svg, (left, bottom), (right, bottom), "#57606a");
    line(svg, (left, MARGIN.1), (left, bottom), "#57606a");
    text(svg, ((left + right) / 2.0, SIZE.1 - 10.0), "middle", "share kept on the device");
    text(svg, (left, MARGIN.1 - 14.0), "middle", "how right");
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), stroke: &str) {
    let _ = writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{stroke}\"/>");
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#24292f\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_places() {
        let outcome = |share_local, accuracy| Outcome { share_local, accuracy, latency_ms: 0.0, energy_j: 0.0, bytes: 0.0 };
        let axes = Axes::of([outcome(0.0, 0.4), outcome(1.0, 0.6)].into_iter());
        let ((left, low), (right, high)) = (axes.place(outcome(0.0, 0.4)), axes.place(outcome(1.0, 0.6)));
        assert_eq!((left, right), (MARGIN.0, SIZE.0 - MARGIN.0));
        assert!(high < low && high >= MARGIN.1 && low <= SIZE.1 - MARGIN.1, "{high} {low}");
        // What never varies is drawn in the middle, not divided by zero.
        let flat = Axes::of([outcome(0.0, 0.5)].into_iter());
        assert!((flat.place(outcome(0.0, 0.5)).1 - SIZE.1 / 2.0).abs() < 1e-9);
    }
}
