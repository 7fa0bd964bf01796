//! `sorsa eval`: accuracy on problems with answers, or the perplexity of texts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};
use sorsa_data::{AnswerStyle, BatchOptions, Batcher, EncodeOptions, Encoder, LoadOptions};
use sorsa_eval::grade::AnswerKind;
use sorsa_files::write_atomic;
use sorsa_models::Sampling;
use sorsa_train::mean_loss;

use crate::answers::{Answers, fingerprint};
use crate::args::{EvalArgs, Task};
use crate::content;
use crate::device;
use crate::embedded;
use crate::exit::{OrBadInput, bad_input};
use crate::format::{TableFormat, print, print_json};
use crate::humaneval;
use crate::progress::Style;
use crate::run_dir::json_lines;
use crate::sampling::Continuing;
use crate::sandbox::{Isolation, Limits, Sandbox};
use crate::scoreboard::{Judged, PassRate, print_scores, reported};
use crate::session::{self, Session, adapter_folder, load_records};
use crate::task::{Generated, Problems, answer_kind};

pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    check(args)?;
    let path = match &args.data {
        Some(path) => PathBuf::from(path),
        None => embedded::task("test")?,
    };
    let code = args.text.is_none()
        && (args.task == Some(Task::Humaneval) || (args.task.is_none() && humaneval::recognised(&path)));
    // Before the model is loaded: what is missing is known already.
    let sandbox = if code { Some(sandbox(args)?) } else { None };
    let device = device::open(args.device.backend, args.device.device)?;
    let style = Style::choose(args.quiet);
    let model = session::model_or_of_run(args.model.as_deref(), args.adapter.as_deref())?;
    let session = Session::load(&model, session::dtype(&args.dtype)?, &device, style)?;
    let session = session.with_adapter(args.adapter.as_deref())?;
    match (&args.text, sandbox) {
        (Some(texts), _) => perplexity(args, &session, texts, style),
        (None, Some(sandbox)) => programs(args, &session, &path, &sandbox, style),
        (None, None) => accuracy(args, &session, &path, style),
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

fn sandbox(args: &EvalArgs) -> anyhow::Result<Sandbox> {
    if !args.allow_code_execution {
        return Err(bad_input(
            "HumanEval runs programs that the model writes: allow it with --allow-code-execution, where that can do no harm",
        ));
    }
    Sandbox::new(Limits { seconds: args.code_timeout, memory_bytes: args.code_memory << 20 })
}

fn continuing(args: &EvalArgs, session: &Session) -> Continuing {
    let (temperature, top_k, top_p, seed) = (args.temperature, args.top_k, args.top_p, args.seed);
    Continuing {
        slots: args.batch_size,
        max_new_tokens: args.max_new_tokens,
        sampling: match temperature == 0.0 {
            true => Sampling::Greedy,
            false => Sampling::Random { temperature, top_k, top_p, seed },
        },
        samples: args.samples,
        stops: session.stops(),
    }
}

fn encoder(args: &EvalArgs, session: &Session, template: &str) -> anyhow::Result<Encoder> {
    let template = args.template.as_deref().unwrap_or(template);
    let encode =
        EncodeOptions { max_length: usize::MAX, prompt_suffix: args.prompt_suffix.clone(), ..EncodeOptions::default() };
    session.encoder(template, encode)
}

/// What the generations depend on, but for the speed: the first line of their file. The folder of a model or of a run
/// can come to hold another, so both are known by what is in them too.
fn settings(
    args: &EvalArgs,
    session: &Session,
    task: &str,
    problems: usize,
    fingerprint: &str,
) -> anyhow::Result<Map<String, Value>> {
    let adapter = args.adapter.as_deref().map(|adapter| content::of_adapter(&adapter_folder(adapter)?)).transpose()?;
    let settings = json!({
        "task": task, "model": session::model_or_of_run(args.model.as_deref(), args.adapter.as_deref())?, "adapter": args.adapter,
        "problems": problems, "fingerprint": fingerprint,
        "model_content": content::of_model(&session.folder)?, "adapter_content": adapter,
        "max_new_tokens": args.max_new_tokens, "samples": args.samples, "temperature": args.temperature,
        "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed,
        "code_timeout": (task == "humaneval").then_some(args.code_timeout),
        "code_memory": (task == "humaneval").then_some(args.code_memory),
    });
    Ok(match settings {
        Value::Object(fields) => fields,
        _ => Map::new(),
    })
}

/// The mean loss of texts, token by token, each text from its own beginning.
fn perplexity(args: &EvalArgs, session: &Session, path: &Path, style: Style) -> anyhow::Result<()> {
    let context = session.model.config().max_position_embeddings;
    let options = LoadOptions { skip_bad_rows: args.skip_bad_rows, limit: args.limit, ..LoadOptions::default() };
    let loaded = load_records(path, &options, style)?;
    let encode = EncodeOptions { max_length: context, append_eos: false, ..EncodeOptions::default() };
    let set = session.encoder("raw", encode)?.encode_all(&loaded.records).or_bad_input_in(path)?;
    let batches = BatchOptions {
        batch_size: args.batch_size,
        shuffle: false,
        bucket: usize::MAX / args.batch_size.max(1),
        max_length: context,
        pad_id: session.tokenizer.pad(session.model.config().vocab_size),
        ..BatchOptions::default()
    };
    let targets = set.target_tokens;
    let batcher = Batcher::new(Arc::new(set.examples), batches).or_bad_input()?;
    let loss = mean_loss(&session.model, &batcher);
    match args.format {
        TableFormat::Json => print_json(&json!({ "loss": loss, "perplexity": loss.exp(), "tokens": targets })),
        _ => print(format_args!("perplexity {:.4} (loss {loss:.5} over {targets} tokens)", loss.exp())),
    }
}

fn accuracy(args: &EvalArgs, session: &Session, path: &Path, style: Style) -> anyhow::Result<()> {
    let options = LoadOptions {
        skip_bad_rows: args.skip_bad_rows,
        limit: args.limit,
        answer_style: AnswerStyle::TheAnswerIs,
        ..LoadOptions::default()
    };
    let loaded = load_records(path, &options, style)?;
    let kind = match args.task {
        Some(Task::Math) => AnswerKind::Expression,
        Some(_) => AnswerKind::Number,
        None => answer_kind(loaded.format),
    };
    let task = match kind {
        AnswerKind::Expression => "math",
        AnswerKind::Number => "number",
    };
    let encoder = encoder(args, session, "alpaca")?;
    // RWKV has no context that prompts could overflow.
    let context = session.model.config().context_length().unwrap_or(usize::MAX);
    let problems = Problems::new(path, loaded.records, kind, &encoder, context)?;
    // Before the work, not after it: a file that cannot be written would cost every answer.
    let mut answers =
        Answers::open(args.out.as_deref(), || settings(args, session, task, problems.len(), &problems.fingerprint()))?;
    let (started, done) = (Instant::now(), answers.rows().to_vec());
    let continuing = continuing(args, session);
    problems.continue_all((&session.model, &encoder), &continuing, &done, style, |row| answers.push(row))?;
    let seconds = started.elapsed().as_secs_f64();
    let rows = answers.conclude(|row| (row.row, row.sample))?;
    if let Some(out) = &args.disagreements {
        let disputed: Vec<&Generated> = rows.iter().filter(|row| row.judged().disputed()).collect();
        write_atomic(out, json_lines(&disputed)?)?;
    }
    let judged: Vec<Judged<'_>> = rows.iter().map(Generated::judged).collect();
    let all: usize = rows.iter().map(|row| row.tokens).sum();
    let new = all - done.iter().map(|row| row.tokens).sum::<usize>();
    let speed = new as f64 / seconds;
    let mut extra = Map::new();
    for (name, value) in [
        ("task", json!(task)),
        ("problems", json!(problems.len())),
        ("samples", json!(args.samples)),
        ("resumed", json!(done.len())),
        ("tokens", json!(all)),
        ("seconds", json!(seconds)),
        ("tokens_per_s", json!(speed)),
    ] {
        extra.insert(name.to_owned(), value);
    }
    let notes = format!("{} problems, {new} tokens in {seconds:.1} s ({speed:.0} tokens/s), ", problems.len());
    print_scores(&judged, args.samples as u64, args.format, extra, &notes)
}

/// HumanEval: pass@k of the functions that the model completes.
fn programs(args: &EvalArgs, session: &Session, path: &Path, sandbox: &Sandbox, style: Style) -> anyhow::Result<()> {
    let problems = humaneval::load(path, args.limit)?;
    let encoder = encoder(args, session, "raw")?;
    let context = session.model.config().context_length().unwrap_or(usize::MAX);
    let prompts = humaneval::encode(path, &problems, &encoder, context)?;
    let printed = format!("{:016x}", fingerprint(&format!("{prompts:?} {problems:?}")));
    let mut answers =
        Answers::open(args.out.as_deref(), || settings(args, session, "humaneval", problems.len(), &printed))?;
    let (started, done) = (Instant::now(), answers.rows().to_vec());
    let continuing = continuing(args, session);
    let models = (&session.model, &encoder);
    humaneval::test_all((&problems, &prompts), models, &continuing, sandbox, &done, style, |row| answers.push(row))?;
    let seconds = started.elapsed().as_secs_f64();
    let rows = answers.conclude(|row| (row.row, row.sample))?;
    let counts = humaneval::counts(&rows);
    let pass = |k: u64| PassRate::of(counts.iter().copied(), k);
    let isolation = match sandbox.isolation() {
        Isolation::Namespaces => "namespaces",
        Isolation::Limits => "limits",
    };
    if args.format == TableFormat::Json {
        let pass_at: Map<String, Value> =
            reported(args.samples as u64).into_iter().filter_map(|k| Some((k.to_string(), pass(k)?.json()))).collect();
        return print_json(&json!({
            "task": "humaneval", "problems": problems.len(), "samples": args.samples, "resumed": done.len(),
            "passed": rows.iter().filter(|row| row.passed).count(), "pass_at": pass_at, "isolation": isolation,
            "seconds": seconds,
        }));
    }
    let mut table = vec![["programs", "problems", "passed"].map(str::to_owned).to_vec()];
    for k in reported(args.samples as u64) {
        let shown = pass(k).map_or_else(String::new, |rate| rate.percent());
        table.push(vec![format!("pass@{k}"), problems.len().to_string(), shown]);
    }
    print(args.format.table(&table).unwrap_or_default().trim_end())?;
    if args.format == TableFormat::Table {
        let held = match sandbox.isolation() {
            Isolation::Namespaces => "without network",
            Isolation::Limits => "within limits of time and memory, but with network",
        };
        print(format_args!("{} programs run {held}, {seconds:.1} s", rows.len() - done.len()))?;
    }
    Ok(())
}
