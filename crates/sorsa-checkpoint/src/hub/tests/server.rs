//! A hub on the loopback interface that answers as the public one does: a list of files, small files directly, weights by
//! way of a redirect to another address, all of them by ranges. And hubs that answer as none should.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::HubOptions;

pub const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a hub answers.
pub struct State {
    pub address: String,
    /// Another address, where weights are.
    pub storage: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// The token without which everything is refused.
    pub token: Option<String>,
    /// Files whose next download breaks off halfway.
    pub breaks: Mutex<HashSet<String>>,
    /// Etags, if they are not `e-` and the file's name.
    pub etags: HashMap<String, String>,
    /// What the list of files and the header of a file say is the commit.
    pub sha: String,
    pub commit: String,
    /// Whether the method HEAD is known.
    pub knows_head: bool,
    /// Whether a part of a file can be had.
    pub knows_ranges: bool,
    /// Answers that are 503 before the first that is not.
    pub overloaded: Mutex<u32>,
    /// Paths that are accepted and never answered.
    pub silent: HashSet<String>,
    /// Files of which half arrives, and then nothing.
    pub stalls: HashSet<String>,
    /// Bytes that the hub says weights have, if it says so.
    pub linked_size: Option<usize>,
    /// Redirects of paths of the hub.
    pub redirects: HashMap<String, String>,
    /// Path and range of each request.
    pub log: Mutex<Vec<String>>,
    /// Address and token of each request.
    pub tokens: Mutex<Vec<(&'static str, Option<String>)>>,
}

pub struct TestHub(pub Arc<State>);

impl TestHub {
    pub fn start(files: &[(&str, &[u8])], configure: impl FnOnce(&mut State)) -> Self {
        let (hub, storage) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let mut state = State {
            address: address(&hub),
            storage: address(&storage),
            files: files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect(),
            token: None,
            breaks: Mutex::default(),
            etags: HashMap::new(),
            sha: SHA.to_owned(),
            commit: SHA.to_owned(),
            knows_head: true,
            knows_ranges: true,
            overloaded: Mutex::new(0),
            silent: HashSet::new(),
            stalls: HashSet::new(),
            linked_size: None,
            redirects: HashMap::new(),
            log: Mutex::default(),
            tokens: Mutex::default(),
        };
        configure(&mut state);
        let state = Arc::new(state);
        for (listener, label) in [(hub, "hub"), (storage, "storage")] {
            let served = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = served.clone();
                    std::thread::spawn(move || answer(stream, label, &state));
                }
            });
        }
        Self(state)
    }

    pub fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            endpoint: Some(self.0.address.clone()),
            cache_dir: Some(cache.join("hub")),
            ..HubOptions::default()
        }
    }

    pub fn log(&self) -> Vec<String> {
        self.0.log.lock().unwrap().clone()
    }
}

fn answer(stream: TcpStream, label: &'static str, state: &State) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let request = lines.next()?;
    let (method, path) = request.split_once(' ').and_then(|(method, rest)| Some((method, rest.split_once(' ')?.0)))?;
    let headers: HashMap<_, _> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let range = headers.get("range").cloned().unwrap_or_default();
    state.log.lock().unwrap().push(format!("{path} {range}").trim().to_owned());
    let token = headers.get("authorization").cloned();
    state.tokens.lock().unwrap().push((label, token.clone()));

    let is_head = method == "HEAD";
    let reply = |status: &str, extra: &str, length: usize, body: &[u8]| {
        let mut stream = &stream;
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{extra}\r\n");
        stream.write_all(&[head.as_bytes(), if is_head { b"" } else { body }].concat()).ok()
    };
    if state.silent.contains(path) {
        std::thread::sleep(Duration::from_secs(600));
        return None;
    }
    {
        let mut overloaded = state.overloaded.lock().unwrap();
        if *overloaded > 0 {
            *overloaded -= 1;
            return reply("503 Service Unavailable", "", 0, b"");
        }
    }
    if is_head && !state.knows_head {
        return reply("501 Not Implemented", "", 0, b"");
    }
    let is_hub = label == "hub";
    if is_hub && state.token.as_ref().is_some_and(|expected| token != Some(format!("Bearer {expected}"))) {
        return reply("401 Unauthorized", "", 0, b"");
    }
    if let Some(target) = state.redirects.get(path).filter(|_| is_hub) {
        return reply("307 Temporary Redirect", &format!("Location: {target}\r\n"), 0, b"");
    }
    if path == "/api/models/owner/name/revision/main" {
        let siblings: Vec<_> = state.files.keys().map(|file| serde_json::json!({ "rfilename": file })).collect();
        let json = serde_json::json!({ "sha": state.sha, "siblings": siblings }).to_string();
        return reply("200 OK", "Content-Type: application/json\r\n", json.len(), json.as_bytes());
    }
    let of_commit = path.strip_prefix(&format!("/owner/name/resolve/{SHA}/")).filter(|_| is_hub);
    let stored = path.strip_prefix("/cdn/").filter(|_| !is_hub);
    let Some((file, bytes)) = of_commit.or(stored).and_then(|file| state.files.get_key_value(file)) else {
        return reply("404 Not Found", "", 0, b"");
    };
    let etag = state.etags.get(file).cloned().unwrap_or_else(|| format!("e-{file}"));
    let commit = &state.commit;
    if of_commit.is_some() && file.ends_with(".safetensors") {
        let mut extra = format!("Location: {}/cdn/{file}\r\nX-Repo-Commit: {commit}\r\n", state.storage);
        extra += &format!("X-Linked-Etag: \"{etag}\"\r\nETag: \"of-the-redirect\"\r\n");
        if let Some(size) = state.linked_size {
            extra += &format!("X-Linked-Size: {size}\r\n");
        }
        return reply("302 Found", &extra, 0, b"");
    }
    let headers = format!("ETag: W/\"{etag}\"\r\nX-Repo-Commit: {commit}\r\n");
    if is_head || !state.knows_ranges {
        return reply("200 OK", &headers, bytes.len(), bytes);
    }
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.parse::<usize>().ok()?, last.parse().unwrap_or(bytes.len().saturating_sub(1)));
    if first > last {
        return reply("416 Range Not Satisfiable", "", 0, b"");
    }
    let body = &bytes[first..=last];
    let breaks = range.ends_with('-') && state.breaks.lock().unwrap().remove(file);
    let stalls = state.stalls.contains(file);
    let headers = format!("{headers}Content-Range: bytes {first}-{last}/{}\r\n", bytes.len());
    let sent = if breaks || stalls { &body[..body.len() / 2] } else { body };
    reply("206 Partial Content", &headers, body.len(), sent)?;
    if stalls {
        std::thread::sleep(Duration::from_secs(600));
    }
    Some(())
}
