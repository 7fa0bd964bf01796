//! `sorsa pretrain`: trains a small base model from scratch. Without arguments it makes the embedded one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use sorsa_adapter::{AdapterConfig, Method};
use sorsa_checkpoint::WeightFormat;
use sorsa_checkpoint::weights::ModelFolder;
use sorsa_data::{
    BatchOptions, Batcher, EncodeOptions, Encoder, LoadOptions, PromptTemplate, TextTokenizer, synthetic,
};
use sorsa_experiment::load_records;
use sorsa_files::{FileLock, LockError, recover, write_atomic};
use sorsa_models::{CausalLm, ModelConfig};
use sorsa_train::{Optimizer, OptimizerConfig, RunOutcome, ScheduleConfig, TrainConfig, Trainer};

use crate::args::PretrainArgs;
use crate::device;
use crate::exit::{Interrupted, OrBadInput, bad_input};
use crate::format::print;
use crate::observer::TerminalObserver;
use crate::progress::Style;
use crate::session::create_folder;
use crate::signals;

const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

pub fn run(args: &PretrainArgs) -> anyhow::Result<()> {
    if args.batch_size == 0 {
        return Err(bad_input("--batch-size should be at least 1"));
    }
    let style = Style::choose(args.quiet);
    let mut observer = TerminalObserver::new(style, &args.device.backend.to_string());
    if let Some(folder) = &args.generate_only {
        return generate(folder, args);
    }
    let device = device::open(args.device.backend, args.device.device)?;
    // Before hours of training, not after them.
    ModelFolder::check(&args.out).or_bad_input()?;
    // Beside the model and named after it: what training needs and leaves behind. Another model beside it has its own.
    let work = work_folder(&args.out)?;
    if args.resume && !work.exists() {
        check_earlier_layout(&args.out, &work)?;
    }
    let _lock = match (args.init_only, &args.tokenizer) {
        // Nothing is written there.
        (true, Some(_)) => None,
        _ => {
            create_folder(&work)?;
            let lock = lock(&work)?;
            recover(&work)?;
            Some(lock)
        }
    };

    let tokenizer_folder = match &args.tokenizer {
        Some(folder) => folder.clone(),
        None => {
            let folder = work.join("tokenizer");
            synthetic::write_tokenizer(&folder)?;
            folder
        }
    };
    let tokenizer = Arc::new(TextTokenizer::from_dir(&tokenizer_folder).or_bad_input()?);
    let config = model_config(args, &tokenizer)?;
    device.seed(args.seed);
    let model = CausalLm::init(&config, &device);
    if args.init_only {
        save(&model, &tokenizer_folder, args)?;
        let (parameters, out) = (config.num_parameters(), args.out.display());
        return print(format_args!("{parameters} parameters, freshly initialised, in {out}"));
    }

    let corpus = match &args.corpus {
        Some(path) => path.clone(),
        None => {
            let path = work.join("corpus.jsonl");
            synthetic::write_corpus(&path, args.seed, args.documents)?;
            synthetic::write_corpus(
                &work.join("validation.jsonl"),
                args.seed.wrapping_add(synthetic::VALIDATION_SEED_OFFSET),
                synthetic::VALIDATION_DOCUMENTS,
            )?;
            path
        }
    };
    let encoder = {
        let options = EncodeOptions { max_length: args.context, ..EncodeOptions::default() };
        let encoder = Encoder::new(Arc::clone(&tokenizer), PromptTemplate::Raw, options).or_bad_input()?;
        encoder.for_vocabulary(config.vocab_size)
    };
    let mut documents = encode(&corpus, &encoder, style, &mut observer)?;
    let validation = match &args.corpus {
        None => encode(&work.join("validation.jsonl"), &encoder, style, &mut observer)?,
        Some(_) => {
            let held_out = documents.len() / 100;
            documents.split_off(documents.len() - held_out.max(1))
        }
    };
    let batches = |examples, shuffle| {
        Batcher::new(
            Arc::new(examples),
            BatchOptions {
                batch_size: args.batch_size,
                shuffle,
                seed: args.seed,
                // Documents of similar length together: attention over short rows is cheaper than over packed ones.
                bucket: 50,
                packing: false,
                max_length: args.context,
                pad_id: tokenizer.pad(config.vocab_size),
                pad_multiple: 1,
                drop_last: false,
            },
        )
        .or_bad_input()
    };
    let (train, validation) = (batches(documents, true)?, batches(validation, false)?);
    let train_config = TrainConfig {
        batch_size: args.batch_size,
        epochs: 1e6,
        max_steps: Some(args.steps),
        eval_every: 250,
        checkpoint_every: 250,
        seed: args.seed,
        optimizer: OptimizerConfig {
            learning_rate: args.lr.into(),
            weight_decay: 0.05,
            beta2: 0.98,
            ..OptimizerConfig::default()
        },
        schedule: ScheduleConfig { warmup_ratio: 0.02, min_ratio: 0.02, ..ScheduleConfig::default() },
        ..TrainConfig::default()
    };
    let attached = AdapterConfig::new(Method::Full, 0, &[]).attach(model, &Default::default())?;
    if style != Style::Quiet {
        eprintln!("{} parameters, {} steps", config.num_parameters(), args.steps);
    }
    let optimizer = Optimizer::new(train_config.optimizer.clone(), &attached.trainable);
    let mut trainer = match args.resume {
        true => Trainer::resume(attached, optimizer, train, Some(validation), train_config, &work)?,
        false => Trainer::start(attached, optimizer, train, Some(validation), train_config, &work)?,
    };
    for repair in trainer.repairs() {
        eprintln!("note: {repair}");
    }
    observer.start_training(trainer.total_steps(), trainer.state().best);
    let outcome = trainer.run(&mut observer)?;
    observer.finish();
    signals::end_at_once();
    if outcome == RunOutcome::Interrupted {
        eprintln!("interrupted; the same command with --resume goes on");
        return Err(Interrupted.into());
    }
    let state = trainer.state().clone();
    save(&trainer.model(), &tokenizer_folder, args)?;
    print(format_args!(
        "{} parameters after {} steps, {} tokens, {:.0} s; validation loss {:.4}; in {}",
        config.num_parameters(),
        state.step,
        state.tokens,
        state.seconds,
        state.best.map_or(f64::NAN, |best| best.loss),
        args.out.display()
    ))
}

/// The folder of corpus, tokenizer, log and checkpoints: `<out>-training`.
fn work_folder(out: &Path) -> anyhow::Result<PathBuf> {
    let Some(name) = out.file_name() else {
        return Err(bad_input(format!("--out {} has no name of its own", out.display())));
    };
    let mut name = name.to_owned();
    name.push("-training");
    Ok(out.with_file_name(name))
}

/// Refuses to resume what an earlier build left in the parent of `out`: nothing there says of which model it is.
fn check_earlier_layout(out: &Path, work: &Path) -> anyhow::Result<()> {
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_there = |name: &str| parent.join(name).exists();
    if !is_there("checkpoints") || !is_there("metrics.jsonl") {
        return Ok(());
    }
    let (parent, work) = (parent.display(), work.display());
    Err(bad_input(format!(
        "there is no {work} to resume from. If the checkpoints in {parent} are of this model, move them there: mkdir {work} && mv \
         {parent}/checkpoints {parent}/metrics.jsonl {work}/"
    )))
}

fn lock(work: &Path) -> anyhow::Result<FileLock> {
    FileLock::acquire(&work.join(".lock")).map_err(|error| match error {
        LockError::Held { .. } => {
            bad_input(format!("{error}: it trains this model; wait until it ends, or name another --out"))
        }
        LockError::File(error) => error.into(),
    })
}

/// Writes corpus, tokenizer and task, and stops.
fn generate(folder: &Path, args: &PretrainArgs) -> anyhow::Result<()> {
    synthetic::write_tokenizer(&folder.join("tokenizer"))?;
    synthetic::write_corpus(&folder.join("corpus.jsonl"), args.seed, args.documents)?;
    synthetic::write_corpus(
        &folder.join("validation.jsonl"),
        args.seed.wrapping_add(synthetic::VALIDATION_SEED_OFFSET),
        synthetic::VALIDATION_DOCUMENTS,
    )?;
    synthetic::write_task(&folder.join("arithmetic"), args.seed)?;
    print(format_args!("corpus, tokenizer and task are in {}", folder.display()))
}

fn model_config(args: &PretrainArgs, tokenizer: &TextTokenizer) -> anyhow::Result<ModelConfig> {
    let json = serde_json::json!({
        "model_type": "llama",
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "vocab_size": tokenizer.vocab_size(),
        "max_position_embeddings": args.context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
        "bos_token_id": tokenizer.bos(),
        "eos_token_id": tokenizer.eos(),
    });
    let fields = json.as_object().cloned().unwrap_or_default();
    ModelConfig::parse(fields).map_err(|faults| bad_input(format!("the model's size: {}", faults.join("; "))))
}

fn encode(
    path: &Path,
    encoder: &Encoder,
    style: Style,
    observer: &mut TerminalObserver,
) -> anyhow::Result<Vec<sorsa_data::Example>> {
    let loaded = load_records(path, &LoadOptions::default(), observer)?;
    let set = encoder.encode_all(&loaded.records).or_bad_input_in(path)?;
    if style != Style::Quiet {
        eprintln!("{}: {} documents, {} tokens", path.display(), loaded.records.len(), set.tokens);
    }
    Ok(set.examples)
}

/// Writes the model with its tokenizer as the folder `--out`. An older model there is replaced as a whole.
fn save(model: &CausalLm, tokenizer: &Path, args: &PretrainArgs) -> anyhow::Result<()> {
    let new = ModelFolder::create(&args.out).or_bad_input()?;
    model.save(new.path(), WeightFormat::F32)?;
    for name in TOKENIZER_FILES {
        let (from, to) = (tokenizer.join(name), new.path().join(name));
        if from.exists() {
            std::fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
    }
    let config = model.config();
    let generation =
        serde_json::json!({ "bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_ids.first() });
    write_atomic(new.path().join("generation_config.json"), serde_json::to_vec_pretty(&generation)?)?;
    Ok(new.commit()?)
}
