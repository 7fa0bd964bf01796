//! The trainer of SORSA's author and training curves of PyTorch with PEFT, step by step: losses, gradient norms,
//! learning rates, regularizer, and where the parameters end. Those of PyTorch alone are in `tests/golden/training`; the
//! others run if `SORSA_GOLDEN` names the folder of reference results.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::{ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use sorsa_adapter::{
    AdapterConfig, AdapterState, AlphaConvention, Attached, HostTensor, HostTensorExt, Method, ModuleState,
    NamedTensors, RegularizerForm, SavedAdapter, SorsaConfig, Target, add_regularizer, export_trainable, project,
};
use sorsa_data::{BatchOptions, Batcher, Example};
use sorsa_models::{CausalLm, WeightFormat};
use sorsa_train::metrics::{self, Metric, StepMetrics};
use sorsa_train::{
    Coupling, Decoupled, LossNormalization, Optimizer, OptimizerConfig, RegularizerConfig, RunOutcome, TrainConfig,
    Trainer,
};

const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn golden() -> Option<PathBuf> {
    let folder = std::env::var_os("SORSA_GOLDEN").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SORSA_GOLDEN is not set: nothing to compare with");
    }
    folder
}

fn ints(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<i64>) {
    let view = file.tensor(name).unwrap();
    let values = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    (view.shape().to_vec(), values)
}

fn tensor(view: &TensorView<'_>) -> HostTensor {
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    HostTensor::new(view.shape(), values)
}

fn transposed(tensor: HostTensor) -> HostTensor {
    let [rows, cols] = tensor.shape[..] else { panic!("{:?} is not a matrix", tensor.shape) };
    HostTensor::new([cols, rows], (0..rows * cols).map(|i| tensor.values[i % rows * cols + i / rows]).collect())
}

/// Tensors of the reference by our names. The reference multiplies from the other side: its A `[r, d_in]` is the
/// transpose of our `u` or `a`, its B `[d_out, r]` that of our `vt` or `b`.
fn ours(file: &SafeTensors<'_>, prefix: &str, method: Method) -> NamedTensors {
    let names = |name: &str| {
        let name = name.strip_prefix(prefix)?;
        let (module, factor) = name.rsplit_once(".sorsa_").or_else(|| name.rsplit_once(".lora_")).unwrap_or((name, ""));
        let factor = match (method, factor.trim_end_matches(".weight")) {
            (Method::Full, _) => return Some((name.to_owned(), !name.contains("norm") && !name.contains("embed"))),
            (Method::Sorsa, "A") => "u",
            (Method::Sorsa, "S") => "s",
            (Method::Sorsa, "B") => "vt",
            (_, "A") => "a",
            (_, "B") => "b",
            _ => return None,
        };
        Some((format!("{module}.{method}.{factor}"), factor != "s"))
    };
    let one = |(name, view): (&str, TensorView<'_>)| {
        let (name, is_transposed) = names(name)?;
        let tensor = tensor(&view);
        Some((name, if is_transposed { transposed(tensor) } else { tensor }))
    };
    file.iter().filter_map(one).collect()
}

/// The micro-batches in the order consumed, as examples that a batcher without shuffling cuts into the same batches.
fn examples(file: &SafeTensors<'_>) -> Vec<Example> {
    let mut examples = Vec::new();
    for batch in 0.. {
        if file.tensor(&format!("batch{batch}.input_ids")).is_err() {
            return examples;
        }
        let (shape, ids) = ints(file, &format!("batch{batch}.input_ids"));
        let (_, mask) = ints(file, &format!("batch{batch}.attention_mask"));
        let (_, labels) = ints(file, &format!("batch{batch}.labels"));
        for row in 0..shape[0] {
            let range = row * shape[1]..(row + 1) * shape[1];
            let visible: Vec<usize> = range.filter(|i| mask[*i] == 1).collect();
            examples.push(Example {
                ids: visible.iter().map(|i| ids[*i] as u32).collect(),
                target_mask: visible.iter().map(|i| labels[*i] >= 0).collect(),
                row: examples.len(),
                truncated: false,
            });
        }
    }
    examples
}

/// The base model with factors `trained`, where those of `initial` have left its weights.
fn attach(base: &Path, config: AdapterConfig, initial: NamedTensors, trained: NamedTensors) -> Attached<CausalLm> {
    let model = CausalLm::load(base, WeightFormat::F32, &Device::flex()).unwrap();
    if config.method() == Method::Full {
        return config.attach(model, &Default::default()).unwrap();
    }
    let module = |target: Target| {
        let Target { path, shape, rank, scale, .. } = target;
        ModuleState { path, shape, rank, scale, fingerprint: None, dtype: None, residual: None }
    };
    let modules = config.targets(&model).unwrap().into_iter().map(module).collect();
    let initial = if config.method().splits_weight() { initial } else { NamedTensors::new() };
    let state = AdapterState { config, modules, initial };
    SavedAdapter::new(state, trained, Path::new("reference")).attach(model).unwrap()
}

fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// The folders of a group of reference results that hold `file`, in order.
fn folders(group: &Path, file: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(group).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|folder| folder.join(file).exists()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "no folder of {} has {file}", group.display());
    folders
}

/// The base model of the author's runs and of the curves, which each curve names.
fn base(golden: &Path) -> PathBuf {
    let curve = &folders(&golden.join("curves"), "curve.json")[0];
    curve.join(json(&curve.join("curve.json"))["base"].as_str().unwrap())
}

/// The principal triplets of the base model's weights, as the author's code found them.
fn principal(golden: &Path) -> NamedTensors {
    let file = std::fs::read(golden.join("sorsa/tiny_llama/adapter_init.safetensors")).unwrap();
    ours(&SafeTensors::deserialize(&file).unwrap(), "", Method::Sorsa)
}

/// The settings that all reference runs share, and those that each names.
fn config(settings: &Value, batch_size: usize) -> TrainConfig {
    let number = |name: &str| settings[name].as_f64().unwrap();
    let mut config = TrainConfig {
        batch_size,
        accumulation: settings["accum"].as_u64().unwrap() as usize,
        eval_every: 0,
        checkpoint_every: 0,
        clip_norm: number("clip"),
        loss_normalization: LossNormalization::MicroBatch,
        ..TrainConfig::default()
    };
    config.optimizer.learning_rate = number("lr").into();
    config.optimizer.weight_decay = number("wd");
    config.regularizer.gamma = settings["gamma"].as_f64().unwrap_or(0.0);
    config.regularizer.form = RegularizerForm::Author;
    config.regularizer.author_accumulation = true;
    config
}

/// Trains to the end; what was logged, and the trained parameters.
fn train(
    attached: Attached<CausalLm>,
    examples: Vec<Example>,
    config: TrainConfig,
) -> (Vec<StepMetrics>, NamedTensors) {
    let options = BatchOptions { batch_size: config.batch_size, shuffle: false, ..BatchOptions::default() };
    let batcher = Batcher::new(Arc::new(examples), options).unwrap();
    let run = tempfile::tempdir().unwrap();
    let optimizer = Optimizer::new(config.optimizer.clone(), &attached.trainable);
    let mut trainer = Trainer::start(attached, optimizer, batcher, None, config, run.path()).unwrap();
    assert_eq!(trainer.run(&mut ()).unwrap(), RunOutcome::Completed);
    let step = |metric| match metric {
        Metric::Step(step) => step,
        other => panic!("nothing to evaluate or to watch: {other:?}"),
    };
    let logged = metrics::read(run.path().join("metrics.jsonl")).unwrap().into_iter().map(step).collect();
    (logged, trainer.adapter().trained)
}

#[track_caller]
fn assert_near(what: &str, step: &StepMetrics, found: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance, "{what}, step {}: {found}, expected {expected}", step.step);
}

#[track_caller]
fn assert_ends_at(what: &str, found: &NamedTensors, expected: &NamedTensors, tolerance: f32) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, expected) in expected {
        let differences = found[name].values.iter().zip(&expected.values).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0f32, |worst, d| if worst.is_nan() || d <= worst { worst } else { d });
        assert!(worst <= tolerance, "{what}: `{name}` ends {worst} away");
    }
}

/// A run of the author's trainer, with its log and its final parameters.
struct TrainerRun {
    logged: Vec<StepMetrics>,
    last: NamedTensors,
    expected: Vec<Value>,
    expected_last: NamedTensors,
}

/// The names of the author's runs, and whether each starts at the SVD itself.
fn authors_tags(golden: &Path) -> Vec<(String, bool)> {
    let meta = json(&golden.join("sorsa/tiny_llama/meta.json"));
    let tags = meta["trainer"].as_object().unwrap().keys();
    tags.map(|tag| (tag.clone(), tag.ends_with("from_svd_init"))).collect()
}

fn authors_run(golden: &Path, tag: &str) -> TrainerRun {
    let folder = golden.join("sorsa/tiny_llama");
    let meta = json(&folder.join("meta.json"));
    let file = std::fs::read(folder.join(format!("trainer_{tag}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let reference = &meta["trainer"][tag];
    let settings = &reference["settings"];
    let mut train_config = config(settings, settings["batch_size"].as_u64().unwrap() as usize);
    train_config.schedule.warmup_ratio = settings["warm"].as_f64().unwrap();
    let start = ours(&file, "start.", Method::Sorsa);
    let sorsa = SorsaConfig { alpha_convention: AlphaConvention::Author, ..SorsaConfig::default() };
    let adapter = AdapterConfig::new(sorsa, meta["r"].as_u64().unwrap() as usize, &TARGETS);
    let adapter = AdapterConfig { alpha: meta["alpha"].as_f64(), ..adapter };
    let attached = attach(&base(golden), adapter, principal(golden), start);
    let (logged, last) = train(attached, examples(&file), train_config);
    let expected = reference["per_step"].as_array().unwrap().clone();
    assert_eq!(logged.len(), expected.len());
    TrainerRun { logged, last, expected, expected_last: ours(&file, "final.", Method::Sorsa) }
}

#[test]
fn twelve_steps_of_two_micro_batches_are_those_of_pytorch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let read = |name: &str| std::fs::read(folder.join("training").join(name)).unwrap();
    let meta: Value = serde_json::from_slice(&read("meta.json")).unwrap();
    let settings = &meta["settings"];
    let number = |name: &str| settings[name].as_f64().unwrap();
    let runs = [
        ("lora", Method::Lora, RegularizerForm::Paper, Coupling::Gradient),
        ("sorsa", Method::Sorsa, RegularizerForm::Paper, Coupling::Gradient),
        ("sorsa_decoupled", Method::Sorsa, RegularizerForm::Squared, Coupling::Decoupled),
    ];
    for (name, method, form, coupling) in runs {
        let file = read(&format!("{name}.safetensors"));
        let file = SafeTensors::deserialize(&file).unwrap();
        let mut adapter = AdapterConfig::new(method, settings["rank"].as_u64().unwrap() as usize, &TARGETS);
        adapter.alpha = Some(number("alpha"));
        let (initial, start) = (ours(&file, "initial.", method), ours(&file, "start.", method));
        let attached = attach(&folder.join("llama/checkpoint"), adapter, initial, start);

        let mut config = TrainConfig {
            batch_size: 2,
            accumulation: settings["accumulation"].as_u64().unwrap() as usize,
            eval_every: 0,
            checkpoint_every: 0,
            clip_norm: number("clip"),
            ..TrainConfig::default()
        };
        config.optimizer.learning_rate = number("lr").into();
        config.optimizer.weight_decay = number("weight_decay");
        config.schedule.warmup_ratio = number("warmup") / number("steps");
        config.regularizer = RegularizerConfig { gamma: number("gamma"), form, coupling, ..Default::default() };
        let (logged, last) = train(attached, examples(&file), config);

        let expected = meta["runs"][name]["log"].as_array().unwrap();
        assert_eq!(logged.len(), expected.len(), "{name}");
        for (step, expected) in logged.iter().zip(expected) {
            assert_near(name, step, step.loss, &expected["loss"], 5e-5);
            assert_near(name, step, step.grad_norm, &expected["grad_norm"], 1e-4 * step.grad_norm);
            assert_near(name, step, step.learning_rate, &expected["learning_rate"], 1e-10);
            assert_eq!(step.regularizer.is_some(), method == Method::Sorsa);
            if let Some(regularizer) = step.regularizer {
                assert_near(name, step, regularizer, &expected["regularizer"], 1e-4);
            }
        }
        assert_ends_at(name, &last, &ours(&file, "final.", method), 1e-4);
    }
}

#[test]
fn steps_are_those_of_the_authors_trainer() {
    let Some(golden) = golden() else { return };
    let tags: Vec<String> =
        authors_tags(&golden).into_iter().filter(|(_, at_svd)| !at_svd).map(|(tag, _)| tag).collect();
    assert!(!tags.is_empty());
    for tag in &tags {
        let TrainerRun { logged, last, expected, expected_last } = authors_run(&golden, tag);
        for (step, expected) in logged.iter().zip(&expected) {
            assert_near(tag, step, step.loss, &expected["loss"], 2e-5);
            assert_near(tag, step, step.grad_norm, &expected["grad_norm"], 1e-4 * step.grad_norm);
            assert_near(tag, step, step.regularizer.unwrap(), &expected["ortho"], 1e-5);
            assert_near(tag, step, step.learning_rate, &expected["lr_used"], 1e-12);
        }
        assert_ends_at(tag, &last, &expected_last, 1e-5);
    }
}

#[test]
fn from_the_svd_itself_losses_stay_near_the_authors_whose_first_step_follows_rounding_noise() {
    let Some(golden) = golden() else { return };
    for (tag, _) in authors_tags(&golden).into_iter().filter(|(_, at_svd)| *at_svd) {
        let TrainerRun { logged, expected, .. } = authors_run(&golden, &tag);
        for (step, expected) in logged.iter().zip(&expected) {
            assert_near(&tag, step, step.loss, &expected["loss"], 0.05);
            assert_near(&tag, step, step.learning_rate, &expected["lr_used"], 1e-12);
        }
    }
}

/// The steps of a method; its log, its final parameters, and the reference's log.
fn curve(golden: &Path, name: &str, method: Method) -> (Vec<StepMetrics>, NamedTensors, Vec<Value>) {
    let folder = golden.join("curves").join(name);
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    let curve: Value = serde_json::from_slice(&read("curve.json")).unwrap();
    let settings = &curve["settings"];
    let start = match method {
        Method::Full => NamedTensors::new(),
        _ => ours(&SafeTensors::deserialize(&read("initial.safetensors")).unwrap(), "", method),
    };
    // `sorsa_wellcond` starts off the orthonormal point, beside the residual of the SVD.
    let initial = if method == Method::Sorsa { principal(golden) } else { start.clone() };
    let mut adapter = AdapterConfig::new(method, settings["r"].as_u64().unwrap() as usize, &TARGETS);
    adapter.alpha = settings["alpha"].as_f64();
    let attached = attach(&base(golden), adapter, initial, start);

    let mut config = config(settings, settings["B"].as_u64().unwrap() as usize);
    let steps = settings["steps"].as_f64().unwrap();
    config.schedule.warmup_ratio = settings["warmup"].as_f64().unwrap() / steps;
    config.epochs = steps / settings["nbatch"].as_f64().unwrap();
    let batches = read("batches.safetensors");
    let (logged, last) = train(attached, examples(&SafeTensors::deserialize(&batches).unwrap()), config);
    let expected = curve["log"].as_array().unwrap().clone();
    assert_eq!(logged.len(), expected.len());
    (logged, last, expected)
}

#[test]
fn the_steps_of_each_method_are_those_of_pytorch() {
    let Some(golden) = golden() else { return };
    for folder in folders(&golden.join("curves"), "curve.json") {
        let name = folder.file_name().unwrap().to_str().unwrap();
        // `sorsa` starts at the SVD itself and is compared below.
        if name == "sorsa" {
            continue;
        }
        let method: Method = name.split('_').next().unwrap().parse().unwrap();
        let (logged, last, expected) = curve(&golden, name, method);
        for (step, expected) in logged.iter().zip(&expected) {
            assert_near(name, step, step.loss, &expected["loss"], 1e-4);
            assert_near(name, step, step.grad_norm, &expected["grad_norm_before_clip"], 1e-4 * step.grad_norm);
            assert_near(name, step, step.learning_rate, &expected["lr"], 1e-12);
            if let Some(regularizer) = step.regularizer {
                assert_near(name, step, regularizer, &expected["ortho"], 1e-5);
            }
        }
        let file = std::fs::read(golden.join("curves").join(name).join("final.safetensors")).unwrap();
        assert_ends_at(name, &last, &ours(&SafeTensors::deserialize(&file).unwrap(), "", method), 2e-4);
    }
}

#[test]
fn steps_of_sorsa_from_the_svd_itself_stay_near_those_of_the_authors_code() {
    let Some(golden) = golden() else { return };
    let (logged, _, expected) = curve(&golden, "sorsa", Method::Sorsa);
    for (step, expected) in logged.iter().zip(&expected) {
        assert_near("sorsa", step, step.loss, &expected["loss"], 0.05);
        assert_near("sorsa", step, step.learning_rate, &expected["lr"], 1e-12);
    }
}

/// A model of one layer.
#[derive(Module, Debug)]
struct Layer {
    layer: Linear,
}

#[test]
fn adamw_steps_of_one_layer_are_those_of_the_authors_code() {
    let Some(golden) = golden() else { return };
    for folder in folders(&golden.join("sorsa"), "sorsa.safetensors") {
        let name = folder.display();
        let meta = json(&folder.join("meta.json"));
        let file = std::fs::read(folder.join("sorsa.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let given = |name: &str| tensor(&file.tensor(name).unwrap());
        let factors = |suffix: &str| {
            NamedTensors::from([
                ("layer.sorsa.u".to_owned(), transposed(given(&format!("A{suffix}")))),
                ("layer.sorsa.s".to_owned(), given(&format!("S{suffix}"))),
                ("layer.sorsa.vt".to_owned(), transposed(given(&format!("B{suffix}")))),
            ])
        };

        let device = Device::flex().autodiff();
        let weight = transposed(given("W"));
        let bias = file.tensor("b").is_ok();
        let mut layer = LinearConfig::new(weight.shape[0], weight.shape[1]).with_bias(bias).init(&device);
        layer.weight = Param::from_tensor(weight.to_tensor(&device));
        layer.bias = bias.then(|| Param::from_tensor(given("b").to_tensor(&device)));
        let number = |name: &str| meta[name].as_f64().unwrap();
        let mut adapter = AdapterConfig::new(Method::Sorsa, meta["r"].as_u64().unwrap() as usize, &["layer"]);
        adapter.alpha = meta["alpha"].as_f64();
        let module = |Target { path, shape, rank, scale, .. }| ModuleState {
            path,
            shape,
            rank,
            scale,
            fingerprint: None,
            dtype: None,
            residual: None,
        };
        let model = Layer { layer };
        let modules = adapter.targets(&model).unwrap().into_iter().map(module).collect();
        let state = AdapterState { config: adapter, modules, initial: factors("_init") };
        let saved = SavedAdapter::new(state, factors(""), Path::new("reference"));
        let Attached { mut model, trainable, .. } = saved.attach(model).unwrap();

        let settings = &meta["adamw10"];
        let optimizer = OptimizerConfig { learning_rate: number("lr").into(), ..OptimizerConfig::default() };
        let mut optimizer = Optimizer::new(optimizer, &trainable);
        let (x, t) = (given("x").to_tensor::<2>(&device), given("t").to_tensor::<2>(&device));
        for (step, row) in settings["rows"].as_array().unwrap().iter().enumerate() {
            let loss = (project(&model.layer, x.clone()) - t.clone()).square().mean() * 0.5;
            let value = f64::from(loss.clone().into_scalar::<f32>());
            let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
            let norm = clip(&model, &mut gradients, settings["max_grad_norm"].as_f64().unwrap());
            let weight = number("gamma") / number("lr");
            let stats = add_regularizer(&model, &trainable, RegularizerForm::Author, weight, &mut gradients).unwrap();
            for (found, expected) in [value, norm, stats.value].into_iter().zip(row.as_array().unwrap()) {
                let expected = expected.as_f64().unwrap();
                assert!((found - expected).abs() < 2e-5, "{name}, step {step}: {found}, expected {expected}");
            }
            model = optimizer.step(model, gradients, 1.0, Decoupled::default());
        }
        assert_ends_at(&name.to_string(), &export_trainable(&model, &trainable), &factors("_after10"), 1e-5);
    }
}

/// Clips to a global norm, as PyTorch's `clip_grad_norm_`; the norm before.
fn clip(model: &Layer, gradients: &mut GradientsParams, largest: f64) -> f64 {
    struct Walk<'a> {
        gradients: &'a mut GradientsParams,
        factor: f64,
        squares: f64,
    }
    impl ModuleVisitor for Walk<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(gradient) = self.gradients.remove::<D>(param.id) else { return };
            self.squares += f64::from(gradient.clone().square().sum().into_scalar::<f32>());
            self.gradients.register::<D>(param.id, gradient * self.factor);
        }
    }
    let mut measure = Walk { gradients: &mut *gradients, factor: 1.0, squares: 0.0 };
    model.visit(&mut measure);
    let norm = measure.squares.sqrt();
    let factor = (largest / (norm + 1e-6)).min(1.0);
    model.visit(&mut Walk { gradients, factor, squares: 0.0 });
    norm
}
