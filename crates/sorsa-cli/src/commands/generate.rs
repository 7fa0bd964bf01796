//! `sorsa generate`: continues a prompt, and prints token by token.

use std::io::Write;

use sorsa_data::{EncodeOptions, Record};
use sorsa_experiment::model::{LoadedModel, model_or_of_run, weight_format};
use sorsa_models::{GenerateOptions, Sampling};

use crate::args::GenerateArgs;
use crate::exit::{OrBadInput, bad_input};
use crate::progress::Style;
use crate::session;

pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        return Err(bad_input(format!("--temperature should be 0 or more, found {}", args.temperature)));
    }
    if args.top_p.is_some_and(|p| !(0.0..=1.0).contains(&p)) || args.top_k == Some(0) {
        return Err(bad_input("--top-p should be between 0 and 1, and --top-k at least 1"));
    }
    session::set_config(&args.config, args.adapter.as_deref())?;
    let host = session::host(&args.device, Style::choose(false))?;
    let name = model_or_of_run(args.model.as_deref(), args.adapter.as_deref())?;
    session::check_asked(args.model.as_deref(), &name)?;
    let mut loaded = LoadedModel::load(&name, weight_format(&args.dtype)?, &host)?;
    if let Some(adapter) = &args.adapter {
        loaded = loaded.with_adapter(adapter)?;
    }
    let options = EncodeOptions { max_length: usize::MAX, ..EncodeOptions::default() };
    let encoder = loaded.encoder(args.template.parse().or_bad_input()?, options)?;
    let prompt = encoder.encode_prompt(&Record::instruction(1, &args.prompt, "")).or_bad_input()?;

    let sampling = if args.temperature == 0.0 {
        Sampling::Greedy
    } else {
        Sampling::Random { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed }
    };
    let options = GenerateOptions { max_new_tokens: args.max_new_tokens, sampling, stop: loaded.stop_tokens() };
    let mut stream = loaded.tokenizer.decode_stream();
    let mut out = std::io::stdout().lock();
    let mut failure = None;
    loaded
        .model
        .generate(&[prompt], &options, |_, token| {
            // A closed pipe: nobody wants the rest.
            let written = stream.push(token).map_err(anyhow::Error::from).and_then(|text| {
                out.write_all(text.as_bytes())?;
                Ok(out.flush()?)
            });
            failure = failure.take().or(written.err());
        })
        .or_bad_input()?;
    if let Some(error) = failure {
        return Err(error);
    }
    writeln!(out, "{}", stream.finish()?)?;
    Ok(())
}
