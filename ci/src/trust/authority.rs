//! The rule that decides whether a run is allowed to publish.

use std::path::Path;

use base64::Engine as _;
use secrecy::{ExposeSecret, SecretString};

use crate::model::event::Event;
use crate::model::image_name::{LoopbackRegistry, Registry, Tag};
use crate::source::checkout::{Checkout, State};
use common::failure::Failure;

/// The variables that [GitHub Actions sets](https://docs.github.com/actions/reference/workflows-and-actions/variables) for a run.
#[derive(Clone, Debug, Default)]
pub struct GitHub {
    /// Whether `GITHUB_ACTIONS` is `true`.
    pub actions: bool,
    /// `GITHUB_EVENT_NAME`.
    pub event_name: String,
    /// `GITHUB_REF`.
    pub git_ref: String,
    /// `GITHUB_SHA`.
    pub sha: String,
    /// `GITHUB_ACTOR`.
    pub actor: String,
    /// `GITHUB_TOKEN`.
    pub token: Option<SecretString>,
    /// The branch whose pushes are published: the repository's default branch according to the file `GITHUB_EVENT_PATH`, or the
    /// one that the command line names. A file of the commit cannot name it, as any branch could then publish.
    pub release_branch: Option<String>,
}

impl GitHub {
    /// Reads the variables from the environment of this process. `release_branch` is the one that the command line names.
    #[must_use]
    pub fn from_env(release_branch: Option<&str>) -> Self {
        let var = |name| std::env::var(name).unwrap_or_default();
        let named = release_branch.map(ToOwned::to_owned);
        Self {
            release_branch: named.or_else(|| default_branch(Path::new(&var("GITHUB_EVENT_PATH")))),
            actions: var("GITHUB_ACTIONS") == "true",
            event_name: var("GITHUB_EVENT_NAME"),
            git_ref: var("GITHUB_REF"),
            sha: var("GITHUB_SHA"),
            actor: var("GITHUB_ACTOR"),
            token: Some(var("GITHUB_TOKEN"))
                .filter(|token| !token.is_empty())
                .map(SecretString::from),
        }
    }

    /// Returns the credential for a registry if there is a token.
    #[must_use]
    pub fn credential(&self) -> Option<Credential> {
        Some(Credential {
            user: if self.actor.is_empty() {
                "ci".into()
            } else {
                self.actor.clone()
            },
            token: self.token.clone()?,
        })
    }

    /// Returns the event that started the run.
    #[must_use]
    pub fn event(&self) -> Event {
        match self.event_name.as_str() {
            _ if !self.actions => Event::Local,
            "push" if self.git_ref == self.release_ref() => Event::Push,
            "pull_request" | "pull_request_target" => Event::PullRequest,
            _ => Event::Local,
        }
    }

    /// Why a push on GitHub publishes nothing, if it is to another branch.
    #[must_use]
    pub fn unpublished_push(&self) -> Option<String> {
        (self.actions && self.event_name == "push" && self.event() != Event::Push).then(|| {
            format!(
                "this push publishes nothing: it is to {}, and only pushes to {} are published",
                self.git_ref,
                self.release_ref()
            )
        })
    }

    /// The full name of the release branch.
    fn release_ref(&self) -> String {
        let branch = self.release_branch.as_deref().unwrap_or(MAIN);
        format!("refs/heads/{branch}")
    }
}

/// The release branch if nothing names another.
const MAIN: &str = "main";

/// The default branch of the repository in the event that started a workflow. Without such a file there is none.
fn default_branch(event: &Path) -> Option<String> {
    let text = std::fs::read_to_string(event).ok()?;
    let event: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(event["repository"]["default_branch"].as_str()?.to_owned())
}

/// The origin of a setting. The token is sent only to registries that a trusted origin names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line, which is part of the reviewed workflow.
    CommandLine,
    /// Anything else.
    Elsewhere,
}

/// The credential for a registry. The token cannot be printed.
#[derive(Clone, Debug)]
pub struct Credential {
    /// `GITHUB_ACTOR`.
    pub user: String,
    /// `GITHUB_TOKEN`.
    pub token: SecretString,
}

impl Credential {
    /// Returns the base64-encoded `user:token` of the `Basic` scheme.
    #[must_use]
    pub fn basic(&self) -> SecretString {
        basic(&self.user, self.token.expose_secret())
    }
}

/// The base64-encoded `user:password` of the [`Basic` scheme](https://www.rfc-editor.org/rfc/rfc7617).
#[must_use]
pub fn basic(user: &str, password: &str) -> SecretString {
    let text = format!("{user}:{password}");
    base64::engine::general_purpose::STANDARD
        .encode(text)
        .into()
}

/// The permission to publish the image of one commit to one registry. Only [`permit`] creates it.
#[derive(Debug)]
pub struct Permit<R> {
    registry: R,
    tag: Tag,
    credential: Option<Credential>,
}

impl<R> Permit<R> {
    /// Returns the tag to publish.
    #[must_use]
    pub fn tag(&self) -> &Tag {
        &self.tag
    }

    /// Returns the registry to publish to.
    #[must_use]
    pub fn registry(&self) -> &R {
        &self.registry
    }

    /// Returns the credential for the registry, if there is one.
    #[must_use]
    pub fn credential(&self) -> Option<&Credential> {
        self.credential.as_ref()
    }
}

impl Permit<Registry> {
    /// Returns the same permission if the registry is on loopback, as images built with stand-ins require.
    #[must_use]
    pub fn for_loopback(self) -> Option<Permit<LoopbackRegistry>> {
        Some(Permit {
            registry: LoopbackRegistry::new(self.registry)?,
            tag: self.tag,
            credential: self.credential,
        })
    }
}

/// The purpose of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A command that only runs gates.
    Gates,
    /// `ci run`: every gate, then publish on a push to main.
    Run,
    /// `ci publish`: every gate, then publish. Fails if publishing is not allowed.
    Publish,
}

/// The inputs of the rule.
#[derive(Debug)]
pub struct Request<'a> {
    pub(crate) github: &'a GitHub,
    /// The effective event: from GitHub's variables, or from `--event`.
    pub event: Event,
    pub(crate) purpose: Purpose,
    pub(crate) registry: &'a Registry,
    pub(crate) registry_from: Origin,
    pub(crate) checkout: &'a Checkout,
}

/// Returns the permission to publish, or `None` if the run stops after its gates.
///
/// # Errors
/// When the run would publish but is not allowed to (exit code 4). The failure lists all unmet conditions.
pub fn permit(request: &Request<'_>) -> Result<Option<Permit<Registry>>, Failure> {
    let Request {
        github,
        event,
        purpose,
        registry,
        registry_from,
        checkout,
    } = request;
    // A run that claims to be a push to main with `--event` would write the caches of main. It needs the full permission even for
    // a single gate or a trial.
    let claims_main = *event == Event::Push && github.event() != Event::Push;
    let wants_permit = match purpose {
        Purpose::Gates => claims_main,
        Purpose::Run => *event == Event::Push,
        Purpose::Publish => true,
    };
    if !wants_permit {
        return Ok(None);
    }
    let trial = *purpose == Purpose::Publish && registry.is_loopback() && !claims_main;
    let mut missing = Vec::new();
    if !trial {
        if !github.actions {
            missing.push(
                "GITHUB_ACTIONS is not `true`: only GitHub Actions can publish images".to_owned(),
            );
        }
        if github.event_name != "push" {
            missing.push(format!(
                "the event (GITHUB_EVENT_NAME) is `{}`, not `push`",
                github.event_name
            ));
        }
        let release = github.release_ref();
        if github.git_ref != release {
            missing.push(format!(
                "GITHUB_REF is `{}`, not `{release}`",
                github.git_ref
            ));
        }
        if *event != Event::Push {
            missing.push(format!("--event is `{event}`, not `push`"));
        }
        if github.sha != checkout.commit.sha {
            missing.push(format!(
                "HEAD is {}, but GITHUB_SHA is `{}`",
                checkout.commit.sha, github.sha
            ));
        }
        match &github.token {
            None => missing.push("GITHUB_TOKEN is not set".to_owned()),
            Some(token) if !token.expose_secret().starts_with("ghs_") => missing.push(
                "GITHUB_TOKEN is not the token of the workflow run, which begins with `ghs_`; personal access tokens are not accepted".to_owned(),
            ),
            Some(_) => {}
        }
        if github.actor.is_empty() {
            missing.push("GITHUB_ACTOR is not set".to_owned());
        }
        if !registry.is_loopback()
            && registry.to_string() != Registry::GHCR
            && *registry_from != Origin::CommandLine
        {
            missing.push(format!(
                "the token is only sent to {}; another registry ({registry}) must be set with --registry on the command line",
                Registry::GHCR
            ));
        }
    }
    let tag = match &checkout.state {
        State::Clean(tag) => Some(tag.clone()),
        State::Dirty(_) => {
            missing.push(format!(
                "the working tree has uncommitted changes: {}",
                checkout.changes.join(", ")
            ));
            None
        }
    };
    match tag {
        Some(tag) if missing.is_empty() => Ok(Some(Permit {
            registry: (*registry).clone(),
            tag,
            credential: github.credential(),
        })),
        _ => Err(Failure::refused("this run is not allowed to publish")
            .output(missing.iter().map(|line| format!("- {line}\n")).collect::<String>())
            .hint(
                "Push to main to publish with GitHub Actions. To try it with a registry on this machine, run \
                 `ci publish --registry 127.0.0.1:PORT`. To run only the gates, use `ci run --event local`.",
            )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::Domain;
    use crate::source::checkout::Commit;

    const SHA: &str = "4f2a91c0d3b5e6f7a8b9c0d1e2f3a4b5c6d7e8f9";

    fn push_to_main() -> GitHub {
        GitHub {
            actions: true,
            event_name: "push".into(),
            git_ref: "refs/heads/main".into(),
            sha: SHA.into(),
            actor: "somebody".into(),
            token: Some("ghs_token".to_owned().into()),
            release_branch: None,
        }
    }

    fn checkout(clean: bool) -> Checkout {
        let tag = Tag::of_commit(SHA, Tag::LENGTH).unwrap();
        Checkout {
            root: "/".into(),
            commit: Commit {
                sha: SHA.into(),
                time: 0,
            },
            state: if clean {
                State::Clean(tag)
            } else {
                State::Dirty(tag.dirty())
            },
            changes: Vec::new(),
        }
    }

    fn request_permit(
        github: &GitHub,
        explicit: bool,
        registry: &str,
        clean: bool,
    ) -> Result<Option<Permit<Registry>>, Failure> {
        permit(&Request {
            github,
            event: github.event(),
            purpose: if explicit {
                Purpose::Publish
            } else {
                Purpose::Run
            },
            registry: &registry.parse().unwrap(),
            registry_from: Origin::Elsewhere,
            checkout: &checkout(clean),
        })
    }

    #[test]
    fn push_to_main_is_allowed_to_publish() {
        let permit = request_permit(&push_to_main(), false, "ghcr.io", true)
            .unwrap()
            .unwrap();
        assert_eq!(permit.tag().to_string(), "4f2a91c");
    }

    #[test]
    fn refuses_if_any_condition_is_unmet() {
        type Break = fn(&mut GitHub);
        let breaks: [(&str, Break); 5] = [
            ("GITHUB_SHA", |g| g.sha = "0".repeat(40)),
            ("GITHUB_TOKEN is not set", |g| g.token = None),
            ("ghs_", |g| g.token = Some("ghp_personal".to_owned().into())),
            ("GITHUB_ACTOR", |g| g.actor.clear()),
            ("GITHUB_SHA", |g| g.sha.clear()),
        ];
        for (word, change) in breaks {
            let mut github = push_to_main();
            change(&mut github);
            let failure = request_permit(&github, false, "ghcr.io", true).unwrap_err();
            assert_eq!(failure.code as u8, 4);
            assert!(failure.output.unwrap().contains(word), "{word}");
        }
        let dirty = request_permit(&push_to_main(), false, "ghcr.io", false).unwrap_err();
        assert!(dirty.output.unwrap().contains("uncommitted"));
        let elsewhere =
            request_permit(&push_to_main(), false, "registry.example.com", true).unwrap_err();
        assert!(elsewhere.output.unwrap().contains("--registry"));
    }

    #[test]
    fn ci_publish_fails_if_ci_run_would_not_publish() {
        type Break = fn(&mut GitHub);
        let breaks: [(&str, Break); 3] = [
            ("GITHUB_ACTIONS", |g| g.actions = false),
            ("GITHUB_EVENT_NAME", |g| {
                g.event_name = "workflow_dispatch".into();
            }),
            ("GITHUB_REF", |g| g.git_ref = "refs/heads/topic".into()),
        ];
        for (word, change) in breaks {
            let mut github = push_to_main();
            change(&mut github);
            assert!(
                request_permit(&github, false, "ghcr.io", true)
                    .unwrap()
                    .is_none(),
                "{word}"
            );
            let failure = request_permit(&github, true, "ghcr.io", true).unwrap_err();
            assert!(failure.output.unwrap().contains(word), "{word}");
        }
    }

    #[test]
    fn trial_on_loopback_only_needs_a_clean_tree() {
        let unset = GitHub::default();
        assert!(
            request_permit(&unset, true, "127.0.0.1:5000", true)
                .unwrap()
                .is_some()
        );
        assert_eq!(
            request_permit(&unset, true, "127.0.0.1:5000", false)
                .unwrap_err()
                .code as u8,
            4
        );
        assert!(
            request_permit(&unset, false, "127.0.0.1:5000", true)
                .unwrap()
                .is_none()
        );
    }

    /// Every [event] that can start a workflow.
    ///
    /// [event]: https://docs.github.com/actions/reference/workflows-and-actions/events-that-trigger-workflows
    const EVENTS: [&str; 38] = [
        "branch_protection_rule",
        "check_run",
        "check_suite",
        "create",
        "delete",
        "deployment",
        "deployment_status",
        "discussion",
        "discussion_comment",
        "fork",
        "gollum",
        "image_version",
        "issue_comment",
        "issues",
        "label",
        "merge_group",
        "milestone",
        "page_build",
        "project",
        "project_card",
        "project_column",
        "public",
        "pull_request",
        "pull_request_comment",
        "pull_request_review",
        "pull_request_review_comment",
        "pull_request_target",
        "push",
        "registry_package",
        "release",
        "repository_dispatch",
        "schedule",
        "status",
        "sub_issues",
        "watch",
        "workflow_call",
        "workflow_dispatch",
        "workflow_run",
    ];
    const REFS: [&str; 10] = [
        "refs/heads/main",
        "refs/tags/v1",
        "refs/tags/main",
        "refs/heads/main2",
        "refs/heads/topic",
        "refs/heads/topic/refs/heads/main",
        "refs/heads/gh-readonly-queue/main/pr-7-4f2a91c",
        "refs/pull/7/merge",
        "main",
        "",
    ];

    #[test]
    fn only_a_push_to_main_publishes_among_all_events() {
        let mut published = Vec::new();
        for event in EVENTS {
            for git_ref in REFS {
                let github = GitHub {
                    event_name: event.into(),
                    git_ref: git_ref.into(),
                    ..push_to_main()
                };
                let run = request_permit(&github, false, "ghcr.io", true).unwrap();
                // `ci publish` agrees with `ci run`.
                let publish = request_permit(&github, true, "ghcr.io", true);
                assert_eq!(run.is_some(), publish.is_ok(), "{event} {git_ref}");
                assert_eq!(github.event() == Event::Push, run.is_some());
                assert_eq!(github.event().domain() == Domain::Main, run.is_some());
                published.extend(run.map(|_| (event, git_ref)));
            }
        }
        assert_eq!(published, [("push", "refs/heads/main")]);
    }
}
