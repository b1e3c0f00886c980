//! A directory with a cluster and the clients' files, and how to run them.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kraken_core::net::CertAuthority;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::MIRRORED;
use crate::namespace::{find, search_path};

/// The first port of the cluster. Nothing else listens in these namespaces.
const BASE_PORT: u16 = 5000;
/// How long one run of a client may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a process may take to start or to stop.
const START: Duration = Duration::from_secs(60);
/// How the clients call the group of what they run.
pub(crate) const CGROUP: &str = "kraken-clients";
const POLL: Duration = Duration::from_millis(20);

/// The directory and what runs on it.
pub(crate) struct Lab {
    kraken: Option<Daemon>,
    runs: Cell<u32>,
    // The last, so that everything has ended before it is removed.
    dir: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("kraken-clients-")
            .tempdir()
            .unwrap();
        let path = dir.path().to_str().unwrap();
        assert!(!path.contains(char::is_whitespace), "set TMPDIR: {path:?}");
        let lab = Self {
            kraken: None,
            runs: Cell::new(0),
            dir,
        };
        for dir in ["home/.config/containers", "tmp", "runs"] {
            fs::create_dir_all(lab.path(dir)).unwrap();
        }
        let write = |name: &str, text: String| fs::write(lab.path(name), text).unwrap();
        write(
            "home/.config/containers/policy.json",
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#.into(),
        );
        // The ulimits that podman would take are above what a machine may allow.
        let runc = find("runc").unwrap_or_default();
        write(
            "containers.conf",
            format!(
                "[containers]
default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]
[engine]
cgroup_manager = \"cgroupfs\"
events_logger = \"none\"
lock_type = \"file\"
runtime = \"runc\"
[engine.runtimes]
runc = [{runc:?}]
"
            ),
        );
        write(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"vfs\"\ngraphroot = {:?}\nrunroot = {:?}\n",
                lab.path("storage/graph"),
                lab.path("storage/run")
            ),
        );
        // Nothing listens behind the mirror: an image can only come through it.
        write(
            "registries.conf",
            format!(
                "unqualified-search-registries = []
[[registry]]
prefix = \"{MIRRORED}\"
location = \"127.0.0.1:1\"
insecure = true
[[registry.mirror]]
location = \"{}\"
insecure = true
",
                lab.agent(2)
            ),
        );
        lab
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_string()
    }

    /// Where images are pushed to.
    pub(crate) fn proxy(&self) -> String {
        format!("127.0.0.1:{}", BASE_PORT + 2)
    }

    /// Where they are pulled from; the first agent is 1.
    pub(crate) fn agent(&self, number: u16) -> String {
        format!("127.0.0.1:{}", BASE_PORT + 10 + 2 * (number - 1))
    }

    pub(crate) fn start_kraken(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kraken"));
        command
            .args(["dev", "--agents", "3", "--dir", &self.path("kraken")])
            .args(["--base-port", &BASE_PORT.to_string()]);
        let mut kraken = Daemon::start("kraken", command, self);
        kraken.wait_until(|log| log.contains("Kraken is up."));
        self.kraken = Some(kraken);
    }

    /// Stops it as Ctrl-C does.
    pub(crate) fn stop_kraken(&mut self) {
        let mut kraken = self.kraken.take().unwrap();
        let status = kraken.interrupt();
        assert!(status.success(), "kraken: {status}\n{}", kraken.log());
    }

    /// One more agent, with this in its configuration, and its address.
    pub(crate) fn start_agent(&self, name: &'static str, preload: Value) -> (Daemon, String) {
        let addr = format!("127.0.0.1:{}", BASE_PORT + 200);
        let tls =
            |file: &str| fs::read_to_string(self.path(&format!("kraken/tls/{file}"))).unwrap();
        let authority = CertAuthority::from_pem(&tls("ca.crt"), &tls("ca.key")).unwrap();
        let (cert, key) = authority.issue("agent", &["127.0.0.1".into()]).unwrap();
        let path = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        fs::write(path("crt"), cert).unwrap();
        fs::write(path("key"), key).unwrap();
        let config = json!({
            "store": path("store"), "registry_listen": addr,
            "peer_listen": format!("127.0.0.1:{}", BASE_PORT + 201),
            "trackers": [format!("https://127.0.0.1:{BASE_PORT}")],
            "build_indexes": [format!("https://127.0.0.1:{}", BASE_PORT + 1)],
            "preload": preload, "own_names": [MIRRORED],
            "tls": {"cert": path("crt"), "key": path("key"), "ca": self.path("kraken/tls/ca.crt")},
        });
        fs::write(path("yaml"), config.to_string()).unwrap();
        let mut command = self.client(env!("CARGO_BIN_EXE_kraken"));
        command.args(["run", "agent", "--config", &path("yaml")]);
        let mut daemon = Daemon::start(name, command, self);
        daemon.wait_until(|log| log.contains("started"));
        (daemon, addr)
    }

    /// A containerd that knows [`MIRRORED`] through one agent only.
    pub(crate) fn start_containerd(&self, agent: &str) -> Daemon {
        let root = self.path("configured");
        let arguments = ["runtime", "install", "--runtime", "containerd"];
        let mut install = Command::new(env!("CARGO_BIN_EXE_kraken"));
        install.args(arguments).args(["--root", &root]);
        install.args(["--agent", agent, "--upstream", MIRRORED]);
        let installed = install.output().unwrap();
        assert!(installed.status.success(), "{installed:?}");
        self.plain_containerd()
    }

    /// A containerd that knows what is in [`Lab::hosts`].
    pub(crate) fn plain_containerd(&self) -> Daemon {
        let (root, state) = (self.path("containerd/root"), self.path("containerd/state"));
        let socket = self.path("containerd.sock");
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n[grpc]\n  address = {socket:?}\n"
        );
        fs::write(self.path("containerd.toml"), config).unwrap();
        let mut command = self.client("containerd");
        command.args(["--config", &self.path("containerd.toml")]);
        let mut daemon = Daemon::start("containerd", command, self);
        daemon.wait_until(|log| log.contains("containerd successfully booted"));
        daemon
    }

    /// How to ask that containerd.
    pub(crate) fn ctr(&self) -> String {
        let socket = self.path("containerd.sock");
        format!("ctr --address {socket} --namespace {CGROUP}")
    }

    /// Where the mirrors of containerd are configured.
    pub(crate) fn hosts(&self) -> String {
        self.path("configured/etc/containerd/certs.d")
    }

    /// Pushes by skopeo; gives the digest of what it pushed.
    pub(crate) fn skopeo_push(&self, source: &str, target: &str, options: &str) -> String {
        self.skopeo_copy(&format!(
            "--dest-tls-verify=false {options} {source} docker://{target}"
        ))
    }

    /// Pulls by skopeo; gives the digest of what it wrote.
    pub(crate) fn skopeo_pull(&self, source: &str, target: &str, options: &str) -> String {
        self.skopeo_copy(&format!(
            "--src-tls-verify=false {options} docker://{source} {target}"
        ))
    }

    /// A manifest as the registry has it.
    pub(crate) fn skopeo_raw(&self, source: &str) -> String {
        self.ok(&format!(
            "skopeo inspect --raw --tls-verify=false docker://{source}"
        ))
    }

    fn skopeo_copy(&self, words: &str) -> String {
        let file = self.path("skopeo-digest");
        self.ok(&format!("skopeo copy --digestfile {file} {words}"));
        let digest = fs::read_to_string(&file).unwrap();
        fs::remove_file(file).unwrap();
        digest
    }

    /// Runs a client that must succeed; gives its stdout. Words end at blanks.
    pub(crate) fn ok(&self, line: &str) -> String {
        let (status, stdout, stderr) = self.run(line);
        assert!(
            status.success(),
            "{line}\n{status}\n{stdout}{stderr}\n{}",
            self.kraken_log()
        );
        stdout
    }

    /// Runs a client that must fail; gives its stderr.
    pub(crate) fn fails(&self, line: &str) -> String {
        let (status, stdout, stderr) = self.run(line);
        let code = status.code();
        assert!(
            code.is_some_and(|code| code != 0),
            "{line}\n{status}\n{stdout}{stderr}"
        );
        stderr
    }

    fn run(&self, line: &str) -> (ExitStatus, String, String) {
        let run = self.runs.get();
        self.runs.set(run + 1);
        let mut words = line.split_whitespace();
        let mut command = self.client(words.next().unwrap());
        command.args(words);
        // In files: what a client leaves running may keep a pipe open for long.
        let (out, err) = (
            self.path(&format!("runs/{run}.out")),
            self.path(&format!("runs/{run}.err")),
        );
        let mut child = command
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        let ended = wait(&mut child, PATIENCE);
        let (stdout, stderr) = (read(&out), read(&err));
        let Some(status) = ended else {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!(
                "still runs after {PATIENCE:?}: {line}\n{stdout}{stderr}\n{}",
                self.kraken_log()
            );
        };
        (status, stdout, stderr)
    }

    /// A client with files of its own, and without what the environment has for other clients.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = Command::new(find(program).unwrap());
        command
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", search_path())
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"))
            .env("BUILDAH_ISOLATION", "chroot");
        command
    }

    fn kraken_log(&self) -> String {
        let log = self.kraken.as_ref().map(Daemon::log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(40)..];
        format!("the end of kraken's log:\n{}", last.join("\n"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kraken = None;
        // After a failure something may still be mounted, and would keep the directory.
        let here = self.dir.path().to_str().unwrap();
        for line in read("/proc/mounts").lines().rev() {
            let mount = line.split(' ').nth(1).unwrap_or_default();
            if mount.starts_with(here) {
                let _ = Command::new("umount").args(["-l", mount]).status();
            }
        }
        // Groups outlive the namespaces. None of these removes one that is in use.
        for controller in dirs("/sys/fs/cgroup".as_ref()) {
            let group = controller.join(CGROUP);
            for inner in dirs(&group) {
                let _ = fs::remove_dir(inner);
            }
            let _ = fs::remove_dir(group);
        }
    }
}

/// A process that runs until it is told to end.
pub(crate) struct Daemon {
    name: &'static str,
    child: Child,
    file: String,
}

impl Daemon {
    pub(crate) fn start(name: &'static str, mut command: Command, lab: &Lab) -> Self {
        let file = lab.path(&format!("{name}-{}.log", lab.runs.get()));
        let log = File::create(&file).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name, child, file }
    }

    pub(crate) fn log(&self) -> String {
        read(&self.file)
    }

    pub(crate) fn wait_until(&mut self, ready: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !ready(&self.log()) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{} ended\n{}", self.name, self.log());
            assert!(
                start.elapsed() < START,
                "{} is not up after {START:?}\n{}",
                self.name,
                self.log()
            );
            sleep(POLL);
        }
    }

    /// Sends a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success(), "{} has ended\n{}", self.name, self.log());
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn interrupt(&mut self) -> ExitStatus {
        self.signal("INT");
        wait(&mut self.child, START).unwrap_or_else(|| {
            panic!(
                "{} still runs {START:?} after SIGINT\n{}",
                self.name,
                self.log()
            )
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        let ended = child.try_wait().unwrap();
        if ended.is_some() || start.elapsed() > patience {
            return ended;
        }
        sleep(POLL);
    }
}

/// The directories in one that may not be there, and itself.
fn dirs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut dirs: Vec<_> = paths.filter(|path| path.is_dir()).collect();
    dirs.push(dir.to_path_buf());
    dirs
}

fn read(file: &str) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}
