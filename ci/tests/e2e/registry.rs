//! A real registry on a free port of the loopback interface, and servers that only play one.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use common::digest;
use common::provision::{self, Package, Probe};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::installed::install;

/// The registry of the distribution's own package.
const REGISTRY: Package = Package {
    name: "docker-registry",
    purpose: "is pushed to by the tests",
    probe: Probe::Program("docker-registry"),
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry with a data folder of its own; it ends with this value.
pub struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
    credential: Option<(String, String)>,
}

impl Registry {
    /// One that lets everybody in.
    pub fn open() -> Self {
        Self::start(None)
    }

    /// One that lets only `user` in, with `password`.
    pub fn with_credential(user: &str, password: &str) -> Self {
        Self::start(Some((user.to_owned(), password.to_owned())))
    }

    fn start(credential: Option<(String, String)>) -> Self {
        let program = program();
        let folder = tempfile::tempdir().unwrap();
        let mut config = serde_json::json!({
            "version": "0.1",
            "log": { "level": "info" },
            "storage": { "filesystem": { "rootdirectory": folder.path().join("data") } },
            "http": { "addr": "127.0.0.1:0" },
        });
        if let Some((user, password)) = &credential {
            let hash = bcrypt::hash_with_result(password, 4).unwrap();
            let line = format!(
                "{user}:{}\n",
                hash.format_for_version(bcrypt::Version::TwoY)
            );
            let file = folder.path().join("htpasswd");
            std::fs::write(&file, line).unwrap();
            config["auth"] = serde_json::json!({ "htpasswd": { "realm": "test", "path": file } });
        }
        let file = folder.path().join("config.yml");
        // JSON is YAML.
        std::fs::write(&file, config.to_string()).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let child = Command::new(program)
            .arg("serve")
            .arg(&file)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut registry = Self {
            child,
            folder,
            port: 0,
            credential,
        };
        registry.port = registry.wait_for_port();
        registry
    }

    /// The system chose the port, so the log has it.
    fn wait_for_port(&mut self) -> u16 {
        let begun = Instant::now();
        loop {
            let log = self.log();
            let port = log
                .split("listening on 127.0.0.1:")
                .nth(1)
                .and_then(|rest| {
                    let end = rest.find(|c: char| !c.is_ascii_digit())?;
                    rest[..end].parse().ok()
                });
            if let Some(port) = port {
                return port;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the registry ended: {log}");
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the registry does not listen: {log}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What `--registry` takes.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// All that it has written, each request among it.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The requests with this method, in their order: the paths.
    pub fn requests(&self, method: &str) -> Vec<String> {
        let start = format!("\"{method} ");
        self.log()
            .lines()
            .filter_map(|line| line.split(&start).nth(1)?.split(' ').next())
            .map(str::to_owned)
            .collect()
    }

    /// The repositories in it.
    pub fn catalog(&self) -> Value {
        let (status, _, body) = self.ask(Method::GET, "/v2/_catalog", None);
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice::<Value>(&body).unwrap()["repositories"].clone()
    }

    /// No image, tag or layer is in it, not even in parts.
    #[track_caller]
    pub fn is_empty(&self) {
        assert_eq!(self.catalog(), serde_json::json!([]));
        let data = self.folder.path().join("data");
        let files: Vec<PathBuf> = walkdir::WalkDir::new(data)
            .into_iter()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_file())
            .map(walkdir::DirEntry::into_path)
            // What is left of a cancelled upload of nothing.
            .filter(|path| !path.iter().any(|part| part == "_uploads"))
            .collect();
        assert_eq!(files, Vec::<PathBuf>::new());
    }

    /// The tags of a repository, sorted.
    pub fn tags(&self, repository: &str) -> Value {
        let (status, _, body) = self.ask(Method::GET, &format!("/v2/{repository}/tags/list"), None);
        assert_eq!(status, StatusCode::OK);
        let mut tags = serde_json::from_slice::<Value>(&body).unwrap()["tags"].take();
        tags.as_array_mut()
            .unwrap()
            .sort_by_key(|tag| tag.as_str().unwrap().to_owned());
        tags
    }

    /// The manifest that a tag names, byte for byte.
    pub fn manifest(&self, repository: &str, tag: &str) -> Vec<u8> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, said, body) = self.ask(Method::GET, &path, None);
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(said.as_deref(), Some(digest::sha256(&body).as_str()));
        body
    }

    /// The index that a tag names, byte for byte.
    pub fn index(&self, repository: &str, tag: &str) -> Vec<u8> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, _, body) = self.ask_as(INDEX, Method::GET, &path, None);
        assert_eq!(status, StatusCode::OK, "{path}");
        body
    }

    /// The digest that the registry itself gives for a tag.
    pub fn digest(&self, repository: &str, tag: &str) -> String {
        digest::sha256(&self.manifest(repository, tag))
    }

    /// A blob, byte for byte.
    pub fn blob(&self, repository: &str, digest: &str) -> Vec<u8> {
        let (status, _, body) = self.ask(
            Method::GET,
            &format!("/v2/{repository}/blobs/{digest}"),
            None,
        );
        assert_eq!(
            (status, digest::sha256(&body).as_str()),
            (StatusCode::OK, digest)
        );
        body
    }

    /// Lets `tag` name `manifest`, whatever it named before.
    pub fn put_manifest(&self, repository: &str, tag: &str, manifest: Vec<u8>) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, _, body) = self.ask(Method::PUT, &path, Some(manifest));
        assert_eq!(
            status,
            StatusCode::CREATED,
            "{}",
            String::from_utf8_lossy(&body)
        );
    }

    /// As [`Self::put_manifest`], for an index.
    pub fn put_index(&self, repository: &str, tag: &str, index: Vec<u8>) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, _, body) = self.ask_as(INDEX, Method::PUT, &path, Some(index));
        assert_eq!(
            status,
            StatusCode::CREATED,
            "{}",
            String::from_utf8_lossy(&body)
        );
    }

    /// Adds a blob.
    pub fn put_blob(&self, repository: &str, digest: &str, content: &[u8]) {
        let base = format!("http://{}", self.address());
        block_on(async {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let begun = client
                .post(format!("{base}/v2/{repository}/blobs/uploads/"))
                .send()
                .await
                .unwrap();
            let location = begun.headers()["location"].to_str().unwrap();
            let mut url = reqwest::Url::parse(&base).unwrap().join(location).unwrap();
            url.query_pairs_mut().append_pair("digest", digest);
            let put = client.put(url).body(content.to_vec());
            assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
        });
    }

    /// Changes a byte of a blob on the registry's disk.
    pub fn damage(&self, digest: &str) {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let data = self
            .folder
            .path()
            .join("data/docker/registry/v2/blobs/sha256");
        let file = data.join(&hex[..2]).join(hex).join("data");
        let mut content = std::fs::read(&file).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        std::fs::write(file, content).unwrap();
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> (StatusCode, Option<String>, Vec<u8>) {
        self.ask_as(MANIFEST, method, path, body)
    }

    fn ask_as(
        &self,
        media_type: &'static str,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> (StatusCode, Option<String>, Vec<u8>) {
        let url = format!("http://{}{path}", self.address());
        block_on(async {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let mut request = client
                .request(method, url)
                .header(reqwest::header::ACCEPT, media_type);
            if let Some((user, password)) = &self.credential {
                request = request.basic_auth(user, Some(password));
            }
            if let Some(body) = body {
                request = request
                    .header(reqwest::header::CONTENT_TYPE, media_type)
                    .body(body);
            }
            let answer = request.send().await.unwrap();
            let digest = answer
                .headers()
                .get("docker-content-digest")
                .map(|value| value.to_str().unwrap().to_owned());
            let status = answer.status();
            (status, digest, answer.bytes().await.unwrap().to_vec())
        })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The registry's program; installed once where it is missing.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        install(&[REGISTRY]);
        provision::find_program("docker-registry").unwrap()
    })
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    // It may be set already: the tests of this process share it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// A server that is no registry: it keeps what it is asked, and gives the answer that it was told to give.
pub struct Impostor {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Impostor {
    /// Listens on a free port of `host`; `answer` makes an HTTP answer of a request's head.
    pub fn new(host: &str, answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let host: IpAddr = host.parse().unwrap();
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&requests);
        // It ends with the process of the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let words = answer(&head);
                // A connection counts, whatever was said.
                heard.lock().unwrap().push(head);
                let _ = stream.write_all(words.as_bytes());
            }
        });
        Self { address, requests }
    }

    /// One that nobody should talk to.
    pub fn silent() -> Self {
        Self::new("127.0.0.1", |_| {
            answer("500 Internal Server Error", &[], "nobody should ask")
        })
    }

    /// What `--registry` takes.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The heads of all requests up to now.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// An HTTP answer after which the connection ends.
pub fn answer(status: &str, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A loopback address on which nothing listens.
pub fn nobody() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}
