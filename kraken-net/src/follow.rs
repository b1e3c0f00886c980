//! Takes what the files of an identity hold whenever they change.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use crate::identity::{Identity, IdentityError, IdentityFiles, Pem};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long before its end a certificate is warned about.
const AHEAD: Duration = Duration::from_hours(7 * 24);
/// How often it is warned.
const REMIND: Duration = Duration::from_hours(24);

impl Identity {
    /// Looks every two seconds whether the files have changed, and takes what they hold then, for
    /// handshakes to come; what cannot be used changes nothing, and is logged. Who turns out to be
    /// revoked is cut off. Warns a week before the certificate ends. Runs until it is dropped.
    pub async fn follow(&self, files: IdentityFiles) {
        let mut following = Following::default();
        loop {
            let read = files.clone();
            // Joins unless the runtime ends.
            let Ok(read) = tokio::task::spawn_blocking(move || read.read()).await else {
                return;
            };
            following.look(self, read, &files);
            following.warn(self);
            sleep(LOOK).await;
        }
    }
}

/// What was seen so far.
#[derive(Default)]
struct Following {
    taken: Option<Pem>,
    /// What was said last, so that it is said once.
    complaint: Option<String>,
    warned: Option<Instant>,
}

impl Following {
    fn look(
        &mut self,
        identity: &Identity,
        read: Result<Pem, IdentityError>,
        files: &IdentityFiles,
    ) {
        let cert = files.cert.display();
        let taken = read.and_then(|pem| {
            if self.taken.as_ref() == Some(&pem) {
                return Ok(false);
            }
            identity.take(&pem)?;
            // What it started with is taken once more: it may have changed since.
            let is_news = self.taken.replace(pem).is_some();
            Ok(is_news)
        });
        match taken {
            Ok(is_news) => {
                self.complaint = None;
                if is_news {
                    self.warned = None;
                    identity.counts().reloads.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(%cert, "the certificate, its authorities or what is revoked has changed");
                }
            }
            Err(error) => {
                let error = error.to_string();
                if self.complaint.as_ref() != Some(&error) {
                    identity
                        .counts()
                        .failed_reloads
                        .fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%cert, error, "the certificate stays as it was");
                    self.complaint = Some(error);
                }
            }
        }
    }

    fn warn(&mut self, identity: &Identity) {
        let status = identity.status();
        let ends = status.certificate_expiry.min(status.authority_expiry);
        let left = ends.duration_since(SystemTime::now()).unwrap_or_default();
        if left > AHEAD || self.warned.is_some_and(|when| when.elapsed() < REMIND) {
            return;
        }
        self.warned = Some(Instant::now());
        let hours = left.as_secs() / 3600;
        let what = if ends == status.certificate_expiry {
            "certificate"
        } else {
            "authority"
        };
        tracing::warn!(
            hours,
            "the {what} ends soon: nobody will talk to this process then"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::UnixTime;
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::CertAuthority;
    use crate::roles::RoleNames;

    struct Lab {
        dir: tempfile::TempDir,
        ca: CertAuthority,
        files: IdentityFiles,
        identity: Identity,
        following: Following,
        cert: String,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            let mut files = IdentityFiles::new(path("crt"), path("key"), path("ca"));
            files.crl = Some(path("crl"));
            let ca = CertAuthority::create().unwrap();
            let (cert, key) = ca.issue("origin", &[]).unwrap();
            let (spare, _) = ca.issue("agent", &[]).unwrap();
            fs::write(path("crt"), &cert).unwrap();
            fs::write(path("key"), key).unwrap();
            fs::write(path("ca"), ca.to_pem().0).unwrap();
            fs::write(path("crl"), ca.revoke(&spare, None).unwrap()).unwrap();
            let identity = Identity::read(&files, RoleNames::Written).unwrap();
            let mut lab = Self {
                dir,
                ca,
                files,
                identity,
                following: Following::default(),
                cert,
            };
            lab.look();
            lab
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join(name), text).unwrap();
        }

        fn look(&mut self) -> (u64, u64) {
            let read = self.files.read();
            self.following.look(&self.identity, read, &self.files);
            let status = self.identity.status();
            (status.reloads, status.failed_reloads)
        }
    }

    #[test]
    fn new_files_are_taken_and_wrong_ones_are_not() {
        let mut lab = Lab::new();
        assert_eq!(lab.look(), (0, 0));
        let ends = lab.identity.status().certificate_expiry;
        let day = Duration::from_hours(24);
        lab.write("crt", &lab.ca.renew(&lab.cert, day).unwrap());
        assert_eq!(lab.look(), (1, 0));
        assert!(lab.identity.status().certificate_expiry < ends);
        // Wrong in one way: counted once, however often it is seen.
        for wrong in ["half", &lab.ca.issue("origin", &[]).unwrap().0] {
            let before = lab.look().1;
            lab.write("crt", wrong);
            assert_eq!(lab.look(), (1, before + 1));
            assert_eq!(lab.look(), (1, before + 1));
            assert!(lab.identity.status().certificate_expiry < ends);
        }
        lab.write("crt", &lab.cert);
        assert_eq!(lab.look(), (2, 2));
        assert_eq!(lab.identity.status().certificate_expiry, ends);
        lab.write("crl", "");
        assert_eq!(lab.look(), (2, 3));
    }

    #[test]
    fn another_role_is_refused_and_another_key_where_peers_know_it() {
        let mut lab = Lab::new();
        let (cert, key) = lab.ca.issue("operator", &[]).unwrap();
        lab.write("crt", &cert);
        lab.write("key", &key);
        assert_eq!(lab.look(), (0, 1));
        let (cert, key) = lab.ca.issue("origin", &[]).unwrap();
        lab.write("crt", &cert);
        lab.write("key", &key);
        lab.identity.keep_key();
        assert_eq!(lab.look(), (0, 2));
    }

    #[tokio::test]
    async fn who_is_revoked_is_found_out_also_on_what_is_open() {
        let mut lab = Lab::new();
        let (cert, _) = lab.ca.issue("agent", &[]).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        let then = UnixTime::now();
        assert!(!lab.identity.has_revoked(&chain, then));
        let identity = lab.identity.clone();
        let waited = chain.clone();
        let waiting = tokio::spawn(async move { identity.until_revoked(waited).await });
        tokio::task::yield_now().await;
        let list = fs::read_to_string(lab.dir.path().join("crl")).unwrap();
        lab.write("crl", &lab.ca.revoke(&cert, Some(&list)).unwrap());
        assert_eq!(lab.look(), (1, 0));
        waiting.await.unwrap();
        assert!(lab.identity.has_revoked(&chain, then));
        // Its own certificate is not on the list, and one that is, is not taken.
        let list = fs::read_to_string(lab.dir.path().join("crl")).unwrap();
        lab.write("crl", &lab.ca.revoke(&lab.cert, Some(&list)).unwrap());
        assert_eq!(lab.look(), (1, 1));
    }
}
