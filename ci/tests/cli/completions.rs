//! What `ci completions` and `ci man` print, read by the programs that they are for.

use std::io::Write as _;
use std::process::{Command, Stdio};

use ci::settings::Cli;
use clap::CommandFactory;

use crate::help::stdout_of;

/// Runs a program with a script as its standard input, and returns its standard output; `None` if this machine does not have it.
fn read_by(program: &str, arguments: &[&str], script: &str) -> Option<String> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        child => child.unwrap(),
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {stderr}");
    assert_eq!(stderr, "", "{program}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn bash_completes_commands_and_options() {
    let completions = stdout_of(&["completions", "bash"]);
    let complete = |words: &str, last: usize| {
        let script = format!(
            "{completions}\nCOMP_WORDS=({words})\nCOMP_CWORD={last}\n_ci ci \"${{COMP_WORDS[{last}]}}\" \"${{COMP_WORDS[{last}-1]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        );
        read_by("bash", &["--norc", "--noprofile"], &script).expect("bash")
    };
    assert_eq!(complete("ci pub", 1), "publish\n");
    assert_eq!(complete("ci graph --form", 2), "--format\n");
    assert_eq!(complete("ci run --event pull", 3), "pull-request\n");
}

#[test]
fn every_shell_gets_every_command() {
    let command = Cli::command();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = stdout_of(&["completions", shell]);
        for command in command.get_subcommands() {
            assert!(script.contains(command.get_name()), "{shell}: {command}");
        }
        // Each shell is only asked to parse its script.
        let parser: Option<(&str, &[&str])> = match shell {
            "bash" => Some(("bash", &["-n"])),
            "fish" => Some(("fish", &["--no-execute"])),
            "zsh" => Some(("zsh", &["-n"])),
            _ => None,
        };
        if let Some((program, arguments)) = parser {
            read_by(program, arguments, &script);
        }
    }
}

#[test]
fn manual_page_of_a_command_has_its_options() {
    let page = stdout_of(&["man"]);
    assert!(page.contains(".TH ci 1"), "{page}");
    for command in Cli::command().get_subcommands() {
        let name = command.get_name().replace('-', "\\-");
        assert!(page.contains(&format!("ci\\-{name}")), "{name}: {page}");
    }
    let build = stdout_of(&["man", "build"]);
    for text in [".SH NAME", "ci\\-build", "\\-\\-output", "\\-\\-registry"] {
        assert!(build.contains(text), "{text}: {build}");
    }
    if let Some(text) = read_by("man", &["-l", "-"], &build) {
        assert!(text.contains("SYNOPSIS"), "{text}");
    }
}

#[test]
fn unknown_shells_and_commands_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, message) in [
        (["completions", "csh"], "invalid value 'csh'"),
        (["man", "deploy"], "`deploy` is not a command"),
    ] {
        let call = crate::harness::Ci::new(folder.path(), &arguments);
        crate::run_without_engine_setting(call)
            .exits(2)
            .says(message);
    }
}
