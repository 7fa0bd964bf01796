//! Progress of long work: a bar on a terminal, plain lines elsewhere, nothing with `--quiet`.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal::visible;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Bar,
    Lines,
    Quiet,
}

impl Style {
    pub fn choose(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Bar,
            (false, false) => Self::Lines,
        }
    }
}

/// Work of a known size.
pub struct Progress {
    what: &'static str,
    total: u64,
    style: Style,
    bar: ProgressBar,
    started: Instant,
    last_line: std::sync::Mutex<LastLine>,
}

/// The last plain line: when it came, and what was done then.
struct LastLine {
    at: Instant,
    done: u64,
}

/// Plain lines come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    pub fn new(what: &'static str, total: u64, style: Style) -> Self {
        let bar = if style == Style::Bar { ProgressBar::new(total) } else { ProgressBar::hidden() };
        let template = "{msg:28} {bar:32} {pos}/{len}  {elapsed} elapsed, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("a constant template"));
        bar.set_message(what);
        let now = Instant::now();
        let last_line = std::sync::Mutex::new(LastLine { at: now, done: 0 });
        Self { what, total, style, bar, started: now, last_line }
    }

    /// Shows that `done` is done; `note` says more.
    pub fn set(&self, done: u64, note: &str) {
        match self.style {
            Style::Bar => {
                self.bar.set_position(done);
                self.bar.set_message(if note.is_empty() { self.what.to_owned() } else { visible(note).into_owned() });
            }
            Style::Lines => {
                let mut last = self.last_line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let ends = done == self.total && last.done != done;
                if last.at.elapsed() >= LINE_EVERY || ends {
                    *last = LastLine { at: Instant::now(), done };
                    let left = self.started.elapsed().as_secs_f64() / done.max(1) as f64 * (self.total - done) as f64;
                    let note = if note.is_empty() { String::new() } else { format!(", {note}") };
                    eprintln!("{} {done}/{}{note}, {left:.0} s left", self.what, self.total);
                }
            }
            Style::Quiet => {}
        }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// A line beside the bar.
    pub fn line(&self, text: &str) {
        match self.style {
            Style::Bar => self.bar.println(visible(text)),
            Style::Lines => eprintln!("{text}"),
            Style::Quiet => {}
        }
    }
}
