//! Plots as inline SVG. Colours are the page's variables, so that they follow light and dark; each plot has a title for
//! those who do not see it, and its figures stand in a table beside it.

use super::html::escape;
use super::value;
use crate::record::{Ratio, Series};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
/// Room at the left, right, top and bottom.
const PAD: [f64; 4] = [64.0, 12.0, 10.0, 34.0];
/// Points of a line at most; more are thinned.
const POINTS_MAX: usize = 300;
/// Colours there are; more lines take them again.
pub(super) const COLOURS: usize = 6;

/// Share of samples (y) that are not over a time (x, logarithmic), a line for each series.
pub(super) fn cdf(title: &str, series: &[&Series]) -> String {
    let positive = series.iter().flat_map(|s| &s.samples).filter(|v| **v > 0.0);
    let (low, high) = positive.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    if low > high {
        return String::new();
    }
    let (from, to) = (low.log10().floor(), (high.log10().ceil()).max(low.log10().floor() + 1.0));
    // A time of 0 is at the left edge.
    let x = |v: f64| place(v.log10().max(from), [from, to], [PAD[0], WIDTH - PAD[1]]);
    let y = |share: f64| place(share, [0.0, 1.0], [HEIGHT - PAD[3], PAD[2]]);
    let mut body = String::new();
    for decade in from as i32..=to as i32 {
        let steps: &[f64] = if to - from > 2.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        for at in steps.iter().map(|step| step * 10f64.powi(decade)).filter(|at| at.log10() <= to + 1e-9) {
            body += &mark_x(x(at), &format!("{} ms", short(at / 1000.0)));
        }
    }
    for share in [0.0, 0.5, 0.9, 1.0] {
        body += &mark_y(y(share), &format!("{:.0} %", share * 100.0));
    }
    for (n, series) in series.iter().enumerate() {
        let mut sorted = series.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let points = thin(count).map(|i| (x(sorted[i]), y((i + 1) as f64 / count as f64)));
        body += &line(n, points);
    }
    frame(title, HEIGHT, &body)
}

/// Samples in the order in which they were taken, a line for each series.
pub(super) fn order(title: &str, series: &[&Series]) -> String {
    let all = || series.iter().flat_map(|s| s.samples.iter().copied());
    let high = all().fold(f64::MIN, f64::max).max(1e-9);
    let low = all().fold(0.0, f64::min);
    let most = series.iter().map(|s| s.samples.len()).max().unwrap_or(0);
    if most < 2 {
        return String::new();
    }
    let unit = series.first().map_or("", |s| s.unit.as_str());
    let y = |v: f64| place(v, [low, high], [HEIGHT - PAD[3], PAD[2]]);
    let mut body = String::new();
    for part in [0.0, 0.5, 1.0] {
        let at = low + (high - low) * part;
        body += &mark_y(y(at), &value(at, unit));
    }
    body += &mark_x(PAD[0], "first");
    body += &mark_x(WIDTH - PAD[1], "last");
    for (n, series) in series.iter().enumerate() {
        let count = series.samples.len();
        let x = |i: usize| place(i as f64, [0.0, count.max(2) as f64 - 1.0], [PAD[0], WIDTH - PAD[1]]);
        body += &line(n, thin(count).map(|i| (x(i), y(series.samples[i]))));
    }
    frame(title, HEIGHT, &body)
}

/// Ratios as bars, each with its interval and its goal.
pub(super) fn bars(title: &str, ratios: &[Ratio]) -> String {
    let most = ratios.iter().flat_map(|r| [r.high, r.value, r.goal.unwrap_or(0.0)]).fold(1e-9, f64::max);
    let x = |v: f64| place(v.max(0.0), [0.0, most], [PAD[0], WIDTH - PAD[1]]);
    let mut body = String::new();
    let height = 24.0 * ratios.len() as f64 + PAD[3];
    for (n, ratio) in ratios.iter().enumerate() {
        let top = 6.0 + 24.0 * n as f64;
        let middle = top + 7.0;
        body += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect class=\"c{}\" x=\"{:.1}\" y=\"{top:.1}\" \
             width=\"{:.1}\" height=\"14\"/><path class=\"err\" d=\"M{:.1} {middle:.1}H{:.1}\"/>",
            PAD[0] - 6.0,
            middle + 4.0,
            n + 1,
            n % COLOURS,
            PAD[0],
            (x(ratio.value) - PAD[0]).max(0.5),
            x(ratio.low),
            x(ratio.high)
        );
        if let Some(goal) = ratio.goal {
            body +=
                &format!("<path class=\"goal\" d=\"M{:.1} {:.1}V{:.1}\"/>", x(goal), top - 3.0, top + 17.0);
        }
    }
    for part in [0.0, 0.5, 1.0] {
        let at = most * part;
        body += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{}\">{}</text>",
            x(at),
            height - 8.0,
            if part == 1.0 { "end" } else { "middle" },
            value(at, "")
        );
    }
    frame(title, height, &body)
}

fn frame(title: &str, height: f64, body: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>{body}</svg>",
        escape(title)
    )
}

/// A value of one range in another.
fn place(v: f64, [a, b]: [f64; 2], [c, d]: [f64; 2]) -> f64 {
    c + (v - a) / (b - a).max(f64::MIN_POSITIVE) * (d - c)
}

fn thin(count: usize) -> impl Iterator<Item = usize> {
    let step = count.div_ceil(POINTS_MAX).max(1);
    (0..count)
        .step_by(step)
        .chain((count > 0 && !(count - 1).is_multiple_of(step)).then_some(count.saturating_sub(1)))
}

fn line(n: usize, points: impl Iterator<Item = (f64, f64)>) -> String {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!("<polyline class=\"l{}\" points=\"{}\"/>", n % COLOURS, points.join(" "))
}

fn mark_x(x: f64, text: &str) -> String {
    format!(
        "<path class=\"grid\" d=\"M{x:.1} {}V{}\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"{}\">{}</text>",
        PAD[2],
        HEIGHT - PAD[3],
        HEIGHT - 12.0,
        if x > WIDTH - 60.0 { "end" } else { "middle" },
        escape(text)
    )
}

fn mark_y(y: f64, text: &str) -> String {
    format!(
        "<path class=\"grid\" d=\"M{} {y:.1}H{}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        PAD[0],
        WIDTH - PAD[1],
        PAD[0] - 6.0,
        y + 4.0,
        escape(text)
    )
}

fn short(v: f64) -> String {
    if v >= 1.0 { format!("{v:.0}") } else { format!("{v}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_are_as_far_apart_as_each_other() {
        let series = Series::new(["claim", "dunlin", "loop", "us"], vec![3_000.0, 200_000.0]);
        let svg = cdf("claim", &[&series]);
        let marks: Vec<f64> = svg
            .split("text-anchor=\"middle\">")
            .zip(svg.split("text-anchor=\"middle\">").skip(1))
            .filter(|(_, text)| ["1 ms<", "10 ms<", "100 ms<"].iter().any(|mark| text.starts_with(mark)))
            .map(|(before, _)| {
                before.rsplit("x=\"").next().unwrap().split('"').next().unwrap().parse().unwrap()
            })
            .collect();
        assert_eq!(marks.len(), 3, "{svg}");
        assert!((marks[1] - marks[0] - (marks[2] - marks[1])).abs() < 0.2, "{marks:?}");
    }
}
