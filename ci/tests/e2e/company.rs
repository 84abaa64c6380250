//! A company's network: crates and git repositories that need credentials, behind a proxy that needs a password, with certificates
//! of the company's own CA. All of them are real servers on this machine.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::provision::{Package, Probe};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::harness::{KillOnDrop, Lock, Project, git, lock_named, with_own_mounts};
use crate::installed::{install, run};

const PACKAGES: [Package; 3] = [
    Package {
        name: "apache2-bin",
        purpose: "is the company's servers in the tests",
        probe: Probe::Program("apache2"),
    },
    Package {
        name: "dropbear-bin",
        purpose: "is the company's SSH server in the tests",
        probe: Probe::Program("dropbear"),
    },
    Package {
        name: "openssh-client",
        purpose: "is the SSH agent of the tests",
        probe: Probe::Program("ssh-agent"),
    },
];

/// The token of the crate registry.
pub const CRATES_TOKEN: &str = "acme-crates-token-of-monday";
/// The user and the password of the git server.
pub const GIT_LOGIN: &str = "robot:g1t/p@ssword-of-acme";
/// The user and the password of the proxy.
const PROXY_LOGIN: [&str; 2] = ["me", "hunter2-of-acme"];
/// Names that only the proxy knows.
const CRATES: &str = "crates.acme.test";
const GIT: &str = "git.acme.test";
/// The address of the proxy and of the SSH server, of the range for benchmarks
/// ([RFC 2544](https://www.rfc-editor.org/rfc/rfc2544)), which no real network uses. The containers of an engine on this machine reach it.
const ADDRESS: &str = "198.18.77.1";

const MODULES: [&str; 17] = [
    "alias",
    "auth_basic",
    "authn_core",
    "authn_file",
    "authz_core",
    "authz_host",
    "authz_user",
    "cgi",
    "env",
    "mpm_prefork",
    "proxy",
    "proxy_connect",
    "reqtimeout",
    "rewrite",
    "setenvif",
    "socache_shmcb",
    "ssl",
];

/// The servers. They are stopped on drop.
pub struct Company {
    folder: TempDir,
    certificates: PathBuf,
    proxy: u16,
    https: u16,
    ssh: u16,
    /// The commits of the two git repositories.
    commits: [String; 2],
    /// The checksum of the crate in the registry.
    checksum: String,
    host_key: String,
    _processes: [KillOnDrop; 3],
    _link: Link,
    _lock: Lock,
}

/// A network interface that has [`ADDRESS`]. It is removed on drop.
struct Link(String);

impl Link {
    fn new() -> Self {
        let name = format!("ci-ssh{}", std::process::id());
        run(Command::new("ip").args(["link", "add", &name, "type", "bridge"]));
        let link = Self(name);
        run(Command::new("ip").args(["address", "add", &format!("{ADDRESS}/32"), "dev", &link.0]));
        run(Command::new("ip").args(["link", "set", &link.0, "up"]));
        link
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "delete", &self.0])
            .status();
    }
}

/// The source of a library with one function.
fn library(name: &str, value: u32) -> [(&'static str, String); 2] {
    [
        (
            "Cargo.toml",
            format!(
                "[package]\nname = \"{name}\"\nversion = \"1.0.0\"\nedition = \"2024\"\ndescription = \"internal\"\nlicense = \"MIT\"\n"
            ),
        ),
        (
            "src/lib.rs",
            format!(
                "//! Internal.\n\n/// A number.\n#[must_use]\npub fn value() -> u32 {{\n    {value}\n}}\n"
            ),
        ),
    ]
}

fn write(folder: &Path, path: &str, content: &str) {
    let file = folder.join(path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, content).unwrap();
}

/// A bare repository with a library; returns its commit.
fn repository(folder: &Path, name: &str, value: u32) -> String {
    let work = folder.join("work").join(name);
    for (path, content) in library(name, value) {
        write(&work, path, &content);
    }
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    git(&work, &["add", "--all"]);
    git(&work, &["commit", "--quiet", "--message", "a library"]);
    let bare = folder.join("git").join(format!("{name}.git"));
    let (work, to) = (work.display().to_string(), bare.display().to_string());
    git(folder, &["clone", "--quiet", "--bare", &work, &to]);
    git(Path::new(&work), &["rev-parse", "HEAD"])
}

/// A free port on the loopback interface.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A directory with the company's CA, and a certificate of it for both names. It is made once, because the stand-in images contain
/// the CAs of this machine: a new one would build them again.
fn certificates() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("company-ca");
    if !folder.join("own.key").exists() {
        let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "CA of Acme");
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = [CRATES, GIT].map(ToOwned::to_owned);
        let own = CertificateParams::new(names).unwrap();
        let own = own.signed_by(&key, &ca).unwrap();
        write(&folder, "ca.pem", &ca.pem());
        write(&folder, "own.pem", &own.pem());
        write(&folder, "own.key", &key.serialize_pem());
    }
    let usual = openssl_probe::probe().cert_file.expect("CA certificates");
    let usual = std::fs::read_to_string(usual).unwrap();
    let ca = std::fs::read_to_string(folder.join("ca.pem")).unwrap();
    write(&folder, "all.pem", &format!("{usual}{ca}"));
    folder
}

/// A line of a file with passwords for Apache.
fn password([user, password]: [&str; 2]) -> String {
    let hash = bcrypt::hash_with_result(password, 4).unwrap();
    format!(
        "{user}:{}\n",
        hash.format_for_version(bcrypt::Version::TwoY)
    )
}

/// Waits until something listens.
fn wait_for(address: (&str, u16)) {
    let begun = Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{address:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Company {
    pub fn start() -> Self {
        let lock = lock_named("company");
        install(&PACKAGES);
        let folder = tempfile::Builder::new()
            .prefix("company")
            .tempdir()
            .unwrap();
        let top = folder.path().to_owned();
        // Apache's own user reads these files.
        std::fs::set_permissions(&top, std::fs::Permissions::from_mode(0o755)).unwrap();
        let certificates = certificates();
        let commits = [
            repository(&top, "acme-tax", 7),
            repository(&top, "acme-stock", 5),
        ];
        let (proxy, https) = (free_port(), free_port());
        let checksum = registry(&top, https);
        let link = Link::new();
        let apache = apache(&top, &certificates, proxy, https);
        let ssh = free_port();
        let (dropbear, host_key) = dropbear(&top, ssh);
        let agent = agent(&top);
        wait_for((ADDRESS, proxy));
        wait_for(("127.0.0.1", https));
        wait_for((ADDRESS, ssh));
        Self {
            certificates,
            proxy,
            https,
            ssh,
            commits,
            checksum,
            host_key,
            _processes: [apache, dropbear, agent].map(KillOnDrop),
            _link: link,
            _lock: lock,
            folder,
        }
    }

    /// Lets `project` depend on a crate of the registry and on one of the git server, which uses HTTPS.
    pub fn add_https_dependencies(&self, project: &Project) {
        let https = self.https;
        let tax = format!("https://{GIT}:{https}/git/acme-tax.git");
        let index = format!("sparse+https://{CRATES}:{https}/index/");
        let commit = &self.commits[0];
        add_dependencies(
            project,
            &format!(
                "acme-prices = {{ version = \"1\", registry = \"acme\" }}\nacme-tax = {{ git = \"{tax}\" }}"
            ),
            &format!("[registries.acme]\nindex = \"{index}\"\n"),
            &[
                (
                    "acme-prices",
                    format!("{index}\"\nchecksum = \"{}", self.checksum),
                ),
                ("acme-tax", format!("git+{tax}#{commit}")),
            ],
        );
    }

    /// Lets `project` depend on a crate that is fetched over SSH.
    pub fn add_ssh_dependency(&self, project: &Project) {
        let Self { ssh, host_key, .. } = self;
        let stock = self.folder.path().join("git/acme-stock.git");
        let stock = format!("ssh://root@{ADDRESS}:{ssh}{}", stock.display());
        let commit = &self.commits[1];
        add_dependencies(
            project,
            &format!("acme-stock = {{ git = \"{stock}\" }}"),
            &format!("[net.ssh]\nknown-hosts = [\"[{ADDRESS}]:{ssh} {host_key}\"]\n"),
            &[("acme-stock", format!("git+{stock}#{commit}"))],
        );
    }

    /// The hosts of the git server, as in `cargo.git-credentials`.
    pub fn git_host(&self) -> String {
        format!("{GIT}:{}", self.https)
    }

    /// The socket of an SSH agent that has a key for the SSH server.
    pub fn agent(&self) -> String {
        self.folder.path().join("agent.sock").display().to_string()
    }

    /// The environment on this company's machines.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let [user, password] = PROXY_LOGIN;
        [
            (
                "HTTPS_PROXY",
                format!("http://{user}:{password}@{ADDRESS}:{}", self.proxy),
            ),
            (
                "SSL_CERT_FILE",
                self.certificates.join("all.pem").display().to_string(),
            ),
        ]
    }

    /// Everything that must not be printed or stored.
    pub fn secrets() -> [&'static str; 3] {
        let (_, password) = GIT_LOGIN.split_once(':').unwrap();
        [CRATES_TOKEN, password, PROXY_LOGIN[1]]
    }

    /// The requests to a server: `proxy` or `https`.
    pub fn requests(&self, server: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("{server}.log"))).unwrap()
    }
}

/// Adds dependencies to the package `shop`: lines of its Cargo.toml and of the settings of cargo, and for Cargo.lock the name and the
/// source of each.
fn add_dependencies(project: &Project, lines: &str, config: &str, locked: &[(&str, String)]) {
    let manifest = project.read("Cargo.toml");
    project.write(
        "Cargo.toml",
        &format!("{manifest}\n[dependencies]\n{lines}\n"),
    );
    project.write(".cargo/config.toml", config);
    let mut lock = "version = 4\n".to_owned();
    let mut names = String::new();
    for (name, source) in locked {
        write!(
            lock,
            "\n[[package]]\nname = \"{name}\"\nversion = \"1.0.0\"\nsource = \"{source}\"\n"
        )
        .unwrap();
        writeln!(names, " \"{name}\",").unwrap();
    }
    write!(
        lock,
        "\n[[package]]\nname = \"shop\"\nversion = \"3.1.4\"\ndependencies = [\n{names}]\n"
    )
    .unwrap();
    project.write("Cargo.lock", &lock);
    project.commit("private dependencies");
}

/// A registry of crates, as static files of the [sparse protocol](https://doc.rust-lang.org/cargo/reference/registry-index.html), with
/// one crate; returns the crate's checksum.
fn registry(top: &Path, https: u16) -> String {
    let work = top.join("work/acme-prices");
    for (path, content) in library("acme-prices", 30) {
        write(&work, path, &content);
    }
    run(Command::new(env!("CARGO"))
        .args([
            "package",
            "--quiet",
            "--no-verify",
            "--allow-dirty",
            "--offline",
        ])
        .env("CARGO_TARGET_DIR", top.join("work/target"))
        .current_dir(&work));
    let file = "acme-prices-1.0.0.crate";
    let packed = std::fs::read(top.join("work/target/package").join(file)).unwrap();
    let checksum = common::digest::sha256(&packed);
    let checksum = checksum.strip_prefix("sha256:").unwrap();
    std::fs::create_dir_all(top.join("files/crates")).unwrap();
    std::fs::write(top.join("files/crates").join(file), packed).unwrap();
    let config = serde_json::json!({
        "dl": format!("https://{CRATES}:{https}/crates/{{crate}}-{{version}}.crate"),
        "auth-required": true,
    });
    write(top, "files/index/config.json", &config.to_string());
    let entry = serde_json::json!({
        "name": "acme-prices", "vers": "1.0.0", "deps": [], "cksum": checksum, "features": {}, "yanked": false,
    });
    write(top, "files/index/ac/me/acme-prices", &format!("{entry}\n"));
    checksum.to_owned()
}

/// The proxy, the registry and the git server.
fn apache(top: &Path, certificates: &Path, proxy: u16, https: u16) -> Child {
    let (user, login) = GIT_LOGIN.split_once(':').unwrap();
    write(top, "git.passwords", &password([user, login]));
    write(top, "proxy.passwords", &password(PROXY_LOGIN));
    write(
        top,
        "hosts",
        &format!("127.0.0.1 localhost {CRATES} {GIT}\n"),
    );
    let mut config = String::new();
    for name in MODULES {
        writeln!(
            config,
            "LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so"
        )
        .unwrap();
    }
    let folder = top.display();
    let certificates = certificates.display();
    write!(
        config,
        r#"ServerRoot "{folder}"
ServerName acme.test
User www-data
Group www-data
PidFile "{folder}/pid"
Mutex file:{folder} default
ErrorLog "{folder}/error.log"
LogFormat "%m %U %>s %{{Host}}i" short
LogFormat "%r %>s %u" whole
Listen {ADDRESS}:{proxy}
Listen 127.0.0.1:{https}
<VirtualHost {ADDRESS}:{proxy}>
  CustomLog "{folder}/proxy.log" whole
  ProxyRequests On
  AllowCONNECT 443 {https}
  <Proxy "*">
    AuthType Basic
    AuthName proxy
    AuthUserFile "{folder}/proxy.passwords"
    Require valid-user
  </Proxy>
</VirtualHost>
<VirtualHost 127.0.0.1:{https}>
  CustomLog "{folder}/https.log" short
  SSLEngine on
  SSLCertificateFile "{certificates}/own.pem"
  SSLCertificateKeyFile "{certificates}/own.key"
  DocumentRoot "{folder}/files"
  <Directory "{folder}/files">
    Require all granted
  </Directory>
  RewriteEngine on
  RewriteCond %{{HTTP:Authorization}} !={CRATES_TOKEN}
  RewriteRule ^/(index|crates)/ - [R=401,L]
  SetEnv GIT_PROJECT_ROOT "{folder}/git"
  SetEnv GIT_HTTP_EXPORT_ALL 1
  SetEnv GIT_CONFIG_COUNT 1
  SetEnv GIT_CONFIG_KEY_0 safe.directory
  SetEnv GIT_CONFIG_VALUE_0 *
  ScriptAlias /git/ /usr/lib/git-core/git-http-backend/
  <Location /git>
    AuthType Basic
    AuthName git
    AuthUserFile "{folder}/git.passwords"
    Require valid-user
  </Location>
</VirtualHost>
"#
    )
    .unwrap();
    write(top, "apache.conf", &config);
    // Only the proxy resolves the company's names.
    let script =
        "mount --bind \"$1/hosts\" /etc/hosts && exec apache2 -DFOREGROUND -f \"$1/apache.conf\"";
    in_own_mounts(script, top)
}

/// The SSH server, with its public key.
fn dropbear(top: &Path, port: u16) -> (Child, String) {
    let keys = top.join("keys");
    std::fs::create_dir(&keys).unwrap();
    let host = keys.join("host");
    let made = Command::new("dropbearkey")
        .args(["-t", "ed25519", "-f"])
        .arg(&host)
        .output()
        .unwrap();
    let made = String::from_utf8(made.stdout).unwrap();
    let key = made.lines().find(|line| line.starts_with("ssh-ed25519 "));
    let words: Vec<_> = key.unwrap().split(' ').take(2).collect();
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(keys.join("user")));
    // The server looks for the accepted keys in the user's home.
    let script = format!(
        "mount -t tmpfs -o mode=700 company ~root && mkdir -m 700 ~root/.ssh && cp \"$1/keys/user.pub\" ~root/.ssh/authorized_keys && \
         exec dropbear -F -E -s -p {ADDRESS}:{port} -r \"$1/keys/host\" -P \"$1/ssh.pid\""
    );
    (in_own_mounts(&script, top), words.join(" "))
}

/// The SSH agent with the user's key.
fn agent(top: &Path) -> Child {
    let socket = top.join("agent.sock");
    let child = Command::new("ssh-agent")
        .arg("-D")
        .arg("-a")
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !socket.exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no agent");
        std::thread::sleep(Duration::from_millis(20));
    }
    run(Command::new("ssh-add")
        .arg("-q")
        .arg(top.join("keys/user"))
        .env("SSH_AUTH_SOCK", &socket));
    child
}

/// Runs a shell script with mounts that no other process sees. Its argument is the directory `top`.
fn in_own_mounts(script: &str, top: &Path) -> Child {
    let log = |name: &str| PathBuf::from(top).join(name);
    let output = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log("output.log"))
        .unwrap();
    with_own_mounts(script)
        .arg(top)
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap()
}
