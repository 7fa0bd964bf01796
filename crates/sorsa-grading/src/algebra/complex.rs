//! Complex numbers in double precision, principal branches.

/// `re + i im`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Complex {
    pub re: f64,
    pub im: f64,
}

impl Complex {
    pub const I: Self = Self { re: 0.0, im: 1.0 };

    pub const fn real(re: f64) -> Self {
        Self { re, im: 0.0 }
    }

    pub fn abs(self) -> f64 {
        self.re.hypot(self.im)
    }

    pub fn plus(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }

    pub fn negated(self) -> Self {
        Self { re: -self.re, im: -self.im }
    }

    pub fn times(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }

    pub fn divided_by(self, other: Self) -> Self {
        let norm = other.re * other.re + other.im * other.im;
        let top = self.times(Self { re: other.re, im: -other.im });
        Self { re: top.re / norm, im: top.im / norm }
    }

    pub fn exp(self) -> Self {
        let (size, (sin, cos)) = (self.re.exp(), self.im.sin_cos());
        Self { re: size * cos, im: size * sin }
    }

    pub fn ln(self) -> Self {
        // Adding 0 turns -0 into 0: a negative real number lies on the upper side of the cut, however it came about.
        Self { re: self.abs().ln(), im: (self.im + 0.0).atan2(self.re) }
    }

    /// `self` to the power `exponent`. A real base with a whole exponent stays real.
    pub fn power(self, exponent: Self) -> Self {
        let whole = exponent.im == 0.0 && exponent.re.fract() == 0.0 && exponent.re.abs() < 1e9;
        if self.im == 0.0 && exponent.im == 0.0 && (self.re >= 0.0 || whole) {
            return Self::real(self.re.powf(exponent.re));
        }
        self.ln().times(exponent).exp()
    }

    pub fn sin(self) -> Self {
        Self { re: self.re.sin() * self.im.cosh(), im: self.re.cos() * self.im.sinh() }
    }

    pub fn cos(self) -> Self {
        Self { re: self.re.cos() * self.im.cosh(), im: -self.re.sin() * self.im.sinh() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn euler_s_identity_and_the_principal_root_hold() {
        let minus_one = Complex::I.times(Complex::real(std::f64::consts::PI)).exp();
        assert!(minus_one.plus(Complex::real(1.0)).abs() < 1e-15);
        assert!(Complex::real(1.0).negated().power(Complex::real(0.5)).im > 0.0);
        let root = Complex::real(-4.0).power(Complex::real(0.5));
        assert!(root.plus(Complex { re: 0.0, im: -2.0 }).abs() < 1e-15);
        assert_eq!(Complex::real(-2.0).power(Complex::real(3.0)), Complex::real(-8.0));
    }
}
