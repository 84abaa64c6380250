//! Real Redis and PostgreSQL, killed, stopped and restarted under the running service.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use api::{
    checks::{Clients, Target, postgres, redis},
    secret::SecretUrl,
};
use common::provision::{Package, Probe};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::harness::{self, free_port, install, package, run};

/// What nobody may be told.
const PASSWORD: &str = "s3cr3t-w0rd";

/// How long a server takes to start, and a check to notice, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// In which `/hits` has to answer, whatever Redis does.
const HITS_LIMIT: Duration = Duration::from_millis(250);

/// A server on a port of its own; killed where a test ends before it did.
pub struct Server {
    command: Command,
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Server {
    fn start(mut command: Command, port: u16, folder: TempDir) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().unwrap();
        Self {
            command,
            child,
            port,
            folder,
        }
    }

    /// A Redis that keeps what it was told, on its disk.
    pub fn redis() -> Self {
        install(&[package("redis-server", "redis-server")]);
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--requirepass", PASSWORD])
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .arg("--dir")
            .arg(folder.path());
        Self::start(command, port, folder)
    }

    /// A PostgreSQL with TLS, whose certificate nobody vouches for.
    fn postgres() -> Self {
        install(&[Package {
            name: "postgresql",
            purpose: "tests the service",
            probe: Probe::File(&[
                "/usr/lib/postgresql/14/bin/initdb",
                "/usr/lib/postgresql/15/bin/initdb",
                "/usr/lib/postgresql/16/bin/initdb",
                "/usr/lib/postgresql/17/bin/initdb",
            ]),
        }]);
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let certificate = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        let files = [
            ("password", PASSWORD.to_owned()),
            ("server.crt", certificate.cert.pem()),
            ("server.key", certificate.signing_key.serialize_pem()),
        ];
        let owner = |kind| -> u32 {
            let said = Command::new("id").args([kind, "postgres"]).output();
            let said = String::from_utf8(said.unwrap().stdout).unwrap();
            said.trim().parse().unwrap()
        };
        let (user, group) = (owner("-u"), owner("-g"));
        let own = |path: &Path| chown(path, Some(user), Some(group)).unwrap();
        own(folder.path());
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            run(Command::new("chmod").arg("600").arg(&path));
            own(&path);
        }
        let data = folder.path().join("data");
        run(as_postgres("initdb")
            .args(["--username", "app", "--auth", "scram-sha-256"])
            .args(["--no-sync", "--pwfile"])
            .arg(folder.path().join("password"))
            .arg(&data)
            .stdout(Stdio::null()));
        let mut command = as_postgres("postgres");
        command
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "ssl=on"]);
        for (key, value) in [
            ("unix_socket_directories", folder.path().to_path_buf()),
            ("ssl_cert_file", folder.path().join("server.crt")),
            ("ssl_key_file", folder.path().join("server.key")),
        ] {
            command.arg("-c").arg(format!("{key}={}", value.display()));
        }
        Self::start(command, port, folder)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn die(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = self.command.spawn().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of PostgreSQL's, as the user that it demands.
fn as_postgres(program: &str) -> Command {
    let folder = fs::read_dir("/usr/lib/postgresql")
        .unwrap()
        .map(|version| version.unwrap().path().join("bin"))
        .find(|folder| folder.join(program).exists())
        .unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(folder.join(program));
    command
}

/// The running program, asked over HTTP.
struct Service {
    program: harness::Service,
    client: reqwest::Client,
}

impl Service {
    /// The program with checks that ask often, and with those of `configuration`.
    fn start(configuration: &str) -> Self {
        const OFTEN: &str = "[defaults]\ninterval = \"200ms\"\njitter = \"20ms\"\ntimeout = \"200ms\"\nfailures = 2\n";
        // Another test may have named it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            program: harness::Service::start(&format!("{OFTEN}{configuration}"), &[]),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    /// One whose counter is in `redis`, which is checked, too.
    fn with_redis(redis: &Server) -> Self {
        Self::start(&format!("[redis]\nurl = \"{}\"\n", redis_url(redis)))
    }

    async fn get(&self, path: &str) -> (StatusCode, String, Value) {
        let response = self.client.get(self.program.url(path)).send();
        let response = response.await.unwrap();
        let kind = response.headers()[CONTENT_TYPE].to_str().unwrap().into();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(!text.contains(PASSWORD), "{text}");
        (status, kind, serde_json::from_str(&text).unwrap())
    }

    /// The count.
    async fn hits(&self) -> Result<i64, Value> {
        let start = Instant::now();
        let (status, kind, said) = self.get("/hits").await;
        assert!(start.elapsed() < HITS_LIMIT, "took {:?}", start.elapsed());
        if status == StatusCode::OK {
            assert_eq!(said["message"], "Redis is working");
            return Ok(said["hits"].as_i64().unwrap());
        }
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(kind, "application/problem+json");
        assert_eq!(said["status"], 503);
        assert_eq!(said["detail"], "Redis connection failed");
        Err(said)
    }

    /// Asks until there is a count.
    async fn next_hit(&self) -> i64 {
        eventually(async || self.hits().await.ok()).await
    }

    /// Waits for the state of the check, and gives what is known of it; the service is well all the time.
    async fn state(&self, check: &str, state: &str) -> Value {
        eventually(async || {
            let (status, _, _) = self.get("/health").await;
            assert_eq!(status, StatusCode::OK);
            let (_, _, said) = self.get(&format!("/api/v1/checks/{check}")).await;
            (said["state"] == state).then_some(said)
        })
        .await
    }
}

async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, look).await.expect("in time")
}

impl Drop for Service {
    fn drop(&mut self) {
        let log = format!("{:?}", self.program.log());
        assert!(thread::panicking() || !log.contains(PASSWORD), "{log}");
    }
}

pub fn redis_url(redis: &Server) -> String {
    format!("redis://:{PASSWORD}@127.0.0.1:{}", redis.port)
}

/// Asks as a check does.
async fn ask(clients: &Clients, target: Target) -> Result<(), String> {
    let answer = target.probe(clients).ask().await;
    answer.map_err(|trouble| trouble.0)
}

fn redis_target(url: &str) -> Target {
    Target::Redis(redis::Target {
        url: SecretUrl::new(url.parse().unwrap()),
    })
}

#[actix_web::test]
async fn redis_that_dies_costs_its_counter_alone_and_comes_back_by_itself() {
    let mut redis = Server::redis();
    let service = Service::with_redis(&redis);
    service.state("redis", "up").await;
    let before = service.next_hit().await;
    assert_eq!(service.hits().await, Ok(before + 1));

    redis.die();
    for _ in 0..5 {
        service.hits().await.unwrap_err();
    }
    let down = service.state("redis", "down").await;
    let error = down["last"]["error"].as_str().unwrap();
    assert!(error.contains("Connection refused"), "{error}");

    redis.restart();
    let up = service.state("redis", "up").await;
    assert_eq!(up["last"]["error"], Value::Null);
    assert_eq!(service.next_hit().await, before + 2);
    assert_eq!(service.hits().await, Ok(before + 3));
}

#[actix_web::test]
async fn the_first_hit_after_a_quick_restart_counts() {
    let mut redis = Server::redis();
    let service = Service::with_redis(&redis);
    let before = service.next_hit().await;
    redis.die();
    redis.restart();
    // Nobody asked meanwhile; the counter does not insist on its lost connection.
    let clients = Clients::new(None).unwrap();
    let target = redis_target(&redis_url(&redis));
    eventually(async || ask(&clients, target.clone()).await.ok()).await;
    assert_eq!(service.hits().await, Ok(before + 1));
}

#[actix_web::test]
async fn redis_that_hangs_is_answered_for_in_time_and_counted_on_afterwards() {
    let redis = Server::redis();
    let service = Service::with_redis(&redis);
    service.state("redis", "up").await;
    let before = service.next_hit().await;

    redis.signal(Signal::SIGSTOP);
    let mut lost = 0;
    for _ in 0..3 {
        // Those who ask at the same time wait together, not one after the other.
        let hits = futures_util::future::join_all((0..8).map(|_| service.hits())).await;
        assert!(hits.iter().all(Result::is_err), "{hits:?}");
        lost += i64::try_from(hits.len()).unwrap();
    }
    let down = service.state("redis", "down").await;
    assert_eq!(down["last"]["error"], "no answer within 200ms");

    redis.signal(Signal::SIGCONT);
    service.state("redis", "up").await;
    let after = service.next_hit().await;
    // What had arrived before the time was up is counted once it is read, and nothing twice.
    assert!((before + 1..=before + 1 + lost).contains(&after), "{after}");
    assert_eq!(service.hits().await, Ok(after + 1));
}

#[actix_web::test]
async fn without_redis_there_is_no_counter_and_the_title_says_why() {
    let service = Service::start("");
    assert_eq!(
        service.hits().await.unwrap_err(),
        json!({
            "status": 503,
            "title": "No Redis is configured",
            "detail": "Redis connection failed",
        })
    );
}

#[actix_web::test]
async fn a_redis_that_refuses_the_password_is_down_and_the_password_stays_secret() {
    let redis = Server::redis();
    let clients = Clients::new(None).unwrap();
    let place = format!("127.0.0.1:{}", redis.port);
    let target = redis_target(&redis_url(&redis));
    eventually(async || ask(&clients, target.clone()).await.ok()).await;
    for (login, database, said) in [
        (":s3cr3t-other@", "", "the user or the password is wrong"),
        (
            "user:s3cr3t-other@",
            "",
            "the user or the password is wrong",
        ),
        ("", "", "NOAUTH Authentication required."),
        (":s3cr3t-w0rd@", "99", "ERR DB index is out of range"),
    ] {
        let target = redis_target(&format!("redis://{login}{place}/{database}"));
        assert_eq!(ask(&clients, target).await, Err(said.into()));
    }
}

fn postgres_url(postgres: &Server, user: &str, more: &str) -> String {
    format!("postgresql://{user}@localhost:{}/{more}", postgres.port)
}

#[actix_web::test]
async fn postgresql_that_dies_is_down_and_up_again_once_it_is_back() {
    let mut postgres = Server::postgres();
    let url = postgres_url(&postgres, &format!("app:{PASSWORD}"), "postgres");
    let service = Service::start(&format!(
        "[[checks]]\nname = \"database\"\npostgres = \"{url}\"\ninterval = \"500ms\"\ntimeout = \"500ms\"\n"
    ));
    service.state("database", "up").await;

    postgres.die();
    let down = service.state("database", "down").await;
    let error = down["last"]["error"].as_str().unwrap();
    assert!(error.contains("Connection refused"), "{error}");

    // Its children need a moment to notice; until then it refuses to start.
    eventually(async || {
        postgres.restart();
        sleep(Duration::from_millis(500)).await;
        postgres.child.try_wait().unwrap().is_none().then_some(())
    })
    .await;
    service.state("database", "up").await;
}

#[actix_web::test]
async fn what_postgresql_refuses_is_said_without_the_password() {
    let postgres = Server::postgres();
    let authority: PathBuf = postgres.folder.path().join("server.crt");
    let strangers = Clients::new(None).unwrap();
    let ask_as = async |clients: &Clients, user: &str, more: &str| {
        let url = postgres_url(&postgres, user, more).parse().unwrap();
        let url = SecretUrl::new(url);
        ask(clients, Target::Postgres(postgres::Target { url })).await
    };
    let login = format!("app:{PASSWORD}");
    eventually(async || ask_as(&strangers, &login, "postgres").await.ok()).await;
    for (user, database, said) in [
        (
            "app:s3cr3t-other",
            "postgres",
            "password authentication failed for user \"app\"",
        ),
        (
            "nobody:s3cr3t-w0rd",
            "postgres",
            "password authentication failed for user \"nobody\"",
        ),
        (&login, "other", "database \"other\" does not exist"),
    ] {
        assert_eq!(ask_as(&strangers, user, database).await, Err(said.into()));
    }
    let trouble = ask_as(&strangers, "app", "postgres").await.unwrap_err();
    assert!(trouble.contains("password missing"), "{trouble}");

    // Nobody vouches for the certificate: that is enough to encrypt, and not to trust.
    for mode in ["disable", "prefer"] {
        let database = format!("postgres?sslmode={mode}");
        assert_eq!(ask_as(&strangers, &login, &database).await, Ok(()));
    }
    let friends = Clients::new(Some(&authority)).unwrap();
    for mode in ["require", "verify-full"] {
        let database = format!("postgres?sslmode={mode}");
        let trouble = ask_as(&strangers, &login, &database).await.unwrap_err();
        assert!(trouble.contains("UnknownIssuer"), "{trouble}");
        assert_eq!(ask_as(&friends, &login, &database).await, Ok(()));
    }
}
