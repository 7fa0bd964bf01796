//! `sorsa verify`: compares a model with results that another framework wrote: logits, loss, greedy tokens.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use sorsa_models::{CausalLm, GenerateOptions, ModelInput, Sampling};

use crate::args::VerifyArgs;
use crate::device;
use crate::exit::{OrBadInput, bad_input};
use crate::format::{Format, print, print_json};
use crate::session::{self, NamedModel};

/// One comparison.
#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    /// How many numbers or tokens were compared.
    compared: usize,
    /// Largest absolute difference, of numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<f64>,
    /// Tokens that are not the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    unequal: Option<usize>,
    pass: bool,
}

impl Check {
    fn numbers(what: &'static str, pairs: impl Iterator<Item = (f64, f64)>, tolerance: f64) -> Self {
        let (mut compared, mut worst) = (0, 0f64);
        for (found, expected) in pairs {
            compared += 1;
            let difference = (found - expected).abs();
            // Not `max`, which would pass over a NaN.
            worst = if worst.is_nan() || difference <= worst { worst } else { difference };
        }
        Self { what, compared, difference: Some(worst), unequal: None, pass: worst <= tolerance }
    }

    fn tokens(what: &'static str, found: &[Vec<u32>], expected: &[Vec<u32>]) -> Self {
        let unequal = |(found, expected): (&Vec<u32>, &Vec<u32>)| {
            let differ = found.iter().zip(expected).filter(|(found, expected)| found != expected).count();
            differ + found.len().abs_diff(expected.len())
        };
        let unequal = found.iter().zip(expected).map(unequal).sum();
        let compared = expected.iter().map(Vec::len).sum();
        Self { what, compared, difference: None, unequal: Some(unequal), pass: unequal == 0 }
    }
}

pub fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    if !(args.tolerance >= 0.0 && args.tolerance.is_finite()) {
        return Err(bad_input("--tolerance should be a number from 0 on"));
    }
    let bytes =
        std::fs::read(&args.golden).map_err(|error| bad_input(format!("{}: {error}", args.golden.display())))?;
    let golden = Golden::open(&args.golden, &bytes)?;
    let device = device::open(args.device.backend, args.device.device)?;
    session::set_config(&args.config, args.adapter.as_deref())?;
    let named = NamedModel::load(&args.model, &device)?;
    let model = match &args.adapter {
        Some(adapter) => named.with_adapter(adapter)?.model,
        None => named.model,
    };
    let mut checks = Vec::new();
    golden.check_batch(&model, args.tolerance, &mut checks)?;
    golden.check_generation(&model, &mut checks)?;
    if checks.is_empty() {
        return Err(bad_input(format!(
            "{}: nothing to compare: neither `input_ids` with `logits` or `labels`, nor `prompt_ids` with `generated_ids`",
            args.golden.display()
        )));
    }
    let pass = checks.iter().all(|check| check.pass);
    match args.format {
        Format::Json => print_json(&serde_json::json!({
            "model": args.model, "golden": args.golden, "adapter": args.adapter, "tolerance": args.tolerance,
            "checks": checks, "pass": pass,
        }))?,
        _ => print(table(&checks, args.tolerance))?,
    }
    if pass { Ok(()) } else { anyhow::bail!("{} differs from {}", args.model, args.golden.display()) }
}

fn table(checks: &[Check], tolerance: f64) -> String {
    let mut text = format!("{:<22} {:>9}  {:<24} {}", "WHAT", "COMPARED", "LARGEST DIFFERENCE", "VERDICT");
    for check in checks {
        let difference = match (check.difference, check.unequal) {
            (Some(difference), _) => format!("{difference:.2e} (of {tolerance:.0e})"),
            (None, Some(unequal)) => format!("{unequal} tokens"),
            (None, None) => String::new(),
        };
        let verdict = if check.pass { "equal" } else { "DIFFERENT" };
        text.push_str(&format!("\n{:<22} {:>9}  {difference:<24} {verdict}", check.what, check.compared));
    }
    text
}

/// The results in a file.
struct Golden<'a> {
    path: PathBuf,
    file: SafeTensors<'a>,
}

/// Integers with their shape `[rows, len]`.
struct Ids {
    rows: usize,
    len: usize,
    values: Vec<i64>,
}

impl Ids {
    fn row(&self, row: usize) -> &[i64] {
        &self.values[row * self.len..(row + 1) * self.len]
    }
}

impl<'a> Golden<'a> {
    fn open(path: &Path, bytes: &'a [u8]) -> anyhow::Result<Self> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| {
            bad_input(format!("{}: not a whole safetensors file ({} bytes): {error}", path.display(), bytes.len()))
        })?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn fault(&self, text: String) -> anyhow::Error {
        bad_input(format!("{}: {text}", self.path.display()))
    }

    fn ids(&self, name: &str) -> anyhow::Result<Option<Ids>> {
        let Ok(view) = self.file.tensor(name) else { return Ok(None) };
        let values = match view.dtype() {
            Dtype::I64 => {
                view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight"))).collect()
            }
            Dtype::I32 => {
                let narrow = view.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four")));
                narrow.map(i64::from).collect()
            }
            other => return Err(self.fault(format!("`{name}` should be I64 or I32, found {other:?}"))),
        };
        match *view.shape() {
            [rows, len] if rows > 0 && len > 0 => Ok(Some(Ids { rows, len, values })),
            ref found => Err(self.fault(format!("`{name}` should be [rows, length], found {found:?}"))),
        }
    }

    fn floats(&self, name: &str, shape: &[usize]) -> anyhow::Result<Option<Vec<f32>>> {
        let Ok(view) = self.file.tensor(name) else { return Ok(None) };
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            let found = format!("{:?} {:?}", view.dtype(), view.shape());
            return Err(self.fault(format!("`{name}` should be F32 {shape:?}, found {found}")));
        }
        Ok(Some(view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect()))
    }

    /// As tokens of a vocabulary.
    fn tokens(&self, name: &str, ids: &[i64], vocabulary: usize) -> anyhow::Result<Vec<u32>> {
        let known = |id: &i64| u32::try_from(*id).ok().filter(|id| (*id as usize) < vocabulary);
        let wrong = ids.iter().find(|id| known(id).is_none());
        match wrong {
            Some(id) => Err(self.fault(format!("`{name}` holds {id}, the vocabulary has {vocabulary} tokens"))),
            None => Ok(ids.iter().filter_map(known).collect()),
        }
    }

    /// Logits where the mask is 1, and the mean loss over the labels that are not negative, each shifted by one.
    fn check_batch(&self, model: &CausalLm, tolerance: f64, checks: &mut Vec<Check>) -> anyhow::Result<()> {
        let Some(ids) = self.ids("input_ids")? else { return Ok(()) };
        let vocabulary = model.config().vocab_size;
        let (rows, len) = (ids.rows, ids.len);
        let tokens = self.tokens("input_ids", &ids.values, vocabulary)?;
        let same_shape = |name: &str| -> anyhow::Result<Option<Vec<i64>>> {
            match self.ids(name)? {
                Some(other) if (other.rows, other.len) != (rows, len) => {
                    let found = [other.rows, other.len];
                    Err(self.fault(format!("`{name}` should be {:?} as `input_ids`, found {found:?}", [rows, len])))
                }
                other => Ok(other.map(|ids| ids.values)),
            }
        };
        let mask = same_shape("attention_mask")?.unwrap_or_else(|| vec![1; rows * len]);
        let labels = same_shape("labels")?;
        let input_ids: Vec<i32> = tokens.iter().map(|id| *id as i32).collect();
        let segments: Vec<i32> = mask.iter().map(|visible| i32::from(*visible != 0)).collect();
        if segments.chunks_exact(len).any(|row| !row.is_sorted_by(|a, b| a >= b)) {
            return Err(self.fault("`attention_mask` should be 1 up to some token of a row, and 0 after it".to_owned()));
        }
        let positions: Vec<i32> = (0..rows).flat_map(|_| 0..len as i32).collect();
        let input = ModelInput { rows, len, input_ids: &input_ids, positions: &positions, segments: &segments };

        let expected = self.floats("logits", &[rows, len, vocabulary])?;
        if let Some(expected) = &expected {
            let logits = model.logits(model.hidden(&input)).into_data().convert::<f32>();
            let logits = logits.try_into_vec::<f32>().map_err(|error| anyhow::anyhow!("logits: {error:?}"))?;
            let pairs = logits.iter().zip(expected).enumerate();
            let visible = pairs.filter(|(index, _)| segments[index / vocabulary] == 1);
            let pairs = visible.map(|(_, (found, expected))| (f64::from(*found), f64::from(*expected)));
            checks.push(Check::numbers("logits", pairs, tolerance));
        }
        let Some(labels) = labels else { return Ok(()) };
        let target = |index: usize| if (index + 1).is_multiple_of(len) { -100 } else { labels[index + 1] };
        let targets: Vec<i32> =
            (0..rows * len).map(|index| target(index).clamp(-100, i64::from(i32::MAX)) as i32).collect();
        if let Some(wrong) = targets.iter().find(|target| **target >= 0 && **target as usize >= vocabulary) {
            return Err(self.fault(format!("`labels` holds {wrong}, the vocabulary has {vocabulary} tokens")));
        }
        let count = targets.iter().filter(|target| **target >= 0).count();
        let given = self.floats("loss", &[1])?.map(|loss| f64::from(loss[0]));
        let expected = given.or_else(|| Some(mean_loss(&expected?, &targets, vocabulary)));
        if let (Some(expected), Some(sum)) = (expected, model.loss_sum(&input, &targets)) {
            let loss = f64::from(sum.into_scalar::<f32>()) / count as f64;
            checks.push(Check { compared: count, ..Check::numbers("loss", [(loss, expected)].into_iter(), tolerance) });
        }
        Ok(())
    }

    /// Greedy continuations of each prompt alone, and of a batch that is padded on the left.
    fn check_generation(&self, model: &CausalLm, checks: &mut Vec<Check>) -> anyhow::Result<()> {
        let names = [
            ("greedy tokens", "prompt_ids", "prompt_attention_mask", "generated_ids"),
            ("greedy, left padding", "leftpad_prompt_ids", "leftpad_attention_mask", "leftpad_generated_ids"),
        ];
        for (what, prompt, mask, generated) in names {
            let (Some(prompts), Some(expected)) = (self.ids(prompt)?, self.ids(generated)?) else { continue };
            if prompts.rows != expected.rows || prompts.len >= expected.len {
                return Err(self.fault(format!("`{generated}` should hold each row of `{prompt}` and what follows it")));
            }
            let mask = self.ids(mask)?;
            let vocabulary = model.config().vocab_size;
            let mut texts = Vec::new();
            let mut continued = Vec::new();
            for row in 0..prompts.rows {
                let visible = |index: &usize| match &mask {
                    Some(mask) => mask.row(row).get(*index).is_none_or(|visible| *visible != 0),
                    None => true,
                };
                let ids: Vec<i64> = (0..prompts.len).filter(visible).map(|index| prompts.row(row)[index]).collect();
                texts.push(self.tokens(prompt, &ids, vocabulary)?);
                continued.push(self.tokens(generated, &expected.row(row)[prompts.len..], vocabulary)?);
            }
            let max_new_tokens = expected.len - prompts.len;
            let options = GenerateOptions { max_new_tokens, sampling: Sampling::Greedy, stop: Vec::new() };
            let found = model.generate(&texts, &options, |_, _| ()).or_bad_input()?;
            let found: Vec<Vec<u32>> = found.into_iter().map(|generation| generation.ids).collect();
            checks.push(Check::tokens(what, &found, &continued));
        }
        Ok(())
    }
}

/// The mean of `-log softmax(logits)[target]` over the targets that are not negative, in f64.
fn mean_loss(logits: &[f32], targets: &[i32], vocabulary: usize) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for (row, target) in logits.chunks_exact(vocabulary).zip(targets).filter(|(_, target)| **target >= 0) {
        let largest = row.iter().fold(f32::NEG_INFINITY, |largest, logit| largest.max(*logit));
        let total: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        sum += total.ln() - f64::from(row[*target as usize] - largest);
        count += 1;
    }
    sum / f64::from(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_none_passes_nowhere_in_the_list() {
        for nan_at in 0..3 {
            let found = |index| if index == nan_at { f64::NAN } else { 1.0 };
            let check = Check::numbers("logits", (0..3).map(|index| (found(index), 1.0)), 1e-4);
            assert!(!check.pass && check.difference.unwrap().is_nan(), "{nan_at}");
        }
        assert!(Check::numbers("logits", [(1.0, 1.0)].into_iter(), 0.0).pass);
    }
}
