//! containerd: a `hosts.toml` for each registry, and where it looks for these.

use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, value};

use super::{Mirror, Said, Upstream, at, file};
use crate::Failure;

/// Where the hosts are configured, as the runtime's own documentation has it.
const HOSTS: &str = "/etc/containerd/certs.d";
const CONFIG: &str = "/etc/containerd/config.toml";
/// The plugins that have the key, of configuration versions 2 and 3.
const PLUGINS: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];

fn hosts(upstream: &Upstream, mirror: &Mirror) -> String {
    format!(
        "server = \"{}\"\n\n[host.\"http://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
        upstream.server(),
        mirror.agent
    )
}

fn path_of(upstream: &Upstream) -> String {
    format!("{HOSTS}/{}/hosts.toml", upstream.0)
}

pub(super) fn install(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let mut said = Vec::new();
    for upstream in &mirror.upstreams {
        let path = at(root, &path_of(upstream));
        said.extend(file::put(&path, &hosts(upstream, mirror))?);
    }
    said.extend(point(root)?);
    Ok(said)
}

/// Lets containerd look for the hosts, if it is told to look nowhere.
fn point(root: &Path) -> Result<Vec<Said>, Failure> {
    let path = at(root, CONFIG);
    let text = file::read(&path)?.unwrap_or_default();
    let mut config = parse(&path, &text)?;
    if let Some(found) = config_path(&config) {
        return Ok(vec![judge(&found)]);
    }
    let version = config.get("version").and_then(Item::as_integer);
    // A file without a version is of the first one, whose plugins have other names.
    let plugin = match version {
        None if text.trim().is_empty() => {
            config["version"] = value(2);
            PLUGINS[0]
        }
        Some(2) => PLUGINS[0],
        Some(3) => PLUGINS[1],
        _ => {
            return Ok(vec![Said::amiss(format!(
                "{} is of an old version: let its config_path be {HOSTS:?}",
                path.display()
            ))]);
        }
    };
    let mut said = Vec::new();
    said.extend(file::keep(&path)?);
    let mut at = config.as_table_mut();
    for key in ["plugins", plugin, "registry"] {
        let next = at.entry(key).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(key != "registry");
            Item::Table(table)
        });
        at = next
            .as_table_mut()
            .ok_or_else(|| Failure::Argument(format!("{}: {key} is no table", path.display())))?;
    }
    at.insert("config_path", value(HOSTS));
    file::replace(&path, &config.to_string())?;
    said.push(Said::well(format!(
        "{} looks for {HOSTS}: restart containerd (systemctl restart containerd)",
        path.display()
    )));
    Ok(said)
}

fn parse(path: &Path, text: &str) -> Result<DocumentMut, Failure> {
    text.parse()
        .map_err(|error| Failure::Argument(format!("{}: {error}", path.display())))
}

fn config_path(config: &DocumentMut) -> Option<String> {
    PLUGINS.iter().find_map(|plugin| {
        let registry = config.get("plugins")?.get(plugin)?.get("registry")?;
        let path = registry.get("config_path")?.as_str()?;
        (!path.is_empty()).then(|| path.to_owned())
    })
}

fn judge(found: &str) -> Said {
    match found
        .split(':')
        .any(|path| path.trim_end_matches('/') == HOSTS)
    {
        true => Said::well(format!(
            "containerd looks for {HOSTS}: no restart is needed"
        )),
        false => Said::amiss(format!(
            "containerd looks for {found}, not {HOSTS}: change config_path in {CONFIG}"
        )),
    }
}

pub(super) fn check(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let mut said = Vec::new();
    for upstream in &mirror.upstreams {
        let path = at(root, &path_of(upstream));
        said.push(file::compare(&path, &hosts(upstream, mirror))?);
    }
    let path = at(root, CONFIG);
    let config = parse(&path, &file::read(&path)?.unwrap_or_default())?;
    said.push(match config_path(&config) {
        Some(found) => judge(&found),
        None => Said::amiss(format!(
            "{CONFIG} names no config_path: run kraken runtime install"
        )),
    });
    Ok(said)
}

/// The key in the configuration stays: without any hosts it changes nothing.
pub(super) fn remove(root: &Path) -> Result<Vec<Said>, Failure> {
    let dir = at(root, HOSTS);
    let mut said = Vec::new();
    let Ok(hosts) = std::fs::read_dir(&dir) else {
        return Ok(said);
    };
    for host in hosts.flatten() {
        let removed = file::take_out(&host.path().join("hosts.toml"))?;
        if removed.is_some() {
            // Only if nothing else is in it.
            let _ = std::fs::remove_dir(host.path());
        }
        said.extend(removed);
    }
    Ok(said)
}
