//! A registry that fails, refuses access, or returns wrong content at each stage of a push: a real registry behind a faulty
//! proxy.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use ci::image::{archive, attestations};
use common::digest;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Barrier, mpsc, oneshot};

use serde_json::{Value, json};

use crate::harness::{Outcome, Project};
use crate::registry::Registry;
use crate::sources::short_sha;

/// A fault that the proxy applies to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The request is forwarded after this delay.
    Delay(Duration),
    /// The response is held until as many clients wait for one as the barrier requires.
    WaitForOthers(Arc<Barrier>),
    /// The connection is closed before the request is forwarded.
    DropRequest,
    /// The request is forwarded, and the connection is closed before the response.
    DropResponse,
    /// The connection is closed in the middle of the response's body.
    TruncateResponse,
    /// The response is sent, and then the proxy refuses connections for a moment.
    ///
    /// crane notices a lost connection only this way: Dagger's tunnel to the loopback interface of this machine does not report
    /// that a server has closed a connection, and crane waits until it is stopped.
    StopListening,
    /// The proxy responds with this status code, without forwarding the request.
    Respond(u16),
    /// The response's body has one extra byte.
    ExtraByte,
    /// The response has a wrong digest header.
    WrongDigest,
}

/// The sender of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// `ci` itself.
    Ci,
    /// crane, in a container of the engine.
    Crane,
}

/// A kind of request: its sender, its method, and a part of its path. `$` marks the end of the path.
pub type Stage = (Client, &'static str, &'static str);

/// All requests to a registry before, during, and after the push of an image and its attestations.
const STAGES: [Stage; 17] = [
    (Client::Ci, "GET", "/v2/$"),
    (Client::Ci, "POST", "/blobs/uploads/"),
    (Client::Ci, "GET", "/manifests/TAG"),
    (Client::Ci, "GET", "/referrers/"),
    (Client::Ci, "GET", "/manifests/sha256-"),
    (Client::Crane, "GET", "/v2/$"),
    (Client::Crane, "HEAD", "/manifests/sha256:"),
    (Client::Crane, "HEAD", "/blobs/"),
    (Client::Crane, "POST", "/blobs/uploads/"),
    (Client::Crane, "PATCH", "/blobs/uploads/"),
    (Client::Crane, "PUT", "/blobs/uploads/"),
    (Client::Crane, "PUT", "/manifests/sha256:"),
    (Client::Crane, "GET", "/referrers/"),
    (Client::Crane, "GET", "/manifests/sha256-"),
    (Client::Crane, "PUT", "/manifests/sha256-"),
    (Client::Crane, "GET", "/manifests/sha256:"),
    (Client::Crane, "PUT", "/manifests/TAG"),
];

const FOREVER: usize = usize::MAX;

/// A fault, the requests it applies to, and how often it applies.
#[derive(Clone, Debug)]
pub struct Rule {
    stage: Stage,
    fault: Fault,
    /// The number of requests before the fault applies.
    after: usize,
    times: usize,
    applied: usize,
}

/// Applies the fault once, to the first request.
pub fn apply_once(stage: Stage, fault: Fault) -> Rule {
    Rule {
        stage,
        fault,
        after: 0,
        times: 1,
        applied: 0,
    }
}

/// Makes two publishers wait for each other, once.
pub fn rendezvous(stage: Stage) -> Rule {
    Rule {
        times: 2,
        ..apply_once(stage, Fault::WaitForOthers(Arc::new(Barrier::new(2))))
    }
}

fn apply_always(stage: Stage, fault: Fault) -> Rule {
    Rule {
        times: FOREVER,
        ..apply_once(stage, fault)
    }
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    /// The tag of the image that is pushed.
    tag: String,
    requests: Vec<(Client, String)>,
    /// If set, the registry requires a token, and refers crane to a token server with this host name.
    realm: Option<&'static str>,
    /// Authorization headers that the other token server has received.
    other_host: Vec<String>,
}

impl State {
    fn matches(&self, (client, method, part): Stage, request: &(Client, String)) -> bool {
        let part = part.replace("TAG", &self.tag);
        let (sent_method, path) = request.1.split_once(' ').unwrap();
        let matches_path = match part.strip_suffix('$') {
            Some(whole_path) => path == whole_path,
            None => path.contains(&part),
        };
        request.0 == client && sent_method == method && matches_path
    }

    /// Records the request, and returns the fault to apply.
    fn apply(&mut self, request: (Client, String)) -> Option<Fault> {
        let mut found = None;
        for index in 0..self.rules.len() {
            if found.is_some() || !self.matches(self.rules[index].stage, &request) {
                continue;
            }
            let rule = &mut self.rules[index];
            if rule.after > 0 {
                rule.after -= 1;
            } else if rule.applied < rule.times {
                rule.applied += 1;
                found = Some(rule.fault.clone());
            }
        }
        self.requests.push(request);
        found
    }
}

/// A proxy that applies faults to the requests to a real registry.
pub struct Proxy {
    pub registry: Registry,
    state: Arc<Mutex<State>>,
    pub address: String,
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    pub fn new() -> Self {
        // Another test of this process may have set the provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = Registry::open();
        let state = Arc::new(Mutex::new(State::default()));
        let (stop_listening, mut stops) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        let upstream = Upstream {
            client: reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .unwrap(),
            address: registry.address(),
            state: Arc::clone(&state),
            stop_listening,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        // Reserves the port while the proxy does not listen.
        let reserved = {
            let _inside = runtime.enter();
            socket(([127, 0, 0, 1], 0).into())
        };
        let address = reserved.local_addr().unwrap();
        runtime.spawn(async move {
            let _reserved = reserved;
            let mut listener = listen(address);
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        let upstream = upstream.clone();
                        tokio::spawn(async move {
                            let answer = service_fn(|request| upstream.clone().answer(request));
                            let mut server = hyper::server::conn::http1::Builder::new();
                            // One request per connection, so that the request after a fault needs a new one.
                            let server = server.keep_alive(false);
                            // Some faults are errors, which close the connection.
                            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
                        });
                    }
                    Some(stopped) = stops.recv() => {
                        drop(listener);
                        let _ = stopped.send(());
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        listener = listen(address);
                    }
                }
            }
        });
        Self {
            registry,
            state,
            address: address.to_string(),
            _runtime: runtime,
        }
    }

    /// Runs `ci publish` on a new commit with these faults.
    fn publish(&self, project: &Project, rules: &[Rule]) -> PublishRun {
        project.commit("another image");
        let tag = short_sha(project);
        self.set_rules(&tag, rules);
        let outcome = project.ci(&["publish", "--registry", &self.address]).run();
        let state = self.take_state();
        PublishRun {
            outcome,
            tag,
            state,
        }
    }

    /// Sets the faults for the following requests. `tag` is the tag of the image that is pushed.
    pub fn set_rules(&self, tag: &str, rules: &[Rule]) {
        *self.state.lock().unwrap() = State {
            rules: rules.to_vec(),
            tag: tag.to_owned(),
            ..State::default()
        };
    }

    /// Clears the faults, and returns how many were applied.
    pub fn applied(&self) -> usize {
        self.take_state()
            .rules
            .iter()
            .map(|rule| rule.applied)
            .sum()
    }

    fn take_state(&self) -> State {
        std::mem::take(&mut *self.state.lock().unwrap())
    }

    /// Asserts that a run with all of these faults passes, and publishes its image, its attestations, and nothing else.
    #[track_caller]
    fn assert_publishes_despite(&self, project: &Project, rules: &[Rule]) {
        let before = self.tags(project);
        let publish = self.publish(project, rules);
        publish.outcome.clone().exits(0);
        for rule in &publish.state.rules {
            assert_eq!(
                rule.applied, rule.times,
                "{rule:?} of {:#?}",
                publish.state.requests
            );
        }
        assert_eq!(publish.outcome.report["publish"]["outcome"], "pushed");
        let repository = project.repository();
        let archive = project.path().join("target/ci/image.tar");
        let digest = archive::read_digest(&archive).unwrap();
        assert_eq!(self.registry.digest(repository, &publish.tag), digest);
        assert_eq!(publish.outcome.report["digest"], digest.as_str());
        let list = attestations::fallback_tag(&digest);
        let list: Value = serde_json::from_slice(&self.registry.index(repository, &list)).unwrap();
        let attestations = list["manifests"].as_array().unwrap();
        assert_eq!(attestations.len(), 2, "{list:#}");
        for attestation in attestations {
            let digest = attestation["digest"].as_str().unwrap();
            let manifest = self.registry.manifest(repository, digest);
            let manifest: Value = serde_json::from_slice(&manifest).unwrap();
            for blob in [&manifest["config"], &manifest["layers"][0]] {
                self.registry
                    .blob(repository, blob["digest"].as_str().unwrap());
            }
        }
        let mut expected = before;
        expected.extend([publish.tag, attestations::fallback_tag(&digest)]);
        expected.sort();
        assert_eq!(self.tags(project), expected);
    }

    fn tags(&self, project: &Project) -> Vec<String> {
        if self.registry.catalog() == json!([]) {
            return Vec::new();
        }
        let tags = self.registry.tags(project.repository());
        let mut tags: Vec<String> = serde_json::from_value(tags).unwrap_or_default();
        tags.sort();
        tags
    }
}

fn socket(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

fn listen(address: SocketAddr) -> TcpListener {
    socket(address).listen(64).unwrap()
}

/// A run of `ci publish`, and the requests that the proxy has recorded.
struct PublishRun {
    outcome: Outcome,
    tag: String,
    state: State,
}

impl PublishRun {
    /// The number of requests of this kind.
    fn count(&self, stage: Stage) -> usize {
        let requests = self.state.requests.iter();
        requests
            .filter(|request| self.state.matches(stage, request))
            .count()
    }

    /// Asserts that the publish step failed with this exit code.
    #[track_caller]
    fn assert_fails(&self, code: i32) -> &Outcome {
        self.outcome
            .clone()
            .exits(code)
            .only_fails("publish")
            .publishes_nothing();
        &self.outcome
    }
}

#[derive(Clone)]
struct Upstream {
    client: reqwest::Client,
    address: String,
    state: Arc<Mutex<State>>,
    stop_listening: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection was dropped")
    }
}

impl std::error::Error for Dropped {}

impl Upstream {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Content>, Dropped> {
        let agent = request.headers().get("user-agent");
        let agent = agent.map_or("", |agent| agent.to_str().unwrap());
        let client = if agent.starts_with("infrastructure-lab-ci") {
            Client::Ci
        } else {
            Client::Crane
        };
        if let Some(answer) = self.challenge(client, &request) {
            return Ok(answer);
        }
        let line = format!("{} {}", request.method(), request.uri().path());
        let fault = self.state.lock().unwrap().apply((client, line));
        match &fault {
            Some(Fault::DropRequest) => {
                let _ = request.into_body().collect().await;
                return Err(Dropped);
            }
            Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
            Some(Fault::Respond(status)) => {
                let _ = request.into_body().collect().await;
                let mut answer = Response::new(Content::complete(Bytes::new()));
                *answer.status_mut() = StatusCode::from_u16(*status).unwrap();
                return Ok(answer);
            }
            _ => {}
        }
        let (status, mut headers, body) = self.forward(request).await?;
        let content = match &fault {
            Some(Fault::DropResponse) => return Err(Dropped),
            Some(Fault::TruncateResponse) => Content {
                size: body.len() as u64 + 1,
                bytes: Some(body),
            },
            Some(Fault::ExtraByte) => Content::complete([&body[..], b"\n"].concat().into()),
            Some(Fault::WrongDigest) => {
                let other = digest::sha256(b"another");
                let other = HeaderValue::from_str(&other).unwrap();
                headers.insert("docker-content-digest", other);
                Content::complete(body)
            }
            Some(Fault::WaitForOthers(rendezvous)) => {
                // After a timeout, the test fails on the number of applied faults.
                let _ = tokio::time::timeout(Duration::from_secs(60), rendezvous.wait()).await;
                Content::complete(body)
            }
            Some(Fault::StopListening) => {
                let (stopped, is_stopped) = oneshot::channel();
                self.stop_listening.send(stopped).unwrap();
                is_stopped.await.unwrap();
                Content::complete(body)
            }
            _ => Content::complete(body),
        };
        // A response to HEAD keeps this header, because it has no body.
        if matches!(fault, Some(Fault::TruncateResponse | Fault::ExtraByte)) {
            headers.remove("content-length");
        }
        let mut answer = Response::new(content);
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(answer)
    }

    /// The response of a token server, or the challenge of a registry that requires a token.
    fn challenge(&self, client: Client, request: &Request<Incoming>) -> Option<Response<Content>> {
        let mut state = self.state.lock().unwrap();
        let other = state.realm?;
        let header = |name| {
            request
                .headers()
                .get(name)
                .map_or("", |it| it.to_str().unwrap())
        };
        let (host, authorization) = (header("host"), header("authorization"));
        if request.uri().path() == "/token" {
            if host.starts_with(&format!("{other}:")) {
                state.other_host.push(authorization.to_owned());
            }
            let token = Bytes::from_static(br#"{"token":"given"}"#);
            return Some(Response::new(Content::complete(token)));
        }
        if authorization == "Bearer given" {
            return None;
        }
        let realm = match (client, host.rsplit_once(':')?.1) {
            (Client::Ci, _) => host.to_owned(),
            (Client::Crane, port) => format!("{other}:{port}"),
        };
        let challenge = format!("Bearer realm=\"http://{realm}/token\",service=\"test\"");
        let answer = Response::builder()
            .status(401)
            .header("www-authenticate", challenge);
        Some(answer.body(Content::complete(Bytes::new())).unwrap())
    }

    /// Forwards the request to the real registry. The registry sees the proxy's host name, and so refers clients to the proxy.
    async fn forward(
        &self,
        request: Request<Incoming>,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Dropped> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Dropped)?.to_bytes();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = head.headers;
        headers.remove("transfer-encoding");
        headers.remove("content-length");
        let url = format!("http://{}{path}", self.address);
        let mut forwarded = self
            .client
            .request(head.method.clone(), url)
            .headers(headers);
        if head.method != Method::GET && head.method != Method::HEAD {
            forwarded = forwarded.body(body);
        }
        let answer = forwarded.send().await.map_err(|_| Dropped)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.map_err(|_| Dropped)?;
        Ok((status, headers, body))
    }
}

/// The body of a response. If `size` exceeds the length of `bytes`, the body is cut off.
struct Content {
    size: u64,
    bytes: Option<Bytes>,
}

impl Content {
    fn complete(bytes: Bytes) -> Self {
        Self {
            size: bytes.len() as u64,
            bytes: Some(bytes),
        }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Dropped;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Dropped>>> {
        Poll::Ready(match self.bytes.take() {
            Some(bytes) => {
                self.size -= bytes.len() as u64;
                Some(Ok(Frame::data(bytes)))
            }
            None if self.size > 0 => Some(Err(Dropped)),
            None => None,
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.size)
    }
}

fn stages(client: Client) -> impl Iterator<Item = Stage> {
    STAGES.into_iter().filter(move |stage| stage.0 == client)
}

const START_UPLOAD: Stage = (Client::Crane, "POST", "/blobs/uploads/");
const PUT_MANIFEST: Stage = (Client::Crane, "PUT", "/manifests/sha256:");
const PUT_TAG: Stage = (Client::Crane, "PUT", "/manifests/TAG");
const GET_TAG: Stage = (Client::Ci, "GET", "/manifests/TAG");

#[test]
fn ci_retries_after_a_lost_connection_at_any_stage() {
    let project = Project::new("dropping-ci");
    let proxy = Proxy::new();
    proxy.assert_publishes_despite(&project, &[]);
    // Three faults in a row for each request.
    let faults = [
        Fault::DropRequest,
        Fault::DropResponse,
        Fault::TruncateResponse,
    ];
    let of = |stage| faults.clone().map(|fault| apply_once(stage, fault));
    let rules: Vec<_> = stages(Client::Ci).flat_map(of).collect();
    proxy.assert_publishes_despite(&project, &rules);
}

#[test]
fn crane_retries_after_a_lost_connection_at_any_stage() {
    let project = Project::new("dropping-crane");
    let proxy = Proxy::new();
    proxy.assert_publishes_despite(&project, &[]);
    let rules: Vec<_> = stages(Client::Crane)
        .filter(|stage| *stage != PUT_TAG)
        .map(|stage| Rule {
            // crane requests both blobs at once, so the fault applies to the second one.
            after: usize::from(stage.1 == "HEAD" && stage.2 == "/blobs/"),
            ..apply_once(stage, Fault::StopListening)
        })
        .collect();
    // Half of the stages per run, so that enough attempts are left for unrelated failures on a busy machine.
    for first in [0, 1] {
        let rules: Vec<_> = rules.iter().skip(first).step_by(2).cloned().collect();
        proxy.assert_publishes_despite(&project, &rules);
    }
}

/// Asserts that a request is repeated, although crane does not notice the fault.
fn assert_request_is_repeated(name: &str, rule: Rule) {
    Proxy::new().assert_publishes_despite(&Project::new(name), &[rule]);
}

#[test]
fn retries_a_lost_upload() {
    assert_request_is_repeated(
        "dropping-upload",
        apply_once(START_UPLOAD, Fault::DropRequest),
    );
}

#[test]
fn retries_a_manifest_without_a_response() {
    assert_request_is_repeated(
        "dropping-manifest",
        apply_once(PUT_MANIFEST, Fault::DropResponse),
    );
}

#[test]
fn retries_a_tag_after_a_lost_request_or_response() {
    assert_request_is_repeated("dropping-tag", apply_once(PUT_TAG, Fault::DropRequest));
    assert_request_is_repeated(
        "dropping-tag-answer",
        apply_once(PUT_TAG, Fault::DropResponse),
    );
}

#[test]
fn retries_a_busy_registry_at_every_stage() {
    let all = STAGES.map(|stage| apply_once(stage, Fault::Respond(429)));
    Proxy::new().assert_publishes_despite(&Project::new("busy"), &all);
}

#[test]
fn retries_after_server_errors() {
    let project = Project::new("failing");
    let proxy = Proxy::new();
    for status in [500, 503] {
        let stages = [STAGES[1], GET_TAG, START_UPLOAD, PUT_MANIFEST, PUT_TAG];
        let rules = stages.map(|stage| apply_once(stage, Fault::Respond(status)));
        proxy.assert_publishes_despite(&project, &rules);
    }
}

#[test]
fn sets_no_tag_when_the_registry_becomes_unreachable() {
    assert_no_tag(
        "lost-look",
        GET_TAG,
        Fault::DropRequest,
        "cannot reach the registry",
        3..=9,
    );
}

#[test]
fn sets_no_tag_when_uploads_fail() {
    let fault = Fault::Respond(503);
    assert_no_tag(
        "lost-upload",
        START_UPLOAD,
        fault,
        "503 Service Unavailable",
        3..=9,
    );
}

#[test]
fn fails_when_the_tag_cannot_be_set() {
    let words = "took longer than 5 s to set a tag";
    // On a busy machine, an attempt may take its five seconds before this request.
    assert_no_tag("lost-tag", PUT_TAG, Fault::DropRequest, words, 1..=9);
}

/// Asserts that nothing is published, and that the message contains `words`, if this fault applies to all requests of this kind.
/// The number of these requests must be in the range `requests`.
fn assert_no_tag(
    name: &str,
    stage: Stage,
    fault: Fault,
    words: &str,
    requests: RangeInclusive<usize>,
) {
    let project = Project::new(name);
    let proxy = Proxy::new();
    // After this push, only the configuration of another commit's image is new, and its uploads are counted.
    proxy.assert_publishes_despite(&project, &[]);
    let publish = proxy.publish(&project, &[apply_always(stage, fault)]);
    let outcome = publish.assert_fails(3).clone();
    outcome.says(words).says(&proxy.address);
    let count = publish.count(stage);
    assert!(requests.contains(&count), "{stage:?}: {count}");
    assert!(!proxy.tags(&project).contains(&publish.tag));
}

#[test]
fn sets_no_tag_when_the_registry_denies_access() {
    let project = Project::new("refusing");
    let proxy = Proxy::new();
    proxy.assert_publishes_despite(&project, &[]);
    for status in [401, 403] {
        for stage in [START_UPLOAD, PUT_MANIFEST, PUT_TAG] {
            let publish = proxy.publish(&project, &[apply_always(stage, Fault::Respond(status))]);
            let outcome = publish.assert_fails(4).clone();
            outcome.says("refused the push").says(&status.to_string());
            assert_eq!(publish.count(stage), 1, "{stage:?}");
            assert!(!proxy.tags(&project).contains(&publish.tag));
        }
    }
}

#[test]
fn detects_a_registry_that_returns_different_content() {
    let project = Project::new("lying");
    let proxy = Proxy::new();
    for fault in [Fault::ExtraByte, Fault::WrongDigest] {
        let read_back = Rule {
            // The first two requests are those before the push and before the tag.
            after: 2,
            ..apply_always(GET_TAG, fault)
        };
        let publish = proxy.publish(&project, &[read_back]);
        let outcome = publish.assert_fails(1).clone();
        outcome.says("digest mismatch");
        assert_eq!(publish.count(PUT_TAG), 1);
    }
}

#[test]
fn sends_no_credential_to_another_token_server_during_the_push() {
    let project = Project::new("realm");
    let proxy = Proxy::new();
    let sha = project.git(&["rev-parse", "HEAD"]);
    proxy.state.lock().unwrap().realm = Some("REGISTRY");
    // This name resolves to the same machine in the engine's network, but is another host name.
    let run = project
        .ci(&["run", "--registry", &proxy.address])
        .push_to_main(&sha, "ghs_of.this-test_only")
        .run();
    let state = proxy.take_state();
    assert_eq!(state.other_host, Vec::<String>::new());
    // crane uses the token that this registry has issued.
    run.exits(0);
}
