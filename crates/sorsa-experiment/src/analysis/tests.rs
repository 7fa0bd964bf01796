use sorsa_adapter::{HostTensor, TrainedFactors, WeightSnapshot};
use sorsa_report::analysis::Measure;

use super::*;

/// A diagonal weight of 4 x 3 and factors that are its two leading triplets, `turn`ed and `scale`d.
fn part(scale: f32, turn: f32) -> TrainedFactors {
    let (sin, cos) = turn.sin_cos();
    TrainedFactors {
        // The first column turns from the first axis to the fourth, which the weight does not use.
        a: HostTensor::new([4, 2], vec![scale * cos, 0.0, 0.0, scale, 0.0, 0.0, scale * sin, 0.0]),
        s: Some(vec![8.0, 2.0]),
        b: HostTensor::new([2, 3], vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
        orthonormal: true,
    }
}

fn diagonal(values: [f32; 3]) -> HostTensor {
    let mut weight = HostTensor::new([4, 3], vec![0.0; 12]);
    (0..3).for_each(|i| weight.values[4 * i] = values[i]);
    weight
}

#[test]
fn a_weight_is_measured_as_the_equations_say() {
    let start = StartingWeight::new("w", &diagonal([8.0, 2.0, 1.0]), Some(&part(1.0, 0.0)), 2, None).unwrap();
    let snapshot = WeightSnapshot { merged: diagonal([9.0, 2.0, 1.0]), factors: Some(part(1.5, 0.1)) };
    let Measured { measures, spectrum } = start.measure(&snapshot).unwrap();
    assert_eq!(spectrum.iter().map(|s| s.round()).collect::<Vec<_>>(), [9.0, 2.0, 1.0]);
    let defect = 1.25; // columns of length 1.5: 1.5^2 - 1
    for (measure, expected) in [
        (Measure::DSigma, 1.0 / 3.0),
        (Measure::DD, 0.0),
        (Measure::DDMatched, 0.0),
        (Measure::Kappa, 9.0),
        (Measure::KappaPart, 4.0),
        (Measure::DefectU, defect),
        (Measure::DefectV, 0.0),
        (Measure::AngleU, 0.0),
        (Measure::LargestAngleV, 0.0),
        (Measure::TrainedAngleU, 0.1f64.to_degrees() / 2.0),
        (Measure::TrainedAngleV, 0.0),
    ] {
        let found = measures.get(measure).unwrap();
        assert!((found - expected).abs() < 1e-5, "{}: {found}, expected {expected}", measure.name());
    }
}

#[test]
fn what_a_method_lacks_is_absent_and_not_zero() {
    let start = StartingWeight::new("w", &diagonal([8.0, 2.0, 1.0]), None, 2, Some(1)).unwrap();
    let dense = WeightSnapshot { merged: diagonal([8.0, 4.0, 1.0]), factors: None };
    let measures = start.measure(&dense).unwrap().measures;
    assert_eq!(measures.get(Measure::DSigma), Some(0.0), "only the leading triplet counts");
    for measure in [Measure::KappaPart, Measure::EffectiveRankPart, Measure::DefectU, Measure::TrainedAngleU] {
        assert_eq!(measures.get(measure), None, "{}", measure.name());
    }
    let mut nothing = part(1.0, 0.0);
    nothing.s = Some(vec![0.0, 0.0]);
    let untrained = WeightSnapshot { factors: Some(nothing), ..dense };
    assert_eq!(start.measure(&untrained).unwrap().measures.get(Measure::KappaPart), None);
}
