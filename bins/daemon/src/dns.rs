//! Members that are found by DNS: the targets of SRV records, or the addresses of a name.
//!
//! What was found last holds when nothing is found: a name server that does not answer takes nobody out
//! of a ring.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::address::{self, Address};
use crate::problems::Problems;
use crate::process::StartError;

/// A name whose records say who is there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsName {
    /// The name: of SRV records such as `_kraken._tcp.origins.example.com`, whose targets' first labels
    /// name the members; or with `port` of addresses, which name them.
    pub name: String,
    /// The port of the members, for names that have addresses only.
    #[serde(default)]
    pub port: Option<u16>,
    /// How many there are at least: a start waits for so many, and with fewer nothing changes. Give it for
    /// origins, of which most must have a blob before a push is acknowledged.
    #[serde(default = "one")]
    pub at_least: usize,
    /// Which name server to ask; those of the host when absent.
    #[serde(default, deserialize_with = "address::optional")]
    #[schemars(with = "Option<Address>")]
    pub server: Option<SocketAddr>,
    /// How often to look, for tests.
    #[serde(skip)]
    pub(crate) refresh: Option<Duration>,
}

fn one() -> usize {
    1
}

/// Somebody who is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) url: String,
}

/// How often the name is looked up. The records' own times to live hold as well.
const REFRESH: Duration = Duration::from_secs(10);
/// How long a start waits until anybody is found: those who are looked for may be starting as well.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);
/// How long a start waits that can do without.
const SOON: Duration = Duration::from_secs(3);
/// How long somebody who is not found any more still counts: a host that is started anew may be out of
/// DNS meanwhile, and its share is not to move for that.
const KEPT: Duration = Duration::from_secs(300);
/// The longest time to live that is believed.
const MAX_TTL: Duration = Duration::from_secs(60);

impl DnsName {
    /// Whether it can be looked up. Nothing is asked.
    ///
    /// # Errors
    /// With the keys inside this one.
    pub(crate) fn check(&self) -> Result<(), Problems> {
        let mut found = Problems::default();
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || !self.name.chars().all(fits) {
            let what = format!(
                "{:?} is no name in DNS such as `_kraken._tcp.origins.example.com`",
                self.name
            );
            found.add("name", what);
        }
        if self.at_least == 0 {
            found.add("at_least", "with none nothing works: 1 at least");
        }
        let ports = [
            ("port", self.port),
            ("server", self.server.map(|it| it.port())),
        ];
        for (key, _) in ports.into_iter().filter(|(_, port)| *port == Some(0)) {
            found.add(key, "nobody answers at port 0");
        }
        found.done(())
    }

    fn resolver(&self) -> Result<TokioResolver, StartError> {
        let failed = |error: &dyn std::fmt::Display| {
            StartError::Config(format!(
                "{}: no name server can be asked: {error}",
                self.name
            ))
        };
        let mut builder = match self.server {
            None => TokioResolver::builder_tokio().map_err(|error| failed(&error))?,
            Some(server) => {
                let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
                for connection in &mut connections {
                    connection.port = server.port();
                }
                let server = NameServerConfig::new(server.ip(), true, connections);
                let config = ResolverConfig::from_name_servers(vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        // One host is one member: the other family counts only where there is no address of this one.
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
        builder.options_mut().positive_max_ttl = Some(MAX_TTL);
        builder.options_mut().negative_max_ttl = Some(PAUSE);
        builder.build().map_err(|error| failed(&error))
    }

    async fn look_up(&self, resolver: &TokioResolver) -> Result<Vec<Found>, String> {
        let mut found = match self.port {
            Some(port) => {
                let addresses = resolver.lookup_ip(self.name.as_str()).await;
                let addresses = addresses.map_err(|error| error.to_string())?;
                addresses.iter().map(|ip| at_address(ip, port)).collect()
            }
            None => {
                let records = resolver.srv_lookup(self.name.as_str()).await;
                let records = records.map_err(|error| error.to_string())?;
                let targets = records.answers().iter().filter_map(|it| match &it.data {
                    RData::SRV(srv) => Some(at_target(&srv.target.to_utf8(), srv.port)),
                    _ => None,
                });
                targets.collect::<Vec<_>>()
            }
        };
        if found.len() < self.at_least.max(1) {
            let (found, wanted) = (found.len(), self.at_least);
            return Err(format!(
                "{found} are found, and there are at least {wanted}"
            ));
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Who is there at the start, once anybody is that `suits`.
    ///
    /// # Errors
    /// Nobody was found within a minute, or no name server can be asked.
    pub(crate) async fn first(
        &self,
        suits: impl Fn(&[Found]) -> bool,
    ) -> Result<Vec<Found>, StartError> {
        let resolver = self.resolver()?;
        let end = Instant::now() + PATIENCE;
        loop {
            let reason = match self.look_up(&resolver).await {
                Ok(found) if suits(&found) => return Ok(found),
                Ok(_) => "this one is not among those that are found".to_owned(),
                Err(reason) => reason,
            };
            if Instant::now() > end {
                return Err(StartError::Config(format!("{}: {reason}", self.name)));
            }
            tracing::info!(name = self.name, reason, "waiting for DNS");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Who is there now, if that is known within some seconds.
    ///
    /// # Errors
    /// No name server can be asked, by the configuration.
    pub(crate) async fn at_once(&self) -> Result<Option<Vec<Found>>, StartError> {
        let resolver = self.resolver()?;
        let found = tokio::time::timeout(SOON, self.look_up(&resolver)).await;
        Ok(found.ok().and_then(Result::ok))
    }

    fn refresh(&self) -> Duration {
        self.refresh.unwrap_or(REFRESH)
    }

    /// Tells who is there whenever that changes, until the token says otherwise.
    pub(crate) fn follow(
        self,
        until: &CancellationToken,
        changed: impl Fn(Vec<Found>) -> Result<(), String> + Send + Sync + 'static,
    ) {
        let following = async move {
            let resolver = match self.resolver() {
                Ok(resolver) => resolver,
                Err(error) => {
                    tracing::error!(%error, "who is there is not looked up again");
                    return;
                }
            };
            let (mut before, mut seen) = (Vec::new(), Seen::default());
            loop {
                let pause = if before.is_empty() {
                    PAUSE
                } else {
                    self.refresh()
                };
                tokio::time::sleep(pause).await;
                let found = self.look_up(&resolver).await;
                match found.map(|found| seen.all(Instant::now(), found)) {
                    Ok(found) if found == before => {}
                    Ok(found) => {
                        before.clone_from(&found);
                        tracing::info!(name = self.name, count = found.len(), "found by DNS");
                        if let Err(error) = changed(found) {
                            tracing::error!(error, "what DNS says is not used");
                        }
                    }
                    Err(error) => {
                        tracing::warn!(name = self.name, error, "those found before are kept");
                    }
                }
            }
        };
        tokio::spawn(until.clone().run_until_cancelled_owned(following));
    }
}

/// Who was found, and when last.
#[derive(Debug, Default)]
struct Seen(BTreeMap<Found, Instant>);

impl Seen {
    /// Those that are found now, and those that were lately.
    fn all(&mut self, now: Instant, found: Vec<Found>) -> Vec<Found> {
        // One that moved is not at its old place any more.
        let moved = |it: &Found| {
            found
                .iter()
                .any(|new| new.name == it.name && new.url != it.url)
        };
        self.0
            .retain(|it, at| now.duration_since(*at) < KEPT && !moved(it));
        self.0.extend(found.into_iter().map(|it| (it, now)));
        self.0.keys().cloned().collect()
    }
}

fn at_address(ip: IpAddr, port: u16) -> Found {
    let name = ip.to_string().replace(['.', ':'], "-");
    let url = format!("https://{}", SocketAddr::new(ip, port));
    Found { name, url }
}

fn at_target(target: &str, port: u16) -> Found {
    let host = target.trim_end_matches('.');
    let name = host.split('.').next().unwrap_or(host).to_ascii_lowercase();
    let url = format!("https://{host}:{port}");
    Found { name, url }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn members_are_named_by_host_or_address() {
        let found = at_target("Origin-1.origins.example.com.", 7602);
        assert_eq!(found.name, "origin-1");
        assert_eq!(found.url, "https://Origin-1.origins.example.com:7602");
        let found = at_address("10.0.0.7".parse().unwrap(), 7602);
        assert_eq!(
            (&*found.name, &*found.url),
            ("10-0-0-7", "https://10.0.0.7:7602")
        );
        let found = at_address("fd00::7".parse().unwrap(), 7602);
        assert_eq!(
            (&*found.name, &*found.url),
            ("fd00--7", "https://[fd00::7]:7602")
        );
    }

    #[test]
    fn whoever_vanishes_stays_for_a_while_unless_it_moved() {
        let found = |name: &str, at: u8| Found {
            name: name.into(),
            url: format!("https://10.0.0.{at}:1"),
        };
        let (mut seen, now) = (Seen::default(), Instant::now());
        let (one, two, moved) = (found("one", 1), found("two", 2), found("two", 3));
        assert_eq!(seen.all(now, vec![one.clone(), two.clone()]).len(), 2);
        assert_eq!(
            seen.all(now + KEPT / 2, vec![one.clone()]),
            [one.clone(), two]
        );
        let after = seen.all(now + KEPT / 2, vec![one.clone(), moved.clone()]);
        assert_eq!(after, [one, moved.clone()]);
        assert_eq!(seen.all(now + KEPT * 2, vec![moved.clone()]), [moved]);
    }

    /// A real name server.
    struct Server {
        child: Option<Child>,
        at: SocketAddr,
    }

    impl Server {
        fn new() -> Option<Self> {
            let places = ["/usr/sbin/dnsmasq", "/usr/bin/dnsmasq"];
            if !places.iter().any(|it| std::path::Path::new(it).exists()) {
                let required = std::env::var_os("KRAKEN_REQUIRE_CLIENTS").is_some();
                assert!(!required, "dnsmasq is not installed");
                eprintln!("SKIPPED: dnsmasq is not installed");
                return None;
            }
            let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let at = free.local_addr().unwrap();
            Some(Self { child: None, at })
        }

        /// Answers with these records, and no longer with those of before.
        fn answer(&mut self, records: &[&str]) {
            self.stop();
            let path = std::env::var("PATH").unwrap_or_default();
            let child = Command::new("dnsmasq")
                .env("PATH", format!("{path}:/usr/sbin"))
                .args([
                    "--keep-in-foreground",
                    "--no-resolv",
                    "--no-hosts",
                    "--conf-file=/dev/null",
                ])
                .args([
                    "--listen-address=127.0.0.1",
                    "--bind-interfaces",
                    "--pid-file=",
                ])
                .arg(format!("--port={}", self.at.port()))
                .args(records)
                .stderr(Stdio::null())
                .spawn();
            self.child = Some(child.unwrap());
        }

        fn stop(&mut self) {
            if let Some(mut child) = self.child.take() {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }

        fn name(&self, name: &str, port: Option<u16>) -> DnsName {
            DnsName {
                name: name.into(),
                port,
                at_least: 1,
                server: Some(self.at),
                refresh: Some(Duration::from_millis(500)),
            }
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.stop();
        }
    }

    const ONE: &str = "--srv-host=_kraken._tcp.origins.test,origin-1.origins.test,7602";
    const THREE: &str = "--srv-host=_kraken._tcp.origins.test,origin-3.origins.test,7622";
    const TWO: &str = "--srv-host=_kraken._tcp.origins.test,origin-2.origins.test,7612";

    #[tokio::test(flavor = "multi_thread")]
    async fn records_of_a_real_server_are_found_and_kept_when_it_is_gone() {
        let Some(mut server) = Server::new() else {
            return;
        };
        let addresses = [
            "--address=/trackers.test/127.0.0.2",
            "--address=/trackers.test/127.0.0.3",
            "--address=/new.test/fd00::7",
        ];
        server.answer(&[&[ONE, TWO], &addresses[..]].concat());
        let origins = server.name("_kraken._tcp.origins.test.", None);
        let own = |found: &[Found]| found.iter().any(|it| it.name == "origin-2");
        let found = origins.first(own).await.unwrap();
        let names: Vec<_> = found.iter().map(|it| &*it.name).collect();
        assert_eq!(names, ["origin-1", "origin-2"]);
        assert_eq!(found[1].url, "https://origin-2.origins.test:7612");
        for (name, expected) in [
            (
                "trackers.test.",
                &["https://127.0.0.2:7603", "https://127.0.0.3:7603"][..],
            ),
            ("new.test.", &["https://[fd00::7]:7603"]),
        ] {
            let found = server.name(name, Some(7603)).first(|_| true).await;
            let urls: Vec<_> = found.unwrap().into_iter().map(|it| it.url).collect();
            assert_eq!(urls, expected);
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (until, told) = (CancellationToken::new(), seen.clone());
        origins.clone().follow(&until, move |found| {
            told.lock().unwrap().push(found.len());
            Ok(())
        });
        let wait = async |count: usize| {
            while seen.lock().unwrap().last() != Some(&count) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let minute = Duration::from_secs(60);
        tokio::time::timeout(minute, wait(2)).await.unwrap();
        server.answer(&[ONE, TWO, THREE]);
        tokio::time::timeout(minute, wait(3)).await.unwrap();
        // Whoever is not found for a moment stays, whatever the server knows, if there is one.
        for records in [&[ONE][..], &[]] {
            server.answer(records);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        server.stop();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(*seen.lock().unwrap(), [2, 3]);
        until.cancel();
        // And with fewer than there are at least nobody begins.
        server.answer(&[ONE]);
        let most = DnsName {
            at_least: 2,
            ..origins
        };
        assert_eq!(most.at_once().await.unwrap(), None);
    }
}
