//! Against a hub on the loopback interface.

mod server;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use server::{SHA, TestHub};

use super::*;

const SMALL: [(&str, &[u8]); 5] = [
    ("config.json", b"{\"a\": 1}"),
    ("tokenizer.json", b"{}"),
    ("model.safetensors", b"some weights, twenty-eight b"),
    ("pytorch_model.bin", b"pickled"),
    ("README.md", b"text"),
];

/// Nobody listens there; a port that was free a moment ago may be another test's by now.
const NOWHERE: &str = "http://127.0.0.1:1";

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_folder_is_returned_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().to_str().unwrap();
    assert_eq!(resolve(model, &HubOptions::default()).unwrap(), folder.path());
}

#[test]
fn the_files_of_a_model_are_fetched_once_and_nothing_pickled_among_them() {
    let (hub, cache) = (TestHub::start(&SMALL, |_| {}), tempfile::tempdir().unwrap());
    let folder = resolve("owner/name", &hub.options(cache.path())).unwrap();
    assert_eq!(names(&folder), ["config.json", "model.safetensors", "tokenizer.json"]);
    for (file, bytes) in &SMALL[..3] {
        assert_eq!(std::fs::read(folder.join(file)).unwrap(), *bytes, "{file}");
    }
    assert!(folder.ends_with(Path::new("hub/models--owner--name/snapshots").join(SHA)));

    let unreachable = HubOptions { endpoint: Some(NOWHERE.to_owned()), ..hub.options(cache.path()) };
    assert_eq!(resolve("owner/name", &unreachable).unwrap(), folder);
    assert_eq!(resolve("owner/name@main", &HubOptions { offline: true, ..unreachable.clone() }).unwrap(), folder);
    assert_eq!(resolve(&format!("owner/name@{SHA}"), &unreachable).unwrap(), folder);
}

#[test]
fn all_shards_of_the_index_are_fetched_and_a_missing_one_again() {
    let index = br#"{"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let files: [(&str, &[u8]); 4] = [
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
    ];
    let (hub, cache) = (TestHub::start(&files, |_| {}), tempfile::tempdir().unwrap());
    let folder = resolve("owner/name", &hub.options(cache.path())).unwrap();
    let all = ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"];
    assert_eq!(names(&folder), all);

    std::fs::remove_file(folder.join("model-2.safetensors")).unwrap();
    let offline = HubOptions { offline: true, ..hub.options(cache.path()) };
    assert!(matches!(resolve("owner/name", &offline), Err(HubError::Offline { .. })));
    let before = hub.log().len();
    resolve("owner/name", &hub.options(cache.path())).unwrap();
    assert_eq!(names(&folder), all);
    assert!(hub.log()[before..].iter().all(|request| !request.contains("model-1")), "{:?}", hub.log());
}

#[test]
fn a_gguf_file_is_fetched_by_its_name_with_the_other_parts_of_its_model() {
    let files: [(&str, &[u8]); 4] = [
        ("a.Q4_0.gguf", b"GGUF one"),
        ("b-00001-of-00002.gguf", b"GGUF two"),
        ("b-00002-of-00002.gguf", b"GGUF three"),
        ("README.md", b"text"),
    ];
    let (hub, cache) = (TestHub::start(&files, |_| {}), tempfile::tempdir().unwrap());
    let file = resolve("owner/name:a.Q4_0.gguf", &hub.options(cache.path())).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"GGUF one");
    assert_eq!(names(file.parent().unwrap()), ["a.Q4_0.gguf"]);
    let offline = HubOptions { offline: true, ..hub.options(cache.path()) };
    assert_eq!(resolve("owner/name:a.Q4_0.gguf", &offline).unwrap(), file);
    assert!(is_local("owner/name@main:a.Q4_0.gguf", &offline));
    assert!(matches!(resolve("owner/name:b-00001-of-00002.gguf", &offline), Err(HubError::Offline { .. })));
    let first = resolve("owner/name@main:b-00001-of-00002.gguf", &hub.options(cache.path())).unwrap();
    assert_eq!(names(first.parent().unwrap()), ["a.Q4_0.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]);
    let error = resolve("owner/name:c.gguf", &hub.options(cache.path())).unwrap_err();
    assert!(matches!(&error, HubError::NotFound { asked, .. } if asked == "c.gguf"), "{error}");
    for name in ["owner/name:README.md", "owner/name:../a.gguf", "owner/name:"] {
        assert!(matches!(resolve(name, &hub.options(cache.path())), Err(HubError::NotAModel { .. })), "{name}");
    }
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_ended_and_is_reported() {
    let weights: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &weights)];
    let hub = TestHub::start(&files, |state| {
        state.breaks.lock().unwrap().insert("model.safetensors".to_owned());
    });
    let cache = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let progress: ProgressCallback =
        Arc::new(move |p| sink.lock().unwrap().push((p.file.to_owned(), p.received, p.total)));
    let folder = resolve("owner/name", &HubOptions { progress: Some(progress), ..hub.options(cache.path()) }).unwrap();

    assert!(std::fs::read(folder.join("model.safetensors")).unwrap() == weights);
    let resumed = hub.log().iter().any(|request| request.starts_with("/cdn") && request.ends_with("bytes=150000-"));
    assert!(resumed, "{:?}", hub.log());
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|(_, received, total)| received <= total), "{seen:?}");
    assert_eq!(seen.last().unwrap(), &("model.safetensors".to_owned(), 300_000, 300_000));
    assert!(seen.iter().any(|(file, ..)| file == "config.json"));
}

#[test]
fn leftovers_that_cannot_be_resumed_are_replaced() {
    for leftover in [&b"some weights, twenty-eight b"[..], b"longer than the file can be, by far"] {
        let (hub, cache) = (TestHub::start(&SMALL, |_| {}), tempfile::tempdir().unwrap());
        let blobs = cache.path().join("hub/models--owner--name/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join("e-model.safetensors.incomplete"), leftover).unwrap();
        let folder = resolve("owner/name", &hub.options(cache.path())).unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), SMALL[2].1);
    }
}

#[test]
fn a_gated_model_asks_for_a_token_and_comes_with_it() {
    let hub = TestHub::start(&SMALL, |state| state.token = Some("secret".to_owned()));
    let cache = tempfile::tempdir().unwrap();
    let error = resolve("owner/name", &hub.options(cache.path())).unwrap_err();
    assert!(matches!(error, HubError::Refused { status: 401, with_token: false, .. }));
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");

    let wrong = HubOptions { token: TokenSource::Given("guess".to_owned()), ..hub.options(cache.path()) };
    let error = resolve("owner/name", &wrong).unwrap_err();
    assert!(matches!(error, HubError::Refused { with_token: true, .. }));
    assert!(!error.to_string().contains("guess"), "{error}");

    // Where the login tools leave it.
    std::fs::write(cache.path().join("token"), "secret\n").unwrap();
    let token = TokenSource::File(cache.path().join("token"));
    resolve("owner/name", &HubOptions { token, ..hub.options(cache.path()) }).unwrap();
}

#[test]
fn what_is_not_there_is_named_with_where_it_was_looked_for() {
    let (hub, cache) = (TestHub::start(&SMALL, |_| {}), tempfile::tempdir().unwrap());
    for model in ["owner/other", "owner/name@branch"] {
        let error = resolve(model, &hub.options(cache.path())).unwrap_err();
        assert!(matches!(error, HubError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(model) && error.to_string().contains(&hub.0.address), "{error}");
    }
    let unreachable = HubOptions { endpoint: Some(NOWHERE.to_owned()), ..hub.options(cache.path()) };
    let error = resolve("owner/name", &unreachable).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("HF_ENDPOINT") && !error.to_string().contains('\n'), "{error}");
}

#[test]
fn names_that_are_neither_a_folder_nor_a_model_reach_no_network() {
    let (hub, cache) = (TestHub::start(&SMALL, |_| {}), tempfile::tempdir().unwrap());
    for model in ["", "model", "./models/x", "/no/such/folder", "../x", "a/b/c", "a/..", "a b/c", "o/n@../x", "o/n@"] {
        let error = resolve(model, &hub.options(cache.path())).unwrap_err();
        assert!(matches!(&error, HubError::NotAModel { model: named } if named == model), "{model}: {error}");
    }
    assert!(hub.log().is_empty());
}

#[test]
fn a_model_with_pickled_weights_only_is_refused_without_fetching_them() {
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("pytorch_model.bin", b"pickled")];
    let (hub, cache) = (TestHub::start(&files, |_| {}), tempfile::tempdir().unwrap());
    let error = resolve("owner/name", &hub.options(cache.path())).unwrap_err();
    assert!(matches!(error, HubError::NoSafetensors { .. }), "{error}");
    assert!(hub.log().iter().all(|request| !request.contains("pytorch_model")), "{:?}", hub.log());
}

#[test]
fn an_index_that_leads_out_of_the_folder_is_refused() {
    let index = br#"{"weight_map": {"a": "../../../outside.safetensors"}}"#;
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors.index.json", index)];
    let (hub, cache) = (TestHub::start(&files, |_| {}), tempfile::tempdir().unwrap());
    let error = resolve("owner/name", &hub.options(cache.path())).unwrap_err();
    assert!(matches!(error, HubError::Index(_)), "{error}");
    assert!(hub.log().iter().all(|request| !request.contains("outside")), "{:?}", hub.log());
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (hub, cache) = (TestHub::start(&SMALL, |_| {}), tempfile::tempdir().unwrap());
    std::fs::write(cache.path().join("hub"), "a file in the way").unwrap();
    let error = resolve("owner/name", &hub.options(cache.path())).unwrap_err();
    assert!(matches!(&error, HubError::Cache { path, .. } if path.ends_with("hub")), "{error}");
}

fn with_token(hub: &TestHub, cache: &Path) -> HubOptions {
    HubOptions { token: TokenSource::Given("hf_secret".to_owned()), ..hub.options(cache) }
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_that_it_redirects_to() {
    for knows_head in [true, false] {
        let hub = TestHub::start(&SMALL, |state| {
            state.token = Some("hf_secret".to_owned());
            state.knows_head = knows_head;
        });
        let cache = tempfile::tempdir().unwrap();
        let folder = resolve("owner/name", &with_token(&hub, cache.path())).unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), SMALL[2].1);
        let tokens = hub.0.tokens.lock().unwrap();
        assert!(tokens.iter().any(|(to, token)| *to == "hub" && token.as_deref() == Some("Bearer hf_secret")));
        let elsewhere: Vec<_> = tokens.iter().filter(|(to, _)| *to == "storage").collect();
        assert!(!elsewhere.is_empty() && elsewhere.iter().all(|(_, token)| token.is_none()), "{tokens:?}");
    }
}

#[test]
fn a_list_or_a_small_file_that_moved_to_another_host_is_asked_for_without_the_token() {
    let list = "/api/models/owner/name/revision/main";
    let config = format!("/owner/name/resolve/{SHA}/config.json");
    for path in [list, config.as_str()] {
        let hub = TestHub::start(&SMALL, |state| {
            let target = format!("{}/elsewhere", state.storage);
            state.redirects.insert(path.to_owned(), target);
        });
        let cache = tempfile::tempdir().unwrap();
        resolve("owner/name", &with_token(&hub, cache.path())).unwrap_err();
        let tokens = hub.0.tokens.lock().unwrap();
        assert!(tokens.iter().all(|(to, token)| *to == "hub" || token.is_none()), "{path}: {tokens:?}");
    }
}

#[test]
fn a_model_with_a_new_name_is_found_by_its_old_one() {
    let old = format!("/owner/old/resolve/{SHA}");
    let hub = TestHub::start(&SMALL, |state| {
        state.token = Some("hf_secret".to_owned());
        state
            .redirects
            .insert("/api/models/owner/old/revision/main".into(), "/api/models/owner/name/revision/main".into());
        for (file, _) in SMALL {
            state.redirects.insert(format!("{old}/{file}"), format!("/owner/name/resolve/{SHA}/{file}"));
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let folder = resolve("owner/old", &with_token(&hub, cache.path())).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), SMALL[2].1);
}

/// All files and links under a folder.
fn all_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() && !path.is_symlink() { all_below(&path) } else { vec![path] }).collect()
}

#[test]
fn nothing_of_an_answer_becomes_a_path_that_leads_out_of_the_cache() {
    let place = tempfile::tempdir().unwrap();
    let victim = place.path().join("victim");
    std::fs::write(&victim, "original").unwrap();
    let victim = victim.to_str().unwrap();
    for name in [victim, "../../../../victim", "..", "a/b", "a\\b", "", ".hidden", "x:y"] {
        for what in ["etag of a small file", "etag of weights", "commit", "sha"] {
            let hub = TestHub::start(&SMALL, |state| match what {
                "etag of a small file" => drop(state.etags.insert("config.json".to_owned(), name.to_owned())),
                "etag of weights" => drop(state.etags.insert("model.safetensors".to_owned(), name.to_owned())),
                "commit" => state.commit = name.to_owned(),
                _ => state.sha = name.to_owned(),
            });
            let cache = place.path().join("cache");
            let error = resolve("owner/name", &hub.options(&cache)).unwrap_err();
            assert!(matches!(error, HubError::BadAnswer { .. }), "{what} {name}: {error:?}");
            assert_eq!(std::fs::read_to_string(victim).unwrap(), "original", "{what} {name}");
            let written = all_below(place.path());
            let is_inside = |path: &PathBuf| path.starts_with(cache.join("hub")) || path.ends_with("victim");
            assert!(written.iter().all(is_inside), "{what} {name}: {written:?}");
            let _ = std::fs::remove_dir_all(cache);
        }
    }
}

#[test]
fn control_characters_of_an_answer_are_escaped_in_the_message() {
    let hub =
        TestHub::start(&SMALL, |state| drop(state.etags.insert("config.json".to_owned(), "\u{9b}0;x\t".to_owned())));
    let cache = tempfile::tempdir().unwrap();
    let error = resolve("owner/name", &hub.options(cache.path())).unwrap_err().to_string();
    assert!(error.chars().all(|c| !c.is_control()), "{error:?}");
}

#[test]
fn a_hub_that_does_not_answer_is_given_up() {
    let timeouts = HubTimeouts { metadata: Duration::from_millis(500), download: Duration::from_millis(500) };
    let config = format!("/owner/name/resolve/{SHA}/config.json");
    for silent in ["/api/models/owner/name/revision/main", config.as_str(), "/cdn/model.safetensors"] {
        let hub = TestHub::start(&SMALL, |state| state.silent.extend([silent.to_owned()]));
        let cache = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let error = resolve("owner/name", &HubOptions { timeouts, ..hub.options(cache.path()) }).unwrap_err();
        assert!(matches!(error, HubError::Unreachable { .. }), "{silent}: {error}");
        assert!(begin.elapsed() < Duration::from_secs(120), "{silent}");
    }
    let hub = TestHub::start(&SMALL, |state| state.stalls.extend(["model.safetensors".to_owned()]));
    let cache = tempfile::tempdir().unwrap();
    // Each try brings half of what is missing, until a single byte is: nothing arrives of its half. On a busy machine the half may
    // take a moment.
    let timeouts = HubTimeouts { metadata: Duration::from_secs(10), download: Duration::from_millis(1500) };
    let error = resolve("owner/name", &HubOptions { timeouts, ..hub.options(cache.path()) }).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    let incomplete = cache.path().join("hub/models--owner--name/blobs/e-model.safetensors.incomplete");
    assert_eq!(std::fs::read(incomplete).unwrap(), SMALL[2].1[..27]);
}

#[test]
fn an_overloaded_hub_is_asked_again() {
    let hub = TestHub::start(&SMALL, |state| state.overloaded = Mutex::new(2));
    let cache = tempfile::tempdir().unwrap();
    resolve("owner/name", &hub.options(cache.path())).unwrap();
    let hub = TestHub::start(&SMALL, |state| state.overloaded = Mutex::new(99));
    let cache = tempfile::tempdir().unwrap();
    let error = resolve("owner/name", &hub.options(cache.path())).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
}

#[test]
fn a_host_that_knows_no_ranges_sends_a_file_anew() {
    let weights: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let hub =
        TestHub::start(&[("config.json", b"{}"), ("model.safetensors", &weights)], |state| state.knows_ranges = false);
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("hub/models--owner--name/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join("e-model.safetensors.incomplete"), &weights[..1000]).unwrap();
    let folder = resolve("owner/name", &hub.options(cache.path())).unwrap();
    assert!(std::fs::read(folder.join("model.safetensors")).unwrap() == weights);
}

/// `printf 'some weights, twenty-eight b' | sha256sum`, and `printf '{"a": 1}' | git hash-object --stdin`.
const HASHES: [(&str, &str); 2] = [
    ("model.safetensors", "7ba8769441450ab111912f01c848fd989763ce40c368fed8e8fd38fbe4fb98fc"),
    ("config.json", "4a036f56bb619924ec4189bd84ed716c766971ae"),
];

#[test]
fn the_content_is_compared_with_the_hash_that_the_hub_names() {
    let with_hashes = |files: &[(&str, &[u8])]| {
        TestHub::start(files, |state| {
            state.etags = HASHES.iter().map(|(file, hash)| (file.to_string(), hash.to_string())).collect();
        })
    };
    let cache = tempfile::tempdir().unwrap();
    let folder = resolve("owner/name", &with_hashes(&SMALL).options(cache.path())).unwrap();
    // The layout of huggingface_hub: links into blobs, which have their hashes for names.
    #[cfg(unix)]
    for (file, hash) in HASHES {
        let expected = Path::new("../../blobs").join(hash);
        assert_eq!(std::fs::read_link(folder.join(file)).unwrap(), expected);
    }
    for (damaged, (_, hash)) in [("model.safetensors", HASHES[0]), ("config.json", HASHES[1])] {
        let mut files = SMALL.map(|(file, bytes)| (file, bytes.to_vec()));
        files.iter_mut().filter(|(file, _)| *file == damaged).for_each(|(_, bytes)| bytes[3] ^= 1);
        let files: Vec<(&str, &[u8])> = files.iter().map(|(file, bytes)| (*file, bytes.as_slice())).collect();
        let cache = tempfile::tempdir().unwrap();
        let error = resolve("owner/name", &with_hashes(&files).options(cache.path())).unwrap_err();
        assert!(
            matches!(&error, HubError::WrongHash { file, expected, .. } if file == damaged && expected == hash),
            "{error}"
        );
        let left = all_below(cache.path());
        assert!(
            left.iter()
                .all(|path| !path.to_str().unwrap().contains(&hash[..40]) || path.ends_with(format!("{hash}.lock"))),
            "{left:?}"
        );
    }
}

#[test]
fn a_file_of_another_size_than_the_hub_says_is_refused() {
    for size in [27, 29] {
        let hub = TestHub::start(&SMALL, |state| state.linked_size = Some(size));
        let cache = tempfile::tempdir().unwrap();
        let error = resolve("owner/name", &hub.options(cache.path())).unwrap_err();
        assert!(matches!(error, HubError::BadAnswer { .. } | HubError::Unreachable { .. }), "{error:?}");
        assert!(!cache.path().join(format!("hub/models--owner--name/snapshots/{SHA}/model.safetensors")).exists());
    }
}

#[test]
fn two_at_once_download_each_file_once() {
    let weights: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let hub =
        TestHub::start(&[("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", &weights)], |_| {});
    let cache = tempfile::tempdir().unwrap();
    let folders: Vec<PathBuf> = std::thread::scope(|scope| {
        let resolve = || resolve("owner/name", &hub.options(cache.path())).unwrap();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(resolve)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(folders.iter().all(|folder| std::fs::read(folder.join("model.safetensors")).unwrap() == weights));
    assert_eq!(hub.log().iter().filter(|request| request.starts_with("/cdn")).count(), 1);
}

#[test]
fn a_reference_written_by_hand_may_end_with_a_line_feed() {
    let (hub, cache) = (TestHub::start(&SMALL, |_| {}), tempfile::tempdir().unwrap());
    let folder = resolve("owner/name", &hub.options(cache.path())).unwrap();
    let reference = cache.path().join("hub/models--owner--name/refs/main");
    assert_eq!(std::fs::read_to_string(&reference).unwrap(), SHA);
    let offline = HubOptions { offline: true, ..hub.options(cache.path()) };
    std::fs::write(&reference, format!("{SHA}\n")).unwrap();
    assert_eq!(resolve("owner/name", &offline).unwrap(), folder);
    assert!(is_local("owner/name", &hub.options(cache.path())) && !is_local("owner/other", &offline));
    std::fs::write(&reference, "../../../elsewhere").unwrap();
    assert!(matches!(resolve("owner/name", &offline), Err(HubError::Offline { .. })));
}

#[test]
fn files_that_a_model_lacks_are_noted_for_other_programs() {
    let (hub, cache) = (TestHub::start(&SMALL, |_| {}), tempfile::tempdir().unwrap());
    resolve("owner/name", &hub.options(cache.path())).unwrap();
    let noted = names(&cache.path().join("hub/models--owner--name/.no_exist").join(SHA));
    assert!(
        noted.contains(&"chat_template.jinja".to_owned()) && !noted.contains(&"config.json".to_owned()),
        "{noted:?}"
    );
}

#[test]
fn a_password_in_the_address_is_not_in_the_error() {
    let cache = tempfile::tempdir().unwrap();
    let endpoint = NOWHERE.replace("http://", "http://user:password@");
    let options =
        HubOptions { endpoint: Some(endpoint), cache_dir: Some(cache.path().into()), ..HubOptions::default() };
    let error = resolve("owner/name", &options).unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains("password") && text.contains("127.0.0.1"), "{text}");
}
