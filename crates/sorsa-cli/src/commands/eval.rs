//! `sorsa eval`: accuracy on problems with answers, or the perplexity of texts.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sorsa_checkpoint::WeightFormat;
use sorsa_data::{AnswerStyle, EncodeOptions, LoadOptions, TemplateName};
use sorsa_experiment::adapter::adapter_folder;
use sorsa_experiment::answer_log::AnswerLog;
use sorsa_experiment::continuation::AnswerOptions;
use sorsa_experiment::model::{LoadedModel, Stops, model_or_of_run, weight_format};
use sorsa_experiment::tasks::{
    HUMANEVAL, PERPLEXITY, ProblemSource, Problems, Scores, Task, evaluate, of_data_set, recognise,
};
use sorsa_experiment::{Answer, Event, Inputs, Observer, RunDir, content, json_lines};
use sorsa_files::write_atomic;
use sorsa_models::Sampling;
use sorsa_train::mean_loss;

use crate::args::EvalArgs;
use crate::exit::{OrBadInput, bad_input};
use crate::format::{TableFormat, print, print_json};
use crate::observer::TerminalObserver;
use crate::progress::Style;
use crate::session;

pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    check(args)?;
    args.matmul_precision.choose();
    if let Some(run) = &args.validation_of {
        return validation_loss(args, run);
    }
    let (task, path) = choose(args)?;
    let code = match args.allow_code_execution {
        true => Some(session::code_execution(args.code_timeout, args.code_memory << 20)),
        false => None,
    };
    // Before the model is loaded.
    task.check(code.as_ref())?;
    let style = Style::choose(args.quiet);
    session::set_config(&args.config, args.adapter.as_deref())?;
    let host = session::host(&args.device, style)?;
    let name = model_or_of_run(args.model.as_deref(), args.adapter.as_deref())?;
    session::check_asked(args.model.as_deref(), &name)?;
    let settings = ModelSettings::of(args, task)?;
    let mut loaded = LoadedModel::load(&name, settings.dtype, &host)?;
    session::warn_of_separate_head(&loaded.folder, &loaded.model)?;
    if let Some(adapter) = &args.adapter {
        loaded = loaded.with_adapter(adapter, &mut session::Warnings)?;
    }
    let encode = EncodeOptions {
        max_length: usize::MAX,
        append_eos: false,
        prompt_suffix: settings.prompt_suffix.clone(),
        ..EncodeOptions::default()
    };
    let load = LoadOptions {
        skip_bad_rows: args.skip_bad_rows,
        limit: args.limit,
        answer_style: AnswerStyle::TheAnswerIs,
        ..LoadOptions::default()
    };
    let config = loaded.model.config();
    let encoder = match &settings.chat_template {
        Some(name) => loaded.chat_encoder(name, encode)?,
        None => loaded.encoder(settings.template, encode)?,
    };
    let mut stops = Stops::of(&encoder, config);
    stops.texts.extend(args.stop.iter().cloned());
    let source = ProblemSource {
        path: &path,
        load: &load,
        encoder: &encoder,
        config,
        // RWKV has no context that prompts could overflow.
        context: config.context_length().unwrap_or(usize::MAX),
        code: code.as_ref(),
    };
    let mut observer = TerminalObserver::new(style, &host.backend);
    for text in loaded.tokenizer.notes().iter().chain(&loaded.notes) {
        observer.on_event(Event::Note { text });
    }
    let problems = task.load(&source, &mut observer)?;
    // Before the work: a file that cannot be written would cost every answer.
    let log = match &args.out {
        Some(out) if task.has_accuracy() => {
            AnswerLog::open(out, &log_settings(args, &settings, &name, &loaded.folder, task, &*problems)?)?
        }
        _ => AnswerLog::in_memory(),
    };
    let options = answer_options(args, &settings, stops);
    let evaluation = evaluate(&*problems, &loaded.model, &options, log, &mut observer)?;
    if let Some(out) = &args.disagreements {
        let disputed: Vec<&Answer> = evaluation.answers.iter().filter(|answer| answer.disputed()).collect();
        write_atomic(out, json_lines(&disputed)?)?;
    }
    show(&evaluation.scores, args.format)
}

/// Prints the loss of the validation data of the run in a folder.
fn validation_loss(args: &EvalArgs, run: &Path) -> anyhow::Result<()> {
    let style = Style::choose(args.quiet);
    let recipe = RunDir::new(run).recipe()?;
    session::set_config(&args.config, args.adapter.as_deref())?;
    let host = session::host(&args.device, style)?;
    let name = model_or_of_run(args.model.as_deref(), args.adapter.as_deref())?;
    session::check_asked(args.model.as_deref(), &name)?;
    let dtype = match (&args.dtype, session::run_facts(args.adapter.as_deref())) {
        (Some(dtype), _) => weight_format(dtype)?,
        (None, Some(facts)) => facts.dtype,
        (None, None) => WeightFormat::F32,
    };
    let mut loaded = LoadedModel::load(&name, dtype, &host)?;
    if let Some(adapter) = &args.adapter {
        loaded = loaded.with_adapter(adapter, &mut session::Warnings)?;
    }
    let mut observer = TerminalObserver::new(style, &host.backend);
    let inputs = Inputs::read(&recipe, &loaded.tokenizer, loaded.model.config(), &host, &mut observer)?;
    let Some(validation) = inputs.validation else {
        return Err(bad_input(format!("{}: the run has no validation data", run.display())));
    };
    let loss = mean_loss(&loaded.model, &validation);
    let examples = inputs.data.validation_examples;
    let text = json!({"loss": loss, "rows": examples, "validation_of": run});
    match args.format {
        TableFormat::Json => print_json(&text),
        _ => print(format_args!(
            "loss {loss:.4} nats per target token of {examples} validation rows of {}",
            run.display()
        )),
    }
}

/// How the model is asked: by the options, else as its run did it, else by the defaults.
struct ModelSettings {
    dtype: WeightFormat,
    template: TemplateName,
    chat_template: Option<String>,
    prompt_suffix: String,
    max_new_tokens: usize,
}

impl ModelSettings {
    fn of(args: &EvalArgs, task: &dyn Task) -> anyhow::Result<Self> {
        let run = session::run_facts(args.adapter.as_deref());
        let run = run.as_ref();
        let template = match (&args.template, run) {
            _ if !task.has_accuracy() => task.template(),
            (Some(template), _) => template.parse().or_bad_input()?,
            _ if args.chat_template.is_some() => TemplateName::Chat,
            (None, Some(run)) => run.template,
            (None, None) => task.template(),
        };
        Ok(Self {
            dtype: match &args.dtype {
                Some(dtype) => weight_format(dtype)?,
                None => run.map_or(WeightFormat::F32, |run| run.dtype),
            },
            template,
            chat_template: session::chat_template(args.chat_template.as_deref(), run, template)?,
            prompt_suffix: match (&args.prompt_suffix, run) {
                (Some(suffix), _) => suffix.clone(),
                (None, Some(run)) => run.prompt_suffix.clone(),
                (None, None) => String::new(),
            },
            max_new_tokens: match (args.max_new_tokens, run) {
                (Some(tokens), _) => tokens,
                (None, Some(run)) => run.max_new_tokens,
                (None, None) => session::ANSWER_TOKENS,
            },
        })
    }
}

fn check(args: &EvalArgs) -> anyhow::Result<()> {
    if args.batch_size == 0 {
        return Err(bad_input("--batch-size should be at least 1"));
    }
    if args.samples == 0 {
        return Err(bad_input("--samples should be at least 1"));
    }
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        return Err(bad_input(format!("--temperature should be 0 or more, found {}", args.temperature)));
    }
    if args.samples > 1 && args.temperature == 0.0 {
        return Err(bad_input("several greedy generations are one: --samples needs a --temperature above 0"));
    }
    if args.top_p.is_some_and(|p| !(0.0..=1.0).contains(&p)) || args.top_k == Some(0) {
        return Err(bad_input("--top-p should be between 0 and 1, and --top-k at least 1"));
    }
    Ok(())
}

/// The task and its file.
fn choose(args: &EvalArgs) -> anyhow::Result<(&'static dyn Task, PathBuf)> {
    if let Some(text) = &args.text {
        return Ok((&PERPLEXITY, text.clone()));
    }
    let path = match &args.data {
        Some(path) => PathBuf::from(path),
        None => session::embedded_files().task("test")?,
    };
    match args.task.as_deref().and_then(of_data_set) {
        Some(task) => Ok((task, path)),
        None => Ok((recognise(&path), path)),
    }
}

fn answer_options(args: &EvalArgs, settings: &ModelSettings, stop: Stops) -> AnswerOptions {
    let (temperature, top_k, top_p, seed) = (args.temperature, args.top_k, args.top_p, args.seed);
    AnswerOptions {
        batch_size: args.batch_size,
        max_new_tokens: settings.max_new_tokens,
        sampling: match temperature == 0.0 {
            true => Sampling::Greedy,
            false => Sampling::Random { temperature, top_k, top_p, seed },
        },
        samples: args.samples,
        stop,
    }
}

/// All that decides the answers: the first line of their file. A folder of the same name may hold another model or adapter
/// later, so that their content counts too.
fn log_settings(
    args: &EvalArgs,
    model_settings: &ModelSettings,
    model: &str,
    folder: &Path,
    task: &dyn Task,
    problems: &dyn Problems,
) -> anyhow::Result<Map<String, Value>> {
    let adapter_content = match &args.adapter {
        Some(adapter) => Some(content::of_adapter(&adapter_folder(adapter)?)?),
        None => None,
    };
    let runs_programs = task.name() == HUMANEVAL.name();
    let settings = json!({
        "task": task.name(), "model": model, "adapter": args.adapter,
        "problems": problems.count(), "fingerprint": problems.fingerprint(),
        "model_content": content::of_model(folder)?, "adapter_content": adapter_content,
        "max_new_tokens": model_settings.max_new_tokens, "samples": args.samples, "temperature": args.temperature,
        "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed,
        "code_timeout": runs_programs.then_some(args.code_timeout),
        "code_memory": runs_programs.then_some(args.code_memory),
    });
    let mut fields = match settings {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    // Files of earlier builds go on.
    if !args.stop.is_empty() {
        fields.insert("stop".to_owned(), json!(args.stop));
    }
    Ok(fields)
}

fn show(scores: &Scores, format: TableFormat) -> anyhow::Result<()> {
    match format.table(&scores.table) {
        None => print_json(&scores.document),
        Some(_) if scores.table.is_empty() => print(&scores.notes),
        Some(table) => {
            print(table.trim_end())?;
            if format == TableFormat::Table {
                print(&scores.notes)?;
            }
            Ok(())
        }
    }
}
