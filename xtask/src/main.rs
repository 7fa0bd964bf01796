//! Starts processes: `cargo xtask <command>` builds `sorsa` for a backend and becomes it, or runs the project's checks.
//!
//! It depends on nothing but the standard library, so that it compiles in a second.

mod build;
mod check;

use std::process::ExitCode;

/// The commands of the `sorsa` binary. A word that is not here is refused before anything is built.
const SORSA: [(&str, &str); 16] = [
    ("finetune", "train an adapter, or all weights; without arguments, on the embedded model and task"),
    ("lr-find", "find the learning rate for finetune with the same options"),
    ("pretrain", "train a small base model from scratch; without arguments, the embedded one"),
    ("eval", "accuracy on a task, or the perplexity of a text"),
    ("bench", "methods under equal conditions: learning rates, seeds, tables, report"),
    ("analyze", "how far runs moved singular values and vectors, with figures"),
    ("grade", "generations that were made elsewhere"),
    ("generate", "text from a checkpoint, with or without an adapter"),
    ("merge", "an adapter into its base, as a Hugging Face folder"),
    ("export", "a model or an adapter in the form of another program"),
    ("import", "an adapter that PEFT or SORSA's author wrote"),
    ("convert", "a LoRA of any difference of weights: a tuned model, an adapter, a sum of adapters"),
    ("unpack", "the model in a GGUF file, as a Hugging Face folder"),
    ("verify", "a model beside results of another framework"),
    ("inspect", "what would be trained: modules, shapes, parameters, memory"),
    ("devices", "what this build can run on, and whether it works"),
];

const PROJECT: [(&str, &str); 3] = [
    ("test", "cargo test, with the assertions of the project's own crates; takes cargo test's arguments"),
    ("check", "what CI runs: format, clippy, tests, documentation, dependencies"),
    ("help", "this page"),
];

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let command = args.next().unwrap_or_else(|| "help".into());
    let rest: Vec<_> = args.collect();
    let done = match command.to_string_lossy().as_ref() {
        "help" | "--help" | "-h" => {
            print_help();
            Ok(0)
        }
        "test" => check::test(&rest),
        "check" => check::all(),
        sorsa if SORSA.iter().any(|(name, _)| *name == sorsa) => build::become_sorsa(&command, &rest),
        unknown => {
            let names: Vec<_> = SORSA.iter().chain(&PROJECT).map(|(name, _)| *name).collect();
            eprintln!("unknown command `{unknown}`: there are {}", names.join(", "));
            Ok(2)
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_help() {
    println!("Usage: cargo xtask <command> [--backend flex|wgpu|vulkan|cuda] [arguments]\n");
    println!(
        "Builds `sorsa` for the backend (flex, the CPU, unless told) and becomes it; `<command> --help` tells more:"
    );
    for (name, about) in SORSA {
        println!("  {name:<9} {about}");
    }
    println!("\nWorks on the project:");
    for (name, about) in PROJECT {
        println!("  {name:<9} {about}");
    }
}
