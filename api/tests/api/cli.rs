//! The command line: what it takes, what it says, and with which exit code.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::PathBuf,
    process::Output,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::process::{Service, api};

/// The exit code, stdout and stderr of `api` with `arguments` in `environment`.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = api(environment).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// A configuration in a folder that is removed with the first of the two.
fn file(text: impl AsRef<[u8]>) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("api.toml");
    fs::write(&path, text).unwrap();
    let path = path.into_os_string().into_string().unwrap();
    (folder, path)
}

#[test]
fn help_and_version_are_said_on_stdout() {
    let (code, help, stderr) = run(&["--help"], &[("API_CONFIG", "secret")]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!("help", help);
    let (code, help, _) = run(&["healthcheck", "--help"], &[]);
    assert_eq!(code, Some(0));
    insta::assert_snapshot!("help_of_healthcheck", help);
    let version = format!("api {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["--version"], &[]), (Some(0), version, String::new()));
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &["fly"][..],
        &["--confg", "x"],
        &["check-config"],
        &["serve", "x"],
        &["--config"],
    ] {
        let (code, stdout, stderr) = run(arguments, &[]);
        assert_eq!((code, stdout.as_str()), (Some(2), ""));
        assert!(stderr.starts_with("error: "), "{stderr}");
    }
}

#[test]
fn a_right_configuration_is_said_to_be_right() {
    let (_folder, path) = file("[[checks]]\nname = \"one\"\ntcp = \"h:1\"\n");
    for environment in [&[][..], &[("API_CONFIG", "elsewhere")]] {
        let (code, stdout, stderr) = run(&["check-config", &path], environment);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        assert_eq!(stdout, format!("{path} is right, checks: 1\n"));
    }
    // The Redis of the environment is a dependency, too.
    let (_, stdout, _) = run(&["check-config", &path], &[("REDIS_HOST", "redis")]);
    assert_eq!(stdout, format!("{path} is right, checks: 2\n"));
}

#[test]
fn a_wrong_configuration_ends_every_command_before_a_port_is_bound() {
    let (_folder, path) = file("titel = 1\n[[checks]]\n");
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let environment = [("PORT", port.as_str()), ("RUST_LOG", "api=loud")];
    let from_file = [&environment[..], &[("API_CONFIG", &path)]].concat();
    for (arguments, environment) in [
        (&["check-config", &path][..], &environment[..]),
        (&["--config", &path], &environment),
        (&["serve", "--config", &path], &environment),
        (&[], &from_file),
        (&["serve"], &from_file),
    ] {
        let (code, stdout, stderr) = run(arguments, environment);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{arguments:?}");
        let lines: Vec<_> = stderr.lines().collect();
        let [key, name, target, level] = lines.as_slice() else {
            panic!("{stderr}");
        };
        assert!(key.starts_with(&format!("{path}:1:1: unknown key titel: expected one of ")));
        assert!(name.starts_with(&format!("{path}:2:1: a check without a name: expected ")));
        assert!(target.starts_with(&format!("{path}:2:1: a check of nothing: expected ")));
        assert!(level.starts_with("RUST_LOG=\"api=loud\": expected "));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_like_any_other() {
    let (folder, path) = file(b"title = \"\xc3\xa9\xff\"");
    let gone = format!("{path}.gone");
    let long = file(vec![b'\n'; 1024 * 1024 + 1]);
    let name = folder.path().to_str().unwrap();
    for (path, problem) in [
        (path.as_str(), ":1:11: not text: expected UTF-8\n"),
        (&gone, ": cannot be read: No such file"),
        (name, ": cannot be read: Is a directory"),
        (&long.1, ": is too long: expected at most 1 MiB\n"),
        ("/dev/zero", ": is too long: expected at most 1 MiB\n"),
    ] {
        let (code, _, stderr) = run(&["check-config", path], &[("PORT", "x")]);
        assert_eq!(code, Some(2));
        assert!(stderr.starts_with(&format!("{path}{problem}")), "{stderr}");
        assert!(stderr.ends_with("PORT=\"x\": expected a number from 0 to 65535\n"));
    }
}

#[test]
fn the_healthcheck_asks_the_service_of_the_same_configuration() {
    let (_folder, path) = file("listen = \"127.0.0.1:1\"\n");
    // Empty is as not set.
    for configuration in ["", &path] {
        let configuration = ("API_CONFIG", configuration);
        let service = Service::start(&[configuration]);
        let port = service.port.to_string();
        let nothing = (Some(0), String::new(), String::new());
        let environment = [configuration, ("PORT", &port)];
        assert_eq!(run(&["healthcheck"], &environment), nothing);
    }
    let (_folder, path) = file(format!(
        "listen = \"[::]:{}\"\n",
        TcpListener::bind("[::1]:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    ));
    let (code, stdout, stderr) = run(&["healthcheck", "--config", &path], &[]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(
        stderr.starts_with("error: not healthy: http://[::1]:"),
        "{stderr}"
    );
}

/// `api healthcheck` of a service that answers each connection with `answers`, a byte in `pause`, and then says no more.
fn healthcheck_of(answer: &'static str, pause: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap();
        for byte in answer.bytes() {
            thread::sleep(pause);
            if stream.write_all(&[byte]).is_err() {
                break;
            }
        }
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    let start = Instant::now();
    let (code, stdout, stderr) = run(&["healthcheck"], &[("PORT", &port)]);
    // Probes of containers wait for 30 s by default, and people set 5 s.
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    let request = server.join().unwrap();
    assert!(request.starts_with("GET /health HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n"), "{request}");
    stderr.replace(&port, "PORT")
}

#[test]
fn a_service_that_is_not_healthy_is_said_not_to_be() {
    let at_once = Duration::ZERO;
    let line = |why| format!("error: not healthy: http://127.0.0.1:PORT/health: {why}\n");
    assert_eq!(
        healthcheck_of("HTTP/1.1 503 Service Unavailable\r\n\r\n", at_once),
        line("status 503")
    );
    assert_eq!(
        healthcheck_of("SSH-2.0\r\n", at_once),
        line("an answer that is not HTTP")
    );
    assert_eq!(
        healthcheck_of("", at_once),
        line("an answer that is not HTTP")
    );
    assert_eq!(
        healthcheck_of("HTTP/1.1 200 OK\r\n\r\n", Duration::from_millis(400)),
        line("no answer in time")
    );
}

#[test]
fn a_healthcheck_with_wrong_settings_is_one_line() {
    let (code, _, stderr) = run(&["healthcheck"], &[("PORT", "x"), ("RUST_LOG", "=,")]);
    assert_eq!(code, Some(1));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.starts_with("error: not healthy: PORT=\"x\": "),
        "{stderr}"
    );
}
