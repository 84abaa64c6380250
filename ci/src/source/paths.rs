//! Which of the sources a step is given. What it is not given it cannot depend on: a commit that changes nothing else gets the step
//! from the cache.

use std::collections::BTreeMap;
use std::path::Path;

use glob::{MatchOptions, Pattern};

use crate::model::config_file::FILE;
use crate::model::step::Step;
use common::failure::Failure;

/// Patterns, with the meaning that [`paths`] has in GitHub's workflows: the last one that matches a path counts, and `!` in front of
/// it takes out what it matches.
///
/// [`paths`]: https://docs.github.com/actions/reference/workflows-and-actions/workflow-syntax#onpushpull_requestpull_request_targetpathspaths-ignore
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths(Vec<(bool, Pattern)>);

/// `*` does not go into folders, `**` does, and both see what begins with a dot.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

impl Paths {
    fn parse(step: Step, patterns: &[String]) -> Result<Self, Failure> {
        let wrong = |why: String| {
            Failure::usage(format!("paths.{step} in {FILE}: {why}")).hint(
                "Patterns are as in `on.push.paths` of GitHub's workflows, relative to the top of the repository: \"**\", \"!docs/**\".",
            )
        };
        if patterns.iter().all(|pattern| pattern.starts_with('!')) {
            return Err(wrong(
                "nothing is left: a pattern without `!` comes first".to_owned(),
            ));
        }
        let patterns = patterns.iter().map(|text| {
            let (keeps, bare) = match text.strip_prefix('!') {
                Some(bare) => (false, bare),
                None => (true, text.as_str()),
            };
            let pattern = Pattern::new(bare)
                .map_err(|error| wrong(format!("`{text}` is not a pattern: {error}")))?;
            if bare.is_empty() || bare.starts_with('/') {
                return Err(wrong(format!(
                    "`{text}` is not a pattern of paths in the repository"
                )));
            }
            Ok((keeps, pattern))
        });
        patterns.collect::<Result<_, _>>().map(Self)
    }

    /// Whether the step is given the file at `path`, relative to the top of the repository.
    #[must_use]
    pub fn has(&self, path: &Path) -> bool {
        let last = self.0.iter().rev();
        last.into_iter()
            .find(|(_, pattern)| pattern.matches_path_with(path, OPTIONS))
            .is_some_and(|(keeps, _)| *keeps)
    }
}

/// `[paths]` of `ci.toml`, by step.
///
/// # Errors
/// When a pattern is none, or a step does not look at the sources (exit 2).
pub fn resolve(table: BTreeMap<Step, Vec<String>>) -> Result<BTreeMap<Step, Paths>, Failure> {
    table
        .into_iter()
        .map(|(step, patterns)| {
            if !step.definition().reads_sources {
                return Err(Failure::usage(format!(
                    "paths.{step} in {FILE}: {step} does not look at the sources"
                ))
                .hint("It is for test, fmt, lint and build."));
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
    fn the_last_pattern_that_matches_counts() {
        let code = paths(&["**/*.rs", "**/Cargo.toml", "!vendor/**", "vendor/ours/**"]);
        for path in [
            "main.rs",
            "api/src/main.rs",
            "Cargo.toml",
            "api/Cargo.toml",
            "vendor/ours/a/b.txt",
            ".hidden/x.rs",
        ] {
            assert!(code.has(Path::new(path)), "{path}");
        }
        for path in [
            "README.md",
            "vendor/x.rs",
            "vendor/a/b/x.rs",
            "main.rs.orig",
            "Cargo.toml.d/x",
        ] {
            assert!(!code.has(Path::new(path)), "{path}");
        }
        let most = paths(&["**", "!README.md", "!.github/**", "!docs/*"]);
        for path in ["api/README.md", "docs/a/b.md", "justfile", ".gitignore"] {
            assert!(most.has(Path::new(path)), "{path}");
        }
        for path in ["README.md", ".github/workflows/ci.yml", "docs/a.md"] {
            assert!(!most.has(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_its_step() {
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
