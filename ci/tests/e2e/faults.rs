//! A registry that fails at each stage of a push, refuses, or lies: the real one behind a proxy that does it.

use std::net::SocketAddr;
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
use crate::sources::short;

/// What a request meets.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The registry sees it so much later.
    Late(Duration),
    /// The answer comes when as many wait for theirs as meet here.
    Meet(Arc<Barrier>),
    /// The connection ends before the registry sees it.
    Lost,
    /// The registry does what it is asked, and the connection ends before its answer.
    NoAnswer,
    /// The connection ends within the answer's body.
    CutAnswer,
    /// It is answered, and for a moment nobody listens any more: what follows finds no connection.
    ///
    /// This is how crane sees one end. Dagger's tunnel to this machine's loopback does not tell it when a server ends one that
    /// there is: it waits until it is stopped.
    Away,
    /// Another answer than the registry's, which never sees it.
    Answer(u16),
    /// The answer's body has one byte more.
    OtherBytes,
    /// The answer says another digest.
    OtherDigest,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// `ci` itself.
    Ci,
    /// crane, in the engine.
    Crane,
}

/// A kind of request: who asks, how, and what the path has in it.
pub type Stage = (Who, &'static str, &'static str);

/// Everything that is asked of a registry before, while and after an image and its papers are pushed.
const STAGES: [Stage; 17] = [
    (Who::Ci, "GET", "/v2/$"),
    (Who::Ci, "POST", "/blobs/uploads/"),
    (Who::Ci, "GET", "/manifests/TAG"),
    (Who::Ci, "GET", "/referrers/"),
    (Who::Ci, "GET", "/manifests/sha256-"),
    (Who::Crane, "GET", "/v2/$"),
    (Who::Crane, "HEAD", "/manifests/sha256:"),
    (Who::Crane, "HEAD", "/blobs/"),
    (Who::Crane, "POST", "/blobs/uploads/"),
    (Who::Crane, "PATCH", "/blobs/uploads/"),
    (Who::Crane, "PUT", "/blobs/uploads/"),
    (Who::Crane, "PUT", "/manifests/sha256:"),
    (Who::Crane, "GET", "/referrers/"),
    (Who::Crane, "GET", "/manifests/sha256-"),
    (Who::Crane, "PUT", "/manifests/sha256-"),
    (Who::Crane, "GET", "/manifests/sha256:"),
    (Who::Crane, "PUT", "/manifests/TAG"),
];

const FOR_EVER: usize = usize::MAX;

/// A fault, where it strikes, and how often it does.
#[derive(Clone, Debug)]
pub struct Rule {
    stage: Stage,
    fault: Fault,
    /// So many requests get through before it strikes.
    after: usize,
    times: usize,
    struck: usize,
}

/// This strikes once, at the first request.
pub fn once(stage: Stage, fault: Fault) -> Rule {
    Rule {
        stage,
        fault,
        after: 0,
        times: 1,
        struck: 0,
    }
}

/// Two publishers wait for each other here, once.
pub fn meeting(stage: Stage) -> Rule {
    Rule {
        times: 2,
        ..once(stage, Fault::Meet(Arc::new(Barrier::new(2))))
    }
}

fn always(stage: Stage, fault: Fault) -> Rule {
    Rule {
        times: FOR_EVER,
        ..once(stage, fault)
    }
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    /// The tag of the image that is pushed.
    tag: String,
    seen: Vec<(Who, String)>,
    /// It wants a token, and sends crane for it to another host, of this name.
    realm: Option<&'static str>,
    /// What that other host has got to see.
    elsewhere: Vec<String>,
}

impl State {
    fn matches(&self, (who, method, part): Stage, request: &(Who, String)) -> bool {
        let part = part.replace("TAG", &self.tag);
        let (begun, path) = request.1.split_once(' ').unwrap();
        let there = match part.strip_suffix('$') {
            Some(whole) => path == whole,
            None => path.contains(&part),
        };
        request.0 == who && begun == method && there
    }

    /// What this request meets.
    fn meets(&mut self, request: (Who, String)) -> Option<Fault> {
        let mut found = None;
        for index in 0..self.rules.len() {
            if found.is_some() || !self.matches(self.rules[index].stage, &request) {
                continue;
            }
            let rule = &mut self.rules[index];
            if rule.after > 0 {
                rule.after -= 1;
            } else if rule.struck < rule.times {
                rule.struck += 1;
                found = Some(rule.fault.clone());
            }
        }
        self.seen.push(request);
        found
    }
}

/// The real registry, as it is seen through a bad line.
pub struct Proxy {
    pub registry: Registry,
    state: Arc<Mutex<State>>,
    pub address: String,
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    pub fn new() -> Self {
        // It may be set already: the tests of this process share it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = Registry::open();
        let state = Arc::new(Mutex::new(State::default()));
        let (away, mut goes) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        let upstream = Upstream {
            client: reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .unwrap(),
            address: registry.address(),
            state: Arc::clone(&state),
            away,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        // Keeps the port while nobody listens.
        let kept = {
            let _inside = runtime.enter();
            socket(([127, 0, 0, 1], 0).into())
        };
        let address = kept.local_addr().unwrap();
        runtime.spawn(async move {
            let _kept = kept;
            let mut listener = listen(address);
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        let upstream = upstream.clone();
                        tokio::spawn(async move {
                            let answer = service_fn(|request| upstream.clone().answer(request));
                            let mut server = hyper::server::conn::http1::Builder::new();
                            // One request each: what comes after a fault has to connect anew.
                            let server = server.keep_alive(false);
                            // A fault is an error: then the connection ends.
                            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
                        });
                    }
                    Some(gone) = goes.recv() => {
                        drop(listener);
                        let _ = gone.send(());
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

    /// Runs `ci publish` on a new commit, whose requests meet these faults.
    fn publish(&self, project: &Project, rules: &[Rule]) -> Publish {
        project.commit("another image");
        let tag = short(project);
        self.rule(&tag, rules);
        let outcome = project.ci(&["publish", "--registry", &self.address]).run();
        let state = self.take();
        Publish {
            outcome,
            tag,
            state,
        }
    }

    /// From now on requests meet these faults; `tag` is that of the image that is pushed.
    pub fn rule(&self, tag: &str, rules: &[Rule]) {
        *self.state.lock().unwrap() = State {
            rules: rules.to_vec(),
            tag: tag.to_owned(),
            ..State::default()
        };
    }

    /// How often a fault has struck since then; now there are none.
    pub fn struck(&self) -> usize {
        self.take().rules.iter().map(|rule| rule.struck).sum()
    }

    fn take(&self) -> State {
        std::mem::take(&mut *self.state.lock().unwrap())
    }

    /// A run meets these faults, all of them, and passes: its image is there with its papers, and nothing else has come.
    #[track_caller]
    fn passes_in_spite_of(&self, project: &Project, rules: &[Rule]) {
        let before = self.tags(project);
        let publish = self.publish(project, rules);
        publish.outcome.clone().exits(0);
        for rule in &publish.state.rules {
            assert_eq!(
                rule.struck, rule.times,
                "{rule:?} of {:#?}",
                publish.state.seen
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
        let papers = list["manifests"].as_array().unwrap();
        assert_eq!(papers.len(), 2, "{list:#}");
        for paper in papers {
            let digest = paper["digest"].as_str().unwrap();
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

/// A run, and what its requests met.
struct Publish {
    outcome: Outcome,
    tag: String,
    state: State,
}

impl Publish {
    /// How often a kind of request came.
    fn count(&self, stage: Stage) -> usize {
        let seen = self.state.seen.iter();
        seen.filter(|request| self.state.matches(stage, request))
            .count()
    }

    /// It ended with this code, and nothing is said to be published.
    #[track_caller]
    fn fails(&self, code: i32) -> &Outcome {
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
    away: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is dropped")
    }
}

impl std::error::Error for Dropped {}

impl Upstream {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Content>, Dropped> {
        let agent = request.headers().get("user-agent");
        let agent = agent.map_or("", |agent| agent.to_str().unwrap());
        let who = if agent.starts_with("infrastructure-lab-ci") {
            Who::Ci
        } else {
            Who::Crane
        };
        if let Some(answer) = self.challenge(who, &request) {
            return Ok(answer);
        }
        let line = format!("{} {}", request.method(), request.uri().path());
        let fault = self.state.lock().unwrap().meets((who, line));
        match &fault {
            Some(Fault::Lost) => {
                let _ = request.into_body().collect().await;
                return Err(Dropped);
            }
            Some(Fault::Late(time)) => tokio::time::sleep(*time).await,
            Some(Fault::Answer(status)) => {
                let _ = request.into_body().collect().await;
                let mut answer = Response::new(Content::whole(Bytes::new()));
                *answer.status_mut() = StatusCode::from_u16(*status).unwrap();
                return Ok(answer);
            }
            _ => {}
        }
        let (status, mut headers, body) = self.forward(request).await?;
        let content = match &fault {
            Some(Fault::NoAnswer) => return Err(Dropped),
            Some(Fault::CutAnswer) => Content {
                size: body.len() as u64 + 1,
                bytes: Some(body),
            },
            Some(Fault::OtherBytes) => Content::whole([&body[..], b"\n"].concat().into()),
            Some(Fault::OtherDigest) => {
                let other = digest::sha256(b"another");
                let other = HeaderValue::from_str(&other).unwrap();
                headers.insert("docker-content-digest", other);
                Content::whole(body)
            }
            Some(Fault::Meet(meeting)) => {
                // Where the other one never comes, the test tells.
                let _ = tokio::time::timeout(Duration::from_secs(60), meeting.wait()).await;
                Content::whole(body)
            }
            Some(Fault::Away) => {
                let (gone, is_gone) = oneshot::channel();
                self.away.send(gone).unwrap();
                is_gone.await.unwrap();
                Content::whole(body)
            }
            _ => Content::whole(body),
        };
        // An answer to HEAD has the length of what it does not have.
        if matches!(fault, Some(Fault::CutAnswer | Fault::OtherBytes)) {
            headers.remove("content-length");
        }
        let mut answer = Response::new(content);
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(answer)
    }

    /// What a registry with tokens says to who has none, and what the giver of tokens says.
    fn challenge(&self, who: Who, request: &Request<Incoming>) -> Option<Response<Content>> {
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
                state.elsewhere.push(authorization.to_owned());
            }
            let token = Bytes::from_static(br#"{"token":"given"}"#);
            return Some(Response::new(Content::whole(token)));
        }
        if authorization == "Bearer given" {
            return None;
        }
        let realm = match (who, host.rsplit_once(':')?.1) {
            (Who::Ci, _) => host.to_owned(),
            (Who::Crane, port) => format!("{other}:{port}"),
        };
        let challenge = format!("Bearer realm=\"http://{realm}/token\",service=\"test\"");
        let answer = Response::builder()
            .status(401)
            .header("www-authenticate", challenge);
        Some(answer.body(Content::whole(Bytes::new())).unwrap())
    }

    /// What the real registry says. It knows itself by the name that the client has for this proxy, and so points to it.
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
        let mut asked = self
            .client
            .request(head.method.clone(), url)
            .headers(headers);
        if head.method != Method::GET && head.method != Method::HEAD {
            asked = asked.body(body);
        }
        let answer = asked.send().await.map_err(|_| Dropped)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.map_err(|_| Dropped)?;
        Ok((status, headers, body))
    }
}

/// The body of an answer: as long as it says, or cut off.
struct Content {
    size: u64,
    bytes: Option<Bytes>,
}

impl Content {
    fn whole(bytes: Bytes) -> Self {
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

/// Those of `who`.
fn stages(who: Who) -> impl Iterator<Item = Stage> {
    STAGES.into_iter().filter(move |stage| stage.0 == who)
}

const UPLOAD: Stage = (Who::Crane, "POST", "/blobs/uploads/");
const MANIFEST: Stage = (Who::Crane, "PUT", "/manifests/sha256:");
const TAG: Stage = (Who::Crane, "PUT", "/manifests/TAG");
const LOOK: Stage = (Who::Ci, "GET", "/manifests/TAG");

#[test]
fn a_connection_of_cis_own_that_ends_at_any_stage_is_made_again() {
    let project = Project::new("dropping-ci");
    let proxy = Proxy::new();
    proxy.passes_in_spite_of(&project, &[]);
    // Three in a row for each question.
    let faults = [Fault::Lost, Fault::NoAnswer, Fault::CutAnswer];
    let of = |stage| faults.clone().map(|fault| once(stage, fault));
    let rules: Vec<_> = stages(Who::Ci).flat_map(of).collect();
    proxy.passes_in_spite_of(&project, &rules);
}

#[test]
fn a_connection_of_cranes_that_ends_at_any_stage_is_made_again() {
    let project = Project::new("dropping-crane");
    let proxy = Proxy::new();
    proxy.passes_in_spite_of(&project, &[]);
    let rules: Vec<_> = stages(Who::Crane)
        .filter(|stage| *stage != TAG)
        .map(|stage| Rule {
            // crane asks for both blobs at once, and nothing else runs beside.
            after: usize::from(stage.1 == "HEAD" && stage.2 == "/blobs/"),
            ..once(stage, Fault::Away)
        })
        .collect();
    // Every second one in one run, so that what else befalls a busy machine does not use up its tries.
    for first in [0, 1] {
        let rules: Vec<_> = rules.iter().skip(first).step_by(2).cloned().collect();
        proxy.passes_in_spite_of(&project, &rules);
    }
}

/// What crane does not hear of is given up in time.
fn is_given_up_in_time(name: &str, rule: Rule) {
    Proxy::new().passes_in_spite_of(&Project::new(name), &[rule]);
}

#[test]
fn an_upload_that_is_lost_is_made_again() {
    is_given_up_in_time("dropping-upload", once(UPLOAD, Fault::Lost));
}

#[test]
fn a_manifest_that_is_not_answered_is_pushed_again() {
    is_given_up_in_time("dropping-manifest", once(MANIFEST, Fault::NoAnswer));
}

#[test]
fn a_tag_that_is_lost_or_set_without_an_answer_is_set_once() {
    is_given_up_in_time("dropping-tag", once(TAG, Fault::Lost));
    is_given_up_in_time("dropping-tag-answer", once(TAG, Fault::NoAnswer));
}

#[test]
fn a_registry_that_is_busy_once_at_every_stage_is_asked_again() {
    let all = STAGES.map(|stage| once(stage, Fault::Answer(429)));
    Proxy::new().passes_in_spite_of(&Project::new("busy"), &all);
}

#[test]
fn a_registry_that_fails_once_at_every_stage_is_asked_again() {
    let project = Project::new("failing");
    let proxy = Proxy::new();
    for status in [500, 503] {
        let stages = [STAGES[1], LOOK, UPLOAD, MANIFEST, TAG];
        let rules = stages.map(|stage| once(stage, Fault::Answer(status)));
        proxy.passes_in_spite_of(&project, &rules);
    }
}

#[test]
fn a_registry_that_cannot_be_reached_any_more_gets_no_tag() {
    gets_no_tag("lost-look", LOOK, Fault::Lost, "cannot be reached");
}

#[test]
fn a_registry_that_takes_no_upload_gets_no_tag() {
    let fault = Fault::Answer(503);
    gets_no_tag("lost-upload", UPLOAD, fault, "503 Service Unavailable");
}

#[test]
fn a_registry_that_takes_no_tag_gets_none() {
    let words = "took longer than 5 s to set a tag";
    gets_no_tag("lost-tag", TAG, Fault::Lost, words);
}

/// Where requests of this kind always meet this fault, nothing is published, and these words say why.
fn gets_no_tag(name: &str, stage: Stage, fault: Fault, words: &str) {
    let project = Project::new(name);
    let proxy = Proxy::new();
    // The layer is there: of another commit's image only the configuration is new, whose uploads are counted.
    proxy.passes_in_spite_of(&project, &[]);
    let publish = proxy.publish(&project, &[always(stage, fault)]);
    let outcome = publish.fails(3).clone();
    outcome.says(words).says(&proxy.address);
    assert!((3..=9).contains(&publish.count(stage)), "{stage:?}");
    assert!(!proxy.tags(&project).contains(&publish.tag));
}

#[test]
fn a_registry_that_refuses_gets_no_tag() {
    let project = Project::new("refusing");
    let proxy = Proxy::new();
    proxy.passes_in_spite_of(&project, &[]);
    for status in [401, 403] {
        for stage in [UPLOAD, MANIFEST, TAG] {
            let publish = proxy.publish(&project, &[always(stage, Fault::Answer(status))]);
            let outcome = publish.fails(4).clone();
            outcome.says("refused the push").says(&status.to_string());
            assert_eq!(publish.count(stage), 1, "{stage:?}");
            assert!(!proxy.tags(&project).contains(&publish.tag));
        }
    }
}

#[test]
fn a_registry_that_lies_about_what_was_pushed_is_caught() {
    let project = Project::new("lying");
    let proxy = Proxy::new();
    for fault in [Fault::OtherBytes, Fault::OtherDigest] {
        let read_back = Rule {
            // It is asked before the push and before the tag, too.
            after: 2,
            ..always(LOOK, fault)
        };
        let publish = proxy.publish(&project, &[read_back]);
        let outcome = publish.fails(1).clone();
        outcome.says("hands out other bytes");
        assert_eq!(publish.count(TAG), 1);
    }
}

#[test]
fn the_credential_does_not_go_where_the_registry_points_to_after_the_preflight() {
    let project = Project::new("realm");
    let proxy = Proxy::new();
    let sha = project.git(&["rev-parse", "HEAD"]);
    proxy.state.lock().unwrap().realm = Some("REGISTRY");
    // The same machine in the engine's network, and another host by its name.
    let run = project
        .ci(&["run", "--registry", &proxy.address])
        .push_to_main(&sha, "ghs_of.this-test_only")
        .run();
    let state = proxy.take();
    assert_eq!(state.elsewhere, Vec::<String>::new());
    // With what this one gave for the credential.
    run.exits(0);
}
