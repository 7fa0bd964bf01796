//! `report.html`: a run in one file that opens anywhere. No scripts, no links, pictures inside; light or dark as the
//! reader's system is.

use std::fmt::{self, Display, Formatter, Write};

use serde_json::{Map, Value};
use sorsa_grading::grade::{Grader, Score, Verdict};
use sorsa_grading::stats::Proportion;

use crate::ReportError;
use crate::page::document;
use crate::plot::TrainingCurves;

/// Content of a report.
#[derive(Debug, Clone, Default)]
pub struct RunReport {
    /// The heading.
    pub title: String,
    /// Model, data and machine, such as `("machine", "8 cores, 32 GB")`: one line under the heading.
    pub setting: Vec<(String, String)>,
    /// The content of `summary.json`. Keys ending in `_bytes` and `seconds` are shown in readable units.
    pub summary: Map<String, Value>,
    /// The model before training.
    pub before: LossAndScores,
    /// The model after training.
    pub after: LossAndScores,
    /// The learning curves.
    pub curves: TrainingCurves,
    /// Some generations of the trained model.
    pub samples: Vec<Sample>,
    /// The resolved recipe, as text.
    pub recipe: String,
}

/// Loss and scores of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossAndScores {
    /// Loss on held-out data, in nats per target token.
    pub loss: Option<f64>,
    /// What each grader says, by its name.
    pub scores: Vec<(String, Score)>,
}

/// One prompt and its answer by the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The prompt.
    pub prompt: String,
    /// The expected answer.
    pub expected: String,
    /// The generated text.
    pub generated: String,
    /// A grader's verdict, if the task has answers.
    pub verdict: Option<Verdict>,
}

impl RunReport {
    /// The report as an HTML document. Parts without content are left out.
    ///
    /// # Errors
    /// [`ReportError::Draw`] if a figure cannot be drawn.
    pub fn html(&self) -> Result<String, ReportError> {
        let figures: Vec<_> = self
            .curves
            .figures()
            .iter()
            .map(|figure| {
                let caption = Escaped(&figure.title);
                Ok(format!("<figure><figcaption>{caption}</figcaption>\n{}</figure>\n", figure.svg()?))
            })
            .collect::<Result<_, ReportError>>()?;
        let setting: Vec<_> = self.setting.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let recipe = match self.recipe.as_str() {
            "" => String::new(),
            recipe => format!("<pre class=\"recipe\">{}</pre>\n", Escaped(recipe)),
        };
        let sections = [
            ("Before and after", comparison(&self.before, &self.after)),
            ("Run", summary(&self.summary)),
            ("Curves", nonempty("<div class=\"figures\">\n", &figures.concat(), "</div>\n")),
            ("Generations", samples(&self.samples)),
            ("Recipe", recipe),
        ];
        Ok(document(&self.title, &setting.join(" · "), &sections))
    }
}

fn nonempty(before: &str, content: &str, after: &str) -> String {
    if content.is_empty() { String::new() } else { format!("{before}{content}{after}") }
}

/// The table of measures before and after, those that were taken of at least one.
fn comparison(before: &LossAndScores, after: &LossAndScores) -> String {
    let mut rows = String::new();
    let mut row = |name: &str, cells: [String; 3]| {
        let [before, after, change] = cells.map(|cell| if cell.is_empty() { "–".to_owned() } else { cell });
        rows += &format!("<tr><th>{name}</th><td>{before}</td><td>{after}</td><td>{change}</td></tr>\n");
    };
    let both = |before: Option<f64>, after: Option<f64>, decimals: usize| {
        let show = |value: Option<f64>| value.map(|value| format!("{value:.decimals$}")).unwrap_or_default();
        [show(before), show(after), before.zip(after).map(|(b, a)| signed(a - b, decimals)).unwrap_or_default()]
    };
    if before.loss.or(after.loss).is_some() {
        row("Loss <small>nats per target token</small>", both(before.loss, after.loss, 4));
        row("Perplexity", both(before.loss.map(f64::exp), after.loss.map(f64::exp), 3));
    }
    // The graders of texts in their usual order, then all others.
    let mut names: Vec<&str> = Grader::ALL.map(Grader::name).to_vec();
    for (name, _) in before.scores.iter().chain(&after.scores) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    for grader in names {
        let score = |evaluation: &LossAndScores| {
            evaluation.scores.iter().find(|(other, _)| other == grader).map(|(_, score)| *score)
        };
        let (before, after) = (score(before), score(after));
        if before.or(after).is_none() {
            continue;
        }
        for (name, part) in [
            ("Accuracy", (|score| score.correct) as fn(Score) -> Proportion),
            ("No answer found", |score| score.unanswered),
        ] {
            let (before, after) = (before.map(part), after.map(part));
            let change = before
                .zip(after)
                .map(|(b, a)| format!("{} points", signed(100.0 * (a.rate() - b.rate()), 1)))
                .unwrap_or_default();
            let cell = |part: Option<Proportion>| part.map(proportion).unwrap_or_default();
            row(&format!("{name} <small>{}</small>", Escaped(grader)), [cell(before), cell(after), change]);
        }
    }
    let head = "<table>\n<thead><tr><th></th><th>before</th><th>after</th><th>change</th></tr></thead>\n<tbody>\n";
    nonempty(head, &rows, "</tbody>\n</table>\n<p><small>Ranges are 95 % intervals (Wilson).</small></p>\n")
}

/// A share with its interval, in numbers and as a bar over 0 to 100 %.
fn proportion(part: Proportion) -> String {
    let interval = part.interval();
    let [rate, low, high] = [part.rate(), interval.low, interval.high].map(|share| 100.0 * share);
    format!(
        "{rate:.1} % <small>{low:.1} to {high:.1}, {} of {}</small>\
         <div class=\"interval\"><i style=\"left:{low:.1}%;width:{:.1}%\"></i><b style=\"left:{rate:.1}%\"></b></div>",
        part.successes,
        part.total,
        high - low,
    )
}

fn signed(value: f64, decimals: usize) -> String {
    format!("{value:+.decimals$}").replace('-', "−")
}

fn summary(summary: &Map<String, Value>) -> String {
    let entries: String = summary
        .iter()
        .map(|(key, value)| {
            let (label, value) = readable(key, value);
            format!("<div><dt>{}</dt><dd>{}</dd></div>\n", Escaped(&label), Escaped(&value))
        })
        .collect();
    nonempty("<dl>\n", &entries, "</dl>\n")
}

/// A field of a summary: its label and its value, in words.
fn readable(key: &str, value: &Value) -> (String, String) {
    let (name, value) = match (key, value) {
        (_, Value::String(text)) => (key, text.clone()),
        (_, Value::Null) => (key, "–".to_owned()),
        ("seconds", Value::Number(number)) => ("time", duration(number.as_f64().unwrap_or(f64::NAN))),
        (_, Value::Number(number)) => match key.strip_suffix("_bytes") {
            Some(name) => (name, number.as_u64().map_or_else(|| number.to_string(), bytes)),
            None => (key, self::number(number)),
        },
        (_, other) => (key, other.to_string()),
    };
    (name.replace('_', " "), value)
}

/// Integers with their digits in groups of three, other numbers with five significant digits.
fn number(number: &serde_json::Number) -> String {
    let (digits, fraction) = match (number.as_i64(), number.as_f64()) {
        (None, Some(value)) if (1e-3..1e7).contains(&value.abs()) => {
            let decimals = (4 - value.abs().log10().floor() as i32).clamp(0, 8) as usize;
            let fixed = format!("{value:.decimals$}");
            let (whole, fraction) = fixed.split_once('.').unwrap_or((&fixed, ""));
            (whole.to_owned(), nonempty(".", fraction.trim_end_matches('0'), ""))
        }
        (Some(_), _) => (number.to_string(), String::new()),
        (None, Some(value)) if value != 0.0 => return format!("{value:e}").replace('-', "−"),
        _ => return number.to_string(),
    };
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |digits| ("−", digits));
    let mut grouped = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{seconds:.1} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// A number of bytes in decimal units: `1.50 GB`. Everything that people read uses it, in the terminal and in files.
pub fn bytes(count: u64) -> String {
    let value = count as f64;
    match count {
        1_000_000_000.. => format!("{:.2} GB", value / 1e9),
        1_000_000.. => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.1} kB", value / 1e3),
    }
}

fn samples(samples: &[Sample]) -> String {
    let mut rows = String::new();
    for Sample { prompt, expected, generated, verdict } in samples {
        let verdict = match verdict {
            None => "–".to_owned(),
            Some(Verdict { extracted: None, .. }) => "<span class=\"bad\">✗ no answer</span>".to_owned(),
            Some(Verdict { extracted: Some(found), correct }) => {
                let (class, word) = if *correct { ("good", "✓ right") } else { ("bad", "✗ wrong") };
                format!("<span class=\"{class}\">{word}</span><br><small>read as {}</small>", Escaped(found))
            }
        };
        let cell = |text| format!("<td><pre>{}</pre></td>", Escaped(text));
        let cells = [cell(prompt), cell(expected), cell(generated)].concat();
        rows += &format!("<tr>{cells}<td>{verdict}</td></tr>\n");
    }
    let head = "<table class=\"samples\">\n<colgroup><col><col><col><col></colgroup>\n<thead><tr><th>prompt</th>\
                <th>expected</th><th>generated</th><th>verdict</th></tr></thead>\n<tbody>\n";
    nonempty(head, &rows, "</tbody>\n</table>\n")
}

/// Text with the characters that HTML takes for its own replaced.
pub(crate) struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            other => f.write_char(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOSTILE: &str = "<script>alert('1 & \"2\"')</script>";

    fn score(correct: u64, unanswered: u64, total: u64) -> Score {
        Score {
            correct: Proportion { successes: correct, total },
            unanswered: Proportion { successes: unanswered, total },
        }
    }

    fn report() -> RunReport {
        let Value::Object(summary) = json!({
            "method": HOSTILE, "trainable_parameters": 1234567, "loss_after": 0.912345678, "seconds": 3725.2,
            "peak_memory_bytes": 3221225472u64, "learning_rate": 3e-5, "resumed": null, "tokens_per_s": 10234.5678,
        }) else {
            unreachable!("an object was written")
        };
        RunReport {
            title: HOSTILE.to_owned(),
            setting: vec![(HOSTILE.to_owned(), HOSTILE.to_owned())],
            summary,
            before: LossAndScores { loss: Some(2.0), scores: vec![("strict".to_owned(), score(10, 50, 200))] },
            after: LossAndScores {
                loss: Some(1.0),
                scores: vec![("strict".to_owned(), score(120, 2, 200)), ("faithful".to_owned(), score(130, 2, 200))],
            },
            curves: TrainingCurves { train_loss: vec![(1.0, 2.0), (2.0, 1.0)], ..Default::default() },
            samples: vec![Sample {
                prompt: HOSTILE.to_owned(),
                expected: HOSTILE.to_owned(),
                generated: HOSTILE.to_owned(),
                verdict: Some(Verdict { extracted: Some(HOSTILE.to_owned()), correct: true }),
            }],
            recipe: HOSTILE.to_owned(),
        }
    }

    #[test]
    fn every_text_from_outside_is_escaped() {
        let html = report().html().unwrap();
        assert!(!html.contains("<script") && !html.contains("alert('"), "{html}");
        assert_eq!(html.matches("&lt;script&gt;alert(&#39;1 &amp; &quot;2&quot;&#39;)").count(), 10);
    }

    #[test]
    fn the_file_needs_nothing_beside_it() {
        let html = report().html().unwrap();
        let svg_namespace = "http://www.w3.org/2000/svg";
        assert!(!html.replace(svg_namespace, "").contains("http"), "a link leaves the file");
        assert!(html.contains("prefers-color-scheme: dark") && html.contains("<svg"));
    }

    #[test]
    fn the_change_is_shown_with_its_intervals() {
        let html = report().html().unwrap();
        for part in [
            "<td>2.0000</td><td>1.0000</td><td>−1.0000</td>",
            "60.0 % <small>53.1 to 66.5, 120 of 200</small>",
            "+55.0 points",
            "Accuracy <small>faithful</small></th><td>–</td>",
        ] {
            assert!(html.contains(part), "{part} is missing from {html}");
        }
    }

    #[test]
    fn bytes_are_shown_in_decimal_units() {
        let counts = [197, 401_900, 153_900_000, 3 << 30];
        assert_eq!(counts.map(bytes), ["0.2 kB", "401.9 kB", "153.9 MB", "3.22 GB"]);
    }

    #[test]
    fn a_summary_is_shown_in_readable_units() {
        let html = report().html().unwrap();
        for part in [
            "<dt>trainable parameters</dt><dd>1,234,567</dd>",
            "<dt>loss after</dt><dd>0.91235</dd>",
            "<dt>time</dt><dd>1 h 02 min</dd>",
            "<dt>peak memory</dt><dd>3.22 GB</dd>",
            "<dt>learning rate</dt><dd>3e−5</dd>",
            "<dt>resumed</dt><dd>–</dd>",
            "<dt>tokens per s</dt><dd>10,235</dd>",
        ] {
            assert!(html.contains(part), "{part} is missing from {html}");
        }
    }

    #[test]
    fn parts_without_content_are_left_out() {
        let html = RunReport { title: "empty".to_owned(), ..Default::default() }.html().unwrap();
        assert!(!html.contains("<h2>") && !html.contains("<table") && html.ends_with("</html>\n"));
    }
}
