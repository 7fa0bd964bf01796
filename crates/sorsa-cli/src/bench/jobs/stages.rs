//! The stages of a comparison: rates, seeds, gammas, then the test of what was chosen. Each asks for runs; those that are there
//! already cost nothing.

use std::path::{Path, PathBuf};

use sorsa_data::synthetic;

use super::collect;
use super::plan::{Plan, Spec};
use super::rates::{Grid, best};
use super::variant::Arm;
use super::work::{Job, Kind, Workshop};
use crate::commands::finetune::DIVERGED;
use crate::commands::pretrain::{VALIDATION_DOCUMENTS, VALIDATION_SEED_OFFSET};
use crate::embedded::EMBEDDED;

/// What was run for one arm.
pub struct Searched {
    pub arm: Arm,
    pub grid: Grid,
    /// The first seed at each rate of the grid.
    pub tried: Vec<Spec>,
    /// The place of the best rate; none where every rate diverged.
    pub best: Option<usize>,
    /// Every seed at the best rate.
    pub chosen: Vec<Spec>,
}

/// Every run of a comparison.
pub struct Outcome {
    pub arms: Vec<Searched>,
    /// SORSA at its best rate, by gamma.
    pub gammas: Vec<(f64, Spec)>,
    pub tests: Tests,
    /// Jobs that were done by this process.
    pub done_here: usize,
}

/// Runs, or finds, all that the plan asks for.
pub fn run(plan: &Plan, workshop: &Workshop, text: Option<&Path>) -> anyhow::Result<Outcome> {
    let mut done_here = 0;
    let mut train = |what: &'static str, specs: &[&Spec]| -> anyhow::Result<()> {
        let mut jobs: Vec<Job> = Vec::new();
        for spec in specs {
            // SORSA without its regularizer is also the first of the gammas.
            if jobs.iter().all(|job| job.name != spec.name) {
                jobs.push(Job {
                    name: spec.name.clone(),
                    folder: spec.folder.clone(),
                    kind: Kind::Train { recipe: spec.recipe.to_toml()? },
                });
            }
        }
        done_here += workshop.run(what, &jobs, told)?;
        Ok(())
    };

    let mut arms = Vec::new();
    for (&arm, grid) in plan.arms.iter().zip(&plan.grids) {
        arms.push(Searched { arm, grid: grid.clone(), tried: Vec::new(), best: None, chosen: Vec::new() });
    }
    loop {
        for searched in &mut arms {
            searched.tried = specs(plan, searched)?;
        }
        train("learning rates", &arms.iter().flat_map(|searched| &searched.tried).collect::<Vec<_>>())?;
        let mut more = false;
        for searched in &mut arms {
            let losses: Vec<Option<f64>> = searched.tried.iter().map(|spec| collect::loss(&spec.folder)).collect();
            searched.best = best(&losses);
            more |= searched.grid.extend(&losses, plan.extend);
        }
        if !more {
            break;
        }
    }

    for searched in &mut arms {
        let Some(best) = searched.best else { continue };
        let rate = searched.tried[best].learning_rate;
        searched.chosen =
            plan.seeds.iter().map(|&seed| plan.spec(searched.arm, rate, seed, None)).collect::<Result<_, _>>()?;
    }
    train("seeds", &arms.iter().flat_map(|searched| &searched.chosen).collect::<Vec<_>>())?;

    let mut gammas = Vec::new();
    let swept = arms.iter().find(|searched| Some(searched.arm) == plan.gamma_arm());
    if let Some((arm, first)) = swept.and_then(|searched| Some((searched.arm, searched.chosen.first()?))) {
        for &gamma in &plan.gammas {
            gammas.push((gamma, plan.spec(arm, first.learning_rate, first.seed, Some(gamma))?));
        }
    }
    train("gammas", &gammas.iter().map(|(_, spec)| spec).collect::<Vec<_>>())?;

    let tests = Tests::new(plan, text)?;
    let chosen = arms.iter().flat_map(|searched| &searched.chosen).chain(gammas.iter().map(|(_, spec)| spec));
    let mut jobs = tests.jobs(plan, &plan.folder.join("base"), None);
    for spec in chosen.filter(|spec| !spec.folder.join(DIVERGED).exists()) {
        for job in tests.jobs(plan, &spec.folder, Some(&spec.folder)) {
            if jobs.iter().all(|other| other.name != job.name) {
                jobs.push(job);
            }
        }
    }
    done_here += workshop.run("tests", &jobs, |job| job.name.clone())?;
    Ok(Outcome { arms, gammas, tests, done_here })
}

fn specs(plan: &Plan, searched: &Searched) -> anyhow::Result<Vec<Spec>> {
    searched.grid.rates().iter().map(|&rate| plan.spec(searched.arm, rate, plan.seeds[0], None)).collect()
}

/// What is said of a run that has ended.
fn told(job: &Job) -> String {
    match collect::loss(&job.folder) {
        Some(loss) => format!("{} has validation loss {loss:.4}", job.name),
        None => format!("{} diverged", job.name),
    }
}

/// What trained models are asked, and where the answers are.
pub struct Tests {
    /// The result of the test problems, and every answer.
    pub test: Option<(String, String)>,
    /// The result of the texts that show what was forgotten.
    pub forgetting: Option<String>,
    text: Option<PathBuf>,
}

impl Tests {
    /// Writes the pretraining texts of the embedded model, where they are asked for.
    fn new(plan: &Plan, text: Option<&Path>) -> anyhow::Result<Self> {
        let text = match text {
            Some(path) => Some(path.to_owned()),
            None if plan.is_embedded() => {
                let path = plan.folder.join("pretraining-text.jsonl");
                if !path.exists() {
                    synthetic::write_corpus(&path, VALIDATION_SEED_OFFSET, VALIDATION_DOCUMENTS)?;
                }
                Some(path)
            }
            None => None,
        };
        let forgetting = match &text {
            Some(path) => {
                let key = super::identity::Fingerprints::default().of(path)?;
                Some(format!("forgetting-{}.json", &key[..10]))
            }
            None => None,
        };
        let test = plan.test_key().map(|key| (format!("test-{key}.json"), format!("answers-{key}.jsonl")));
        Ok(Self { test, forgetting, text })
    }

    /// The measurements of one model, in `folder`.
    fn jobs(&self, plan: &Plan, folder: &Path, adapter: Option<&Path>) -> Vec<Job> {
        let recipe = &plan.common;
        let mut common = vec!["eval".to_owned(), format!("--model={}", recipe.model.path)];
        common.extend(["--quiet", "--format=json"].map(str::to_owned));
        common.extend(adapter.map(|adapter| format!("--adapter={}", adapter.display())));
        if recipe.data.skip_bad_rows {
            common.push("--skip-bad-rows".to_owned());
        }
        // The base model's results are of one model; a folder may see several.
        let (owner, prefix) = match adapter {
            Some(_) => (folder.file_name().unwrap_or_default().to_string_lossy().into_owned(), String::new()),
            None => (format!("base-{}", plan.model_key()), format!("{}-", plan.model_key())),
        };
        let mut jobs = Vec::new();
        let mut push = |what: &str, result: &str, args: Vec<String>| {
            let args = common.iter().cloned().chain(args).collect();
            let kind = Kind::Measure { args, result: format!("{prefix}{result}") };
            jobs.push(Job { name: format!("{what}-{owner}"), folder: folder.to_owned(), kind });
        };
        if let Some((result, answers)) = &self.test {
            let eval = &recipe.eval;
            let mut args = vec![
                format!("--limit={}", eval.problems),
                format!("--max-new-tokens={}", eval.max_new_tokens),
                format!("--batch-size={}", eval.batch_size),
                format!("--template={}", recipe.data.template),
                format!("--prompt-suffix={}", eval.prompt_suffix),
                format!("--out={}", folder.join(format!("{prefix}{answers}")).display()),
            ];
            args.extend(recipe.data.test.iter().filter(|name| *name != EMBEDDED).map(|name| format!("--data={name}")));
            push("test", result, args);
        }
        if let (Some(result), Some(text)) = (&self.forgetting, &self.text) {
            push("forgetting", result, vec![format!("--text={}", text.display()), "--batch-size=32".to_owned()]);
        }
        jobs
    }

    /// The names of a base model's results.
    pub fn of_base(&self, plan: &Plan) -> Self {
        let name = |name: &String| format!("{}-{name}", plan.model_key());
        Self {
            test: self.test.as_ref().map(|(result, answers)| (name(result), name(answers))),
            forgetting: self.forgetting.as_ref().map(name),
            text: self.text.clone(),
        }
    }
}
