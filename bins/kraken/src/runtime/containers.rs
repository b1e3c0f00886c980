//! Podman, Buildah, Skopeo and CRI-O: one file of mirrors.

use std::path::Path;

use super::{Mirror, Said, at, file};
use crate::Failure;

const PATH: &str = "/etc/containers/registries.conf.d/50-kraken.conf";

/// The mirror's path begins with the registry's name: these clients do not say it otherwise.
fn mirrors(mirror: &Mirror) -> String {
    let each = mirror.upstreams.iter().map(|upstream| {
        format!(
            "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\n\
             [[registry.mirror]]\nlocation = \"{}/{}\"\ninsecure = true\n",
            mirror.agent,
            upstream.prefix(),
            host = upstream.0,
        )
    });
    each.collect()
}

pub(super) fn install(root: &Path, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
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
