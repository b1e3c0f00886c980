//! The configuration of a process as an operator sees it: checked, printed, and changed while it runs.

#![expect(clippy::unwrap_used, reason = "in a test, also in what it is made of")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use kraken_core::net::CertAuthority;

const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with certificates and a configuration.
struct Site {
    dir: tempfile::TempDir,
    registry: SocketAddr,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = CertAuthority::create().unwrap();
        let (cert, key) = authority.issue("agent", &["127.0.0.1".into()]).unwrap();
        for (name, text) in [
            ("a.crt", cert),
            ("a.key", key),
            ("ca.crt", authority.to_pem().0),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = free.local_addr().unwrap();
        Self { dir, registry }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces the configuration as one should: by a rename.
    fn write(&self, more: &str) -> PathBuf {
        let (dir, registry) = (self.dir.path().display(), self.registry);
        let text = format!(
            "store: {dir}/store\npeer_listen: 127.0.0.1:0\nregistry_listen: {registry}\n\
             trackers: ['https://127.0.0.1:1']\nbuild_indexes: ['https://127.0.0.1:1']\n\
             tls: {{cert: {dir}/a.crt, key: {dir}/a.key, ca: {dir}/ca.crt}}\n{more}"
        );
        let new = self.path("agent.yaml.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, self.path("agent.yaml")).unwrap();
        self.path("agent.yaml")
    }
}

fn command(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kraken-agent"));
    command.arg("--config").arg(file).env_remove("RUST_LOG");
    command
}

fn output(command: &mut Command) -> (Output, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

/// An agent, and what it logs.
struct Agent {
    child: Child,
    lines: Receiver<String>,
    registry: SocketAddr,
}

impl Agent {
    fn start(site: &Site, file: &Path) -> Self {
        let mut child = command(file).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let log = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let agent = Self {
            child,
            lines,
            registry: site.registry,
        };
        agent.logs("started");
        agent
    }

    /// Waits for a line.
    fn logs(&self, what: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(what) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("nothing was logged of {what:?}: {seen:#?}"),
            }
        }
    }

    fn hang_up(&self) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-HUP", &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// The answer to a request, its head included.
    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.registry).unwrap();
        let (line, body) = request.split_once('\n').unwrap_or((request, ""));
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn upload_limit(&self) -> String {
        let answer = self.ask("PATCH /x/config/scheduler\n{\"limits\": {}}");
        answer.lines().last().unwrap_or_default().to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_configuration_is_checked_without_touching_anything() {
    let site = Site::new();
    let file = site.write("limits: {upload: 300MB/s}\n");
    let (checked, text) = output(command(&file).arg("--check-config"));
    assert!(checked.status.success(), "{text}");
    assert_eq!(text, "");
    let file = site.write(&format!(
        "trackers_file: /none\ndocker_listen: {}\nclient_tls: {{cert: /gone, key: /gone}}\n",
        site.registry
    ));
    let (checked, text) = output(command(&file).arg("--check-config"));
    assert_eq!(checked.status.code(), Some(1));
    for says in ["trackers_file", "docker_listen", "client_tls", "/gone"] {
        assert!(text.contains(says), "{says}\n{text}");
    }
    // A start tells all of it as well.
    let started = command(&file).output().unwrap();
    assert!(!started.status.success());
    let log = String::from_utf8_lossy(&started.stderr);
    assert!(text.lines().count() >= 3, "{text}");
    for line in text.lines() {
        assert!(log.contains(line), "{line}\n{log}");
    }
    let file = site.write("\nlimit: {upload: 1MB}\n");
    let (checked, text) = output(command(&file).arg("--check-config"));
    assert_eq!(checked.status.code(), Some(1));
    assert!(
        text.contains("agent.yaml:8:1: unknown key `limit`, did you mean `limits`?"),
        "{text}"
    );
    assert!(!site.path("store").exists());
}

#[test]
fn the_whole_is_printed_with_where_it_comes_from() {
    let site = Site::new();
    let file = site.write("limits: {upload: 300MB}\n");
    let (_, text) = output(
        command(&file)
            .args(["--print-config", "--set", "limits.download=1GiB/s"])
            .env("KRAKEN_ZONE", "rack-17"),
    );
    for line in [
        "  upload: 300MB  # ",
        "  download: 1GiB/s  # --set limits.download",
        "zone: rack-17  # KRAKEN_ZONE",
        "remember_peers: true  # default",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let (_, schema) = output(command(&file).arg("--schema"));
    assert!(schema.contains("\"LimitsConfig\"") && schema.contains("\"registry_listen\""));
    assert!(schema.contains("\"extends\""), "{schema}");
    let (refused, _) = output(command(&file).arg("--check-config").env("KRAKEN_ZOEN", "a"));
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn what_can_change_changes_while_the_process_runs() {
    let site = Site::new();
    let file = site.write("limits: {upload: 300MB}\n");
    let agent = Agent::start(&site, &file);
    assert!(agent.ask("GET /v2/").starts_with("HTTP/1.1 200"));

    // A signal, or the file alone.
    site.write("limits: {upload: 20MB/s}\nlog: debug\n");
    agent.hang_up();
    let line = agent.logs("the configuration is another one now");
    assert!(line.contains("limits, log"), "{line}");
    assert!(
        agent.upload_limit().contains("\"upload\":20000000"),
        "{}",
        agent.upload_limit()
    );
    site.write("limits: {upload: 30MB/s}\naccess: {rules: []}\nlog: info\n");
    let line = agent.logs("the configuration is another one now");
    assert!(line.contains("access, limits, log"), "{line}");
    assert!(
        agent.upload_limit().contains("\"upload\":30000000"),
        "{}",
        agent.upload_limit()
    );
    assert!(!agent.ask("GET /v2/").starts_with("HTTP/1.1 200"));

    // What is wrong changes nothing, not even what is right beside it.
    site.write("limits: {upload: 40MB/s}\naccess: {rules: [{may: [pull], repositories: '('}]}\n");
    agent.logs("the one before stays");
    site.write("limits: {upload: 40MB/s}\nlog: chatty\n");
    let line = agent.logs("the one before stays");
    assert!(line.contains("agent.yaml:8:6: log"), "{line}");
    assert!(
        agent.upload_limit().contains("\"upload\":30000000"),
        "{}",
        agent.upload_limit()
    );

    // What cannot change is named.
    site.write("limits: {upload: 40MB/s}\nzone: rack-17\n");
    let line = agent.logs("needs a restart");
    assert!(line.ends_with("needs a restart: zone"), "{line}");
    assert!(
        agent.upload_limit().contains("\"upload\":40000000"),
        "{}",
        agent.upload_limit()
    );
    let metrics = agent.ask("GET /metrics");
    for line in [
        "kraken_config_reloads_total 3",
        "kraken_config_refused_total 2",
        "kraken_config_waiting 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}
