//! `kraken preload`.

use kraken::Failure;
use kraken::operator::{Operator, failed};
use kraken_core::net::http::segment;
use kraken_daemon::config::HostConfig;
use kraken_daemon::preload::{PreloadConfig, Preloader};
use kraken_daemon::problems::Problems;

use crate::args::preload::PreloadArgs;
use crate::say;

/// The longest answer that is read, in bytes.
const ANSWER: usize = 4 << 10;

/// Lets a runtime pull, and says what it calls the image.
pub(crate) async fn preload(args: PreloadArgs) -> Result<(), Failure> {
    let name = match args.runtime {
        Some(_) if args.agent.is_secure() && args.registry.is_none() => {
            let what = "a runtime that is told from here pulls from the agent by plain HTTP: name the \
                        registry whose mirror it is with --registry, or leave out --runtime";
            return Err(Failure::Argument(what.into()));
        }
        Some(runtime) => {
            let config = PreloadConfig {
                socket: args.socket,
                snapshotter: args.snapshotter,
                registry: args.registry.map(HostConfig),
                hosts_dir: args.hosts_dir,
                ..PreloadConfig::of(runtime)
            };
            let preloader = Preloader::new(config, args.agent.host().to_owned());
            let told = |found: Problems| {
                let found: Vec<_> = found.all().iter().map(ToString::to_string).collect();
                Failure::Argument(found.join("; "))
            };
            let preloader = preloader.map_err(told)?;
            let pulled = preloader.pull(&args.image, args.namespace.as_ref()).await;
            pulled.map_err(|error| Failure::Registry(error.to_string()))?
        }
        None => {
            let agent = Operator::of(&args.agent.to_string(), &args.tls.caller()?)?;
            let mut path = format!("/preload/tags/{}", segment(&args.image.to_string()));
            if let Some(namespace) = args.namespace {
                path = format!("{path}?namespace={}", segment(namespace.as_str()));
            }
            let answer = agent.send("GET", &path).await.map_err(failed)?;
            let name = answer.bytes(ANSWER).await.map_err(failed)?;
            String::from_utf8_lossy(&name).trim().to_owned()
        }
    };
    say(&format!("the runtime has {name}"))
}
