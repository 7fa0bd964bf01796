//! `sorsa eval`: accuracy on problems with answers, or the perplexity of texts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::FloatDType;
use serde_json::json;
use sorsa_data::{AnswerStyle, BatchOptions, Batcher, EncodeOptions, LoadOptions};
use sorsa_eval::grade::Grader;
use sorsa_train::files::write_atomic;
use sorsa_train::mean_loss;

use crate::args::EvalArgs;
use crate::device;
use crate::exit::{OrBadInput, bad_input};
use crate::format::{Format, print, print_json};
use crate::progress::Style;
use crate::run_dir::json_lines;
use crate::session::{Session, create_folder, embedded_task, load_records};
use crate::task::{Problems, percent};

pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    if args.batch_size == 0 {
        return Err(bad_input("--batch-size should be at least 1"));
    }
    let device = device::open(args.device.backend, args.device.device)?;
    let style = Style::choose(args.quiet);
    let session = Session::load(&args.model, FloatDType::F32, &device, style)?.with_adapter(args.adapter.as_deref())?;
    match &args.text {
        Some(path) => perplexity(args, &session, path, style),
        None => accuracy(args, &session, style),
    }
}

/// The mean loss of texts, token by token, each text from its own beginning.
fn perplexity(args: &EvalArgs, session: &Session, path: &Path, style: Style) -> anyhow::Result<()> {
    let context = session.model.config().max_position_embeddings;
    let options = LoadOptions { skip_bad_rows: args.skip_bad_rows, limit: args.limit, ..LoadOptions::default() };
    let loaded = load_records(path, &options, style)?;
    let encode = EncodeOptions { max_length: context, append_eos: false, ..EncodeOptions::default() };
    let set = session.encoder("raw", encode)?.encode_all(&loaded.records).or_bad_input()?;
    let batches = BatchOptions {
        batch_size: args.batch_size,
        shuffle: false,
        bucket: usize::MAX / args.batch_size.max(1),
        max_length: context,
        pad_id: session.tokenizer.pad(),
        ..BatchOptions::default()
    };
    let targets = set.target_tokens;
    let batcher = Batcher::new(Arc::new(set.examples), batches).or_bad_input()?;
    let loss = mean_loss(&session.model, &batcher);
    match args.format {
        Format::Table => print(format_args!("perplexity {:.4} (loss {loss:.5} over {targets} tokens)", loss.exp())),
        Format::Json => print_json(&json!({ "loss": loss, "perplexity": loss.exp(), "tokens": targets })),
    }
}

fn accuracy(args: &EvalArgs, session: &Session, style: Style) -> anyhow::Result<()> {
    let path = args.data.as_ref().map_or_else(|| embedded_task("test"), PathBuf::from);
    let options = LoadOptions {
        skip_bad_rows: args.skip_bad_rows,
        limit: args.limit,
        answer_style: AnswerStyle::TheAnswerIs,
        ..LoadOptions::default()
    };
    let loaded = load_records(&path, &options, style)?;
    let encode =
        EncodeOptions { max_length: usize::MAX, prompt_suffix: args.prompt_suffix.clone(), ..EncodeOptions::default() };
    let encoder = session.encoder(&args.template, encode)?;
    let context = session.model.config().max_position_embeddings;
    let problems = Problems::new(&path, loaded.records, &encoder, context)?;
    // Before the work, not after it: a folder that cannot be written would cost every answer.
    if let Some(folder) = args.out.as_deref().and_then(Path::parent) {
        create_folder(folder)?;
    }
    let answers =
        problems.answer(&session.model, &encoder, args.batch_size, args.max_new_tokens, &session.stops(), style)?;
    if let Some(out) = &args.out {
        write_atomic(out, json_lines(&answers.rows)?)?;
    }
    let speed = answers.tokens() as f64 / answers.seconds;
    match args.format {
        Format::Table => {
            for (grader, score) in answers.scores() {
                print(format_args!("{:<9} {}", grader.name(), percent(&score)))?;
            }
            let unanswered = answers.score(Grader::Faithful).unanswered.rate();
            print(format_args!(
                "{} problems, {:.1} % without a final answer, {} tokens in {:.1} s ({speed:.0} tokens/s)",
                problems.len(),
                100.0 * unanswered,
                answers.tokens(),
                answers.seconds
            ))
        }
        Format::Json => {
            let graders: serde_json::Map<String, serde_json::Value> = answers
                .scores()
                .into_iter()
                .map(|(grader, score)| {
                    let interval = score.correct.interval();
                    let value = json!({
                        "accuracy": score.correct.rate(),
                        "interval": [interval.low, interval.high],
                        "unanswered": score.unanswered.rate(),
                    });
                    (grader.name().to_owned(), value)
                })
                .collect();
            print_json(&json!({
                "problems": problems.len(), "graders": graders, "tokens": answers.tokens(),
                "seconds": answers.seconds, "tokens_per_s": speed,
            }))
        }
    }
}
