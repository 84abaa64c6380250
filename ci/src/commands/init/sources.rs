//! What the source files of a workspace say about its databases: the variables that they read, the macros of sqlx, migrations.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use walkdir::{DirEntry, WalkDir};

/// The largest number of files that are read.
const MAX_FILES: usize = 5000;
/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// The ends of the names of variables with the URL of a database.
const VARIABLES: [&str; 2] = ["DATABASE_URL", "REDIS_URL"];
/// The macros of sqlx that need a database, or the files of `.sqlx`, each also with `_unchecked`.
const QUERY_MACROS: [&str; 6] = [
    "query",
    "query_as",
    "query_file",
    "query_file_as",
    "query_file_scalar",
    "query_scalar",
];

/// What the source files say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// Variables with the URL of a database that the code, or a file such as `.env`, names. The values stay where they are: they may
    /// be secret.
    pub variables: BTreeSet<String>,
    /// Whether the code has macros that check queries when they are compiled.
    pub has_query_macros: bool,
    /// Whether the code has tests with a database of their own, `#[sqlx::test]`.
    pub has_sqlx_tests: bool,
    /// Whether the code applies the migrations, with `sqlx::migrate!`.
    pub migrates_itself: bool,
    /// Whether there is the description of all queries that replaces a database.
    pub is_offline: bool,
    /// The directories of migrations.
    pub migrations: Vec<Migrations>,
}

/// A directory of migrations in SQL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Migrations {
    /// The directory, relative to the workspace.
    pub folder: String,
    /// The files to apply, as a pattern of the shell.
    pub files: String,
    /// Whether the files have the names that sqlx expects; otherwise those of Diesel.
    pub is_of_sqlx: bool,
}

impl Sources {
    /// Reads the files of the workspace in `root`. Files that cannot be read do not count.
    pub(super) fn read(root: &Path) -> Self {
        let mut sources = Self::default();
        let mut scripts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let files = WalkDir::new(root)
            .sort_by_file_name()
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || is_own(entry))
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_file());
        let mut left = MAX_FILES;
        for entry in files {
            let name = entry.file_name().to_string_lossy();
            let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
            let is_rust = Path::new(&*name).extension().is_some_and(|it| it == "rs");
            let is_env = name == ".envrc" || name == ".env" || name.starts_with(".env.");
            let is_query = path
                .parent()
                .is_some_and(|folder| folder.ends_with(".sqlx"));
            if is_query || name == "sqlx-data.json" {
                sources.is_offline = true;
            } else if name.ends_with(".sql") {
                add_script(path, &mut scripts);
            } else if (is_rust || is_env) && left > 0 {
                left -= 1;
                let is_small = entry.metadata().is_ok_and(|it| it.len() <= MAX_SIZE);
                let text = is_small.then(|| std::fs::read_to_string(entry.path()).ok());
                for line in text.flatten().unwrap_or_default().lines() {
                    if is_rust {
                        sources.add_code(line.trim_start());
                    } else {
                        sources.add_variable(line.trim_start());
                    }
                }
            }
        }
        sources.migrations = scripts
            .into_iter()
            .filter_map(|(folder, names)| Migrations::of(folder, &names))
            .collect();
        sources
    }

    fn add_code(&mut self, line: &str) {
        if line.starts_with("//") {
            return;
        }
        self.variables.extend(
            line.split('"')
                .filter(|it| is_variable(it))
                .map(str::to_owned),
        );
        self.has_sqlx_tests |= line.contains("#[sqlx::test");
        for (at, _) in line.match_indices('!') {
            let before = &line[..at];
            let name = before
                .rsplit(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .unwrap_or_default();
            if !line[at + 1..].starts_with(['(', '[', '{']) {
                continue;
            }
            self.migrates_itself |= name == "migrate";
            self.has_query_macros |= QUERY_MACROS.contains(&name.trim_end_matches("_unchecked"));
        }
    }

    fn add_variable(&mut self, line: &str) {
        let line = line.strip_prefix("export ").unwrap_or(line);
        let name = line.split_once('=').map(|(name, _)| name.trim());
        self.variables
            .extend(name.filter(|it| is_variable(it)).map(str::to_owned));
    }
}

impl Migrations {
    /// The migrations in the files `names` of a directory; `None` if only a person knows how they are applied.
    fn of(folder: String, names: &[String]) -> Option<Self> {
        let is_of_sqlx = names.iter().all(|name| {
            let version = name.split_once('_').map(|(version, _)| version);
            !name.contains('/') && version.is_some_and(|it| it.parse::<i64>().is_ok())
        });
        let is_of_diesel = || {
            let mut parts = names.iter().map(|name| name.split_once('/'));
            parts.all(|it| matches!(it, Some((_, "up.sql" | "down.sql"))))
        };
        // The name becomes a part of a shell command.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        if !folder.chars().all(is_plain) {
            return None;
        }
        let files = if is_of_sqlx {
            let is_reversible = names.iter().any(|name| name.ends_with(".up.sql"));
            let end = if is_reversible { "up.sql" } else { "sql" };
            format!("{folder}/*_*.{end}")
        } else if is_of_diesel() {
            format!("{folder}/*/up.sql")
        } else {
            return None;
        };
        Some(Self {
            folder,
            files,
            is_of_sqlx,
        })
    }
}

/// Adds a file of SQL to those of the directory `migrations` that it is in.
fn add_script(path: &Path, scripts: &mut BTreeMap<String, Vec<String>>) {
    let folder = path
        .ancestors()
        .skip(1)
        .find(|it| it.ends_with("migrations"));
    let Some(folder) = folder else { return };
    let name = path.strip_prefix(folder).unwrap_or(path);
    scripts
        .entry(folder.display().to_string())
        .or_default()
        .push(name.display().to_string());
}

/// Whether a directory or a file may belong to the workspace.
fn is_own(entry: &DirEntry) -> bool {
    let name = entry.file_name().to_string_lossy();
    if !entry.file_type().is_dir() {
        return true;
    }
    let is_foreign = ["target", "node_modules", "vendor"].contains(&&*name);
    !is_foreign && (name == ".sqlx" || !name.starts_with('.'))
}

fn is_variable(text: &str) -> bool {
    VARIABLES.iter().any(|it| text.ends_with(it))
        && text
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && !text.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Sources {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let file = folder.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        Sources::read(folder.path())
    }

    #[test]
    fn finds_the_variables_that_code_and_env_files_name() {
        let found = sources(&[
            (
                "src/main.rs",
                "// \"OLD_DATABASE_URL\"\nlet url = env::var(\"SHOP_DATABASE_URL\");\nconst MY_REDIS_URL: &str = \"redis_url\";\n",
            ),
            (
                ".env.example",
                "# TEST_DATABASE_URL=x\nexport REDIS_URL=redis://:secret@localhost\n",
            ),
            ("target/debug/build/out.rs", "\"DATABASE_URL\""),
            ("vendor/sqlx/src/lib.rs", "\"DATABASE_URL\""),
        ]);
        let names: Vec<_> = found.variables.iter().map(String::as_str).collect();
        assert_eq!(names, ["REDIS_URL", "SHOP_DATABASE_URL"]);
    }

    #[test]
    fn finds_what_sqlx_needs_when_code_is_compiled() {
        let code = |text: &str| sources(&[("src/lib.rs", text)]);
        for text in [
            "sqlx::query!(\"select 1\")",
            "let user = query_as!(User, \"…\")",
            "sqlx::query_file_unchecked!(\"x.sql\")",
        ] {
            assert!(code(text).has_query_macros, "{text}");
        }
        for text in [
            "sqlx::query(\"select 1\")",
            "// sqlx::query!(\"select 1\")",
            "my_query!(1)",
            "if query != other {",
        ] {
            assert_eq!(code(text), Sources::default(), "{text}");
        }
        assert!(code("    sqlx::migrate!().run(&pool)").migrates_itself);
        assert!(code("    #[sqlx::test]\n").has_sqlx_tests);
        assert!(sources(&[("shop/.sqlx/query-1.json", "{}")]).is_offline);
    }

    #[test]
    fn applies_migrations_with_the_names_of_sqlx_or_diesel() {
        let files = |names: &[&str]| {
            let files: Vec<_> = names.iter().map(|name| (*name, "select 1;")).collect();
            let found = sources(&files).migrations;
            found.into_iter().map(|it| it.files).collect::<Vec<_>>()
        };
        for (names, expected) in [
            (
                &["migrations/1_a.sql", "migrations/2_b.sql"][..],
                &["migrations/*_*.sql"][..],
            ),
            (
                &["shop/migrations/1_a.up.sql", "shop/migrations/1_a.down.sql"],
                &["shop/migrations/*_*.up.sql"],
            ),
            (
                &["migrations/2024_a/up.sql", "migrations/2024_a/down.sql"],
                &["migrations/*/up.sql"],
            ),
            (&["migrations/schema.sql"], &[]),
            (&["my $(shop)/migrations/1_a.sql"], &[]),
            (&["queries/1_a.sql"], &[]),
        ] {
            assert_eq!(files(names), expected, "{names:?}");
        }
    }
}
