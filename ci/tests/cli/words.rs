//! Retired words stay retired: `.config/retired-words.toml` lists them.

use std::path::Path;

use regex::{Regex, RegexSet};
use serde::Deserialize;

const LIST: &str = ".config/retired-words.toml";
/// Folders that are not ours, or not text.
const SKIPPED: [&str; 5] = [".git", "target", "gomod", "compile-fail", "snapshots"];
const TEXTS: [&str; 10] = [
    "css", "html", "js", "json", "md", "py", "rs", "sh", "toml", "yml",
];

#[derive(Deserialize)]
struct List {
    retired: Vec<Retired>,
    exception: Vec<Exception>,
}

#[derive(Deserialize)]
struct Retired {
    pattern: String,
    instead: String,
}

#[derive(Deserialize)]
struct Exception {
    file: String,
    /// In the line with the word; without it, the whole file is an exception.
    line: Option<String>,
    reason: String,
}

impl Exception {
    fn covers(&self, file: &str, line: &str) -> bool {
        let line_matches = self.line.as_ref().is_none_or(|part| line.contains(part));
        file == self.file && line_matches
    }
}

/// The compiled patterns of retired words.
struct Words {
    each: Vec<(Regex, Retired)>,
    /// All patterns at once: most files contain no retired word.
    any: RegexSet,
}

fn compile(retired: Vec<Retired>) -> Words {
    let patterns: Vec<_> = retired
        .iter()
        .map(|word| format!("(?im){}", word.pattern))
        .collect();
    Words {
        any: RegexSet::new(&patterns).unwrap(),
        each: patterns
            .iter()
            .map(|pattern| Regex::new(pattern).unwrap())
            .zip(retired)
            .collect(),
    }
}

/// Each retired word in `text`, with file and line.
fn found(words: &Words, exceptions: &[Exception], file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !words.any.is_match(text) {
        return found;
    }
    for (number, line) in text.lines().enumerate() {
        for (pattern, word) in &words.each {
            let Some(hit) = pattern.find(line) else {
                continue;
            };
            if exceptions
                .iter()
                .any(|exception| exception.covers(file, line))
            {
                continue;
            }
            let (hit, number) = (hit.as_str(), number + 1);
            found.push(format!(
                "{file}:{number}: `{hit}` is retired: use {}",
                word.instead
            ));
        }
    }
    found
}

#[test]
fn uses_no_retired_word() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(top.join(LIST)).unwrap();
    let list: List = toml::from_str(&text).unwrap();
    assert!(list.exception.iter().all(|it| !it.reason.is_empty()));
    let words = compile(list.retired);
    let mut hits = Vec::new();
    let entries = walkdir::WalkDir::new(&top)
        .into_iter()
        .filter_entry(|entry| !SKIPPED.contains(&entry.file_name().to_str().unwrap_or_default()));
    let mut files = 0;
    for entry in entries.map(Result::unwrap) {
        let path = entry.path();
        let kind = path.extension().and_then(|kind| kind.to_str());
        let is_text = kind.is_some_and(|kind| TEXTS.contains(&kind)) || path.ends_with("justfile");
        if !entry.file_type().is_file() || !is_text {
            continue;
        }
        files += 1;
        let file = path.strip_prefix(&top).unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        hits.extend(found(&words, &list.exception, file, &text));
    }
    assert!(files > 100, "only {files} files were read");
    assert!(hits.is_empty(), "{}", hits.join("\n"));
}

#[test]
fn finds_a_retired_word_and_honours_an_exception() {
    let words = compile(vec![Retired {
        pattern: r"\bgadgets?\b".into(),
        instead: "device".into(),
    }]);
    let text = "fine\nTwo Gadgets work\n";
    assert_eq!(
        found(&words, &[], "a.md", text),
        ["a.md:2: `Gadgets` is retired: use device"]
    );
    let exception = |file: &str, line: &str| Exception {
        file: file.into(),
        line: Some(line.into()),
        reason: "a test".into(),
    };
    assert!(found(&words, &[exception("a.md", "Gadgets work")], "a.md", text).is_empty());
    assert!(!found(&words, &[exception("b.md", "Gadgets work")], "a.md", text).is_empty());
}
