//! The `sorsa` binary.

/// The standard `eprintln!` for this crate, through [`terminal::say`].
macro_rules! eprintln {
    ($($argument:tt)*) => { $crate::terminal::say(format_args!($($argument)*)) };
}

mod args;
mod bench;
mod commands;
mod device;
mod exit;
mod format;
mod modelfile;
mod observer;
mod output_type;
mod progress;
mod recipe;
mod session;
mod signals;
mod speed;
mod terminal;

use std::process::ExitCode;

use anyhow::Context;
use sorsa_kernels::Instructions;

use crate::args::{Cli, Command};
use crate::exit::OrBadInput;

/// The system's allocator gives pages back and clears them again in every step; this one keeps them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    signals::install();
    let cli = match Cli::of_process() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    if let Err(error) = choose_instructions() {
        return exit::report(Err(error));
    }
    let done = match cli.command {
        Command::Finetune(args) => commands::finetune::run(&args),
        Command::LrFind(args) => commands::lr_find::run(&args),
        Command::Pretrain(args) => commands::pretrain::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Grade(args) => commands::grade::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Merge(args) => commands::merge::run(&args),
        Command::Export(args) => commands::export::run(&args),
        Command::Import(args) => commands::import::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Unpack(args) => commands::unpack::run(&args),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Analyze(args) => commands::analyze::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::BenchSpeed(args) => speed::run(&args.speed, &args.device),
        Command::Devices(args) if args.check => commands::processor_check::run(args.format()),
        Command::Devices(args) => commands::devices::run(args.format()),
    };
    session::remove_temporary();
    exit::report(done)
}

/// Makes the CPU's kernels use the instructions that the variable `SORSA_KERNELS` names, if it is set.
fn choose_instructions() -> anyhow::Result<()> {
    match std::env::var("SORSA_KERNELS") {
        Ok(name) => {
            let chosen = name.parse::<Instructions>().and_then(Instructions::choose);
            chosen.context("SORSA_KERNELS").or_bad_input()
        }
        Err(_) => Ok(()),
    }
}
