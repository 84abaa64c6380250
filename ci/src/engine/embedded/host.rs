//! Starts, finds and stops the embedded engine on this Linux host.

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::inventory;
use super::module::{ENGINE, PACKAGES};
use super::network::{Network, require_program};
use super::process::{End, Process};
use super::state::{Cache, DownReport, Freed, Pruned, Running, Status};
use crate::engine::disk::{self, DiskLimit};
use crate::engine::session;
use common::failure::{Failure, OrFail};
use common::pins;
use common::progress::Progress;
use common::provision::{self, ALTERNATIVES, Consent, create_private};

/// How long a running engine may take to answer before it counts as hung.
const HUNG: Duration = Duration::from_secs(20);
/// How long the start may take.
const START: Duration = Duration::from_secs(60);
/// How long the engine may take to exit after SIGTERM: it prunes its cache and writes the index to the disk. Without the index, the
/// next start discards the whole cache. Two engines that stopped at once took up to 24 s.
const STOP: Duration = Duration::from_secs(90);
/// How long the engine may take to prune its cache.
const PRUNE: Duration = Duration::from_secs(600);
/// Queries the size of the engine's cache.
const CACHE_QUERY: &str = "{engine{localCache{entrySet{entryCount diskSpaceBytes}}}}";
/// Part of the engine's log message when it discards its cache, because it had no time to write the index.
const CACHE_LOST: &str = "persistence store marked unclean";
/// The longest path of a Unix socket, in bytes.
const MAX_SOCKET_PATH: usize = 107;
/// The environment variables that the engine inherits; tokens are not among them.
const INHERITED: [&str; 9] = [
    "HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];
/// The directories in which the distributions' packages install the CNI plugins.
const CNI_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Starts the embedded engine, unless it runs already. Builds and installs missing programs first. The engine outlives this
/// process, so that the next run starts faster.
///
/// # Errors
/// When this user is not root, a program cannot be installed or built, or the engine does not answer in time.
pub(crate) async fn up(consent: Consent<'_>, progress: &dyn Progress) -> Result<Running, Failure> {
    let engine = Engine::here()?;
    let limit = DiskLimit::from_env()?;
    if engine.answers().await {
        if limit != DiskLimit::Default
            && fs::read_to_string(engine.settings()).ok() != limit.engine_json(&engine.folder).ok()
        {
            progress.notice(&format!(
                "the embedded engine already runs with another disk limit; {} takes effect after `ci engine down`",
                disk::VARIABLE
            ));
        }
        return engine.running(false);
    }
    if !provision::is_root() {
        return Err(Failure::environment(
            "the embedded engine needs root: it creates namespaces and networks",
        )
        .hint(format!("Run ci as root (sudo). {ALTERNATIVES}")));
    }
    let mut packages = PACKAGES.to_vec();
    packages.extend(provision::packages_for_go(&ENGINE).await);
    provision::install_packages(&packages, consent, progress).await?;
    provision::build_go_tools(&ENGINE, progress).await?;

    create_private(&engine.folder)?;
    let lock = engine.lock(progress).await?;
    // Another process may have started the engine while this one waited for the lock.
    if engine.wait_for_answer(progress).await {
        return engine.running(false);
    }
    if let Err(failure) = engine.start(&lock, progress).await {
        if engine.programs_are_intact().await {
            return Err(failure);
        }
        progress.notice("the engine's programs are damaged: rebuilding them");
        let bin = engine.bin();
        provision::discard(&bin).or_environment(format!("cannot remove {}", bin.display()))?;
        provision::build_go_tools(&ENGINE, progress).await?;
        engine.start(&lock, progress).await?;
    }
    engine.running(true)
}

/// Stops all embedded engines of this user, including those of other `ci` versions, and removes their links, firewall rules and
/// control groups from the host. Their caches stay.
///
/// # Errors
/// When there are engines and this user is not root, or the host refuses a removal.
pub(crate) async fn down(progress: &dyn Progress) -> Result<DownReport, Failure> {
    let mut report = DownReport::default();
    for engine in Engine::all()? {
        if !provision::is_root() {
            return Err(
                Failure::environment("stopping the embedded engine needs root")
                    .hint("Run `sudo ci engine down`."),
            );
        }
        let _lock = engine.lock(progress).await?;
        match engine.end(STOP).await {
            End::Absent => {}
            End::Stopped => report.stopped += 1,
            End::Killed => {
                report.stopped += 1;
                report.killed += 1;
            }
        }
        report.removed.extend(engine.clean().await?);
    }
    Ok(report)
}

/// Examines the embedded engine of this `ci` version.
///
/// # Errors
/// When no cache directory can be determined.
pub(crate) async fn status() -> Result<Status, Failure> {
    let engine = Engine::here()?;
    let root = provision::cache_root()?;
    let process = engine.process().filter(Process::is_alive);
    let healthy = engine.answers().await;
    let cache = match healthy {
        true => engine.cache().await.ok(),
        false => None,
    };
    let limit_bytes = DiskLimit::from_env()?.bytes(&root)?;
    let kept = tokio::task::spawn_blocking(move || inventory::all(&root))
        .await
        .unwrap_or_default();
    Ok(Status {
        version: version(),
        pid: process.as_ref().map(|process| process.pid),
        healthy,
        runner_host: healthy.then(|| engine.runner_host()),
        uptime: process.and_then(|process| process.uptime()),
        limit_bytes,
        cache,
        kept,
        built: ENGINE.is_built(),
        log: engine.log(),
        folder: engine.folder,
    })
}

/// Whether the embedded engine of this `ci` version runs and answers.
pub(crate) async fn is_running() -> bool {
    match Engine::here() {
        Ok(engine) => engine.answers().await,
        Err(_) => false,
    }
}

/// Removes everything that can be rebuilt: the engine's cache, stopped engines of other versions, programs and stand-ins that
/// newer ones have replaced, and the remains of interrupted builds. Anything in use stays.
///
/// # Errors
/// When the engine or the host refuses a removal.
pub(crate) async fn prune(progress: &dyn Progress) -> Result<Pruned, Failure> {
    let root = provision::cache_root()?;
    let here = Engine::here()?.folder;
    let mut pruned = Pruned::default();
    for engine in Engine::all_folders()? {
        let name = inventory::name(&root, &engine.folder);
        let _lock = engine.lock(progress).await?;
        let alive = engine.process().is_some_and(|process| process.is_alive());
        let freed = if engine.folder == here {
            if engine.answers().await {
                engine.prune_cache().await?
            } else if alive {
                let line = format!("{name}: does not answer; stop it with `ci engine down`");
                pruned.in_use.push(line);
                continue;
            } else {
                engine.clean().await?;
                inventory::discard(engine.state()).await?
            }
        } else if alive || inventory::remove_unused(engine.bin()).await?.is_none() {
            pruned.in_use.push(format!("{name}: in use"));
            continue;
        } else {
            engine.clean().await?;
            inventory::discard(engine.folder.clone()).await?
        };
        pruned.freed.push(Freed { name, bytes: freed });
    }
    inventory::prune(root, &mut pruned).await?;
    pruned.freed.retain(|kept| kept.bytes > 0);
    Ok(pruned)
}

fn version() -> String {
    format!("v{}", pins::DAGGER)
}

/// An engine's directory, which holds its programs, its state, and the files of a running engine.
struct Engine {
    folder: PathBuf,
}

impl Engine {
    /// The engine of this version and build.
    fn here() -> Result<Self, Failure> {
        let bin = ENGINE.bin()?;
        let folder = bin.parent().unwrap_or(&bin).to_owned();
        let engine = Self { folder };
        let socket = engine.socket();
        if socket.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
            return Err(Failure::environment(format!(
                "the path of the engine's socket has more than {MAX_SOCKET_PATH} bytes: {}",
                socket.display()
            ))
            .hint("Set LAB_CI_CACHE_DIR to a directory with a shorter path."));
        }
        Ok(engine)
    }

    /// Engines of all versions, started or not.
    fn all_folders() -> Result<Vec<Self>, Failure> {
        let root = provision::cache_root()?;
        let entries =
            fs::read_dir(&root).or_environment(format!("cannot read {}", root.display()))?;
        Ok(entries
            .flatten()
            .filter(|entry| inventory::is_engine(&entry.file_name().to_string_lossy()))
            .map(|entry| Self {
                folder: entry.path(),
            })
            .collect())
    }

    /// Engines of all versions that have been started.
    fn all() -> Result<Vec<Self>, Failure> {
        let mut engines = Self::all_folders()?;
        engines.retain(|engine| engine.run().is_dir());
        Ok(engines)
    }

    fn bin(&self) -> PathBuf {
        self.folder.join("bin")
    }

    fn run(&self) -> PathBuf {
        self.folder.join("run")
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The engine's settings, as of its start.
    fn settings(&self) -> PathBuf {
        self.run().join("engine.json")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("engine.log")
    }

    fn socket(&self) -> PathBuf {
        self.run().join("engine.sock")
    }

    fn runner_host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    async fn lock(&self, progress: &dyn Progress) -> Result<File, Failure> {
        provision::lock(
            &self.folder.join("engine.lock"),
            progress,
            "the embedded engine",
        )
        .await
    }

    fn process(&self) -> Option<Process> {
        Process::read_record(&self.run().join("process"))
    }

    fn network_record(&self) -> PathBuf {
        self.run().join("network.json")
    }

    fn network(&self) -> Option<Network> {
        serde_json::from_slice(&fs::read(self.network_record()).ok()?).ok()
    }

    fn running(&self, started_now: bool) -> Result<Running, Failure> {
        self.write_resolv_conf()?;
        Ok(Running {
            runner_host: self.runner_host(),
            cli: self.bin().join("dagger"),
            version: version(),
            started_now,
        })
    }

    /// Whether the engine's process is alive and answers.
    async fn answers(&self) -> bool {
        self.process().is_some_and(|process| process.is_alive())
            && session::answers(&self.socket()).await
    }

    /// Waits up to [`HUNG`] for the answer of an engine whose process is alive.
    async fn wait_for_answer(&self, progress: &dyn Progress) -> bool {
        let begun = Instant::now();
        let mut notified = false;
        loop {
            if self.answers().await {
                return true;
            }
            let alive = self.process().is_some_and(|process| process.is_alive());
            if !alive || begun.elapsed() > HUNG {
                return false;
            }
            if !notified {
                progress.notice(&format!(
                    "the embedded engine does not answer yet; waiting up to {} s",
                    HUNG.as_secs()
                ));
                notified = true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn start(&self, lock: &File, progress: &dyn Progress) -> Result<(), Failure> {
        let begun = Instant::now();
        let what = format!("starting the embedded engine {} (a few seconds)", version());
        progress.begin(&what);
        // A process that is still alive has had its time to answer.
        if self.end(Duration::from_secs(2)).await == End::Killed {
            progress.notice("killed an embedded engine that did not answer");
        }
        self.clean().await?;
        let mut child = self.spawn(lock, progress).await?;
        let failed = |message: String| {
            Failure::environment(message)
                .output(self.end_of_log())
                .hint(format!(
                    "See the engine's log in {}. {ALTERNATIVES}",
                    self.log().display()
                ))
        };
        loop {
            if self.answers().await {
                break;
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(failed(format!(
                    "the embedded engine exited during startup ({status})"
                )));
            }
            if begun.elapsed() > START {
                self.end(Duration::from_secs(2)).await;
                let limit = START.as_secs();
                return Err(failed(format!(
                    "the embedded engine did not answer within {limit} s"
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(self.socket(), owner_only)
            .or_environment("cannot restrict access to the engine's socket")?;
        let answer = self.query("{version}", START).await.map_err(|failure| {
            failed("the embedded engine does not answer queries".to_owned()).because(failure)
        })?;
        if answer["version"] != version() {
            return Err(failed(format!(
                "the embedded engine has an unexpected version: {answer}"
            )));
        }
        progress.done(&what, begun.elapsed());
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        if log.contains(CACHE_LOST) {
            progress.notice(
                "the embedded engine was killed or its machine crashed, so its cache is lost",
            );
        }
        Ok(())
    }

    /// Sends a query with the CLI that the run will use.
    async fn query(
        &self,
        document: &str,
        patience: Duration,
    ) -> Result<serde_json::Value, Failure> {
        let cannot = "cannot write a query";
        let mut file = tempfile::tempfile().or_environment(cannot)?;
        file.write_all(document.as_bytes()).or_environment(cannot)?;
        file.rewind().or_environment(cannot)?;
        let mut query = provision::command(self.bin().join("dagger"));
        query
            .args(["query", "--silent"])
            .stdin(file)
            .current_dir(self.run())
            .env("_EXPERIMENTAL_DAGGER_RUNNER_HOST", self.runner_host())
            .env("DO_NOT_TRACK", "1")
            .env("DAGGER_NO_NAG", "1");
        let answer = timeout(patience, provision::output(query, "dagger query"))
            .await
            .or_environment("dagger query timed out")??;
        serde_json::from_str(&answer)
            .or_environment("dagger query did not return JSON")
            .map_err(|failure| failure.output(answer))
    }

    async fn cache(&self) -> Result<Cache, Failure> {
        let answer = self.query(CACHE_QUERY, START).await?;
        let set = &answer["engine"]["localCache"]["entrySet"];
        let number = |name: &str| set[name].as_u64().unwrap_or_default();
        Ok(Cache {
            entries: number("entryCount"),
            bytes: number("diskSpaceBytes"),
        })
    }

    /// Lets a running engine remove unused entries from its cache; returns the number of bytes freed.
    async fn prune_cache(&self) -> Result<u64, Failure> {
        let before = self.cache().await?;
        self.query("{engine{localCache{prune}}}", PRUNE).await?;
        Ok(before.bytes.saturating_sub(self.cache().await?.bytes))
    }

    /// Whether the engine and the CLI run and have the expected version.
    async fn programs_are_intact(&self) -> bool {
        for (name, argument) in [("engine", "--version"), ("dagger", "version")] {
            let mut command = provision::command(self.bin().join(name));
            command.arg(argument);
            let output = timeout(START, provision::output(command, name)).await;
            if !matches!(output, Ok(Ok(text)) if text.contains(&version())) {
                return false;
            }
        }
        true
    }

    async fn spawn(
        &self,
        lock: &File,
        progress: &dyn Progress,
    ) -> Result<std::process::Child, Failure> {
        let cannot = "cannot prepare the embedded engine";
        let cni = CNI_FOLDERS
            .into_iter()
            .find(|folder| Path::new(folder).join("bridge").exists())
            .ok_or_else(|| Failure::environment("no CNI plugins are installed"))?;
        let run = self.run();
        let temporary = self.folder.join("tmp");
        for folder in [&run, &self.state(), &temporary] {
            create_private(folder)?;
        }
        let settings = DiskLimit::from_env()?.engine_json(&self.folder)?;
        fs::write(self.settings(), settings).or_environment(cannot)?;
        fs::write(run.join("start.sh"), include_str!("start.sh")).or_environment(cannot)?;
        self.write_resolv_conf()?;
        // Keeps the log of the previous start for a failure analysis.
        let _ = fs::rename(self.log(), self.folder.join("engine.log.old"));
        let log = File::create(self.log()).or_environment(cannot)?;
        let log_stderr = log.try_clone().or_environment(cannot)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let network = Network::create(&self.folder, &self.network_record(), progress).await?;
        // setsid, so that the engine outlives this process and its terminal.
        std::process::Command::new(require_program("setsid")?)
            .arg("sh")
            .arg(run.join("start.sh"))
            .current_dir("/")
            .env_clear()
            .envs(
                INHERITED
                    .iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .env(
                "PATH",
                format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"),
            )
            .env("TMPDIR", temporary)
            .env("DO_NOT_TRACK", "1")
            .env("ENGINE_BIN", self.bin())
            .env("ENGINE_RUN", &run)
            .env("ENGINE_STATE", self.state())
            .env("ENGINE_NETWORK", &network.name)
            .env("ENGINE_CIDR", network.cidr())
            .env("RUNC", require_program("runc")?)
            .env("CNI_BIN", cni)
            .env("DNSMASQ", require_program("dnsmasq")?)
            .env("IPTABLES", require_program("iptables")?)
            // start.sh holds the lock until it has recorded its process, even if this process is killed before that.
            .stdin(lock.try_clone().or_environment(cannot)?)
            .stdout(log)
            .stderr(log_stderr)
            .spawn()
            .or_environment("cannot start the embedded engine")
    }

    /// Copies the host's current name servers to the file that the engine uses.
    fn write_resolv_conf(&self) -> Result<(), Failure> {
        let file = self.run().join("resolv.conf");
        let now = fs::read("/etc/resolv.conf").unwrap_or_default();
        if fs::read(&file).is_ok_and(|then| then == now) {
            return Ok(());
        }
        // In place, because the engine has this file mounted.
        fs::write(&file, now).or_environment(format!("cannot write {}", file.display()))
    }

    async fn end(&self, patience: Duration) -> End {
        match self.process() {
            Some(process) => process.end(patience).await,
            None => End::Absent,
        }
    }

    /// The IDs of the containers for which a network namespace exists or was being created.
    fn containers(&self) -> Vec<String> {
        let folder = self.state().join("net/cni");
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()
    }

    /// Removes the remains of a dead engine, except its cache; returns one line for each.
    async fn clean(&self) -> Result<Vec<String>, Failure> {
        let mut removed = Vec::new();
        if let Some(network) = self.network() {
            removed.extend(network.remove(&self.containers()).await?);
            removed.extend(network.remove_cgroups().await?);
        }
        if self.socket().exists() {
            removed.push(format!("socket {}", self.socket().display()));
        }
        // The next start fails on old network namespaces and mounts. The run directory goes last, because an interrupted `down`
        // is recognized by it.
        for folder in [
            self.state().join("net"),
            self.folder.join("tmp"),
            self.run(),
        ] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .or_environment(format!("cannot remove {}", folder.display()));
                }
                _ => {}
            }
        }
        Ok(removed)
    }

    /// The last lines of the engine's log, without those of its name server.
    fn end_of_log(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("dnsmasq"))
            .collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn cleaning_up_twice_succeeds() {
        let folder = tempfile::tempdir().expect("a folder");
        let engine = Engine {
            folder: folder.path().to_owned(),
        };
        assert_eq!(engine.clean().await.expect("clean"), Vec::<String>::new());
        assert_eq!(engine.end(STOP).await, End::Absent);
    }
}
