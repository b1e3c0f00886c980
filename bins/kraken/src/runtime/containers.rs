//! Podman, Buildah, Skopeo and CRI-O: one file of mirrors.

use std::path::Path;

use toml_edit::{DocumentMut, Item};

use super::{Mirror, Said, at, file};
use crate::Failure;

const DIR: &str = "/etc/containers/registries.conf.d";
const PATH: &str = "/etc/containers/registries.conf.d/50-kraken.conf";

/// The mirror's path begins with the registry's name: these clients do not say it otherwise.
fn mirrors(mirror: &Mirror) -> String {
    let each = mirror.upstreams.iter().map(|upstream| {
        format!(
            "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\n\
             [[registry.mirror]]\nlocation = \"{}/{}\"\ninsecure = true\n",
            mirror.agent,
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
            .map_err(|error| Failure::Argument(format!("{}: {error}", path.display())))?;
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

pub(super) fn install(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    let others = others(root, mirror)?;
    if !others.is_empty() {
        return Ok(others);
    }
    let mut said = file::put(&at(root, PATH), &mirrors(mirror))?;
    said.push(Said::well(
        "podman reads it each time; let CRI-O read it again (systemctl reload crio)",
    ));
    Ok(said)
}

pub(super) fn check(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    Ok(vec![file::compare(&at(root, PATH), &mirrors(mirror))?])
}

pub(super) fn remove(root: &Path) -> Result<Vec<Said>, Failure> {
    Ok(file::take_out(&at(root, PATH))?.into_iter().collect())
}
