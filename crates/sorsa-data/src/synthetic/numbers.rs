//! Documents about numbers only.

use std::iter::repeat_with;

use super::draw::Draw;
use super::equation::Equation;
use super::lexicon::DAYS;

fn lines(count: usize, line: impl FnMut() -> String) -> String {
    repeat_with(line).take(count).collect::<Vec<_>>().join("\n")
}

/// Unrelated equations, on lines or in one text.
pub(super) fn equations(draw: &mut Draw) -> String {
    let separator = draw.one_of(&["\n", "\n", ", ", ". "]);
    let count = 7 + draw.below(9);
    let equations: Vec<String> = (0..count).map(|_| Equation::draw(draw).to_string()).collect();
    equations.join(separator)
}

/// Chains of equations: each continues with the result of the last.
pub(super) fn chains(draw: &mut Draw) -> String {
    let count = 3 + draw.below(3);
    lines(count, || {
        let mut equation = Equation::draw(draw);
        let mut chain = vec![equation.to_string()];
        for _ in 0..2 {
            let at = equation.result;
            equation = if at >= 10 && (at > 90 || draw.once_in(2)) {
                Equation::subtract(at, draw.between(1, at.min(99)))
            } else {
                Equation::add(at, draw.between(1, 100 - at))
            };
            chain.push(equation.to_string());
        }
        chain.join(", ")
    })
}

/// Sums with the carry written out.
pub(super) fn carrying(draw: &mut Draw) -> String {
    let count = 3 + draw.below(2);
    lines(count, || {
        let whole = draw.between(30, 99);
        let part = draw.between(11, whole - 11);
        let (left, right) = (whole - part, part);
        let ones = Equation::add(left % 10, right % 10);
        let tens = Equation::add(left / 10, right / 10);
        let sum = Equation::add(left, right);
        if ones.result < 10 {
            format!("The ones: {ones}. The tens: {tens}. So {sum}.")
        } else {
            let carried = Equation::add(tens.result, 1);
            format!("The ones: {ones}, write {} and carry 1. The tens: {tens}, {carried}. So {sum}.", ones.result - 10)
        }
    })
}

/// The four equations of three numbers.
pub(super) fn families(draw: &mut Draw) -> String {
    let count = 2 + draw.below(2);
    lines(count, || {
        let sum = draw.between(5, 100);
        let a = draw.between(1, sum - 1);
        let b = sum - a;
        let mut family =
            [Equation::add(a, b), Equation::add(b, a), Equation::subtract(sum, a), Equation::subtract(sum, b)];
        draw.shuffle(&mut family);
        family.map(|equation| equation.to_string()).join(", ")
    })
}

/// Two multiplication tables, mostly out of order.
pub(super) fn tables(draw: &mut Draw) -> String {
    let swapped = draw.once_in(2);
    let separator = if swapped { ", " } else { "\n" };
    let numbers: [i64; 2] = draw.some_of(&[2, 3, 4, 5, 6, 7, 8, 9]);
    let tables = numbers.map(|n| {
        let mut factors: Vec<i64> = (1..=9).collect();
        if !draw.once_in(4) {
            draw.shuffle(&mut factors);
        }
        let rows = factors.iter().map(|&k| if swapped { Equation::multiply(k, n) } else { Equation::multiply(n, k) });
        rows.map(|row| row.to_string()).collect::<Vec<_>>().join(separator)
    });
    tables.join("\n")
}

/// Which of two numbers is more, and by how much.
pub(super) fn comparisons(draw: &mut Draw) -> String {
    let count = 4 + draw.below(3);
    lines(count, || {
        let more = draw.between(2, 99);
        let less = draw.between(1, more - 1);
        let gap = Equation::subtract(more, less);
        match draw.below(4) {
            0 => format!("{more} is more than {less}, and {less} is less than {more}."),
            1 => format!("{more} is {} more than {less}: {gap}.", gap.result),
            2 => format!("{less} is {} less than {more}: {gap}.", gap.result),
            _ => format!("From {less} to {more} it is {}, because {}.", gap.result, Equation::add(less, gap.result)),
        }
    })
}

/// Counting up or down by one, two, three, five or ten.
pub(super) fn counting(draw: &mut Draw) -> String {
    let step = *draw.one_of(&[&1, &1, &2, &3, &5, &10]);
    let steps = 10 + draw.below(8) as i64;
    let low = draw.between(0, 12.max(100 - step * steps));
    let up = draw.once_in(2);
    let run: Vec<String> =
        (0..steps).map(|i| low + step * if up { i } else { steps - 1 - i }).map(|n| n.to_string()).collect();
    let (first, last) = (&run[0], &run[run.len() - 1]);
    format!("We count {} by {step} from {first} to {last}: {}.", if up { "up" } else { "down" }, run.join(", "))
}

/// Tens and ones, doubles and halves.
pub(super) fn digits(draw: &mut Draw) -> String {
    let count = 3 + draw.below(3);
    lines(count, || {
        let n = draw.between(11, 99);
        let half = draw.between(2, 50);
        match draw.below(4) {
            0 => format!("{n} has {}.", places(n)),
            1 => format!("{} make {n}.", places(n)),
            2 => format!("Double {half} is {}, because {}.", half * 2, Equation::add(half, half)),
            _ => format!("Half of {} is {half}. {}.", half * 2, Equation::subtract(half * 2, half)),
        }
    })
}

/// `4 tens and 7 ones`.
fn places(n: i64) -> String {
    let [ten, one] = [(n / 10, "ten"), (n % 10, "one")].map(|(count, place)| match count {
        1 => format!("1 {place}"),
        _ => format!("{count} {place}s"),
    });
    format!("{ten} and {one}")
}

/// Days of the week and hours of the day.
pub(super) fn calendar(draw: &mut Draw) -> String {
    let count = 4 + draw.below(3);
    lines(count, || {
        let day = draw.below(7);
        let (today, after) = (DAYS[day], draw.below(6) + 1);
        let hour = draw.between(1, 11);
        let hours = draw.between(1, 12 - hour);
        match draw.below(4) {
            0 => format!("Today is {today}. Tomorrow is {}.", DAYS[(day + 1) % 7]),
            1 => format!("After {today} comes {}, and before it comes {}.", DAYS[(day + 1) % 7], DAYS[(day + 6) % 7]),
            2 if after > 1 => format!("Today is {today}. In {after} days it is {}.", DAYS[(day + after) % 7]),
            _ => {
                let unit = if hours == 1 { "hour" } else { "hours" };
                format!("It is {hour} now. In {hours} {unit} it is {}.", hour + hours)
            }
        }
    })
}
