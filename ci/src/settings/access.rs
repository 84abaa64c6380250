//! How the containers of a run reach private dependencies, and the network through a company's proxy. The settings only name what
//! is in the environment of `ci`; this file reads it.

use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use reqwest::Url;
use secrecy::SecretString;

use super::cargo::Cargo;
use crate::model::config_file::FILE;
use crate::trust::authority::basic;
use common::failure::{Failure, OrFail};

/// The user name that belongs to a bare token: GitHub documents this one, and other forges accept any.
const TOKEN_USER: &str = "x-access-token";
/// The largest file with CA certificates, in bytes. The bundle of Mozilla has 0.2 MB.
const MAX_CERTIFICATES: u64 = 8 << 20;

/// The value of an environment variable that is a secret.
#[derive(Clone, Debug)]
pub struct Secret {
    /// The name of the variable.
    pub name: String,
    /// Its value.
    pub value: SecretString,
}

/// What the containers of a run may use, read from the environment of `ci`.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The environment variables that cargo gets as secrets.
    pub secrets: Vec<Secret>,
    /// The credentials of private git dependencies: a file of [git-credential-store](https://git-scm.com/docs/git-credential-store).
    pub git_credentials: Option<SecretString>,
    /// The socket of the user's SSH agent.
    pub ssh_agent: Option<PathBuf>,
    /// The way to the network.
    pub network: Network,
    /// Other forms of the secrets, in which a program could print them.
    forms: Vec<SecretString>,
}

/// The way to the network: a proxy, and the certificates of the CAs that it needs.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// The proxies, by the variables that hold them: `HTTP_PROXY` and others.
    pub proxies: Vec<Proxy>,
    /// `NO_PROXY`: the hosts that are reached directly.
    pub direct: Option<String>,
    /// The content of the file in `SSL_CERT_FILE`.
    pub certificates: Option<String>,
}

/// A proxy in an environment variable.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// The variable, in upper case.
    pub variable: &'static str,
    /// Its URL.
    pub url: Url,
}

impl Proxy {
    /// Whether the URL contains a password.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.url.password().is_some()
    }

    /// Whether this is a proxy on the loopback interface of this machine, which no container reaches.
    fn is_loopback(&self) -> bool {
        let host = self.url.host_str().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|it| it.is_loopback())
    }
}

impl Access {
    /// Reads what `cargo` and `proxy` ask for. `services` are the host names that containers reach without a proxy.
    ///
    /// # Errors
    /// When a variable is not set, or its value is invalid (exit code 2).
    pub fn read(cargo: &Cargo, proxy: bool, services: &[&str]) -> Result<Self, Failure> {
        Self::from(cargo, proxy, services, |name| {
            std::env::var(name).ok().filter(|value| !value.is_empty())
        })
    }

    fn from(
        cargo: &Cargo,
        proxy: bool,
        services: &[&str],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Failure> {
        let required = |name: &str, key: &str| {
            variable(name).ok_or_else(|| {
                Failure::usage(format!(
                    "{name} is in {key} of {FILE}, but not in the environment"
                ))
                .hint("Set the variable; in a workflow of GitHub, with `env` and a secret of the repository.")
            })
        };
        let mut access = Self::default();
        for name in &cargo.secrets {
            access.secrets.push(Secret {
                name: name.clone(),
                value: required(name, "cargo.secrets")?.into(),
            });
        }
        let mut store = String::new();
        for (host, name) in &cargo.git_credentials {
            let value = required(name, "cargo.git-credentials")?;
            let line = access
                .credential(host, &value)
                .ok_or_else(|| Failure::usage(format!("{name} is not a token or USER:PASSWORD")))?;
            store.push_str(&line);
        }
        access.git_credentials = (!store.is_empty()).then(|| store.into());
        if cargo.ssh_agent {
            access.ssh_agent = Some(agent(variable("SSH_AUTH_SOCK"))?);
        }
        if proxy {
            access.network = Network::from(services, variable)?;
        }
        if access.fetches_with_git() && access.ssh_agent.is_some() {
            return Err(Failure::usage(format!(
                "{FILE}: with a proxy or SSL_CERT_FILE, cargo.git-credentials and cargo.ssh-agent exclude each other"
            ))
            .hint("Use either HTTPS or SSH in the URLs of all private git dependencies."));
        }
        for proxy in &access.network.proxies {
            if let Some(password) = proxy.url.password() {
                let basic = basic(proxy.url.username(), password);
                access.forms.extend([password.to_owned().into(), basic]);
            }
        }
        Ok(access)
    }

    /// The line for `host` in the file of git-credential-store, with a line break.
    fn credential(&mut self, host: &str, value: &str) -> Option<String> {
        let (user, password) = value.split_once(':').unwrap_or((TOKEN_USER, value));
        let mut url = Url::parse(&format!("https://{host}")).ok()?;
        url.set_username(user).ok()?;
        url.set_password(Some(password)).ok()?;
        let encoded = url.password()?.to_owned();
        let forms = [encoded.into(), password.to_owned().into()];
        self.forms.extend(forms);
        self.forms.push(basic(user, password));
        Some(format!("{}\n", url.as_str().trim_end_matches('/')))
    }

    /// Whether cargo has to fetch git dependencies with the program `git`: its own client ignores credentials if there is a proxy or a
    /// CA. The program in turn knows no hosts of SSH.
    #[must_use]
    pub fn fetches_with_git(&self) -> bool {
        self.git_credentials.is_some() && !self.network.is_direct()
    }

    /// Everything that must not be printed, in each form in which a program could print it.
    pub fn hidden(&self) -> impl Iterator<Item = &SecretString> {
        let secrets = self.secrets.iter().map(|it| &it.value);
        secrets.chain(&self.forms)
    }
}

impl Network {
    fn is_direct(&self) -> bool {
        self.proxies.is_empty() && self.certificates.is_none()
    }

    fn from(services: &[&str], variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        // Programs differ in which of the two forms they read.
        let either = |name: &str| variable(name).or_else(|| variable(&name.to_lowercase()));
        let mut network = Self::default();
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            let Some(text) = either(name) else { continue };
            let with_scheme = if text.contains("://") {
                text
            } else {
                format!("http://{text}")
            };
            // The message does not quote the value, which may contain a password.
            let url = Url::parse(&with_scheme)
                .ok()
                .filter(Url::has_host)
                .ok_or_else(|| {
                    Failure::usage(format!("{name} is not the URL of a proxy"))
                        .hint("Use a URL such as http://proxy.example.com:3128.")
                })?;
            let proxy = Proxy {
                variable: name,
                url,
            };
            if proxy.is_loopback() {
                return Err(Failure::usage(format!(
                    "{name} is a proxy on the loopback interface of this machine, which containers cannot reach"
                ))
                .hint("Let the proxy also listen on another address, such as that of the engine's or the container runtime's bridge."));
            }
            network.proxies.push(proxy);
        }
        if !network.proxies.is_empty() {
            let mut direct: Vec<_> = either("NO_PROXY").into_iter().collect();
            let own = ["localhost", "127.0.0.1", "::1"].iter().chain(services);
            direct.extend(own.map(|it| (*it).to_owned()));
            network.direct = Some(direct.join(","));
        }
        if let Some(path) = variable("SSL_CERT_FILE") {
            network.certificates = Some(certificates(&path)?);
        }
        Ok(network)
    }
}

/// The socket of the SSH agent.
fn agent(socket: Option<String>) -> Result<PathBuf, Failure> {
    let hint = "Start an agent with `eval \"$(ssh-agent)\"` and add the key with `ssh-add`.";
    let path = socket.map(PathBuf::from).ok_or_else(|| {
        Failure::usage(format!(
            "cargo.ssh-agent is set in {FILE}, but SSH_AUTH_SOCK is not in the environment"
        ))
        .hint(hint)
    })?;
    let is_socket = std::fs::metadata(&path).is_ok_and(|it| it.file_type().is_socket());
    if !is_socket {
        return Err(Failure::usage(format!(
            "SSH_AUTH_SOCK is {}, where no SSH agent listens",
            path.display()
        ))
        .hint(hint));
    }
    std::path::absolute(path).or_environment("cannot resolve SSH_AUTH_SOCK")
}

/// The content of the file with CA certificates.
fn certificates(path: &str) -> Result<String, Failure> {
    let wrong = |why: &str| {
        Failure::usage(format!("SSL_CERT_FILE is {path}, which {why}"))
            .hint("Set it to a file with the CA certificates in PEM format.")
    };
    let about = std::fs::metadata(path).map_err(|error| wrong("cannot be read").because(error))?;
    if about.len() > MAX_CERTIFICATES {
        return Err(wrong("is not a file with certificates"));
    }
    let text =
        std::fs::read_to_string(path).map_err(|error| wrong("cannot be read").because(error))?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(wrong("has no certificate"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn read(cargo: &Cargo, proxy: bool, environment: &[(&str, &str)]) -> Result<Access, Failure> {
        Access::from(cargo, proxy, &["database"], |wanted| {
            let found = environment.iter().find(|(name, _)| *name == wanted)?;
            Some(found.1.to_owned())
        })
    }

    fn hidden(access: &Access) -> Vec<&str> {
        access.hidden().map(ExposeSecret::expose_secret).collect()
    }

    #[test]
    fn credentials_become_lines_of_the_store_and_are_hidden_in_each_form() {
        let cargo = Cargo {
            git_credentials: [
                ("git.acme.example:8443".to_owned(), "GIT_A".to_owned()),
                ("github.com".to_owned(), "GIT_B".to_owned()),
            ]
            .into(),
            ..Cargo::default()
        };
        let variables = [("GIT_A", "robot:p@ss/word"), ("GIT_B", "ghs_token")];
        let access = read(&cargo, false, &variables).unwrap();
        let store = access.git_credentials.as_ref().unwrap().expose_secret();
        assert_eq!(
            store,
            "https://robot:p%40ss%2Fword@git.acme.example:8443\nhttps://x-access-token:ghs_token@github.com\n"
        );
        for form in [
            "p@ss/word",
            "p%40ss%2Fword",
            "cm9ib3Q6cEBzcy93b3Jk",
            "ghs_token",
        ] {
            assert!(hidden(&access).contains(&form), "{form}");
        }
        let failure = read(&cargo, false, &variables[..1]).unwrap_err();
        assert_eq!(
            failure.message,
            "GIT_B is in cargo.git-credentials of ci.toml, but not in the environment"
        );
    }

    #[test]
    fn behind_a_proxy_git_credentials_and_an_agent_exclude_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let cargo = Cargo {
            git_credentials: [("git.acme.example".to_owned(), "GIT".to_owned())].into(),
            ssh_agent: true,
            ..Cargo::default()
        };
        let variables = [
            ("GIT", "token"),
            ("SSH_AUTH_SOCK", socket.to_str().unwrap()),
            ("HTTPS_PROXY", "http://proxy.example:3128"),
        ];
        let direct = read(&cargo, false, &variables).unwrap();
        assert!(direct.ssh_agent.is_some() && !direct.fetches_with_git());
        let failure = read(&cargo, true, &variables).unwrap_err();
        assert!(failure.message.contains("exclude each other"), "{failure}");
    }

    #[test]
    fn a_proxy_is_read_only_where_the_setting_asks_for_it() {
        let cargo = Cargo::default();
        let variables = [
            ("https_proxy", "http://me:hunter2@proxy.example:3128"),
            ("HTTP_PROXY", "10.0.0.1:3128"),
            ("NO_PROXY", "intranet.example"),
        ];
        let none = read(&cargo, false, &variables).unwrap();
        assert!(none.network.proxies.is_empty());
        let access = read(&cargo, true, &variables).unwrap();
        let [plain, secret] = &access.network.proxies[..] else {
            panic!("{access:?}");
        };
        assert_eq!((plain.variable, plain.is_secret()), ("HTTP_PROXY", false));
        assert_eq!((secret.variable, secret.is_secret()), ("HTTPS_PROXY", true));
        assert!(hidden(&access).contains(&"hunter2"));
        assert_eq!(
            access.network.direct.unwrap(),
            "intranet.example,localhost,127.0.0.1,::1,database"
        );
        for (url, why) in [
            ("http://", "is not the URL of a proxy"),
            ("http://localhost:3128", "on the loopback interface"),
            ("[::1]:3128", "on the loopback interface"),
        ] {
            let failure = read(&cargo, true, &[("HTTPS_PROXY", url)]).unwrap_err();
            assert!(failure.message.contains(why), "{failure}");
        }
        // Where nothing is set, there is nothing to pass on.
        assert!(read(&cargo, true, &[]).unwrap().network.is_direct());
    }

    #[test]
    fn certificates_and_the_agent_must_exist() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, "not a certificate").unwrap();
        let file = file.to_str().unwrap();
        for (path, why) in [
            ("/no/such/file", "cannot be read"),
            (file, "has no certificate"),
        ] {
            let failure = read(&Cargo::default(), true, &[("SSL_CERT_FILE", path)]).unwrap_err();
            assert!(failure.message.contains(why), "{failure}");
        }
        let cargo = Cargo {
            ssh_agent: true,
            ..Cargo::default()
        };
        for (variables, why) in [
            (&[][..], "SSH_AUTH_SOCK is not in the environment"),
            (&[("SSH_AUTH_SOCK", file)], "where no SSH agent listens"),
        ] {
            let failure = read(&cargo, false, variables).unwrap_err();
            assert_eq!(failure.code as u8, 2);
            assert!(failure.message.contains(why), "{failure}");
        }
    }
}
