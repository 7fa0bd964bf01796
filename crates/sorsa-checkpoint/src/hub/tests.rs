//! Against a hub on the loopback interface that answers as the public one does: a list of files, small files
//! directly, weights by way of a redirect, all of them by ranges.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;

use super::*;

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Default)]
struct State {
    address: String,
    files: BTreeMap<String, Vec<u8>>,
    /// The token without which everything is refused.
    token: Option<String>,
    /// Files whose next download breaks off halfway.
    breaks: Mutex<HashSet<String>>,
    /// Path and range of each request.
    log: Mutex<Vec<String>>,
}

struct TestHub(Arc<State>);

impl TestHub {
    fn start(files: &[(&str, &[u8])], configure: impl FnOnce(&mut State)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut state = State {
            address: format!("http://{}", listener.local_addr().unwrap()),
            files: files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect(),
            ..State::default()
        };
        configure(&mut state);
        let state = Arc::new(state);
        let served = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = served.clone();
                std::thread::spawn(move || answer(stream, &state));
            }
        });
        Self(state)
    }

    fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            endpoint: Some(self.0.address.clone()),
            cache_dir: Some(cache.join("hub")),
            ..HubOptions::default()
        }
    }

    fn log(&self) -> Vec<String> {
        self.0.log.lock().unwrap().clone()
    }
}

fn answer(stream: TcpStream, state: &State) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: HashMap<_, _> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let range = headers.get("range").cloned().unwrap_or_default();
    state.log.lock().unwrap().push(format!("{path} {range}").trim().to_owned());

    let reply = |status: &str, extra: &str, length: usize, body: &[u8]| {
        let mut stream = &stream;
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{extra}\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).ok()
    };
    if state.token.as_ref().is_some_and(|token| headers.get("authorization") != Some(&format!("Bearer {token}"))) {
        return reply("401 Unauthorized", "", 0, b"");
    }
    if path == "/api/models/owner/name/revision/main" {
        let siblings: Vec<_> = state.files.keys().map(|file| serde_json::json!({ "rfilename": file })).collect();
        let json = serde_json::json!({ "sha": SHA, "siblings": siblings }).to_string();
        return reply("200 OK", "Content-Type: application/json\r\n", json.len(), json.as_bytes());
    }
    let of_commit = path.strip_prefix(&format!("/owner/name/resolve/{SHA}/"));
    let Some((file, bytes)) = of_commit.or(path.strip_prefix("/cdn/")).and_then(|file| state.files.get_key_value(file))
    else {
        return reply("404 Not Found", "", 0, b"");
    };
    if of_commit.is_some() && file.ends_with(".safetensors") {
        let location = format!("Location: {}/cdn/{file}\r\n", state.address);
        return reply(
            "302 Found",
            &format!("{location}X-Linked-Etag: \"e-{file}\"\r\nX-Repo-Commit: {SHA}\r\n"),
            0,
            b"",
        );
    }
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.parse::<usize>().ok()?, last.parse().unwrap_or(bytes.len() - 1));
    if first > last {
        return reply("416 Range Not Satisfiable", "", 0, b"");
    }
    let body = &bytes[first..=last];
    let breaks = range.ends_with('-') && state.breaks.lock().unwrap().remove(file);
    let headers = format!(
        "ETag: \"e-{file}\"\r\nX-Repo-Commit: {SHA}\r\nContent-Range: bytes {first}-{last}/{}\r\n",
        bytes.len()
    );
    reply("206 Partial Content", &headers, body.len(), if breaks { &body[..body.len() / 2] } else { body })
}

const SMALL: [(&str, &[u8]); 5] = [
    ("config.json", b"{\"a\": 1}"),
    ("tokenizer.json", b"{}"),
    ("model.safetensors", b"some weights, twenty-eight b"),
    ("pytorch_model.bin", b"pickled"),
    ("README.md", b"text"),
];

fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

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

    let unreachable = HubOptions { endpoint: Some(nowhere()), ..hub.options(cache.path()) };
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
        std::fs::write(blobs.join("e-model.part"), leftover).unwrap();
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

    let wrong = HubOptions { token: Some("guess".to_owned()), ..hub.options(cache.path()) };
    let error = resolve("owner/name", &wrong).unwrap_err();
    assert!(matches!(error, HubError::Refused { with_token: true, .. }));
    assert!(!error.to_string().contains("guess"), "{error}");

    // Where the login tools leave it.
    std::fs::write(cache.path().join("token"), "secret\n").unwrap();
    resolve("owner/name", &hub.options(cache.path())).unwrap();
}

#[test]
fn what_is_not_there_is_named_with_where_it_was_looked_for() {
    let (hub, cache) = (TestHub::start(&SMALL, |_| {}), tempfile::tempdir().unwrap());
    for model in ["owner/other", "owner/name@branch"] {
        let error = resolve(model, &hub.options(cache.path())).unwrap_err();
        assert!(matches!(error, HubError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(model) && error.to_string().contains(&hub.0.address), "{error}");
    }
    let unreachable = HubOptions { endpoint: Some(nowhere()), ..hub.options(cache.path()) };
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
