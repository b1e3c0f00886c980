//! A look at every process of a cluster that `kraken dev` runs.

use std::path::Path;

use kraken_core::net::http::HttpClient;
use kraken_core::net::{Identity, Role, RoleError};
use kraken_daemon::doctor::{Finding, services};

use super::{Diagnosis, examine_agent, of};
use crate::Failure;
use crate::directory::Directory;
use crate::operator::Operator;

/// Looks at every process of the cluster in `dir`.
///
/// # Errors
/// There is no cluster of `kraken dev` in that directory.
pub async fn examine_cluster(dir: &Path) -> Result<Diagnosis, Failure> {
    let cluster = Directory::read(dir)?;
    let tls = cluster.tls(dir);
    let identity = tls.identity()?;
    let http = HttpClient::new(Some(&identity));
    let http = http.map_err(|error| Failure::Other(error.to_string()))?;
    let mut checks = Vec::new();
    for process in &cluster.processes {
        let found = match process.role.as_str() {
            "agent" => examine_agent(&Operator::new(&process.url, &tls)?).await,
            role => {
                let wrong = |error: RoleError| Failure::Other(error.to_string());
                let role = role.parse().map_err(wrong)?;
                service(role, &process.url, (&identity, &http)).await
            }
        };
        checks.extend(of(&process.name, found));
    }
    Ok(Diagnosis::of(checks))
}

async fn service(role: Role, url: &str, by: (&Identity, &HttpClient)) -> Vec<Finding> {
    services::look_at(&format!("{role} {url}"), (url, role), by).await
}
