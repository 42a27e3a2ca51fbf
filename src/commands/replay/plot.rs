//! A picture of a replay: which share of requests has its first token after how long.

use std::fmt::Write;
use std::time::Duration;

use crate::commands::replay::outcome::{Outcome, milliseconds};

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 480.0;
/// Where the axes begin and end.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 796.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 420.0;
/// Points of one curve; more could not be told apart.
const POINTS: usize = 400;
/// Told apart by eyes of every kind (Okabe and Ito), and repeated where there are more policies.
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
];

/// The scale along the bottom: logarithmic, from one round time to another. Round times are 1, 2
/// and 5 times the powers of ten, and numbered from a millisecond.
struct Scale {
    first: i32,
    last: i32,
}

impl Scale {
    fn of(outcomes: &[Outcome]) -> Self {
        let times = outcomes.iter().flat_map(|o| o.ttft.iter().copied());
        let (mut shortest, mut longest) = (Duration::MAX, Duration::from_millis(1));
        for time in times.map(at_least) {
            shortest = shortest.min(time);
            longest = longest.max(time);
        }
        // Each is at most a power of ten, three numbers, from this one.
        let near = |time: Duration| (milliseconds(time).log10() * 3.0).round() as i32;
        let mut first = near(shortest.min(longest)) + 3;
        while round_ms(first) > milliseconds(shortest.min(longest)) {
            first -= 1;
        }
        let mut last = near(longest) - 3;
        while round_ms(last) < milliseconds(longest) || last <= first {
            last += 1;
        }
        Self { first, last }
    }

    fn x(&self, milliseconds: f64) -> f64 {
        let (first, last) = (round_ms(self.first).log10(), round_ms(self.last).log10());
        LEFT + (milliseconds.log10() - first) / (last - first) * (RIGHT - LEFT)
    }
}

/// A round time by its number.
fn round_ms(number: i32) -> f64 {
    let digit = [1.0, 2.0, 5.0][number.rem_euclid(3) as usize];
    digit * 10_f64.powi(number.div_euclid(3))
}

/// A logarithm wants more than nothing.
fn at_least(time: Duration) -> Duration {
    time.max(Duration::from_micros(100))
}

fn y(share: f64) -> f64 {
    BOTTOM - share * (BOTTOM - TOP)
}

/// The picture, as SVG. The curve further left is the better one.
pub(crate) fn svg(title: &str, outcomes: &[Outcome]) -> String {
    let scale = Scale::of(outcomes);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    axes(&mut out, &scale);
    for (number, outcome) in outcomes.iter().enumerate() {
        curve(&mut out, &scale, number, outcome);
    }
    out.push_str("</svg>\n");
    out
}

fn axes(out: &mut String, scale: &Scale) {
    for tenth in (0..=10).step_by(2) {
        let (share, at) = (f64::from(tenth) / 10.0, y(f64::from(tenth) / 10.0));
        line(out, (LEFT, at), (RIGHT, at));
        let percent = share * 100.0;
        text(out, (LEFT - 8.0, at + 4.0), "end", &format!("{percent} %"));
    }
    for number in scale.first..=scale.last {
        let milliseconds = round_ms(number);
        let at = scale.x(milliseconds);
        line(out, (at, TOP), (at, BOTTOM));
        let label = match milliseconds {
            ..1e3 => format!("{milliseconds} ms"),
            _ => format!("{} s", milliseconds / 1e3),
        };
        text(out, (at, BOTTOM + 20.0), "middle", &label);
    }
    let middle = f64::midpoint(LEFT, RIGHT);
    text(
        out,
        (middle, BOTTOM + 44.0),
        "middle",
        "time to first token; the curve shows the share of requests that had it by then",
    );
}

fn curve(out: &mut String, scale: &Scale, number: usize, outcome: &Outcome) {
    let colour = COLOURS[number % COLOURS.len()];
    let mut points = String::new();
    let last = outcome.ttft.len().saturating_sub(1);
    for point in 0..=POINTS {
        let share = point as f64 / POINTS as f64;
        let at = (share * last as f64).round() as usize;
        if let Some(time) = outcome.ttft.get(at) {
            write!(
                points,
                "{:.1},{:.1} ",
                scale.x(milliseconds(at_least(*time))),
                y(share)
            )
            .ok();
        }
    }
    // The bound below all others is no policy that could be had.
    let dashes = match outcome.policy.as_str() {
        crate::commands::replay::oracle::NAME => " stroke-dasharray=\"6 4\"",
        _ => "",
    };
    writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>",
        points.trim_end()
    )
    .ok();
    let at = BOTTOM - 12.0 - 20.0 * number as f64;
    let x = RIGHT - 220.0;
    writeln!(
        out,
        "<path d=\"M{x} {}h28\" stroke=\"{colour}\" stroke-width=\"3\"{dashes}/>",
        at - 4.0
    )
    .ok();
    let mean = outcome.ttft_ms.mean;
    let label = format!("{}: mean {mean:.0} ms", outcome.policy);
    text(out, (x + 36.0, at), "start", &label);
}

fn line(out: &mut String, (x, y): (f64, f64), (to_x, to_y): (f64, f64)) {
    let ends = format!("M{x:.1} {y:.1}L{to_x:.1} {to_y:.1}");
    writeln!(out, "<path d=\"{ends}\" stroke=\"#ddd\"/>").ok();
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = escaped(text);
    writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    )
    .ok();
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::replay::outcome::Tally;

    fn outcome(policy: &str, times_ms: &[u64]) -> Outcome {
        let mut tally = Tally::new(1);
        tally.ttft = times_ms
            .iter()
            .copied()
            .map(Duration::from_millis)
            .collect();
        tally.outcome(policy.to_owned())
    }

    #[test]
    fn each_policy_has_a_curve_and_a_name() {
        let outcomes = [outcome("kv", &[20, 40, 900]), outcome("a<b", &[30])];
        let svg = svg("t & u", &outcomes);
        assert_eq!(svg.matches("<polyline").count(), 2);
        for part in [
            ">t &amp; u<",
            ">kv: mean 320 ms<",
            ">a&lt;b:",
            ">50 ms<",
            ">1 s<",
        ] {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
        // From 20 ms on, the shortest, to a second.
        assert!(svg.contains("points=\"64.0,420.0"), "{svg}");
    }

    #[test]
    fn nothing_draws_axes_alone() {
        for outcomes in [&[][..], &[outcome("kv", &[])], &[outcome("kv", &[0])]] {
            assert!(svg("t", outcomes).ends_with("</svg>\n"));
        }
    }
}
