//! The path patterns that limit the sources of a step. A step gets no other files, so that its result can come from the cache if
//! a commit only changes other files.

use std::collections::BTreeMap;
use std::path::Path;

use glob::{MatchOptions, Pattern};

use crate::model::config_file::FILE;
use crate::model::step::Step;
use common::failure::Failure;

/// Path patterns with the semantics of [`paths`] in GitHub workflows: the last pattern that matches a path decides, and a pattern
/// that starts with `!` excludes the path.
///
/// [`paths`]: https://docs.github.com/actions/reference/workflows-and-actions/workflow-syntax#onpushpull_requestpull_request_targetpathspaths-ignore
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths(Vec<(bool, Pattern)>);

/// `*` does not match `/`, `**` does, and both match names that begin with a dot.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

impl Paths {
    fn parse(step: Step, patterns: &[String]) -> Result<Self, Failure> {
        let invalid = |why: String| {
            Failure::usage(format!("paths.{step} in {FILE}: {why}")).hint(
                "Use patterns as in `on.push.paths` of GitHub workflows, relative to the repository root: \"**\", \"!docs/**\".",
            )
        };
        if patterns.iter().all(|pattern| pattern.starts_with('!')) {
            return Err(invalid(
                "no files are included; start with a pattern without `!`".to_owned(),
            ));
        }
        let patterns = patterns.iter().map(|text| {
            let (keeps, bare) = match text.strip_prefix('!') {
                Some(bare) => (false, bare),
                None => (true, text.as_str()),
            };
            let pattern = Pattern::new(bare)
                .map_err(|error| invalid(format!("invalid pattern `{text}`: {error}")))?;
            if bare.is_empty() || bare.starts_with('/') {
                return Err(invalid(format!(
                    "invalid pattern `{text}`: must be relative to the repository root"
                )));
            }
            Ok((keeps, pattern))
        });
        patterns.collect::<Result<_, _>>().map(Self)
    }

    /// Returns whether the step gets the file at `path`, relative to the repository root.
    #[must_use]
    pub fn includes(&self, path: &Path) -> bool {
        let last = self.0.iter().rev();
        last.into_iter()
            .find(|(_, pattern)| pattern.matches_path_with(path, OPTIONS))
            .is_some_and(|(keeps, _)| *keeps)
    }

    /// Returns whether the step can get files of the directory at `folder`, whichever files it has.
    #[must_use]
    pub fn may_include_below(&self, folder: &Path) -> bool {
        for (keeps, pattern) in self.0.iter().rev() {
            match Reach::of(pattern, folder) {
                Reach::All => return *keeps,
                Reach::Some if *keeps => return true,
                Reach::Some | Reach::None => {}
            }
        }
        false
    }
}

/// How many of the files of a directory a pattern matches.
enum Reach {
    All,
    /// Some, or perhaps none.
    Some,
    None,
}

impl Reach {
    fn of(pattern: &Pattern, folder: &Path) -> Self {
        let mut parts = pattern.as_str().split('/').peekable();
        for name in folder.components() {
            match parts.next() {
                // Every file has a name after all that `**` matches.
                Some("**") => {
                    return match parts.next() {
                        None | Some("*") if parts.peek().is_none() => Self::All,
                        _ => Self::Some,
                    };
                }
                Some(part) if parts.peek().is_some() => {
                    let name = name.as_os_str().to_string_lossy();
                    let matches =
                        Pattern::new(part).is_ok_and(|part| part.matches_with(&name, OPTIONS));
                    if !matches {
                        return Self::None;
                    }
                }
                _ => return Self::None,
            }
        }
        match (parts.next(), parts.next(), parts.next()) {
            (Some("**"), None | Some("*"), None) => Self::All,
            _ => Self::Some,
        }
    }
}

/// Parses `[paths]` of `ci.toml`.
///
/// # Errors
/// When a pattern is invalid, or the step does not read the sources (exit code 2).
pub fn resolve(table: BTreeMap<Step, Vec<String>>) -> Result<BTreeMap<Step, Paths>, Failure> {
    table
        .into_iter()
        .map(|(step, patterns)| {
            if !step.definition().reads_sources {
                return Err(Failure::usage(format!(
                    "paths.{step} in {FILE}: the {step} step does not read the sources"
                ))
                .hint("Remove it. Only test, fmt, lint, custom and build can have paths."));
            }
            Ok((step, Paths::parse(step, &patterns)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(patterns: &[&str]) -> Paths {
        let patterns: Vec<_> = patterns.iter().map(ToString::to_string).collect();
        Paths::parse(Step::Fmt, &patterns).unwrap()
    }

    #[test]
    fn last_matching_pattern_decides() {
        let code = paths(&["**/*.rs", "**/Cargo.toml", "!vendor/**", "vendor/ours/**"]);
        for path in [
            "main.rs",
            "api/src/main.rs",
            "Cargo.toml",
            "api/Cargo.toml",
            "vendor/ours/a/b.txt",
            ".hidden/x.rs",
        ] {
            assert!(code.includes(Path::new(path)), "{path}");
        }
        for path in [
            "README.md",
            "vendor/x.rs",
            "vendor/a/b/x.rs",
            "main.rs.orig",
            "Cargo.toml.d/x",
        ] {
            assert!(!code.includes(Path::new(path)), "{path}");
        }
        let most = paths(&["**", "!README.md", "!.github/**", "!docs/*"]);
        for path in ["api/README.md", "docs/a/b.md", "justfile", ".gitignore"] {
            assert!(most.includes(Path::new(path)), "{path}");
        }
        for path in ["README.md", ".github/workflows/ci.yml", "docs/a.md"] {
            assert!(!most.includes(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn tells_whether_files_of_a_directory_can_be_included() {
        for (patterns, may) in [
            (&["**"][..], true),
            (&["**/*"], true),
            (&["**", "!vendor/dep/**"], false),
            (&["**", "!vendor/**"], false),
            (&["**", "!vendor/*/**"], false),
            (&["**", "!**/*.md"], true),
            (&["**", "!vendor/dep/docs/**"], true),
            // Only a file of this name is excluded.
            (&["**", "!vendor/dep"], true),
            (&["**", "!vendor/other/**"], true),
            (&["src/**", "Cargo.*", "*"], false),
            (&["**/*.rs"], true),
            (&["**", "!vendor/dep/**", "vendor/dep/a.txt"], true),
            (&["vendor/dep/**", "!**"], false),
        ] {
            let found = paths(patterns).may_include_below(Path::new("vendor/dep"));
            assert_eq!(found, may, "{patterns:?}");
        }
    }

    #[test]
    fn rejects_invalid_path_pattern() {
        for bad in [
            &["a**"][..],
            &["[a"],
            &[],
            &["!docs/**"],
            &["", "**"],
            &["/etc/**"],
        ] {
            let patterns: Vec<_> = bad.iter().map(ToString::to_string).collect();
            let failure = resolve([(Step::Lint, patterns)].into()).unwrap_err();
            assert_eq!(failure.code as u8, 2, "{bad:?}");
            assert!(failure.message.contains("paths.lint"), "{failure}");
        }
        assert_eq!(
            resolve([(Step::Smoke, vec!["**".into()])].into())
                .unwrap_err()
                .code as u8,
            2
        );
    }
}
