//! A backend for each namespace.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use kraken_proto::{Digest, Namespace};
use regex::Regex;

use super::{Backend, BackendError, BoxBackend, ByteStream};

/// Where blobs of some namespaces are.
#[derive(Debug, Clone)]
pub struct Route {
    /// What a namespace looks like; it may match anywhere in it.
    pub pattern: Regex,
    /// Its backend.
    pub backend: BoxBackend,
    /// Whether this host is of no use while the backend cannot be reached.
    pub must_ready: bool,
}

/// Chooses a backend by the namespace: the first whose pattern matches. Clones share their routes.
#[derive(Debug, Clone, Default)]
pub struct RoutedBackend {
    routes: Arc<RwLock<Arc<[Route]>>>,
}

impl RoutedBackend {
    /// Chooses among `routes`, in their order.
    pub fn new(routes: Vec<Route>) -> Self {
        let routes = Arc::new(RwLock::new(routes.into()));
        Self { routes }
    }

    /// Chooses among these from now on. What is under way ends where it began.
    pub fn replace(&self, routes: Vec<Route>) {
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes.into();
    }

    fn routes(&self) -> Arc<[Route]> {
        let routes = self.routes.read();
        routes.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn of(&self, namespace: &Namespace) -> Result<BoxBackend, BackendError> {
        let fits = |route: &&Route| route.pattern.is_match(namespace.as_str());
        let routes = self.routes();
        let found = routes.iter().find(fits);
        found
            .map(|route| route.backend.clone())
            .ok_or_else(|| BackendError::Unrouted(namespace.clone()))
    }
}

impl Backend for RoutedBackend {
    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, BackendError> {
        self.of(namespace)?.stat(namespace, digest).await
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        self.of(namespace)?.read(namespace, digest, range).await
    }

    async fn write(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        let backend = self.of(namespace)?;
        backend.write(namespace, digest, length, bytes).await
    }

    async fn delete(&self, namespace: &Namespace, digest: Digest) -> Result<(), BackendError> {
        self.of(namespace)?.delete(namespace, digest).await
    }

    async fn list(
        &self,
        namespace: &Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        self.of(namespace)?.list(namespace, after, most).await
    }

    async fn resolve(
        &self,
        namespace: &Namespace,
        tag: &str,
    ) -> Result<Option<Digest>, BackendError> {
        self.of(namespace)?.resolve(namespace, tag).await
    }

    fn place(&self, namespace: &Namespace) -> Result<usize, BackendError> {
        let fits = |route: &Route| route.pattern.is_match(namespace.as_str());
        let place = self.routes().iter().position(fits);
        place.ok_or_else(|| BackendError::Unrouted(namespace.clone()))
    }

    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError> {
        self.of(namespace)?.check_writable(namespace)
    }

    /// Where one of several keeps nothing, that is wanted for its namespaces: they may lose blobs. Where none
    /// does, there is no storage.
    fn keeps(&self) -> bool {
        self.routes().iter().any(|route| route.backend.keeps())
    }

    /// Asks all that must be ready.
    async fn ready(&self) -> Result<(), BackendError> {
        let routes = self.routes();
        let needed = routes.iter().filter(|route| route.must_ready);
        for route in needed {
            route.backend.ready().await.map_err(|error| {
                let pattern = route.pattern.as_str();
                let told = match error {
                    BackendError::Unavailable(why) => why,
                    error => error.to_string(),
                };
                BackendError::Unavailable(format!("that of the namespaces {pattern:?}: {told}"))
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::super::{NoopBackend, OpendalBackend};
    use super::*;

    #[tokio::test]
    async fn the_first_pattern_that_matches_chooses() {
        let (one, two) = (OpendalBackend::memory(), OpendalBackend::memory());
        let route = |pattern: &str, backend| Route {
            pattern: Regex::new(pattern).unwrap(),
            backend,
            must_ready: false,
        };
        let routed = RoutedBackend::new(vec![
            route("^library/", BoxBackend::new(one.clone())),
            route("^tmp/", BoxBackend::new(NoopBackend)),
            route("^(library|team)/", BoxBackend::new(two.clone())),
        ]);
        let name = |text: &str| text.parse::<Namespace>().unwrap();
        let digest = Digest::of(b"abc");
        for (namespace, in_one, in_two) in [
            ("library/a", true, false),
            ("team/a", false, true),
            ("tmp/a", false, false),
        ] {
            let bytes = futures::stream::iter([Ok("abc".into())]).boxed();
            let namespace = name(namespace);
            routed.write(&namespace, digest, 3, bytes).await.unwrap();
            for (backend, wanted) in [(&one, in_one), (&two, in_two)] {
                let found = backend.stat(&namespace, digest).await.unwrap();
                assert_eq!(found.is_some(), wanted, "{namespace}");
                backend.delete(&namespace, digest).await.unwrap();
            }
            routed.check_writable(&namespace).unwrap();
        }
        let unknown = routed.stat(&name("other/a"), digest).await;
        assert!(matches!(unknown, Err(BackendError::Unrouted(_))));
        let refused = routed.check_writable(&name("other/a"));
        assert!(matches!(refused, Err(BackendError::Unrouted(_))));
    }
}
