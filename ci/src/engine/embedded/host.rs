//! Starts, finds and ends the embedded engine on this Linux host.

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::inventory;
use super::module::{ENGINE, PACKAGES};
use super::network::Network;
use super::process::{End, Process};
use super::state::{Cache, DownReport, Kept, Pruned, Running, Status};
use crate::engine::session;
use common::failure::{Failure, OrFail};
use common::pins;
use common::progress::Progress;
use common::provision::{self, CHOICES, Consent, create_private};

/// After this an engine that is alive and does not answer is taken for hung.
const HUNG: Duration = Duration::from_secs(20);
/// As long as a start may take.
const START: Duration = Duration::from_secs(60);
/// As long as a polite end may take: it writes its state to the disk.
const STOP: Duration = Duration::from_secs(20);
/// As long as the engine may take to remove its cache.
const PRUNE: Duration = Duration::from_secs(600);
/// Asks an engine for its cache.
const CACHE: &str = "{engine{localCache{entrySet{entryCount diskSpaceBytes}}}}";
/// A Unix socket's path has 107 bytes at most.
const SOCKET_PATH: usize = 107;
/// All that the engine inherits of the environment; tokens are not among it.
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
/// Where the distributions' packages put the network plugins.
const CNI_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Starts the embedded engine, or finds the one that is running; builds and installs what it needs first. It outlives
/// this process, so that the next run is warm.
///
/// # Errors
/// When this user is not root, something it needs cannot be had, or it does not answer in time.
pub async fn up(consent: Consent<'_>, narrator: &dyn Progress) -> Result<Running, Failure> {
    let engine = Engine::here()?;
    if engine.answers().await {
        return engine.running(false);
    }
    if !provision::is_root() {
        return Err(Failure::environment(
            "the embedded engine needs root: it makes namespaces and networks",
        )
        .hint(format!("Run ci as root (sudo). {CHOICES}")));
    }
    let mut packages = PACKAGES.to_vec();
    packages.extend(provision::packages_for_go(&ENGINE).await);
    provision::packages(&packages, consent, narrator).await?;
    provision::go_tools(&ENGINE, narrator).await?;

    create_private(&engine.folder)?;
    let lock = engine.lock(narrator).await?;
    // Another process may have started it while this one waited.
    if engine.answers_in_the_end(narrator).await {
        return engine.running(false);
    }
    if let Err(failure) = engine.start(&lock, narrator).await {
        if engine.programs_are_whole().await {
            return Err(failure);
        }
        narrator.notice("the engine's programs are damaged: building them anew");
        let bin = engine.bin();
        provision::discard(&bin).or_environment(format!("cannot remove {}", bin.display()))?;
        provision::go_tools(&ENGINE, narrator).await?;
        engine.start(&lock, narrator).await?;
    }
    engine.running(true)
}

/// Ends every embedded engine of this user, whatever `ci` version started it, and takes away what they left on the
/// host. Their caches stay.
///
/// # Errors
/// When this user is not root and there is something to end, or the host refuses.
pub async fn down(narrator: &dyn Progress) -> Result<DownReport, Failure> {
    let mut report = DownReport::default();
    for engine in Engine::all()? {
        if !provision::is_root() {
            return Err(
                Failure::environment("ending the embedded engine needs root")
                    .hint("Run: sudo ci engine down"),
            );
        }
        let _lock = engine.lock(narrator).await?;
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

/// What there is of the embedded engine that this `ci` uses.
///
/// # Errors
/// When there is no cache directory.
pub async fn status() -> Result<Status, Failure> {
    let engine = Engine::here()?;
    let root = provision::cache_root()?;
    let process = engine.process().filter(Process::is_alive);
    let healthy = engine.answers().await;
    let cache = match healthy {
        true => engine.cache().await.ok(),
        false => None,
    };
    let state = engine.state();
    let (state_bytes, kept) =
        tokio::task::spawn_blocking(move || (provision::size_of(&state), inventory::all(&root)))
            .await
            .unwrap_or_default();
    Ok(Status {
        version: version(),
        pid: process.as_ref().map(|process| process.pid),
        healthy,
        runner_host: healthy.then(|| engine.runner_host()),
        uptime: process.and_then(|process| process.uptime()),
        state_bytes,
        cache,
        kept,
        built: ENGINE.is_built(),
        log: engine.log(),
        folder: engine.folder,
    })
}

/// Frees what can be made again: the engine's cache, engines of other versions that do not run, programs and stand-ins
/// that newer ones have replaced, and what interrupted work has left. What is in use stays.
///
/// # Errors
/// When the engine or the host refuses.
pub async fn prune(narrator: &dyn Progress) -> Result<Pruned, Failure> {
    let root = provision::cache_root()?;
    let here = Engine::here()?.folder;
    let mut pruned = Pruned::default();
    for engine in Engine::all_folders()? {
        let name = inventory::name(&root, &engine.folder);
        let _lock = engine.lock(narrator).await?;
        let alive = engine.process().is_some_and(|process| process.is_alive());
        let freed = if engine.folder == here {
            if engine.answers().await {
                engine.prune_cache().await?
            } else if alive {
                let line = format!("{name}: it does not answer; `ci engine down` ends it");
                pruned.in_use.push(line);
                continue;
            } else {
                engine.clean().await?;
                inventory::discard(engine.state()).await?
            }
        } else if alive || inventory::remove_unused(engine.bin()).await?.is_none() {
            pruned.in_use.push(format!("{name}: it is in use"));
            continue;
        } else {
            engine.clean().await?;
            inventory::discard(engine.folder.clone()).await?
        };
        pruned.freed.push(Kept { name, bytes: freed });
    }
    inventory::prune(root, &mut pruned).await?;
    pruned.freed.retain(|kept| kept.bytes > 0);
    Ok(pruned)
}

fn version() -> String {
    format!("v{}", pins::DAGGER)
}

/// One engine's folder: the programs, the state, and what belongs to a running one.
struct Engine {
    folder: PathBuf,
}

impl Engine {
    /// The one of this very version and build.
    fn here() -> Result<Self, Failure> {
        let bin = ENGINE.bin()?;
        let folder = bin.parent().unwrap_or(&bin).to_owned();
        let engine = Self { folder };
        let socket = engine.socket();
        if socket.as_os_str().as_bytes().len() > SOCKET_PATH {
            return Err(Failure::environment(format!(
                "the path of the engine's socket is longer than a socket's path may be: {}",
                socket.display()
            ))
            .hint("Name a cache directory with a shorter path in LAB_CI_CACHE_DIR."));
        }
        Ok(engine)
    }

    /// Those of all versions that are or were here.
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

    /// Those of all versions that have been started here.
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

    fn log(&self) -> PathBuf {
        self.folder.join("engine.log")
    }

    fn socket(&self) -> PathBuf {
        self.run().join("engine.sock")
    }

    fn runner_host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    async fn lock(&self, narrator: &dyn Progress) -> Result<File, Failure> {
        provision::lock(
            &self.folder.join("engine.lock"),
            narrator,
            "the embedded engine",
        )
        .await
    }

    fn process(&self) -> Option<Process> {
        Process::noted(&self.run().join("process"))
    }

    fn network(&self) -> Option<Network> {
        serde_json::from_slice(&fs::read(self.run().join("network.json")).ok()?).ok()
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

    /// Whether the engine is alive and answers now.
    async fn answers(&self) -> bool {
        self.process().is_some_and(|process| process.is_alive())
            && session::answers(&self.socket()).await
    }

    /// As [`Self::answers`], with patience for one that is alive and busy.
    async fn answers_in_the_end(&self, narrator: &dyn Progress) -> bool {
        let begun = Instant::now();
        let mut told = false;
        loop {
            if self.answers().await {
                return true;
            }
            let alive = self.process().is_some_and(|process| process.is_alive());
            if !alive || begun.elapsed() > HUNG {
                return false;
            }
            if !told {
                narrator.notice(&format!(
                    "the embedded engine does not answer; giving it {} s",
                    HUNG.as_secs()
                ));
                told = true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn start(&self, lock: &File, narrator: &dyn Progress) -> Result<(), Failure> {
        let begun = Instant::now();
        let what = format!("starting the embedded engine {} (a few seconds)", version());
        narrator.begin(&what);
        // Whoever is alive here has had its time to answer.
        if self.end(Duration::from_secs(2)).await == End::Killed {
            narrator.notice("an embedded engine that did not answer was killed");
        }
        self.clean().await?;
        let mut child = self.spawn(lock)?;
        let failed = |message: String| {
            Failure::environment(message)
                .output(self.end_of_log())
                .hint(format!(
                    "All that the engine said is in {}. {CHOICES}",
                    self.log().display()
                ))
        };
        loop {
            if self.answers().await {
                break;
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(failed(format!(
                    "the embedded engine ended while it started ({status})"
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
        let owners = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(self.socket(), owners)
            .or_environment("cannot keep the engine's socket from others")?;
        let answer = self.query("{version}", START).await.map_err(|failure| {
            failed("the embedded engine does not answer a query".to_owned()).because(failure)
        })?;
        if answer["version"] != version() {
            return Err(failed(format!("the embedded engine says: {answer}")));
        }
        narrator.done(&what, begun.elapsed());
        Ok(())
    }

    /// The answer to a query, by the client that everything else will use.
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
            .or_environment("dagger query took too long")??;
        serde_json::from_str(&answer)
            .or_environment("dagger query did not answer in JSON")
            .map_err(|failure| failure.output(answer))
    }

    async fn cache(&self) -> Result<Cache, Failure> {
        let answer = self.query(CACHE, START).await?;
        let set = &answer["engine"]["localCache"]["entrySet"];
        let number = |name: &str| set[name].as_u64().unwrap_or_default();
        Ok(Cache {
            entries: number("entryCount"),
            bytes: number("diskSpaceBytes"),
        })
    }

    /// Lets a running engine remove of its cache what nobody uses; returns the bytes that this has freed.
    async fn prune_cache(&self) -> Result<u64, Failure> {
        let before = self.cache().await?;
        self.query("{engine{localCache{prune}}}", PRUNE).await?;
        Ok(before.bytes.saturating_sub(self.cache().await?.bytes))
    }

    /// Whether those programs can run that the engine cannot be started without.
    async fn programs_are_whole(&self) -> bool {
        for (name, argument) in [("engine", "--version"), ("dagger", "version")] {
            let mut question = provision::command(self.bin().join(name));
            question.arg(argument);
            let answer = timeout(START, provision::output(question, name)).await;
            if !matches!(answer, Ok(Ok(text)) if text.contains(&version())) {
                return false;
            }
        }
        true
    }

    fn spawn(&self, lock: &File) -> Result<std::process::Child, Failure> {
        let cannot = "cannot prepare the embedded engine";
        let run = self.run();
        let temporary = self.folder.join("tmp");
        for folder in [&run, &self.state(), &temporary] {
            create_private(folder)?;
        }
        let network = Network::choose(&self.folder);
        let settings = serde_json::to_vec(&network).or_environment(cannot)?;
        fs::write(run.join("network.json"), settings).or_environment(cannot)?;
        fs::write(run.join("engine.json"), include_str!("engine.json")).or_environment(cannot)?;
        fs::write(run.join("start.sh"), include_str!("start.sh")).or_environment(cannot)?;
        self.write_resolv_conf()?;
        Network::note_forwarding()?;
        // The one before tells what went wrong, when something did.
        let _ = fs::rename(self.log(), self.folder.join("engine.log.old"));
        let log = File::create(self.log()).or_environment(cannot)?;
        let log_too = log.try_clone().or_environment(cannot)?;
        let program = |name: &str| {
            provision::find_program(name)
                .ok_or_else(|| Failure::environment(format!("there is no {name} on this machine")))
        };
        let cni = CNI_FOLDERS
            .into_iter()
            .find(|folder| Path::new(folder).join("bridge").exists())
            .ok_or_else(|| Failure::environment("there are no CNI plugins on this machine"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        // A session of its own, so that it outlives this process and its terminal.
        std::process::Command::new(program("setsid")?)
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
            .env("RUNC", program("runc")?)
            .env("CNI_BIN", cni)
            .env("DNSMASQ", program("dnsmasq")?)
            // Held until it has noted which process it is, even if this one is killed before that.
            .stdin(lock.try_clone().or_environment(cannot)?)
            .stdout(log)
            .stderr(log_too)
            .spawn()
            .or_environment("cannot start the embedded engine")
    }

    /// The name servers that the engine uses are those that the host has now.
    fn write_resolv_conf(&self) -> Result<(), Failure> {
        let file = self.run().join("resolv.conf");
        let now = fs::read("/etc/resolv.conf").unwrap_or_default();
        if fs::read(&file).is_ok_and(|then| then == now) {
            return Ok(());
        }
        // In place: the engine has this very file mounted.
        fs::write(&file, now).or_environment(format!("cannot write {}", file.display()))
    }

    async fn end(&self, patience: Duration) -> End {
        match self.process() {
            Some(process) => process.end(patience).await,
            None => End::Absent,
        }
    }

    /// The containers that have a network namespace, or were about to get one.
    fn connected(&self) -> Vec<String> {
        let folder = self.state().join("net/cni");
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()
    }

    /// Takes away what a dead engine has left; not its cache.
    async fn clean(&self) -> Result<Vec<String>, Failure> {
        let mut removed = Vec::new();
        if let Some(network) = self.network() {
            removed.extend(network.remove(&self.connected()).await?);
            removed.extend(network.remove_cgroups().await?);
        }
        if self.socket().exists() {
            removed.push(format!("socket {}", self.socket().display()));
        }
        // Network namespaces and temporary mounts of the dead: the next start fails on them. What belongs to the run goes
        // last: it is how an interrupted `down` is found again.
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

    /// The last that the engine said, without its name server's chatter.
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
    async fn cleaning_what_is_not_there_is_no_failure() {
        let folder = tempfile::tempdir().expect("a folder");
        let engine = Engine {
            folder: folder.path().to_owned(),
        };
        assert_eq!(engine.clean().await.expect("clean"), Vec::<String>::new());
        assert_eq!(engine.end(STOP).await, End::Absent);
    }
}
