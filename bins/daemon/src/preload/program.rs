//! Runtimes that are told by a program of theirs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use super::{
    CONTAINERD, CTR, HOSTS_DIR, ImageName, NAMESPACE, PODMAN, PreloadError, Preloader, Puller,
    SAID, Word,
};

impl Preloader {
    /// What is run for containerd and Podman.
    pub(super) fn command(
        &self,
        image: &ImageName,
        namespace: Option<&Word>,
    ) -> (PathBuf, Vec<OsString>) {
        let config = &self.config;
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        let path = |path: &Option<PathBuf>, usual: &str| {
            let path = path.as_ref().map(|path| path.display().to_string());
            path.unwrap_or_else(|| usual.to_owned())
        };
        let usual = if config.runtime == Puller::Podman {
            add(&["pull", "--quiet"]);
            if config.registry.is_none() {
                add(&["--tls-verify=false"]);
            }
            PODMAN
        } else {
            let namespace = namespace.or(config.namespace.as_ref());
            let namespace = namespace.map_or(NAMESPACE, Word::as_str);
            let socket = path(&config.socket, CONTAINERD);
            add(&["--address", &socket, "--namespace", namespace]);
            add(&["images", "pull"]);
            if let Some(snapshotter) = &config.snapshotter {
                add(&["--snapshotter", snapshotter.as_str()]);
            }
            match config.registry {
                None => add(&["--plain-http"]),
                Some(_) => add(&["--hosts-dir", &path(&config.hosts_dir, HOSTS_DIR)]),
            }
            CTR
        };
        add(&[&self.name(image)]);
        let program = config.program.clone();
        (program.unwrap_or_else(|| usual.into()), arguments)
    }
}

/// Runs a program to its end; it ends with this.
pub(super) async fn run(program: &Path, arguments: &[OsString]) -> Result<(), PreloadError> {
    let what = || program.display().to_string();
    let away = |error: std::io::Error| PreloadError::Away {
        what: what(),
        reason: error.to_string(),
    };
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(away)?;
    let stderr = child.stderr.take();
    let said = async {
        match stderr {
            Some(stderr) => tail(stderr).await,
            None => String::new(),
        }
    };
    let (said, status) = tokio::join!(said, child.wait());
    let status = status.map_err(away)?;
    if status.success() {
        return Ok(());
    }
    let said = match said.is_empty() {
        true => format!("nothing ({status})"),
        false => said,
    };
    Err(PreloadError::Failed { what: what(), said })
}

/// The end of what a program says, however much that is.
async fn tail(mut from: impl AsyncRead + Unpin) -> String {
    let (mut kept, mut chunk) = (Vec::new(), [0; SAID]);
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..read]);
        let surplus = kept.len().saturating_sub(SAID);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}
