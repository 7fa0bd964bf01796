//! Expressions and their values at a point: exactly if every step is rational, and in double precision.

use super::complex::Complex;
use super::rational::Rational;

/// An expression. Sums and products are flat, so that a long one is no deep one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expr {
    Number(Rational),
    Variable(String),
    Pi,
    /// Euler's number.
    E,
    /// The imaginary unit.
    I,
    Infinity,
    Sum(Vec<Expr>),
    Product(Vec<Expr>),
    Negated(Box<Expr>),
    Quotient(Box<Expr>, Box<Expr>),
    Power(Box<Expr>, Box<Expr>),
    /// Degree and radicand.
    Root(Box<Expr>, Box<Expr>),
    Call(Function, Box<Expr>),
    /// Base and argument.
    Log(Box<Expr>, Box<Expr>),
    Binomial(Box<Expr>, Box<Expr>),
}

/// A function of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Asin,
    Acos,
    Atan,
    Exp,
    Ln,
    Abs,
    Floor,
    Ceiling,
    Factorial,
    /// An angle in degrees, as one in radians.
    Degrees,
}

/// The value of an expression at a point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Value {
    pub exact: Option<Rational>,
    pub approx: Complex,
}

/// What the variables stand for, and whether results have to be real.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    /// Chooses the values of the variables.
    pub index: u64,
    /// With variables and no imaginary unit, an expression is of real numbers: `\sqrt{x}` has no value at -2.
    pub real: bool,
}

impl Point {
    /// The value of a variable: a fraction that depends on its name and the point alone, negative at every third point.
    fn variable(self, name: &str) -> Rational {
        // FNV-1a: the same on every machine.
        let hash = name
            .bytes()
            .chain(self.index.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let numerator = 11 + (hash >> 8) % 89;
        let denominator = [7, 9, 11, 13][(hash >> 40) as usize % 4];
        let sign = if self.index % 3 == 2 { -1 } else { 1 };
        Rational::new(sign * i128::from(numerator), denominator).unwrap_or(Rational::ONE)
    }
}

impl Value {
    pub fn exact(value: Rational) -> Self {
        Self { exact: Some(value), approx: Complex::real(value.to_f64()) }
    }

    fn near(approx: Complex) -> Self {
        Self { exact: None, approx }
    }

    /// Equal exactly if both are exact; else within 1e-9 of the larger, and 1e-12.
    pub fn same(self, other: Self) -> bool {
        if let (Some(a), Some(b)) = (self.exact, other.exact) {
            return a == b;
        }
        let (a, b) = (self.approx, other.approx);
        if a.re.is_infinite() || b.re.is_infinite() {
            return a == b;
        }
        a.plus(b.negated()).abs() <= 1e-9 * a.abs().max(b.abs()) + 1e-12
    }
}

impl Expr {
    pub fn whole(number: i64) -> Self {
        Self::Number(Rational::whole(number))
    }

    /// Calls `visit` on the expression and all its parts.
    pub fn visit(&self, visit: &mut impl FnMut(&Expr)) {
        visit(self);
        match self {
            Self::Number(_) | Self::Variable(_) | Self::Pi | Self::E | Self::I | Self::Infinity => {}
            Self::Sum(parts) | Self::Product(parts) => parts.iter().for_each(|part| part.visit(visit)),
            Self::Negated(x) | Self::Call(_, x) => x.visit(visit),
            Self::Quotient(a, b) | Self::Power(a, b) | Self::Root(a, b) | Self::Log(a, b) | Self::Binomial(a, b) => {
                a.visit(visit);
                b.visit(visit);
            }
        }
    }

    /// The value at a point; `None` if there is none.
    pub fn value(&self, point: Point) -> Option<Value> {
        if *self == Self::Infinity {
            return Some(Value::near(Complex::real(f64::INFINITY)));
        }
        if *self == Self::Negated(Box::new(Self::Infinity)) {
            return Some(Value::near(Complex::real(f64::NEG_INFINITY)));
        }
        let value = self.finite(point)?;
        let defined = value.approx.re.is_finite() && value.approx.im.is_finite();
        (defined && (!point.real || value.approx.im == 0.0)).then_some(value)
    }

    fn finite(&self, point: Point) -> Option<Value> {
        Some(match self {
            Self::Number(number) => Value::exact(*number),
            Self::Variable(name) => Value::exact(point.variable(name)),
            Self::Pi => Value::near(Complex::real(std::f64::consts::PI)),
            Self::E => Value::near(Complex::real(std::f64::consts::E)),
            Self::I => Value::near(Complex::I),
            Self::Infinity => return None,
            Self::Sum(parts) => {
                let mut sum = Value::exact(Rational::ZERO);
                for part in parts {
                    let part = part.value(point)?;
                    sum = combine(sum, part, Rational::plus, Complex::plus);
                }
                sum
            }
            Self::Product(parts) => {
                let mut product = Value::exact(Rational::ONE);
                for part in parts {
                    product = combine(product, part.value(point)?, Rational::times, Complex::times);
                }
                product
            }
            Self::Negated(x) => {
                let x = x.value(point)?;
                Value { exact: x.exact.and_then(Rational::negated), approx: x.approx.negated() }
            }
            Self::Quotient(a, b) => quotient(a.value(point)?, b.value(point)?)?,
            Self::Power(base, exponent) => power(base.value(point)?, exponent.value(point)?)?,
            Self::Root(degree, x) => root(degree.value(point)?, x.value(point)?)?,
            Self::Call(function, x) => function.value(x.value(point)?)?,
            Self::Log(base, x) => {
                let (base, x) = (Function::Ln.value(base.value(point)?)?, Function::Ln.value(x.value(point)?)?);
                quotient(x, base)?
            }
            Self::Binomial(n, k) => binomial(n.value(point)?.exact?.integer()?, k.value(point)?.exact?.integer()?)?,
        })
    }
}

fn combine(
    a: Value,
    b: Value,
    exact: impl Fn(Rational, Rational) -> Option<Rational>,
    approx: impl Fn(Complex, Complex) -> Complex,
) -> Value {
    Value { exact: a.exact.zip(b.exact).and_then(|(a, b)| exact(a, b)), approx: approx(a.approx, b.approx) }
}

fn quotient(a: Value, b: Value) -> Option<Value> {
    let zero = b.exact.map_or(b.approx.abs() == 0.0, |b| b == Rational::ZERO);
    (!zero).then(|| combine(a, b, Rational::divided_by, Complex::divided_by))
}

fn power(base: Value, exponent: Value) -> Option<Value> {
    let zero_base = base.approx.abs() == 0.0;
    if zero_base && exponent.approx.re < 0.0 {
        return None;
    }
    let exact = base.exact.zip(exponent.exact).and_then(|(base, exponent)| match exponent.parts() {
        // A power of 1000 bits is out of reach anyway.
        (whole, 1) if whole.abs() <= 1000 => base.power(whole),
        (top, degree) if top.abs() <= 1000 && base.parts().0 >= 0 => base.root(degree)?.power(top),
        _ => None,
    });
    let approx = exact.map_or_else(|| base.approx.power(exponent.approx), |exact| Complex::real(exact.to_f64()));
    Some(Value { exact, approx })
}

fn root(degree: Value, x: Value) -> Option<Value> {
    let degree = degree.exact?.integer().filter(|degree| (2..1000).contains(degree))?;
    let exact = x.exact.and_then(|x| x.root(degree));
    let approx = match exact {
        Some(exact) => Complex::real(exact.to_f64()),
        // An odd root of a negative number is taken as the real one.
        None if x.approx.im == 0.0 && x.approx.re < 0.0 && degree % 2 == 1 => {
            Complex::real(-(-x.approx.re).powf(1.0 / degree as f64))
        }
        None => x.approx.power(Complex::real(1.0 / degree as f64)),
    };
    Some(Value { exact, approx })
}

fn binomial(n: i128, k: i128) -> Option<Value> {
    if !(0..=1000).contains(&n) || !(0..=n).contains(&k) {
        return None;
    }
    let (mut exact, mut approx) = (Some(Rational::ONE), 1.0);
    for step in 0..k.min(n - k) {
        let factor = Rational::new(n - step, step + 1)?;
        exact = exact.and_then(|product| product.times(factor));
        approx *= factor.to_f64();
    }
    Some(Value { exact, approx: Complex::real(approx) })
}

impl Function {
    fn value(self, x: Value) -> Option<Value> {
        let z = x.approx;
        let one = Complex::real(1.0);
        let inside = |z: Complex| z.im == 0.0 && z.re.abs() <= 1.0;
        // A rational stays rational if that costs nothing.
        let exact = match (self, x.exact.map(Rational::parts)) {
            (Self::Sin | Self::Tan | Self::Asin | Self::Atan | Self::Degrees, Some((0, _))) => Some(Rational::ZERO),
            (Self::Cos | Self::Sec | Self::Exp, Some((0, _))) => Some(Rational::ONE),
            (Self::Ln, Some((1, 1))) => Some(Rational::ZERO),
            (Self::Abs, Some((a, b))) => Rational::new(a.checked_abs()?, b),
            (Self::Floor, Some((a, b))) => Rational::new(a.div_euclid(b), 1),
            (Self::Ceiling, Some((a, b))) => Rational::new(a.div_euclid(b) + i128::from(a % b != 0), 1),
            (Self::Factorial, Some((n @ 0..=170, 1))) => {
                let product = (2..=n).try_fold(1i128, i128::checked_mul).and_then(|product| Rational::new(product, 1));
                let approx = (2..=n).map(|factor| factor as f64).product();
                return Some(Value { exact: product, approx: Complex::real(approx) });
            }
            (Self::Factorial, _) => return None,
            _ => None,
        };
        if let Some(exact) = exact {
            return Some(Value::exact(exact));
        }
        // A pole that rounding has turned into a large number.
        let over = |top: Complex, bottom: Complex| (bottom.abs() > 1e-14).then(|| top.divided_by(bottom));
        Some(Value::near(match self {
            Self::Sin => z.sin(),
            Self::Cos => z.cos(),
            Self::Tan => over(z.sin(), z.cos())?,
            Self::Cot => over(z.cos(), z.sin())?,
            Self::Sec => over(one, z.cos())?,
            Self::Csc => over(one, z.sin())?,
            Self::Asin if inside(z) => Complex::real(z.re.asin()),
            Self::Acos if inside(z) => Complex::real(z.re.acos()),
            Self::Atan if z.im == 0.0 => Complex::real(z.re.atan()),
            Self::Exp => z.exp(),
            Self::Ln if z.abs() > 0.0 => z.ln(),
            Self::Abs => Complex::real(z.abs()),
            Self::Floor if z.im == 0.0 => Complex::real(z.re.floor()),
            Self::Ceiling if z.im == 0.0 => Complex::real(z.re.ceil()),
            Self::Degrees => z.times(Complex::real(std::f64::consts::PI / 180.0)),
            _ => return None,
        }))
    }
}
