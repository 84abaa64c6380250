//! `ci shell`: a shell in the container of a step.

use std::io::Write;
use std::process::Stdio;

use crate::harness::{Ci, Lock, Project, lock_named};
use crate::terminal::Terminal;

/// Makes the tests of this file wait for each other, so that the processes of a shell belong to the test that holds the lock.
fn only_shell() -> Lock {
    lock_named("shell")
}

/// Asserts that no process of a shell is left. The engine runs on this machine, so its containers' processes can be seen.
#[track_caller]
fn assert_nothing_is_left() {
    let is_server = |entry: std::io::Result<std::fs::DirEntry>| {
        let command = std::fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains("CI_SHELL_PORT")
    };
    let left = || {
        std::fs::read_dir("/proc")
            .unwrap()
            .map(is_server)
            .filter(|it| *it)
            .count()
    };
    for _ in 0..50 {
        if left() == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{} processes are left", left());
}

/// Runs `ci` with a script for the shell; returns the exit code, what the shell printed, and what `ci` printed.
fn run(ci: Ci, script: &str) -> (i32, String, String) {
    let mut child = ci
        .into_command()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn opens_where_the_step_ran() {
    let _lock = only_shell();
    let project = Project::new("shell");
    project.write("ci.toml", "[test]\nenv = { GREETING = \"hello world\" }\n");
    project.commit("an environment for the tests");
    project.ci(&["test"]).run().exits(0);
    let script =
        "echo \"at $PWD: $GREETING\"\ncargo test --quiet\ntty\nenv | grep -c CI_SHELL\nexit\n";
    let (code, shell, stderr) = run(project.ci(&["shell", "test"]), script);
    assert_eq!(code, 0, "{shell}\n{stderr}");
    for part in [
        "This is the container of step test, before its command.",
        "at /work/src: hello world",
        "test result: ok. 1 passed",
        "/dev/pts/",
        "\r\n0\r\n",
    ] {
        assert!(shell.contains(part), "{part}:\n{shell}\n{stderr}");
    }
    assert!(!shell.contains("Another run"), "{shell}");
    // Nothing was compiled: the shell has the volume of the step.
    assert!(!shell.contains("Compiling"), "{shell}");

    let elsewhere = project.path().join("target/other");
    std::thread::sleep(std::time::Duration::from_secs(2));
    project.extend_test(&format!("// {:?}", std::time::SystemTime::now()));
    // Not with `run`, which removes the report of the last run.
    let other = project
        .ci(&["test", "--report-dir", elsewhere.to_str().unwrap()])
        .into_command()
        .output()
        .unwrap();
    assert!(other.status.success(), "{other:?}");
    let (code, shell, stderr) = run(project.ci(&["shell", "test"]), "exit\n");
    assert_eq!(code, 0, "{shell}\n{stderr}");
    assert!(shell.contains("Another run has used the volume"), "{shell}");
}

#[test]
fn opens_beside_the_started_image() {
    let _lock = only_shell();
    let project = Project::new("shell-smoke");
    let script = "exec 3<>/dev/tcp/service/8000\nprintf 'GET /health HTTP/1.1\\r\\n\\r\\n' >&3\nhead -n 1 <&3\nexit\n";
    let (code, shell, stderr) = run(project.ci(&["shell", "smoke"]), script);
    assert_eq!(code, 0, "{shell}\n{stderr}");
    assert!(shell.contains("HTTP/1.1 200 OK"), "{shell}\n{stderr}");
    assert_nothing_is_left();
}

#[test]
fn shell_has_the_keys_and_the_size_of_the_terminal() {
    let _lock = only_shell();
    let project = Project::new("shell-keys");
    let mut terminal = Terminal::start_with_keyboard(&project, (24, 80), &["shell", "fmt"]);
    terminal.read_until(|terminal| terminal.text().contains("before its command"));
    terminal.press("stty size\r");
    assert!(terminal.read_until(|terminal| terminal.text().contains("24 80")));
    // Interrupts the command, not `ci`.
    terminal.press("sleep 1000\r");
    std::thread::sleep(std::time::Duration::from_millis(500));
    terminal.press("\u{3}");
    terminal.press("echo interrupted $((40 + 2))\r");
    assert!(terminal.read_until(|terminal| terminal.text().contains("interrupted 42")));
    terminal.resize(30, 100);
    std::thread::sleep(std::time::Duration::from_secs(1));
    terminal.press("stty size\r");
    assert!(terminal.read_until(|terminal| terminal.text().contains("30 100")));
    terminal.press("exit\r");
    let (code, text) = terminal.end();
    assert_eq!(code, 0, "{text}");
    assert_nothing_is_left();
}
