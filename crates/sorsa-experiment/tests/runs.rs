//! A run from Rust: what is in its folder is read back, it can be resumed, and programs are a test like any other.

use std::path::Path;

use burn::prelude::Device;
use sorsa_experiment::sandbox::CodeExecution;
use sorsa_experiment::{Event, ExperimentError, Host, Observer, Recipe, RunDir, Summary, finetune, resume};
use sorsa_train::metrics::Metric;

fn recipe(fields: &str) -> Recipe {
    let text = format!("data.limit = 40\neval.max_new_tokens = 8\ntrain.batch_size = 4\nadapter.rank = 2\n{fields}");
    Recipe::from_table(text.parse().unwrap(), "test").unwrap()
}

fn host() -> Host {
    Host::cpu(Device::flex())
}

/// Keeps the names of events, and stops a run after some steps.
#[derive(Default)]
struct Recorder {
    events: Vec<&'static str>,
    steps: u64,
    stop_after: Option<u64>,
}

impl Observer for Recorder {
    fn on_event(&mut self, event: Event<'_>) {
        let name = match event {
            Event::Planned { .. } => "planned",
            Event::Attached { .. } => "attached",
            Event::Answered => "answered",
            Event::AccuracyBefore { .. } => "accuracy before",
            Event::TrainingStarts { .. } => "training starts",
            Event::TrainingEnded => "training ended",
            Event::Trained { metric: Metric::Step(step) } => {
                self.steps = step.step;
                return;
            }
            _ => return,
        };
        self.events.push(name);
    }

    fn should_stop(&mut self) -> bool {
        self.stop_after.is_some_and(|steps| self.steps >= steps)
    }
}

#[test]
fn what_a_run_leaves_is_read_back_as_what_wrote_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path().join("run"));
    let recipe = recipe("train.max_steps = 3\neval.problems = 5");
    let mut recorder = Recorder::default();
    let summary = finetune(&recipe, &host(), &run, &mut recorder).unwrap();
    let events =
        ["planned", "attached", "answered", "accuracy before", "training starts", "training ended", "answered"];
    assert_eq!(recorder.events, events);
    assert_eq!(run.recipe().unwrap(), recipe);
    let read: Summary = run.summary().unwrap();
    assert_eq!((read.steps, read.problems, &read.loss_after), (3, 5, &summary.loss_after));
    assert_eq!(run.metrics().unwrap().iter().filter(|metric| matches!(metric, Metric::Step(_))).count(), 3);
    let answers = run.generations().unwrap();
    assert_eq!(answers.len(), 5);
    let right = answers.iter().filter(|answer| answer.is_correct()).count() as f64 / 5.0;
    assert_eq!(summary.accuracy_after, Some(right));
    assert_eq!(run.baseline().unwrap().scores.len(), 3);
    assert_eq!(run.divergence().unwrap(), None);
    let again = finetune(&recipe, &host(), &run, &mut ()).unwrap_err();
    assert!(matches!(again, ExperimentError::RunExists { .. }) && again.is_bad_input());
}

#[test]
fn a_run_that_is_interrupted_is_resumed_to_the_same_losses() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe("train.max_steps = 4\neval.problems = 0");
    let whole = RunDir::new(folder.path().join("whole"));
    finetune(&recipe, &host(), &whole, &mut ()).unwrap();
    let cut = RunDir::new(folder.path().join("cut"));
    let mut recorder = Recorder { stop_after: Some(2), ..Recorder::default() };
    let error = finetune(&recipe, &host(), &cut, &mut recorder).unwrap_err();
    assert!(matches!(error, ExperimentError::Interrupted { step: 2 }) && !error.is_bad_input());
    resume(&host(), &cut, &mut ()).unwrap();
    let losses = |run: &RunDir| -> Vec<u64> {
        let metrics = run.metrics().unwrap();
        let steps = metrics.iter().filter_map(|metric| match metric {
            Metric::Step(step) => Some(step.loss.to_bits()),
            Metric::Eval(_) | Metric::Watch(_) => None,
        });
        steps.collect()
    };
    assert_eq!((losses(&whole), losses(&whole).len()), (losses(&cut), 4));
}

#[test]
fn bad_input_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path().join("run"));
    let error = finetune(&recipe("data.test = \"nowhere.jsonl\""), &host(), &run, &mut ()).unwrap_err();
    assert!(error.is_bad_input() && !run.path().exists(), "{error}");
    let error = resume(&host(), &run, &mut ()).unwrap_err();
    assert!(matches!(error, ExperimentError::NoRun { .. }), "{error}");
}

#[cfg(unix)]
#[test]
fn programs_are_a_test_of_a_run_if_both_recipe_and_host_allow_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("code.jsonl");
    // Whatever the model adds stands in a comment, up to the end of the line that it may write.
    let row = |id: &str, value: u32| {
        let prompt = format!("def one():\n    return {value}\n# ");
        serde_json::json!({"task_id": id, "prompt": prompt, "entry_point": "one",
            "test": "def check(f):\n    assert f() == 1\n"})
    };
    std::fs::write(&file, format!("{}\n{}\n", row("right", 1), row("wrong", 2))).unwrap();
    let fields = format!("data.test = {file:?}\ntrain.max_steps = 1\ndata.template = \"raw\"\n");
    let recipe = |fields: &str| {
        let mut recipe = recipe(fields);
        recipe.eval.max_new_tokens = 1;
        recipe
    };
    let allowing = recipe(&format!("{fields}eval.allow_code_execution = true"));
    let run = RunDir::new(folder.path().join("run"));
    let refused = finetune(&recipe(&fields), &host(), &run, &mut ()).unwrap_err();
    assert!(matches!(refused, ExperimentError::CodeNotAllowed), "{refused}");
    let refused = finetune(&allowing, &host(), &run, &mut ()).unwrap_err();
    assert!(matches!(refused, ExperimentError::CodeNotAllowed), "{refused}");
    let host = Host { code: Some(code(folder.path())), ..host() };
    let summary = match finetune(&allowing, &host, &run, &mut ()) {
        // Without Python there is nothing to run.
        Err(ExperimentError::NoPython) => return,
        other => other.unwrap(),
    };
    assert_eq!((summary.problems, summary.accuracy_after), (2, Some(0.5)));
    assert_eq!(run.baseline().unwrap().scores[0].0, "tests");
    assert!(std::fs::read_to_string(run.file("report.html")).unwrap().contains("<small>tests</small>"));
}

fn code(folder: &Path) -> CodeExecution {
    CodeExecution {
        seconds: 20,
        memory_bytes: 1 << 30,
        folder: folder.to_owned(),
        search_path: std::env::var_os("PATH").unwrap_or_default(),
    }
}
