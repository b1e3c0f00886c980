//! Those who serve the blob: the agent, nginx, docker-registry. Each is a process of its own, which
//! ends with its value.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kraken_core::Digest;
use kraken_core::net::CertAuthority;
use rustix::process::{Pid, Signal, kill_process};

use super::blob::Blob;
use super::client::{self, free};
use crate::Outcome;
use crate::process::peak_memory;

/// A server that runs.
pub(crate) struct Server {
    child: Child,
    pub(super) addr: SocketAddr,
    /// Where the blob is.
    pub(super) path: String,
}

/// How long a server may take to answer at all.
const START: Duration = Duration::from_secs(30);

impl Server {
    /// The agent, over the store that has the blob. Nobody else of its cluster runs: it needs them
    /// for nothing that is measured.
    pub(crate) fn agent(dir: &Path, blob: &Blob) -> Outcome<Self> {
        let [addr] = free()?;
        let authority = CertAuthority::create()?;
        let (cert, key) = authority.issue("agent", &["localhost".to_string()])?;
        for (name, text) in [
            ("a.crt", cert),
            ("a.key", key),
            ("ca.crt", authority.to_pem().0),
        ] {
            fs::write(dir.join(name), text)?;
        }
        let [peers, nobody] = free()?;
        let config = format!(
            "store: {store}\npeer_listen: {peers}\nregistry_listen: {addr}\n\
             trackers: [\"https://{nobody}\"]\nbuild_indexes: [\"https://{nobody}\"]\n\
             tls: {{cert: {dir}/a.crt, key: {dir}/a.key, ca: {dir}/ca.crt}}\n",
            store = blob.store.display(),
            dir = dir.display(),
        );
        let path = dir.join("agent.yaml");
        fs::write(&path, config)?;
        let program = std::env::var_os("KRAKEN_AGENT");
        let mut command = match program {
            Some(program) => {
                let mut command = Command::new(program);
                command.arg("--config").arg(&path);
                command
            }
            None => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("service").arg("agent").arg(&path);
                command
            }
        };
        Self::start(&mut command, addr, blob_path(blob.digest))
    }

    /// nginx with sendfile over the very file that the agent has.
    pub(super) fn nginx(dir: &Path, blob: &Blob) -> Outcome<Self> {
        let [addr] = free()?;
        let file = blob.file();
        let root = file.parent().ok_or("a blob in no directory")?;
        let config = format!(
            "daemon off; user root; worker_processes auto; pid {dir}/nginx.pid;\n\
             error_log {dir}/nginx.log;\nevents {{}}\n\
             http {{ access_log off; sendfile on; tcp_nopush on;\n\
             client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
             fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi;\n\
             scgi_temp_path {dir}/scgi;\n\
             server {{ listen {addr}; location /blobs/ {{ alias {root}/; }} }} }}\n",
            dir = dir.display(),
            root = root.display(),
        );
        let path = dir.join("nginx.conf");
        fs::write(&path, config)?;
        let mut command = Command::new(program("nginx", "/usr/sbin/nginx"));
        command
            .arg("-e")
            .arg(dir.join("nginx.log"))
            .arg("-c")
            .arg(&path);
        Self::start(&mut command, addr, format!("/blobs/{}", blob.digest.hex()))
    }

    /// docker-registry on files of its own, with the blob pushed to it.
    pub(super) fn registry(dir: &Path, blob: &Blob) -> Outcome<Self> {
        let [addr] = free()?;
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {dir}/registry}}, \
             cache: {{blobdescriptor: inmemory}}}}\nhttp: {{addr: \"{addr}\"}}\n",
            dir = dir.display(),
        );
        let path = dir.join("registry.yaml");
        fs::write(&path, config)?;
        let mut command = Command::new(program("docker-registry", "/usr/bin/docker-registry"));
        command.arg("serve").arg(&path);
        let server = Self::start(&mut command, addr, blob_path(blob.digest))?;
        server.push(blob)?;
        Ok(server)
    }

    fn start(command: &mut Command, addr: SocketAddr, path: String) -> Outcome<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let mut server = Self { child, addr, path };
        let deadline = Instant::now() + START;
        while client::connect(addr).is_err() {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("{} ended: {status}", command.get_program().display()).into());
            }
            if Instant::now() > deadline {
                return Err(format!("nothing answers at {addr}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Pushes as a registry's client does: one upload, one body.
    fn push(&self, blob: &Blob) -> Outcome<()> {
        let mut buffer = vec![0; 64 << 10];
        let mut stream = client::connect(self.addr)?;
        let host = self.addr;
        let request = format!(
            "POST /v2/{REPOSITORY}/blobs/uploads/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let (answer, _) = client::head(&mut stream, &mut buffer)?;
        let location = answer.location.ok_or("an upload without a location")?;
        let path = location
            .trim_start_matches("http://")
            .trim_start_matches(&host.to_string());
        let (digest, length) = (blob.digest, blob.length);
        let request = format!(
            "PUT {path}&digest={digest} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        std::io::copy(&mut fs::File::open(blob.file())?, &mut stream)?;
        match client::head(&mut stream, &mut buffer)?.0.status {
            201 => Ok(()),
            status => Err(format!("the push was answered with {status}").into()),
        }
    }

    /// Processor seconds that the server and its workers have used.
    pub(super) fn cpu(&self) -> Outcome<f64> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let mut ticks = 0;
        for pid in children
            .split_whitespace()
            .chain([pid.to_string().as_str()])
        {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // Behind the name, which may hold anything, in parentheses.
            let fields = stat.rsplit_once(')').ok_or("no name in stat")?.1;
            let fields: Vec<_> = fields.split_whitespace().collect();
            ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        }
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// The most memory that the server has had, in bytes.
    pub(crate) fn peak_memory(&self) -> Outcome<u64> {
        peak_memory(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // So that nginx ends its workers as well.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const REPOSITORY: &str = "library/app";

fn blob_path(digest: Digest) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// Where a program lies: its usual place, or wherever the system finds it.
fn program(name: &str, usual: &str) -> PathBuf {
    let usual = Path::new(usual);
    if usual.exists() {
        usual
    } else {
        Path::new(name)
    }
    .to_path_buf()
}
