//! containerd: a `hosts.toml` for each registry, and where it looks for these.

use std::path::Path;

use kraken_registry::name::Host;
use toml_edit::{DocumentMut, Item, Table, TableLike, value};

use super::{Mirror, Said, at, file};
use crate::Failure;

/// Where the hosts are configured, as the runtime's own documentation has it.
const HOSTS: &str = "/etc/containerd/certs.d";
const CONFIG: &str = "/etc/containerd/config.toml";
/// The plugins that have the key, of configuration versions 2 and 3.
const PLUGINS: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];

/// Where a registry is reached itself.
fn server(upstream: &Host) -> String {
    match upstream.as_str() {
        "docker.io" => "https://registry-1.docker.io".into(),
        host => format!("https://{host}"),
    }
}

fn hosts(upstream: &Host, mirror: &Mirror) -> String {
    let (server, agent) = (server(upstream), mirror.agent.url());
    let mut text = format!(
        "server = \"{server}\"\n\n[host.\"{agent}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    if let Some(ca) = &mirror.ca {
        text.push_str(&format!("  ca = {}\n", value(ca.display().to_string())));
    }
    text
}

fn path_of(upstream: &Host) -> String {
    format!("{HOSTS}/{upstream}/hosts.toml")
}

pub(super) fn install(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    // First what may not be changed: then nothing is.
    let path = at(root, CONFIG);
    let text = file::read(&path)?.unwrap_or_default();
    let state = state(&path, &text)?;
    let mut said = Vec::new();
    for upstream in &mirror.upstreams {
        let path = at(root, &path_of(upstream));
        match file::read(&path)? {
            Some(text) if !text.starts_with(file::MARK) => said.push(Said::amiss(format!(
                "{} is somebody else's: add [host.\"{}\"] with capabilities = [\"pull\", \"resolve\"] \
                 to it as the first",
                path.display(),
                mirror.agent.url()
            ))),
            _ => said.extend(file::put(&path, &hosts(upstream, mirror))?),
        }
    }
    said.extend(take_out(root, |host| {
        !mirror.upstreams.iter().any(|it| it.as_str() == host)
    })?);
    match state {
        State::Looks => said.push(looks()),
        State::Amiss(what) => said.push(Said::amiss(what)),
        State::Silent => {
            said.extend(file::keep(&path)?);
            file::replace(&path, &pointed(&path, &text)?)?;
            said.push(Said::well(format!(
                "{} looks for {HOSTS}: restart containerd (systemctl restart containerd)",
                path.display()
            )));
        }
    }
    Ok(said)
}

/// What a configuration says of where hosts are looked for.
enum State {
    Looks,
    /// Nothing: it can be told.
    Silent,
    /// It must not be changed by a program, for this reason.
    Amiss(String),
}

fn looks() -> Said {
    Said::well(format!(
        "containerd looks for {HOSTS}, once it has read its configuration"
    ))
}

/// The plugin whose key it is, by the version of the configuration.
fn plugin(config: &DocumentMut, is_empty: bool) -> Option<&'static str> {
    match config.get("version").and_then(Item::as_integer) {
        None if is_empty => Some(PLUGINS[0]),
        Some(2) => Some(PLUGINS[0]),
        Some(3..) => Some(PLUGINS[1]),
        // A file without a version is of the first one, whose plugins have other names.
        _ => None,
    }
}

fn state(path: &Path, text: &str) -> Result<State, Failure> {
    let config = parse(path, text)?;
    let shown = path.display();
    let Some(plugin) = plugin(&config, text.trim().is_empty()) else {
        let what = format!("{shown} is of an old version: let its config_path be {HOSTS:?}");
        return Ok(State::Amiss(what));
    };
    if config.get("imports").is_some() {
        let what =
            format!("{shown} imports others: see that config_path of {plugin} is {HOSTS:?} there");
        return Ok(State::Amiss(what));
    }
    let registry = || config.get("plugins")?.get(plugin)?.get("registry");
    let Some(registry) = registry() else {
        return Ok(State::Silent);
    };
    let found = registry
        .get("config_path")
        .and_then(Item::as_str)
        .unwrap_or_default();
    if found.trim_end_matches('/') == HOSTS {
        return Ok(State::Looks);
    }
    if !found.is_empty() {
        // Of several directories, some versions of containerd read none.
        let what =
            format!("containerd looks for {found}, not {HOSTS}: change config_path in {shown}");
        return Ok(State::Amiss(what));
    }
    if registry.get("mirrors").is_some() || registry.get("configs").is_some() {
        let what = format!(
            "{shown} has mirrors or configs of registries, beside which containerd takes no config_path: move \
             them to {HOSTS}, and let config_path be that"
        );
        return Ok(State::Amiss(what));
    }
    Ok(State::Silent)
}

/// The configuration with the key in it.
fn pointed(path: &Path, text: &str) -> Result<String, Failure> {
    let mut config = parse(path, text)?;
    if text.trim().is_empty() {
        config["version"] = value(2);
    }
    let plugin = plugin(&config, false).unwrap_or(PLUGINS[0]);
    let mut at: &mut dyn TableLike = config.as_table_mut();
    for key in ["plugins", plugin, "registry"] {
        let next = at.entry(key).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(key != "registry");
            Item::Table(table)
        });
        let no_table = || Failure::Other(format!("{}: {key} is no table", path.display()));
        at = next.as_table_like_mut().ok_or_else(no_table)?;
    }
    at.insert("config_path", value(HOSTS));
    Ok(config.to_string())
}

fn parse(path: &Path, text: &str) -> Result<DocumentMut, Failure> {
    text.parse()
        .map_err(|error| Failure::Other(format!("{}: {error}", path.display())))
}

pub(super) fn check(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let mut said = Vec::new();
    for upstream in &mirror.upstreams {
        let path = at(root, &path_of(upstream));
        said.push(file::compare(&path, &hosts(upstream, mirror))?);
    }
    let path = at(root, CONFIG);
    said.push(
        match state(&path, &file::read(&path)?.unwrap_or_default())? {
            State::Looks => looks(),
            State::Amiss(what) => Said::amiss(what),
            State::Silent => Said::amiss(format!(
                "{CONFIG} names no config_path: run kraken runtime install"
            )),
        },
    );
    Ok(said)
}

pub(super) fn remove(root: &Path) -> Result<Vec<Said>, Failure> {
    let mut said = take_out(root, |_| true)?;
    let path = at(root, CONFIG);
    let (now, before) = (file::read(&path)?, file::before(&path)?);
    let ours = pointed(&path, before.as_deref().unwrap_or_default())?;
    if now.as_deref() == Some(ours.as_str()) {
        match before {
            Some(_) => file::put_back(&path)?,
            None => file::delete(&path)?,
        }
        said.push(Said::well(format!(
            "{} is what it was before: restart containerd when it suits",
            path.display()
        )));
    }
    Ok(said)
}

/// Takes out our files for some registries.
fn take_out(root: &Path, which: impl Fn(&str) -> bool) -> Result<Vec<Said>, Failure> {
    let mut said = Vec::new();
    let Ok(hosts) = std::fs::read_dir(at(root, HOSTS)) else {
        return Ok(said);
    };
    for host in hosts.flatten().filter(|host| host.path().is_dir()) {
        if !host.file_name().to_str().is_some_and(&which) {
            continue;
        }
        let removed = file::take_out(&host.path().join("hosts.toml"))?;
        if removed.is_some() {
            // Only if nothing else is in it.
            let _ = std::fs::remove_dir(host.path());
        }
        said.extend(removed);
    }
    Ok(said)
}
