//! `fuzz KIND [SECONDS [SEED]]`: reads changed files of a kind until the time is over. A panic, or a read of more than ten
//! seconds, is a finding; its input is kept. `docs/fuzzing.md` has the rest.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sorsa_tests::fuzz::{Mutator, TARGETS, named};

const SLOW: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(target) = args.first().and_then(|name| named(name)) else {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("fuzz KIND [SECONDS [SEED]], where KIND is one of {}", names.join(", "));
        return ExitCode::from(2);
    };
    let number = |index: usize, default: u64| args.get(index).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (seconds, seed) = (number(1, 60), number(2, 1));
    let seeds = seeds(target.name);
    let folder = PathBuf::from("target/fuzz").join(target.name);
    std::fs::create_dir_all(&folder).expect("target/fuzz can be written");

    let place = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&place);
    std::panic::set_hook(Box::new(move |panic| {
        if let (Ok(mut place), Some(location)) = (noted.lock(), panic.location()) {
            *place = location.to_string();
        }
    }));
    let (begin, mut runs, mut found) = (Instant::now(), 0u64, BTreeMap::new());
    let mut mutator = Mutator::new(seed);
    while begin.elapsed() < Duration::from_secs(seconds) {
        let bytes = if (runs as usize) < seeds.len() { seeds[runs as usize].clone() } else { mutator.changed(&seeds) };
        // If this process is ended from outside, this is what it was reading.
        let current = folder.join("current");
        std::fs::write(&current, &bytes).expect("target/fuzz can be written");
        let start = Instant::now();
        let panicked = catch_unwind(AssertUnwindSafe(|| (target.read)(&bytes))).is_err();
        let what = match (panicked, start.elapsed()) {
            (true, _) => place.lock().map(|place| place.clone()).unwrap_or_default(),
            (false, time) if time > SLOW => "slow".to_owned(),
            _ => String::new(),
        };
        if !what.is_empty() {
            let count = found.entry(what.clone()).or_insert(0u64);
            if *count == 0 {
                let kept = folder.join(format!("found-{seed}-{runs}"));
                std::fs::write(&kept, &bytes).expect("target/fuzz can be written");
                println!("{what}: {}", kept.display());
            }
            *count += 1;
        }
        runs += 1;
    }
    println!(
        "{}: {runs} files in {} s, {} kinds of findings {found:?}",
        target.name,
        begin.elapsed().as_secs(),
        found.len()
    );
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The seeds of a kind, in the order of their names.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).collect()
}
