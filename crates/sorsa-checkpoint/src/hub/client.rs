//! Requests to a hub. Redirects are followed by hand, so that the token goes to the hub's own address alone.

use std::io::Read;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Method, Request, Response, Uri, header};
use ureq::{Agent, Body};

/// Redirects that one request follows at most.
const MOST_REDIRECTS: usize = 10;
/// Bytes of a model's list of files at most.
const LONGEST_LIST: u64 = 1 << 26;
/// Time for the whole list of files, once it has begun to arrive.
const LIST_TIME: Duration = Duration::from_secs(60);
/// Longest address, and longest name of a file's content, that an answer may have.
const LONGEST_ETAG: usize = 128;

/// Why a request gave nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The address of the hub is none.
    #[error("`{address}` is no address: expected http:// or https:// and a host")]
    Address {
        /// The address.
        address: String,
    },
    /// The access token cannot be sent.
    #[error("the access token has characters that no request may hold")]
    Token,
    /// The connection failed, or took too long.
    #[error("request error: {0}")]
    Http(#[from] ureq::Error),
    /// The hub answered with an error.
    #[error("status {0}")]
    Status(u16),
    /// The connection broke while a file arrived.
    #[error("the connection broke: {0}")]
    Broken(std::io::Error),
    /// What the hub holds does not go on where an earlier download ended.
    #[error("the download cannot go on where it ended")]
    NoResume,
    /// The answer is not that of a hub.
    #[error("{0}")]
    BadAnswer(String),
    /// What arrived could not be written.
    #[error("cannot write what arrived: {0}")]
    Disk(std::io::Error),
}

impl TransferError {
    /// Whether another try may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Http(error) => {
                use ureq::Error::{ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
                matches!(error, ConnectionFailed | HostNotFound | Io(_) | Protocol(_) | Timeout(_))
            }
            Self::Status(status) => *status >= 500 || matches!(status, 408 | 429),
            Self::Broken(_) => true,
            Self::Address { .. } | Self::Token | Self::NoResume | Self::BadAnswer(_) | Self::Disk(_) => false,
        }
    }

    /// Whether the hub took too long.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Http(ureq::Error::Timeout(_)))
    }
}

/// How long a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubTimeouts {
    /// For the connection, and for the answer to a question about a file.
    pub metadata: Duration,
    /// For the first and each further piece of a file.
    pub download: Duration,
}

impl Default for HubTimeouts {
    /// Ten seconds each, as in `huggingface_hub`.
    fn default() -> Self {
        Self { metadata: Duration::from_secs(10), download: Duration::from_secs(10) }
    }
}

/// The files of a model.
#[derive(Debug, Deserialize)]
pub(super) struct FileList {
    /// The commit: 40 hexadecimal digits.
    pub sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl FileList {
    pub fn has(&self, file: &str) -> bool {
        self.siblings.iter().any(|sibling| sibling.rfilename == file)
    }
}

/// What a hub says of a file.
#[derive(Debug)]
pub(super) struct FileInfo {
    /// Names the content, and is a plain file name.
    pub etag: String,
    /// Size in bytes; absent if only the host that has the file knows it.
    pub size: Option<u64>,
    /// Where the file is.
    location: Uri,
}

/// A file that arrives.
pub(super) struct Arriving {
    /// The position in the file of the first byte that arrives.
    pub start: u64,
    /// Size of the whole file in bytes, if the answer says it.
    pub size: Option<u64>,
    /// The bytes.
    pub body: Box<dyn Read>,
}

/// A client of one hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<String>,
    timeouts: HubTimeouts,
}

/// Which redirects a request follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Redirects {
    /// Those to the same address, as of a model with a new name.
    SameOrigin,
    /// All.
    All,
}

impl Client {
    /// A client of the hub at `endpoint`, which sends `token` there and nowhere else.
    pub fn new(endpoint: &str, token: Option<String>, timeouts: HubTimeouts) -> Result<Self, TransferError> {
        let address = || TransferError::Address { address: without_credentials(endpoint) };
        let uri = Uri::from_str(endpoint).map_err(|_| address())?;
        let origin = Origin::of(&uri).ok_or_else(address)?;
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .https_only(origin.scheme == "https")
            .user_agent(concat!("sorsa/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(timeouts.metadata))
            .timeout_connect(Some(timeouts.metadata))
            .timeout_send_request(Some(timeouts.metadata))
            .build()
            .into();
        Ok(Self { agent, endpoint: endpoint.to_owned(), origin, token, timeouts })
    }

    /// The commit of a revision of a model, and its files.
    pub fn list(&self, model: &str, revision: &str) -> Result<FileList, TransferError> {
        let url = format!("{}/api/models/{model}/revision/{}", self.endpoint, encoded(revision));
        let answer = self.send(&Method::GET, &url, None, Redirects::SameOrigin)?;
        let response = expect_success(answer.response)?;
        let mut text = Vec::new();
        let limit = response.into_body().into_reader().take(LONGEST_LIST + 1).read_to_end(&mut text);
        limit.map_err(TransferError::Broken)?;
        if text.len() as u64 > LONGEST_LIST {
            return Err(TransferError::BadAnswer(format!("a list of files of more than {LONGEST_LIST} bytes")));
        }
        let list: FileList = serde_json::from_slice(&text)
            .map_err(|error| TransferError::BadAnswer(format!("the list of files: {error}")))?;
        match is_commit(&list.sha) {
            true => Ok(list),
            false => Err(TransferError::BadAnswer(format!(
                "`sha` should be 40 hexadecimal digits, found {}",
                shown(&list.sha)
            ))),
        }
    }

    /// What the hub says of a file of a commit.
    pub fn info(&self, model: &str, commit: &str, file: &str) -> Result<FileInfo, TransferError> {
        let url = format!("{}/{model}/resolve/{commit}/{}", self.endpoint, encoded(file));
        let mut answer = self.send(&Method::HEAD, &url, None, Redirects::SameOrigin)?;
        // Not every mirror answers this method.
        if matches!(answer.response.status().as_u16(), 405 | 501) {
            answer = self.send(&Method::GET, &url, Some("bytes=0-0".to_owned()), Redirects::SameOrigin)?;
        }
        let location = answer.elsewhere.clone();
        if location.is_none() {
            let status = answer.response.status().as_u16();
            if !(200..300).contains(&status) {
                return Err(TransferError::Status(status));
            }
        }
        if let Some(found) = answer.header("x-repo-commit").filter(|found| *found != commit) {
            let found = shown(found);
            return Err(TransferError::BadAnswer(format!("it is of the commit {found}, and {commit} was asked for")));
        }
        let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag"));
        let etag = etag.ok_or_else(|| TransferError::BadAnswer("it has no `etag`".to_owned()))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !is_file_name(&etag) {
            return Err(TransferError::BadAnswer(format!("`etag` should be a plain name, found {}", shown(&etag))));
        }
        let here = location.is_none().then(|| content_size(&answer.response)).flatten();
        let size = answer.header("x-linked-size").and_then(|size| size.parse().ok()).or(here);
        Ok(FileInfo { etag, size, location: location.unwrap_or(answer.url) })
    }

    /// Asks for a file from the byte `start` on. It may come from the beginning, or from another host.
    pub fn download(&self, info: &FileInfo, start: u64) -> Result<Arriving, TransferError> {
        let range = Some(format!("bytes={start}-"));
        let answer = self.send(&Method::GET, &info.location.to_string(), range, Redirects::All)?;
        if answer.response.status().as_u16() == 416 {
            return Err(TransferError::NoResume);
        }
        let response = expect_success(answer.response)?;
        let size = content_size(&response);
        let begins = match response.status().as_u16() {
            206 => range_start(response.headers()).ok_or(TransferError::NoResume)?,
            _ => 0,
        };
        if begins != start && begins != 0 {
            return Err(TransferError::NoResume);
        }
        Ok(Arriving { start: begins, size, body: Box::new(response.into_body().into_reader()) })
    }

    /// Whether a token is sent to the hub.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sends a request without a body, and follows redirects. The token goes along to the hub's own origin only.
    fn send(
        &self,
        method: &Method,
        url: &str,
        range: Option<String>,
        redirects: Redirects,
    ) -> Result<Answer, TransferError> {
        let address = |_| TransferError::Address { address: without_credentials(url) };
        let mut url = Uri::from_str(url).map_err(address)?;
        let mut earlier = Vec::new();
        for _ in 0..MOST_REDIRECTS {
            let origin = Origin::of(&url);
            // The content as it is: its size and hash are compared.
            let mut request = Request::builder().method(method).uri(&url).header("accept-encoding", "identity");
            if let Some(range) = &range {
                request = request.header("range", range);
            }
            if let Some(token) = self.token.as_ref().filter(|_| origin.as_ref() == Some(&self.origin)) {
                let value = header::HeaderValue::from_str(&format!("Bearer {token}"));
                request = request.header("authorization", value.map_err(|_| TransferError::Token)?);
            }
            let request = request.body(()).map_err(|error| TransferError::Http(error.into()))?;
            let response = self.run(request, range.is_some())?;
            let Some(next) = redirect(&url, &response)? else {
                return Ok(Answer { url, response, elsewhere: None, earlier });
            };
            if redirects == Redirects::SameOrigin && Origin::of(&next).as_ref() != Some(&self.origin) {
                return Ok(Answer { url, response, elsewhere: Some(next), earlier });
            }
            earlier.push(response.headers().clone());
            url = next;
        }
        Err(TransferError::BadAnswer(format!("more than {MOST_REDIRECTS} redirects")))
    }

    fn run(&self, request: Request<()>, is_file: bool) -> Result<Response<Body>, TransferError> {
        let wait = if is_file { self.timeouts.download } else { self.timeouts.metadata };
        let config = self.agent.configure_request(request).timeout_recv_response(Some(wait));
        let config = config.timeout_per_read(Some(wait)).timeout_per_write(Some(wait));
        let whole = (!is_file).then_some(LIST_TIME);
        let request = config.timeout_recv_body(whole).build();
        Ok(self.agent.run(request)?)
    }
}

/// The last answer to a request, with what came before it.
struct Answer {
    url: Uri,
    response: Response<Body>,
    /// Where a redirect leads that was not followed.
    elsewhere: Option<Uri>,
    /// The headers of the answers that were redirects.
    earlier: Vec<HeaderMap>,
}

impl Answer {
    /// A header of the last answer that has it.
    fn header(&self, name: &str) -> Option<&str> {
        let all = std::iter::once(self.response.headers()).chain(self.earlier.iter().rev());
        all.filter_map(|headers| headers.get(name)?.to_str().ok()).next()
    }
}

/// Who is asked: scheme, host and port.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let default = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self { scheme, host, port: uri.port_u16().unwrap_or(default) })
    }
}

/// Where an answer redirects to; nothing if it is no redirect.
fn redirect(from: &Uri, response: &Response<Body>) -> Result<Option<Uri>, TransferError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
    let target = location.and_then(|location| joined(from, location));
    let bad = || {
        let found = shown(location.unwrap_or_default());
        TransferError::BadAnswer(format!("a redirect to {found}, which is no address that it may lead to"))
    };
    let target = target.ok_or_else(bad)?;
    let (Some(before), Some(after)) = (Origin::of(from), Origin::of(&target)) else { return Err(bad()) };
    if before.scheme == "https" && after.scheme != "https" {
        return Err(bad());
    }
    Ok(Some(target))
}

/// The address that `location` means on the page `from`.
fn joined(from: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let is_absolute = location.split_once("://").is_some_and(|(before, _)| !before.contains(['/', '?', '#']));
    let text = if is_absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    // A part after # is not sent.
    Uri::from_str(text.split('#').next()?).ok()
}

fn expect_success(response: Response<Body>) -> Result<Response<Body>, TransferError> {
    let status = response.status().as_u16();
    if (200..300).contains(&status) { Ok(response) } else { Err(TransferError::Status(status)) }
}

/// Size of the whole file that an answer is a part of.
fn content_size(response: &Response<Body>) -> Option<u64> {
    let text = |name: header::HeaderName| response.headers().get(name)?.to_str().ok();
    match response.status().as_u16() {
        206 => text(header::CONTENT_RANGE)?.rsplit_once('/')?.1.parse().ok(),
        _ => text(header::CONTENT_LENGTH)?.parse().ok(),
    }
}

/// The first byte of a part of a file.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

/// Whether this is a commit: 40 hexadecimal digits, and so the name of a folder.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether this names a file of the same folder, whatever the operating system: no separators, no way up, nothing hidden.
fn is_file_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=LONGEST_ETAG).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(is_plain)
}

/// A text of an answer for a message: quoted, its control characters escaped, its beginning only.
fn shown(text: &str) -> String {
    const SHOWN: usize = 100;
    let start: String = text.chars().take(SHOWN).collect();
    if start.len() < text.len() { format!("{start:?}..") } else { format!("{start:?}") }
}

/// An address without the name and password in it.
pub(super) fn without_credentials(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let start = rest[..end].rfind('@').map_or(0, |at| at + 1);
    if scheme.is_empty() { rest[start..].to_owned() } else { format!("{scheme}://{}", &rest[start..]) }
}

/// A part of a path as it stands in an address.
fn encoded(part: &str) -> String {
    let mut text = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        Uri::from_str(text).unwrap()
    }

    #[test]
    fn a_location_means_what_it_means_in_a_browser() {
        let from = uri("https://hub.example:8443/owner/name/resolve/main/config.json?x=1");
        for (location, expected) in [
            ("/api/file?y=2#part", "https://hub.example:8443/api/file?y=2"),
            ("//other.example/file", "https://other.example/file"),
            ("http://other.example/a?u=b://c", "http://other.example/a?u=b://c"),
            ("next.json", "https://hub.example:8443/owner/name/resolve/main/next.json"),
            ("/to?u=http://x/", "https://hub.example:8443/to?u=http://x/"),
        ] {
            assert_eq!(joined(&from, location), Some(uri(expected)), "{location}");
        }
    }

    #[test]
    fn the_same_origin_is_scheme_host_and_port() {
        let origin = |text: &str| Origin::of(&uri(text));
        assert_eq!(origin("https://Hub.example/a"), origin("https://user:word@hub.example:443/b"));
        for other in
            ["http://hub.example", "https://hub.example:444", "https://hub.example.org", "https://xhub.example"]
        {
            assert_ne!(origin("https://hub.example"), origin(other), "{other}");
        }
        assert_eq!(origin("ftp://hub.example"), None);
    }

    #[test]
    fn only_plain_names_become_names_of_files() {
        for good in ["0123456789abcdef", "e-config.json", "\u{41}1_2-3"] {
            assert!(is_file_name(good), "{good}");
        }
        let long = "a".repeat(129);
        for bad in ["", ".", "..", ".hidden", "a/b", "a\\b", "/etc/passwd", "a\0b", "C:x", "ä", "a b", long.as_str()] {
            assert!(!is_file_name(bad), "{bad}");
        }
        assert!(is_commit(&"0a".repeat(20)) && !is_commit(&"0A".repeat(20)) && !is_commit("main"));
    }

    #[test]
    fn a_password_in_an_address_is_not_shown() {
        assert_eq!(without_credentials("https://user:w@rd@host:1/a@b"), "https://host:1/a@b");
        assert_eq!(without_credentials("https://host/a"), "https://host/a");
    }
}
