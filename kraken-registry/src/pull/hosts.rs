//! For which registries a mirror answers, and where their repositories are kept.

use http::StatusCode;
use http::request::Parts;

use crate::error::{Code, RegistryError};
use crate::name::Host;
use crate::route::Route;
use crate::web::{param, query};

/// The registries that a mirror answers for.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// Those whose repositories are kept under the host's name.
    pub(super) upstreams: Vec<Host>,
    /// The names of this cluster's own registry.
    pub(super) own: Vec<Host>,
    /// The one that is meant where none is named.
    pub(super) usual: Option<Host>,
}

/// What a request is for.
pub(super) struct Meant {
    /// The endpoint, of the repository as it is kept here.
    pub(super) route: Route,
    /// The registry that the request named, and this one answers for.
    pub(super) named: Option<Host>,
    /// Whether it is another registry's repository.
    pub(super) is_upstream: bool,
}

impl Hosts {
    /// What a request is for: one that names a registry by `?ns=`, as containerd does, is for that
    /// registry's repository.
    ///
    /// # Errors
    /// 404 for a registry that this is no mirror of: the runtime goes to that itself.
    pub(super) fn meant(&self, parts: &Parts, route: Route) -> Result<Meant, RegistryError> {
        let pairs = query(&parts.uri);
        let Some(named) = param(&pairs, "ns") else {
            return self.unnamed(route);
        };
        let among = |hosts: &[Host]| hosts.iter().find(|host| host.as_str() == named).cloned();
        if let Some(host) = among(&self.upstreams) {
            return Ok(Meant {
                route: route.behind(&host)?,
                named: Some(host),
                is_upstream: true,
            });
        }
        let own = among(&self.own);
        if own.is_none() && route != Route::Ping {
            let what = "this is no mirror of that registry: see upstreams and own_names";
            let error = RegistryError::new(Code::NameUnknown, what);
            return Err(error.with_status(StatusCode::NOT_FOUND));
        }
        Ok(Meant {
            route,
            named: own,
            is_upstream: false,
        })
    }

    /// Podman and CRI-O write the registry in front of the repository, this cluster's own as well; dockerd says nothing.
    fn unnamed(&self, route: Route) -> Result<Meant, RegistryError> {
        if let Some(host) = &self.usual {
            return Ok(Meant {
                route: route.behind(host)?,
                named: None,
                is_upstream: true,
            });
        }
        let is_in = |hosts: &[Host]| {
            let repo = route.repo()?;
            hosts.iter().find(|host| host.keeps(repo)).cloned()
        };
        let is_upstream = is_in(&self.upstreams).is_some();
        let own = is_in(&self.own).filter(|_| !is_upstream);
        Ok(Meant {
            route: match own {
                Some(own) => route.without(&own)?,
                None => route,
            },
            named: None,
            is_upstream,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_in_front_of_the_repository_is_taken_for_what_it_is() {
        let hosts = Hosts {
            upstreams: vec!["docker.io".parse().unwrap()],
            own: vec!["registry.example.test".parse().unwrap()],
            usual: None,
        };
        let meant = |path: &str| {
            let meant = hosts.unnamed(Route::parse(path).unwrap()).unwrap();
            (meant.route, meant.is_upstream)
        };
        let tags = |repo: &str| Route::parse(&format!("/v2/{repo}/tags/list")).unwrap();
        let own = meant("/v2/registry.example.test/library/app/tags/list");
        assert_eq!(own, (tags("library/app"), false));
        assert_eq!(meant("/v2/team/app/tags/list"), (tags("team/app"), false));
        let upstream = meant("/v2/docker.io/library/app/tags/list");
        assert_eq!(upstream, (tags("docker.io/library/app"), true));
    }
}
