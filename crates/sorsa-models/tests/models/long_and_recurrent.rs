//! Logits and greedy tokens of the small models of `tests/golden` that other frameworks computed: a Phi-3 with LongRoPE
//! by Transformers, an RWKV 6 by the package of its author.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use safetensors::{Dtype, SafeTensors};
use sorsa_models::{CausalLm, GenerateOptions, ModelInput, Requests, Sampling, WeightFormat};

use crate::common::larger::larger;

/// Largest difference of a logit; the largest are about 10.
const LOGITS: f32 = 1e-4;

struct Case {
    model: CausalLm,
    io: Vec<u8>,
    prompt: usize,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        let model = CausalLm::load(&folder.join("checkpoint"), WeightFormat::F32, &Device::flex()).unwrap();
        let text = std::fs::read_to_string(folder.join("io.json")).unwrap();
        let meta: serde_json::Value = serde_json::from_str(&text).unwrap();
        // Where the two best tokens are this far apart, the greedy choice is no accident of rounding.
        assert!(meta["smallest_margin"].as_f64().unwrap() > 0.01);
        let prompt = meta["prompt"].as_u64().unwrap() as usize;
        Self { model, io: std::fs::read(folder.join("io.safetensors")).unwrap(), prompt }
    }

    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = SafeTensors::deserialize(&self.io).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F32);
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (view.shape().to_vec(), values)
    }

    /// The rows of a matrix of tokens.
    fn rows(&self, name: &str) -> Vec<Vec<u32>> {
        let file = SafeTensors::deserialize(&self.io).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::I64);
        let values = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
        values.collect::<Vec<_>>().chunks_exact(view.shape()[1]).map(<[u32]>::to_vec).collect()
    }

    /// Compares the logits of the first tokens of each row, as many as there are logits.
    fn assert_logits(&self, name: &str) {
        let (shape, expected) = self.floats(name);
        let [rows, len] = [shape[0], shape[1]];
        let input_ids: Vec<i32> =
            self.rows("input_ids").iter().flat_map(|row| row[..len].iter().map(|id| *id as i32)).collect();
        let positions: Vec<i32> = (0..rows).flat_map(|_| 0..len as i32).collect();
        let segments = vec![1; rows * len];
        let input = ModelInput { rows, len, input_ids: &input_ids, positions: &positions, segments: &segments };
        let found = self.model.logits(self.model.hidden(&input)).into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).fold(0f32, |worst, (f, e)| larger(worst, (f - e).abs()));
        assert!(worst <= LOGITS, "{name}: logits differ by {worst}");
        assert!(expected.iter().any(|logit| logit.abs() > 1.0));
    }

    fn prompts(&self) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
        self.rows("greedy_ids").iter().map(|row| (row[..self.prompt].to_vec(), row[self.prompt..].to_vec())).unzip()
    }

    fn generate(&self, prompts: &[Vec<u32>], count: usize) -> Vec<Vec<u32>> {
        let generations = self.model.generate(prompts, &options(count), |_, _| ()).unwrap();
        generations.into_iter().map(|generation| generation.ids).collect()
    }
}

fn options(count: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens: count, sampling: Sampling::Greedy, stop: vec![] }
}

#[test]
fn a_phi_3_with_longrope_has_the_logits_of_transformers_on_both_sides_of_the_original_context() {
    let case = Case::open("phi3_longrope");
    case.assert_logits("short_logits");
    case.assert_logits("long_logits");
}

#[test]
fn greedy_tokens_of_a_longrope_are_those_of_passes_over_all_tokens_where_the_factors_change_on_the_way() {
    let case = Case::open("phi3_longrope");
    let (prompts, expected) = case.prompts();
    assert_eq!(case.generate(&prompts, expected[0].len()), expected);
    for (prompt, expected) in prompts.iter().zip(&expected) {
        assert_eq!(case.generate(std::slice::from_ref(prompt), expected.len())[0], *expected);
    }
}

#[test]
fn a_short_sequence_that_joins_a_long_one_is_taken_in_again_with_the_long_factors() {
    let case = Case::open("phi3_longrope");
    let (prompts, expected) = case.prompts();
    let count = expected[0].len();
    // The first ends at once at the model's context of 64; the third takes its place beside the second.
    let filler: Vec<u32> = (0..62).map(|i| 3 + i * 7 % 40).collect();
    let long = [prompts[0].clone(), expected[0][..8].to_vec()].concat();
    let requests = [filler, long, prompts[1].clone()];
    let mut found = vec![Vec::new(); 3];
    let queue = Requests { prompts: &requests, streams: &[0, 1, 2], slots: 2 };
    let keep = |row: usize, generation: sorsa_models::Generation| {
        found[row] = generation.ids;
        ControlFlow::Continue(())
    };
    case.model.generate_queue(queue, &options(count), |_, _| ControlFlow::Continue(()), keep).unwrap();
    assert_eq!(found[0].len(), 2);
    assert_eq!(found[1][..count - 8], expected[0][8..]);

    // Its first token is chosen before it joins; from then on all its tokens have the factors of its company.
    let mut ids = prompts[1].clone();
    ids.push(expected[1][0]);
    while ids.len() < prompts[1].len() + count {
        let len = 40;
        let mut input_ids = vec![0; 2 * len];
        input_ids.iter_mut().zip(&ids).for_each(|(slot, id)| *slot = *id as i32);
        let positions: Vec<i32> = (0..2).flat_map(|_| 0..len as i32).collect();
        let segments: Vec<i32> = (0..2 * len).map(|i| i32::from(i < ids.len() || i >= len)).collect();
        let input = ModelInput { rows: 2, len, input_ids: &input_ids, positions: &positions, segments: &segments };
        let last = case.model.hidden(&input).narrow(0, 0, 1).narrow(1, ids.len() - 1, 1);
        let best = case.model.logits(last).squeeze_dims::<1>(&[0, 1]).argmax(0);
        ids.push(best.into_scalar::<i64>() as u32);
    }
    assert_eq!(found[2], ids[prompts[1].len()..]);
    // Alone it goes on with the short factors for a while.
    assert_ne!(found[2], expected[1]);
}

#[test]
fn an_rwkv_6_has_the_logits_and_greedy_tokens_of_its_authors_package() {
    let case = Case::open("rwkv6");
    case.assert_logits("logits");
    let (prompts, expected) = case.prompts();
    assert_eq!(case.generate(&prompts, expected[0].len()), expected);
}
