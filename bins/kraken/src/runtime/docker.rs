//! dockerd: one entry among the mirrors of Docker Hub. It mirrors nothing else.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Mirror, Said, at, file};
use crate::Failure;

const PATH: &str = "/etc/docker/daemon.json";
const KEY: &str = "registry-mirrors";
/// What we wrote there is known again by this file.
const OURS: &str = "/etc/docker/kraken-mirror";
const RESTART: &str = "restart dockerd (systemctl restart docker)";

fn read(path: &Path) -> Result<Map<String, Value>, Failure> {
    let text = file::read(path)?.unwrap_or_default();
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(&text)
        .map_err(|error| Failure::Argument(format!("{}: {error}", path.display())))
}

fn write(path: &Path, config: &Map<String, Value>) -> Result<(), Failure> {
    file::replace(path, &format!("{:#}\n", json!(config)))
}

fn listed(config: &Map<String, Value>) -> Vec<Value> {
    let listed = config.get(KEY).and_then(Value::as_array);
    listed.cloned().unwrap_or_default()
}

fn wanted(mirror: &Mirror) -> Option<Value> {
    let hub = mirror.upstreams.iter().any(|it| it.0 == "docker.io");
    let addr = mirror.docker.as_ref().filter(|_| hub)?;
    Some(json!(format!("http://{addr}")))
}

/// Why dockerd gets no mirror.
fn none() -> Vec<Said> {
    let what = "dockerd mirrors docker.io only, at a port of its own: let the agent have \
                docker_listen, and give --docker with it";
    vec![Said::amiss(what)]
}

pub(super) fn install(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let Some(wanted) = wanted(mirror) else {
        return Ok(none());
    };
    let path = at(root, PATH);
    if listed(&read(&path)?).contains(&wanted) {
        return Ok(vec![Said::well(format!(
            "{} is as it must be",
            path.display()
        ))]);
    }
    let mut said = remove(root)?;
    let mut config = read(&path)?;
    let mut mirrors = listed(&config);
    said.extend(file::keep(&path)?);
    // The first is asked first.
    mirrors.insert(0, wanted.clone());
    config.insert(KEY.into(), mirrors.into());
    write(&path, &config)?;
    file::put(
        &at(root, OURS),
        &format!("{}\n", wanted.as_str().unwrap_or_default()),
    )?;
    said.push(Said::well(format!("changed {}: {RESTART}", path.display())));
    Ok(said)
}

pub(super) fn check(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let Some(wanted) = wanted(mirror) else {
        return Ok(none());
    };
    let path = at(root, PATH);
    let is_listed = listed(&read(&path)?).contains(&wanted);
    Ok(vec![match is_listed {
        true => Said::well(format!("{} names the agent", path.display())),
        false => Said::amiss(format!(
            "{} does not name the agent: run kraken runtime install",
            path.display()
        )),
    }])
}

pub(super) fn remove(root: &Path) -> Result<Vec<Said>, Failure> {
    let (path, ours) = (at(root, PATH), at(root, OURS));
    let Some(text) = file::read(&ours)? else {
        return Ok(Vec::new());
    };
    let entry = text.strip_prefix(file::MARK).unwrap_or(&text).trim();
    let mut config = read(&path)?;
    let mut mirrors = listed(&config);
    mirrors.retain(|mirror| mirror != entry);
    match mirrors.is_empty() {
        true => config.remove(KEY),
        false => config.insert(KEY.into(), mirrors.into()),
    };
    match config.is_empty() && !file::is_kept(&path) {
        // Nobody had written anything there.
        true => file::delete(&path)?,
        false => write(&path, &config)?,
    }
    file::take_out(&ours)?;
    Ok(vec![Said::well(format!(
        "{} does not name the agent any more: {RESTART}",
        path.display()
    ))])
}
