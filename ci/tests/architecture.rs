//! Compares every import of the workspace with the tables of `ci/docs/architecture.md`, and rejects import cycles between files.

#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and prints its counts"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::RandomState;
use std::path::Path;

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Item, ItemMod, ItemUse, Macro, UseTree, Visibility};

/// A crate of the workspace, with the text of each file by its path below `src`.
struct Crate {
    name: &'static str,
    files: BTreeMap<String, String>,
}

impl Crate {
    fn read(name: &'static str, folder: &str) -> Self {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(folder)
            .join("src");
        let files = walkdir::WalkDir::new(&top)
            .into_iter()
            .map(Result::unwrap)
            .filter(|entry| entry.path().extension().is_some_and(|it| it == "rs"))
            .map(|entry| {
                let name = entry.path().strip_prefix(&top).unwrap();
                let text = std::fs::read_to_string(entry.path()).unwrap();
                (name.to_str().unwrap().to_owned(), text)
            })
            .collect();
        Self { name, files }
    }
}

/// The path of a module, starting with the crate's name.
type Module = Vec<String>;

fn module_of(krate: &str, file: &str) -> Module {
    let path = file.trim_end_matches(".rs");
    let mut parts = vec![krate.to_owned()];
    parts.extend(path.split('/').map(ToOwned::to_owned));
    if matches!(
        parts.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        parts.pop();
    }
    parts
}

/// The imports and exports of one file.
#[derive(Default)]
struct ParsedFile {
    /// Full paths of its imports.
    used: BTreeSet<Vec<String>>,
    /// Full path of each re-exported item, by its exported name.
    exports: BTreeMap<String, Vec<String>>,
    /// Modules that it re-exports with a glob.
    globs: Vec<Vec<String>>,
}

/// Collects the imports of one file. `here` is the file's module, `inner` the depth of inline modules at the current position.
struct Reader<'a> {
    here: &'a Module,
    inner: usize,
    roots: &'a BTreeSet<String>,
    children: BTreeSet<String>,
    parsed: ParsedFile,
}

impl Reader<'_> {
    /// The full path, or `None` if it leads out of the workspace.
    fn resolve(&self, path: &[String]) -> Option<Vec<String>> {
        let first = path.first()?.as_str();
        let mut resolved = match first {
            "crate" => vec![self.here[0].clone()],
            "self" if self.inner == 0 => self.here.clone(),
            "self" => return None,
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let above_file = ups.checked_sub(self.inner).filter(|it| *it > 0)?;
                let mut base = self.here.clone();
                base.truncate(base.len().saturating_sub(above_file).max(1));
                base.extend_from_slice(&path[ups..]);
                return Some(base);
            }
            root if self.roots.contains(root) && root != self.here[0] => vec![root.to_owned()],
            child if self.inner == 0 && self.children.contains(child) => {
                let mut base = self.here.clone();
                base.push(child.to_owned());
                base
            }
            _ => return None,
        };
        resolved.extend_from_slice(&path[1..]);
        Some(resolved)
    }

    fn add_import(&mut self, path: &[String]) {
        if let Some(resolved) = self.resolve(path) {
            self.parsed.used.insert(resolved);
        }
    }

    fn read_use(&mut self, prefix: &mut Vec<String>, tree: &UseTree, exported: bool) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.read_use(prefix, &path.tree, exported);
                prefix.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.read_use(prefix, tree, exported);
                }
            }
            UseTree::Glob(_) if exported => {
                let module = self.resolve(prefix);
                self.parsed.globs.extend(module);
            }
            UseTree::Glob(_) => self.add_import(&prefix.clone()),
            UseTree::Name(_) | UseTree::Rename(_) => {
                let (name, alias) = match tree {
                    UseTree::Rename(it) => (it.ident.to_string(), it.rename.to_string()),
                    UseTree::Name(it) => (it.ident.to_string(), it.ident.to_string()),
                    _ => unreachable!(),
                };
                let mut path = prefix.clone();
                if name != "self" {
                    path.push(name);
                }
                match self.resolve(&path) {
                    Some(item) if exported => drop(self.parsed.exports.insert(alias, item)),
                    Some(item) => drop(self.parsed.used.insert(item)),
                    None => {}
                }
            }
        }
    }

    /// Reads paths from the unparsed tokens of a macro.
    fn read_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(it) if it.as_char() == ':' => colons += 1,
                TokenTree::Ident(it) => {
                    if colons != 2 {
                        self.add_import(&std::mem::take(&mut path));
                    }
                    path.push(it.to_string());
                    colons = 0;
                }
                other => {
                    self.add_import(&std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.read_tokens(group.stream());
                    }
                }
            }
        }
        self.add_import(&path);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let exported = self.inner == 0 && !matches!(item.vis, Visibility::Inherited);
        self.read_use(&mut Vec::new(), &item.tree, exported);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.inner += 1;
        visit::visit_item_mod(self, item);
        self.inner -= 1;
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<_> = path
            .segments
            .iter()
            .map(|it| it.ident.to_string())
            .collect();
        if parts.len() > 1 {
            self.add_import(&parts);
        }
        visit::visit_path(self, path);
    }

    /// Skips the path in `pub(in …)`, which is not an import.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.read_tokens(item.tokens.clone());
    }
}

struct Imports {
    /// Importing file as `crate/file`, full path, imported file.
    all: Vec<(String, String, String)>,
    /// Importing and imported file, without re-exports.
    used: BTreeSet<(String, String)>,
}

/// The file that defines the item at `path`, found through at most `left` re-exports.
fn find_definition(
    path: &[String],
    modules: &BTreeMap<Module, String>,
    parsed: &BTreeMap<String, ParsedFile>,
    left: usize,
) -> Option<String> {
    let left = left.checked_sub(1)?;
    let length = (1..=path.len())
        .rev()
        .find(|it| modules.contains_key(&path[..*it]))?;
    let file = &modules[&path[..length]];
    let Some(name) = path.get(length) else {
        return Some(file.clone());
    };
    let rest = |target: &[String], from: usize| [target, &path[from..]].concat();
    if let Some(target) = parsed[file].exports.get(name) {
        return find_definition(&rest(target, length + 1), modules, parsed, left);
    }
    let through = parsed[file].globs.iter().find_map(|target| {
        let path = rest(target, length);
        let exists = modules.contains_key(&path[..=target.len()]);
        exists
            .then(|| find_definition(&path, modules, parsed, left))
            .flatten()
    });
    Some(through.unwrap_or_else(|| file.clone()))
}

fn find_imports(crates: &[Crate]) -> Imports {
    let roots: BTreeSet<_> = crates.iter().map(|it| it.name.to_owned()).collect();
    let mut modules = BTreeMap::new();
    for krate in crates {
        for file in krate.files.keys() {
            // `lib.rs` and `main.rs` are separate crates, and only the first declares modules.
            if file != "main.rs" || !krate.files.contains_key("lib.rs") {
                let module = module_of(krate.name, file);
                modules.insert(module, format!("{}/{file}", krate.name));
            }
        }
    }
    let mut parsed = BTreeMap::new();
    for krate in crates {
        for (file, text) in &krate.files {
            let here = module_of(krate.name, file);
            let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
            let children = syntax.items.iter().filter_map(|item| match item {
                Item::Mod(item) if item.content.is_none() => Some(item.ident.to_string()),
                _ => None,
            });
            let mut reader = Reader {
                here: &here,
                inner: 0,
                roots: &roots,
                children: children.collect(),
                parsed: ParsedFile::default(),
            };
            reader.visit_file(&syntax);
            parsed.insert(format!("{}/{file}", krate.name), reader.parsed);
        }
    }
    let resolve = |path: &[String]| find_definition(path, &modules, &parsed, 8);
    let mut all = Vec::new();
    let mut used = BTreeSet::new();
    for (file, imports) in &parsed {
        for path in &imports.used {
            if let Some(to) = resolve(path).filter(|to| to != file) {
                all.push((file.clone(), path.join("::"), to.clone()));
                used.insert((file.clone(), to));
            }
        }
        for path in imports.exports.values().chain(&imports.globs) {
            if let Some(to) = resolve(path).filter(|to| to != file) {
                all.push((file.clone(), path.join("::"), to));
            }
        }
    }
    Imports { all, used }
}

fn find_cycles(imports: &Imports) -> Vec<Vec<&str>> {
    let edges = imports.used.iter().map(|(from, to)| (&**from, &**to));
    let graph = DiGraphMap::<&str, (), RandomState>::from_edges(edges);
    let mut found = tarjan_scc(&graph);
    found.retain(|files| files.len() > 1);
    found
}

struct Row {
    name: String,
    allowed: BTreeSet<String>,
}

fn code_spans(cell: &str) -> Vec<String> {
    let marked = cell.split('`').skip(1).step_by(2);
    marked
        .map(|it| it.trim_end_matches('/').to_owned())
        .collect()
}

/// Rows of the tables `| name | holds | may import |` in the document, by crate.
fn parse_tables(document: &str) -> BTreeMap<String, Vec<Row>> {
    let mut tables = BTreeMap::<_, Vec<Row>>::new();
    let mut heading = String::new();
    for line in document.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            heading = code_spans(title).concat();
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, names, _, imports, _] = cells[..] else {
            continue;
        };
        let names = code_spans(names);
        if names.is_empty() {
            continue;
        }
        let rows = tables.entry(heading.clone()).or_default();
        let above: BTreeSet<_> = rows.iter().map(|row| row.name.clone()).collect();
        let named: BTreeSet<_> = code_spans(imports).into_iter().collect();
        let allowed: BTreeSet<_> = match imports.split(' ').next() {
            Some("all") => above.difference(&named).cloned().collect(),
            _ => named,
        };
        for name in names {
            rows.push(Row {
                name,
                allowed: allowed.clone(),
            });
        }
    }
    tables
}

/// The row of the file's top-level folder, or of the file itself if it is at the top level.
fn row_of<'a>(tables: &'a BTreeMap<String, Vec<Row>>, table: &str, file: &str) -> Option<&'a Row> {
    let (krate, path) = file.split_once('/')?;
    let top = path.split('/').next()?;
    let stem = top.trim_end_matches(".rs");
    // All of `common` is one row, except for the folder `provision`.
    let name = match (krate, stem) {
        ("common", "provision") => "provision",
        ("common", _) => "common",
        _ => stem,
    };
    tables.get(table)?.iter().find(|row| row.name == name)
}

/// One message for each import that the tables do not allow.
fn find_forbidden_imports(imports: &Imports, tables: &BTreeMap<String, Vec<Row>>) -> Vec<String> {
    let mut messages = BTreeSet::new();
    for (from, path, to) in &imports.all {
        let table = if from.starts_with("api/") {
            "api"
        } else {
            "ci"
        };
        // A crate's root declares its modules and re-exports some of their items.
        if from.ends_with("/lib.rs") {
            continue;
        }
        let (Some(row), Some(target)) = (row_of(tables, table, from), row_of(tables, table, to))
        else {
            messages.insert(format!(
                "{from}: {path}: {from} or {to} has no row in the table"
            ));
            continue;
        };
        if row.name != target.name && !row.allowed.contains(&target.name) {
            messages.insert(format!(
                "{from}: {path}: the row `{}` is not allowed to import `{}`",
                row.name, target.name
            ));
        }
    }
    messages.into_iter().collect()
}

fn read_document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    std::fs::read_to_string(path).unwrap()
}

fn read_workspace() -> [Crate; 3] {
    [
        Crate::read("common", "common"),
        Crate::read("ci", "."),
        Crate::read("api", "../api"),
    ]
}

#[test]
fn imports_follow_the_table() {
    let forbidden = find_forbidden_imports(
        &find_imports(&read_workspace()),
        &parse_tables(&read_document()),
    );
    assert!(forbidden.is_empty(), "{}", forbidden.join("\n"));
}

#[test]
fn has_no_import_cycle_between_files() {
    let imports = find_imports(&read_workspace());
    let cycles = find_cycles(&imports);
    let files: usize = cycles.iter().map(Vec::len).sum();
    println!("files in import cycles: {files}");
    assert_eq!(files, 0, "{cycles:#?}");
}

#[test]
fn every_file_has_a_table_row() {
    let tables = parse_tables(&read_document());
    for krate in read_workspace() {
        let table = if krate.name == "api" { "api" } else { "ci" };
        for file in krate
            .files
            .keys()
            .filter(|it| !matches!(it.as_str(), "lib.rs" | "main.rs"))
        {
            let file = format!("{}/{file}", krate.name);
            assert!(row_of(&tables, table, &file).is_some(), "{file} has no row");
        }
    }
}

fn crate_of(files: &[(&str, &str)]) -> [Crate; 1] {
    let files = files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    [Crate {
        name: "ci",
        files: files.collect(),
    }]
}

const TABLE: &str = "### `ci`\n| layer | holds | may import |\n|---|---|---|\n| `model/` | | |\n| `run/` | | `model` |\n| `steps/` | | all above |\n";

#[test]
fn detects_forbidden_imports_in_every_syntax() {
    let lib = ("lib.rs", "pub mod model; pub mod run; pub mod steps;");
    let steps = ("steps/mod.rs", "mod smoke; pub use smoke::Smoked;");
    let smoke = (
        "steps/smoke.rs",
        "use crate::model::Step; pub struct Smoked;",
    );
    for bad in [
        "use crate::steps::Smoked;",
        "use crate::{steps::{self}};",
        "use super::steps as other;",
        "fn f() { let _ = crate::steps::Smoked; }",
        "fn f() { println!(\"{}\", crate::steps::NAME); }",
        "mod tests { use super::super::steps::Smoked; }",
        "pub use crate::steps::Smoked;",
    ] {
        let model = ("model/mod.rs", bad);
        let found = find_forbidden_imports(
            &find_imports(&crate_of(&[lib, steps, smoke, model])),
            &parse_tables(TABLE),
        );
        assert_eq!(found.len(), 1, "{bad}: {found:?}");
        assert!(
            found[0].starts_with("ci/model/mod.rs: ci::steps"),
            "{found:?}"
        );
        assert!(
            found[0].ends_with("the row `model` is not allowed to import `steps`"),
            "{found:?}"
        );
    }
    let good = (
        "model/mod.rs",
        "mod tests { use super::*; } pub struct Step;",
    );
    let found = find_forbidden_imports(
        &find_imports(&crate_of(&[lib, steps, smoke, good])),
        &parse_tables(TABLE),
    );
    assert_eq!(found, [""; 0]);
}

#[test]
fn detects_a_cycle_through_a_re_export() {
    let files = [
        ("lib.rs", "pub mod run;"),
        ("run/mod.rs", "mod a; mod b; mod c; pub use b::B;"),
        ("run/a.rs", "use super::B; pub struct A;"),
        ("run/b.rs", "use super::c::C; pub struct B;"),
        ("run/c.rs", "pub struct C(super::a::A);"),
    ];
    let imports = find_imports(&crate_of(&files));
    let mut cycle = find_cycles(&imports).concat();
    cycle.sort_unstable();
    assert_eq!(cycle, ["ci/run/a.rs", "ci/run/b.rs", "ci/run/c.rs"]);
}
