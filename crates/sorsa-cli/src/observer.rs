//! Prints the events of an experiment on standard error, and ends it on Ctrl-C.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sorsa_adapter::{Band, ModuleReport};
use sorsa_checkpoint::PackingFormats;
use sorsa_experiment::estimate::grouped;
use sorsa_experiment::scoreboard::percent;
use sorsa_experiment::{DataReport, Event, ModuleShape, Observer, Recipe, RunDir, TrainingShape};
use sorsa_models::ActivationFormat;
use sorsa_ops::{Arithmetic, MatmulPrecision};
use sorsa_train::metrics::Metric;
use sorsa_train::{Best, Divergence};

use crate::commands::lr_find::described;
use crate::progress::{Progress, Style};
use crate::session::Warnings;
use crate::signals;

/// Steps that a search usually takes; there may be more.
const USUAL_SEARCH_STEPS: usize = 14;

/// Says that training makes the model worse, and what to try.
pub fn divergence_text(divergence: &Divergence, learning_rate: f64) -> String {
    let found = match divergence {
        Divergence::TrainingLoss { step, start, lowest, median } => format!(
            "step {step}: the training loss climbs: the median of five steps is {median:.4}, after {lowest:.4} at the lowest and {start:.4} at the start"
        ),
        Divergence::ValidationLoss { step, start, last } => {
            format!("step {step}: the validation loss only gets worse: {last:.4}, after {start:.4} before training")
        }
    };
    format!(
        "{found}. Try a third of the learning rate: --lr {:.1e} instead of {learning_rate:.1e}",
        learning_rate / 3.0
    )
}

/// The precision of products, what they are computed in, and the error of a small one.
pub fn precision_text(precision: MatmulPrecision) -> String {
    let arithmetic = precision.arithmetic();
    let why = match (precision, arithmetic) {
        (MatmulPrecision::High, _) => ", as three products of bf16 would be slower",
        (MatmulPrecision::Medium, Arithmetic::F32) => ", as these instructions multiply no bf16 numbers fast",
        _ => "",
    };
    let (computed, error) = (arithmetic.name(), precision.measured_error());
    format!("{precision}, f32 weights are multiplied in {computed}{why}: error {error:.1e} against f64")
}

/// Prints events as they come.
pub struct TerminalObserver {
    style: Style,
    backend: String,
    /// The bar of the work at hand.
    progress: Option<Progress>,
    /// Moving average of the training loss.
    loss: Option<f64>,
    /// The best evaluation so far.
    best: Option<Best>,
    /// Set by Ctrl-C, once training starts.
    interrupted: Option<Arc<AtomicBool>>,
    /// The folder of the run.
    run: Option<PathBuf>,
    /// The singular triplets that the adapter starts from.
    band: Band,
    /// When the decompositions began.
    decomposing: Option<Instant>,
    /// When the phase of the start at hand began.
    phase: Instant,
    /// The phases of the start so far, with their seconds.
    phases: Vec<(&'static str, f64)>,
}

impl TerminalObserver {
    /// `backend` is the name that the announcement gives.
    pub fn new(style: Style, backend: &str) -> Self {
        Self {
            style,
            backend: backend.to_owned(),
            progress: None,
            loss: None,
            best: None,
            interrupted: None,
            run: None,
            band: Band::Principal,
            decomposing: None,
            phase: Instant::now(),
            phases: Vec::new(),
        }
    }

    /// Begins the bar of training, and listens to Ctrl-C from now on. `best` is the best evaluation of a run that is resumed.
    pub fn start_training(&mut self, total_steps: u64, best: Option<Best>) {
        self.best = best;
        self.progress = Some(Progress::new("step", total_steps, self.style));
        self.interrupted = Some(signals::stop_flag());
    }

    /// Ends the bar of the work at hand.
    pub fn finish(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
    }

    /// Shows how far some work is. The first call, with nothing done, begins a bar.
    fn advance(&mut self, what: &'static str, done: usize, total: usize, note: &str) {
        match &self.progress {
            Some(progress) => progress.set(done as u64, note),
            None => self.progress = Some(Progress::new(what, total as u64, self.style)),
        }
    }

    /// Says what somebody should know even if progress is of no interest.
    fn note(&self, text: &str) {
        match &self.progress {
            Some(progress) if self.style == Style::Bar => progress.line(text),
            _ => eprintln!("note: {text}"),
        }
    }

    fn say(&self, text: &str) {
        if self.style != Style::Quiet {
            eprintln!("{text}");
        }
    }

    /// Ends a phase of the start.
    fn end_phase(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push((name, now.duration_since(self.phase).as_secs_f64()));
        self.phase = now;
    }

    /// The seconds of each phase of the start.
    fn phases_text(&self) -> String {
        let phases: Vec<String> = self.phases.iter().map(|(name, seconds)| format!("{name} {seconds:.1} s")).collect();
        format!("start  {}", phases.join(", "))
    }

    fn announce(&self, recipe: &Recipe, data: &DataReport, shape: &TrainingShape, run: &RunDir) {
        let packed = match recipe.model.quantize {
            None => String::new(),
            Some(PackingFormats { linear, head: None }) => format!(", linear layers {linear}"),
            Some(PackingFormats { linear, head: Some(head) }) => {
                format!(", linear layers {linear}, embedding and head {head}")
            }
        };
        let activations = match recipe.train.activations {
            ActivationFormat::F32 => "",
            ActivationFormat::Bf16 => ", activations of the backward pass bf16",
        };
        self.say(&format!(
            "model  {} on {}, weights {}{packed}, adapter and optimizer f32{activations}",
            recipe.model.path, self.backend, recipe.model.dtype
        ));
        if self.backend == "flex" {
            self.say(&format!("matmul {}", precision_text(recipe.train.matmul_precision)));
        }
        let left_out = match data.dropped + data.truncated + data.skipped {
            0 => String::new(),
            _ => format!(" ({} dropped, {} truncated, {} malformed)", data.dropped, data.truncated, data.skipped),
        };
        self.say(&format!(
            "data   {} {} examples{left_out}, {} tokens, {} of them targets; {} to validate, {} problems",
            grouped(data.train_examples as u64),
            data.format,
            grouped(data.train_tokens as u64),
            grouped(data.target_tokens as u64),
            data.validation_examples,
            data.problems
        ));
        self.say(shape.table().trim_end());
        if !self.band.is_principal() {
            self.say(&format!(
                "band   {} singular triplets of each weight, by its whole SVD in f64: some {:.0} GFLOP",
                self.band,
                gigaflops_of_whole_svds(shape)
            ));
        }
        self.say(&format!("run    {}", run.path().display()));
    }

    fn tell_of_decompositions(&self, modules: &[ModuleReport]) {
        let Some(residual) = modules.iter().filter_map(|module| module.svd_residual).reduce(f64::max) else { return };
        let rounding = match modules.iter().filter_map(|module| module.rounding).reduce(f64::max) {
            Some(lost) => format!(", rounding takes up to {lost:.1e} of a residual"),
            None => String::new(),
        };
        let cached = modules.iter().filter(|module| module.cached).count();
        let band = match (self.band.is_principal(), self.decomposing) {
            (false, Some(began)) => format!(", band {} in {:.1} s", self.band, began.elapsed().as_secs_f64()),
            _ => String::new(),
        };
        self.say(&format!(
            "svd    {} matrices ({cached} cached){band}, largest residual {residual:.1e} of s_1{rounding}",
            modules.len()
        ));
    }

    fn show_metric(&mut self, metric: &Metric) {
        let Some(progress) = &self.progress else { return };
        match metric {
            Metric::Step(step) => {
                let loss = self.loss.map_or(step.loss, |loss| 0.9 * loss + 0.1 * step.loss);
                self.loss = Some(loss);
                progress.set(step.step, &format!("loss {loss:.4}, {:.0} tokens/s", step.tokens_per_s));
            }
            Metric::Eval(eval) => {
                let note = match self.best {
                    Some(best) if best.step == 0 && eval.loss >= best.loss => {
                        format!(", not below the {:.4} before training", best.loss)
                    }
                    _ => String::new(),
                };
                progress.line(&format!("step {:>5}: validation loss {:.4}{note}", eval.step, eval.loss));
                if eval.step == 0 {
                    self.end_phase("validation");
                    if let Some(progress) = &self.progress {
                        progress.line(&self.phases_text());
                    }
                }
                if self.best.is_none_or(|best| eval.loss < best.loss) {
                    self.best = Some(Best { step: eval.step, loss: eval.loss });
                }
            }
            Metric::Watch(watch) => {
                let part = |name: &str, value: Option<f64>| match value {
                    Some(value) => format!(", {name} {value:.3e}"),
                    None => String::new(),
                };
                let modules = &watch.all;
                let values = [
                    part("condition number of trained parts", modules.kappa_part),
                    part("of weights", modules.kappa),
                    part("defect", modules.defect),
                ];
                progress.line(&format!("step {:>5}: {} modules{}", watch.step, modules.modules, values.concat()));
            }
        }
    }
}

impl Observer for TerminalObserver {
    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::RowsSkipped { path, rows } => {
                // Even if only results are asked for: they are results of the other rows.
                let text = format!("{}: {} rows left out: {}", path.display(), rows.count, rows.in_a_line());
                match &self.progress {
                    Some(progress) => progress.line(&text),
                    None => eprintln!("{text}"),
                }
            }
            Event::Note { text } => self.note(text),
            Event::Planned { recipe, data, shape, run } => {
                self.run = Some(run.path().to_owned());
                self.band = recipe.adapter.method.band();
                self.end_phase("reading");
                self.announce(recipe, data, shape, run);
            }
            Event::AdapterDoubted { .. } => Warnings.on_event(event),
            Event::Decomposing { done, total } => {
                self.decomposing.get_or_insert_with(Instant::now);
                self.advance("decomposing weights", done, total, "");
            }
            Event::Attached { modules } => {
                self.finish();
                self.end_phase("adapter");
                self.tell_of_decompositions(modules);
            }
            Event::Answering { done, total, tokens, seconds } => {
                self.advance("answers", done, total, &format!("{:.0} tokens/s", tokens as f64 / seconds));
            }
            Event::Measuring { run, done, total } => self.advance("decomposing weights", done, total, run),
            Event::FindingLearningRate { steps } => {
                let done = usize::try_from(steps).unwrap_or(USUAL_SEARCH_STEPS);
                self.advance("steps of trials", done.min(USUAL_SEARCH_STEPS), USUAL_SEARCH_STEPS, "");
            }
            Event::LearningRateFound { search } => {
                self.finish();
                self.end_phase("learning rate");
                self.say(&format!("learning rate {}", described(search)));
                if let Some(doubt) = search.doubt {
                    self.note(&format!("learning rate: {doubt}"));
                }
            }
            Event::Diverged { divergence, learning_rate } => self.note(&divergence_text(divergence, learning_rate)),
            Event::AccuracyBefore { score } => {
                self.end_phase("accuracy before");
                self.say(&format!("accuracy before: {}", percent(score)));
            }
            Event::TrainingStarts { total_steps, best } => {
                if let Some(run) = &self.run {
                    signals::advise(format!("go on with: cargo xtask finetune --resume {}", run.display()));
                }
                self.start_training(total_steps, best);
            }
            Event::Trained { metric } => self.show_metric(metric),
            Event::TrainingEnded => {
                self.finish();
                // What follows can be done again by resuming the run.
                signals::end_at_once();
            }
            Event::Answered | Event::Measured => self.finish(),
            _ => {}
        }
    }

    fn should_stop(&mut self) -> bool {
        self.interrupted.as_ref().is_some_and(|flag| flag.load(Ordering::SeqCst))
    }
}

/// The cost of the SVDs of all adapted weights `[m, n]`, `m >= n`: `6 m n^2 + 20 n^3` each (Golub and Van Loan, figure 8.6.1).
fn gigaflops_of_whole_svds(shape: &TrainingShape) -> f64 {
    let one = |m: f64, n: f64| 6.0 * m * n * n + 20.0 * n.powi(3);
    let of = |module: &ModuleShape| {
        let (m, n) = (module.d_in.max(module.d_out), module.d_in.min(module.d_out));
        module.count as f64 * one(m as f64, n as f64)
    };
    shape.modules.iter().map(of).sum::<f64>() / 1e9
}

/// Training alone, without the rest of an experiment.
impl sorsa_train::Observer for TerminalObserver {
    fn on_metric(&mut self, metric: &Metric, _total_steps: u64) {
        self.show_metric(metric);
    }

    fn should_stop(&mut self) -> bool {
        Observer::should_stop(self)
    }
}
