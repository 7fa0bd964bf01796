use super::*;

fn yarn() -> Yarn {
    Yarn {
        factor: 4.0,
        original_max_position_embeddings: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    }
}

fn frequencies(scaling: RopeScaling, length: usize) -> Frequencies {
    Rope { theta: 10_000.0, scaling }.frequencies(16, length)
}

#[track_caller]
fn assert_near(found: &Frequencies, inverse: [f64; 8], amplitude: f64) {
    for (plane, (found, expected)) in found.inverse.iter().zip(inverse).enumerate() {
        assert!((found / expected - 1.0).abs() < 1e-6, "plane {plane}: {found}, expected {expected}");
    }
    assert!((found.amplitude - amplitude).abs() < 1e-8, "{} {amplitude}", found.amplitude);
}

#[test]
fn llama_3_scaling_keeps_short_wavelengths_and_divides_long_ones() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let plain = Rope { theta: 500_000.0, scaling: RopeScaling::None }.frequencies(128, 1).inverse;
    let scaled = Rope { theta: 500_000.0, scaling }.frequencies(128, 1).inverse;
    assert_eq!(plain[0], scaled[0]);
    assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-12);
    assert!(plain.iter().zip(&scaled).all(|(p, s)| *s <= *p && *s >= p / 8.0));
}

#[test]
fn dynamic_scaling_is_none_within_the_context_and_stretches_the_longest_wavelength_as_the_sequence_grows() {
    let dynamic = RopeScaling::Dynamic { factor: 4.0, max_position_embeddings: 64 };
    assert_eq!(frequencies(dynamic.clone(), 64), frequencies(RopeScaling::None, 64));
    assert_eq!(frequencies(dynamic.clone(), 3), frequencies(RopeScaling::None, 3));
    // The exponent dim / (dim - 2) is chosen so that the slowest plane slows by exactly the stretch.
    let (plain, stretched) = (frequencies(RopeScaling::None, 1), frequencies(dynamic, 200));
    let stretch = 4.0 * 200.0 / 64.0 - 3.0;
    assert!((plain.inverse[7] / stretched.inverse[7] / stretch - 1.0).abs() < 1e-12);
    assert_eq!(stretched.inverse[0], 1.0);
}

#[test]
fn yarn_keeps_planes_that_turn_often_and_divides_those_that_turn_rarely() {
    let wide = Yarn { original_max_position_embeddings: 4096, ..yarn() };
    let plain = Rope { theta: 10_000.0, scaling: RopeScaling::None }.frequencies(128, 1).inverse;
    let scaled = Rope { theta: 10_000.0, scaling: RopeScaling::Yarn(wide) }.frequencies(128, 1);
    for (plain, scaled) in plain.iter().zip(&scaled.inverse) {
        let turns = 4096.0 * plain / std::f64::consts::TAU;
        // The ends of the ramp are whole planes: a factor of one plane's step is their slack.
        let slack = 10_000f64.powf(2.0 / 128.0);
        match turns {
            _ if turns > 32.0 * slack => assert_eq!(plain, scaled),
            _ if turns < 1.0 / slack => assert!((plain / scaled - 4.0).abs() < 1e-12),
            _ => assert!(scaled <= plain && *scaled * 4.0 >= *plain * 0.999_999),
        }
    }
    assert!((scaled.amplitude - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
}

// The numbers below are those of `ROPE_INIT_FUNCTIONS` of transformers 4.57.6 (torch 2.8.0), which computes in f32,
// for heads of 16 and a base of 10000 where nothing else is said.

#[test]
fn dynamic_frequencies_are_those_of_transformers() {
    let dynamic = RopeScaling::Dynamic { factor: 4.0, max_position_embeddings: 64 };
    let at_65 = [1.0, 0.31350085, 0.098282784, 0.030811736, 0.0096595054, 0.0030282631, 0.00094936311, 0.00029762613];
    let at_200 = [1.0, 0.22925837, 0.052559398, 0.012049682, 0.0027624907, 0.00063332409, 0.00014519485, 3.3287135e-05];
    assert_near(&frequencies(dynamic.clone(), 65), at_65, 1.0);
    assert_near(&frequencies(dynamic, 200), at_200, 1.0);
}

#[test]
fn yarn_frequencies_are_those_of_transformers() {
    let slow = [0.0079056947, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05];
    let with = |first: [f64; 3]| std::array::from_fn(|plane| if plane < 3 { first[plane] } else { slow[plane - 3] });
    let yarn_frequencies = |yarn| frequencies(RopeScaling::Yarn(yarn), 1);
    let amplitude = 1.13862944;
    assert_near(&yarn_frequencies(yarn()), with([1.0, 0.23717082, 0.049999997]), amplitude);
    let exact = Yarn { truncate: false, ..yarn() };
    assert_near(&yarn_frequencies(exact), with([1.0, 0.19858353, 0.02559525]), amplitude);
    let betas = Yarn { beta_fast: 8.0, beta_slow: 0.5, ..exact };
    assert_near(&yarn_frequencies(betas), with([1.0, 0.23840846, 0.044248302]), amplitude);
}

#[test]
fn the_attention_factor_of_yarn_is_that_of_transformers() {
    let amplitude = |yarn| frequencies(RopeScaling::Yarn(yarn), 1).amplitude;
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-8, "{found}, expected {expected}");
    near(amplitude(Yarn { mscale: Some(0.707), mscale_all_dim: Some(1.0), ..yarn() }), 0.964326915);
    near(amplitude(Yarn { mscale: Some(0.707), ..yarn() }), 1.13862944);
    near(amplitude(Yarn { attention_factor: Some(1.3), mscale: Some(0.707), ..yarn() }), 1.3);
}

#[test]
fn what_yarn_leaves_out_follows_from_the_model_as_in_transformers() {
    let object = json!({"rope_theta": 500.0, "rope_scaling": {"rope_type": "yarn", "factor": 8.0}});
    let mut fields = Fields::new(object.as_object().unwrap().clone());
    let rope = Rope::read(&mut fields, 10_000.0, 32);
    assert_eq!(fields.finish(), Vec::<String>::new());
    let expected = [1.0, 0.32573649, 0.088114262, 0.012156156, 0.0055901702, 0.0025707141, 0.001182177, 0.00054363982];
    assert_near(&rope.frequencies(16, 1), expected, 1.20794415);
    assert_eq!(rope.context(32), 256);
}

#[test]
fn llama_3_frequencies_are_those_of_transformers() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 32,
    };
    let expected =
        [1.0, 0.11917551, 0.014865089, 0.0051262085, 0.001767767, 0.00060961233, 0.0002102241, 7.2495532e-05];
    assert_near(&Rope { theta: 5000.0, scaling }.frequencies(16, 1), expected, 1.0);
}

fn long() -> LongRope {
    LongRope {
        short_factor: vec![1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        long_factor: vec![1.0, 1.5, 2.0, 4.0, 6.0, 8.0, 9.0, 10.0],
        max_position_embeddings: 128,
        original_max_position_embeddings: 32,
        attention_factor: None,
    }
}

#[test]
fn longrope_frequencies_are_those_of_transformers() {
    let rope = RopeScaling::LongRope(long());
    let at_32 = [1.0, 0.28747976, 0.083333336, 0.024325214, 0.0071428572, 0.0021081853, 0.00062499999, 0.00018601633];
    let at_33 = [1.0, 0.2108185, 0.050000001, 0.0079056947, 0.0016666667, 0.00039528473, 0.00011111111, 3.1622778e-05];
    assert_near(&frequencies(rope.clone(), 32), at_32, 1.18321596);
    assert_near(&frequencies(rope, 33), at_33, 1.18321596);
}

#[test]
fn a_longrope_has_an_amplitude_of_one_where_the_context_did_not_grow_and_any_that_it_says() {
    let amplitude = |long| frequencies(RopeScaling::LongRope(long), 1).amplitude;
    assert_eq!(amplitude(LongRope { max_position_embeddings: 32, ..long() }), 1.0);
    assert_eq!(amplitude(LongRope { attention_factor: Some(1.25), ..long() }), 1.25);
}

#[test]
fn every_scaling_is_read_back_as_it_was_written() {
    let full = Yarn { attention_factor: Some(1.2), mscale: Some(0.7), mscale_all_dim: Some(0.9), ..yarn() };
    for scaling in [
        RopeScaling::None,
        RopeScaling::Linear { factor: 2.5 },
        RopeScaling::Dynamic { factor: 4.0, max_position_embeddings: 32 },
        RopeScaling::Yarn(yarn()),
        RopeScaling::Yarn(Yarn { truncate: false, ..full }),
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.5,
            high_freq_factor: 4.5,
            original_max_position_embeddings: 16,
        },
    ] {
        let rope = Rope { theta: 777.0, scaling };
        let mut json = Map::new();
        rope.write(&mut json);
        let mut fields = Fields::new(json);
        assert_eq!(Rope::read(&mut fields, 1.0, 32), rope);
        assert_eq!(fields.finish(), Vec::<String>::new());
    }
}

#[test]
fn a_scaling_without_a_factor_or_with_a_field_that_has_no_effect_is_a_fault() {
    for (scaling, fault) in [
        (json!({"rope_type": "linear"}), "`factor` is missing"),
        (json!({"rope_type": "yarn", "factor": 2.0, "beta": 3.0}), "`rope_scaling.beta` is not supported"),
        (
            json!({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}),
            "`original_max_position_embeddings` should be 32, found 16",
        ),
        (json!({"rope_type": "longrope", "factor": 2.0}), "rope type `longrope` is not supported"),
    ] {
        let mut fields = Fields::new(json!({"rope_scaling": scaling}).as_object().unwrap().clone());
        Rope::read(&mut fields, 1.0, 32);
        let faults = fields.finish();
        assert!(faults.len() == 1 && faults[0].starts_with(fault), "{faults:?}");
    }
}
