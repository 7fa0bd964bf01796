//! Exit codes: 0 done, 1 failed, 2 bad input, 3 training diverged and was to stop then, 130 interrupted.

use std::io::ErrorKind::BrokenPipe;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use sorsa_experiment::ExperimentError;

/// The exit code of a command that a signal ended.
pub const INTERRUPTED: u8 = 130;

/// Marks an error of the input: a wrong file, field or name.
#[derive(Debug)]
pub struct BadInput(anyhow::Error);

impl std::fmt::Display for BadInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&one_line(&self.0))
    }
}

impl std::error::Error for BadInput {}

/// Marks a run that the user has ended.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The exit code of a run that ended because training made the model worse.
const DIVERGED: u8 = 3;

/// Marks a run that ended because training made the model worse.
#[derive(Debug)]
pub struct Diverged;

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("training made the model worse, and the run ended")
    }
}

impl std::error::Error for Diverged {}

/// Turns any error into the caller's.
pub trait OrBadInput<T> {
    /// The same result, its error marked as [`BadInput`].
    fn or_bad_input(self) -> anyhow::Result<T>;

    /// The same, for an error that does not name the file it is about.
    fn or_bad_input_in(self, file: &Path) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrBadInput<T> for Result<T, E> {
    fn or_bad_input(self) -> anyhow::Result<T> {
        self.map_err(|error| BadInput(error.into()).into())
    }

    fn or_bad_input_in(self, file: &Path) -> anyhow::Result<T> {
        self.map_err(|error| BadInput(error.into().context(file.display().to_string())).into())
    }
}

/// An error of the caller's, in words.
pub fn bad_input(message: impl Into<String>) -> anyhow::Error {
    BadInput(anyhow::Error::msg(message.into())).into()
}

/// The lines of a text in one: after a colon comes a list, and between its items a semicolon.
fn joined<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for line in lines.map(str::trim).filter(|line| !line.is_empty()) {
        match text.chars().next_back() {
            None => {}
            Some(':' | ';' | ',') => text.push(' '),
            Some(_) => text.push_str("; "),
        }
        text.push_str(line);
    }
    text
}

/// Joins an error and its causes into one line. A cause is left out if the error before it repeats its text.
fn one_line(error: &anyhow::Error) -> String {
    let mut told: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = joined(cause.to_string().lines());
        if !told.last().is_some_and(|last| last.contains(&text)) {
            told.push(text);
        }
    }
    let experiment = error.chain().find_map(|cause| cause.downcast_ref::<ExperimentError>());
    let option = experiment.and_then(option_for).map_or_else(String::new, |option| format!(" ({option})"));
    shortened(told.join(": ")) + &option
}

/// The option that helps against an error. Libraries name no options.
fn option_for(error: &ExperimentError) -> Option<&'static str> {
    match error {
        ExperimentError::UnknownModel { .. } => Some("--model"),
        ExperimentError::CodeNotAllowed => Some("--allow-code-execution"),
        ExperimentError::RunExists { .. } => Some("--resume"),
        _ => None,
    }
}

/// Characters of an error that are printed from its beginning and from its end, if it is longer than both.
const SHOWN: [usize; 2] = [2400, 600];

/// A long text without its middle: an error may hold names from a file, whatever their number and length.
fn shortened(text: String) -> String {
    let count = text.chars().count();
    let [first, last] = SHOWN;
    if count <= first + last {
        return text;
    }
    let beginning: String = text.chars().take(first).collect();
    let end: String = text.chars().skip(count - last).collect();
    format!("{beginning} .. ({} characters left out) .. {end}", count - first - last)
}

/// Prints the error in one line, if there is one, and chooses the exit code.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let of_experiment = error.downcast_ref::<ExperimentError>();
    if error.is::<Interrupted>() || matches!(of_experiment, Some(ExperimentError::Interrupted { .. })) {
        return ExitCode::from(INTERRUPTED);
    }
    if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == BrokenPipe) {
        // The reader of the output wants no more, like `| head`.
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", one_line(&error));
    if error.is::<Diverged>() {
        return ExitCode::from(DIVERGED);
    }
    let bad_input = error.is::<BadInput>() || of_experiment.is_some_and(ExperimentError::is_bad_input);
    ExitCode::from(if bad_input { 2 } else { 1 })
}

/// Help and version go to standard output; anything wrong with the command line is one line and exit code 2.
pub fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed pipe is the reader's business.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprintln!("error: which command? `sorsa --help` lists them");
    } else {
        let text = error.to_string();
        let lines = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
        eprintln!("{}", joined(lines));
    }
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_any_length_is_printed_in_a_few_lines() {
        let short = anyhow::anyhow!("a\nb").context("file");
        assert_eq!(one_line(&short), "file: a; b");
        let names: Vec<String> = (0..2_000_000).map(|n| format!("k{n}")).collect();
        let long = one_line(&anyhow::anyhow!("unknown fields {}; rename them", names.join(", ")));
        assert!(
            long.len() < 3100 && long.starts_with("unknown fields k0, k1") && long.ends_with("; rename them"),
            "{long}"
        );
        assert!(long.contains("characters left out"));
    }
}
