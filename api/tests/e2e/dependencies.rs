//! Real Redis and PostgreSQL servers that are killed, stopped and restarted while the service runs, also behind PgBouncer.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
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

/// A secret that must not appear in any output.
const PASSWORD: &str = "s3cr3t-w0rd";

/// The timeout for a server to start and a check to notice, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A server on a free port, which is killed when dropped.
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

    /// A Redis that persists its data.
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

    /// A PostgreSQL with TLS and a self-signed certificate.
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
            let output = Command::new("id").args([kind, "postgres"]).output();
            let output = String::from_utf8(output.unwrap().stdout).unwrap();
            output.trim().parse().unwrap()
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
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "ssl=on"])
            .args(["-c", "max_connections=20"])
            // A killed server leaves shared memory in `/dev/shm` by default, and nobody to remove it.
            .args(["-c", "dynamic_shared_memory_type=mmap"]);
        for (key, value) in [
            ("unix_socket_directories", folder.path().to_path_buf()),
            ("ssl_cert_file", folder.path().join("server.crt")),
            ("ssl_key_file", folder.path().join("server.key")),
        ] {
            command.arg("-c").arg(format!("{key}={}", value.display()));
        }
        Self::start(command, port, folder)
    }

    /// PgBouncer in transaction mode, with a single connection to `postgres`.
    fn pgbouncer(postgres: &Self) -> Self {
        install(&[package("pgbouncer", "pgbouncer")]);
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let (file, users) = (folder.path().join("ini"), folder.path().join("users"));
        fs::write(&users, format!("\"app\" \"{PASSWORD}\"\n")).unwrap();
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = 1\n\
             server_login_retry = 1\n",
            postgres.port,
            users.display(),
        );
        fs::write(&file, settings).unwrap();
        let mut command = Command::new("setpriv");
        // Debian has it in a directory that only the path of root contains.
        command
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .args(["pgbouncer", "--quiet"])
            .arg(&file);
        for path in [folder.path(), &users, &file] {
            run(Command::new("chown").arg("postgres").arg(path));
        }
        Self::start(command, port, folder)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Sends `signal` to the process and its child processes.
    fn signal_all(&self, signal: Signal) {
        let id: i32 = self.child.id().try_into().unwrap();
        for process in procfs::process::all_processes().unwrap().flatten() {
            let is_child = process.stat().is_ok_and(|stat| stat.ppid == id);
            if process.pid == id || is_child {
                // A child process may have exited.
                let _ = kill(Pid::from_raw(process.pid), signal);
            }
        }
    }

    fn kill(&mut self) {
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

/// A program of PostgreSQL, run as the user `postgres`, because it refuses to run as root.
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

/// The running program, with an HTTP client.
struct Service {
    program: harness::Service,
    client: reqwest::Client,
}

impl Service {
    /// Starts the program with `configuration` and short intervals.
    fn start(configuration: &str) -> Self {
        const DEFAULTS: &str = "[defaults]\ninterval = \"200ms\"\njitter = \"20ms\"\ntimeout = \"200ms\"\nfailures = 2\n";
        // Fails if another test has already installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            program: harness::Service::start(&format!("{DEFAULTS}{configuration}"), &[]),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    /// Starts the program with the counter in `redis`, which is also checked.
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

    /// Requests `/hits`; returns the count, or the problem document.
    async fn hits(&self) -> Result<i64, Value> {
        let (status, kind, body) = self.get("/hits").await;
        if status == StatusCode::OK {
            assert_eq!(body["message"], "Redis is working");
            return Ok(body["hits"].as_i64().unwrap());
        }
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(kind, "application/problem+json");
        assert_eq!(body["status"], 503);
        assert_eq!(body["detail"], "Redis connection failed");
        Err(body)
    }

    /// Requests `/hits` until it succeeds. Asserts that each request so far, of which `lost` had no count, was counted at most once
    /// since the count was `before`. On a busy machine, a request may reach its time limit and be counted nevertheless.
    async fn next_hit(&self, before: i64, mut lost: i64) -> i64 {
        let count = eventually(async || {
            let hit = self.hits().await;
            lost += i64::from(hit.is_err());
            hit.ok()
        })
        .await;
        assert!((before + 1..=before + 1 + lost).contains(&count), "{count}");
        count
    }

    /// The reasons that hits were not counted, so far.
    fn lost_hits(&self) -> Vec<Value> {
        let log = self.program.log();
        let lost = |line: &&Value| line["message"] == "cannot count a hit";
        log.iter()
            .filter(lost)
            .map(|line| line["error"].clone())
            .collect()
    }

    /// Waits until the check has this state, and returns its status. Asserts that `/health` succeeds all the time.
    async fn state(&self, check: &str, state: &str) -> Value {
        eventually(async || {
            let (status, _, _) = self.get("/health").await;
            assert_eq!(status, StatusCode::OK);
            let (_, _, status) = self.get(&format!("/api/v1/checks/{check}")).await;
            (status["state"] == state).then_some(status)
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
    timeout(TIMEOUT, look).await.expect("in time")
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

/// Probes `target` once.
async fn probe_once(clients: &Clients, target: Target) -> Result<(), String> {
    let answer = target.probe(clients).run().await;
    answer.map_err(|error| error.0)
}

fn redis_target(url: &str) -> Target {
    Target::Redis(redis::Target {
        url: SecretUrl::new(url.parse().unwrap()),
    })
}

#[actix_web::test]
async fn lost_redis_affects_only_the_counter_and_recovers() {
    let mut redis = Server::redis();
    let service = Service::with_redis(&redis);
    service.state("redis", "up").await;
    let first = service.next_hit(0, 0).await;
    let second = service.next_hit(first, 0).await;

    redis.kill();
    for _ in 0..5 {
        service.hits().await.unwrap_err();
    }
    let down = service.state("redis", "down").await;
    let error = down["last"]["error"].as_str().unwrap();
    assert!(error.contains("Connection refused"), "{error}");

    redis.restart();
    let up = service.state("redis", "up").await;
    assert_eq!(up["last"]["error"], Value::Null);
    let third = service.next_hit(second, 0).await;
    service.next_hit(third, 0).await;
}

#[actix_web::test]
async fn first_hit_after_a_quick_restart_succeeds() {
    let mut redis = Server::redis();
    let service = Service::with_redis(&redis);
    let clients = Clients::new(None).unwrap();
    let target = redis_target(&redis_url(&redis));
    let mut before = service.next_hit(0, 0).await;
    eventually(async || {
        redis.kill();
        redis.restart();
        // Without requests in between, the counter must still replace its lost connection.
        eventually(async || probe_once(&clients, target.clone()).await.ok()).await;
        let earlier = service.lost_hits().len();
        let Ok(hit) = service.hits().await else {
            // Only the time limit, on a busy machine, is a reason to try again.
            eventually(async || (service.lost_hits().len() > earlier).then_some(())).await;
            assert_eq!(service.lost_hits()[earlier], "no response in time");
            before = service.next_hit(before, 1).await;
            return None;
        };
        assert_eq!(hit, before + 1);
        Some(())
    })
    .await;
}

#[actix_web::test]
async fn responds_while_redis_hangs_and_counts_afterwards() {
    let redis = Server::redis();
    let service = Service::with_redis(&redis);
    service.state("redis", "up").await;
    let before = service.next_hit(0, 0).await;

    redis.signal(Signal::SIGSTOP);
    let mut lost = 0;
    for _ in 0..3 {
        // All of them have responses, although Redis sends none. A test of `hits` measures after which time.
        let hits = futures_util::future::join_all((0..8).map(|_| service.hits())).await;
        assert!(hits.iter().all(Result::is_err), "{hits:?}");
        lost += i64::try_from(hits.len()).unwrap();
    }
    let down = service.state("redis", "down").await;
    assert_eq!(down["last"]["error"], "no response within 200ms");

    redis.signal(Signal::SIGCONT);
    service.state("redis", "up").await;
    // Commands that arrived before their timeout are counted later, but none twice.
    let after = service.next_hit(before, lost).await;
    service.next_hit(after, 0).await;
}

#[actix_web::test]
async fn title_tells_that_no_redis_is_configured() {
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
async fn reports_rejected_redis_logins_without_the_password() {
    let redis = Server::redis();
    let clients = Clients::new(None).unwrap();
    let place = format!("127.0.0.1:{}", redis.port);
    let target = redis_target(&redis_url(&redis));
    eventually(async || probe_once(&clients, target.clone()).await.ok()).await;
    for (login, database, message) in [
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
        assert_eq!(probe_once(&clients, target).await, Err(message.into()));
    }
}

fn postgres_url(postgres: &Server, user: &str, more: &str) -> String {
    format!("postgresql://{user}@localhost:{}/{more}", postgres.port)
}

/// The URL with the login and the database that work.
fn valid_postgres_url(server: &Server) -> String {
    postgres_url(server, &format!("app:{PASSWORD}"), "postgres")
}

#[actix_web::test]
async fn postgresql_check_goes_down_and_recovers() {
    let mut postgres = Server::postgres();
    let url = valid_postgres_url(&postgres);
    let service = Service::start(&format!(
        "[[checks]]\nname = \"database\"\npostgres = \"{url}\"\ninterval = \"500ms\"\ntimeout = \"500ms\"\n"
    ));
    service.state("database", "up").await;

    postgres.kill();
    let down = service.state("database", "down").await;
    let error = down["last"]["error"].as_str().unwrap();
    assert!(error.contains("Connection refused"), "{error}");

    // PostgreSQL refuses to start until its old child processes have exited.
    eventually(async || {
        postgres.restart();
        sleep(Duration::from_millis(500)).await;
        postgres.child.try_wait().unwrap().is_none().then_some(())
    })
    .await;
    service.state("database", "up").await;
}

/// Logs in to `postgres` as its superuser.
async fn administrator(postgres: &Server) -> tokio_postgres::Client {
    let url = valid_postgres_url(postgres);
    let login = async || {
        let login = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
        login.ok()
    };
    let (client, connection) = eventually(login).await;
    actix_web::rt::spawn(connection);
    client
}

#[actix_web::test]
async fn postgresql_probe_succeeds_after_its_session_has_ended() {
    let postgres = Server::postgres();
    let pgbouncer = Server::pgbouncer(&postgres);
    let admin = administrator(&postgres).await;
    // Waits up to ten seconds for each session but its own to end, and returns for each whether it has.
    let end_sessions = async || -> Vec<bool> {
        let ended = admin.query(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
            &[],
        );
        ended.await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let clients = Clients::new(None).unwrap();
    for server in [&postgres, &pgbouncer] {
        let url = valid_postgres_url(server);
        let url = SecretUrl::new(url.parse().unwrap());
        let mut probe = Target::Postgres(postgres::Target { url }).probe(&clients);
        end_sessions().await;
        eventually(async || probe.run().await.ok()).await;
        for _ in 0..3 {
            assert_eq!(end_sessions().await, [true]);
            assert_eq!(probe.run().await, Ok(()));
        }
    }
}

#[actix_web::test]
async fn postgresql_behind_pgbouncer_is_checked_like_a_direct_one() {
    let mut postgres = Server::postgres();
    let pgbouncer = Server::pgbouncer(&postgres);
    let check = |name: &str, server: &Server| {
        let url = valid_postgres_url(server);
        format!(
            "[[checks]]\nname = \"{name}\"\npostgres = \"{url}\"\ninterval = \"1s\"\ntimeout = \"1s\"\n"
        )
    };
    let checks = check("direct", &postgres) + &check("pooled", &pgbouncer);
    let service = Service::start(&checks);
    let both = async |state| {
        service.state("direct", state).await;
        service.state("pooled", state).await;
    };
    both("up").await;

    // The sessions of the checks end between two probes, so that others can take their connections.
    let admin = administrator(&postgres).await;
    for statement in [
        "ALTER SYSTEM SET idle_session_timeout = '200ms'",
        "SELECT pg_reload_conf()",
    ] {
        admin.execute(statement, &[]).await.unwrap();
    }

    // All connections are in use, also those that the checks had.
    let login = postgres_url(
        &postgres,
        &format!("app:{PASSWORD}"),
        "postgres?options=-c%20idle_session_timeout=0",
    );
    let mut others = Vec::new();
    eventually(async || {
        if let Ok((client, connection)) =
            tokio_postgres::connect(&login, tokio_postgres::NoTls).await
        {
            others.push((client, actix_web::rt::spawn(connection)));
        }
        let (_, _, direct) = service.get("/api/v1/checks/direct").await;
        let error = direct["last"]["error"].as_str()?.to_owned();
        (direct["state"] == "down" && error.contains("too many clients already")).then_some(())
    })
    .await;
    drop(others);
    both("up").await;

    postgres.signal_all(Signal::SIGSTOP);
    both("down").await;
    postgres.signal_all(Signal::SIGCONT);
    both("up").await;

    // A fast shutdown.
    postgres.signal(Signal::SIGINT);
    postgres.child.wait().unwrap();
    both("down").await;
    postgres.restart();
    both("up").await;
}

#[actix_web::test]
async fn reports_postgresql_errors_without_the_password() {
    let postgres = Server::postgres();
    let authority: PathBuf = postgres.folder.path().join("server.crt");
    let untrusting = Clients::new(None).unwrap();
    let probe_as = async |clients: &Clients, user: &str, more: &str| {
        let url = postgres_url(&postgres, user, more).parse().unwrap();
        let url = SecretUrl::new(url);
        probe_once(clients, Target::Postgres(postgres::Target { url })).await
    };
    let login = format!("app:{PASSWORD}");
    eventually(async || probe_as(&untrusting, &login, "postgres").await.ok()).await;
    for (user, database, message) in [
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
        assert_eq!(
            probe_as(&untrusting, user, database).await,
            Err(message.into())
        );
    }
    let error = probe_as(&untrusting, "app", "postgres").await.unwrap_err();
    assert!(error.contains("password missing"), "{error}");

    // A self-signed certificate is enough for encryption, but fails verification.
    for mode in ["disable", "allow", "prefer", "require"] {
        let database = format!("postgres?sslmode={mode}");
        assert_eq!(probe_as(&untrusting, &login, &database).await, Ok(()));
    }
    let trusting = Clients::new(Some(&authority)).unwrap();
    for mode in ["verify-ca", "verify-full"] {
        let database = format!("postgres?sslmode={mode}");
        let error = probe_as(&untrusting, &login, &database).await.unwrap_err();
        assert!(error.contains("UnknownIssuer"), "{error}");
        assert_eq!(probe_as(&trusting, &login, &database).await, Ok(()));
    }
    let file = authority.display();
    let port = postgres.port;
    for parameters in [
        format!("sslmode=verify-full&sslrootcert={file}"),
        format!("sslmode=verify-ca&sslrootcert={file}&host=127.0.0.1"),
        format!("sslmode=verify-full&sslrootcert={file}&hostaddr=127.0.0.1"),
        "target_session_attrs=read-write&connect_timeout=9&application_name=status".into(),
        "target_session_attrs=primary&keepalives_idle=9&tcp_user_timeout=9000".into(),
        "target_session_attrs=prefer-standby&options=-c%20geqo=off&load_balance_hosts=random"
            .into(),
        format!("host=127.0.0.1,localhost&port=1,{port}"),
        "channel_binding=require&sslmode=require".into(),
    ] {
        let database = format!("postgres?{parameters}");
        assert_eq!(
            probe_as(&untrusting, &login, &database).await,
            Ok(()),
            "{parameters}"
        );
    }
    for (parameters, error) in [
        (
            "target_session_attrs=read-only",
            "the session is not read-only",
        ),
        (
            "target_session_attrs=standby",
            "the server is not in hot standby mode",
        ),
        ("channel_binding=require&sslmode=disable", "channel binding"),
    ] {
        let database = format!("postgres?{parameters}");
        let message = probe_as(&untrusting, &login, &database).await.unwrap_err();
        assert!(message.contains(error), "{parameters}: {message}");
    }
    let database =
        "postgres?options=-c%20default_transaction_read_only=on&target_session_attrs=read-only";
    assert_eq!(probe_as(&untrusting, &login, database).await, Ok(()));
}
