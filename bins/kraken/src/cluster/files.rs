//! The certificates of a cluster on loopback, in its directory.

use std::path::{Path, PathBuf};

use kraken_core::net::CertAuthority;
use kraken_daemon::{StartError, Tls};

use crate::Failure;

/// The directory's certificates.
pub(super) struct Files {
    dir: PathBuf,
    authority: CertAuthority,
}

impl Files {
    /// Finds the authority of an earlier start, or makes one.
    pub(super) fn prepare(dir: &Path) -> Result<Self, Failure> {
        let dir = dir.join("tls");
        std::fs::create_dir_all(&dir).map_err(Failure::io(format!("make {}", dir.display())))?;
        let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        let authority = if cert.exists() && key.exists() {
            CertAuthority::from_pem(&read(&cert)?, &read(&key)?).map_err(StartError::from)?
        } else {
            let authority = CertAuthority::create().map_err(StartError::from)?;
            let (cert_pem, key_pem) = authority.to_pem();
            write(&key, &key_pem)?;
            write(&cert, &cert_pem)?;
            authority
        };
        Ok(Self { dir, authority })
    }

    /// The certificate of one process. It keeps it over restarts, and with it its identity.
    pub(super) fn tls(&self, name: &str, role: &str) -> Result<Tls, Failure> {
        let path = |suffix: &str| self.dir.join(format!("{name}.{suffix}"));
        let tls = Tls::new(path("crt"), path("key"), self.dir.join("ca.crt"));
        if !tls.cert.exists() || !tls.key.exists() {
            let names = ["localhost", "127.0.0.1", "::1", name].map(str::to_string);
            let (cert, key) = self
                .authority
                .issue(role, &names)
                .map_err(StartError::from)?;
            write(&tls.key, &key)?;
            write(&tls.cert, &cert)?;
        }
        Ok(tls)
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(Failure::io(format!("read {}", path.display())))
}

/// Writes a file that nobody else may read.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(Failure::io(format!("write {}", path.display())))
}
