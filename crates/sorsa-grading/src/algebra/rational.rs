//! Rational numbers of 128 bits, whose every operation says when it does not fit.

/// A rational number in lowest terms, its denominator positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rational {
    numerator: i128,
    denominator: i128,
}

impl Rational {
    /// Zero.
    pub const ZERO: Self = Self { numerator: 0, denominator: 1 };
    /// One.
    pub const ONE: Self = Self { numerator: 1, denominator: 1 };

    /// `numerator / denominator`; `None` for a denominator of 0, or beyond 127 bits.
    pub fn new(numerator: i128, denominator: i128) -> Option<Self> {
        if denominator == 0 {
            return None;
        }
        let divisor = i128::try_from(gcd(numerator.unsigned_abs(), denominator.unsigned_abs())).ok()?;
        let sign = denominator.signum();
        Some(Self {
            numerator: (numerator / divisor).checked_mul(sign)?,
            denominator: (denominator / divisor).checked_mul(sign)?,
        })
    }

    /// A whole number.
    pub fn whole(number: i64) -> Self {
        Self { numerator: i128::from(number), denominator: 1 }
    }

    /// A decimal such as `-1,234.50`, `12.` or `.5`: commas are ignored anywhere.
    pub(crate) fn decimal(text: &str) -> Option<Self> {
        let digits = text.replace(',', "");
        let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
        let numerator = format!("{whole}{fraction}").parse().ok()?;
        Self::new(numerator, 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)
    }

    /// Numerator and denominator.
    pub fn parts(self) -> (i128, i128) {
        (self.numerator, self.denominator)
    }

    /// The number as an integer, if it is one.
    pub(crate) fn integer(self) -> Option<i128> {
        (self.denominator == 1).then_some(self.numerator)
    }

    pub(crate) fn to_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }

    pub(crate) fn negated(self) -> Option<Self> {
        Some(Self { numerator: self.numerator.checked_neg()?, ..self })
    }

    pub(crate) fn plus(self, other: Self) -> Option<Self> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        Self::new(left.checked_add(right)?, self.denominator.checked_mul(other.denominator)?)
    }

    pub(crate) fn times(self, other: Self) -> Option<Self> {
        Self::new(self.numerator.checked_mul(other.numerator)?, self.denominator.checked_mul(other.denominator)?)
    }

    pub(crate) fn divided_by(self, other: Self) -> Option<Self> {
        Self::new(self.numerator.checked_mul(other.denominator)?, self.denominator.checked_mul(other.numerator)?)
    }

    /// `self` to a whole power; `None` for a negative power of 0.
    pub(crate) fn power(self, exponent: i128) -> Option<Self> {
        let times = u32::try_from(exponent.unsigned_abs()).ok()?;
        let raised = Self::new(self.numerator.checked_pow(times)?, self.denominator.checked_pow(times)?)?;
        if exponent < 0 { Self::ONE.divided_by(raised) } else { Some(raised) }
    }

    /// The root of a whole degree, if it is rational.
    pub(crate) fn root(self, degree: i128) -> Option<Self> {
        let degree = u32::try_from(degree).ok().filter(|degree| *degree > 0)?;
        if self.numerator < 0 && degree % 2 == 0 {
            return None;
        }
        let root = |number: i128| {
            let guess = (number.unsigned_abs() as f64).powf(1.0 / f64::from(degree)).round() as i128;
            let exact = guess.checked_pow(degree)? == number.checked_abs()?;
            exact.then_some(guess * number.signum())
        };
        Self::new(root(self.numerator)?, root(self.denominator)?)
    }
}

pub(crate) fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rational(a: i128, b: i128) -> Rational {
        Rational::new(a, b).unwrap()
    }

    #[test]
    fn arithmetic_is_exact_and_says_when_it_overflows() {
        assert_eq!(rational(1, 3).plus(rational(1, 6)), Rational::new(1, 2));
        assert_eq!(rational(2, 3).power(-2), Rational::new(9, 4));
        assert_eq!(rational(0, 1).power(-1), None);
        assert_eq!(rational(8, 27).root(3), Rational::new(2, 3));
        assert_eq!(rational(-8, 1).root(3), Rational::new(-2, 1));
        assert_eq!(rational(-4, 1).root(2), None);
        assert_eq!(rational(2, 1).root(2), None);
        assert_eq!(rational(i128::MAX, 1).plus(Rational::ONE), None);
        assert_eq!(rational(10, 1).power(40), None);
        assert_eq!(Rational::new(1, i128::MIN), None);
    }
}
