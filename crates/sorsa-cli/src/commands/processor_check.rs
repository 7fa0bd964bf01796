//! `sorsa devices --check`: what the processor has, how fast its kernels are, and whether they are right.

use std::time::Duration;

use serde::Serialize;
use sorsa_kernels::peak::{peaks, read_bandwidth};
use sorsa_kernels::processor::Processor;
use sorsa_kernels::{Instructions, MatmulPrecision};
use sorsa_ops::check::{CheckedOperation, CheckedPass, Timing, check};
use sorsa_report::table;

use crate::device::{self, Backend};
use crate::format::{Format, print, print_json};

/// How long each pass is timed.
const PASS: Duration = Duration::from_millis(60);

/// What the check found.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    system: String,
    processor: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    family_and_model: Option<[u32; 2]>,
    cores: usize,
    threads: usize,
    features: Vec<&'static str>,
    /// The instructions that kernels use, and why.
    instructions: &'static str,
    reason: &'static str,
    /// 10^9 operations a second of one thread, in registers.
    peaks: Vec<Peak>,
    /// 10^9 bytes a second that one thread and all threads read.
    read_bandwidth: [f64; 2],
    precisions: Vec<Precision>,
    checks: Vec<InstructionsCheck>,
    passes: bool,
}

#[derive(Debug, Serialize)]
struct Peak {
    unit: &'static str,
    gflops: f64,
}

#[derive(Debug, Serialize)]
struct Precision {
    name: &'static str,
    computed_in: &'static str,
    error: f64,
}

/// The operations by one set of instructions.
#[derive(Debug, Serialize)]
struct InstructionsCheck {
    instructions: &'static str,
    operations: Vec<Operation>,
}

#[derive(Debug, Serialize)]
struct Operation {
    name: &'static str,
    sizes: String,
    forward: Pass,
    backward: Pass,
}

#[derive(Debug, Serialize)]
struct Pass {
    error: f64,
    bound: f64,
    passes: bool,
    gflops: Option<f64>,
}

/// Checks the processor and prints the report. Every set of instructions that it has is checked, on one backend: the CPU's.
///
/// # Errors
///
/// An operation whose error is beyond its bound.
pub fn run(format: Format) -> anyhow::Result<()> {
    let report = report()?;
    match format {
        Format::Table => print(text(&report).trim_end())?,
        Format::Json => print_json(&report)?,
    }
    let wrong = wrong_passes(&report);
    anyhow::ensure!(
        wrong.is_empty(),
        "{} of the passes are wrong: {}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("; ")
    );
    Ok(())
}

fn report() -> anyhow::Result<Report> {
    let Processor { name, family_and_model, features } = Processor::of_this_process();
    let (used, chosen) = (Instructions::used(), Instructions::chosen());
    let device = device::open(Backend::Flex, 0)?;
    let mut checks = Vec::new();
    for instructions in Instructions::available() {
        instructions.choose()?;
        let operations = check(&device, Timing::For(PASS)).into_iter().map(Operation::from).collect();
        checks.push(InstructionsCheck { instructions: instructions.name(), operations });
    }
    // What follows is of the instructions that other commands use.
    used.choose()?;
    let precision = |precision: MatmulPrecision| Precision {
        name: precision.name(),
        computed_in: precision.arithmetic().name(),
        error: precision.measured_error(),
    };
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        processor: name,
        family_and_model,
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        threads: rayon::current_num_threads(),
        features,
        instructions: used.name(),
        reason: reason(used, chosen),
        peaks: peaks().into_iter().map(|peak| Peak { unit: peak.name, gflops: peak.gflops }).collect(),
        read_bandwidth: read_bandwidth(),
        precisions: MatmulPrecision::ALL.map(precision).into(),
        checks,
        passes: true,
    };
    report.passes = wrong_passes(&report).is_empty();
    Ok(report)
}

fn reason(used: Instructions, chosen: Option<Instructions>) -> &'static str {
    let has_bf16 = Instructions::Avx512Bf16.is_available();
    match (chosen, used) {
        (Some(_), _) => "SORSA_KERNELS names them",
        (None, Instructions::Avx512Bf16) => "vdpbf16ps is the fastest unit, as measured",
        (None, Instructions::Avx512) if has_bf16 => "vdpbf16ps is slower here than widening to f32, as measured",
        (None, _) => "the best of this processor that kernels are written for",
    }
}

/// The passes whose error is beyond its bound.
fn wrong_passes(report: &Report) -> Vec<String> {
    let mut wrong = Vec::new();
    for InstructionsCheck { instructions, operations } in &report.checks {
        for operation in operations {
            for (direction, pass) in [("forward", &operation.forward), ("backward", &operation.backward)] {
                if !pass.passes {
                    let Pass { error, bound, .. } = pass;
                    let name = operation.name;
                    wrong.push(format!("{name} {direction} by {instructions}: {error:.1e}, at most {bound:.1e}"));
                }
            }
        }
    }
    wrong
}

fn text(report: &Report) -> String {
    let number = report
        .family_and_model
        .map_or_else(String::new, |[family, model]| format!(" (family {family}, model {model})"));
    let mut text = format!(
        "processor     {}{number}, {} cores, {} threads\nfeatures      {}\ninstructions  {}: {}\n",
        report.processor,
        report.cores,
        report.threads,
        report.features.join(" "),
        report.instructions,
        report.reason
    );
    for Peak { unit, gflops } in &report.peaks {
        text.push_str(&format!("peak          {unit}: {gflops:.0} GFLOP/s of one thread, in registers\n"));
    }
    let [one, all] = report.read_bandwidth;
    text.push_str(&format!("memory        {one:.1} GB/s read by one thread, {all:.1} by all\n"));
    for Precision { name, computed_in, error } in &report.precisions {
        text.push_str(&format!("precision     {name}: computed in {computed_in}, error {error:.1e}\n"));
    }
    for InstructionsCheck { instructions, operations } in &report.checks {
        let head = ["OPERATION", "SIZES", "GFLOP/S", "BACK", "ERROR", "BACK", "BOUND", ""].map(str::to_owned).to_vec();
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(operations.iter().map(row)).collect();
        text.push_str(&format!("\n{instructions}, all threads\n{}", table::aligned(&rows)));
    }
    text.push_str(&format!("\nto paste: {}\n", line(report)));
    text
}

fn row(operation: &Operation) -> Vec<String> {
    let Operation { name, sizes, forward, backward } = operation;
    let speed = |pass: &Pass| pass.gflops.map_or_else(|| "-".to_owned(), |gflops| format!("{gflops:.1}"));
    let verdict = if forward.passes && backward.passes { "passes" } else { "WRONG" };
    vec![
        (*name).to_owned(),
        sizes.clone(),
        speed(forward),
        speed(backward),
        format!("{:.1e}", forward.error),
        format!("{:.1e}", backward.error),
        format!("{:.0e}", forward.bound),
        verdict.to_owned(),
    ]
}

/// The report in one line.
fn line(report: &Report) -> String {
    let peaks: Vec<String> = report.peaks.iter().map(|peak| format!("{} {:.0}", peak.unit, peak.gflops)).collect();
    let speed = |name: &str| {
        let used = report.checks.iter().find(|check| check.instructions == report.instructions);
        let operation = used.and_then(|check| check.operations.iter().find(|operation| operation.name == name));
        operation
            .and_then(|operation| operation.forward.gflops)
            .map_or_else(|| "-".to_owned(), |gflops| format!("{gflops:.0}"))
    };
    let number = report.family_and_model.map_or_else(String::new, |[family, model]| format!(" {family}/{model}"));
    format!(
        "sorsa {} {}, {}{number}, {} cores, {}; peaks a thread {}; read {:.0} GB/s; linear f32 {}, bf16 {}, nf4 {} GFLOP/s; {}",
        report.version,
        report.system,
        report.processor,
        report.cores,
        report.instructions,
        peaks.join(", "),
        report.read_bandwidth[1],
        speed("linear f32"),
        speed("linear bf16"),
        speed("linear nf4 in bf16"),
        if report.passes { "all right".to_owned() } else { format!("WRONG: {}", wrong_passes(report).join("; ")) }
    )
}

impl From<CheckedOperation> for Operation {
    fn from(checked: CheckedOperation) -> Self {
        let CheckedOperation { name, sizes, forward, backward } = checked;
        Self { name, sizes, forward: forward.into(), backward: backward.into() }
    }
}

impl From<CheckedPass> for Pass {
    fn from(pass: CheckedPass) -> Self {
        let CheckedPass { error, bound, gflops } = pass;
        Self { error, bound, passes: pass.passes(), gflops }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report_with(error: f64) -> Report {
        let pass = |error| Pass { error, bound: 1e-5, passes: error <= 1e-5, gflops: Some(123.4) };
        let operation =
            Operation { name: "linear f32", sizes: "1 x 2 x 3".into(), forward: pass(1e-7), backward: pass(error) };
        let mut report = Report {
            version: "1.0.0",
            system: "linux x86_64".into(),
            processor: "a processor".into(),
            family_and_model: Some([25, 17]),
            cores: 2,
            threads: 2,
            features: vec!["avx2"],
            instructions: "avx2",
            reason: "the best of this processor that kernels are written for",
            peaks: vec![Peak { unit: "f32 FMA, 256 bits", gflops: 100.0 }],
            read_bandwidth: [10.0, 20.0],
            precisions: vec![Precision { name: "highest", computed_in: "f32", error: 2e-7 }],
            checks: vec![InstructionsCheck { instructions: "avx2", operations: vec![operation] }],
            passes: true,
        };
        report.passes = wrong_passes(&report).is_empty();
        report
    }

    #[test]
    fn a_right_processor_has_a_line_to_paste() {
        let report = report_with(1e-7);
        let expected = "sorsa 1.0.0 linux x86_64, a processor 25/17, 2 cores, avx2; peaks a thread f32 FMA, 256 bits 100; read 20 GB/s; \
                        linear f32 123, bf16 -, nf4 - GFLOP/s; all right";
        assert_eq!(line(&report), expected);
        assert!(text(&report).contains("passes") && report.passes);
    }

    #[test]
    fn a_wrong_pass_is_named_with_its_error() {
        for error in [1e-3, f64::NAN] {
            let report = report_with(error);
            assert!(!report.passes && text(&report).contains("WRONG"));
            let wrong = wrong_passes(&report);
            assert_eq!(wrong, [format!("linear f32 backward by avx2: {error:.1e}, at most 1.0e-5")]);
        }
    }
}
