//! Certificates for tests, good ones and bad ones.

use std::time::{Duration, SystemTime};

use crate::identity::Pem;
use crate::{CertAuthority, CertInfo, CertRequest, Identity};

/// An authority, and its list of what is revoked.
pub(crate) struct Issuer {
    pub(crate) ca: CertAuthority,
    pub(crate) list: String,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let ca = CertAuthority::create().unwrap();
        let (spare, _) = ca.issue("agent", &[]).unwrap();
        let list = ca.revoke(&spare, None).unwrap();
        Self { ca, list }
    }

    /// A certificate for loopback, and the list as it is now.
    pub(crate) fn pem(&self, role: &str) -> Pem {
        self.pem_for(role, Duration::from_hours(1))
    }

    fn pem_for(&self, role: &str, validity: Duration) -> Pem {
        let hosts = ["127.0.0.1".to_owned()];
        let zone = "rack-1".parse().unwrap();
        let wanted = CertRequest {
            role,
            name: "it",
            hosts: &hosts,
            zone: (role == "agent").then_some(&zone),
            validity,
        };
        let (cert, key) = self.ca.issue_as(&wanted).unwrap();
        Pem {
            cert,
            key,
            ca: self.ca.to_pem().0,
            crl: Some(self.list.clone()),
            passphrase: None,
        }
    }

    pub(crate) fn identity(&self, role: &str) -> Identity {
        Identity::unchecked(&self.pem(role))
    }

    /// Revokes a certificate, and gives what a process has then whose files were `pem`.
    pub(crate) fn revoke(&mut self, cert: &str, pem: &Pem) -> Pem {
        self.list = self.ca.revoke(cert, Some(&self.list)).unwrap();
        let crl = Some(self.list.clone());
        Pem { crl, ..pem.clone() }
    }

    /// Those that get nowhere where one of role `right` is needed, by what is wrong with them: all of
    /// them trust this authority.
    pub(crate) fn bad(&mut self, right: &str, wrong: &str) -> Vec<(&'static str, Identity)> {
        let foreign = Self::new();
        let mut stranger = foreign.pem(right);
        stranger.ca += &self.ca.to_pem().0;
        let revoked = self.pem(right);
        let list = self.list.clone();
        self.revoke(&revoked.cert, &revoked);
        let revoked = Pem {
            crl: Some(list),
            ..revoked
        };
        let expired = self.pem_for(right, Duration::ZERO);
        // Certificates end with a second of the clock.
        let ends = CertInfo::from_pem(&expired.cert).unwrap()[0].not_after;
        while SystemTime::now() < ends + Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let all = [
            ("another authority", stranger),
            ("expired", expired),
            ("another role", self.pem(wrong)),
            ("no role", self.pem("stranger")),
            ("revoked", revoked),
        ];
        let all = all.into_iter();
        all.map(|(what, pem)| (what, Identity::unchecked(&pem)))
            .collect()
    }
}
