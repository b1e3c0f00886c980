//! dockerd: one entry among the mirrors of Docker Hub. It mirrors nothing else.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Mirror, Said, at, file};
use crate::Failure;

const PATH: &str = "/etc/docker/daemon.json";
const KEY: &str = "registry-mirrors";
/// What we wrote there is known again by this file.
const OURS: &str = "/etc/docker/kraken-mirror";
const RELOAD: &str = "let dockerd read it again (systemctl reload docker)";
const RESTART: &str = "dockerd uses it until it is restarted";

fn read(path: &Path) -> Result<Map<String, Value>, Failure> {
    let text = file::read(path)?.unwrap_or_default();
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(&text)
        .map_err(|error| Failure::Other(format!("{}: {error}", path.display())))
}

fn write(path: &Path, config: &Map<String, Value>) -> Result<(), Failure> {
    file::replace(path, &format!("{:#}\n", json!(config)))
}

fn listed(path: &Path, config: &Map<String, Value>) -> Result<Vec<Value>, Failure> {
    match config.get(KEY) {
        None => Ok(Vec::new()),
        Some(Value::Array(listed)) => Ok(listed.clone()),
        Some(_) => Err(Failure::Other(format!(
            "{}: {KEY} is no list",
            path.display()
        ))),
    }
}

fn wanted(mirror: &Mirror) -> Option<Value> {
    let hub = mirror.upstreams.iter().any(|it| it.as_str() == "docker.io");
    let addr = mirror.docker.as_ref().filter(|_| hub)?;
    Some(json!(addr.url()))
}

/// Why dockerd gets no mirror.
fn none() -> Vec<Said> {
    let what = "is left out: it mirrors docker.io only, at a port of its own (docker_listen of the \
                agent, --docker here)";
    vec![Said::well(what)]
}

pub(super) fn install(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let Some(wanted) = wanted(mirror) else {
        let mut said = remove(root)?;
        said.extend(none());
        return Ok(said);
    };
    let path = at(root, PATH);
    if listed(&path, &read(&path)?)?.contains(&wanted) {
        return Ok(vec![Said::well(format!(
            "{} is as it must be",
            path.display()
        ))]);
    }
    let mut said = remove(root)?;
    let mut config = read(&path)?;
    let mut mirrors = listed(&path, &config)?;
    said.extend(file::keep(&path)?);
    // The first is asked first.
    mirrors.insert(0, wanted.clone());
    config.insert(KEY.into(), mirrors.into());
    // First: what is not noted is not removed again.
    file::put(
        &at(root, OURS),
        &format!("{}\n", wanted.as_str().unwrap_or_default()),
    )?;
    write(&path, &config)?;
    said.push(Said::well(format!("changed {}: {RELOAD}", path.display())));
    Ok(said)
}

pub(super) fn check(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let Some(wanted) = wanted(mirror) else {
        return Ok(none());
    };
    let path = at(root, PATH);
    let is_listed = listed(&path, &read(&path)?)?.contains(&wanted);
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
    let mut mirrors = listed(&path, &config)?;
    mirrors.retain(|mirror| mirror != entry);
    match mirrors.is_empty() {
        true => config.remove(KEY),
        false => config.insert(KEY.into(), mirrors.into()),
    };
    let before = file::before(&path)?;
    let is_as_before = before.as_deref().is_some_and(|text| {
        serde_json::from_str::<Value>(text).is_ok_and(|before| before == json!(config))
    });
    if is_as_before {
        file::put_back(&path)?;
    } else if config.is_empty() && before.is_none() {
        // Nobody had written anything there.
        file::delete(&path)?;
    } else {
        write(&path, &config)?;
    }
    file::take_out(&ours)?;
    Ok(vec![Said::well(format!(
        "{} does not name the agent any more: {RESTART}",
        path.display()
    ))])
}
