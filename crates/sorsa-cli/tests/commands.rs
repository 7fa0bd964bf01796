//! What the commands leave behind and print, and that they agree with each other.

mod common;

use std::path::Path;

use common::{Place, Succeed};
use serde_json::Value;
use sorsa_kernels::Instructions;

const METHODS: [&str; 7] = ["sorsa", "pissa", "lora", "dora", "olora", "partial", "full"];
const RANK: u64 = 4;
/// `[d_in, d_out]` of the linear layers of one block of the tiny model.
const SHAPES: [[u64; 2]; 7] = [[32, 32], [32, 16], [32, 16], [32, 32], [32, 48], [32, 48], [48, 32]];

/// Sums `count(d_in, d_out)` over the linear layers of both blocks.
fn over_layers(count: impl Fn(u64, u64) -> u64) -> u64 {
    2 * SHAPES.iter().map(|[d_in, d_out]| count(*d_in, *d_out)).sum::<u64>()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// `(kind, step, loss, grad_norm)` of every line of the log, numbers as written.
fn losses(run: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| format!("{} {} {} {}", row["kind"], row["step"], row["loss"], row["grad_norm"])).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_command_is_one_of_cargo_xtask_too() {
    let help = Place::new().command(&["--help"]).succeed();
    let commands = help.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    // A description that goes on in the next line stands further in.
    let commands = commands.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let commands: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > 10, "{help}");
    let xtask = include_str!("../../../xtask/src/main.rs");
    let absent: Vec<_> = commands.iter().filter(|name| !xtask.contains(&format!("(\"{name}\", "))).collect();
    assert!(absent.is_empty(), "{absent:?} are not in xtask/src/main.rs");
}

#[test]
fn every_method_trains_beside_weights_in_bf16_to_about_the_loss_of_f32() {
    let place = Place::new();
    for method in METHODS {
        let loss_after = |dtype: &str| {
            let run = format!("{method}-{dtype}");
            let options = ["--method", method, "--max-steps", "4", "--seed", "7", "--dtype", dtype, "--run-dir", &run];
            place.finetune(&options).succeed();
            let recipe = std::fs::read_to_string(place.path(&run).join("recipe.toml")).unwrap();
            assert!(recipe.contains(&format!("dtype = \"{dtype}\"")), "{recipe}");
            json(&place.path(&run).join("summary.json"))["loss_after"].as_f64().unwrap()
        };
        let (narrow, wide) = (loss_after("bf16"), loss_after("f32"));
        assert!((narrow / wide - 1.0).abs() < 0.01, "{method}: {narrow} {wide}");
    }
}

#[test]
fn what_was_trained_beside_bf16_weights_is_merged_and_evaluated_in_f32() {
    let place = Place::new();
    place.write("text.txt", "Tom has 12 apples. He buys 7 more apples. How many apples does Tom have now?");
    for method in METHODS {
        let options = ["--method", method, "--max-steps", "4", "--lr", "0.01", "--dtype", "bf16", "--run-dir", method];
        place.finetune(&options).succeed();
        let merged = format!("{method}-merged");
        place.command(&["merge", "--adapter", method, "--out", &merged, "--dtype", "f32"]).succeed();
        let loss = |args: &[&str]| {
            let eval = ["eval", "--text", "text.txt", "--format", "json"];
            let found: Value = serde_json::from_str(&place.command(&eval).args(args).succeed()).unwrap();
            found["loss"].as_f64().unwrap()
        };
        let before = loss(&["--model", "model"]);
        let attached = loss(&["--model", "model", "--adapter", method, "--dtype", "f32"]);
        let narrow = loss(&["--model", "model", "--adapter", method, "--dtype", "bf16"]);
        // The dtype of the run, if nothing else is asked for.
        assert_eq!(narrow, loss(&["--model", "model", "--adapter", method]));
        let merged = loss(&["--model", &merged]);
        assert!((merged - attached).abs() < 1e-5, "{method}: {merged} merged, {attached} attached");
        assert!((narrow - attached).abs() < 0.02, "{method}: {narrow} in bf16, {attached} in f32");
        assert!((before - attached).abs() > 2e-4, "{method} learned nothing: {before}, {attached}");
    }
}

#[test]
fn the_report_gives_the_peak_of_memory_in_the_words_of_the_terminal() {
    let place = Place::new();
    let printed = place.finetune(&["--max-steps", "1", "--run-dir", "run"]).succeed();
    let peak = printed.split_once("peak memory ").unwrap().1.lines().next().unwrap();
    let report = std::fs::read_to_string(place.path("run/report.html")).unwrap();
    let entry = format!("<dt>peak memory</dt><dd>{peak}</dd>");
    assert!(peak == "unknown" || (peak.ends_with("MB") && report.contains(&entry)), "{printed}");
}

/// The default that the help of an option states.
fn stated_default(help: &str, option: &str) -> String {
    let text = help.split_once(&format!("--{option} <")).unwrap().1.split("\n\n").next().unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").split_once("[default: ").unwrap().1.trim_end_matches(']').to_owned()
}

#[test]
fn the_defaults_in_the_help_of_finetune_are_those_of_its_recipe() {
    let place = Place::new();
    let help = place.command(&["finetune", "--help"]).succeed();
    let printed = place.command(&["finetune", "--model", "model", "--dry-run", "--format", "json"]).succeed();
    let recipe = &serde_json::from_str::<Value>(&printed).unwrap()["recipe"];
    let fields = [
        ("dtype", "/model/dtype"),
        ("data", "/data/train"),
        ("method", "/adapter/method"),
        ("rank", "/adapter/rank"),
        ("gamma", "/train/regularizer/gamma"),
        ("epochs", "/train/epochs"),
        ("batch-size", "/train/batch_size"),
        ("accumulation", "/train/accumulation"),
        ("max-length", "/data/max_length"),
    ];
    for (option, field) in fields {
        let (stated, value) = (stated_default(&help, option), recipe.pointer(field).unwrap());
        let same = match value.as_f64() {
            Some(number) => stated.parse::<f64>().unwrap() == number,
            None => value == stated.as_str(),
        };
        assert!(same, "--{option}: the help says {stated}, the recipe {value}");
    }
    let targets = recipe["adapter"]["target_modules"].as_array().unwrap();
    let targets: Vec<&str> = targets.iter().filter_map(Value::as_str).collect();
    assert_eq!(stated_default(&help, "target-modules"), targets.join(","));
    let seeds = [&recipe["train"]["seed"], &recipe["adapter"]["seed"]].map(ToString::to_string);
    let stated = stated_default(&help, "seed");
    assert_eq!(stated, format!("{} for data order and dropout, {} for the others", seeds[0], seeds[1]));
}

#[test]
fn an_adapter_finds_the_model_of_its_run() {
    let place = Place::new();
    place.finetune(&["--max-steps", "2", "--method", "lora", "--run-dir", "first"]).succeed();
    let loss = |args: &[&str]| {
        place.write("text.txt", "Tom has 12 apples.");
        let eval = ["eval", "--text", "text.txt", "--adapter", "first", "--format", "json"];
        let found: Value = serde_json::from_str(&place.command(&eval).args(args).succeed()).unwrap();
        found["loss"].as_f64().unwrap()
    };
    assert_eq!(loss(&[]), loss(&["--model", "model"]));
    let further =
        ["finetune", "--adapter", "first", "--data", "data.jsonl", "--quiet", "--max-steps", "2", "--run-dir"];
    place.command(&further).args(["second", "--batch-size", "4"]).succeed();
    let recipe = std::fs::read_to_string(place.path("second/recipe.toml")).unwrap();
    assert!(recipe.contains("path = \"model\""), "{recipe}");
}

#[test]
fn every_method_leaves_a_whole_run_that_its_recipe_repeats_to_the_bit() {
    let place = Place::new();
    for method in METHODS {
        let options = ["--method", method, "--max-steps", "3", "--seed", "7", "--run-dir", method];
        let test = ["--test", "data.jsonl", "--set", "eval.problems=3", "--set", "eval.max_new_tokens=4"];
        place.finetune(&options).args(test).args(["--set", "adapter.dropout=0.1"]).succeed();
        let run = place.path(method);
        for name in
            ["recipe.toml", "metrics.jsonl", "generations.jsonl", "report.html", "adapter", "checkpoints/step-3"]
        {
            assert!(run.join(name).exists(), "{method}: no {name}");
        }
        assert!(names(&run).iter().any(|name| name.contains("tfevents")), "{method}: no events");
        assert!(!names(&run).iter().any(|name| name.starts_with('.')), "{method}: {:?}", names(&run));

        let summary = json(&run.join("summary.json"));
        for field in ["loss_before", "loss_after", "accuracy_before", "accuracy_after", "tokens_per_s", "seconds"] {
            assert!(summary[field].is_number(), "{method}: {field} is {}", summary[field]);
        }
        if cfg!(target_os = "linux") {
            assert!(summary["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
        }
        assert_eq!(summary["method"], method);
        assert_eq!(summary["steps"], 3);
        assert_eq!(summary["seed"], 7);
        assert_eq!(summary["backend"], "flex");
        let trained = match method {
            "sorsa" => over_layers(|d_in, d_out| RANK * (d_in + d_out + 1)),
            "pissa" | "lora" | "olora" => over_layers(|d_in, d_out| RANK * (d_in + d_out)),
            "dora" => over_layers(|d_in, d_out| RANK * (d_in + d_out) + d_out),
            "partial" => over_layers(|d_in, d_out| d_in * d_out),
            _ => summary["total_parameters"].as_u64().unwrap(),
        };
        assert_eq!(summary["trainable_parameters"], trained, "{method}");

        let recipe = format!("{method}/recipe.toml");
        place.command(&["finetune", "--quiet", "--recipe", &recipe, "--run-dir", "again"]).succeed();
        assert_eq!(losses(&run), losses(&place.path("again")), "{method}");
        assert_eq!(losses(&run).len(), 5, "three steps, an evaluation before and one after");
        std::fs::remove_dir_all(place.path("again")).unwrap();
    }
}

#[test]
fn a_merged_model_says_what_the_model_with_its_adapter_says() {
    let place = Place::new();
    place.finetune(&["--max-steps", "12", "--lr", "0.02", "--run-dir", "run"]).succeed();
    place.command(&["merge", "--adapter", "run", "--out", "merged"]).succeed();
    let ways: [&[&str]; 3] = [&["--model", "model"], &["--model", "model", "--adapter", "run"], &["--model", "merged"]];

    // The run's own template is alpaca's; the merged model knows of no run.
    let generate = ["generate", "Tom has 3", "--template", "raw", "--max-new-tokens", "12"];
    let texts = ways.map(|way| place.command(&generate).args(way).succeed());
    assert_eq!(texts[1], texts[2]);
    let answers = ways.map(|way| {
        let out = format!("answers/{}.jsonl", way.len() + usize::from(way[1] == "merged"));
        let eval = ["eval", "--data", "data.jsonl", "--limit", "5", "--max-new-tokens", "8", "--out", &out];
        let printed = place.command(&eval).args(["--quiet", "--format", "json"]).args(way).succeed();
        let result: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(result["problems"], 5);
        assert!(result["graders"]["faithful"]["accuracy"].is_number(), "{result}");
        let rows = std::fs::read_to_string(place.path(&out)).unwrap();
        let rows = rows.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap()["generated"].clone());
        rows.collect::<Vec<_>>()
    });
    assert_eq!(answers[1], answers[2]);
    let [base, adapted, merged] = ways.map(|way| {
        let eval = ["eval", "--text", "data.jsonl", "--limit", "5", "--quiet", "--format", "json"];
        let result: Value = serde_json::from_str(&place.command(&eval).args(way).succeed()).unwrap();
        result["loss"].as_f64().unwrap()
    });
    assert!((adapted - merged).abs() < 1e-5, "{adapted} with the adapter, {merged} merged");
    assert!((adapted - base).abs() > 1e-2, "training changed nothing");
}

#[test]
fn inspect_counts_in_closed_form() {
    let place = Place::new();
    let inspect = ["inspect", "--model", "model", "--format", "json", "--rank", "4"];
    let shape: Value = serde_json::from_str(&place.command(&inspect).succeed()).unwrap();
    assert_eq!(shape["trainable_parameters"], over_layers(|d_in, d_out| RANK * (d_in + d_out + 1)));
    let modules = shape["modules"].as_array().unwrap();
    assert_eq!(modules.len(), SHAPES.len());
    for module in modules {
        let [d_in, d_out, count] = ["d_in", "d_out", "count"].map(|field| module[field].as_u64().unwrap());
        assert_eq!(module["trainable_parameters"], count * RANK * (d_in + d_out + 1), "{module}");
    }
}

#[test]
fn inspect_measures_what_packing_loses() {
    let place = Place::new();
    let measure = ["inspect", "--model", "model", "--quantization-error", "--ranks", "1,4", "--quiet"];
    let json = place.command(&measure).args(["--quantize", "fp4", "--format", "json"]).succeed();
    let table: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&table["format"], &table["rounds"]), (&"fp4".into(), &5.into()));
    let kinds = table["kinds"].as_array().unwrap();
    assert_eq!(kinds.len(), SHAPES.len());
    for kind in kinds.iter().chain([&table["all"]]) {
        let reduction = |rank: usize, start: &str| kind["ranks"][rank][start]["nuclear_reduction"].as_f64().unwrap();
        for start in ["loftq", "qpissa", "qsorsa"] {
            assert!(0.0 < reduction(0, start) && reduction(0, start) < reduction(1, start), "{kind}");
        }
    }
    let printed = place.command(&measure).succeed();
    assert!(
        printed.contains("nuclear norm of the error") && printed.contains("Frobenius norm of the error"),
        "{printed}"
    );
    let error = |arguments: &[&str]| {
        let output = place.command(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let alone = error(&["inspect", "--model", "model", "--ranks", "4"]);
    assert!(alone.contains("--quantization-error"), "{alone}");
    let narrow = error(&[&measure[..], &["--quantize", "q4_k"]].concat());
    assert!(narrow.contains("rows of 32 values are not whole blocks of q4_k, which have 256"), "{narrow}");
}

#[test]
fn inspect_says_what_a_method_trains_and_keeps() {
    let place = Place::new();
    let inspect = |method: &str| -> Value {
        let options = ["--model", "model", "--format", "json", "--rank", "4", "--method", method];
        serde_json::from_str(&place.command(&["inspect"]).args(options).succeed()).unwrap()
    };
    let (lora, dora) = (inspect("lora"), inspect("dora"));
    let number = |shape: &Value, name: &str| shape.pointer(name).unwrap().as_u64().unwrap();
    let more = |name: &str| number(&dora, name) - number(&lora, name);
    // A magnitude for every output, and every output of every token once more.
    let outputs = over_layers(|_, d_out| d_out);
    assert_eq!(more("/trainable_parameters"), outputs);
    assert_eq!(more("/memory/optimizer"), 8 * outputs);
    assert!(more("/memory/activations") > 0 && more("/memory/activations").is_multiple_of(4 * outputs));
    assert_eq!(inspect("olora")["trainable_parameters"], lora["trainable_parameters"]);
}

#[test]
fn a_dry_run_writes_nothing_and_prints_a_recipe_that_runs() {
    let place = Place::new();
    let before = names(&place.path(""));
    let printed = place.finetune(&["--max-steps", "1", "--dry-run"]).succeed();
    let both = place.finetune(&["--max-steps", "1", "--dry-run", "--format", "json"]).succeed();
    assert_eq!(names(&place.path("")), before);
    let both: Value = serde_json::from_str(&both).unwrap();
    assert_eq!(both["recipe"]["adapter"]["rank"], RANK);
    assert_eq!(both["shape"]["method"], "sorsa");

    place.write("recipe.toml", &printed);
    place.command(&["finetune", "--quiet", "--recipe", "recipe.toml", "--run-dir", "run"]).succeed();
    let resolved = std::fs::read_to_string(place.path("run/recipe.toml")).unwrap();
    // The run writes the learning rate that it found.
    let [planned, found] = [&printed, &resolved].map(|text| {
        let mut recipe: toml::Table = text.parse().unwrap();
        let optimizer = recipe["train"]["optimizer"].as_table_mut().unwrap();
        let rate = optimizer.remove("learning_rate").unwrap();
        (recipe, rate)
    });
    assert_eq!(planned.0, found.0);
    assert!(planned.1.as_str() == Some("auto") && found.1.as_float().is_some_and(|rate| rate > 0.0));
}

#[test]
fn options_replace_the_recipe_and_set_replaces_both() {
    let place = Place::new();
    place.write("recipe.toml", "[adapter]\nrank = 2\nmethod = \"lora\"\n[train]\nbatch_size = 3\nepochs = 2.0\n");
    let dry = ["finetune", "--dry-run", "--model", "model", "--recipe", "recipe.toml", "--rank", "5", "--epochs", "4"];
    let set = ["--set", "train.epochs=7.5", "--set", "train.optimizer.beta2=0.95", "--set", "data.template=raw"];
    let recipe: toml::Table = place.command(&dry).args(set).succeed().parse().unwrap();
    let train = &recipe["train"];
    assert_eq!(recipe["adapter"]["method"].as_str(), Some("lora"));
    assert_eq!(recipe["adapter"]["rank"].as_integer(), Some(5));
    assert_eq!(train["batch_size"].as_integer(), Some(3));
    assert_eq!(train["epochs"].as_float(), Some(7.5));
    assert_eq!(train["optimizer"]["beta2"].as_float(), Some(0.95));
    assert_eq!(recipe["data"]["template"].as_str(), Some("raw"));
}

#[test]
fn quiet_prints_the_result_alone() {
    let place = Place::new();
    let options = ["finetune", "--model", "model", "--data", "data.jsonl", "--max-steps", "1", "--format", "json"];
    let quiet = place.command(&options).args(["--quiet", "--run-dir", "quiet"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&quiet.stderr), "");
    let printed: Value = serde_json::from_slice(&quiet.stdout).unwrap();
    assert_eq!(printed, json(&place.path("quiet/summary.json")));
    let told = place.command(&options).args(["--run-dir", "told"]).output().unwrap();
    assert!(String::from_utf8_lossy(&told.stderr).contains("step 1/1"));
    serde_json::from_slice::<Value>(&told.stdout).unwrap();
}

#[test]
fn devices_lists_the_cpu_as_working() {
    let place = Place::new();
    let devices: Value = serde_json::from_str(&place.command(&["devices", "--format", "json"]).succeed()).unwrap();
    let cpu = devices.as_array().unwrap().iter().find(|device| device["backend"] == "flex").unwrap();
    assert_eq!(cpu["status"], "works");
}

#[test]
fn a_variable_chooses_the_instructions_of_the_kernels() {
    let place = Place::new();
    let refused = place.command(&["devices"]).env("SORSA_KERNELS", "avx3").output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let sets = "portable, avx2, avx512, avx512-bf16";
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(error, format!("error: SORSA_KERNELS: unknown instructions `avx3`, expected one of {sets}\n"));
    let losses = |instructions: Instructions| {
        let run = instructions.name();
        let options =
            ["finetune", "--limit", "40", "--max-steps", "2", "--batch-size", "4", "--dtype", "bf16", "--quiet"];
        let rest = ["--set", "eval.problems=0", "--set", "data.validation_rows=4", "--run-dir", run];
        place.command(&options).args(rest).env("SORSA_KERNELS", run).succeed();
        let log = std::fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
        let rows = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.filter(|row| row["kind"] == "step").map(|row| row["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let portable = losses(Instructions::Portable);
    assert_eq!(portable.len(), 2);
    for instructions in Instructions::available().skip(1) {
        let devices = place.command(&["devices"]).env("SORSA_KERNELS", instructions.name()).succeed();
        assert!(devices.contains(&format!("CPU, {}, {instructions} ", std::env::consts::ARCH)), "{devices}");
        // Activations that are rounded to bf16 are the largest difference.
        for (found, portable) in losses(instructions).into_iter().zip(&portable) {
            assert!((found - portable).abs() < 5e-3 * portable, "{instructions}: {found} and {portable}");
        }
    }
}

#[test]
fn a_precision_of_products_is_announced_and_changes_the_losses_by_its_error_alone() {
    let place = Place::new();
    let losses = |precision: &str| {
        let options = ["finetune", "--limit", "40", "--max-steps", "2", "--batch-size", "8", "--run-dir", precision];
        let rest = ["--set", "eval.problems=0", "--set", "data.validation_rows=4", "--matmul-precision", precision];
        let output = place.command(&options).args(rest).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && told.contains(&format!("matmul {precision}, f32 weights are multiplied in ")),
            "{told}"
        );
        let log = std::fs::read_to_string(place.path(precision).join("metrics.jsonl")).unwrap();
        let rows = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.filter(|row| row["kind"] == "step").map(|row| row["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let highest = losses("highest");
    assert_eq!(losses("high"), highest);
    let medium = losses("medium");
    for (found, highest) in medium.iter().zip(&highest) {
        assert!((found - highest).abs() < 5e-3 * highest, "{found} and {highest}");
    }
    if Instructions::used() == Instructions::Avx512Bf16 {
        assert_ne!(medium, highest);
    }
    let refused = place.command(&["eval", "--matmul-precision", "low"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("unknown precision `low`, expected highest, high or medium"), "{error}");
}

#[test]
fn the_check_of_the_processor_finds_every_kernel_right() {
    let place = Place::new();
    let report: Value = serde_json::from_str(&place.command(&["devices", "--check", "--json"]).succeed()).unwrap();
    assert_eq!(report["passes"], true, "{report:#}");
    assert_eq!(report["checks"].as_array().unwrap().len(), Instructions::available().count());
    assert_eq!(report["instructions"], Instructions::used().name());
}

#[test]
fn help_says_what_there_is() {
    let place = Place::new();
    for (name, args) in [
        ("help", &["--help"][..]),
        ("help_finetune", &["finetune", "--help"]),
        ("help_eval", &["eval", "--help"]),
        ("help_bench", &["bench", "--help"]),
        ("help_grade", &["grade", "--help"]),
    ] {
        let text = place.command(args).env("COLUMNS", "100").succeed();
        insta::assert_snapshot!(name, text);
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_stops_reading_is_no_failure() {
    use std::process::Stdio;

    let place = Place::new();
    for args in [&["--help"][..], &["devices"], &["inspect", "--model", "model"], &["generate", "--model", "model"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = place.command(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.is_empty(), "{args:?}: {told}");
    }
}
