//! Expressions compared as values.
//!
//! Two expressions are the same if they agree at [`POINTS`] fixed points, at which every variable stands for a fraction
//! that depends on its name. If both sides are rational they are compared exactly; so two polynomials or rational functions
//! that differ are told apart, except by an accident of the points. With radicals, pi, logarithms or numbers
//! beyond 127 bits they are compared in double precision, to 1e-9 of the larger one.

mod complex;
pub(crate) mod expr;
mod rational;

pub(crate) use expr::{Expr, Function, Point, Value};
pub use rational::Rational;

/// How many points two expressions are compared at.
const POINTS: u64 = 6;

/// Whether two expressions are the same. `false` if one has no value.
pub(crate) fn same_expression(a: &Expr, b: &Expr) -> bool {
    let (mut agreed, real) = (0, is_real(&[a, b]));
    for index in 0..POINTS {
        // Where only one side has a value the domains differ, which answers are forgiven: x^2/x is x.
        if let (Some(a), Some(b)) = (a.value(Point { index, real }), b.value(Point { index, real })) {
            if !a.same(b) {
                return false;
            }
            agreed += 1;
        }
    }
    agreed >= 2
}

/// Whether `a` is a constant multiple of `b`, and whether the constant is positive: what makes `a = 0` the same equation
/// as `b = 0`, and `a < 0` the same inequality as `b < 0`.
pub(crate) fn proportional(a: &Expr, b: &Expr) -> Option<bool> {
    let real = is_real(&[a, b]);
    let ratios: Vec<Value> = (0..POINTS)
        .filter_map(|index| Expr::Quotient(Box::new(a.clone()), Box::new(b.clone())).value(Point { index, real }))
        .collect();
    let first = ratios.first().filter(|ratio| ratio.approx.abs() > 1e-12 && ratio.approx.im == 0.0)?;
    (ratios.len() >= 2 && ratios.iter().all(|ratio| ratio.same(*first))).then_some(first.approx.re > 0.0)
}

/// The value of an expression without variables.
pub(crate) fn constant(expr: &Expr) -> Option<Value> {
    if has_variable(expr) { None } else { expr.value(Point { index: 0, real: false }) }
}

/// Whether an expression has a variable.
pub(crate) fn has_variable(expr: &Expr) -> bool {
    let mut found = false;
    expr.visit(&mut |part| found |= matches!(part, Expr::Variable(_)));
    found
}

fn is_real(sides: &[&Expr]) -> bool {
    let mut imaginary = false;
    sides.iter().for_each(|side| side.visit(&mut |part| imaginary |= *part == Expr::I));
    !imaginary && sides.iter().any(|side| has_variable(side))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn x() -> Expr {
        Expr::Variable("x".into())
    }

    fn square(base: Expr) -> Expr {
        Expr::Power(Box::new(base), Box::new(Expr::whole(2)))
    }

    #[test]
    fn a_square_equals_its_expansion_and_nothing_near_it() {
        let short = square(Expr::Sum(vec![x(), Expr::whole(1)]));
        let long =
            |constant| Expr::Sum(vec![square(x()), Expr::Product(vec![Expr::whole(2), x()]), Expr::Number(constant)]);
        assert!(same_expression(&short, &long(Rational::ONE)));
        assert!(!same_expression(&short, &long(Rational::new(1_000_000_000_001, 1_000_000_000_000).unwrap())));
    }

    #[test]
    fn the_root_of_a_square_is_the_absolute_value() {
        let root = Expr::Root(Box::new(Expr::whole(2)), Box::new(square(x())));
        assert!(same_expression(&root, &Expr::Call(Function::Abs, Box::new(x()))));
        assert!(!same_expression(&root, &x()));
    }

    #[test]
    fn what_has_no_value_equals_nothing() {
        let pole = Expr::Quotient(Box::new(Expr::whole(1)), Box::new(Expr::whole(0)));
        assert!(!same_expression(&pole, &pole));
        let huge = Expr::Power(Box::new(Expr::whole(10)), Box::new(Expr::whole(400)));
        assert!(!same_expression(&huge, &huge), "beyond double precision");
        assert!(same_expression(&Expr::Infinity, &Expr::Infinity));
        assert!(!same_expression(&Expr::Infinity, &Expr::Negated(Box::new(Expr::Infinity))));
    }

    #[test]
    fn multiples_are_told_with_their_sign() {
        let twice = |factor| Expr::Product(vec![Expr::whole(factor), x()]);
        assert_eq!(proportional(&twice(4), &twice(2)), Some(true));
        assert_eq!(proportional(&twice(-4), &twice(2)), Some(false));
        assert_eq!(proportional(&twice(1), &square(x())), None);
    }
}
