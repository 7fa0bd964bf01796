#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (sorsa_tests::fuzz::named("packed").unwrap().read)(bytes));
