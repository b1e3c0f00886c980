//! `kraken doctor`: says in words what is wrong with an agent, or with a whole cluster of `kraken dev`.

mod cluster;
mod runtimes;

use std::path::Path;
use std::time::Duration;

use kraken_core::Digest;
use kraken_core::net::http::ApiError;
use kraken_daemon::doctor::blob::{NAMESPACE, TestBlob};
use kraken_daemon::doctor::{Finding, Report, State};
use serde::Serialize;

use crate::Failure;
use crate::operator::Operator;

pub use cluster::examine_cluster;

/// How long an agent may look at everything: its own looks end before.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long any other question may take.
const SHORT: Duration = Duration::from_secs(10);
/// The longest answer that is read, in bytes.
const ANSWER: usize = 4 << 20;

/// What was found at one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Which process, or this host.
    pub process: String,
    /// What.
    #[serde(flatten)]
    pub finding: Finding,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Whether nothing failed; warnings leave it green.
    pub green: bool,
    /// One for each look.
    pub checks: Vec<Check>,
}

impl Diagnosis {
    /// Puts together what was found.
    pub fn of(checks: Vec<Check>) -> Self {
        let green = checks.iter().all(|it| it.finding.state != State::Failed);
        Self { green, checks }
    }

    /// One line for each look, and then in words what is wrong and what to do about it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut process = "";
        for Check {
            process: of,
            finding,
        } in &self.checks
        {
            if of != process {
                text.push_str(&format!("{of}\n"));
                process = of;
            }
            let mark = mark(finding.state);
            text.push_str(&format!(
                "  {mark:<8} {}: {}\n",
                finding.check, finding.what
            ));
        }
        let wrong = self.with(State::Failed, &mut text, "wrong");
        let warnings = self.with(State::Warning, &mut text, "to be mended");
        text.push_str(match (wrong, warnings) {
            (0, 0) => "\nAll is well.",
            (0, _) => "\nIt works; see what is to be mended.",
            _ => "\nIt does not work as it should; the first of these is often the cause of the others.",
        });
        text
    }

    fn with(&self, state: State, text: &mut String, what: &str) -> usize {
        let of = |it: &&Check| it.finding.state == state;
        let found: Vec<_> = self.checks.iter().filter(of).collect();
        if !found.is_empty() {
            text.push_str(&format!("\n{} {what}:\n", found.len()));
        }
        for Check { process, finding } in &found {
            let Finding {
                check,
                what,
                advice,
                ..
            } = finding;
            text.push_str(&format!("  {process}, {check}: {what}\n"));
            if let Some(advice) = advice {
                text.push_str(&format!("    {advice}\n"));
            }
        }
        found.len()
    }
}

fn mark(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Skipped => "skipped",
        State::Warning => "WARNING",
        State::Failed => "FAILED",
    }
}

/// Looks at one agent and at the container runtimes of this host.
pub async fn examine(agent: &Operator, root: &Path) -> Diagnosis {
    let mut checks = of("agent", examine_agent(agent).await);
    checks.extend(of("this host", runtimes::look(root).await));
    Diagnosis::of(checks)
}

fn of(process: &str, findings: Vec<Finding>) -> Vec<Check> {
    let check = |finding| Check {
        process: process.to_string(),
        finding,
    };
    findings.into_iter().map(check).collect()
}

/// Asks the agent to look at all that it needs, and reads the test blob as a client does.
async fn examine_agent(agent: &Operator) -> Vec<Finding> {
    let check = "registry";
    let answer = match agent.answer("POST", "/x/doctor", PATIENCE).await {
        Ok(answer) => answer,
        Err(error) => {
            let advice = "start it (systemctl start kraken-agent), see its log (journalctl -u kraken-agent), \
                          or name its address with --agent";
            return vec![Finding::failed(check, error.to_string(), advice)];
        }
    };
    if matches!(answer.status().as_u16(), 404 | 405) {
        let what = "it answers and knows no doctor";
        let advice =
            "it is of an older version, or another service: --agent names an agent's registry";
        return vec![Finding::failed(check, what, advice)];
    }
    let answer = async { answer.successful().await?.json::<Report>(ANSWER).await };
    let Report { mut findings, blob } = match answer.await {
        Ok(report) => report,
        Err(error) => {
            let advice =
                "run the doctor on the agent's own host, one at a time; the agent's log says more";
            return vec![Finding::failed(check, error.to_string(), advice)];
        }
    };
    findings.insert(0, Finding::ok(check, "the agent answers"));
    if let Some(blob) = blob {
        findings.push(read(agent, blob).await);
        if let Err(error) = agent.answer("DELETE", "/x/doctor", SHORT).await {
            let advice = "it goes by itself when room is needed";
            findings.push(Finding::warning("test blob", error.to_string(), advice));
        }
    }
    findings
}

/// Reads the test blob as a container runtime does.
async fn read(agent: &Operator, blob: TestBlob) -> Finding {
    let check = "pull by a client";
    let path = format!("/v2/{NAMESPACE}/blobs/{}", blob.digest);
    let advice = "the agent has the blob and its registry does not give it: see the agent's log";
    let read = async {
        let answer = agent.answer("GET", &path, SHORT).await?;
        let status = answer.status();
        if matches!(status.as_u16(), 401 | 403) {
            return Ok(None);
        }
        let most = usize::try_from(blob.length).unwrap_or(usize::MAX);
        Ok::<_, ApiError>(Some(answer.successful().await?.bytes(most).await?))
    };
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(Some(bytes))) if Digest::of(&bytes) == blob.digest => Finding::ok(
            check,
            "the agent's registry gives the test blob, and its bytes are right",
        ),
        Ok(Ok(Some(_))) => Finding::failed(check, "the bytes that came are wrong", advice),
        Ok(Ok(None)) => Finding::skipped(
            check,
            "clients have to say who they are, by `access` in its configuration",
        ),
        Ok(Err(error)) => Finding::failed(check, error.to_string(), advice),
        Err(_) => Finding::failed(
            check,
            format!("not done within {} s", PATIENCE.as_secs()),
            advice,
        ),
    }
}

/// The agent at an address such as `127.0.0.1:7610`, or a URL.
///
/// # Errors
/// It makes no sense, or the files for TLS cannot be read.
pub fn agent_at(address: &str, tls: &kraken_daemon::Tls) -> Result<Operator, Failure> {
    Operator::with(address, tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_what_to_do_and_warnings_stay_green() {
        let well = of("agent", vec![Finding::ok("disk", "fine")]);
        let told = Diagnosis::of(well.clone());
        assert!(
            told.green && told.text().contains("All is well."),
            "{}",
            told.text()
        );
        let narrow = of("agent", vec![Finding::warning("MTU", "narrow", "widen it")]);
        let told = Diagnosis::of([well, narrow].concat());
        assert!(told.green);
        let text = told.text();
        assert!(
            text.contains("WARNING") && text.contains("widen it"),
            "{text}"
        );
        let failed = Finding::failed("tracker", "silent", "start it");
        let told = Diagnosis::of([told.checks, of("this host", vec![failed])].concat());
        assert!(!told.green);
        let text = told.text();
        assert!(
            text.contains("1 wrong:\n  this host, tracker: silent\n    start it"),
            "{text}"
        );
        let json = serde_json::to_value(&told).unwrap();
        assert_eq!(json["checks"][2]["state"], "failed");
        assert_eq!(json["checks"][2]["process"], "this host");
    }
}
