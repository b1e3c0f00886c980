//! Whether the files of certificates can be used, now and in the next weeks.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kraken_core::net::certificate::CertInfo;

use super::{Facts, Finding, unix_ms};

/// A certificate that is valid for less is named.
const DAYS: i64 = 14;
const DAY: i64 = 24 * 3600;

/// Looks at the files that a process of this configuration reads.
pub(crate) async fn look(facts: &Facts) -> Vec<Finding> {
    let facts = facts.clone();
    let looking = tokio::task::spawn_blocking(move || files(&facts, unix_ms() / 1000));
    looking.await.unwrap_or_else(|error| {
        vec![Finding::failed(
            "certificates",
            error.to_string(),
            "see the agent's log",
        )]
    })
}

fn files(facts: &Facts, now: i64) -> Vec<Finding> {
    let tls = &facts.tls;
    let mut found = Vec::new();
    if let Err(error) = tls.identity() {
        let advice =
            "correct the files that tls names before this process is restarted: it would not start";
        found.push(Finding::failed("certificates", error.to_string(), advice));
    }
    let of = [("certificate", tls.cert.as_path()), ("authority", &tls.ca)];
    let client = facts.client_tls.as_ref();
    let client = client.map(|tls| ("certificate for clients", tls.cert.as_path()));
    for (check, path) in of.into_iter().chain(client) {
        found.extend(file(check, path, now));
    }
    found
}

fn file(check: &str, path: &Path, now: i64) -> Vec<Finding> {
    let check = format!("{check} {}", path.display());
    match CertInfo::in_file(path) {
        Ok(all) => all.iter().map(|it| judge(&check, it, now)).collect(),
        Err(error) => {
            let advice = "correct the path in the configuration, or the file";
            vec![Finding::failed(&check, error.to_string(), advice)]
        }
    }
}

/// What to say of a certificate at a time, in seconds since 1970.
pub(crate) fn judge(check: &str, certificate: &CertInfo, now: i64) -> Finding {
    let [valid_from, valid_until] =
        [certificate.not_before, certificate.not_after].map(unix_seconds);
    let days = (valid_until - now).div_euclid(DAY);
    let renew = "renew it (`kraken ca renew`); processes read it again by themselves";
    if valid_from > now {
        let what = format!("not valid before {}", date(valid_from));
        let advice = "the clock of this host is behind, or the certificate was made on one whose clock is ahead";
        return Finding::failed(check, what, advice);
    }
    if valid_until < now {
        return Finding::failed(check, format!("expired at {}", date(valid_until)), renew);
    }
    if days < DAYS {
        return Finding::warning(check, format!("valid for {days} more days"), renew);
    }
    let names = match &certificate.hosts[..] {
        [] => String::new(),
        names => format!(", for {}", names.join(", ")),
    };
    Finding::ok(check, format!("valid for {days} days{names}"))
}

fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |it| it.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kraken_core::net::CertAuthority;

    use super::*;
    use crate::config::{QuicMtu, Tls, TransportConfig};
    use crate::doctor::State;

    fn facts(dir: &Path, authority: &CertAuthority, ca: &str) -> Facts {
        let (cert, key) = authority.issue("agent", &["a.test".into()]).unwrap();
        let path = |name: &str| dir.join(name);
        for (name, text) in [("a.crt", &*cert), ("a.key", &*key), ("ca.crt", ca)] {
            fs::write(path(name), text).unwrap();
        }
        let tls = Tls::new(path("a.crt"), path("a.key"), path("ca.crt"));
        Facts {
            tls,
            client_tls: None,
            dirs: Vec::new(),
            transport: TransportConfig::default(),
            quic_mtu: QuicMtu::default(),
        }
    }

    #[test]
    fn certificates_are_judged_by_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let authority = CertAuthority::create().unwrap();
        let facts = facts(dir.path(), &authority, &authority.to_pem().0);
        let until = unix_seconds(CertInfo::in_file(&facts.tls.cert).unwrap()[0].not_after);
        for (now, state, says) in [
            (until - 30 * DAY, State::Ok, "30 days, for a.test"),
            (until - 13 * DAY, State::Warning, "13 more days"),
            (until + 1, State::Failed, "expired"),
            (0, State::Failed, "not valid before"),
        ] {
            let found = files(&facts, now);
            assert_eq!(found.len(), 2, "the certificate and the authority");
            assert_eq!(found[0].state, state, "{now}");
            assert!(found[0].what.contains(says), "{}", found[0].what);
        }
    }

    #[test]
    fn files_that_would_keep_the_process_from_starting_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let [ours, theirs] = [(); 2].map(|()| CertAuthority::create().unwrap());
        let wrong = facts(dir.path(), &ours, &theirs.to_pem().0);
        let found = files(&wrong, unix_ms() / 1000);
        assert_eq!(found[0].state, State::Failed);
        assert!(found[0].what.contains("authority"), "{}", found[0].what);
        fs::remove_file(&wrong.tls.cert).unwrap();
        let found = files(&wrong, unix_ms() / 1000);
        let failed = found.iter().filter(|it| it.state == State::Failed);
        assert_eq!(failed.count(), 2);
    }
}
