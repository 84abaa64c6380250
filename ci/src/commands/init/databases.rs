//! The databases and caches of a workspace: which backing services `ci init` proposes, for which steps, and how the code finds them.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::{Migrations, Sources};
use crate::model::config_file::FILE;
use crate::settings::cargo::Features;
use crate::source::project::{Package, Project};
use common::pins;

/// A server that `ci init` proposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Server {
    Postgres,
    Redis,
}

/// Crates that connect to a server, each with the feature that does, if it supports several. A crate that is only a dependency of
/// another one does not count: `Cargo.lock` of sqlx has the clients of all its databases.
const CLIENTS: [(&str, Option<&str>, Server); 18] = [
    ("bb8-postgres", None, Server::Postgres),
    ("deadpool-postgres", None, Server::Postgres),
    ("diesel", Some("postgres"), Server::Postgres),
    ("diesel-async", Some("postgres"), Server::Postgres),
    ("postgres", None, Server::Postgres),
    ("pq-sys", None, Server::Postgres),
    ("sea-orm", Some("sqlx-postgres"), Server::Postgres),
    ("sea-orm-migration", Some("sqlx-postgres"), Server::Postgres),
    ("sqlx", Some("postgres"), Server::Postgres),
    ("sqlx-postgres", None, Server::Postgres),
    ("tokio-postgres", None, Server::Postgres),
    ("bb8-redis", None, Server::Redis),
    ("deadpool-redis", None, Server::Redis),
    ("fred", None, Server::Redis),
    ("r2d2_redis", None, Server::Redis),
    ("redis", None, Server::Redis),
    ("redis-async", None, Server::Redis),
    ("rustis", None, Server::Redis),
];
/// Crates that connect to MySQL or MariaDB, which a person adds.
const MYSQL_CLIENTS: [(&str, Option<&str>); 5] = [
    ("diesel", Some("mysql")),
    ("mysql", None),
    ("mysql_async", None),
    ("sea-orm", Some("sqlx-mysql")),
    ("sqlx", Some("mysql")),
];

/// Creates the table in which sqlx records the migrations that it has applied, so that the service and its tests apply none twice.
const APPLIED: &str = "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL, installed_on TIMESTAMPTZ NOT NULL DEFAULT now(), success BOOLEAN NOT NULL, checksum BYTEA NOT NULL, execution_time BIGINT NOT NULL)";

impl Server {
    const fn title(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
        }
    }

    /// The host name.
    const fn host(self) -> &'static str {
        match self {
            Self::Postgres => "database",
            Self::Redis => "cache",
        }
    }

    const fn image(self) -> &'static str {
        match self {
            Self::Postgres => pins::POSTGRES_IMAGE,
            Self::Redis => pins::REDIS_IMAGE,
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Postgres => 5432,
            Self::Redis => 6379,
        }
    }

    fn url(self) -> String {
        let (host, port) = (self.host(), self.port());
        match self {
            Self::Postgres => format!("postgres://postgres:test@{host}:{port}/postgres"),
            Self::Redis => format!("redis://{host}:{port}"),
        }
    }

    /// The end of the names of the variables with the URL.
    const fn variable(self) -> &'static str {
        match self {
            Self::Postgres => "DATABASE_URL",
            Self::Redis => "REDIS_URL",
        }
    }
}

/// What is proposed for `ci.toml`.
#[derive(Debug, Default)]
pub(super) struct Databases {
    /// The tables `[services.…]`; empty if there are none.
    pub tables: String,
    /// The variables of `[cargo]`.
    pub cargo_env: BTreeMap<String, String>,
    /// The variables of `[test]`.
    pub test_env: BTreeMap<String, String>,
    /// The variables of `[smoke]`.
    pub smoke_env: BTreeMap<String, String>,
    /// What was found.
    pub facts: Vec<String>,
    /// What a person must do or check.
    pub to_do: Vec<String>,
}

impl Databases {
    /// Examines `project`, whose packages are compiled with these features.
    pub(super) fn examine(project: &Project, features: &Features) -> Self {
        let sources = Sources::read(&project.sources);
        let uses_sqlx = project
            .packages
            .iter()
            .any(|package| uses(package, features, "sqlx", None));
        let mut all = Self::default();
        let mut servers = BTreeSet::new();
        for package in &project.packages {
            for (name, feature, server) in CLIENTS {
                if !uses(package, features, name, feature) {
                    continue;
                }
                let (package, title, host) = (&package.name, server.title(), server.host());
                if servers.insert(server) {
                    all.facts.push(format!(
                        "{package} depends on {name}: [services.{host}] is {title}"
                    ));
                }
            }
            for (name, feature) in MYSQL_CLIENTS {
                if uses(package, features, name, feature) {
                    all.facts.push(format!(
                        "{} depends on {name}: tests that need MySQL can use [services.…]",
                        package.name
                    ));
                }
            }
        }
        let has_macros = uses_sqlx && sources.has_query_macros;
        let needs_tables = has_macros && !sources.is_offline;
        if sources.is_offline {
            all.facts.push(
                ".sqlx: the macros of sqlx need no database with SQLX_OFFLINE in cargo.env"
                    .to_owned(),
            );
            all.cargo_env
                .insert("SQLX_OFFLINE".to_owned(), "true".to_owned());
        } else if has_macros && !servers.contains(&Server::Postgres) {
            all.to_do.push(
                "run `cargo sqlx prepare --workspace` and commit .sqlx: the macros of sqlx reach no database"
                    .to_owned(),
            );
        }
        for server in servers {
            all.propose(server, &sources, needs_tables);
        }
        all
    }

    fn propose(&mut self, server: Server, sources: &Sources, needs_tables: bool) {
        let is_first = self.tables.is_empty();
        // A comment explains each key once.
        let comment = |text: &'static str| if is_first { text } else { "" };
        let compiles = needs_tables && server == Server::Postgres;
        let steps = if compiles {
            "\"test\", \"lint\", \"build\", \"smoke\""
        } else {
            "\"test\", \"smoke\""
        };
        let setup = match server {
            Server::Postgres => self.setup(sources, needs_tables),
            Server::Redis => String::new(),
        };
        let env = match server {
            Server::Postgres => "env = { POSTGRES_PASSWORD = \"test\" }\n",
            Server::Redis => "",
        };
        self.tables += &format!(
            "[services.{host}]\nimage = \"{image}\"\nport = {port}\n{env}steps = [{steps}]\n{setup}{why}localhost = true\n\n",
            host = server.host(),
            image = server.image(),
            port = server.port(),
            why = comment(
                "# Whether test, lint and build can also reach the service as localhost.\n"
            ),
        );
        let mut variables: BTreeSet<_> = sources
            .variables
            .iter()
            .filter(|name| name.ends_with(server.variable()))
            .cloned()
            .collect();
        if server == Server::Postgres && (compiles || sources.has_sqlx_tests) {
            variables.insert(server.variable().to_owned());
        }
        if variables.is_empty() {
            self.to_do.push(format!(
                "let the service and its tests find {}, with variables of their own in [test] and [smoke] of {FILE}: {}",
                server.title(),
                server.url()
            ));
        }
        for name in variables {
            // The macros read this one.
            if compiles && name == server.variable() {
                self.cargo_env.insert(name.clone(), server.url());
            } else {
                self.test_env.insert(name.clone(), server.url());
            }
            if !name.starts_with("TEST_") {
                self.smoke_env.insert(name, server.url());
            }
        }
    }

    /// The lines about the preparation of PostgreSQL.
    fn setup(&mut self, sources: &Sources, needs_tables: bool) -> String {
        let migrations = match &sources.migrations[..] {
            [one] => one,
            others => {
                if needs_tables {
                    let found = if others.is_empty() {
                        "there is no directory of migrations"
                    } else {
                        "there are several directories of migrations"
                    };
                    self.to_do.push(format!(
                        "set services.database.setup in {FILE} to a command that creates the tables, or run `cargo sqlx prepare --workspace` and commit .sqlx: the macros of sqlx need the tables, and {found}"
                    ));
                }
                return String::new();
            }
        };
        let folder = &migrations.folder;
        let why = "# A shell command that prepares the service before each of these steps, and the Debian packages that it needs.\n";
        if needs_tables && migrations.is_of_sqlx {
            self.facts.push(format!(
                "{folder}: services.database.setup applies them, because the macros of sqlx need the tables"
            ));
            let setup = if sources.migrates_itself {
                recorded(migrations)
            } else {
                format!("'{}'", plain(migrations))
            };
            return format!("{why}setup = {setup}\npackages = [\"postgresql-client\"]\n");
        }
        self.facts.push(format!(
            "{folder}: the database is empty until the tests and the service apply them; services.database.setup in {FILE} is an alternative"
        ));
        format!(
            "{why}# setup = '{}'\n# packages = [\"postgresql-client\"]\n",
            plain(migrations)
        )
    }
}

/// A command that applies the migrations in the order of their versions.
fn plain(migrations: &Migrations) -> String {
    format!(
        "for file in $(ls {} | sort -V); do psql --quiet --set ON_ERROR_STOP=1 --file \"$file\" \"$DATABASE_URL\" || exit; done",
        migrations.files
    )
}

/// A command that applies the migrations and records them as sqlx does, as a string in TOML.
fn recorded(migrations: &Migrations) -> String {
    format!(
        r#"'''
# The service applies migrations itself, and must find that these are applied.
run() {{ psql --quiet --set ON_ERROR_STOP=1 "$@" "$DATABASE_URL" || exit; }}
run --command "{APPLIED}"
for file in $(ls {} | sort -V); do
  version=$(basename "$file" | cut -d _ -f 1) sum=$(sha384sum "$file" | cut -d ' ' -f 1)
  run --file "$file" --command "INSERT INTO _sqlx_migrations VALUES ($version, '$file', now(), true, '\\x$sum', 0)"
done
'''"#,
        migrations.files
    )
}

/// Whether `package` or its tests depend on the crate `name`, with this feature.
fn uses(package: &Package, features: &Features, name: &str, feature: Option<&str>) -> bool {
    let enabled = features.enabled(package);
    package.uses.iter().filter(|it| it.of == name).any(|it| {
        let is_there = !it.is_optional
            || enabled.contains(&it.name)
            || enabled.contains(&format!("dep:{}", it.name))
            || enabled
                .iter()
                .any(|on| on.split_once('/').is_some_and(|(of, _)| of == it.name));
        let has = |feature: &str| {
            it.features.iter().any(|it| it == feature)
                || enabled.contains(&format!("{}/{feature}", it.name))
                || enabled.contains(&format!("{}?/{feature}", it.name))
        };
        is_there && feature.is_none_or(has)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::project::Use;

    #[test]
    fn a_client_counts_if_its_package_enables_it() {
        let dependency = |name: &str, features: &[&str], is_optional| Use {
            name: name.to_owned(),
            of: name.to_owned(),
            features: features.iter().map(|it| (*it).to_owned()).collect(),
            is_optional,
        };
        let package = |enabled: &[&str], dependency| Package {
            name: "shop".to_owned(),
            features: [(
                "default".to_owned(),
                enabled.iter().map(|it| (*it).to_owned()).collect(),
            )]
            .into(),
            uses: vec![dependency],
            ..Package::default()
        };
        let has = |package: &Package| {
            CLIENTS
                .iter()
                .any(|(name, feature, _)| uses(package, &Features::default(), name, *feature))
        };
        for (enabled, dependency, expected) in [
            (&[][..], dependency("sqlx", &["sqlite"], false), false),
            (&[], dependency("sqlx", &["postgres"], false), true),
            (
                &["sqlx/postgres"],
                dependency("sqlx", &["macros"], false),
                true,
            ),
            (&[], dependency("redis", &[], true), false),
            (&["dep:redis"], dependency("redis", &[], true), true),
            (&["redis/aio"], dependency("redis", &[], true), true),
            (&["redis?/aio"], dependency("redis", &[], true), false),
            (&[], dependency("redis", &[], false), true),
            (&[], dependency("rusqlite", &[], false), false),
        ] {
            let package = package(enabled, dependency);
            assert_eq!(has(&package), expected, "{package:?}");
        }
        let renamed = Use {
            of: "redis".to_owned(),
            ..dependency("store", &[], false)
        };
        assert!(has(&package(&[], renamed)));
    }
}
