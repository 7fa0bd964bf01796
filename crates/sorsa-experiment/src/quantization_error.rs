//! What packing loses of a model's weights, and how much of it the factors of each start take up: the table of PiSSA's paper
//! (arXiv 2404.02948, table 3).

use std::collections::BTreeSet;

use serde::Serialize;
use sorsa_adapter::{ErrorNorms, QuantizationErrors, StartsToMeasure, Target};
use sorsa_models::CausalLm;
use sorsa_report::table;

use crate::error::ExperimentError;
use crate::recipe::Recipe;

/// The errors of a model's weights by kind of module.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuantizationErrorTable {
    /// Name of the model.
    pub model: String,
    /// Format that the weights are packed to.
    pub format: String,
    /// Rounds of LoftQ, QPiSSA and QSORSA.
    pub rounds: usize,
    /// What else the reader must know.
    pub notes: Vec<String>,
    /// The errors of the modules of one name.
    pub kinds: Vec<KindErrors>,
    /// The errors of all modules.
    pub all: KindErrors,
}

/// The errors of modules together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindErrors {
    /// Last component of the modules' paths, or `all`.
    pub name: String,
    /// How many modules there are.
    pub modules: usize,
    /// The weights themselves.
    pub weight: ErrorNorms,
    /// QLoRA.
    pub qlora: ErrorNorms,
    /// The starts that depend on the rank.
    pub ranks: Vec<RankErrors>,
}

/// The errors of the starts with factors of one rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankErrors {
    /// Rank of the factors.
    pub rank: usize,
    /// LoftQ.
    pub loftq: StartErrors,
    /// QPiSSA.
    pub qpissa: StartErrors,
    /// QSORSA.
    pub qsorsa: StartErrors,
}

/// The error of one start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StartErrors {
    /// The sum of the nuclear norms, and the root of the sum of squares.
    #[serde(flatten)]
    pub norms: ErrorNorms,
    /// Mean over the modules of `1 - error / error of QLoRA`, by the nuclear norm, in percent. Absent if packing loses nothing.
    pub nuclear_reduction: Option<f64>,
    /// The same by the Frobenius norm.
    pub frobenius_reduction: Option<f64>,
}

impl QuantizationErrorTable {
    /// Measures the weights of `model` that the recipe's adapter chooses, in parallel. `progress` is called with the number of
    /// measured weights and the number of all.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Adapter`] of targets that match nothing, and of weights that do not fit the format.
    pub fn measure(
        recipe: &Recipe,
        model: &CausalLm,
        starts: &StartsToMeasure,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self, ExperimentError> {
        let measured = starts.measure_model(&recipe.adapter, model, progress)?;
        let mut names: Vec<&str> = Vec::new();
        for (target, _) in &measured {
            if !names.contains(&kind(target)) {
                names.push(kind(target));
            }
        }
        let kinds = names.iter().map(|name| {
            let of_kind: Vec<_> = measured.iter().filter(|(target, _)| kind(target) == *name).collect();
            KindErrors::sum(name, &of_kind, &starts.ranks)
        });
        let mut notes = vec![
            "The reduction is the mean over the modules of 1 - error / error of QLoRA. QPiSSA and QSORSA have the same error, because \
             the product of their factors is the same."
                .to_owned(),
        ];
        let stored: BTreeSet<&str> = measured.iter().filter_map(|(_, errors)| Some(errors.stored?.name())).collect();
        if !stored.is_empty() {
            notes.push(format!(
                "The files have these weights packed already ({}): W is their widened value, and QLoRA's error that of packing W again, \
                 to {}. QLoRA on the files as they are loses nothing of W.",
                stored.into_iter().collect::<Vec<_>>().join(", "),
                starts.format
            ));
        }
        for rank in &starts.ranks {
            let small = measured.iter().filter(|(target, _)| target.shape.iter().any(|side| side < rank)).count();
            if small > 0 {
                notes.push(format!(
                    "Rank {rank} is larger than a side of {small} modules and counts as this side there."
                ));
            }
        }
        Ok(Self {
            model: recipe.model.path.clone(),
            format: starts.format.to_string(),
            rounds: starts.rounds,
            notes,
            kinds: kinds.collect(),
            all: KindErrors::sum("all", &measured.iter().collect::<Vec<_>>(), &starts.ranks),
        })
    }

    /// The tables for people, of the nuclear norm and of the Frobenius norm.
    pub fn text(&self) -> String {
        let title = format!("{} packed to {}, {} rounds", self.model, self.format, self.rounds);
        let nuclear = table::aligned(&self.rows(|norms| norms.nuclear, |start| start.nuclear_reduction));
        let frobenius = table::aligned(&self.rows(|norms| norms.frobenius, |start| start.frobenius_reduction));
        let notes = self.notes.join("\n");
        format!("{title}\n\nnuclear norm of the error\n{nuclear}\nFrobenius norm of the error\n{frobenius}\n{notes}\n")
    }

    /// The rows of one norm, a head first.
    fn rows(
        &self,
        norm: impl Fn(&ErrorNorms) -> f64,
        reduction: impl Fn(&StartErrors) -> Option<f64>,
    ) -> Vec<Vec<String>> {
        let head = [
            "modules", "count", "rank", "weight", "QLoRA", "LoftQ", "QPiSSA", "QSORSA", "LoftQ %", "QPiSSA %",
            "QSORSA %",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for kind in self.kinds.iter().chain([&self.all]) {
            for of_rank in &kind.ranks {
                let starts = [&of_rank.loftq, &of_rank.qpissa, &of_rank.qsorsa];
                let mut row = vec![kind.name.clone(), kind.modules.to_string(), of_rank.rank.to_string()];
                row.extend([&kind.weight, &kind.qlora].map(|norms| format!("{:.4}", norm(norms))));
                row.extend(starts.map(|start| format!("{:.4}", norm(&start.norms))));
                row.extend(
                    starts.map(|start| reduction(start).map_or_else(|| "-".to_owned(), |it| format!("{it:.1}"))),
                );
                rows.push(row);
            }
        }
        rows
    }
}

impl KindErrors {
    fn sum(name: &str, modules: &[&(Target, QuantizationErrors)], ranks: &[usize]) -> Self {
        let errors = || modules.iter().map(|(_, errors)| errors);
        let start = |of: &dyn Fn(&QuantizationErrors) -> ErrorNorms| StartErrors {
            norms: together(errors().map(of)),
            nuclear_reduction: mean_reduction(errors().map(|errors| (of(errors).nuclear, errors.qlora.nuclear))),
            frobenius_reduction: mean_reduction(errors().map(|errors| (of(errors).frobenius, errors.qlora.frobenius))),
        };
        let of_rank = |(index, rank): (usize, &usize)| RankErrors {
            rank: *rank,
            loftq: start(&|errors| errors.loftq[index]),
            qpissa: start(&|errors| errors.qpissa[index]),
            qsorsa: start(&|errors| errors.qpissa[index]),
        };
        Self {
            name: name.to_owned(),
            modules: modules.len(),
            weight: together(errors().map(|errors| errors.weight)),
            qlora: together(errors().map(|errors| errors.qlora)),
            ranks: ranks.iter().enumerate().map(of_rank).collect(),
        }
    }
}

/// The norms of the block diagonal matrix of all.
fn together(norms: impl Iterator<Item = ErrorNorms>) -> ErrorNorms {
    let (mut nuclear, mut squares) = (0.0, 0.0);
    for one in norms {
        nuclear += one.nuclear;
        squares += one.frobenius.powi(2);
    }
    ErrorNorms { nuclear, frobenius: squares.sqrt() }
}

/// Mean of `1 - error / reference` in percent; absent if a reference is 0.
fn mean_reduction(pairs: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for (error, reference) in pairs {
        if reference == 0.0 {
            return None;
        }
        sum += 100.0 * (1.0 - error / reference);
        count += 1;
    }
    (count > 0).then(|| sum / f64::from(count))
}

fn kind(target: &Target) -> &str {
    target.path.rsplit('.').next().unwrap_or(&target.path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sorsa_adapter::SvdOptions;

    fn errors(qlora: f64, start: f64) -> QuantizationErrors {
        let norms = |value: f64| ErrorNorms { nuclear: value, frobenius: value / 2.0 };
        QuantizationErrors {
            stored: None,
            weight: norms(100.0),
            qlora: norms(qlora),
            loftq: vec![norms(start)],
            qpissa: vec![norms(start / 2.0)],
        }
    }

    fn target(path: &str) -> Target {
        Target { path: path.to_owned(), shape: [4, 8], rank: 2, scale: 1.0 }
    }

    #[test]
    fn norms_are_those_of_all_modules_together_and_the_reduction_is_the_mean_of_theirs() {
        let modules = [(target("a.q"), errors(4.0, 3.0)), (target("b.q"), errors(3.0, 1.5))];
        let kind = KindErrors::sum("q", &modules.iter().collect::<Vec<_>>(), &[2]);
        assert_eq!((kind.modules, kind.qlora), (2, ErrorNorms { nuclear: 7.0, frobenius: 2.5 }));
        let [of_rank] = &kind.ranks[..] else { panic!("one rank") };
        assert_eq!(of_rank.loftq.norms.nuclear, 4.5);
        assert_eq!(of_rank.loftq.nuclear_reduction, Some((25.0 + 50.0) / 2.0));
        assert_eq!(of_rank.qsorsa, of_rank.qpissa);
        let exact = [(target("a.q"), errors(0.0, 0.0))];
        let kind = KindErrors::sum("q", &exact.iter().collect::<Vec<_>>(), &[2]);
        assert_eq!(kind.ranks[0].loftq.nuclear_reduction, None);
    }

    #[test]
    fn the_table_of_the_embedded_model_has_a_row_for_each_kind_and_rank() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../datasets/base");
        let device = burn::prelude::Device::flex();
        let model = CausalLm::load(std::path::Path::new(folder), sorsa_models::WeightFormat::F32, &device).unwrap();
        let mut recipe = Recipe::default();
        recipe.adapter.target_modules = vec!["re:.*layers[.]0[.].*_proj".to_owned()];
        let starts = StartsToMeasure {
            format: "nf4".parse().unwrap(),
            ranks: vec![4, 100],
            rounds: 2,
            svd: SvdOptions::default(),
        };
        let table = QuantizationErrorTable::measure(&recipe, &model, &starts, &|_, _| {}).unwrap();
        assert_eq!((table.kinds.len(), table.all.modules), (7, 7));
        assert_eq!(table.notes.len(), 2, "{:?}", table.notes);
        for kind in table.kinds.iter().chain([&table.all]) {
            let [small, large] = &kind.ranks[..] else { panic!("two ranks") };
            let reduction = |start: &StartErrors| start.nuclear_reduction.unwrap();
            assert!(reduction(&small.loftq) > 0.0 && reduction(&small.qpissa) > 0.0, "{kind:?}");
            assert!(reduction(&large.qpissa) > reduction(&small.qpissa), "{kind:?}");
        }
        let text = table.text();
        assert_eq!(text.lines().filter(|line| line.starts_with("down_proj")).count(), 4, "{text}");
    }
}
