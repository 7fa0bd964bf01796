//! The arguments of `sorsa bench` as a request. `--methods`, `--ranks` and `--gammas` are short forms of arms and sweeps.

use std::path::{Path, PathBuf};

use sorsa_experiment::comparison::fields::{FieldValue, GAMMA, METHOD, RANK, value_of};
use sorsa_experiment::comparison::{Arm, BaseRecipe, ComparisonRequest, RequestedRates, Suite, Sweep, defaults};
use toml::Value;

use crate::args::{BenchArgs, RecipeArgs};
use crate::exit::bad_input;
use crate::recipe::given_fields;

/// The comparison that the arguments ask for.
pub fn request(args: &BenchArgs) -> anyhow::Result<ComparisonRequest> {
    refuse_options_of_one_run(&args.fields)?;
    let mut suite = suite(args.suite.as_deref())?;
    let arms = arms(args, &suite)?;
    if let Some(methods) = &args.methods {
        suite = suite.restricted_to(methods);
    }
    let (settings, factors, seeds, extensions) = match args.quick {
        true => (
            &defaults::QUICK_SETTINGS,
            &defaults::QUICK_RATE_FACTORS[..],
            &defaults::QUICK_SEEDS[..],
            defaults::QUICK_EXTENSIONS,
        ),
        false => (&defaults::SETTINGS, &defaults::RATE_FACTORS[..], &defaults::SEEDS[..], defaults::EXTENSIONS),
    };
    let mut fields = args.fields.clone();
    if args.quick {
        fields.max_steps.get_or_insert(defaults::QUICK_STEPS);
    }
    let reference = args.reference.clone().or_else(|| suite.reference.clone());
    if let Some(name) = &reference
        && arms.iter().all(|arm| arm.name != *name)
    {
        return Err(bad_input(format!("the reference {name} is not among the arms")));
    }
    Ok(ComparisonRequest {
        folder: args.bench_dir.clone().unwrap_or_else(|| default_folder(args.quick)),
        sweeps: sweeps(args, &suite)?,
        arms,
        then: args.then.clone(),
        questions: suite.questions.clone(),
        watches: suite.watches,
        reference: reference.unwrap_or_else(|| defaults::REFERENCE_ARM.to_owned()),
        rates: rates(args, &suite, factors)?,
        seeds: checked_list("--seeds", args.seeds.clone())?.unwrap_or_else(|| seeds.to_vec()),
        extend: args.extend.unwrap_or(extensions),
        extend_found: args.extend.unwrap_or(defaults::FOUND_RATE_EXTENSIONS),
        sets_eval_every: fields.set.iter().any(|field| field.starts_with("train.eval_every=")),
        base: base_recipe(fields, &suite, settings)?,
    })
}

/// The fields of all runs: those of the suite, then those of the recipe file and the options, then `settings`, then those of `--set`.
fn base_recipe(mut options: RecipeArgs, suite: &Suite, settings: &[&str]) -> anyhow::Result<BaseRecipe> {
    let given = std::mem::take(&mut options.set);
    let of_suite =
        |text: &str| suite.settings.iter().any(|own| text.split_once('=').is_some_and(|(field, _)| field == own.field));
    let settings = settings.iter().filter(|text| !of_suite(text)).map(ToString::to_string);
    options.set = settings.chain(given).collect();
    let mut fields_if_used = Vec::new();
    if let Some(rank) = options.rank.take() {
        fields_if_used.push(FieldValue::new(RANK, rank));
    }
    if let Some(gamma) = options.gamma.take() {
        fields_if_used.push(FieldValue::new(GAMMA, gamma));
    }
    let (fields, source) = given_fields(&options)?;
    let mut base = BaseRecipe { fields, fields_if_used, source };
    for setting in &suite.settings {
        if value_of(&base.fields, &setting.field).is_none() {
            base.set(setting.clone())?;
        }
    }
    Ok(base)
}

fn default_folder(quick: bool) -> PathBuf {
    Path::new("runs").join(if quick { "bench-quick" } else { "bench" })
}

fn suite(file: Option<&Path>) -> anyhow::Result<Suite> {
    let Some(path) = file else { return Ok(Suite::default()) };
    if let Some(text) = path.to_str().and_then(Suite::built_in).filter(|_| !path.exists()) {
        return Suite::parse(text).map_err(bad_input);
    }
    let fault = |error: String| bad_input(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| {
        let names: Vec<&str> = Suite::names().collect();
        fault(format!("{error}; the suites of this program are {}", names.join(", ")))
    })?;
    Suite::parse(&text).map_err(fault)
}

/// Refuses the options that a comparison sets for each run, and names the option to use.
fn refuse_options_of_one_run(fields: &RecipeArgs) -> anyhow::Result<()> {
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

/// The values of a list option, which must not be empty and must not repeat.
fn checked_list<T: PartialEq + std::fmt::Display>(
    option: &str,
    list: Option<Vec<T>>,
) -> anyhow::Result<Option<Vec<T>>> {
    let Some(values) = &list else { return Ok(None) };
    if values.is_empty() {
        return Err(bad_input(format!("{option} is empty")));
    }
    match values.iter().enumerate().find(|(index, value)| values[..*index].contains(value)) {
        Some((_, twice)) => Err(bad_input(format!("{option} names {twice} twice"))),
        None => Ok(list),
    }
}

/// The arms: those of `--methods`, or else of the suite; then those of `--arm`. If there are none, the default ones.
fn arms(args: &BenchArgs, suite: &Suite) -> anyhow::Result<Vec<Arm>> {
    let mut own = Vec::new();
    for text in &args.arm {
        own.push(Arm::parse(text).map_err(|error| bad_input(format!("--arm: {error}")))?);
    }
    let mut arms = match checked_list("--methods", args.methods.clone())? {
        Some(names) => {
            let mut arms = Vec::new();
            for name in &names {
                arms.push(arm_by_name(name, &own, suite)?);
            }
            arms
        }
        None => suite.arms.clone(),
    };
    // `--methods` may have put an arm of the command line into its place.
    own.retain(|arm| !arms.contains(arm));
    arms.extend(own);
    for arm in &arms {
        let method = arm.fields.iter().find(|field| field.field == METHOD).map(|field| &field.value);
        if arm.name.parse::<sorsa_adapter::Method>().is_ok() && method != Some(&Value::String(arm.name.clone())) {
            return Err(bad_input(format!("the arm {0} has the name of a method: it must set {METHOD}={0}", arm.name)));
        }
    }
    Ok(match (arms.is_empty(), args.quick) {
        (false, _) => arms,
        (true, true) => defaults::quick_arms(),
        (true, false) => defaults::arms(),
    })
}

/// An arm of the command line, of the suite or of the default comparison, or else a method.
fn arm_by_name(name: &str, own: &[Arm], suite: &Suite) -> anyhow::Result<Arm> {
    let defaults = defaults::named_arms();
    if let Some(arm) = own.iter().chain(&suite.arms).chain(&defaults).find(|arm| arm.name == name) {
        return Ok(arm.clone());
    }
    match name.parse::<sorsa_adapter::Method>() {
        Ok(_) => Ok(Arm::of_method(name)),
        Err(error) => {
            let others = own.iter().chain(&suite.arms).chain(&defaults).map(|arm| arm.name.as_str());
            let others: Vec<&str> = others.filter(|name| name.parse::<sorsa_adapter::Method>().is_err()).collect();
            Err(bad_input(format!("{error}; or {}", others.join(", "))))
        }
    }
}

/// The sweeps of the suite and of the options. If there are none, the default ones.
fn sweeps(args: &BenchArgs, suite: &Suite) -> anyhow::Result<Vec<Sweep>> {
    let mut sweeps = suite.sweeps.clone();
    for text in &args.sweep {
        sweeps.push(Sweep::parse(text).map_err(|error| bad_input(format!("--sweep: {error}")))?);
    }
    let is_default = sweeps.is_empty() && args.suite.is_none() && !args.quick;
    if let Some(ranks) = checked_list("--ranks", args.ranks.clone())? {
        let values = ranks.into_iter().map(|rank| Ok(Value::Integer(i64::try_from(rank)?)));
        sweeps.push(Sweep { optional: true, ..Sweep::new(RANK, values.collect::<anyhow::Result<_>>()?) });
    }
    match checked_list("--gammas", args.gammas.clone())? {
        Some(given) if given == ["none"] => {}
        Some(given) => {
            let gammas = given.iter().map(|text| gamma(text).map(Value::Float)).collect::<anyhow::Result<_>>()?;
            sweeps.push(Sweep { optional: true, ..Sweep::new(GAMMA, gammas) });
        }
        None if is_default => sweeps.extend(defaults::sweeps()),
        None => {}
    }
    Ok(sweeps)
}

fn gamma(text: &str) -> anyhow::Result<f64> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err(bad_input(format!("--gammas: expected none or numbers from 0, found `{text}`"))),
    }
}

/// The learning rates of `--lrs`, and those of the suite for arms and for all if `--lrs` gives none.
fn rates(args: &BenchArgs, suite: &Suite, factors: &[f64]) -> anyhow::Result<RequestedRates> {
    let mut rates = RequestedRates { by_arm: Vec::new(), for_all: Vec::new(), factors: factors.to_vec() };
    for text in checked_list("--lrs", args.lrs.clone())?.unwrap_or_default() {
        match text.split_once('=') {
            Some((name, text)) => rates.by_arm.push((name.to_owned(), rate(text)?)),
            None => rates.for_all.push(rate(&text)?),
        }
    }
    for (name, rate) in &suite.rates_by_arm {
        let given = args.lrs.iter().flatten().any(|text| text.split_once('=').is_some_and(|(arm, _)| arm == name));
        if !given {
            rates.by_arm.push((name.clone(), *rate));
        }
    }
    if rates.for_all.is_empty() {
        rates.for_all.clone_from(&suite.rates_for_all);
    }
    Ok(rates)
}

fn rate(text: &str) -> anyhow::Result<f64> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err(bad_input(format!("--lrs: expected a positive number, found `{text}`"))),
    }
}

#[cfg(test)]
mod tests {
    use burn::prelude::Device;
    use clap::Parser;
    use sorsa_experiment::Host;
    use sorsa_experiment::comparison::{ComparisonPlan, SweepMode};

    use super::*;
    use crate::args::{Cli, Command};

    fn asked(options: &str) -> anyhow::Result<ComparisonRequest> {
        let arguments = ["sorsa", "bench"].into_iter().chain(options.split_whitespace());
        match Cli::try_parse_from(arguments).unwrap().command {
            Command::Bench(args) => request(&args),
            other => panic!("{other:?}"),
        }
    }

    fn planned(options: &str) -> anyhow::Result<ComparisonPlan> {
        Ok(ComparisonPlan::new(asked(options)?, &Host::cpu(Device::flex()), &mut ())?)
    }

    fn row_names(plan: &ComparisonPlan) -> String {
        plan.rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_default_comparison_has_six_arms_and_a_sweep_of_gamma() {
        let plan = planned("").unwrap();
        assert_eq!(row_names(&plan), "lora-r16 pissa-r16 sorsa-r16 sorsa-noreg-r16 partial full");
        assert_eq!(plan.rows[3].label, "sorsa-noreg");
        assert_eq!((plan.sweeps.len(), &plan.sweeps[0].rows[..]), (1, &[2][..]), "of the arm that does not set gamma");
        assert_eq!(plan.run_count(), 6 * 4 + 6 * 2 + 4);
        let ranks = planned("--ranks 4,16 --gammas none").unwrap();
        let expected =
            "lora-r4 lora-r16 pissa-r4 pissa-r16 sorsa-r4 sorsa-r16 sorsa-noreg-r4 sorsa-noreg-r16 partial full";
        assert_eq!((row_names(&ranks).as_str(), ranks.sweeps.len()), (expected, 0));
        let quick = planned("--quick").unwrap();
        assert_eq!(row_names(&quick), "lora-r16 pissa-r16 sorsa-r16 sorsa-noreg-r16");
        assert_eq!((quick.steps, quick.seeds.len(), quick.sweeps.len(), quick.extend), (150, 2, 0, 0));
    }

    #[test]
    fn runs_of_the_first_version_are_found_by_their_names() {
        let plan =
            planned("--methods lora,sorsa,sorsa-noreg --ranks 4 --gammas 4e-5,0.5 --max-steps 1 --set eval.problems=0");
        let mut plan = plan.unwrap();
        // Recorded by 01ef46c with these options and `--lrs 1e-3`.
        let recorded = [
            "lora-r4-lr1e-3-s42-7147f0c91c",
            "sorsa-r4-g4e-4-lr1e-3-s42-f8c83469ea",
            "sorsa-r4-g0e0-lr1e-3-s42-fa9a3c737e",
        ];
        for (row, name) in plan.rows.iter().zip(recorded) {
            assert_eq!(plan.run(row, &[], 1e-3, 42).unwrap().name, name);
        }
        let swept = ["sorsa-r4-g4e-5-lr1e-3-s42-2762eb12b9", "sorsa-r4-g5e-1-lr1e-3-s42-3abeb1d26c"];
        for (field, name) in plan.sweeps[0].fields().into_iter().zip(swept) {
            assert_eq!(plan.run(&plan.rows[1], &[field], 1e-3, 42).unwrap().name, name);
        }
        // A folder under another name is found by its key.
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("runs/renamed-7147f0c91c")).unwrap();
        plan.folder = folder.path().to_owned();
        let found = plan.run(&plan.rows[0], &[], 1e-3, 42).unwrap();
        assert_eq!((found.name.as_str(), found.folder.exists()), ("renamed-7147f0c91c", true));
    }

    #[test]
    fn arms_and_sweeps_set_any_field() {
        let options = "--methods pissa --arm wide=adapter.method=lora,adapter.rank=32 --sweep adapter.alpha=8,16 --lrs wide=1e-3,2e-3 \
                       --reference wide --max-steps 2";
        let plan = planned(options).unwrap();
        assert_eq!(row_names(&plan), "pissa-r16 wide");
        assert_eq!((plan.rows[1].rank, plan.reference.as_str()), (Some(32), "wide"));
        assert_eq!((&plan.sweeps[0].rows[..], plan.sweeps[0].sweep.mode), (&[0, 1][..], SweepMode::AtBestRate));
        let run = plan.run(&plan.rows[1], &plan.sweeps[0].fields()[..1], 1e-3, 1).unwrap();
        assert!(run.name.starts_with("lora-r32-alpha8e0-lr1e-3-s1-"), "{}", run.name);
        assert_eq!((run.recipe.adapter.alpha, run.recipe.train.seed, run.recipe.adapter.seed), (Some(8.0), 1, 1));
    }

    #[test]
    fn a_fault_of_an_arm_or_a_sweep_is_said_in_one_line() {
        let fault = |options: &str| planned(options).unwrap_err().to_string();
        let no_effect = fault("--arm reg=adapter.method=pissa,train.regularizer.gamma=4e-4");
        assert_eq!(no_effect, "the arm reg sets train.regularizer.gamma, which has no effect in it");
        assert!(fault("--methods full --sweep adapter.alpha=8,16").contains("the sweep of adapter.alpha has no arm"));
        assert!(fault("--methods lora --sweep adapter.alpha").contains("--sweep: expected FIELD=VALUE"));
        assert!(fault("--methods lora --sweep adapter.alhpa=1").contains("unknown field `alhpa`"));
        assert!(fault("--arm lora=adapter.rank=4").contains("it must set adapter.method=lora"));
        assert!(fault("--arm a=adapter.rank=4 --arm a=adapter.rank=8").contains("two arms are named a"));
        assert!(fault("--methods lora --reference full").contains("full is not among the arms"));
        assert!(fault("--suite no-such-file.toml").starts_with("no-such-file.toml: "));
    }

    #[test]
    fn the_example_suite_compares_the_regularizer() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/suites/regularizer.toml");
        let plan = planned(&format!("--suite {} --max-steps 2", file.display())).unwrap();
        assert_eq!(row_names(&plan), "pissa-r16 sorsa-r16 sorsa-noreg-r16 sorsa-decoupled-r16");
        assert_eq!((plan.reference.as_str(), &plan.sweeps[0].rows[..]), ("pissa", &[1][..]));
        assert_eq!(plan.sweeps[0].sweep.values.len(), 5);
    }

    #[test]
    fn the_example_suite_of_the_ablation_has_pissa_with_the_regularizer() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/suites/ablation.toml");
        let plan = planned(&format!("--suite {} --max-steps 2", file.display())).unwrap();
        assert_eq!(row_names(&plan), "pissa-r16 pissa-reg-r16 sorsa-noreg-r16 sorsa-r16");
        let gamma =
            |row: usize| plan.run(&plan.rows[row], &[], 1e-3, 1).unwrap().recipe.train.regularizer.orthogonal_gamma;
        assert_eq!([0, 1, 2, 3].map(gamma), [0.0, 4e-4, 0.0, 0.0]);
        assert_eq!(plan.sweeps[0].rows, [1]);
        let error = planned("--arm full-reg=adapter.method=full,train.regularizer.orthogonal_gamma=4e-4").unwrap_err();
        assert!(error.to_string().contains("full does not train two factors"), "{error}");
    }

    #[test]
    fn the_settings_of_a_suite_hold_unless_an_option_sets_them() {
        let data = tempfile::NamedTempFile::with_suffix(".jsonl").unwrap();
        let row = r#"{"query": "1 + 1?", "response": "2"}"#;
        std::fs::write(data.path(), [row; 200].join("\n")).unwrap();
        let file = data.path().display();
        let options = format!("--suite peft --model embedded --data {file} --max-length 64 --methods lora,sorsa");
        let plan = planned(&options).unwrap();
        let train = &plan.common.train;
        assert_eq!((train.batch_size, train.optimizer.weight_decay, plan.common.data.max_length), (4, 0.1, 64));
        assert_eq!(plan.common.data.template.to_string(), "question");
        assert_eq!(plan.grids.iter().map(|grid| grid.rates().to_vec()).collect::<Vec<_>>(), [[1e-4]; 2]);
        let lora = plan.run(&plan.rows[0], &[], 1e-4, 0).unwrap().recipe;
        assert_eq!((lora.adapter.rank, lora.adapter.alpha), (32, Some(64.0)));
    }

    #[test]
    fn a_budget_leaves_out_seeds_then_sweeps_then_rates() {
        use sorsa_experiment::comparison::budget::Costs;

        let costs = Costs { start: 1.0, step: 0.1, evaluation: 1.0, test: 10.0 };
        // 6 arms at 4 rates, 5 seeds, 4 gammas: 52 runs of 10 steps and 11 evaluations, 13 s each, and 35 tests.
        let asked = || planned("--seeds 1,2,3,4,5 --max-steps 10").unwrap();
        assert_eq!(asked().seconds(&costs), 52.0 * 13.0 + 35.0 * 10.0);
        let left_out = |budget: f64| {
            let mut plan = asked();
            let said = plan.fit(budget, &costs)?.join("; ");
            assert!(plan.seconds(&costs) <= budget);
            Ok::<_, sorsa_experiment::ExperimentError>((plan.seeds.len(), plan.run_count(), said))
        };
        assert_eq!(left_out(1100.0).unwrap(), (5, 52, String::new()));
        assert_eq!(left_out(1000.0).unwrap(), (4, 46, "1 of 5 seeds".to_owned()));
        let (seeds, runs, said) = left_out(550.0).unwrap();
        assert_eq!((seeds, runs, said.as_str()), (2, 30, "3 of 5 seeds; the sweeps of train.regularizer.gamma"));
        let (seeds, runs, said) = left_out(300.0).unwrap();
        assert_eq!((seeds, runs), (2, 12));
        assert!(said.ends_with("all learning rates but the middle of each grid"), "{said}");
        let short = left_out(100.0).unwrap_err().to_string();
        assert_eq!(short, "the budget of 100 s is too short: one seed of 6 arms at one learning rate each takes 2 min");
    }

    #[test]
    fn the_suite_of_the_reviewers_asks_ten_questions_and_knows_what_answers_them() {
        let plan = planned("--suite reviewers --max-steps 20").unwrap();
        assert_eq!((plan.questions.len(), plan.rows.len(), plan.sweeps.len()), (10, 15, 2));
        assert_eq!((plan.common.train.eval_every, plan.common.train.watch_every), (2, 2));
        // Fewer arms leave the questions that they can answer.
        let fewer = planned("--suite reviewers --methods lora,dora,full --max-steps 20").unwrap();
        let titles: Vec<&str> = fewer.questions.iter().map(|question| &question.title[..2]).collect();
        assert_eq!(titles, ["1.", "4.", "6.", "8.", "9."]);
        let unknown = planned("--suite reviewer").unwrap_err().to_string();
        assert!(
            unknown.ends_with("the suites of this program are ablation, peft, regularizer, reviewers, settings"),
            "{unknown}"
        );
    }

    #[test]
    fn the_suite_of_settings_has_a_grid_for_each_arm_and_methods_take_some_of_them() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/suites/settings.toml");
        let plan = planned(&format!("--suite {} --max-steps 2", file.display())).unwrap();
        assert_eq!((plan.rows.len(), plan.reference.as_str()), (35, "sorsa"));
        assert!(plan.grids.iter().all(|grid| grid.size() == 2));
        // Every arm but the reference is in a question.
        let asked: std::collections::BTreeSet<_> = plan.questions.iter().flat_map(|question| &question.arms).collect();
        assert_eq!((plan.questions.len(), asked.len()), (6, 34));
        let some = format!("--suite {} --max-steps 2 --methods sorsa,stella,sorsa-sgd,lora", file.display());
        let rates = |options: &str| {
            let plan = planned(&format!("{some} {options}")).unwrap();
            plan.grids.iter().map(|grid| grid.rates().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(rates(""), [[2e-3, 4e-3], [4e-3, 8e-3], [6e-2, 1.2e-1], [4e-3, 8e-3]]);
        let given = rates("--lrs 1e-3,stella=1.0");
        assert_eq!(given, [vec![1e-3], vec![1.0], vec![6e-2, 1.2e-1], vec![4e-3, 8e-3]]);
    }
}
