//! Maps values to places on an axis, and chooses its span and labelled ticks.

use super::{Axis, Scale};

/// The visible part of an axis, and the places of its labels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    low: f64,
    high: f64,
    log: bool,
    /// Values with their labels, ascending.
    pub ticks: Vec<(f64, String)>,
}

impl Span {
    /// The span that shows all of `values`, which are finite and fit the scale, widened by a share of it on both sides.
    /// None without a value.
    pub fn of(axis: &Axis, values: impl Iterator<Item = f64>, margin: f64) -> Option<Self> {
        match &axis.scale {
            Scale::Categories(names) => {
                let last = names.len().checked_sub(1)? as f64;
                let ticks = names.iter().enumerate().map(|(at, name)| (at as f64, name.clone())).collect();
                Some(Self { low: -0.5, high: last + 0.5, log: false, ticks })
            }
            Scale::Log => {
                let (low, high) = range(values.map(f64::log10), margin, |_| 0.5)?;
                Some(Self { low, high, log: true, ticks: labelled(log_ticks(low, high)) })
            }
            Scale::Linear | Scale::FromZero => {
                let zero = (axis.scale == Scale::FromZero).then_some(0.0);
                let alone = |value: f64| (0.5 * value.abs()).max(f64::MIN_POSITIVE.sqrt());
                let (mut low, high) = range(zero.into_iter().chain(values), margin, alone)?;
                // The margin must not lift the zero off the axis.
                if zero.is_some() && low < 0.0 && low > -margin * (high - low) {
                    low = 0.0;
                }
                Some(Self { low, high, log: false, ticks: labelled(linear_ticks(low, high)) })
            }
        }
    }

    /// Where a value lies, from 0 at the low end to 1 at the high end. Values beyond an end lie at that end.
    pub fn place(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// The share of the axis that one category, or one unit of a linear axis, takes.
    pub fn unit(&self) -> f64 {
        1.0 / (self.high - self.low)
    }
}

/// The span of some values, widened on both sides by a share of it; one value alone gets `alone` on both sides.
fn range(values: impl Iterator<Item = f64>, margin: f64, alone: impl Fn(f64) -> f64) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let pad = if low < high { (high - low) * margin } else { alone(low) };
    (low <= high).then_some((low - pad, high + pad))
}

/// At most eight multiples of 1, 2, 2.5 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((low / step).ceil(), (high / step).floor());
    (0..=(last - first).max(0.0) as u32).map(|count| (first + f64::from(count)) * step).collect()
}

/// Powers of ten between two exponents, every n-th if there are many; with 2 and 5 times them if there are few.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let stride = (((high - low) / 8.0).ceil() as usize).max(1);
    let exponents = (low.floor() as i32..=high.ceil() as i32).step_by(stride);
    let factors: &[f64] = if high - low < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let inside = |value: &f64| (low..=high).contains(&value.log10());
    let ticks: Vec<_> = exponents
        .flat_map(|exponent| factors.iter().map(move |factor| factor * 10f64.powi(exponent)))
        .filter(inside)
        .collect();
    // If the end is less than twice the start, a logarithmic axis looks linear.
    if ticks.len() < 2 { linear_ticks(10f64.powf(low), 10f64.powf(high)) } else { ticks }
}

fn labelled(ticks: Vec<f64>) -> Vec<(f64, String)> {
    let short: Vec<_> = ticks.iter().map(|value| label(*value)).collect();
    let differ = short.windows(2).all(|pair| pair[0] != pair[1]);
    // Close values need more digits to be told apart.
    ticks
        .into_iter()
        .zip(short)
        .map(|(value, short)| (value, if differ { short } else { format!("{value:.9e}") }))
        .collect()
}

/// A short label for a value of an axis.
fn label(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-3..1e5).contains(&magnitude) {
        let (mantissa, exponent) =
            format!("{value:.2e}").split_once('e').map(|(m, e)| (m.to_owned(), e.to_owned())).unwrap_or_default();
        let mantissa =
            if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { &mantissa };
        return format!("{mantissa}e{exponent}");
    }
    let fixed = format!("{value:.4}");
    fixed.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(scale: Scale, values: &[f64]) -> Vec<String> {
        let span = Span::of(&Axis::new("", scale), values.iter().copied(), 0.0).unwrap();
        span.ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_short() {
        for (value, short) in [
            (0.0, "0"),
            (3e-5, "3e-5"),
            (2.5e-4, "2.5e-4"),
            (0.05, "0.05"),
            (-1.5, "-1.5"),
            (1200.0, "1200"),
            (2e5, "2e5"),
        ] {
            assert_eq!(label(value), short);
        }
    }

    #[test]
    fn a_linear_axis_is_labelled_at_round_values() {
        assert_eq!(ticks(Scale::Linear, &[0.0, 37.0]), ["0", "5", "10", "15", "20", "25", "30", "35"]);
        assert_eq!(ticks(Scale::FromZero, &[0.31]), ["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]);
    }

    #[test]
    fn close_values_keep_labels_that_differ() {
        let labels = ticks(Scale::Linear, &[1.0, 1.000_01]);
        assert!(labels.windows(2).all(|pair| pair[0] != pair[1]), "{labels:?}");
    }

    #[test]
    fn a_logarithmic_axis_is_labelled_at_powers_of_ten_and_between_them_where_it_is_short() {
        assert_eq!(ticks(Scale::Log, &[1e-5, 0.5]), ["1e-5", "1e-4", "0.001", "0.01", "0.1"]);
        assert_eq!(ticks(Scale::Log, &[2e-5, 1e-3]), ["2e-5", "5e-5", "1e-4", "2e-4", "5e-4", "0.001"]);
        assert!(ticks(Scale::Log, &[1.1, 1.4]).len() > 2, "a short span is labelled too");
        assert!(ticks(Scale::Log, &[1e-40, 1.0]).len() <= 9);
    }

    #[test]
    fn equal_ratios_are_equal_lengths_on_a_logarithmic_axis() {
        let span = Span::of(&Axis::new("", Scale::Log), [1e-4, 1.0].into_iter(), 0.0).unwrap();
        for (value, place) in [(1e-4, 0.0), (1e-2, 0.5), (1e-1, 0.75), (1.0, 1.0), (1e-9, 0.0)] {
            assert!((span.place(value) - place).abs() < 1e-12, "{value}");
        }
    }

    #[test]
    fn categories_stand_in_the_middle_of_equal_parts() {
        let names = ["a", "b"].map(str::to_owned).to_vec();
        let span = Span::of(&Axis::new("", Scale::Categories(names)), std::iter::empty(), 0.0).unwrap();
        assert_eq!([span.place(0.0), span.place(1.0), span.unit()], [0.25, 0.75, 0.5]);
    }
}
