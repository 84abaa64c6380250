//! A real registry on a free loopback port, and fake servers.

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

const REGISTRY: Package = Package {
    name: "docker-registry",
    purpose: "is the registry of the tests",
    probe: Probe::Program("docker-registry"),
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry with its own data folder. It is stopped on drop.
pub struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    host: &'static str,
    port: u16,
    credential: Option<(String, String)>,
}

impl Registry {
    /// Starts a registry without authentication.
    pub fn open() -> Self {
        Self::start("127.0.0.1", None)
    }

    /// Starts a registry without authentication on another address of this machine.
    pub fn open_on(host: &'static str) -> Self {
        Self::start(host, None)
    }

    /// Starts a registry that accepts only this user and password.
    pub fn with_credential(user: &str, password: &str) -> Self {
        Self::start("127.0.0.1", Some((user.to_owned(), password.to_owned())))
    }

    fn start(host: &'static str, credential: Option<(String, String)>) -> Self {
        let program = program();
        let folder = tempfile::tempdir().unwrap();
        let mut config = serde_json::json!({
            "version": "0.1",
            "log": { "level": "info" },
            "storage": { "filesystem": { "rootdirectory": folder.path().join("data") } },
            "http": { "addr": format!("{host}:0") },
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
            host,
            port: 0,
            credential,
        };
        registry.port = registry.wait_for_port();
        registry
    }

    /// Reads the port from the log, because the system has chosen it.
    fn wait_for_port(&mut self) -> u16 {
        let begun = Instant::now();
        loop {
            let log = self.log();
            let port = log
                .split(&format!("listening on {}:", self.host))
                .nth(1)
                .and_then(|rest| {
                    let end = rest.find(|c: char| !c.is_ascii_digit())?;
                    rest[..end].parse().ok()
                });
            if let Some(port) = port {
                return port;
            }
            let status = self.child.try_wait().unwrap();
            assert!(status.is_none(), "the registry exited: {log}");
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the registry does not listen: {log}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The value for `--registry`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The log, including each request.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The paths of the requests with this method, in order.
    pub fn requests(&self, method: &str) -> Vec<String> {
        let start = format!("\"{method} ");
        self.log()
            .lines()
            .filter_map(|line| line.split(&start).nth(1)?.split(' ').next())
            .map(str::to_owned)
            .collect()
    }

    /// The names of all repositories.
    pub fn catalog(&self) -> Value {
        let (status, _, body) = self.send(Method::GET, "/v2/_catalog", None);
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice::<Value>(&body).unwrap()["repositories"].clone()
    }

    /// Asserts that the registry has no image, tag, or layer, not even a partial one.
    #[track_caller]
    pub fn assert_empty(&self) {
        assert_eq!(self.catalog(), serde_json::json!([]));
        let data = self.folder.path().join("data");
        let files: Vec<PathBuf> = walkdir::WalkDir::new(data)
            .into_iter()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_file())
            .map(walkdir::DirEntry::into_path)
            // Left over from the cancelled upload that proves write access.
            .filter(|path| !path.iter().any(|part| part == "_uploads"))
            .collect();
        assert_eq!(files, Vec::<PathBuf>::new());
    }

    /// The tags of a repository, sorted.
    pub fn tags(&self, repository: &str) -> Value {
        let (status, _, body) =
            self.send(Method::GET, &format!("/v2/{repository}/tags/list"), None);
        assert_eq!(status, StatusCode::OK);
        let mut tags = serde_json::from_slice::<Value>(&body).unwrap()["tags"].take();
        tags.as_array_mut()
            .unwrap()
            .sort_by_key(|tag| tag.as_str().unwrap().to_owned());
        tags
    }

    /// The unparsed manifest that a tag refers to.
    pub fn manifest(&self, repository: &str, tag: &str) -> Vec<u8> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, header, body) = self.send(Method::GET, &path, None);
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(header.as_deref(), Some(digest::sha256(&body).as_str()));
        body
    }

    /// The unparsed index that a tag refers to.
    pub fn index(&self, repository: &str, tag: &str) -> Vec<u8> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, _, body) = self.send_as(INDEX, Method::GET, &path, None);
        assert_eq!(status, StatusCode::OK, "{path}");
        body
    }

    /// The digest of the manifest that a tag refers to.
    pub fn digest(&self, repository: &str, tag: &str) -> String {
        digest::sha256(&self.manifest(repository, tag))
    }

    /// The content of a blob.
    pub fn blob(&self, repository: &str, digest: &str) -> Vec<u8> {
        let (status, _, body) = self.send(
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

    /// Points `tag` to `manifest`, even if it pointed to another one.
    pub fn put_manifest(&self, repository: &str, tag: &str, manifest: Vec<u8>) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, _, body) = self.send(Method::PUT, &path, Some(manifest));
        assert_eq!(
            status,
            StatusCode::CREATED,
            "{}",
            String::from_utf8_lossy(&body)
        );
    }

    /// Points `tag` to `index`, even if it pointed to another manifest.
    pub fn put_index(&self, repository: &str, tag: &str, index: Vec<u8>) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, _, body) = self.send_as(INDEX, Method::PUT, &path, Some(index));
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
            let upload = client
                .post(format!("{base}/v2/{repository}/blobs/uploads/"))
                .send()
                .await
                .unwrap();
            let location = upload.headers()["location"].to_str().unwrap();
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

    fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> (StatusCode, Option<String>, Vec<u8>) {
        self.send_as(MANIFEST, method, path, body)
    }

    fn send_as(
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
            let response = request.send().await.unwrap();
            let digest = response
                .headers()
                .get("docker-content-digest")
                .map(|value| value.to_str().unwrap().to_owned());
            let status = response.status();
            (status, digest, response.bytes().await.unwrap().to_vec())
        })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The process may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The path of the registry's program, which is installed first if it is missing.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        install(&[REGISTRY]);
        provision::find_program("docker-registry").unwrap()
    })
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    // Another test of this process may have set the provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// A fake registry that records requests and sends scripted responses.
pub struct FakeRegistry {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeRegistry {
    /// Listens on a free port of `host`. `respond` returns the HTTP response to a request's head.
    pub fn new(host: &str, respond: impl Fn(&str) -> String + Send + 'static) -> Self {
        let host: IpAddr = host.parse().unwrap();
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&requests);
        // The thread lives as long as the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let response = respond(&head);
                // Connections without a request are recorded, too.
                recorded.lock().unwrap().push(head);
                let _ = stream.write_all(response.as_bytes());
            }
        });
        Self { address, requests }
    }

    /// A server that must not receive any request.
    pub fn untouched() -> Self {
        Self::new("127.0.0.1", |_| {
            response("500 Internal Server Error", &[], "unexpected request")
        })
    }

    /// The value for `--registry`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Formats an HTTP response that closes the connection.
pub fn response(status: &str, headers: &[(&str, &str)], body: &str) -> String {
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
pub fn unused_address() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}
