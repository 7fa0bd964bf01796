//! The recipe of a command line: defaults of the method, then the recipe file, then the options.

use sorsa_experiment::recipe::{read_table, set_field};
use sorsa_experiment::{Recipe, RunDir};
use sorsa_train::LearningRate;
use toml::{Table, Value};

use crate::args::{FinetuneArgs, RecipeArgs};
use crate::exit::bad_input;
use crate::session;

/// The recipe that `args` mean: that of the run to resume, or a new one.
pub fn of(args: &FinetuneArgs) -> anyhow::Result<Recipe> {
    match &args.resume {
        Some(run) => {
            refuse_options(args)?;
            RunDir::new(run)
                .recipe()
                .map_err(|error| bad_input(format!("{} holds no run to go on with: {error}", run.display())))
        }
        None => {
            let recipe = resolve(&args.fields)?;
            if args.fields.model.is_none()
                && (recipe.model.adapter.is_some() || recipe.model.continue_from.is_some())
                && args.fields.recipe.is_none()
            {
                session::check_asked(None, &recipe.model.path)?;
            }
            Ok(recipe)
        }
    }
}

/// Refuses options of the recipe together with `--resume`.
pub fn refuse_options(args: &FinetuneArgs) -> anyhow::Result<()> {
    if args.fields == RecipeArgs::default() {
        return Ok(());
    }
    Err(bad_input("--resume goes on with the recipe of its run, which no option can change any more"))
}

/// A new recipe.
pub fn resolve(args: &RecipeArgs) -> anyhow::Result<Recipe> {
    let (table, name) = given_fields(args)?;
    Ok(Recipe::from_table(table, &name)?)
}

/// The fields that the recipe file and the options give, and the name of their source for errors.
pub fn given_fields(args: &RecipeArgs) -> anyhow::Result<(Table, String)> {
    let (mut typed, name) = match &args.recipe {
        Some(path) => (read_table(path)?, path.display().to_string()),
        None => (Table::new(), "command line".to_owned()),
    };
    for (field, value) in overrides(args)? {
        set_field(&mut typed, &field, value)?;
    }
    Ok((typed, name))
}

/// The fields and values of options `--set FIELD=VALUE`.
pub fn settings(set: &[String]) -> anyhow::Result<Vec<(String, Value)>> {
    let mut fields = Vec::new();
    for text in set {
        let Some((field, value)) = text.split_once('=') else {
            return Err(bad_input(format!("--set {text}: expected FIELD=VALUE")));
        };
        // A value that is not TOML is a string: `--set data.template=raw` needs no quotes.
        let value = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let value = value.unwrap_or_else(|| Value::String(text[field.len() + 1..].to_owned()));
        fields.push((field.to_owned(), value));
    }
    Ok(fields)
}

/// The options of the command line as fields of a recipe.
fn overrides(args: &RecipeArgs) -> anyhow::Result<Vec<(String, Value)>> {
    fn float(value: Option<f64>) -> Option<Value> {
        value.map(Value::Float)
    }
    fn rate(value: LearningRate) -> Value {
        value.number().map_or_else(|| Value::String(value.to_string()), Value::Float)
    }
    fn text(value: Option<&String>) -> Option<Value> {
        value.cloned().map(Value::String)
    }
    let integer = |value: Option<u64>| value.map(|value| Value::Integer(i64::try_from(value).unwrap_or(i64::MAX)));
    let size = |value: Option<usize>| integer(value.map(|value| value as u64));
    let targets = args.target_modules.as_ref();
    let named = [
        ("model.path", text(args.model.as_ref())),
        ("model.dtype", text(args.dtype.as_ref())),
        ("model.quantize", text(args.quantize.as_ref())),
        ("model.adapter", text(args.adapter.as_ref())),
        ("model.continue_from", text(args.continue_from.as_ref())),
        ("data.train", text(args.data.as_ref())),
        ("data.validation", text(args.validation.as_ref())),
        ("data.test", text(args.test.as_ref())),
        ("data.limit", size(args.limit)),
        ("data.skip_bad_rows", args.skip_bad_rows.then_some(Value::Boolean(true))),
        (
            "data.template",
            text(args.template.clone().or(args.chat_template.as_ref().map(|_| "chat".to_owned())).as_ref()),
        ),
        ("data.chat_template", text(args.chat_template.as_ref())),
        ("data.max_length", size(args.max_length)),
        ("eval.prompt_suffix", text(args.prompt_suffix.as_ref())),
        ("eval.max_new_tokens", size(args.max_new_tokens)),
        ("adapter.method", text(args.method.as_ref())),
        ("adapter.rank", args.rank.clone()),
        ("adapter.alpha", float(args.alpha)),
        ("adapter.target_modules", targets.map(|t| Value::Array(t.iter().cloned().map(Value::String).collect()))),
        ("train.optimizer.learning_rate", args.lr.map(rate)),
        ("train.regularizer.gamma", float(args.gamma)),
        ("train.epochs", float(args.epochs)),
        ("train.max_steps", integer(args.max_steps)),
        ("train.batch_size", size(args.batch_size)),
        ("train.accumulation", size(args.accumulation)),
        ("train.stop_on_divergence", args.stop_on_divergence.then_some(Value::Boolean(true))),
        ("train.checkpoint_blocks", args.checkpoint_blocks.then_some(Value::Boolean(true))),
        ("train.matmul_precision", args.matmul_precision.map(|precision| Value::String(precision.name().to_owned()))),
        ("train.seed", integer(args.seed)),
        ("adapter.seed", integer(args.seed)),
    ];
    let mut fields: Vec<(String, Value)> =
        named.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))).collect();
    fields.extend(settings(&args.set)?);
    Ok(fields)
}
