//! The seeds of the fuzzer, and some changes of each, as an ordinary test.

use std::path::Path;

use sorsa_tests::fuzz::{Mutator, TARGETS};

#[test]
fn no_changed_seed_makes_a_reader_panic() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name);
        let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{}", target.name);
        let seeds: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
        seeds.iter().for_each(|seed| (target.read)(seed));
        let mut mutator = Mutator::new(2026);
        for _ in 0..300 {
            (target.read)(&mutator.changed(&seeds));
        }
    }
}
