//! What a comparison comes to: arms, rates, seeds, and the recipe of each run. All that can be wrong with the input is found here,
//! before anything is written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sorsa_adapter::Method;
use sorsa_data::TextTokenizer;
use sorsa_models::ModelConfig;
use sorsa_train::total_steps;

use super::identity::{Fingerprints, InputFiles, run_key, short_hash};
use super::rates::{Grid, rounded};
use super::variant::{Arm, Variant};
use crate::args::{BenchArgs, RecipeArgs};
use crate::device;
use crate::embedded::EMBEDDED;
use crate::exit::{OrBadInput, bad_input};
use crate::plan::{Inputs, TrainingShape, data_file};
use crate::progress::Style;
use crate::recipe::Recipe;
use crate::session::model_folder;

/// Evaluations of a run: enough to see when it reaches a loss, at a few percent of its time.
const EVALUATIONS: u64 = 10;
/// Times the default rate of a method.
const RATES: [f64; 4] = [0.5, 1.0, 2.0, 4.0];
const QUICK_RATES: [f64; 2] = [1.0, 2.0];
const SEEDS: [u64; 3] = [42, 43, 44];
const GAMMAS: [f64; 5] = [0.0, 4e-5, 4e-4, 4e-3, 4e-2];

/// Settings of a comparison that the caller's take the place of. The cache of decompositions is off, for the time of each
/// start to be its own.
const DEFAULTS: [&str; 2] = ["svd.cache=false", "eval.problems=400"];
const QUICK_DEFAULTS: [&str; 2] = ["svd.cache=false", "eval.problems=200"];
const QUICK_STEPS: u64 = 150;

/// A comparison, checked.
pub struct Plan {
    pub folder: PathBuf,
    pub arms: Vec<Arm>,
    /// The rates to begin with, one grid for each arm.
    pub grids: Vec<Grid>,
    pub seeds: Vec<u64>,
    /// Weights of the regularizer to try; empty without SORSA.
    pub gammas: Vec<f64>,
    /// How often a grid may be extended.
    pub extend: usize,
    /// Optimizer steps of each run.
    pub steps: u64,
    /// Tokens of one pass over the training data, and its examples.
    pub train_tokens: usize,
    pub train_examples: usize,
    pub problems: usize,
    /// Parameters of the model.
    pub parameters: u64,
    /// A recipe of the comparison, for what all have in common.
    pub common: Recipe,
    /// Fingerprint of the test problems, where there are any.
    pub test: Option<String>,
    fields: RecipeArgs,
    files: InputFiles,
    backend: device::Backend,
}

/// A run of the comparison.
#[derive(Debug, Clone)]
pub struct Spec {
    pub arm: Arm,
    pub learning_rate: f64,
    pub seed: u64,
    pub recipe: Recipe,
    /// Name of its folder.
    pub name: String,
    pub folder: PathBuf,
}

impl Plan {
    pub fn new(args: &BenchArgs, style: Style) -> anyhow::Result<Self> {
        refuse_decided(&args.fields)?;
        let variants = variants(args)?;
        let ranks = some(args.ranks.clone(), "--ranks")?;
        let seeds = some(args.seeds.clone(), "--seeds")?;
        let seeds = seeds.unwrap_or_else(|| if args.quick { SEEDS[..2].to_vec() } else { SEEDS.to_vec() });
        let defaults = if args.quick { &QUICK_DEFAULTS[..] } else { &DEFAULTS };
        let mut fields = args.fields.clone();
        if args.quick {
            fields.max_steps.get_or_insert(QUICK_STEPS);
        }
        let typed = std::mem::take(&mut fields.set);
        fields.set = defaults.iter().map(ToString::to_string).chain(typed).collect();
        let mut plan = Self {
            folder: args.bench_dir.clone().unwrap_or_else(|| default_folder(args.quick)),
            arms: Vec::new(),
            grids: Vec::new(),
            seeds,
            gammas: Vec::new(),
            extend: args.extend.unwrap_or(if args.quick { 0 } else { 2 }),
            steps: 0,
            train_tokens: 0,
            train_examples: 0,
            problems: 0,
            parameters: 0,
            common: Recipe::resolve(&fields)?,
            test: None,
            fields,
            files: InputFiles { model: String::new(), train: String::new(), validation: None },
            backend: args.device.backend,
        };
        if plan.common.model.adapter.is_some() {
            return Err(bad_input("a comparison starts from a model: model.adapter cannot be set"));
        }
        plan.arms = Arm::all(&variants, &ranks.unwrap_or_else(|| vec![plan.common.adapter.rank]));
        plan.grids = grids(&plan, args)?;
        if plan.arms.iter().any(|arm| arm.variant.method == Method::Sorsa) {
            plan.gammas = gammas(args)?;
        }
        plan.read(args, style)?;
        Ok(plan)
    }

    /// Reads what the runs will read, but for the weights.
    fn read(&mut self, args: &BenchArgs, style: Style) -> anyhow::Result<()> {
        let device = device::open(args.device.backend, args.device.device)?;
        let folder = model_folder(&self.common.model.path, style)?;
        let config = ModelConfig::read(&folder).or_bad_input()?;
        for arm in self.arms.clone() {
            let recipe = self.recipe(arm, None, self.seeds[0], None)?;
            self.parameters = TrainingShape::new(&recipe, &config, &device)?.parameters;
        }
        let tokenizer = Arc::new(TextTokenizer::from_dir(&folder).or_bad_input()?);
        let inputs = Inputs::new(&self.common, &tokenizer, &config, style)?;
        if inputs.validation.is_none() {
            return Err(bad_input("learning rates are chosen by the validation loss: there must be validation data"));
        }
        self.steps = total_steps(&self.common.train, &inputs.train);
        let data = &inputs.task.data;
        (self.train_tokens, self.train_examples, self.problems) =
            (data.train_tokens, data.train_examples, data.problems);
        if !self.fields.set.iter().any(|field| field.starts_with("train.eval_every=")) {
            self.fields.set.push(format!("train.eval_every={}", self.steps.div_ceil(EVALUATIONS)));
        }
        self.common = Recipe::resolve(&self.fields)?;
        let mut fingerprints = Fingerprints::default();
        let mut of = |name: &str, split: &str| fingerprints.of(&data_file(name, split)?);
        let data = &self.common.data;
        self.files.train = of(&data.train, "train")?;
        self.files.validation = data.validation.as_ref().map(|name| of(name, "validation")).transpose()?;
        self.test = match &data.test {
            Some(name) if self.problems > 0 => Some(of(name, "test")?),
            _ => None,
        };
        self.files.model = fingerprints.of(&folder)?;
        Ok(())
    }

    /// The recipe of a run. Without a rate it is the method's default, without a gamma the recipe's.
    fn recipe(&self, arm: Arm, rate: Option<f64>, seed: u64, gamma: Option<f64>) -> anyhow::Result<Recipe> {
        let Variant { method, regularized } = arm.variant;
        let fields = RecipeArgs {
            method: Some(method.to_string()),
            rank: arm.rank,
            lr: rate,
            gamma: match (method == Method::Sorsa, regularized) {
                (false, _) => None,
                (true, true) => gamma.or(self.fields.gamma),
                (true, false) => Some(0.0),
            },
            seed: Some(seed),
            test: None,
            ..self.fields.clone()
        };
        let mut recipe = Recipe::resolve(&fields)?;
        // Answers are asked of the chosen runs only, by a process of their own: its memory is not training's.
        recipe.eval.problems = 0;
        Ok(recipe)
    }

    /// A run of the comparison.
    pub fn spec(&self, arm: Arm, rate: f64, seed: u64, gamma: Option<f64>) -> anyhow::Result<Spec> {
        let recipe = self.recipe(arm, Some(rate), seed, gamma)?;
        let method = arm.variant.method;
        let rank = arm.rank.map_or_else(String::new, |rank| format!("-r{rank}"));
        let gamma = match method == Method::Sorsa {
            true => format!("-g{:e}", recipe.train.regularizer.gamma),
            false => String::new(),
        };
        let key = run_key(&recipe, &self.files, self.backend)?;
        let name = format!("{method}{rank}{gamma}-lr{rate:e}-s{seed}-{key}");
        Ok(Spec { arm, learning_rate: rate, seed, recipe, folder: self.runs().join(&name), name })
    }

    /// The arm whose gamma is tried.
    pub fn gamma_arm(&self) -> Option<Arm> {
        let regularized = |arm: &&Arm| arm.variant.method == Method::Sorsa && arm.variant.regularized;
        self.arms.iter().find(regularized).copied().filter(|_| !self.gammas.is_empty())
    }

    /// Folder of the runs.
    pub fn runs(&self) -> PathBuf {
        self.folder.join("runs")
    }

    /// Something that differs where the test problems or how they are asked do.
    pub fn test_key(&self) -> Option<String> {
        let eval = &self.common.eval;
        let setting = format!(
            "{} {} {} {:?} {}",
            self.test.as_ref()?,
            eval.problems,
            eval.max_new_tokens,
            eval.prompt_suffix,
            self.common.data.template
        );
        Some(short_hash(&setting))
    }

    /// Fingerprint of the model.
    pub fn model_key(&self) -> &str {
        &self.files.model
    }

    /// Whether the base model is the embedded one.
    pub fn is_embedded(&self) -> bool {
        self.common.model.path == EMBEDDED
    }

    /// Tokens of one optimizer step, on average.
    pub fn tokens_per_step(&self) -> f64 {
        let rows = self.common.train.batch_size * self.common.train.accumulation;
        rows as f64 * self.train_tokens as f64 / self.train_examples.max(1) as f64
    }
}

/// Training speed of the embedded model (836,736 parameters) on two cores; see docs/performance.md.
const EMBEDDED_SPEED: (f64, f64, f64) = (20_000.0, 836_736.0, 2.0);

impl Plan {
    /// Runs without extensions of a grid: one for each rate, the other seeds at the best, the gammas that are no other run.
    pub fn run_count(&self) -> usize {
        let rates: usize = self.grids.iter().map(|grid| grid.rates().len()).sum();
        let seeds = self.arms.len() * (self.seeds.len() - 1);
        let gamma = self.common.train.regularizer.gamma;
        let new =
            if self.gamma_arm().is_some() { self.gammas.iter().filter(|other| **other != gamma).count() } else { 0 };
        rates + seeds + new
    }

    /// A rough estimate, from the speed of the embedded model, parameters and cores.
    pub fn estimated_seconds(&self) -> f64 {
        let (speed, parameters, cores) = EMBEDDED_SPEED;
        let here = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let tokens = self.run_count() as f64 * self.steps as f64 * self.tokens_per_step();
        // A third more for evaluations, starts and tests.
        1.33 * tokens / (speed * here / cores) * (self.parameters as f64 / parameters)
    }

    /// The plan in a few words.
    pub fn summary(&self) -> String {
        let gammas = if self.gamma_arm().is_some() { self.gammas.len() } else { 0 };
        format!(
            "{} runs of {} steps ({:.0} tokens each step): {} methods, {} rates, {} seeds, {gammas} gammas; grids may grow by {}; {} \
             test problems; very roughly {:.1} minutes on the CPU",
            self.run_count(),
            self.steps,
            self.tokens_per_step(),
            self.arms.len(),
            self.grids.iter().map(|grid| grid.rates().len()).sum::<usize>(),
            self.seeds.len(),
            self.extend,
            self.problems,
            self.estimated_seconds() / 60.0
        )
    }
}

fn default_folder(quick: bool) -> PathBuf {
    Path::new("runs").join(if quick { "bench-quick" } else { "bench" })
}

/// What the comparison decides itself is refused as an option, with the one to use.
fn refuse_decided(fields: &RecipeArgs) -> anyhow::Result<()> {
    for (given, option, instead) in [
        (fields.method.is_some(), "--method", "--methods"),
        (fields.lr.is_some(), "--lr", "--lrs"),
        (fields.seed.is_some(), "--seed", "--seeds"),
    ] {
        if given {
            return Err(bad_input(format!("{option} is of one run: a comparison has {instead}")));
        }
    }
    match fields.adapter {
        Some(_) => Err(bad_input("a comparison starts from a model: --adapter cannot be given")),
        None => Ok(()),
    }
}

/// A list that was given must hold something, and nothing twice.
fn some<T: PartialEq + std::fmt::Display>(list: Option<Vec<T>>, option: &str) -> anyhow::Result<Option<Vec<T>>> {
    let Some(values) = &list else { return Ok(None) };
    if values.is_empty() {
        return Err(bad_input(format!("{option} is empty")));
    }
    match values.iter().enumerate().find(|(index, value)| values[..*index].contains(value)) {
        Some((_, twice)) => Err(bad_input(format!("{option} names {twice} twice"))),
        None => Ok(list),
    }
}

fn variants(args: &BenchArgs) -> anyhow::Result<Vec<Variant>> {
    let names = some(args.methods.clone(), "--methods")?;
    match names {
        Some(names) => names.iter().map(|name| name.parse().map_err(bad_input)).collect(),
        None if args.quick => Ok(Variant::QUICK.to_vec()),
        None => Ok(Variant::DEFAULT.to_vec()),
    }
}

fn positive(text: &str, option: &str) -> anyhow::Result<f64> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err(bad_input(format!("{option}: expected a positive number, found `{text}`"))),
    }
}

/// The grid of each arm: the rates given for its method, those given for all, or some around its default.
fn grids(plan: &Plan, args: &BenchArgs) -> anyhow::Result<Vec<Grid>> {
    let given = some(args.lrs.clone(), "--lrs")?.unwrap_or_default();
    let mut named: Vec<(Option<Variant>, f64)> = Vec::new();
    for text in &given {
        named.push(match text.split_once('=') {
            Some((method, rate)) => (Some(method.parse().map_err(bad_input)?), positive(rate, "--lrs")?),
            None => (None, positive(text, "--lrs")?),
        });
    }
    if let Some((Some(other), _)) =
        named.iter().find(|(name, _)| name.is_some_and(|name| plan.arms.iter().all(|arm| arm.variant != name)))
    {
        return Err(bad_input(format!("--lrs names {other}, which is not among the methods")));
    }
    let factors = if args.quick { &QUICK_RATES[..] } else { &RATES };
    let mut grids = Vec::new();
    for &arm in &plan.arms {
        let of = |wanted: Option<Variant>| -> Vec<f64> {
            named.iter().filter(|(name, _)| *name == wanted).map(|(_, rate)| *rate).collect()
        };
        let rates = [of(Some(arm.variant)), of(None)].into_iter().find(|rates| !rates.is_empty());
        let rates = match rates {
            Some(rates) => rates,
            None => {
                let default = plan.recipe(arm, None, plan.seeds[0], None)?.train.optimizer.learning_rate;
                factors.iter().map(|factor| rounded(default * factor)).collect()
            }
        };
        grids.push(Grid::new(rates));
    }
    Ok(grids)
}

fn gammas(args: &BenchArgs) -> anyhow::Result<Vec<f64>> {
    let Some(given) = some(args.gammas.clone(), "--gammas")? else {
        return Ok(if args.quick { Vec::new() } else { GAMMAS.to_vec() });
    };
    if given == ["none"] {
        return Ok(Vec::new());
    }
    let gamma = |text: &String| match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err(bad_input(format!("--gammas: expected none or numbers from 0, found `{text}`"))),
    };
    given.iter().map(gamma).collect()
}
