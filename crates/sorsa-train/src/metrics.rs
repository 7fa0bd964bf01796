//! `metrics.jsonl`: one JSON object a line, for every optimizer step, evaluation and measurement of the weights of a run.
//!
//! ```text
//! {"kind":"step","step":1,"epoch":0.01,"loss":3.21,"learning_rate":3e-5,..}
//! {"kind":"eval","step":100,"loss":2.9,"perplexity":18.2}
//! {"kind":"watch","step":100,"all":{"modules":28,"kappa_part":41.2,..},"by_kind":{"q_proj":{..},..}}
//! ```

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use sorsa_adapter::ModuleMeasures;
use sorsa_files::{FileError, at, write_atomic};

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Metric {
    /// An optimizer step.
    Step(StepMetrics),
    /// An evaluation between steps.
    Eval(EvalMetrics),
    /// A measurement of factors and weights between steps.
    Watch(WatchMetrics),
}

/// What one optimizer step did. A number that is not finite is written as `null` and read back as NaN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Steps done, this one included.
    pub step: u64,
    /// Passes over the training data so far, with their fraction.
    pub epoch: f64,
    /// Mean negative log-likelihood of this step's target tokens, in nats.
    #[serde(deserialize_with = "nan_if_null")]
    pub loss: f64,
    /// The learning rate this step used.
    pub learning_rate: f64,
    /// The weight of the orthonormal regularizer, if the method has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// Global norm of the task's gradient, before clipping.
    #[serde(deserialize_with = "nan_if_null")]
    pub grad_norm: f64,
    /// The value of the orthonormal regularizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regularizer: Option<f64>,
    /// Mean over the factors of `||U^T U - I||_F / sqrt(rank)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defect: Option<f64>,
    /// Tokens of this step's batches without padding.
    pub tokens: u64,
    /// Tokens that count in the loss.
    pub target_tokens: u64,
    /// Tokens per second of this step.
    pub tokens_per_s: f64,
    /// Seconds spent in steps so far, without evaluations and checkpoints. A resumed run adds to them.
    pub seconds: f64,
    /// Peak resident memory of the process so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

/// What an evaluation found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// Optimizer steps done before it; 0 is the untrained model.
    pub step: u64,
    /// Mean negative log-likelihood of the target tokens, in nats.
    #[serde(deserialize_with = "nan_if_null")]
    pub loss: f64,
    /// `exp(loss)`.
    #[serde(deserialize_with = "nan_if_null")]
    pub perplexity: f64,
}

/// Condition numbers and defects after a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WatchMetrics {
    /// Optimizer steps done before it; 0 is the start.
    pub step: u64,
    /// Of all trained modules.
    pub all: WatchedModules,
    /// Of the modules of each kind (`q_proj`, ..).
    pub by_kind: BTreeMap<String, WatchedModules>,
}

/// Averages over modules: of condition numbers geometric, of defects arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WatchedModules {
    /// How many modules.
    pub modules: usize,
    /// Condition number of the trained part; absent if weights themselves are trained, NaN if a part has a smaller rank, like LoRA's at the
    /// start.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_nan_if_null")]
    pub kappa_part: Option<f64>,
    /// How many of the modules are in [`kappa`](Self::kappa).
    pub weights: usize,
    /// Condition number of the whole weight.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_nan_if_null")]
    pub kappa: Option<f64>,
    /// Defect of the regularized factors; absent if none is regularized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defect: Option<f64>,
    /// The largest defect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_defect: Option<f64>,
}

impl WatchMetrics {
    /// The averages of `measures`, after `step`.
    pub fn new(step: u64, measures: &[ModuleMeasures]) -> Self {
        let mut kinds: BTreeMap<&str, Vec<&ModuleMeasures>> = BTreeMap::new();
        for measured in measures {
            kinds.entry(measured.kind()).or_default().push(measured);
        }
        let by_kind =
            kinds.into_iter().map(|(kind, of_kind)| (kind.to_owned(), WatchedModules::of(&of_kind))).collect();
        Self { step, all: WatchedModules::of(&measures.iter().collect::<Vec<_>>()), by_kind }
    }

    /// The values with the names that TensorBoard shows.
    pub(crate) fn scalars(&self) -> Vec<(String, f64)> {
        let mut scalars = Vec::new();
        let kinds = self.by_kind.iter().map(|(kind, modules)| (format!("/{kind}"), modules));
        for (kind, modules) in std::iter::once((String::new(), &self.all)).chain(kinds) {
            let values = [("kappa_part", modules.kappa_part), ("kappa", modules.kappa), ("defect", modules.defect)];
            scalars
                .extend(values.into_iter().filter_map(|(name, value)| Some((format!("watch/{name}{kind}"), value?))));
        }
        scalars
    }
}

impl WatchedModules {
    fn of(measures: &[&ModuleMeasures]) -> Self {
        let geometric_mean = |values: Vec<f64>| match values.len() {
            0 => None,
            count => Some((values.into_iter().map(f64::ln).sum::<f64>() / count as f64).exp()),
        };
        let whole: Vec<f64> = measures.iter().filter_map(|measured| measured.kappa).collect();
        let defects: Vec<f64> = measures.iter().flat_map(|measured| measured.defects.iter().copied()).collect();
        Self {
            modules: measures.len(),
            kappa_part: geometric_mean(measures.iter().filter_map(|measured| measured.kappa_part).collect()),
            weights: whole.len(),
            kappa: geometric_mean(whole),
            defect: match defects.len() {
                0 => None,
                count => Some(defects.iter().sum::<f64>() / count as f64),
            },
            max_defect: defects.iter().copied().reduce(f64::max),
        }
    }
}

impl Metric {
    /// Optimizer steps done when this was measured.
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(metrics) => metrics.step,
            Self::Eval(metrics) => metrics.step,
            Self::Watch(metrics) => metrics.step,
        }
    }
}

/// Appends to a `metrics.jsonl`. Each line is written at once, so a killed process loses none.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Starts an empty log, replacing any older one.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        let file = File::create(&path).map_err(at("create", &path))?;
        Ok(Self { path, file })
    }

    /// Opens the log of a run that is resumed after `step`. Removes the lines of later steps, a last line that a killed process
    /// did not finish, and lines that are no metrics, as a power failure leaves them. A log that is missing begins here.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn resume(path: impl Into<PathBuf>, step: u64) -> Result<(Self, LogRepair), FileError> {
        let path = path.into();
        let (bytes, missing) = match fs::read(&path) {
            Ok(bytes) => (bytes, false),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (Vec::new(), true),
            Err(error) => return Err(at("read", &path)(error)),
        };
        let mut repair = LogRepair { missing, ..LogRepair::default() };
        let (mut kept, mut steps) = (Vec::new(), HashSet::new());
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            // Lines are kept as they are, whatever fields a later version may add.
            match serde_json::from_slice::<Metric>(line) {
                Ok(metric) if line.ends_with(b"\n") => {
                    if metric.step() <= step {
                        kept.extend_from_slice(line);
                        steps.extend(matches!(metric, Metric::Step(_)).then_some(metric.step()));
                    }
                }
                // A last line without a line feed was being written when the process was killed.
                _ => repair.damaged_lines += 1,
            }
        }
        repair.missing_steps = (1..=step).filter(|step| !steps.contains(step)).collect();
        write_atomic(&path, kept)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(at("open", &path))?;
        Ok((Self { path, file }, repair))
    }

    /// Flushes the log to the disk, so that it is not behind a checkpoint that is written next.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(at("flush", &self.path))
    }

    /// Appends one line.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn append(&mut self, metric: &Metric) -> Result<(), FileError> {
        self.file.write_all(line(metric).as_bytes()).map_err(at("append to", &self.path))
    }
}

/// What was wrong with the log of a run that is resumed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogRepair {
    /// There was no log.
    pub missing: bool,
    /// Lines that are no metrics, cut off or of zeros; they are removed.
    pub damaged_lines: usize,
    /// Steps up to the checkpoint that the log does not hold.
    pub missing_steps: Vec<u64>,
}

/// Reads a log. Skips a last line without a line feed: its process was killed while it wrote.
///
/// # Errors
/// [`FileError::Io`]; [`FileError::Malformed`] with every line that is no metric.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Metric>, FileError> {
    let path = path.as_ref();
    parse(path, &whole_lines(path)?)
}

/// The text up to the last line feed.
fn whole_lines(path: &Path) -> Result<String, FileError> {
    let mut text = fs::read_to_string(path).map_err(at("read", path))?;
    text.truncate(text.rfind('\n').unwrap_or(0));
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Metric>, FileError> {
    let mut metrics = Vec::new();
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        match serde_json::from_str(line) {
            Ok(metric) => metrics.push(metric),
            Err(error) => found.push(format!("line {number}: {error}")),
        }
    }
    if found.is_empty() {
        Ok(metrics)
    } else {
        Err(FileError::Malformed { path: path.to_owned(), expected: "a log of metrics", found })
    }
}

fn line(metric: &Metric) -> String {
    serde_json::to_string(metric).expect("numbers and string keys always serialize") + "\n"
}

/// JSON has no NaN: a loss that diverged is written as `null`.
fn nan_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A number that is not finite, like an infinite condition number, is written as `null` too.
fn some_nan_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    nan_if_null(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> Metric {
        Metric::Step(StepMetrics {
            step,
            epoch: step as f64 / 3.0,
            loss: 2.5,
            learning_rate: 3e-5,
            gamma: Some(4e-4),
            grad_norm: 0.7,
            tokens: 512,
            target_tokens: 128,
            tokens_per_s: 1e4,
            seconds: 0.1,
            peak_memory_bytes: Some(1 << 30),
            ..Default::default()
        })
    }

    fn eval(step: u64) -> Metric {
        Metric::Eval(EvalMetrics { step, loss: 2.0, perplexity: 2f64.exp() })
    }

    fn measures(path: &str, kappa_part: f64, kappa: Option<f64>, defects: &[f64]) -> ModuleMeasures {
        ModuleMeasures { path: path.into(), kappa_part: Some(kappa_part), kappa, defects: defects.to_vec() }
    }

    #[test]
    fn measures_are_averaged_over_all_modules_and_over_those_of_each_kind_and_read_back() {
        let measured = [
            measures("a.q", 2.0, Some(100.0), &[0.1, 0.3]),
            measures("b.q", 8.0, None, &[0.2, 0.2]),
            measures("a.v", f64::INFINITY, Some(10.0), &[]),
        ];
        let watch = WatchMetrics::new(3, &measured);
        let q = watch.by_kind["q"];
        assert_eq!((q.modules, q.weights, q.max_defect), (2, 1, Some(0.3)));
        for (found, expected) in [(q.kappa_part, 4.0), (q.kappa, 100.0), (q.defect, 0.2)] {
            assert!((found.unwrap() - expected).abs() < 1e-12, "{q:?}");
        }
        assert_eq!((watch.all.modules, watch.all.weights, watch.by_kind["v"].defect), (3, 2, None));
        assert!(watch.all.kappa_part.unwrap().is_infinite());

        let folder = tempfile::tempdir().unwrap();
        let path = log(&folder, &[step(3), Metric::Watch(watch.clone())]);
        let [_, Metric::Watch(read)] = &read(&path).unwrap()[..] else {
            panic!("a step and a measurement were logged")
        };
        assert_eq!(read.by_kind["q"], q);
        assert!(read.all.kappa_part.unwrap().is_nan());
        let names: Vec<String> = watch.scalars().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[..4], ["watch/kappa_part", "watch/kappa", "watch/defect", "watch/kappa_part/q"]);
    }

    fn log(folder: &tempfile::TempDir, metrics: &[Metric]) -> PathBuf {
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        metrics.iter().for_each(|metric| log.append(metric).unwrap());
        path
    }

    #[test]
    fn resuming_keeps_every_digit() {
        let folder = tempfile::tempdir().unwrap();
        let loss = 3.803_178_714_787_792_5;
        let path = log(&folder, &[Metric::Eval(EvalMetrics { loss, ..Default::default() })]);
        let before = fs::read_to_string(&path).unwrap();
        let (_, repair) = MetricsLog::resume(&path, 0).unwrap();
        assert_eq!(repair, LogRepair::default());
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }

    #[test]
    fn what_is_logged_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = [eval(0), step(1), step(2), eval(2)];
        let path = log(&folder, &metrics);
        assert_eq!(read(&path).unwrap(), metrics);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text.lines().next().unwrap(),
            r#"{"kind":"eval","step":0,"loss":2.0,"perplexity":7.38905609893065}"#
        );
        assert!(!text.contains("null"), "absent numbers are left out");
    }

    #[test]
    fn a_resumed_log_equals_one_that_was_not_interrupted() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(&folder, &[eval(0), step(1), step(2), eval(2), step(3), step(4)]);
        // Killed in the middle of a line, with a checkpoint at step 2.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"kind\":\"step\",\"st").unwrap();
        assert_eq!(read(&path).unwrap().len(), 6);
        let (mut resumed, repair) = MetricsLog::resume(&path, 2).unwrap();
        assert_eq!(repair, LogRepair { damaged_lines: 1, ..LogRepair::default() });
        resumed.append(&step(3)).unwrap();
        assert_eq!(read(&path).unwrap(), [eval(0), step(1), step(2), eval(2), step(3)]);
    }

    #[test]
    fn what_a_power_failure_leaves_is_cut_from_a_log_that_is_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(&folder, &[eval(0), step(1), step(2), eval(2), step(3)]);
        let whole = fs::read(&path).unwrap();
        let first_four = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(3).unwrap().0 + 1;
        let zeros = [&whole[..], &[0; 300], b"\n"].concat();
        let (_, repair) = MetricsLog::resume(&path, 3).unwrap();
        assert_eq!(repair, LogRepair::default());
        for (damaged, lines, kept) in
            [(zeros, 1, whole.len()), ([&whole[..first_four], &[0; 80]].concat(), 1, first_four)]
        {
            fs::write(&path, damaged).unwrap();
            let (_, repair) = MetricsLog::resume(&path, 3).unwrap();
            let missing_steps = if kept == whole.len() { vec![] } else { vec![3] };
            assert_eq!(repair, LogRepair { damaged_lines: lines, missing_steps, missing: false });
            assert_eq!(fs::read(&path).unwrap(), whole[..kept]);
        }
        fs::remove_file(&path).unwrap();
        let (_, repair) = MetricsLog::resume(&path, 2).unwrap();
        assert_eq!(repair, LogRepair { missing: true, missing_steps: vec![1, 2], damaged_lines: 0 });
        assert_eq!(read(&path).unwrap(), []);
    }

    #[test]
    fn a_loss_that_diverged_is_read_back_as_nan() {
        let folder = tempfile::tempdir().unwrap();
        let diverged = StepMetrics { step: 1, loss: f64::NAN, grad_norm: f64::INFINITY, ..Default::default() };
        let path = log(&folder, &[Metric::Step(diverged)]);
        let [Metric::Step(read)] = &read(&path).unwrap()[..] else { panic!("one step was logged") };
        assert!(read.loss.is_nan() && read.grad_norm.is_nan());
    }

    #[test]
    fn every_bad_line_is_reported_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(&folder, &[step(1)]);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"nonsense\n{\"kind\":\"other\"}\n").unwrap();
        let message = read(&path).unwrap_err().to_string();
        for part in ["metrics.jsonl is not a log of metrics", "line 2", "line 3", "`other`"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
