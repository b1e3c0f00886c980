//! Whether a configuration makes sense, before anything is started or touched.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use kraken_core::net::Role;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::config::REPLICAS;
use crate::log::{LogFilter, LogFormat};
use crate::problems::Problems;
use crate::settings::Layers;
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

    /// Looks for what keeps the process from starting, or from doing what it is told: keys that contradict each
    /// other or mean nothing, files that cannot be read. It touches and dials nothing.
    fn check(&self, found: &mut Problems);
}

/// All that is wrong with a configuration whose keys have types, each with its place.
///
/// # Errors
/// Something is.
pub(crate) fn check<C: ProcessConfig>(config: &C, layers: &Layers) -> Result<(), Problems> {
    let mut found = Problems::default();
    config.check(&mut found);
    if let Some(tracing) = config.tracing() {
        found.of(tracing.check().map_err(|wrong| wrong.under("tracing")));
    }
    found.located(layers).done(())
}

impl Problems {
    /// Addresses at which one process cannot listen at once.
    pub(crate) fn of_listening(&mut self, all: &[(&str, Option<SocketAddr>)]) {
        let given = all.iter().filter_map(|(key, addr)| Some((key, (*addr)?)));
        // Of port 0 each gets another.
        let given: Vec<_> = given.filter(|(_, addr)| addr.port() != 0).collect();
        for (index, (key, addr)) in given.iter().enumerate() {
            let meets = |other: &SocketAddr| {
                let (a, b) = (addr.ip(), other.ip());
                addr.port() == other.port() && (a == b || covers(a, b) || covers(b, a))
            };
            for (other, _) in given[..index].iter().filter(|(_, other)| meets(other)) {
                let port = addr.port();
                self.add(
                    **key,
                    format!("port {port} is taken by `{other}` already: write another port"),
                );
            }
        }
    }

    /// The address that peers are told.
    pub(crate) fn of_advertise(&mut self, listen: SocketAddr, advertise: Option<SocketAddr>) {
        let Some(told) = advertise else {
            if listen.ip().is_unspecified() {
                let what = format!(
                    "needed, as peers cannot be told the address of `peer_listen`, which is {listen}: write this \
                     host's own, such as 10.1.2.3:{}",
                    listen.port()
                );
                self.missing("advertise", "peer_listen", what);
            }
            return;
        };
        if told.ip().is_unspecified() {
            let what = format!("nobody can dial {told}: write this host's own address");
            self.add("advertise", what);
        }
        if told.port() == 0 {
            let what = format!("nobody can dial port 0: write that of `peer_listen`, {listen}");
            self.add("advertise", what);
        } else if listen.port() == 0 {
            let what = format!("port 0 is any, and peers are told {told}: write a port");
            self.add("peer_listen", what);
        }
    }

    /// How many own something, of so many `members` if their number is known.
    pub(crate) fn of_replicas(&mut self, key: &str, replicas: usize, members: Option<usize>) {
        if replicas == 0 {
            self.add(key, "0 would keep nothing: 1 at least");
        }
        // As many as are usual may be written down where there are fewer: they are as many as there are.
        if let Some(members) = members.filter(|it| replicas > REPLICAS && replicas > *it) {
            let what = format!(
                "there are {members} to own something, not {replicas}: write {members} at most"
            );
            self.add(key, what);
        }
    }

    /// A directory that is there, or can be made.
    pub(crate) fn of_dir(&mut self, key: &str, dir: &Path) {
        if dir.as_os_str().is_empty() {
            return self.add(
                key,
                "the path of a directory is expected here, and it is empty",
            );
        }
        let there = dir.ancestors().find(|it| it.exists());
        if let Some(there) = there.filter(|it| !it.is_dir()) {
            self.add(key, format!("{} is no directory", there.display()));
        }
    }

    /// A file that something needs, and whatever else has to hold of what is in it.
    pub(crate) fn of_file(
        &mut self,
        key: &str,
        file: &Path,
        fits: impl FnOnce(&[u8]) -> Result<(), String>,
    ) {
        match std::fs::read(file) {
            Err(error) => self.add(key, format!("cannot read {}: {error}", file.display())),
            Ok(bytes) => {
                let fits = fits(&bytes);
                self.at(
                    key,
                    fits.map_err(|why| format!("{}: {why}", file.display())),
                );
            }
        }
    }
}

/// Whether who listens at `any` takes what is for `other`, too: `[::]` stands for IPv4 as well.
fn covers(any: IpAddr, other: IpAddr) -> bool {
    match any {
        IpAddr::V4(ip) => ip.is_unspecified() && other.is_ipv4(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(of: impl FnOnce(&mut Problems)) -> Vec<String> {
        let mut found = Problems::default();
        of(&mut found);
        found.all().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn listeners_do_not_meet() {
        let meet = |a: &str, b: &str| {
            let at = |text: &str| Some(text.parse().unwrap());
            let all = [("a", at(a)), ("none", None), ("b", at(b))];
            let told = told(|found| found.of_listening(&all));
            assert!(told.iter().all(|it| it.starts_with("b: port")), "{told:?}");
            !told.is_empty()
        };
        for (a, b) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("127.0.0.1:1", "[::]:1"),
            ("[::]:1", "[::1]:1"),
        ] {
            assert!(meet(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:1", "[::1]:1"),
        ] {
            assert!(!meet(a, b), "{a} {b}");
        }
    }

    #[test]
    fn an_address_that_peers_are_told_can_be_dialled() {
        let of = |listen: &str, advertise: Option<&str>| {
            let advertise = advertise.map(|it| it.parse().unwrap());
            told(|found| found.of_advertise(listen.parse().unwrap(), advertise)).concat()
        };
        assert_eq!(of("10.0.0.1:1", None), "");
        assert_eq!(of("127.0.0.1:0", None), "");
        assert_eq!(of("0.0.0.0:1", Some("10.0.0.1:2")), "");
        for (listen, advertise, says) in [
            ("0.0.0.0:7", None, "advertise: needed"),
            ("[::]:7", None, "such as 10.1.2.3:7"),
            (
                "10.0.0.1:1",
                Some("0.0.0.0:1"),
                "advertise: nobody can dial",
            ),
            (
                "10.0.0.1:1",
                Some("10.0.0.1:0"),
                "advertise: nobody can dial port 0",
            ),
            ("10.0.0.1:0", Some("10.0.0.1:1"), "peer_listen: port 0"),
        ] {
            let told = of(listen, advertise);
            assert!(told.contains(says), "{told}");
        }
    }

    #[test]
    fn replicas_are_no_more_than_members_but_for_the_usual_number() {
        let of = |replicas, members| told(|found| found.of_replicas("r", replicas, members));
        assert!(of(3, Some(1)).is_empty() && of(5, None).is_empty() && of(5, Some(5)).is_empty());
        assert_eq!(
            of(5, Some(4)),
            ["r: there are 4 to own something, not 5: write 4 at most"]
        );
        assert_eq!(of(0, Some(4)), ["r: 0 would keep nothing: 1 at least"]);
    }
}
