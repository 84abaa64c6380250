//! Every import of the workspace, compared with the tables of `ci/docs/architecture.md`; and no two files import each other, by however
//! many steps.

#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and says what it has counted"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::RandomState;
use std::path::Path;

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Item, ItemMod, ItemUse, Macro, UseTree, Visibility};

/// A crate of the workspace: its name in paths, and its files by the path below `src`.
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

/// A module: the crate and the path in it.
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

/// What one file says.
#[derive(Default)]
struct Said {
    /// Paths that it uses, whole.
    used: BTreeSet<Vec<String>>,
    /// Names that it re-exports, and what they are.
    exports: BTreeMap<String, Vec<String>>,
    /// Modules of which it re-exports everything.
    globs: Vec<Vec<String>>,
}

/// Reads one file; `here` is the module that it is, `inner` the modules within the file that are open.
struct Reader<'a> {
    here: &'a Module,
    inner: usize,
    roots: &'a BTreeSet<String>,
    children: BTreeSet<String>,
    said: Said,
}

impl Reader<'_> {
    /// The whole path, where it is one into this workspace.
    fn whole(&self, path: &[String]) -> Option<Vec<String>> {
        let first = path.first()?.as_str();
        let mut whole = match first {
            "crate" => vec![self.here[0].clone()],
            "self" if self.inner == 0 => self.here.clone(),
            "self" => return None,
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let beyond = ups.checked_sub(self.inner).filter(|it| *it > 0)?;
                let mut base = self.here.clone();
                base.truncate(base.len().saturating_sub(beyond).max(1));
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
        whole.extend_from_slice(&path[1..]);
        Some(whole)
    }

    fn uses(&mut self, path: &[String]) {
        if let Some(whole) = self.whole(path) {
            self.said.used.insert(whole);
        }
    }

    fn tree(&mut self, prefix: &mut Vec<String>, tree: &UseTree, exported: bool) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.tree(prefix, &path.tree, exported);
                prefix.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.tree(prefix, tree, exported);
                }
            }
            UseTree::Glob(_) if exported => {
                let whole = self.whole(prefix);
                self.said.globs.extend(whole);
            }
            UseTree::Glob(_) => self.uses(&prefix.clone()),
            UseTree::Name(_) | UseTree::Rename(_) => {
                let (name, called) = match tree {
                    UseTree::Rename(it) => (it.ident.to_string(), it.rename.to_string()),
                    UseTree::Name(it) => (it.ident.to_string(), it.ident.to_string()),
                    _ => unreachable!(),
                };
                let mut path = prefix.clone();
                if name != "self" {
                    path.push(name);
                }
                match self.whole(&path) {
                    Some(whole) if exported => drop(self.said.exports.insert(called, whole)),
                    Some(whole) => drop(self.said.used.insert(whole)),
                    None => {}
                }
            }
        }
    }

    /// Paths in the tokens of a macro, which nobody has parsed.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(it) if it.as_char() == ':' => colons += 1,
                TokenTree::Ident(it) => {
                    if colons != 2 {
                        self.uses(&std::mem::take(&mut path));
                    }
                    path.push(it.to_string());
                    colons = 0;
                }
                other => {
                    self.uses(&std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.uses(&path);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let exported = self.inner == 0 && !matches!(item.vis, Visibility::Inherited);
        self.tree(&mut Vec::new(), &item.tree, exported);
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
            self.uses(&parts);
        }
        visit::visit_path(self, path);
    }

    /// `pub(in …)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.tokens(item.tokens.clone());
    }
}

/// The imports of all files: from which file, the path as it ends, and the file that it leads to.
struct Imports {
    /// `crate/file`, path, `crate/file`.
    all: Vec<(String, String, String)>,
    /// The same without what is only re-exported.
    used: BTreeSet<(String, String)>,
}

/// The file that a path leads to, through however many re-exports.
fn end(
    path: &[String],
    modules: &BTreeMap<Module, String>,
    said: &BTreeMap<String, Said>,
    left: usize,
) -> Option<String> {
    let left = left.checked_sub(1)?;
    let long = (1..=path.len())
        .rev()
        .find(|it| modules.contains_key(&path[..*it]))?;
    let file = &modules[&path[..long]];
    let Some(name) = path.get(long) else {
        return Some(file.clone());
    };
    let rest = |target: &[String], from: usize| [target, &path[from..]].concat();
    if let Some(target) = said[file].exports.get(name) {
        return end(&rest(target, long + 1), modules, said, left);
    }
    let through = said[file].globs.iter().find_map(|target| {
        let path = rest(target, long);
        let is_there = modules.contains_key(&path[..=target.len()]);
        is_there.then(|| end(&path, modules, said, left)).flatten()
    });
    Some(through.unwrap_or_else(|| file.clone()))
}

fn imports(crates: &[Crate]) -> Imports {
    let roots: BTreeSet<_> = crates.iter().map(|it| it.name.to_owned()).collect();
    let mut modules = BTreeMap::new();
    for krate in crates {
        for file in krate.files.keys() {
            // `lib.rs` and `main.rs` are two crates; only the first has modules.
            if file != "main.rs" || !krate.files.contains_key("lib.rs") {
                let module = module_of(krate.name, file);
                modules.insert(module, format!("{}/{file}", krate.name));
            }
        }
    }
    let mut said = BTreeMap::new();
    for krate in crates {
        for (file, text) in &krate.files {
            let here = module_of(krate.name, file);
            let parsed = syn::parse_file(text).unwrap_or_else(|why| panic!("{file}: {why}"));
            let children = parsed.items.iter().filter_map(|item| match item {
                Item::Mod(item) if item.content.is_none() => Some(item.ident.to_string()),
                _ => None,
            });
            let mut reader = Reader {
                here: &here,
                inner: 0,
                roots: &roots,
                children: children.collect(),
                said: Said::default(),
            };
            reader.visit_file(&parsed);
            said.insert(format!("{}/{file}", krate.name), reader.said);
        }
    }
    let end = |path: &[String]| end(path, &modules, &said, 8);
    let mut all = Vec::new();
    let mut used = BTreeSet::new();
    for (file, said) in &said {
        for path in &said.used {
            if let Some(to) = end(path).filter(|to| to != file) {
                all.push((file.clone(), path.join("::"), to.clone()));
                used.insert((file.clone(), to));
            }
        }
        for path in said.exports.values().chain(&said.globs) {
            if let Some(to) = end(path).filter(|to| to != file) {
                all.push((file.clone(), path.join("::"), to));
            }
        }
    }
    Imports { all, used }
}

/// The files that import each other.
fn cycles(imports: &Imports) -> Vec<Vec<&str>> {
    let edges = imports.used.iter().map(|(from, to)| (&**from, &**to));
    let graph = DiGraphMap::<&str, (), RandomState>::from_edges(edges);
    let mut found = tarjan_scc(&graph);
    found.retain(|files| files.len() > 1);
    found
}

/// A row of a table: its name, and what it may import.
struct Row {
    name: String,
    may: BTreeSet<String>,
}

fn words(cell: &str) -> Vec<String> {
    let marked = cell.split('`').skip(1).step_by(2);
    marked
        .map(|it| it.trim_end_matches('/').to_owned())
        .collect()
}

/// The rows of the tables in the document: `| name | holds | may import |`, by crate.
fn tables(document: &str) -> BTreeMap<String, Vec<Row>> {
    let mut tables = BTreeMap::<_, Vec<Row>>::new();
    let mut heading = String::new();
    for line in document.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            heading = words(title).concat();
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, names, _, imports, _] = cells[..] else {
            continue;
        };
        let names = words(names);
        if names.is_empty() {
            continue;
        }
        let rows = tables.entry(heading.clone()).or_default();
        let above: BTreeSet<_> = rows.iter().map(|row| row.name.clone()).collect();
        let named: BTreeSet<_> = words(imports).into_iter().collect();
        let may: BTreeSet<_> = match imports.split(' ').next() {
            Some("all") => above.difference(&named).cloned().collect(),
            _ => named,
        };
        for name in names {
            rows.push(Row {
                name,
                may: may.clone(),
            });
        }
    }
    tables
}

/// The row that a file is in: that of its folder, or of the file at the top.
fn row_of<'a>(tables: &'a BTreeMap<String, Vec<Row>>, table: &str, file: &str) -> Option<&'a Row> {
    let (krate, path) = file.split_once('/')?;
    let top = path.split('/').next()?;
    let stem = top.trim_end_matches(".rs");
    // All of `common` but its folder is one row.
    let name = match (krate, stem) {
        ("common", "provision") => "provision",
        ("common", _) => "common",
        _ => stem,
    };
    tables.get(table)?.iter().find(|row| row.name == name)
}

/// Every import that no row allows, each with its file and row.
fn wrong(imports: &Imports, tables: &BTreeMap<String, Vec<Row>>) -> Vec<String> {
    let mut wrong = BTreeSet::new();
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
        let (Some(of), Some(target)) = (row_of(tables, table, from), row_of(tables, table, to))
        else {
            wrong.insert(format!(
                "{from}: {path}: no row of the table is {from} or {to}"
            ));
            continue;
        };
        if of.name != target.name && !of.may.contains(&target.name) {
            wrong.insert(format!(
                "{from}: {path}: the row `{}` may not import `{}`",
                of.name, target.name
            ));
        }
    }
    wrong.into_iter().collect()
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    std::fs::read_to_string(path).unwrap()
}

fn workspace() -> [Crate; 3] {
    [
        Crate::read("common", "common"),
        Crate::read("ci", "."),
        Crate::read("api", "../api"),
    ]
}

#[test]
fn imports_only_what_the_table_allows() {
    let wrong = wrong(&imports(&workspace()), &tables(&document()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn has_no_import_cycle_between_files() {
    let imports = imports(&workspace());
    let cycles = cycles(&imports);
    let files: usize = cycles.iter().map(Vec::len).sum();
    println!("files in import cycles: {files}");
    assert_eq!(files, 0, "{cycles:#?}");
}

#[test]
fn every_folder_has_a_row() {
    let tables = tables(&document());
    for krate in workspace() {
        let table = if krate.name == "api" { "api" } else { "ci" };
        for file in krate
            .files
            .keys()
            .filter(|it| !matches!(it.as_str(), "lib.rs" | "main.rs"))
        {
            let file = format!("{}/{file}", krate.name);
            assert!(
                row_of(&tables, table, &file).is_some(),
                "{file} is in no row"
            );
        }
    }
}

fn made(files: &[(&str, &str)]) -> [Crate; 1] {
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
fn finds_an_import_that_no_row_allows_however_it_is_written() {
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
        let found = wrong(&imports(&made(&[lib, steps, smoke, model])), &tables(TABLE));
        assert_eq!(found.len(), 1, "{bad}: {found:?}");
        assert!(
            found[0].starts_with("ci/model/mod.rs: ci::steps"),
            "{found:?}"
        );
        assert!(
            found[0].ends_with("the row `model` may not import `steps`"),
            "{found:?}"
        );
    }
    let good = (
        "model/mod.rs",
        "mod tests { use super::*; } pub struct Step;",
    );
    let found = wrong(&imports(&made(&[lib, steps, smoke, good])), &tables(TABLE));
    assert_eq!(found, [""; 0]);
}

#[test]
fn finds_a_cycle_through_a_re_export() {
    let files = [
        ("lib.rs", "pub mod run;"),
        ("run/mod.rs", "mod a; mod b; mod c; pub use b::B;"),
        ("run/a.rs", "use super::B; pub struct A;"),
        ("run/b.rs", "use super::c::C; pub struct B;"),
        ("run/c.rs", "pub struct C(super::a::A);"),
    ];
    let imports = imports(&made(&files));
    let mut cycle = cycles(&imports).concat();
    cycle.sort_unstable();
    assert_eq!(cycle, ["ci/run/a.rs", "ci/run/b.rs", "ci/run/c.rs"]);
}
