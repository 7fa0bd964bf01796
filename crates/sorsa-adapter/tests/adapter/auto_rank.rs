//! Ranks that the spectrum of each weight decides.

use sorsa_adapter::peft::{PeftAdapter, PeftExport};
use sorsa_adapter::{AdapterConfig, Attached, HostTensor, HostTensorExt, Method, RankEnergy};
use sorsa_linalg::faer::linalg::solvers::Svd;

use crate::common::*;

fn auto(method: Method, share: f64) -> AdapterConfig {
    AdapterConfig { rank: 64, rank_energy: RankEnergy::new(share), ..config(method) }
}

/// The smallest rank of a layer that holds the share, by the whole SVD.
fn expected(layer: &burn::nn::Linear, share: f64) -> usize {
    let weight = HostTensor::from_tensor(layer.weight.val());
    let svd = Svd::new_thin(weight.matrix()).unwrap();
    let squares: Vec<f64> = svd.S().column_vector().iter().map(|s| f64::from(*s).powi(2)).collect();
    let total: f64 = squares.iter().sum();
    (1..=squares.len()).find(|rank| squares[..*rank].iter().sum::<f64>() >= share * total * (1.0 - 1e-7)).unwrap()
}

fn ranks(attached: &Attached<Net>) -> Vec<usize> {
    attached.state.modules.iter().map(|module| module.rank).collect()
}

#[test]
fn each_weight_gets_the_smallest_rank_that_holds_the_share() {
    let net = Net::new(&device());
    for share in [0.05, 0.5, 0.9, 0.99, 1.0] {
        let found = auto(Method::Lora, share).with_resolved_ranks(&net, &Default::default()).unwrap();
        let by_svd = [expected(&net.first, share), expected(&net.second, share)];
        assert_eq!(found.modules.iter().map(|module| module.rank).collect::<Vec<_>>(), by_svd, "{share}");
        assert!(found.modules.iter().all(|module| module.share >= share - 1e-9));
        assert_eq!(found.config.rank_energy, None);
        let targets = found.config.targets(&net).unwrap();
        assert_eq!(targets.iter().map(|target| target.rank).collect::<Vec<_>>(), by_svd, "{share}");
    }
}

#[test]
fn every_factored_method_takes_it_and_the_adapter_keeps_the_numbers() {
    let device = device();
    let net = Net::new(&device);
    let by_svd = |share: f64| [expected(&net.first, share), expected(&net.second, share)];
    let two_ranks = |share: &f64| by_svd(*share)[0] != by_svd(*share)[1];
    let share = [0.7, 0.8, 0.85, 0.9].into_iter().find(two_ranks).expect("a share at which the ranks differ");
    let by_svd = by_svd(share);
    for method in factored() {
        if method == Method::Svft {
            let error = auto(method, share).validate().unwrap_err().to_string();
            assert!(error.contains("the rank of svft counts trained diagonals"), "{error}");
            continue;
        }
        let adapted = disturbed(attach(&auto(method, share), &device));
        assert_eq!(ranks(&adapted), by_svd, "{method}");
        // The state has numbers: nobody decomposes the weights for them again.
        assert_eq!(adapted.state.config.rank_energy, None, "{method}");
        let folder = tempfile::tempdir().unwrap();
        adapted.snapshot().save(folder.path()).unwrap();
        let loaded = sorsa_adapter::SavedAdapter::load(folder.path()).unwrap().attach(Net::new(&device)).unwrap();
        assert_eq!(loaded.state, adapted.state, "{method}");
        let (peft, _) =
            PeftAdapter::from_saved(&adapted.snapshot(), &Net::new(&device), &PeftExport::default()).unwrap();
        assert_eq!(peft.config.rank_pattern.len(), 1, "{method}: {:?}", peft.config);
    }
    // A method without factors has no rank.
    assert_eq!(
        auto(Method::Partial, share).with_resolved_ranks(&Net::new(&device), &Default::default()).unwrap().modules,
        []
    );
}

#[test]
fn the_bound_and_patterns_come_first_and_the_bound_is_told() {
    let net = Net::new(&device());
    let bounded = AdapterConfig { rank: 3, ..auto(Method::Sorsa, 0.99) };
    let found = bounded.with_resolved_ranks(&net, &Default::default()).unwrap();
    assert_eq!(found.modules.iter().map(|module| module.rank).collect::<Vec<_>>(), [3, 3]);
    let lowest = found.modules.iter().map(|module| module.share).fold(1.0, f64::min);
    assert_eq!(
        found.to_string(),
        format!(
            "rank = auto:0.99: ranks 3 to 3 in 2 modules, 3.0 on average; in 2 of them the largest rank, 3 (rank_max), holds \
             less, {:.1} % at least",
            100.0 * lowest
        )
    );
    let mut patterned = auto(Method::Sorsa, 0.5);
    patterned.rank_pattern.insert("second".into(), 7);
    let found = patterned.with_resolved_ranks(&net, &Default::default()).unwrap();
    assert_eq!(found.modules.len(), 1);
    assert_eq!(found.config.targets(&net).unwrap()[1].rank, 7);
    assert!(!found.to_string().contains("rank_max"), "{found}");
}

#[test]
fn files_hold_it_as_a_text_and_numbers_as_before() {
    let json = r#"{"method": "sorsa", "rank": "auto:0.9", "target_modules": ["q_proj"]}"#;
    let config: AdapterConfig = serde_json::from_str(json).unwrap();
    assert_eq!((config.rank, config.rank_energy), (RankEnergy::MOST, RankEnergy::new(0.9)));
    let written = serde_json::to_value(&config).unwrap();
    assert_eq!((&written["rank"], &written["rank_max"]), (&"auto:0.9".into(), &128.into()));
    assert_eq!(serde_json::from_value::<AdapterConfig>(written).unwrap(), config);
    let number = serde_json::to_value(crate::common::config(Method::Sorsa)).unwrap();
    assert_eq!((&number["rank"], number.get("rank_max")), (&4.into(), None));
    let fault = |rank: &str, more: &str| {
        let json = format!(r#"{{"method": "sorsa", "rank": {rank}, "target_modules": ["q_proj"]{more}}}"#);
        serde_json::from_str::<AdapterConfig>(&json).unwrap_err().to_string()
    };
    for rank in ["\"auto\"", "\"auto:0\"", "\"auto:1.5\"", "\"auto:x\"", "\"auto:NaN\""] {
        assert!(fault(rank, "").contains("auto:SHARE with a share above 0 and at most 1"), "{}", fault(rank, ""));
    }
    assert!(fault("\"four\"", "").contains("invalid type: string \"four\", expected usize, or a text"));
    assert!(fault("-1", "").contains("invalid value: integer `-1`, expected usize"));
    assert!(fault("4", r#", "rank_max": 9"#).contains("rank_max = 9 bounds a rank like"));
}
