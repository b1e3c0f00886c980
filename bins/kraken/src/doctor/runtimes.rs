//! Whether the container runtimes of this host pull through the agent.

use std::path::Path;

use kraken_core::net::http::OutsideTrust;
use kraken_daemon::doctor::Finding;

use crate::caller::Caller;
use crate::runtime::{self, Said};

const ADVICE: &str = "run `kraken runtime install` again, and restart the runtime";

/// Looks at what was installed for the runtimes whose configuration is under `root`.
pub(super) async fn look(root: &Path) -> Vec<Finding> {
    let check = "container runtimes";
    let found = runtime::found(root);
    let mirror = match runtime::noted(root) {
        Ok(Some(mirror)) => mirror,
        Ok(None) => {
            let what = "nothing is installed for them: `kraken runtime install` lets them pull through the agent";
            return vec![Finding::skipped(check, what)];
        }
        Err(error) => return vec![Finding::failed(check, error.to_string(), ADVICE)],
    };
    if found.is_empty() {
        return vec![Finding::skipped(check, "none is here that is known")];
    }
    let mut findings = Vec::new();
    for each in found {
        let said = runtime::check(root, each, &mirror);
        let said = said.unwrap_or_else(|error| vec![Said::amiss(error.to_string())]);
        findings.extend(said.iter().map(|said| finding(&each.to_string(), said)));
    }
    match Caller::from_env(OutsideTrust::default()) {
        Ok(caller) => {
            let asked = runtime::ask(&mirror, &caller).await;
            findings.extend(asked.iter().map(|said| finding("mirror", said)));
        }
        Err(error) => findings.push(Finding::failed("mirror", error.to_string(), ADVICE)),
    }
    findings
}

fn finding(check: &str, said: &Said) -> Finding {
    match said.is_well {
        true => Finding::ok(check, &said.what),
        false => Finding::failed(check, &said.what, ADVICE),
    }
}
