//! What the processors are busy with: a profiler that runs while somebody asks for it.

#[cfg(feature = "profiling")]
mod sampler;

use axum::Router;

/// Adds the endpoint, if the program has a profiler.
///
/// | method and path | answer |
/// |---|---|
/// | GET `/x/profile?seconds=10&frequency=99` | samples of so many seconds, so many per second of processor time: one line for each stack, `thread;outermost;…;innermost`, and how often it was found |
pub(crate) fn with_profile(router: Router) -> Router {
    #[cfg(feature = "profiling")]
    let router = router.route("/x/profile", axum::routing::get(sampler::profile));
    router
}
