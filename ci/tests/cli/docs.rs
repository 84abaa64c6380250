//! The documentation as a whole: relative links and anchors, the length of the README, and the messages that troubleshooting.md quotes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// A newcomer reads the README in five minutes.
const MOST_LINES: usize = 200;

/// A page, as far as links are concerned.
struct Page {
    links: Vec<String>,
    anchors: BTreeSet<String>,
}

impl Page {
    fn parse(text: &str) -> Self {
        let mut page = Self {
            links: Vec::new(),
            anchors: BTreeSet::new(),
        };
        let mut count = BTreeMap::new();
        let mut heading = None;
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let name = anchor(&heading.take().unwrap_or_default());
                    let before = count.entry(name.clone()).or_insert(0);
                    page.anchors.insert(match *before {
                        0 => name,
                        number => format!("{name}-{number}"),
                    });
                    *before += 1;
                }
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        page
    }
}

/// The anchor that GitHub gives a heading: lower case, spaces as dashes, without punctuation other than `-` and `_`.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || ['-', '_', ' '].contains(c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `README.md` and the pages of both documentation folders, as paths below the top of the repository.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![PathBuf::from("README.md")];
    for folder in ["ci/docs", "api/docs"] {
        for entry in std::fs::read_dir(top().join(folder)).unwrap() {
            let path = Path::new(folder).join(entry.unwrap().file_name());
            if path.extension() == Some(OsStr::new("md")) {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

fn parse(page: &Path) -> Page {
    Page::parse(&std::fs::read_to_string(top().join(page)).unwrap())
}

/// The path below the top of the repository that `link` on `page` names; nothing if it leads out of the repository.
fn resolve(page: &Path, link: &str) -> Option<PathBuf> {
    let mut path = page.parent()?.to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// Why `link` on `page` is broken, if it is.
fn problem(page: &Path, link: &str) -> Option<&'static str> {
    let (target, anchor) = match link.split_once('#') {
        Some((target, anchor)) => (target, Some(anchor)),
        None => (link, None),
    };
    let path = match target {
        "" => page.to_owned(),
        target => match resolve(page, target) {
            Some(path) => path,
            None => return Some("leads out of the repository"),
        },
    };
    if !top().join(&path).exists() {
        return Some("no such file");
    }
    let anchor = anchor?;
    if path.extension() != Some(OsStr::new("md")) {
        return Some("an anchor of a file that is not Markdown");
    }
    (!parse(&path).anchors.contains(anchor)).then_some("no such heading")
}

#[test]
fn every_relative_link_and_anchor_exists() {
    let mut broken = Vec::new();
    let mut followed = 0;
    for page in pages() {
        for link in parse(&page).links {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            if let Some(why) = problem(&page, &link) {
                broken.push(format!("{}: {link}: {why}", page.display()));
            }
        }
    }
    assert!(followed > 50, "only {followed} links were found");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn every_page_is_linked_from_another() {
    let pages = pages();
    let mut linked = BTreeSet::from([PathBuf::from("README.md")]);
    for page in &pages {
        for link in parse(page).links {
            let target = resolve(page, link.split('#').next().unwrap());
            linked.extend(target.filter(|target| target != page));
        }
    }
    let lonely: Vec<_> = pages
        .iter()
        .filter(|page| !linked.contains(*page))
        .collect();
    assert!(lonely.is_empty(), "no page links to {lonely:?}");
}

#[test]
fn readme_has_at_most_200_lines() {
    let text = std::fs::read_to_string(top().join("README.md")).unwrap();
    let lines = text.lines().count();
    assert!(
        lines <= MOST_LINES,
        "README.md has {lines} lines, more than {MOST_LINES}"
    );
}

#[test]
fn makes_the_anchors_that_github_makes() {
    for (heading, expected) in [
        ("Exit code 3", "exit-code-3"),
        ("ci.toml", "citoml"),
        ("One image, one commit", "one-image-one-commit"),
        ("kube-pod://", "kube-pod"),
        ("A & B", "a--b"),
        ("snake_case", "snake_case"),
    ] {
        assert_eq!(anchor(heading), expected);
    }
    let page = Page::parse(
        "# A `b`!\n\n## Same\n\n## Same\n\n```\n# no heading [x](y)\n```\n[z](w.md#v)\n",
    );
    let anchors: Vec<_> = page.anchors.iter().map(String::as_str).collect();
    assert_eq!(anchors, ["a-b", "same", "same-1"]);
    assert_eq!(page.links, ["w.md#v"]);
}

#[test]
fn finds_a_broken_link() {
    let page = Path::new("ci/docs/commands.md");
    for (link, why) in [
        ("nowhere.md", Some("no such file")),
        ("#nowhere", Some("no such heading")),
        ("../../README.md#nowhere", Some("no such heading")),
        ("../../../outside.md", Some("leads out of the repository")),
        ("#exit-codes", None),
        ("../../README.md#exit-codes", None),
        ("../common/src/pins.rs", None),
    ] {
        assert_eq!(problem(page, link), why, "{link}");
    }
}

/// The program's source without line breaks in strings, and without unit tests, which may quote other messages.
fn source_text() -> String {
    let line_break = regex::Regex::new(r"\\\n\s*").unwrap();
    let mut text = String::new();
    for folder in ["ci/src", "ci/common/src"] {
        for entry in walkdir::WalkDir::new(top().join(folder)) {
            let path = entry.unwrap().into_path();
            if path.extension() != Some(OsStr::new("rs")) {
                continue;
            }
            let file = std::fs::read_to_string(path).unwrap();
            let code = file.split("#[cfg(test)]\nmod tests").next().unwrap();
            text += &line_break.replace_all(code, "");
        }
    }
    text.replace("{FILE}", "ci.toml")
}

#[test]
fn troubleshooting_quotes_messages_of_the_program() {
    let source = source_text();
    let page = std::fs::read_to_string(top().join("ci/docs/troubleshooting.md")).unwrap();
    let mut quoted = 0;
    let mut unknown = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split(" | ").next().unwrap();
        for message in cell.split('`').skip(1).step_by(2) {
            quoted += 1;
            // `…` stands for a value.
            let mut parts = message.split('…');
            if !parts.all(|part| source.contains(part.trim_matches([' ', ',', ':']))) {
                unknown.push(message);
            }
        }
    }
    assert!(quoted > 50, "only {quoted} messages were found");
    assert!(
        unknown.is_empty(),
        "no message of the program contains: {unknown:#?}"
    );
}

#[test]
fn architecture_names_tests_that_exist() {
    let mut code = String::new();
    for folder in ["ci/src", "ci/tests"] {
        for entry in walkdir::WalkDir::new(top().join(folder)) {
            let path = entry.unwrap().into_path();
            if path.extension() == Some(OsStr::new("rs")) {
                code += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let page = std::fs::read_to_string(top().join("ci/docs/architecture.md")).unwrap();
    let (_, invariants) = page.split_once("## Invariants and their tests\n").unwrap();
    let (invariants, _) = invariants.split_once("\n## ").unwrap();
    let mut named = 0;
    for row in invariants.lines().filter(|line| line.starts_with("| ")) {
        let tests = row.split(" | ").nth(1).unwrap();
        for test in tests.split('`').skip(1).step_by(2) {
            let name = test.rsplit("::").next().unwrap();
            if name.contains('/') {
                continue;
            }
            named += 1;
            assert!(
                code.contains(&format!("fn {name}(")),
                "no test is called {test}"
            );
        }
    }
    assert!(named > 8, "only {named} tests were found");
}

/// Compares a file of the documentation with what the program says, or writes it, as insta does with snapshots.
#[track_caller]
fn assert_documented(name: &str, text: &str) {
    let path = top().join("ci/docs").join(name);
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        std::fs::write(&path, text).unwrap();
    }
    let documented = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        documented == text,
        "{} is outdated; run this test with INSTA_UPDATE=always",
        path.display()
    );
}

#[test]
fn schemas_are_those_of_the_program() {
    assert_documented("report.schema.json", &ci::report::Report::schema().unwrap());
    assert_documented("ci.schema.json", &ci::settings::schema().unwrap());
}

#[test]
fn schema_accepts_the_commented_settings_and_rejects_what_the_program_rejects() {
    let schema = serde_json::from_str(&ci::settings::schema().unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let is_valid = |text: &str| {
        let settings: serde_json::Value = toml::from_str(text).unwrap();
        validator.is_valid(&settings)
    };
    let template = include_str!("../../src/commands/init/ci.toml").replace("@source@\n", "");
    let with_all_keys: String = template
        .replace("@base@\n", "# base = \"scratch\"\n")
        .replace("@packages@\n", "# packages = []\n")
        .replace("@commit@\n", "# commit = false\n")
        .lines()
        .map(|line| {
            let key = line.strip_prefix("# ").unwrap_or(line);
            let is_setting = toml::from_str::<toml::Table>(key).is_ok();
            format!("{}\n", if is_setting { key } else { line })
        })
        .collect();
    assert!(with_all_keys.contains("\n[[gate]]\n") && with_all_keys.contains("\nlibc = "));
    assert!(is_valid(&with_all_keys), "{with_all_keys}");
    assert!(is_valid(
        &std::fs::read_to_string(top().join("ci.toml")).unwrap()
    ));
    for invalid in [
        "tag_length = 8",
        "timeout = 30",
        "[limits]\nnothing = \"1m\"",
        "[scan]\nseverity = \"HIGH\"",
        "[[gate]]\nname = \"docs\"",
        "[service]\nports = 80",
        "[services.db]\nimage = \"a:1\"\nport = 70000",
    ] {
        assert!(!is_valid(invalid), "{invalid}");
    }
}
