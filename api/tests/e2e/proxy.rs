//! The service behind nginx.

use std::{
    fs,
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    browser::Browser,
    harness::{Service, free_port, install, package},
    page::LIVE,
};

/// nginx on a free port, in one process, which is killed when dropped.
struct Nginx {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Nginx {
    /// Starts nginx with these locations and an upstream server `service`, to which connections are kept.
    fn start(service: &Service, locations: &str) -> Self {
        install(&[package("nginx", "nginx")]);
        let (folder, port, upstream) = (tempfile::tempdir().unwrap(), free_port(), service.port);
        let path = folder.path().display();
        let configuration = format!(
            r#"
daemon off; master_process off; pid {path}/pid; error_log {path}/error; worker_processes 1; events {{}}
http {{
    access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;
    fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
    upstream service {{ server 127.0.0.1:{upstream}; keepalive 1; }}
    server {{
        listen 127.0.0.1:{port}; proxy_http_version 1.1; proxy_set_header Connection "";
        {locations}
        location / {{ return 404; }}
    }}
}}"#
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, configuration).unwrap();
        let child = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "nginx started");
            thread::sleep(Duration::from_millis(20));
        }
        Self {
            child,
            port,
            _folder: folder,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn kept_connection_to_the_service_is_free_after_head_of_events() {
    let service = Service::start("", &[]);
    let nginx = Nginx::start(
        &service,
        "location /events { proxy_pass http://service; } location /livez { proxy_pass http://service; proxy_read_timeout 5s; }",
    );
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for _ in 0..3 {
        let head = client.head(nginx.url("/events")).send().await.unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(head.headers()["content-type"], "text/event-stream");
        let next = client.get(nginx.url("/livez")).send().await.unwrap();
        assert_eq!(next.status(), 200);
    }
}

#[test]
fn page_is_live_below_a_path_whether_nginx_removes_it_or_not() {
    let service = Service::start("base-path = \"/status\"", &[]);
    // Both run until the end, because the page of one may still be updated while that of the other opens.
    let proxies = ["http://service/", "http://service"].map(|target| {
        let location = format!("location /status/ {{ proxy_pass {target}; }}");
        Nginx::start(&service, &location)
    });
    let browser = Browser::start();
    for nginx in &proxies {
        browser.open(&nginx.url("/status/"));
        browser.wait(LIVE);
        let outside = browser.run(
            "return [...document.links].filter(link => link.origin === location.origin && !link.pathname.startsWith('/status/')).length",
        );
        assert_eq!(outside, 0);
        for (link, heading) in [
            ("a[href$='/docs']", "infrastructure-lab status service"),
            ("a[href='/status/']", "Infrastructure Lab"),
        ] {
            browser.run(&format!("document.querySelector(\"{link}\").click()"));
            browser.wait(&format!(
                "document.querySelector('h1')?.textContent === '{heading}'"
            ));
        }
        browser.wait(LIVE);
        browser.assert_no_errors_or_foreign_requests(&nginx.url("/status/"));
    }
}
