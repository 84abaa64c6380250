//! Dependencies in a company's network.

use std::path::Path;

use crate::company::{CRATES_TOKEN, Company, GIT_LOGIN};
use crate::harness::{Ci, Outcome};
use crate::image::Image;
use crate::shapes::{HEALTHY, initialized, set};
use crate::workspaces::{assert_passes_every_gate, service};

#[test]
fn dependencies_behind_a_proxy_that_need_credentials() {
    let company = Company::start();
    // Otherwise, an engine that this test starts would use the company's proxy.
    Ci::new(Path::new("/"), &["engine", "up"]).run().exits(0);
    let main = service(8000, HEALTHY).replace(
        "fn main() {\n",
        "fn main() {\n    assert_eq!(acme_prices::value() + acme_tax::value(), 37);\n",
    );
    let project = initialized("company", "", &main, &[]);
    company.add_https_dependencies(&project);
    let run = |git: &str| -> Outcome {
        let mut call = project
            .ci(&["-v", "--report-dir", "target/ci"])
            .env("CARGO_REGISTRIES_ACME_TOKEN", CRATES_TOKEN)
            .env("ACME_GIT", git);
        for (name, value) in company.environment() {
            call = call.env(name, &value);
        }
        call.run()
    };

    let once = "env = { CARGO_NET_RETRY = \"0\" }";
    set(&project, &[("# env = { SQLX_OFFLINE = \"true\" }", once)]);
    // The containers know neither the proxy nor its names.
    run(GIT_LOGIN)
        .exits(3)
        .says("set `proxy = true` in ci.toml");
    let credentials = format!(
        "git-credentials = {{ \"{}\" = \"ACME_GIT\" }}",
        company.git_host()
    );
    set(
        &project,
        &[
            ("# proxy = true", "proxy = true"),
            (
                "# git-credentials = { \"git.example.com\" = \"GIT_TOKEN\" }",
                &credentials,
            ),
        ],
    );
    run("robot:a-wrong-password")
        .exits(1)
        .says("Check cargo.git-credentials and cargo.ssh-agent in ci.toml");
    run(GIT_LOGIN).exits(1).says("Set cargo.secrets in ci.toml");
    set(&project, &[("# secrets = [", "secrets = [")]);

    let green = run(GIT_LOGIN).exits(0);
    assert_passes_every_gate(&green);
    let https = company.requests("https");
    for path in [
        "/index/ac/me/acme-prices 200",
        "/crates/acme-prices-1.0.0.crate 200",
        "/git/acme-tax.git/info/refs 200",
    ] {
        assert!(https.contains(path), "{path}:\n{https}");
    }
    let proxy = company.requests("proxy");
    assert!(proxy.contains("CONNECT crates.acme.test:"), "{proxy}");
    assert!(proxy.contains(" 200 me"), "{proxy}");
    let saved = project.path().join("target/saved");
    project
        .ci(&["cache", "save", saved.to_str().unwrap()])
        .run()
        .exits(0);
    let image = Image::read(&project.path().join("target/ci"));
    let mut all = vec![
        ("standard output".to_owned(), green.stdout.into_bytes()),
        ("standard error".to_owned(), green.stderr.into_bytes()),
        ("the configuration".to_owned(), image.config_bytes.clone()),
        ("the layer".to_owned(), image.layer().to_vec()),
    ];
    for entry in walkdir::WalkDir::new(project.path().join("target")) {
        let path = entry.unwrap().into_path();
        if path.is_file() {
            let content = std::fs::read(&path).unwrap();
            let unpacked = zstd::decode_all(&*content).unwrap_or(content);
            all.push((path.display().to_string(), unpacked));
        }
    }
    assert!(all.iter().any(|(place, _)| place.contains("target/saved")));
    for secret in Company::secrets() {
        for (place, content) in &all {
            let mut parts = content.windows(secret.len());
            assert!(
                !parts.any(|part| part == secret.as_bytes()),
                "{secret} is in {place}"
            );
        }
    }
    let again = run(GIT_LOGIN).exits(0);
    for step in ["test", "lint", "build"] {
        assert_eq!(again.step(step)["cached"], true, "{step}");
    }
}

#[test]
fn a_dependency_that_an_ssh_agent_opens() {
    let company = Company::start();
    let main = service(8000, HEALTHY).replace(
        "fn main() {\n",
        "fn main() {\n    assert_eq!(acme_stock::value(), 5);\n",
    );
    let project = initialized("ssh-agent", "", &main, &[]);
    company.add_ssh_dependency(&project);
    let run = || {
        let call = project.ci(&["-v"]);
        call.env("SSH_AUTH_SOCK", &company.agent()).run()
    };
    run()
        .exits(1)
        .says("Check cargo.git-credentials and cargo.ssh-agent in ci.toml");
    set(&project, &[("# ssh-agent = true", "ssh-agent = true")]);
    assert_passes_every_gate(&run().exits(0));
    let again = run().exits(0);
    for step in ["test", "lint", "build"] {
        assert_eq!(again.step(step)["cached"], true, "{step}");
    }
}
