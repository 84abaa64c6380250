//! When a run may publish: the whole rule, in one place.

use base64::Engine as _;
use secrecy::{ExposeSecret, SecretString};

use crate::model::event::Event;
use crate::model::image_name::{LoopbackRegistry, Registry, Tag};
use crate::source::checkout::{Checkout, State};
use common::failure::Failure;

/// What GitHub Actions says of a run, by the names that its documentation gives.
#[derive(Clone, Debug, Default)]
pub struct GitHub {
    /// `GITHUB_ACTIONS` is `true`.
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
}

impl GitHub {
    /// What the environment of this process says.
    #[must_use]
    pub fn from_env() -> Self {
        let var = |name| std::env::var(name).unwrap_or_default();
        Self {
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

    /// The credential for a registry, where there is a token.
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

    /// What started the run, as far as GitHub's variables tell.
    #[must_use]
    pub fn event(&self) -> Event {
        match self.event_name.as_str() {
            _ if !self.actions => Event::Local,
            "push" if self.git_ref == MAIN => Event::Push,
            "pull_request" | "pull_request_target" => Event::PullRequest,
            _ => Event::Local,
        }
    }
}

const MAIN: &str = "refs/heads/main";

/// Where a setting came from, as far as it matters to what a token may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line, which is part of the workflow that was reviewed.
    CommandLine,
    /// Anything else.
    Elsewhere,
}

/// The credential of a registry: name and token. The token cannot be printed.
#[derive(Clone, Debug)]
pub struct Credential {
    /// `GITHUB_ACTOR`.
    pub user: String,
    /// `GITHUB_TOKEN`.
    pub token: SecretString,
}

impl Credential {
    /// Name and token as a registry gets to see them: base64 of both.
    #[must_use]
    pub fn basic(&self) -> SecretString {
        let text = format!("{}:{}", self.user, self.token.expose_secret());
        base64::engine::general_purpose::STANDARD
            .encode(text)
            .into()
    }
}

/// The permission to publish one commit's image to one registry. Only [`permit`] makes it.
#[derive(Debug)]
pub struct Permit<R> {
    registry: R,
    tag: Tag,
    credential: Option<Credential>,
}

impl<R> Permit<R> {
    /// The tag that may be published.
    #[must_use]
    pub fn tag(&self) -> &Tag {
        &self.tag
    }

    /// The registry that it may be published to.
    #[must_use]
    pub fn registry(&self) -> &R {
        &self.registry
    }

    /// The credential for it, where there is one.
    #[must_use]
    pub fn credential(&self) -> Option<&Credential> {
        self.credential.as_ref()
    }
}

impl Permit<Registry> {
    /// The same permission, when it is for a registry on loopback: what an image made with stand-ins needs.
    #[must_use]
    pub fn for_loopback(self) -> Option<Permit<LoopbackRegistry>> {
        Some(Permit {
            registry: LoopbackRegistry::new(self.registry)?,
            tag: self.tag,
            credential: self.credential,
        })
    }
}

/// What a command is for, as far as the rule is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Some gates, and nothing after them.
    Gates,
    /// `ci run`: every gate, and the publish on a push to main.
    Run,
    /// `ci publish`: the publish, or a refusal.
    Publish,
}

/// What a run is about to do, as the rule sees it.
#[derive(Debug)]
pub struct Request<'a> {
    /// What GitHub says.
    pub github: &'a GitHub,
    /// The event that counts: GitHub's, or a lower one that `--event` named.
    pub event: Event,
    /// What the command is for.
    pub purpose: Purpose,
    /// The registry.
    pub registry: &'a Registry,
    /// Where the registry was named.
    pub registry_from: Origin,
    /// The sources.
    pub checkout: &'a Checkout,
}

/// The permission to publish, or none where the run ends after its gates.
///
/// # Errors
/// A run that means to publish and may not (exit 4); all conditions that fail are named at once.
pub fn permit(request: &Request<'_>) -> Result<Option<Permit<Registry>>, Failure> {
    let Request {
        github,
        event,
        purpose,
        registry,
        registry_from,
        checkout,
    } = request;
    // Who calls himself a push to main works in main's caches, which are not for everybody who asks: not for a gate alone,
    // and not for a trial.
    let raised = *event == Event::Push && github.event() != Event::Push;
    let meant = match purpose {
        Purpose::Gates => raised,
        Purpose::Run => *event == Event::Push,
        Purpose::Publish => true,
    };
    if !meant {
        return Ok(None);
    }
    let trial = *purpose == Purpose::Publish && registry.is_loopback() && !raised;
    let mut missing = Vec::new();
    if !trial {
        if !github.actions {
            missing.push(
                "GITHUB_ACTIONS is not `true`: images are published by GitHub Actions only"
                    .to_owned(),
            );
        }
        if github.event_name != "push" {
            missing.push(format!(
                "the event (GITHUB_EVENT_NAME) is `{}`, not `push`",
                github.event_name
            ));
        }
        if github.git_ref != MAIN {
            missing.push(format!("GITHUB_REF is `{}`, not `{MAIN}`", github.git_ref));
        }
        if *event != Event::Push {
            missing.push(format!("--event says `{event}`"));
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
                "GITHUB_TOKEN is not the run's own token (those begin with `ghs_`); personal access tokens are not accepted".to_owned(),
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
                "the token goes to {} only; another registry ({registry}) has to be named by --registry on the command line",
                Registry::GHCR
            ));
        }
    }
    let tag = match &checkout.state {
        State::Clean(tag) => Some(tag.clone()),
        State::Dirty(_) => {
            missing.push("the working tree has uncommitted changes".to_owned());
            None
        }
    };
    match tag {
        Some(tag) if missing.is_empty() => Ok(Some(Permit {
            registry: (*registry).clone(),
            tag,
            credential: github.credential(),
        })),
        _ => Err(Failure::refused("this run may not publish")
            .output(missing.iter().map(|line| format!("- {line}\n")).collect::<String>())
            .hint(
                "Only a push to main, on GitHub Actions, publishes. For a trial: ci publish --registry 127.0.0.1:PORT, \
                 with a registry on this machine; for the gates alone: ci run --event local.",
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
            git_ref: MAIN.into(),
            sha: SHA.into(),
            actor: "somebody".into(),
            token: Some("ghs_token".to_owned().into()),
        }
    }

    fn checkout(clean: bool) -> Checkout {
        let tag = Tag::of_commit("4f2a91c", SHA).unwrap();
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
        }
    }

    fn ask(
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
    fn a_push_to_main_may_publish() {
        let permit = ask(&push_to_main(), false, "ghcr.io", true)
            .unwrap()
            .unwrap();
        assert_eq!(permit.tag().to_string(), "4f2a91c");
    }

    #[test]
    fn each_missing_condition_refuses() {
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
            let failure = ask(&github, false, "ghcr.io", true).unwrap_err();
            assert_eq!(failure.code as u8, 4);
            assert!(failure.output.unwrap().contains(word), "{word}");
        }
        let dirty = ask(&push_to_main(), false, "ghcr.io", false).unwrap_err();
        assert!(dirty.output.unwrap().contains("uncommitted"));
        let elsewhere = ask(&push_to_main(), false, "registry.example.com", true).unwrap_err();
        assert!(elsewhere.output.unwrap().contains("--registry"));
    }

    #[test]
    fn ci_publish_refuses_what_ci_run_would_not_try() {
        type Break = fn(&mut GitHub);
        let breaks: [(&str, Break); 3] = [
            ("GITHUB_ACTIONS", |g| g.actions = false),
            ("GITHUB_EVENT_NAME", |g| {
                g.event_name = "workflow_dispatch".into()
            }),
            ("GITHUB_REF", |g| g.git_ref = "refs/heads/topic".into()),
        ];
        for (word, change) in breaks {
            let mut github = push_to_main();
            change(&mut github);
            assert!(
                ask(&github, false, "ghcr.io", true).unwrap().is_none(),
                "{word}"
            );
            let failure = ask(&github, true, "ghcr.io", true).unwrap_err();
            assert!(failure.output.unwrap().contains(word), "{word}");
        }
    }

    #[test]
    fn a_trial_on_loopback_needs_a_clean_tree_only() {
        let nobody = GitHub::default();
        assert!(
            ask(&nobody, true, "127.0.0.1:5000", true)
                .unwrap()
                .is_some()
        );
        assert_eq!(
            ask(&nobody, true, "127.0.0.1:5000", false)
                .unwrap_err()
                .code as u8,
            4
        );
        assert!(
            ask(&nobody, false, "127.0.0.1:5000", true)
                .unwrap()
                .is_none()
        );
    }

    /// Every [event] that starts a workflow.
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
        MAIN,
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
    fn of_all_that_github_can_send_only_a_push_to_main_publishes() {
        let mut published = Vec::new();
        for event in EVENTS {
            for git_ref in REFS {
                let github = GitHub {
                    event_name: event.into(),
                    git_ref: git_ref.into(),
                    ..push_to_main()
                };
                let run = ask(&github, false, "ghcr.io", true).unwrap();
                // Nor does the command that means it.
                let publish = ask(&github, true, "ghcr.io", true);
                assert_eq!(run.is_some(), publish.is_ok(), "{event} {git_ref}");
                assert_eq!(github.event() == Event::Push, run.is_some());
                assert_eq!(github.event().domain() == Domain::Main, run.is_some());
                published.extend(run.map(|_| (event, git_ref)));
            }
        }
        assert_eq!(published, [("push", MAIN)]);
    }
}
