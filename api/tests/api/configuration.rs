//! The configuration: the example file, every kind of problem, and arbitrary texts.

use std::{collections::BTreeSet, ffi::OsString, fs, path::Path, time::Duration};

use api::{
    Settings,
    checks::{Check, Kind, Target, TlsOptions, http},
    configuration::{Build, Place, Problems},
};
use proptest::{prelude::*, sample::Index};

const EXAMPLE: &str = include_str!("../../config.example.toml");

/// The environment variables that the example refers to.
const VARIABLES: [(&str, &str); 3] = [
    ("REDIS_PASSWORD", "s3cret-redis"),
    ("WEBSITE_TOKEN", "s3cret-token"),
    ("DATABASE_PASSWORD", "s3cret-database"),
];

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Settings, Problems> {
    Settings::parse("api.toml", text, &|name| {
        let (_, value) = variables.iter().find(|(key, _)| *key == name)?;
        Some(OsString::from(value))
    })
}

fn parse(text: &str) -> Result<Settings, Problems> {
    parse_with(text, &VARIABLES)
}

/// Parses `text`, the keys of a check.
fn check(text: &str) -> Check {
    let mut settings = parse(&format!("[[checks]]\nname = \"one\"\n{text}")).unwrap();
    settings.checks.remove(0)
}

/// The problems of `text`, one per line.
fn problems(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// The example with its commented defaults uncommented.
fn example_in_full() -> String {
    let lines = EXAMPLE.lines().map(|line| {
        let key = line.strip_prefix('#').filter(|key| !key.starts_with(' '));
        key.unwrap_or(line)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn example_is_valid_and_its_commented_defaults_are_correct() {
    let settings = parse(EXAMPLE).unwrap();
    assert_eq!(settings.checks.len(), 7);
    assert!(settings.redis.is_some() && settings.data.is_some() && settings.connections.is_some());
    let in_full = example_in_full();
    assert!(in_full.len() < EXAMPLE.len() - 10);
    let in_full = parse(&in_full).unwrap();
    assert_eq!(format!("{settings:#?}"), format!("{in_full:#?}"));

    let nothing = parse("").unwrap();
    assert_eq!(format!("{nothing:?}"), format!("{:?}", Settings::default()));
}

#[test]
fn example_contains_every_key() {
    let targets = [
        "http = \"http://h\"",
        "tcp = \"h:1\"",
        "dns = \"h\"",
        "redis = \"redis://h\"",
        "postgres = \"postgresql://u@h\"",
        "tls = \"h:1\"",
    ];
    let mut text = String::from("nonsense = 1\n[redis]\nnonsense = 1\n[defaults]\nnonsense = 1\n");
    for target in targets {
        text += &format!("[[checks]]\nname = \"one\"\n{target}\nnonsense = 1\n");
    }
    let problems = problems(&text);
    let known: Vec<_> = problems
        .lines()
        .filter_map(|line| line.split_once("unknown key nonsense: expected one of "))
        .collect();
    assert_eq!(known.len(), 3 + targets.len(), "{problems}");
    for key in known.iter().flat_map(|(_, keys)| keys.split(", ")) {
        let named = EXAMPLE.lines().any(|line| {
            let line = line.strip_prefix('#').unwrap_or(line);
            line.starts_with(&format!("{key} = "))
                || line == format!("[{key}]")
                || line == format!("[[{key}]]")
        });
        assert!(named, "{key}");
    }
}

#[test]
fn reports_all_problems_at_once_with_their_positions() {
    let text = r#"
listen = "everywhere"
titel = "Lab"
environment = 3
connections = 0
event-streams = "many"
drain = "1h"
data-dir = ""

[redis]
uri = "redis://cache"

[defaults]
interval = "10s"
timeout = "20s"

[[checks]]
name = "one"
http = "ftp://example.org"
method = "BREW"
status = [200, 99, "ok"]
body = ""
headers = { "a b" = "1", c = "line\nline", d = 4 }
interval = "often"
failures = 0
critical = "yes"

[[checks]]
name = "one"
tcp = "example.org"
record = "A"
jitter = "15s"
timeout = "1s"

[[checks]]
tcp = "example.org:0"
tls = "example.org:443"

[[checks]]
name = "No Good"
interval = "5s"

[[checks]]
name = "records"
dns = "example..org"
record = "AXFR"
server = "dns.example.org"
expect = []

[[checks]]
name = "stores"
redis = "valkeys:cache"
follow-redirects = true

[[checks]]
name = "sql"
postgres = "mysql://db"
[[checks]]
name = "certificate"
tls = "example.org:99999"
valid-for = 14

[[checks]]
name = "head"
http = "http://example.org"
method = "HEAD"
body = "ok"
"#;
    insta::assert_snapshot!(problems(text));
}

#[test]
fn reports_invalid_body_limits_and_http_versions() {
    let text = |keys| {
        problems(&format!(
            "[[checks]]\nname = \"a\"\nhttp = \"http://h\"\n{keys}"
        ))
    };
    insta::assert_snapshot!(
        [
            text("body-limit = \"2GiB\""),
            text("body-limit = \"0B\""),
            text("body-limit = \"lots\""),
            text("body-limit = 64"),
            text("http-version = \"3\""),
            text("http-version = 1.1"),
        ]
        .join("\n"),
        @r#"
    api.toml:4:15: body-limit is out of range: expected 1 B to 1.0 GiB
    api.toml:4:15: body-limit is out of range: expected 1 B to 1.0 GiB
    api.toml:4:15: body-limit is not valid: expected a size such as "64KiB" or "1MiB"
    api.toml:4:14: body-limit is an integer: expected a size such as "64KiB" or "1MiB"
    api.toml:4:17: http-version is not valid: expected "1.1" or "2"
    api.toml:4:16: http-version is a float: expected "1.1" or "2"
    "#
    );
}

#[test]
fn reports_invalid_toml_with_its_position() {
    for (text, problem) in [
        ("title = ", "api.toml:1:8: "),
        ("title = Lab", "api.toml:1:9: "),
        ("\n\ntitle = \"Lab", "api.toml:3:9: "),
        ("[redis", "api.toml:1:"),
        ("é = 1\n", "api.toml:1:1: "),
        ("title = \"é\" x", "api.toml:1:13: "),
        (
            "title = \"a\"\ntitle = \"b\"",
            "api.toml:2:1: duplicate key title: expected it once",
        ),
        (
            "[redis]\n[redis]",
            "api.toml:2:1: duplicate table [redis]: expected it once",
        ),
        (
            "checks = 1",
            "api.toml:1:10: checks is not an array: expected one [[checks]] table per item",
        ),
        ("[checks]", "api.toml:1:1: checks is not an array: "),
        ("checks = [1]", "api.toml:1:11: checks is an integer: "),
        (
            "redis = 1",
            "api.toml:1:9: redis is an integer: expected a table",
        ),
    ] {
        let problems = problems(text);
        assert!(problems.starts_with(problem), "{text:?}: {problems}");
        assert_eq!(problems.lines().count(), 1, "{problems}");
    }
}

#[test]
fn reports_invalid_variables_together_with_problems_of_the_file() {
    let problems = parse_with(
        "title = \"${TITLE} of ${OWNER}\"\nconnections = true",
        &[
            ("PORT", "http"),
            ("RUST_LOG", "api=loud"),
            ("REDIS_HOST", "redis://:s3cret@cache"),
            ("REDIS_PORT", "s3cret"),
        ],
    );
    insta::assert_snapshot!(problems.unwrap_err(), @r#"
    api.toml:1:10: title refers to variables that are not set or not UTF-8 text: expected OWNER and TITLE in the environment
    api.toml:2:15: connections is a boolean: expected an integer
    PORT="http": expected a number from 0 to 65535
    RUST_LOG="api=loud": expected a level, or a list such as `info,actix_server=warn`
    REDIS_HOST=***: expected a host name or an address
    REDIS_PORT=***: expected a port, or tcp://ADDRESS:PORT as set by Kubernetes
    "#);
}

#[test]
fn without_variables_the_defaults_hold() {
    for variables in [&[][..], &[("PORT", ""), ("APP_ENV", ""), ("RUST_LOG", "")]] {
        let settings = parse_with("", variables).unwrap();
        assert_eq!(settings.address.to_string(), "[::]:8000");
        assert_eq!(settings.environment, "local");
        assert_eq!(settings.log.to_string(), "info");
        assert_eq!(settings.build, Build::default());
    }
}

#[test]
fn host_and_port_override_the_parts_of_the_address() {
    let address = |host, port| {
        let variables = [("HOST", host), ("PORT", port)];
        parse_with("listen = \"192.0.2.1:1\"", &variables).map(|it| it.address.to_string())
    };
    for (host, port, expected) in [
        ("", "", "192.0.2.1:1"),
        ("127.0.0.1", "", "127.0.0.1:1"),
        ("0.0.0.0", "80", "0.0.0.0:80"),
        ("::", "80", "[::]:80"),
        ("[::1]", "", "[::1]:1"),
    ] {
        assert_eq!(address(host, port).unwrap(), expected);
    }
    for host in ["example.org", "127.0.0.1:80", "[127.0.0.1]", "::1]", " ::"] {
        assert_eq!(
            address(host, "").unwrap_err().to_string(),
            format!("HOST={host:?}: expected an IP address, such as 127.0.0.1 or ::")
        );
    }
}

#[test]
fn base_path_is_a_plain_path() {
    for (path, expected) in [
        ("/", ""),
        ("/status", "/status"),
        ("/status/", "/status"),
        ("/a/b-c_d.e~1", "/a/b-c_d.e~1"),
    ] {
        let settings = parse(&format!("base-path = \"{path}\"")).unwrap();
        assert_eq!(settings.base_path, expected);
    }
    for path in [
        "",
        "status",
        "//",
        "/a//b",
        "/a/../b",
        "/.",
        "/a b",
        "/{name}",
        "/a?b",
        "/ä",
        "https://example.org/status",
    ] {
        let problems = problems(&format!("base-path = \"{path}\""));
        assert!(
            problems.contains(": base-path is not valid: expected a path such as /status"),
            "{problems}"
        );
    }
}

#[test]
fn variables_override_the_file() {
    let settings = parse_with(
        "listen = \"127.0.0.1:1\"\nenvironment = \"file\"",
        &[
            ("PORT", "80"),
            ("APP_ENV", "prod"),
            ("RUST_LOG", "warn,api=debug"),
            ("APP_COMMIT", "c0ffee"),
            ("APP_BUILD_TIME", "2026-11-23T19:30:00Z"),
        ],
    )
    .unwrap();
    assert_eq!(settings.address.to_string(), "127.0.0.1:80");
    assert_eq!(settings.environment, "prod");
    assert!(settings.log.would_enable("api", &tracing::Level::DEBUG));
    assert!(!settings.log.would_enable("other", &tracing::Level::INFO));
    assert_eq!(settings.build.commit.as_deref(), Some("c0ffee"));
    assert_eq!(settings.build.time.as_deref(), Some("2026-11-23T19:30:00Z"));
}

#[test]
fn reports_an_invalid_variable_with_its_value() {
    for port in ["65536", "-1", "http", "80 ", "8000/tcp"] {
        let problems = parse_with("", &[("PORT", port)]).unwrap_err();
        assert_eq!(
            problems.to_string(),
            format!("PORT={port:?}: expected a number from 0 to 65535")
        );
    }
}

#[cfg(unix)]
#[test]
fn rejects_variables_that_are_not_utf_8() {
    use std::os::unix::ffi::OsStringExt;

    let problems = Settings::parse("api.toml", "title = \"${TITLE}\"", &|name| {
        matches!(name, "APP_ENV" | "TITLE").then(|| OsString::from_vec(vec![b'a', 0xff]))
    })
    .unwrap_err();
    insta::assert_snapshot!(problems, @r#"
    api.toml:1:10: title refers to variables that are not set or not UTF-8 text: expected TITLE in the environment
    APP_ENV="a�": expected UTF-8 text
    "#);
}

#[test]
fn limit_of_slow_probes_must_be_shorter_than_the_timeout() {
    let target = "tcp = \"h:1\"\ndegraded-above = \"2s\"\n";
    let limit = check(target).degraded_above;
    assert_eq!(limit, Some(Duration::from_secs(2)));
    assert_eq!(check("tcp = \"h:1\"").degraded_above, None);
    let text = format!("[[checks]]\nname = \"one\"\n{target}timeout = \"2s\"");
    assert_eq!(
        problems(&text),
        "api.toml:4:19: degraded-above 2s is not shorter than timeout 2s: expected less than the timeout"
    );
}

#[test]
fn group_and_hidden_target_are_options_of_every_check() {
    let one = check("tcp = \"h:1\"\ngroup = \"Shop\"\nhide-target = true");
    assert_eq!(
        (one.group.as_deref(), one.hide_target),
        (Some("Shop"), true)
    );
    let text = "[defaults]\nhide-target = true\n[[checks]]\nname = \"one\"\ntcp = \"h:1\"\n";
    let both = format!("{text}[[checks]]\nname = \"two\"\ntcp = \"h:1\"\nhide-target = false");
    let checks = parse(&both).unwrap().checks;
    assert_eq!(
        [checks[0].hide_target, checks[1].hide_target],
        [true, false]
    );
    assert_eq!(checks[0].group, None);
}

#[test]
fn reports_no_contradictions_of_invalid_values() {
    let check = "[[checks]]\nname = \"one\"\ntcp = \"h:1\"\ntimeout = \"90s\"\njitter = \"80s\"\n";
    assert_eq!(problems(check).lines().count(), 2);
    let problems = problems(&format!("{check}interval = \"2 minuets\""));
    assert!(
        problems.starts_with("api.toml:6:13: interval is not valid: "),
        "{problems}"
    );
    assert_eq!(problems.lines().count(), 1, "{problems}");
}

#[test]
fn shows_no_secrets_in_problems_and_settings() {
    let secret = "s3cret";
    let variables = [
        ("SECRET", "s3cret"),
        ("SLASH", "1/s3cret"),
        ("URL", "https://u:s3cret@h/s3cret?s3cret#s3cret"),
        ("PORT_OF_IT", "80"),
    ];
    for target in [
        "http = \"https://user:s3cret@example.org:port/\"",
        "http = \"https://user:s3cret@\"",
        "http = \"s3cret://${SECRET}\"",
        "http = \"https://user:${SLASH}@example.org/\"",
        "http = \"https://user:${SLASH\"",
        "http = \"https://user:s3cret${UNSET}@example.org/\"",
        "tcp = \"https://user:s3cret@example.org:443/\"",
        "tls = \"${SECRET}\"",
        "dns = \"s3cret..\"",
        "dns = \"h\"\nserver = \"s3cret\"\nrecord = \"${SECRET}\"",
        "redis = \"redis://:1/s3cret@cache\"",
        "redis = \"redis://:s3cret@cache/s3cret\"",
        "redis = redis://:s3cret@cache",
        "postgres = \"postgresql://app:1/s3cret@db/app\"",
        "postgres = \"postgresql://app:s3cret@db?sslmode=s3cret\"",
        "postgres = \"postgresql://app:s3cret@db/app",
        "http = \"http://h\"\nheaders = { A = \"s3cret\\nb\" }",
        "http = \"http://h\"\nmethod = \"s3cret\"\ninterval = \"s3cret\"\nbody = 3",
        "http = \"http://h\"\ntimeout = \"${SECRET}\"",
    ] {
        let text = format!("[[checks]]\nname = \"one\"\n{target}");
        let problems = parse_with(&text, &variables).unwrap_err().to_string();
        assert!(!problems.contains(secret), "{target}: {problems}");
    }
    for (target, shown) in [
        ("http = \"${URL}\"", "https://h/***"),
        (
            "http = \"https://h:${PORT_OF_IT}/${SECRET}\"",
            "https://h:80/***",
        ),
        (
            "http = \"https://h/hook/${SECRET}/x?y\"",
            "https://h/hook/***/x?***",
        ),
        ("http = \"https://${SECRET}.h/\"", "https://***.h/"),
        (
            "http = \"https://${SECRET}:${SECRET}@h/\"",
            "https://***:***@h/",
        ),
        ("redis = \"redis://:${SECRET}@h/1\"", "redis://:***@h/1"),
        (
            "http = \"http://h\"\nheaders = { A = \"${SECRET}\" }",
            "http://h/",
        ),
    ] {
        let text = format!("[[checks]]\nname = \"one\"\n{target}");
        let settings = parse_with(&text, &variables).unwrap();
        assert_eq!(settings.checks[0].target.to_string(), shown);
        assert!(!format!("{settings:?}").contains(secret), "{settings:?}");
    }
}

#[test]
fn replaces_variables_exactly_once() {
    let variables = [("NAME", "${OTHER} $ \\"), ("EMPTY", "")];
    for (written, expected) in [
        ("a ${NAME}", "a ${OTHER} $ \\"),
        ("${UNSET:one} ${EMPTY}two", "one two"),
        (r"\${NAME} \$ \\ ${UNSET:x}", r"${NAME} $ \ x"),
        (r"5 $ and $NAME and \d", r"5 $ and $NAME and \d"),
    ] {
        let settings = parse_with(&format!("title = '{written}'"), &variables).unwrap();
        assert_eq!(settings.title, expected);
    }
}

#[test]
fn display_name_is_any_text_in_one_line() {
    let named = |text: &str| check(&format!("tcp = \"h:1\"\ndisplay-name = \"{text}\""));
    assert_eq!(named("Shop – Größe <b>").display_name(), "Shop – Größe <b>");
    assert_eq!(named(" Shop ").display_name(), "Shop");
    assert_eq!(check("tcp = \"h:1\"").display_name(), "one");
    for text in ["", " ", "a\\nb", &"é".repeat(101)] {
        let text = format!("[[checks]]\nname = \"one\"\ntcp = \"h:1\"\ndisplay-name = \"{text}\"");
        assert!(
            problems(&text).contains("display-name is not valid: expected 1 to 100 characters"),
            "{text}"
        );
    }
}

#[test]
fn check_overrides_the_defaults() {
    let settings = parse(
        r#"
[defaults]
interval = "30s"
failures = 5
critical = true
[[checks]]
name = "one"
tcp = "[::1]:80"
[[checks]]
name = "two"
tcp = "example.org:80"
interval = "2s"
failures = 1
critical = false
"#,
    )
    .unwrap();
    let [one, two] = settings.checks.as_slice() else {
        panic!("{settings:?}");
    };
    let seconds = Duration::from_secs_f64;
    let timing = |check: &Check| (check.interval, check.jitter, check.timeout, check.critical);
    assert_eq!(
        timing(one),
        (seconds(30.0), seconds(3.0), seconds(5.0), true)
    );
    assert_eq!(
        timing(two),
        (seconds(2.0), seconds(0.2), seconds(2.0), false)
    );
    assert_eq!((one.failures.get(), two.failures.get()), (5, 1));
    assert!(
        matches!(&one.target, Target::Tcp(tcp) if (tcp.host.as_str(), tcp.port) == ("::1", 80))
    );
}

/// The names of all kinds.
fn kinds() -> BTreeSet<&'static str> {
    Kind::ALL.iter().map(|kind| kind.name()).collect()
}

/// The items of the list that follows `introduction` in `text`, up to the end of the sentence or the line of an error.
fn listed<'t>(text: &'t str, introduction: &str) -> Option<BTreeSet<&'t str>> {
    let (_, list) = text.split_once(introduction)?;
    let (list, _) = list.split_once(['.', '\n']).unwrap_or((list, ""));
    let items = list.split(|letter: char| !letter.is_ascii_alphanumeric());
    Some(
        items
            .filter(|item| !["", "and", "or"].contains(item))
            .collect(),
    )
}

#[test]
fn documents_exactly_all_kinds() {
    let example = parse(EXAMPLE).unwrap();
    let shown = example
        .checks
        .iter()
        // This one is added because of `[redis]`.
        .filter(|check| check.name != "redis")
        .map(|check| check.target.kind().name());
    assert_eq!(shown.collect::<BTreeSet<_>>(), kinds());
    assert_eq!(listed(EXAMPLE, "one of the targets "), Some(kinds()));

    let problem = problems("[[checks]]\nname = \"nothing\"");
    assert_eq!(listed(&problem, "expected one of "), Some(kinds()));

    // The sentence is in the README or in a page below docs.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documentation = fs::read_dir(package.join("docs"))
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "md"))
        .chain([package.join("../README.md")]);
    let lists: Vec<String> = documentation
        .map(|path| fs::read_to_string(path).unwrap())
        .filter(|text| text.contains(DOCUMENTED))
        .collect();
    assert!(!lists.is_empty(), "no document contains: {DOCUMENTED}");
    for text in &lists {
        assert_eq!(listed(text, DOCUMENTED), Some(kinds()));
    }
}

/// Introduces the list of kinds in the documentation.
const DOCUMENTED: &str = "Checks are of kind ";

#[test]
fn reads_the_keys_of_each_kind() {
    let Target::Http(http) = check("http = \"http://h\"\nmethod = \"POST\"\nstatus = [200, 404]\nbody = \"x\"\nbody-limit = \"2MiB\"\nhttp-version = \"2\"\nfollow-redirects = true\nheaders = { B = \"2\", A = \"1\" }").target else {
        panic!("no http");
    };
    assert_eq!(
        (http.method.as_str(), http.status, http.body.as_deref()),
        ("POST", vec![200, 404], Some("x"))
    );
    assert!(http.follow_redirects);
    assert_eq!(
        (http.body_limit, http.version),
        (2 * 1024 * 1024, http::Version::Http2)
    );
    let headers: Vec<_> = http
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.expose()))
        .collect();
    assert_eq!(headers, [("A", "1"), ("B", "2")]);

    let Target::Dns(dns) = check(
        "dns = \"_sip._tcp.example.org\"\nrecord = \"SRV\"\nserver = \"::1\"\nexpect = [\"x\"]",
    )
    .target
    else {
        panic!("no dns");
    };
    assert_eq!(
        (dns.record.to_string().as_str(), dns.expected),
        ("SRV", vec!["x".to_owned()])
    );
    assert_eq!(dns.server, Some("[::1]:53".parse().unwrap()));

    let Target::Tls(tls) = check("tls = \"192.0.2.1:443\"").target else {
        panic!("no tls");
    };
    assert_eq!((tls.host.as_str(), tls.port), ("192.0.2.1", 443));
}

/// A target of each kind that can use TLS.
const USING_TLS: [&str; 5] = [
    "http = \"https://h\"",
    "http = \"http://h\"\nfollow-redirects = true",
    "tls = \"h:1\"",
    "redis = \"rediss://h\"",
    "postgres = \"postgresql://u@h\"",
];

#[test]
fn every_kind_that_uses_tls_has_the_same_options() {
    let options = r#"
        valid-for = "1day"
        server-name = "b.test"
        ca-file = "ca.pem"
        client-certificate = "client.pem"
        client-key = "client.key"
        skip-verify = false
    "#;
    for target in USING_TLS {
        let tls = check(&format!("{target}\n{options}")).tls;
        assert_eq!(
            tls,
            TlsOptions {
                server_name: Some("b.test".into()),
                ca_file: Some("ca.pem".into()),
                client_certificate: Some("client.pem".into()),
                client_key: Some("client.key".into()),
                skip_verify: false,
                valid_for: Duration::from_secs(24 * 60 * 60),
            }
        );
        assert_eq!(check(target).tls, TlsOptions::default());
    }
    for (keys, problem) in [
        (
            "http = \"http://h\"\nca-file = \"ca.pem\"",
            "api.toml:4:1: ca-file has no effect without TLS: expected an https URL",
        ),
        (
            "redis = \"redis://h\"\nvalid-for = \"1day\"",
            "api.toml:4:1: valid-for has no effect without TLS: expected a rediss URL",
        ),
        (
            "tcp = \"h:1\"\nskip-verify = true",
            "api.toml:4:1: skip-verify is not allowed in a check of kind tcp: expected only in checks of kind http, redis, postgres, tls",
        ),
        (
            "tls = \"h:1\"\nserver-name = \"192.0.2.1\"",
            "api.toml:4:16: server-name is not valid: expected a DNS name, such as example.org",
        ),
        (
            "tls = \"h:1\"\nclient-key = \"client.key\"",
            "api.toml:4:15: client-key has no effect without client-certificate: expected both or none",
        ),
        (
            "tls = \"h:1\"\nca-file = \"ca.pem\"\nskip-verify = true",
            "api.toml:5:15: skip-verify makes ca-file useless: expected one of them",
        ),
    ] {
        let text = format!("[[checks]]\nname = \"one\"\n{keys}");
        assert_eq!(problems(&text), problem);
    }
}

#[test]
fn tls_options_in_the_defaults_apply_to_checks_that_use_tls() {
    let defaults = r#"
        valid-for = "1day"
        server-name = "b.test"
        ca-file = "ca.pem"
        client-certificate = "client.pem"
        client-key = "client.key"
    "#;
    let with = |defaults: &str, check: &str| {
        let text = format!("[defaults]\n{defaults}\n[[checks]]\nname = \"one\"\n{check}");
        parse(&text).unwrap().checks.remove(0).tls
    };
    let all = check(&format!("tls = \"h:1\"\n{defaults}")).tls;
    for target in USING_TLS {
        assert_eq!(with(defaults, target), all, "{target}");
    }
    for target in [
        "http = \"http://h\"",
        "redis = \"redis://h\"",
        "tcp = \"h:1\"",
        "dns = \"h\"",
    ] {
        assert_eq!(with(defaults, target), TlsOptions::default(), "{target}");
    }

    // A check overrides single keys, and together those that exclude each other or belong together.
    let own = |keys: &str| with(defaults, &format!("tls = \"h:1\"\n{keys}"));
    let same = || all.clone();
    for (keys, expected) in [
        (
            "valid-for = \"0s\"",
            TlsOptions {
                valid_for: Duration::ZERO,
                ..same()
            },
        ),
        (
            "server-name = \"c.test\"",
            TlsOptions {
                server_name: Some("c.test".into()),
                ..same()
            },
        ),
        (
            "skip-verify = true",
            TlsOptions {
                ca_file: None,
                skip_verify: true,
                ..same()
            },
        ),
        ("skip-verify = false", same()),
        (
            "client-certificate = \"both.pem\"",
            TlsOptions {
                client_certificate: Some("both.pem".into()),
                client_key: None,
                ..same()
            },
        ),
        (
            "server-name = \"\"\nca-file = \"\"\nclient-certificate = \"\"",
            TlsOptions {
                valid_for: all.valid_for,
                ..TlsOptions::default()
            },
        ),
    ] {
        assert_eq!(own(keys), expected, "{keys}");
    }
    let skip = "skip-verify = true";
    assert!(with(skip, "tls = \"h:1\"").skip_verify);
    assert!(!with(skip, "tls = \"h:1\"\nskip-verify = false").skip_verify);
    let verifies = with(skip, "tls = \"h:1\"\nca-file = \"ca.pem\"");
    assert!(!verifies.skip_verify && verifies.ca_file.is_some());

    // The check of the Redis of `/hits` connects like the counter.
    let text = format!("[redis]\nurl = \"rediss://h\"\n[defaults]\n{defaults}");
    assert_eq!(
        parse(&text).unwrap().checks[0].tls,
        TlsOptions {
            valid_for: all.valid_for,
            ..TlsOptions::default()
        }
    );

    for (keys, problem) in [
        (
            "ca-file = \"ca.pem\"\nskip-verify = true",
            "api.toml:3:15: skip-verify makes ca-file useless: expected one of them",
        ),
        (
            "client-key = \"client.key\"",
            "api.toml:2:15: client-key has no effect without client-certificate: expected both or none",
        ),
        (
            "client-certificate = \"\"\nclient-key = \"client.key\"",
            "api.toml:3:15: client-key has no effect without client-certificate: expected both or none",
        ),
        (
            "server-name = \"192.0.2.1\"",
            "api.toml:2:16: server-name is not valid: expected a DNS name, such as example.org",
        ),
    ] {
        assert_eq!(problems(&format!("[defaults]\n{keys}")), problem);
    }
}

#[test]
fn environment_selects_or_disables_redis() {
    const FILE: &str = "[redis]\nurl = \"redis://file\"\n";
    let redis = |file, variables: &[(&str, &str)]| {
        let settings = parse_with(file, variables).unwrap();
        let checks: Vec<_> = settings
            .checks
            .iter()
            .map(|check| check.name.clone())
            .collect();
        assert_eq!(
            checks,
            settings.redis.iter().map(|_| "redis").collect::<Vec<_>>()
        );
        settings.redis.map(|url| url.expose().to_string())
    };
    assert_eq!(redis("", &[]), None);
    assert_eq!(redis("", &[("REDIS_PORT", "tcp://10.0.0.1:6379")]), None);
    assert_eq!(redis(FILE, &[]).unwrap(), "redis://file");
    assert_eq!(redis(FILE, &[("REDIS_HOST", "")]), None);
    assert_eq!(
        redis(FILE, &[("REDIS_HOST", "cache")]).unwrap(),
        "redis://cache:6379"
    );
    assert_eq!(
        redis(
            "",
            &[
                ("REDIS_HOST", "::1"),
                ("REDIS_PORT", "7000"),
                ("REDIS_PASSWORD", "a/b@c")
            ]
        )
        .unwrap(),
        "redis://:a%2Fb%40c@[::1]:7000"
    );
    assert_eq!(
        redis(
            "",
            &[
                ("REDIS_HOST", "redis"),
                ("REDIS_PORT", "tcp://10.0.0.1:6380")
            ]
        )
        .unwrap(),
        "redis://redis:6380"
    );
}

#[test]
fn check_named_redis_replaces_the_automatic_one() {
    let text = "[defaults]\ncritical = true\ninterval = \"7s\"\n[redis]\nurl = \"redis://file\"\n";
    let added = parse(text).unwrap().checks.remove(0);
    assert_eq!(
        (
            added.target.kind(),
            added.critical,
            added.interval.as_secs()
        ),
        (Kind::Redis, false, 7)
    );

    let settings = parse(&format!(
        "{text}[[checks]]\nname = \"redis\"\ntcp = \"file:6379\""
    ))
    .unwrap();
    assert_eq!(settings.checks.len(), 1);
    assert_eq!(settings.checks[0].target.kind(), Kind::Tcp);
}

#[test]
fn accepts_at_most_a_thousand_checks() {
    let checks = |count| -> String {
        (0..count)
            .map(|index| format!("[[checks]]\nname = \"c{index}\"\ntcp = \"h:1\"\n"))
            .collect()
    };
    assert_eq!(parse(&checks(1000)).unwrap().checks.len(), 1000);
    assert_eq!(
        problems(&checks(1001)),
        "api.toml:3001:1: too many checks (1001): expected at most 1000"
    );
}

/// Asserts that `text` is valid, or that each problem is one line with a position in `text`.
fn settings_or_problems(text: &str) -> Result<(), TestCaseError> {
    let Err(Problems(problems)) = parse(text) else {
        return Ok(());
    };
    prop_assert!(!problems.is_empty());
    for problem in problems {
        let line = problem.to_string();
        prop_assert_eq!(line.lines().count(), 1, "{:?}", line);
        let Some(Place {
            position: Some((line, column)),
            ..
        }) = problem.place
        else {
            return Err(TestCaseError::fail(format!("no place: {problem:?}")));
        };
        let length = text
            .split('\n')
            .nth(line - 1)
            .map(|line| line.chars().count());
        prop_assert!(
            length.is_some_and(|length| column <= length + 1),
            "{problem:?}"
        );
        prop_assert!(line <= text.lines().count().max(1), "{problem:?}");
        prop_assert!(!problem.what.contains("s3cret"), "{problem:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 350, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_valid_or_has_problems_with_positions(text in any::<String>()) {
        settings_or_problems(&text)?;
    }

    #[test]
    fn any_toml_like_text_is_valid_or_has_problems_with_positions(
        text in "([a-z-]{1,8} ?[=.] ?)?([\"'\\[\\]{}#\n$\\\\=,.-]|\"[a-z$\\{\\}]{0,9}\"|\\[\\[checks\\]\\]|[0-9]{1,20}|\r\n| ){0,30}"
    ) {
        settings_or_problems(&text)?;
    }

    #[test]
    fn an_edited_example_is_valid_or_has_problems_with_positions(
        edits in prop::collection::vec((any::<Index>(), any::<Index>(), any::<Index>(), 0..4), 1..6)
    ) {
        let mut text: Vec<char> = example_in_full().chars().collect();
        for (place, other, length, edit) in edits {
            let start = place.index(text.len());
            let end = (start + length.index(20)).min(text.len());
            let from = other.index(text.len() - 20);
            match edit {
                // Deletes, duplicates, copies, and replaces one character.
                0 => drop(text.drain(start..end)),
                1 => {
                    let part = text[start..end].to_vec();
                    text.splice(start..start, part);
                }
                2 => {
                    let part = text[from..from + 20].to_vec();
                    text.splice(start..end, part);
                }
                _ => text[start] = ['"', '\\', '$', '\0', 'é', '\n', '[', '{'][length.index(8)],
            }
        }
        settings_or_problems(&text.into_iter().collect::<String>())?;
    }
}
