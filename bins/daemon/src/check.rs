//! Whether a configuration makes sense, before anything is started or touched.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;

use kraken_core::Zone;
use kraken_core::net::Role;
use kraken_core::net::http::OutsideTls;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::access::{self, AccessConfig, ClientTls};
use crate::config::Tls;
use crate::log::{LogFilter, LogFormat};
use crate::members::{self, Origins, Urls};
use crate::store::{self, EvictionConfig, StoreLimit, VolumeConfig};
use crate::traces::TracingConfig;

/// The configuration of a process.
pub trait ProcessConfig: DeserializeOwned + JsonSchema + Send + 'static {
    /// The keys that change while the process runs; all others need a restart.
    const LIVE: &'static [&'static str];

    /// What the process is.
    const ROLE: Role;

    /// How much is logged.
    fn log(&self) -> Option<&LogFilter>;

    /// How a line of the log is written.
    fn log_format(&self) -> LogFormat;

    /// Where traces go.
    fn tracing(&self) -> Option<&TracingConfig>;

    /// What tells it from others of its role, if it has a name.
    fn instance(&self) -> Option<String> {
        None
    }

    /// Looks for what would keep the process from starting: keys that contradict each other, files that
    /// cannot be read.
    fn check(&self, found: &mut Problems);
}

/// What is wrong with a configuration.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// All of them.
    pub fn all(&self) -> &[String] {
        &self.0
    }

    pub(crate) fn add(&mut self, what: impl Display) {
        let what = what.to_string();
        if !self.0.contains(&what) {
            self.0.push(what);
        }
    }

    /// Keeps an error; of a success what there is.
    pub(crate) fn of<T, E: Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    pub(crate) fn of_tls(&mut self, tls: &Tls, role: Role, zone: Option<&Zone>) {
        if let Some(identity) = self.of(tls.identity()) {
            self.of(identity.check_own_role(role));
            self.of(identity.zone(zone.cloned()));
        }
    }

    /// Users, rules and certificates of a registry.
    pub(crate) fn of_access(&mut self, access: Option<&AccessConfig>, tls: Option<&ClientTls>) {
        self.of(access::access(access, tls));
        if let Some(tls) = tls {
            let checked = OutsideTls::from(tls.clone()).check();
            self.of(checked.map_err(|error| format!("client_tls: {error}")));
        }
    }

    /// Addresses at which one process cannot listen at once.
    pub(crate) fn of_listening(&mut self, all: &[(&str, Option<SocketAddr>)]) {
        let given = all.iter().filter_map(|(key, addr)| Some((key, (*addr)?)));
        let given: Vec<_> = given.filter(|(_, addr)| addr.port() != 0).collect();
        for (index, (key, addr)) in given.iter().enumerate() {
            for (other, same) in &given[..index] {
                let meets = addr.ip() == same.ip()
                    || addr.ip().is_unspecified()
                    || same.ip().is_unspecified();
                if meets && addr.port() == same.port() {
                    self.add(format!(
                        "{other} and {key}: both are at port {}",
                        addr.port()
                    ));
                }
            }
        }
    }

    pub(crate) fn of_advertise(&mut self, listen: SocketAddr, advertise: Option<SocketAddr>) {
        let told = advertise.unwrap_or(listen);
        if told.ip().is_unspecified() {
            self.add(match advertise {
                None => "advertise: needed, as peers cannot be told the address of peer_listen",
                Some(_) => "advertise: nobody can dial this address",
            });
        }
    }

    /// Where blobs are kept, and how many of them.
    pub(crate) fn of_disks(
        &mut self,
        dir: &Path,
        volumes: &[VolumeConfig],
        limit: Option<StoreLimit>,
        eviction: &EvictionConfig,
    ) {
        self.of_dir("store", dir);
        for volume in volumes {
            if !volume.path.is_dir() {
                self.add(format!(
                    "volumes: {} is no directory",
                    volume.path.display()
                ));
            }
        }
        // Of a volume, parts of it count only from its start on; the marks are the same for each size.
        let limit = limit.map(|limit| match limit {
            StoreLimit::Percent(_) => StoreLimit::Bytes(1 << 30),
            bytes @ StoreLimit::Bytes(_) => bytes,
        });
        self.of(store::ceiling(limit, eviction, dir));
    }

    /// Who the origins are, this one (`own`) among them.
    pub(crate) fn of_origins(&mut self, from: members::OriginsFrom<'_>, own: Option<&str>) {
        let (listed, file, dns) = from;
        let Some(origins) = self.of(Origins::of(listed, file, dns)) else {
            return;
        };
        let Some(members) = self.of(origins.written()).flatten() else {
            return;
        };
        if let Some(own) = own.filter(|own| members.iter().all(|it| it.name != **own)) {
            self.add(format!("name: {own} is none of the origins"));
        }
    }

    /// Where trackers or build-indexes are.
    pub(crate) fn of_urls(&mut self, key: &str, from: members::UrlsFrom<'_>) {
        let (listed, file, dns) = from;
        let urls = Urls::of(key, listed.to_vec(), file.cloned(), dns.cloned());
        if let Some(urls) = self.of(urls) {
            self.of(urls.check(key));
        }
    }

    pub(crate) fn of_replicas(&mut self, key: &str, replicas: usize) {
        if replicas == 0 {
            self.add(format!("{key}: 1 at least"));
        }
    }

    /// A directory that is there, or can be made.
    pub(crate) fn of_dir(&mut self, key: &str, dir: &Path) {
        let there = dir.ancestors().find(|it| it.exists());
        if let Some(there) = there.filter(|it| !it.is_dir()) {
            self.add(format!("{key}: {} is no directory", there.display()));
        }
    }
}
