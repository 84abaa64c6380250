//! The projects that are measured, and the changes to them.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::harness::{SERVICE, git};
use crate::host::cargo;
use crate::process::seconds;

/// A project: how to create it, and where its changes are.
pub struct Project {
    /// A directory name, and the name of its repository.
    pub name: &'static str,
    /// Writes the files into an empty directory.
    pub create: fn(&Path),
    /// The documentation to which a line is added.
    pub documentation: &'static str,
    /// The source file to which a line is added.
    pub source: &'static str,
    /// Dependencies with a version that is older than that in `Cargo.lock`. They are set back at first, and updated one by one.
    pub older: &'static [(&'static str, &'static str)],
    /// The project's own gate in its `ci.toml`: the arguments of cargo, with warnings as errors.
    pub gate: Option<&'static str>,
}

/// A service that needs only the standard library.
pub const ONE_FILE: Project = Project {
    name: "one-file",
    create: create_one_file,
    documentation: "README.md",
    source: "api/src/main.rs",
    older: &[],
    gate: None,
};

/// The same with 10,000 small files.
pub const FILES: Project = Project {
    name: "files",
    create: create_files,
    documentation: "assets/0/0.txt",
    ..ONE_FILE
};

/// HEAD of this repository.
pub const REPOSITORY: Project = Project {
    name: "repository",
    create: clone_repository,
    documentation: "ci/docs/commands.md",
    source: "api/src/main.rs",
    older: &[("smallvec", "1.15.1")],
    gate: Some("doc --workspace --all-features --no-deps --locked"),
};

/// A service with about 300 dependencies and 40 tests.
pub const DEPENDENCIES: Project = Project {
    name: "dependencies",
    create: create_dependencies,
    documentation: "README.md",
    source: "api/src/main.rs",
    older: &[("url", "2.5.4"), ("smallvec", "1.15.1")],
    gate: None,
};

/// A workspace of 10 crates with 10 tests and 100 files each.
pub const TEN: Project = Project {
    name: "ten",
    create: |folder| create_workspace(folder, 10),
    ..ONE_FILE
};

/// Ten times as many crates, tests and files.
pub const HUNDRED: Project = Project {
    name: "hundred",
    create: |folder| create_workspace(folder, 100),
    ..ONE_FILE
};

impl Project {
    /// Creates the project in `folder`, with one commit.
    pub fn create(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        (self.create)(folder);
        write(folder, "Dockerfile", include_str!("Dockerfile"));
        write(folder, ".dockerignore", "target\n.git\n");
        if !folder.join(".git").exists() {
            write(folder, ".gitignore", "/target\n");
            write(folder, "README.md", "# A service\n");
            git(folder, &["init", "--quiet", "--initial-branch=main"]);
        }
        let mut format = cargo(folder);
        format.args(["fmt", "--all"]);
        seconds(format);
        for (name, version) in self.older {
            let mut update = cargo(folder);
            update.args(["update", "--quiet", "--package", name, "--precise", version]);
            seconds(update);
        }
        commit(folder, "before");
    }

    /// Adds a line to the documentation.
    pub fn change_documentation(&self, folder: &Path, round: usize) {
        append(folder, self.documentation, &format!("\nRound {round}.\n"));
    }

    /// Adds a line to the source.
    pub fn change_source(&self, folder: &Path, round: usize) {
        append(folder, self.source, &format!("// Round {round}.\n"));
    }

    /// Updates one of the dependencies.
    pub fn update_dependency(&self, folder: &Path, round: usize) {
        let mut update = cargo(folder);
        update.args(["update", "--quiet", "--package", self.older[round].0]);
        seconds(update);
        commit(folder, "a dependency");
    }
}

fn write(folder: &Path, path: &str, text: &str) {
    let file = folder.join(path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, text).unwrap();
}

/// Adds text to a file, and commits it.
pub fn append(folder: &Path, path: &str, text: &str) {
    let before = std::fs::read_to_string(folder.join(path)).unwrap();
    write(folder, path, &(before + text));
    commit(folder, "a line");
}

/// Replaces text in a file, and commits it.
pub fn replace(folder: &Path, path: &str, from: &str, to: &str) {
    let before = std::fs::read_to_string(folder.join(path)).unwrap();
    assert!(before.contains(from), "{from} in {path}");
    write(folder, path, &before.replace(from, to));
    commit(folder, "a line");
}

fn commit(folder: &Path, message: &str) {
    git(folder, &["add", "--all"]);
    git(folder, &["commit", "--quiet", "--message", message]);
}

const WORKSPACE: &str = "[workspace]\nmembers = [\"api\"]\nresolver = \"3\"\n";

fn create_one_file(folder: &Path) {
    write(folder, "Cargo.toml", WORKSPACE);
    let manifest = "[package]\nname = \"api\"\nversion = \"1.2.3\"\nedition = \"2024\"\n";
    write(folder, "api/Cargo.toml", manifest);
    // `docker run` has the host's network here.
    let port = "std::env::var(\"PORT\").map_or(8000, |port| port.parse().expect(\"a port\"))";
    let service = SERVICE.replace("8000", port);
    write(folder, "api/src/main.rs", &service);
    lock(folder);
}

fn create_files(folder: &Path) {
    create_one_file(folder);
    write_files(folder, 10_000);
}

fn write_files(folder: &Path, files: usize) {
    for number in 0..files {
        let path = format!("assets/{}/{}.txt", number / 100, number % 100);
        write(folder, &path, &format!("File {number}.\n"));
    }
}

/// The service of one file, which depends on all other crates of the workspace.
fn create_workspace(folder: &Path, crates: usize) {
    create_one_file(folder);
    let members = "[workspace]\nmembers = [\"api\", \"crates/*\"]\nresolver = \"3\"\n";
    write(folder, "Cargo.toml", members);
    let mut dependencies = String::from("\n[dependencies]\n");
    let mut calls = String::new();
    for number in 1..crates {
        let name = format!("part{number}");
        writeln!(dependencies, "{name} = {{ path = \"../crates/{name}\" }}").unwrap();
        writeln!(calls, "    assert!({name}::twice(1) == 2);").unwrap();
        let manifest =
            format!("[package]\nname = \"{name}\"\nversion = \"1.2.3\"\nedition = \"2024\"\n");
        write(folder, &format!("crates/{name}/Cargo.toml"), &manifest);
        let source = "pub fn twice(number: u64) -> u64 {\n    number * 2\n}\n";
        let source = source.to_owned() + &ten_tests("super::twice(1) == 2");
        write(folder, &format!("crates/{name}/src/lib.rs"), &source);
    }
    let manifest = std::fs::read_to_string(folder.join("api/Cargo.toml")).unwrap();
    write(folder, "api/Cargo.toml", &(manifest + &dependencies));
    let service = std::fs::read_to_string(folder.join("api/src/main.rs")).unwrap();
    let service = service.replace("fn main() {\n", &format!("fn main() {{\n{calls}"));
    write(folder, "api/src/main.rs", &service);
    write_files(folder, crates * 100);
    lock(folder);
}

fn ten_tests(assertion: &str) -> String {
    let mut source = String::from("\n#[cfg(test)]\nmod tests {\n");
    for number in 0..10 {
        write!(
            source,
            "#[test]\nfn test_{number}() {{\nassert!({assertion});\n}}\n"
        )
        .unwrap();
    }
    source + "}\n"
}

fn create_dependencies(folder: &Path) {
    write(folder, "Cargo.toml", WORKSPACE);
    write(folder, "api/Cargo.toml", include_str!("dependencies.toml"));
    let mut source = include_str!("dependencies.rs").to_owned();
    source += "\n#[cfg(test)]\nmod tests {\n    use super::*;\n";
    for number in 0..40 {
        write!(
            source,
            "\n#[test]\nfn order_{number}_is_the_same_after_a_round_trip() {{
                let order = order({number});
                let json = serde_json::to_string(&order).expect(\"JSON\");
                assert_eq!(serde_json::from_str::<Order>(&json).expect(\"an order\"), order);
            }}\n"
        )
        .unwrap();
    }
    write(folder, "api/src/main.rs", &(source + "}\n"));
    lock(folder);
}

fn lock(folder: &Path) {
    let mut lock = cargo(folder);
    lock.args(["generate-lockfile", "--quiet"]);
    seconds(lock);
}

fn clone_repository(folder: &Path) {
    let mut clone = Command::new("git");
    clone
        .args(["clone", "--quiet", "--no-hardlinks"])
        .arg(crate::top())
        .arg(folder);
    seconds(clone);
}
