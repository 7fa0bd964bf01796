//! `sorsa generate`: continues a prompt, and prints token by token.

use std::ops::ControlFlow;

use sorsa_checkpoint::WeightFormat;
use sorsa_data::{EncodeOptions, Record, StopFilter, TemplateName};
use sorsa_experiment::model::{LoadedModel, Stops, model_or_of_run, weight_format};
use sorsa_models::{GenerateOptions, Requests, Sampling};

use crate::args::GenerateArgs;
use crate::exit::{OrBadInput, bad_input};
use crate::format::print;
use crate::progress::Style;
use crate::session;
use crate::terminal;

pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        return Err(bad_input(format!("--temperature should be 0 or more, found {}", args.temperature)));
    }
    if args.top_p.is_some_and(|p| !(0.0..=1.0).contains(&p)) || args.top_k == Some(0) {
        return Err(bad_input("--top-p should be between 0 and 1, and --top-k at least 1"));
    }
    args.matmul_precision.choose();
    session::set_config(&args.config, args.adapter.as_deref())?;
    let host = session::host(&args.device, Style::choose(false))?;
    let name = model_or_of_run(args.model.as_deref(), args.adapter.as_deref())?;
    session::check_asked(args.model.as_deref(), &name)?;
    let run = session::run_facts(args.adapter.as_deref());
    let dtype = match (&args.dtype, &run) {
        (Some(dtype), _) => weight_format(dtype)?,
        (None, Some(run)) => run.dtype,
        (None, None) => WeightFormat::F32,
    };
    let template = match (&args.template, &run) {
        (Some(template), _) => template.parse().or_bad_input()?,
        _ if args.chat_template.is_some() => TemplateName::Chat,
        (None, Some(run)) => run.template,
        (None, None) => TemplateName::Raw,
    };
    let chat_template = session::chat_template(args.chat_template.as_deref(), run.as_ref(), template)?;
    let max_new_tokens = match (args.max_new_tokens, &run) {
        (Some(tokens), _) => tokens,
        (None, Some(run)) => run.max_new_tokens,
        (None, None) => session::ANSWER_TOKENS,
    };
    let mut loaded = LoadedModel::load(&name, dtype, &host)?;
    session::warn_of_separate_head(&loaded.folder, &loaded.model)?;
    if let Some(adapter) = &args.adapter {
        loaded = loaded.with_adapter(adapter, &mut session::Warnings)?;
    }
    let options = EncodeOptions { max_length: usize::MAX, ..EncodeOptions::default() };
    let encoder = match &chat_template {
        Some(name) => loaded.chat_encoder(name, options)?,
        None => loaded.encoder(template, options)?,
    };
    let prompt = encoder.encode_prompt(&Record::instruction(1, &args.prompt, "")).or_bad_input()?;

    let sampling = if args.temperature == 0.0 {
        Sampling::Greedy
    } else {
        Sampling::Random { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed }
    };
    let mut stops = Stops::of(&encoder, loaded.model.config());
    stops.texts.extend(args.stop.iter().cloned());
    for note in loaded.tokenizer.notes().iter().chain(&loaded.notes) {
        eprintln!("note: {note}");
    }
    let options = GenerateOptions { max_new_tokens, sampling, stop: stops.tokens };
    let mut stream = loaded.tokenizer.decode_stream(&prompt)?;
    let mut filter = StopFilter::new(&stops.texts);
    let mut failure = None;
    let on_token = |_: usize, ids: &[u32]| {
        let written = ids.last().map_or(Ok(String::new()), |token| stream.push(*token)).map_err(anyhow::Error::from);
        let written = written.and_then(|text| Ok(terminal::write(&filter.push(&text))?));
        // A closed pipe: nobody wants the rest.
        failure = written.err();
        if failure.is_some() || filter.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let prompts = [prompt];
    let requests = Requests { prompts: &prompts, streams: &[0], slots: 1 };
    loaded.model.generate_queue(requests, &options, on_token, |_, _| ControlFlow::Continue(())).or_bad_input()?;
    if let Some(error) = failure {
        return Err(error);
    }
    let rest = filter.push(&stream.finish()?);
    print(format_args!("{rest}{}", filter.finish()))
}
