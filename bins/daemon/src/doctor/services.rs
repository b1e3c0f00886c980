//! Whether a service of the cluster answers, shows the right certificate, is ready, and has the same
//! time.

use http::Request;
use jiff::fmt::rfc2822;
use kraken_core::net::http::probe::{ProbeError, STEP, probe};
use kraken_core::net::http::{ApiError, BaseUrl, HttpBody, HttpClient, HttpResponse};
use kraken_core::net::{Identity, Role, certificate::CertInfo};

use super::certificates;
use super::{Finding, unix_ms};

/// Clocks that differ by more are named.
const CLOCK_WARNING_MS: i64 = 2_000;
/// Clocks that differ by more break what depends on time: certificates and tokens.
const CLOCK_FAILED_MS: i64 = 60_000;
/// The longest answer about readiness that is read.
const ANSWER: usize = 4096;

/// Looks at the service of this role at `url`, which `check` names: one finding about it, and one about its
/// clock when it answers.
pub async fn look_at(
    check: &str,
    (url, role): (&str, Role),
    by: (&Identity, &HttpClient),
) -> Vec<Finding> {
    let base: BaseUrl = match url.parse() {
        Ok(base) => base,
        Err(error) => {
            let what = format!("{error}");
            return vec![Finding::failed(
                check,
                what,
                "correct it in the configuration",
            )];
        }
    };
    let (identity, http) = by;
    let probe = match probe(&base, identity).await {
        Ok(probe) => probe,
        Err(error) => return vec![unreachable(check, &error)],
    };
    if let Some(other) = another_role(check, role, probe.certificate.as_ref(), identity) {
        return vec![other];
    }
    let asked = unix_ms();
    let answer = ask(http, &base).await;
    let (taken, middle) = (unix_ms() - asked, i64::midpoint(asked, unix_ms()));
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return vec![silent(check, &error.to_string())],
    };
    let date = answer.header("date").and_then(date_ms);
    let clock = date.map(|date| clock(check, apart(date, middle, taken)));
    let clock = clock.unwrap_or_else(|| {
        let what = "it does not say what time it has";
        Finding::skipped(&format!("clock of {check}"), what)
    });
    let ready = ready(check, answer, probe.connected.as_millis()).await;
    let mut found = vec![ready, clock];
    found.extend(expiring(check, probe.certificate.as_ref()));
    found
}

/// Another service than is looked for.
fn another_role(
    check: &str,
    role: Role,
    certificate: Option<&CertInfo>,
    identity: &Identity,
) -> Option<Finding> {
    let found = identity.role_of(certificate?)?;
    (found != role).then(|| {
        let what = format!("a process of role {found} answers there");
        let advice =
            format!("correct the URL in the configuration: this one is to be of role {role}");
        Finding::failed(check, what, advice)
    })
}

async fn ask(http: &HttpClient, base: &BaseUrl) -> Result<HttpResponse, ApiError> {
    let request = Request::get(format!("{base}/readiness")).body(HttpBody::Empty);
    let request = request.map_err(|error| ApiError::BadRequest(error.to_string()))?;
    http.send_within(request, STEP).await
}

async fn ready(check: &str, answer: HttpResponse, connect_ms: u128) -> Finding {
    let status = answer.status();
    if status.is_success() {
        return Finding::ok(check, format!("ready; connected in {connect_ms} ms"));
    }
    let said = answer.bytes(ANSWER).await.unwrap_or_default();
    let said = String::from_utf8_lossy(&said).trim().to_string();
    let what = format!("it answers and is not ready: {status} {said}");
    let advice = "what it waits for is in its answer; its log says more";
    Finding::failed(check, what, advice)
}

/// A certificate that is soon out of date.
fn expiring(check: &str, certificate: Option<&CertInfo>) -> Option<Finding> {
    let check = format!("certificate of {check}");
    let found = certificates::judge(&check, certificate?, unix_ms() / 1000);
    (found.state != super::State::Ok).then_some(found)
}

/// Why nobody answers, in words.
fn unreachable(check: &str, error: &ProbeError) -> Finding {
    let advice = match error {
        ProbeError::Name { .. } => {
            "mend DNS or /etc/hosts, or correct the name in this host's configuration".to_string()
        }
        ProbeError::Connect { addr, reason } if reason.contains("efused") => {
            format!(
                "start it: nobody listens at {addr}; or correct its address in the configuration"
            )
        }
        ProbeError::Connect { addr, .. } => format!(
            "its host is away, or a firewall drops what goes to {addr} over TCP: open that port"
        ),
        ProbeError::Tls { reason, .. } => tls_advice(reason).to_string(),
        _ => "see its log".to_string(),
    };
    Finding::failed(check, error.to_string(), advice)
}

/// What to do about certificates that do not fit, by what the TLS library says.
fn tls_advice(reason: &str) -> &'static str {
    let reason = reason.to_lowercase();
    let has = |text: &str| reason.contains(text);
    if has("unknownissuer") || has("unknownca") || has("unknown issuer") || has("badsignature") {
        return "its certificate is of another authority than this host's tls.ca: issue both by one, or \
                name both authorities in tls.ca";
    }
    if has("not valid yet") || has("notvalidyet") {
        return "its certificate is not valid yet: the clock of this host is behind, or the certificate \
                was made on a host whose clock is ahead";
    }
    if has("not valid for name") || has("notvalidforname") {
        return "its certificate does not hold the name by which it is called: issue it anew with that name";
    }
    if has("expired") {
        return "its certificate has expired: renew it; or the clock of this host is ahead";
    }
    "it speaks no TLS 1.3 there, or another service does: check the port, and that the URL begins with https://"
}

/// It took the connection and gave no answer.
fn silent(check: &str, error: &str) -> Finding {
    let lower = error.to_lowercase();
    let advice = if lower.contains("alert") || lower.contains("certificate") {
        "it refuses this host's certificate: this host's tls.cert must be of the authority in that \
         process's tls.ca, and valid now"
    } else {
        "it takes connections and gives no answer: it hangs, or is overloaded; see its log"
    };
    Finding::failed(check, error, advice)
}

fn date_ms(text: &str) -> Option<i64> {
    let date = rfc2822::parse(text).ok()?;
    Some(date.timestamp().as_millisecond())
}

/// How far another clock is ahead for certain, in milliseconds, negative when it is behind. `date`
/// is what it said, cut to the second; this clock stood at `middle` when the question was half way, which took
/// `taken`.
fn apart(date: i64, middle: i64, taken: i64) -> i64 {
    let least = date - middle - taken / 2;
    let most = date + 1000 - middle + taken / 2;
    if least > 0 { least } else { most.min(0) }
}

fn clock(of: &str, ahead_ms: i64) -> Finding {
    let check = format!("clock of {of}");
    let seconds = ahead_ms.unsigned_abs().div_ceil(1000);
    let way = if ahead_ms > 0 { "ahead of" } else { "behind" };
    let what = format!("it is {seconds} s or more {way} this host's");
    let advice = "let both hosts take their time from NTP (chrony, systemd-timesyncd): certificates and \
                  tokens are valid from and until a time";
    if ahead_ms.abs() <= CLOCK_WARNING_MS {
        return Finding::ok(&check, "within 2 s of this host's");
    }
    match ahead_ms.abs() <= CLOCK_FAILED_MS {
        true => Finding::warning(&check, what, advice),
        false => Finding::failed(&check, what, advice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn clocks_are_judged_by_what_is_certain() {
        let date = date_ms("Thu, 26 Nov 2026 13:50:49 GMT").unwrap();
        // The same second, whenever in it the answer was written, and however long it took.
        for (middle, taken) in [
            (date, 0),
            (date + 999, 2),
            (date + 1500, 1200),
            (date - 300, 700),
        ] {
            assert_eq!(apart(date, middle, taken), 0, "{middle} {taken}");
        }
        assert_eq!(apart(date, date - 5_000, 10), 4_995);
        assert_eq!(apart(date, date + 5_000, 10), -3_995);
        for (ahead, state, says) in [
            (0, State::Ok, "within"),
            (2_000, State::Ok, "within"),
            (2_001, State::Warning, "3 s or more ahead"),
            (-60_000, State::Warning, "60 s or more behind"),
            (60_001, State::Failed, "ahead"),
            (-3_600_000, State::Failed, "3600 s or more behind"),
        ] {
            let found = clock("a tracker", ahead);
            assert_eq!(found.state, state, "{ahead}");
            assert!(found.what.contains(says), "{}", found.what);
        }
    }

    #[test]
    fn each_disagreement_about_tls_has_its_advice() {
        for (reason, says) in [
            (
                "invalid peer certificate: UnknownIssuer",
                "another authority",
            ),
            (
                "invalid peer certificate: certificate not valid for name \"a\"",
                "with that name",
            ),
            (
                "invalid peer certificate: certificate expired: verification time 1",
                "has expired",
            ),
            (
                "invalid peer certificate: certificate not valid yet: 1",
                "is behind",
            ),
            (
                "received corrupt message of type InvalidContentType",
                "check the port",
            ),
        ] {
            assert!(tls_advice(reason).contains(says), "{reason}");
        }
        let refused = silent("x", "received fatal alert: UnknownCA");
        assert!(
            refused
                .advice
                .unwrap()
                .contains("refuses this host's certificate")
        );
    }
}
