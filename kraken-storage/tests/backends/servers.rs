//! Servers that run for the length of a test.

use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// With the value `1`: a server that is missing fails the test that needs it.
const REQUIRE: &str = "KRAKEN_REQUIRE_SERVERS";
/// Where `.ci/servers` notes which files it could not fetch, one a line: nobody can require these.
const LEFT_OUT: &str = "left-out";
/// How long a server may take to answer; one of them is a Java program on a busy machine.
const STARTS: Duration = Duration::from_secs(90);

/// A process, killed when it is dropped, and a directory for its files.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) dir: TempDir,
    children: Vec<Child>,
}

impl Server {
    /// Runs `command`, whose output goes into a file of the server's directory.
    pub(crate) fn start(dir: TempDir, addr: SocketAddr, command: &mut Command) -> Self {
        let mut server = Self {
            addr,
            dir,
            children: Vec::new(),
        };
        server.also(addr, command);
        server
    }

    /// Runs a further process, and waits until it listens at `addr`.
    pub(crate) fn also(&mut self, addr: SocketAddr, command: &mut Command) {
        let log = self.dir.path().join(format!("log-{}", self.children.len()));
        let output = File::create(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        self.children.push(child);
        let began = Instant::now();
        while TcpStream::connect(addr).is_err() {
            let ended = self.children.last_mut().unwrap().try_wait().unwrap();
            let said = || fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "{command:?} ended: {}", said());
            assert!(began.elapsed() < STARTS, "{command:?} hangs: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Places where nobody listens, each another one.
pub(crate) fn free<const N: usize>() -> [SocketAddr; N] {
    let held = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}

/// The directory with the servers that no system package has.
fn home() -> PathBuf {
    match env::var_os("KRAKEN_TEST_SERVERS") {
        Some(dir) => dir.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers"),
    }
}

/// A file of a server; none, after saying so, when it is not installed.
pub(crate) fn installed(what: &str, file: &str) -> Option<PathBuf> {
    let path = home().join(file);
    if path.exists() {
        return Some(path);
    }
    let why = format!("{} is not there", path.display());
    let left_out = fs::read_to_string(home().join(LEFT_OUT)).unwrap_or_default();
    match left_out.lines().any(|it| it == file) {
        true => say(what, &format!("{why}, and could not be fetched")),
        false => skip(what, &why),
    }
    None
}

/// A program on the path, also one for root; none, after saying so, when it is not installed.
pub(crate) fn program(what: &str, name: &str) -> Option<PathBuf> {
    let path = env::var("PATH").unwrap_or_default();
    let found = env::split_paths(&format!("{path}:/usr/sbin:/sbin"))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        skip(what, &format!("{name} is not installed"));
    }
    found
}

fn skip(what: &str, why: &str) {
    let required = env::var(REQUIRE).as_deref() == Ok("1");
    assert!(!required, "{REQUIRE}=1 forbids to skip {what}: {why}");
    say(what, &format!("{why} (.ci/servers installs it)"));
}

/// Says what is skipped, past the harness, which keeps the output of a test that passes to itself.
fn say(what: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: the checks of {what}: {why}");
}
