//! Podman, Buildah, Skopeo and CRI-O: one file of mirrors.

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item};

use super::{Mirror, Said, at, file};
use crate::Failure;

const DIR: &str = "/etc/containers/registries.conf.d";
/// Where these clients look for authorities, by the host and port of a registry.
const CERTS: &str = "/etc/containers/certs.d";
const AUTHORITY: &str = "ca.crt";
const PATH: &str = "/etc/containers/registries.conf.d/50-kraken.conf";

/// The mirror's path begins with the registry's name: these clients do not say it otherwise.
fn mirrors(mirror: &Mirror) -> String {
    let insecure = match mirror.agent.is_secure() {
        true => "",
        false => "insecure = true\n",
    };
    let each = mirror.upstreams.iter().map(|upstream| {
        format!(
            "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\n\
             [[registry.mirror]]\nlocation = \"{}/{}\"\n{insecure}",
            mirror.agent.host(),
            upstream.prefix(),
            host = upstream,
        )
    });
    each.collect()
}

/// The registries that are configured elsewhere: a second entry would take the first one's place whole.
fn others(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let dir = at(root, DIR);
    let mut files = vec![at(root, "/etc/containers/registries.conf")];
    let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
    files.extend(entries.map(|entry| entry.path()));
    files.retain(|file| *file != at(root, PATH) && file.extension().is_some_and(|it| it == "conf"));
    let mut said = Vec::new();
    for path in files {
        let text = file::read(&path)?.unwrap_or_default();
        let config: DocumentMut = text
            .parse()
            .map_err(|error| Failure::Other(format!("{}: {error}", path.display())))?;
        let registries = config.get("registry").and_then(Item::as_array_of_tables);
        for registry in registries.into_iter().flat_map(|it| it.iter()) {
            let of = |key| registry.get(key).and_then(Item::as_str);
            let prefix = of("prefix").or_else(|| of("location")).unwrap_or_default();
            if mirror.upstreams.iter().any(|host| host.as_str() == prefix) {
                said.push(Said::amiss(format!(
                    "{} configures {prefix} already: add a [[registry.mirror]] there, and leave it out here",
                    path.display()
                )));
            }
        }
    }
    Ok(said)
}

/// The agent's authorities, for these clients a file of their own: where, and what is in it.
fn authorities(root: &Path, mirror: &Mirror) -> Result<Option<(PathBuf, String)>, Failure> {
    let Some(ca) = &mirror.ca else {
        return Ok(None);
    };
    let text = file::read(ca)?;
    let text = text.ok_or_else(|| Failure::Other(format!("{} is missing", ca.display())))?;
    let dir = at(root, CERTS).join(mirror.agent.host());
    Ok(Some((dir.join(AUTHORITY), text)))
}

pub(super) fn install(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let others = others(root, mirror)?;
    if !others.is_empty() {
        return Ok(others);
    }
    let authorities = authorities(root, mirror)?;
    let kept = authorities.as_ref().map(|(path, _)| path.as_path());
    let mut said = take_out_authorities(root, kept)?;
    if let Some((path, text)) = &authorities {
        said.extend(file::put(path, text)?);
    }
    said.extend(file::put(&at(root, PATH), &mirrors(mirror))?);
    said.push(Said::well(
        "podman reads it each time; let CRI-O read it again (systemctl reload crio)",
    ));
    Ok(said)
}

pub(super) fn check(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let mut said = vec![file::compare(&at(root, PATH), &mirrors(mirror))?];
    if let Some((path, text)) = authorities(root, mirror)? {
        said.push(file::compare(&path, &text)?);
    }
    Ok(said)
}

pub(super) fn remove(root: &Path) -> Result<Vec<Said>, Failure> {
    let mut said = take_out_authorities(root, None)?;
    said.extend(file::take_out(&at(root, PATH))?);
    Ok(said)
}

/// Takes out our files of authorities, but for one.
fn take_out_authorities(root: &Path, but: Option<&Path>) -> Result<Vec<Said>, Failure> {
    let mut said = Vec::new();
    let entries = std::fs::read_dir(at(root, CERTS)).into_iter().flatten();
    for dir in entries.flatten().map(|entry| entry.path()) {
        let path = dir.join(AUTHORITY);
        if but == Some(path.as_path()) || !path.is_file() {
            continue;
        }
        let removed = file::take_out(&path)?;
        if removed.is_some() {
            // Only if nothing else is in it.
            let _ = std::fs::remove_dir(&dir);
        }
        said.extend(removed);
    }
    Ok(said)
}
