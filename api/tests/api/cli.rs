//! The command line: arguments, output and exit codes.

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

/// Runs `api` with `arguments` in `environment`, and returns exit code, stdout and stderr.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = api(environment).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Writes a configuration into a temporary directory, and returns both.
fn file(text: impl AsRef<[u8]>) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("api.toml");
    fs::write(&path, text).unwrap();
    let path = path.into_os_string().into_string().unwrap();
    (folder, path)
}

#[test]
fn prints_help_and_version_to_stdout() {
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
fn invalid_usage_exits_with_code_2() {
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
fn check_config_accepts_a_valid_configuration() {
    let (_folder, path) = file("[[checks]]\nname = \"one\"\ntcp = \"h:1\"\n");
    for environment in [&[][..], &[("API_CONFIG", "elsewhere")]] {
        let (code, stdout, stderr) = run(&["check-config", &path], environment);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        assert_eq!(stdout, format!("{path} is valid, checks: 1\n"));
    }
    // The Redis of the environment adds a check.
    let (_, stdout, _) = run(&["check-config", &path], &[("REDIS_HOST", "redis")]);
    assert_eq!(stdout, format!("{path} is valid, checks: 2\n"));
}

#[test]
fn every_command_rejects_an_invalid_configuration_before_binding_a_port() {
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
        assert!(name.starts_with(&format!("{path}:2:1: check has no name: expected ")));
        assert!(target.starts_with(&format!("{path}:2:1: check has no target: expected ")));
        assert!(level.starts_with("RUST_LOG=\"api=loud\": expected "));
    }
}

#[test]
fn reports_an_unreadable_file_together_with_other_problems() {
    let (folder, path) = file(b"title = \"\xc3\xa9\xff\"");
    let gone = format!("{path}.gone");
    let long = file(vec![b'\n'; 1024 * 1024 + 1]);
    let name = folder.path().to_str().unwrap();
    for (path, problem) in [
        (path.as_str(), ":1:11: invalid UTF-8: expected UTF-8 text\n"),
        (&gone, ": cannot read the file: No such file"),
        (name, ": cannot read the file: Is a directory"),
        (&long.1, ": file is too large: expected at most 1 MiB\n"),
        ("/dev/zero", ": file is too large: expected at most 1 MiB\n"),
    ] {
        let (code, _, stderr) = run(&["check-config", path], &[("PORT", "x")]);
        assert_eq!(code, Some(2));
        assert!(stderr.starts_with(&format!("{path}{problem}")), "{stderr}");
        assert!(stderr.ends_with("PORT=\"x\": expected a number from 0 to 65535\n"));
    }
}

#[test]
fn healthcheck_requests_the_service_of_the_same_configuration() {
    let (_folder, path) = file("listen = \"127.0.0.1:1\"\n");
    // An empty variable counts as not set.
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
        stderr.starts_with("error: not healthy: http://127.0.0.1:"),
        "{stderr}"
    );
}

/// Runs `api healthcheck` against a server that sends `response`, one byte per `pause`. Returns stderr.
fn healthcheck_of(response: &'static str, pause: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap();
        for byte in response.bytes() {
            thread::sleep(pause);
            if stream.write_all(&[byte]).is_err() {
                break;
            }
        }
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    let start = Instant::now();
    let (code, stdout, stderr) = run(&["healthcheck"], &[("PORT", &port)]);
    // Container probes have a timeout of 30 s by default, and often 5 s.
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    let request = server.join().unwrap();
    assert!(request.starts_with("GET /health HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n"), "{request}");
    stderr.replace(&port, "PORT")
}

#[test]
fn healthcheck_reports_why_the_service_is_not_healthy() {
    let at_once = Duration::ZERO;
    let line = |reason| format!("error: not healthy: http://127.0.0.1:PORT/health: {reason}\n");
    assert_eq!(
        healthcheck_of("HTTP/1.1 503 Service Unavailable\r\n\r\n", at_once),
        line("status 503")
    );
    assert_eq!(
        healthcheck_of("SSH-2.0\r\n", at_once),
        line("the response is not HTTP")
    );
    assert_eq!(
        healthcheck_of("", at_once),
        line("the response is not HTTP")
    );
    assert_eq!(
        healthcheck_of("HTTP/1.1 200 OK\r\n\r\n", Duration::from_millis(400)),
        line("no response in time")
    );
}

#[test]
fn healthcheck_reports_invalid_settings_on_one_line() {
    let (code, _, stderr) = run(&["healthcheck"], &[("PORT", "x"), ("RUST_LOG", "=,")]);
    assert_eq!(code, Some(1));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.starts_with("error: not healthy: PORT=\"x\": "),
        "{stderr}"
    );
}
