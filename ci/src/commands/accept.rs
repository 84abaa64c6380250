//! `ci scan --accept`: adds an exception to `.trivyignore.yaml`.

use crate::model::time::today;
use crate::report::Reporter;
use crate::settings::{Acceptance, Invocation};
use crate::source::checkout::Checkout;
use crate::source::project::{Project, path_below_root};
use crate::steps::scan::{IGNORE_FILE, accepted, check_exceptions};
use common::failure::{ExitCode, Failure, OrFail};
use common::file_tree;

/// The key below which the exceptions are.
const LIST: &str = "vulnerabilities:";

/// Writes the exception, and keeps everything else in the file.
///
/// # Errors
/// When the exception is invalid or exists already, or the file is not valid (exit code 2); when it cannot be written (exit code 3).
pub(super) fn run(
    acceptance: &Acceptance,
    invocation: &Invocation,
    reporter: &Reporter,
) -> Result<ExitCode, Failure> {
    let directory = invocation.directory()?;
    let root = Checkout::discover(&directory)?.root;
    let project = Project::find(&root, &path_below_root(&root, &directory)?)?;
    let path = root.join(&project.folder).join(IGNORE_FILE);
    let before = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            return Err(error).or_environment(format!("cannot read {}", path.display()));
        }
    };
    let until = today()
        .checked_add(jiff::Span::new().days(i64::from(acceptance.days)))
        .map_err(|error| Failure::usage("--days is too large").because(error))?;
    let text = with_exception(&before, &acceptance.id, &acceptance.because, until)?;
    file_tree::write_whole(&path, text.as_bytes())
        .or_environment(format!("cannot write {}", path.display()))?;
    reporter.header(&format!(
        "wrote    {IGNORE_FILE}: {} is accepted until {until}",
        acceptance.id
    ));
    reporter.header("then     commit the file and run ci scan");
    Ok(ExitCode::Success)
}

/// The file with another exception.
fn with_exception(
    before: &str,
    id: &str,
    because: &str,
    until: jiff::civil::Date,
) -> Result<String, Failure> {
    check_exceptions(before)?;
    if let Some(known) = accepted(before)?.into_iter().find(|known| known.id == id) {
        return Err(Failure::usage(format!(
            "{IGNORE_FILE} has an exception for {id} already, until {}",
            known.until
        ))
        .hint("Change or remove that entry."));
    }
    let is_id = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if !id.starts_with(|c: char| c.is_ascii_uppercase()) || !id.bytes().all(is_id) {
        return Err(
            Failure::usage(format!("`{id}` is not the id of a vulnerability")).hint(
                "Use the id that the scan prints, such as CVE-2026-00000 or GHSA-xxxx-xxxx-xxxx.",
            ),
        );
    }
    if because.trim().is_empty() {
        return Err(Failure::usage("--because has no reason").hint(
            "Write why the vulnerability does not matter here, and what ends the exception.",
        ));
    }
    // A string of JSON is one of YAML.
    let because = serde_json::to_string(because).or_environment("cannot quote the reason")?;
    let lines: Vec<_> = before.lines().collect();
    let at = lines.iter().position(|line| line.trim_end() == LIST);
    // Entries have the indentation of those that are there.
    let indent = at
        .and_then(|at| {
            lines[at + 1..]
                .iter()
                .find(|line| line.trim_start().starts_with("- "))
        })
        .map_or("  ", |line| &line[..line.len() - line.trim_start().len()]);
    let entry = format!(
        "{indent}- id: {id}\n{indent}  statement: {because}\n{indent}  expired_at: {until}\n"
    );
    let text = match at {
        Some(at) => {
            let (head, tail) = lines.split_at(at + 1);
            let tail: String = tail.iter().map(|line| format!("{line}\n")).collect();
            format!("{}\n{entry}{tail}", head.join("\n"))
        }
        None if before.trim().is_empty() => format!("{LIST}\n{entry}"),
        None => format!("{}\n{LIST}\n{entry}", before.trim_end()),
    };
    // Whatever the style of the file is, nothing may be lost.
    let expected = accepted(before)?.len() + 1;
    let is_whole = check_exceptions(&text).is_ok()
        && accepted(&text).is_ok_and(|all| {
            all.len() == expected && all.iter().any(|it| it.id == id && it.until == until)
        });
    if is_whole {
        Ok(text)
    } else {
        Err(
            Failure::usage(format!("cannot add an entry to this {IGNORE_FILE}"))
                .output(entry)
                .hint("Add the entry above by hand."),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTIL: jiff::civil::Date = jiff::civil::date(2027, 1, 31);

    fn add(before: &str) -> Result<String, Failure> {
        with_exception(before, "CVE-2026-1", "a \"reason\": none", UNTIL)
    }

    #[test]
    fn keeps_comments_and_other_entries() {
        let entry =
            "- id: CVE-2026-1\n  statement: \"a \\\"reason\\\": none\"\n  expired_at: 2027-01-31\n";
        assert_eq!(
            add("").unwrap(),
            "vulnerabilities:\n  - id: CVE-2026-1\n    statement: \"a \\\"reason\\\": none\"\n    expired_at: 2027-01-31\n"
        );
        let old = "- id: CVE-2025-1\n  statement: old # why\n  expired_at: 2027-01-01\n";
        let file = format!("# ours\nvulnerabilities:\n# the first\n{old}misconfigurations: []\n");
        assert_eq!(
            add(&file).unwrap(),
            format!("# ours\nvulnerabilities:\n{entry}# the first\n{old}misconfigurations: []\n")
        );
        let comments = add("# nothing yet\n").unwrap();
        assert!(
            comments.starts_with("# nothing yet\nvulnerabilities:\n  - id:"),
            "{comments}"
        );
    }

    #[test]
    fn refuses_what_it_cannot_add() {
        let once = add("").unwrap();
        for (failure, words) in [
            (add(&once), "already, until 2027-01-31"),
            (
                add("vulnerabilities: [{id: CVE-1, statement: a, expired_at: 2027-01-01}]\n"),
                "cannot add an entry",
            ),
            (add("vulnerabilities:\n  - id: CVE-1\n"), "incomplete"),
            (with_exception("", "a b", "x", UNTIL), "not the id"),
            (with_exception("", "CVE-1", " ", UNTIL), "no reason"),
        ] {
            let failure = failure.unwrap_err();
            assert_eq!(failure.code as u8, 2);
            assert!(failure.message.contains(words), "{words}: {failure}");
        }
    }
}
