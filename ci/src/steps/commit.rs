//! The commit in the build, if `build.commit` is set: its SHA and its time, for build scripts that cannot do without. Nothing here
//! depends on tags or on the depth of the clone, so that one commit builds one image.

use std::collections::BTreeMap;

use dagger_sdk::{Container, ContainerWithNewFileOpts};
use jiff::tz::Offset;

use super::environment::with_env;
use crate::model::step::Step;
use crate::output::SOURCES;
use crate::settings::Settings;
use crate::source::checkout::Checkout;
use common::failure::{Failure, OrFail};

/// Answers the usual questions to git about the commit.
const GIT: &str = include_str!("git.sh");
/// Before the git of the toolchain's image in its `PATH`.
const GIT_PATH: &str = "/usr/local/bin/git";
/// The git of the toolchain's image.
const REAL_GIT: &str = "/usr/bin/git";
/// The variable in which [`SYNC`](super::sync::SYNC) expects the commit.
const SYNCHRONIZED: &str = "BUILD_COMMIT";

/// The commit as build scripts see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BuildCommit {
    sha: String,
    is_clean: bool,
    time: jiff::Timestamp,
    /// The packages that get the commit from the crate `built`.
    built: Vec<String>,
}

impl BuildCommit {
    /// The commit for the build scripts of `step`; `None` if the settings do not ask for it, or nothing is compiled.
    ///
    /// # Errors
    /// When the time of the commit is out of range (exit code 3).
    pub(super) fn of(
        step: Step,
        settings: &Settings,
        checkout: &Checkout,
    ) -> Result<Option<Self>, Failure> {
        if !settings.build_commit || !step.definition().compiles {
            return Ok(None);
        }
        let time = jiff::Timestamp::from_second(checkout.commit.time)
            .or_environment("the time of the commit is out of range")?;
        Ok(Some(Self {
            sha: checkout.commit.sha.clone(),
            is_clean: checkout.is_clean(),
            time,
            built: settings.built_packages.clone(),
        }))
    }

    /// The text that differs between commits.
    pub(super) fn identity(&self) -> String {
        let dirty = if self.is_clean { "" } else { "-dirty" };
        format!("{}{dirty}", self.sha)
    }

    /// Adds the commit to a container: as variables, and as a program `git`.
    pub(super) fn add_to(&self, container: &Container) -> Container {
        let git = ContainerWithNewFileOpts {
            expand: None,
            owner: None,
            permissions: Some(0o755),
        };
        with_env(container, &self.env())
            .with_env_variable(SYNCHRONIZED, self.identity())
            .with_new_file_opts(GIT_PATH, self.git(SOURCES, REAL_GIT), git)
    }

    /// The variables that replace git for the crates that build scripts use.
    fn env(&self) -> BTreeMap<String, String> {
        let short = &self.sha[..7];
        let dirty = (!self.is_clean).to_string();
        let described = if self.is_clean {
            short.to_owned()
        } else {
            format!("{short}-dirty")
        };
        let mut env: BTreeMap<String, String> = [
            // https://reproducible-builds.org/specs/source-date-epoch/
            ("SOURCE_DATE_EPOCH", self.unix()),
            // vergen, vergen-gitcl, vergen-git2 and vergen-gix
            ("VERGEN_GIT_SHA", self.sha.clone()),
            ("VERGEN_GIT_COMMIT_DATE", self.written("%Y-%m-%d")),
            (
                "VERGEN_GIT_COMMIT_TIMESTAMP",
                self.written("%Y-%m-%dT%H:%M:%SZ"),
            ),
            ("VERGEN_GIT_DESCRIBE", described.clone()),
            ("VERGEN_GIT_DIRTY", dirty.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for package in &self.built {
            for (name, value) in [
                ("GIT_COMMIT_HASH", &self.sha),
                ("GIT_COMMIT_HASH_SHORT", &short.to_owned()),
                ("GIT_VERSION", &described),
                ("GIT_DIRTY", &dirty),
            ] {
                let package = package.replace('-', "_");
                env.insert(format!("BUILT_OVERRIDE_{package}_{name}"), value.clone());
            }
        }
        env
    }

    /// The program, for sources in the directory `sources`. It leaves other directories to the git at `real`.
    fn git(&self, sources: &str, real: &str) -> String {
        GIT.replace("@sources@", sources)
            .replace("@real@", real)
            .replace("@sha@", &self.sha)
            .replace("@dirty@", if self.is_clean { "" } else { "yes" })
            .replace("@unix@", &self.unix())
            .replace("@strict@", &self.written("%Y-%m-%dT%H:%M:%S+00:00"))
            .replace("@iso@", &self.written("%Y-%m-%d %H:%M:%S +0000"))
            .replace("@day@", &self.written("%Y-%m-%d"))
            .replace("@plain@", &self.written("%a %b %-d %H:%M:%S %Y +0000"))
    }

    fn unix(&self) -> String {
        self.time.as_second().to_string()
    }

    fn written(&self, format: &str) -> String {
        Offset::UTC
            .to_datetime(self.time)
            .strftime(format)
            .to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Output};

    use super::*;

    fn commit(sha: &str, is_clean: bool) -> BuildCommit {
        let time = jiff::Timestamp::from_second(1_700_000_003).unwrap();
        BuildCommit {
            sha: sha.to_owned(),
            is_clean,
            time,
            built: vec!["my-shop".to_owned()],
        }
    }

    fn call(program: &Path, directory: &Path, arguments: &str) -> Output {
        Command::new(program)
            .args(shlex::split(arguments).unwrap())
            .current_dir(directory)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_COMMITTER_DATE", "1700000003 +0000")
            .env_remove("GIT_DIR")
            .output()
            .unwrap()
    }

    /// A repository with one commit that is checked out without a branch, and its SHA.
    fn repository(folder: &Path) -> String {
        let git = |arguments: &str| {
            let output = call(Path::new("git"), folder, arguments);
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        git("init --quiet");
        git("-c user.name=a -c user.email=b commit --quiet --allow-empty --message c");
        git("checkout --quiet --detach");
        git("rev-parse HEAD")
    }

    fn script(
        folder: &Path,
        sources: &Path,
        commit: &BuildCommit,
        real: &str,
    ) -> std::path::PathBuf {
        let text = folder.join("git.sh");
        std::fs::write(&text, commit.git(sources.to_str().unwrap(), real)).unwrap();
        // Another process writes the program: a child process of another test would inherit our open file, and Linux executes no
        // file that is open for writing.
        let program = folder.join("git");
        let install = Command::new("install")
            .args(["-m", "755"])
            .args([&text, &program])
            .status();
        assert!(install.unwrap().success());
        program
    }

    #[test]
    fn answers_as_git_does_in_a_clone_without_tags() {
        let folder = tempfile::tempdir().unwrap();
        let (real, sources) = (folder.path().join("real"), folder.path().join("sources"));
        std::fs::create_dir_all(&real).unwrap();
        std::fs::create_dir_all(sources.join("src")).unwrap();
        let sha = repository(&real);
        let program = script(
            folder.path(),
            &sources,
            &commit(&sha, true),
            "/nonexistent/git",
        );
        for question in [
            "rev-parse HEAD",
            "rev-parse --verify HEAD",
            "rev-parse --short HEAD",
            "rev-parse --short=12 HEAD",
            "rev-parse --abbrev-ref HEAD",
            "rev-parse --abbrev-ref --symbolic-full-name HEAD",
            "rev-parse --is-inside-work-tree",
            "-C . --no-pager rev-parse HEAD",
            "describe --always",
            "describe --always --tags --dirty",
            "describe --always --dirty=-modified --match 'v*'",
            "describe --always --abbrev=10 HEAD",
            "describe --always --abbrev=40",
            "log -1 --format=%H",
            "log -1 '--pretty=format:%h %ct' HEAD",
            "log -n 1 --format=%cI",
            "log -1 --format=%ci",
            "log -1 --format=%cs",
            "log -1 --format=%cd",
            "log -1 --format=%cd --date=short",
            "log -1 --format=%cd --date=iso-strict",
            "show -s --format=%ct",
            "show --pretty=format:%ct --date=raw -s",
            "status --porcelain",
            "status --porcelain --untracked-files=no",
            "diff --quiet HEAD",
            "diff-index --quiet HEAD --",
            "rev-list -1 HEAD",
            "rev-list --max-count=1 HEAD",
        ] {
            let of_git = call(Path::new("git"), &real, question);
            assert!(of_git.status.success(), "{question}: {of_git:?}");
            let ours = call(&program, &sources.join("src"), question);
            assert!(ours.status.success(), "{question}: {ours:?}");
            let text = |output: Output| String::from_utf8(output.stdout).unwrap();
            // Newer versions of git write UTC as Z.
            let expected = text(of_git).replace('Z', "+00:00");
            assert_eq!(text(ours).trim_end(), expected.trim_end(), "{question}");
        }
    }

    #[test]
    fn refuses_what_depends_on_more_than_the_commit() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(
            folder.path(),
            folder.path(),
            &commit(&"a".repeat(40), true),
            "/none",
        );
        for question in [
            "",
            "describe",
            "describe --tags --abbrev=0",
            "describe --always v1.0",
            "rev-parse HEAD~1",
            "rev-parse --verify origin/main",
            "rev-list --count HEAD",
            "log -1",
            "log -5 --format=%H",
            "log --format=%H",
            "log -1 --format=%an",
            "log -1 --format=oneline",
            "symbolic-ref HEAD",
            "tag -l",
            "branch --show-current",
            "config --get remote.origin.url",
            "fetch",
        ] {
            let output = call(&program, folder.path(), question);
            assert_eq!(output.status.code(), Some(128), "{question}: {output:?}");
            assert!(output.stdout.is_empty(), "{question}: {output:?}");
            let message = String::from_utf8(output.stderr).unwrap();
            assert!(message.contains("build.commit"), "{question}: {message}");
        }
    }

    #[test]
    fn says_that_a_tree_is_dirty() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(
            folder.path(),
            folder.path(),
            &commit(&"ab".repeat(20), false),
            "/none",
        );
        let said = |question| {
            let output = call(&program, folder.path(), question);
            (
                output.status.code(),
                String::from_utf8(output.stdout).unwrap(),
            )
        };
        assert_eq!(
            said("describe --always --dirty"),
            (Some(0), "abababa-dirty\n".into())
        );
        assert_eq!(
            said("describe --always --dirty=+x"),
            (Some(0), "abababa+x\n".into())
        );
        assert_eq!(said("describe --always"), (Some(0), "abababa\n".into()));
        assert_eq!(said("status --porcelain"), (Some(0), " M .\n".into()));
        assert_eq!(said("diff --quiet"), (Some(1), String::new()));
    }

    #[test]
    fn leaves_other_repositories_to_the_git_of_the_container() {
        let folder = tempfile::tempdir().unwrap();
        let sources = folder.path().join("sources");
        let elsewhere = folder.path().join("elsewhere");
        let below = sources.join("target/test");
        for directory in [&elsewhere, &below] {
            std::fs::create_dir_all(directory).unwrap();
        }
        let real = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|folder| folder.join("git"))
            .find(|program| program.is_file())
            .unwrap();
        let fake = commit(&"a".repeat(40), true);
        let program = script(folder.path(), &sources, &fake, real.to_str().unwrap());
        let head = |directory: &Path| {
            let output = call(&program, directory, "rev-parse HEAD");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(head(&below), fake.sha);
        assert_eq!(head(&below), fake.sha);
        let (of_test, of_other) = (repository(&below), repository(&elsewhere));
        assert_eq!(head(&below), of_test);
        assert_eq!(head(&elsewhere), of_other);
    }

    #[test]
    fn sets_the_variables_of_the_usual_crates() {
        let sha = "0123456789".repeat(4);
        let env = commit(&sha, true).env();
        for (name, value) in [
            ("SOURCE_DATE_EPOCH", "1700000003"),
            ("VERGEN_GIT_SHA", &*sha),
            ("VERGEN_GIT_COMMIT_TIMESTAMP", "2023-11-14T22:13:23Z"),
            ("VERGEN_GIT_DIRTY", "false"),
            ("BUILT_OVERRIDE_my_shop_GIT_COMMIT_HASH", &*sha),
            ("BUILT_OVERRIDE_my_shop_GIT_VERSION", "0123456"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(
            commit(&sha, false).env()["VERGEN_GIT_DESCRIBE"],
            "0123456-dirty"
        );
    }
}
