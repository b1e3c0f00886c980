//! The command line.

pub(crate) mod ca;
pub(crate) mod doctor;
pub(crate) mod gc;
pub(crate) mod given;
pub(crate) mod health;
pub(crate) mod indexes;
pub(crate) mod outside;
pub(crate) mod preheat;
pub(crate) mod preload;
pub(crate) mod profile;
pub(crate) mod replicate;
pub(crate) mod tag;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use kraken::runtime::{Address, Runtime};
use kraken_core::Digest;
use kraken_daemon::ConfigArgs;
use kraken_daemon::Tls;
use kraken_daemon::store::Age;
use kraken_daemon::tls::KeyPassword;
use kraken_daemon::traces::CollectorUrl;
use kraken_registry::name::{Host, RepoName};
use kraken_sim::PlotFile;

use gc::GcArgs;
use outside::{ProcessTls, RegistryTls};
use preheat::PreheatArgs;

/// Distributes container images and other blobs to many hosts at the speed of their networks.
#[derive(Debug, Parser)]
#[command(name = "kraken", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a whole cluster on this machine until Ctrl-C.
    Dev {
        /// How many agents.
        #[arg(long, default_value_t = 3)]
        agents: u16,
        /// How many origins.
        #[arg(long, default_value_t = 3)]
        origins: u16,
        /// Where the data is kept, also after the end.
        #[arg(long, default_value = "kraken-dev")]
        dir: PathBuf,
        /// The first of the ports on 127.0.0.1.
        #[arg(long, default_value_t = 7600)]
        base_port: u16,
        /// A collector of OpenTelemetry that takes the traces of all requests, such as
        /// http://127.0.0.1:4318.
        #[arg(long)]
        traces: Option<CollectorUrl>,
    },
    /// Shows the console with hosts that are not there: a real tracker, and made-up transfers.
    Console {
        /// How many hosts.
        #[arg(long, default_value_t = 5000)]
        simulate: u32,
        /// Where the console answers.
        #[arg(long, default_value = "127.0.0.1:7606")]
        listen: SocketAddr,
    },
    /// Pushes an image of random bytes and pulls it through every agent at once.
    Demo {
        /// How many agents.
        #[arg(long, default_value_t = 5)]
        agents: u16,
        /// How many origins.
        #[arg(long, default_value_t = 3)]
        origins: u16,
        /// The size of the image.
        #[arg(long, default_value = "256MiB")]
        size: Size,
        /// Prints one JSON object and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Plays a plan of a whole cluster in virtual time and says how long each host took. Exits with
    /// 1 when a host was not done in time or a rule was broken.
    Sim {
        /// The plan, a TOML file such as those in benches/plans; - is the standard input.
        plan: PathBuf,
        /// Prints one JSON object and nothing else.
        #[arg(long)]
        json: bool,
        /// Where all chance comes from, instead of what the plan says.
        #[arg(long)]
        seed: Option<u64>,
        /// Draws the times of the hosts and the bytes sent into a file that ends in .svg or .png.
        #[arg(long, value_name = "FILE")]
        plot: Option<PlotFile>,
    },
    /// Pushes an image out of a directory in the OCI image layout.
    Push {
        /// The directory.
        layout: PathBuf,
        /// Where it goes, as repository:tag.
        target: String,
        /// Which image, when the layout holds several.
        #[arg(long)]
        image: Option<String>,
        /// The proxy's address: host:port, or https://host:port.
        #[arg(long, default_value = "127.0.0.1:7602", env = "KRAKEN_PROXY")]
        proxy: String,
        #[command(flatten)]
        tls: RegistryTls,
    },
    /// Pulls an image into a directory in the OCI image layout.
    Pull {
        /// What to pull, as repository:tag or repository@digest.
        source: String,
        /// The directory; made when it is not there.
        layout: PathBuf,
        /// Shares the bytes with the agent's own files where the file system can do that.
        #[arg(long)]
        link: bool,
        /// The address of an agent's registry: host:port, or https://host:port.
        #[arg(long, default_value = "127.0.0.1:7610", env = "KRAKEN_AGENT")]
        agent: String,
        #[command(flatten)]
        tls: RegistryTls,
    },
    /// Runs one process of a cluster, as the binaries of that name do, until SIGTERM.
    Run {
        /// Which.
        role: Role,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Puts and gets single blobs.
    #[command(subcommand)]
    Blob(BlobCommand),
    /// Shows the durable tasks of an origin, and what to do with those that it gave up.
    Queue {
        /// What to do.
        #[command(subcommand)]
        command: QueueCommand,
        /// The origin, such as https://origin-1:7605.
        #[arg(
            long,
            env = "KRAKEN_ORIGIN",
            global = true,
            default_value = "https://127.0.0.1:7900"
        )]
        origin: String,
        #[command(flatten)]
        tls: TlsFiles,
    },
    /// Lets an origin hand its blobs over to the others, and waits until it can be stopped for good.
    Drain {
        /// The origin, such as https://origin-1:7605.
        #[arg(long, env = "KRAKEN_ORIGIN", default_value = "https://127.0.0.1:7900")]
        origin: String,
        /// Lets it take its share back instead.
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        tls: TlsFiles,
    },
    /// Fetches an image before anybody needs it: into the origins, and onto hosts if some are named.
    Preheat(PreheatArgs),
    /// Lets a container runtime of this host pull an image through the agent before a container needs it.
    Preload(preload::PreloadArgs),
    /// Lets the container runtimes of this host pull through the agent, or no longer.
    Runtime {
        /// What to do.
        #[command(subcommand)]
        command: RuntimeCommand,
    },
    /// Removes the blobs that no tag, manifest or index refers to any more, while others push and pull.
    Gc(GcArgs),
    /// Shows tags and what they were, sets them back, and removes them.
    Tag(tag::TagArgs),
    /// Asks a process whether it is ready, or only whether it answers. Exits with 1 when not: for probes.
    Health(health::HealthArgs),
    /// Samples what the processors are busy with in a process, as folded stacks for flame graphs.
    Profile(profile::ProfileArgs),
    /// Shows how far images are on their way to other clusters, pauses that, and tries it at once.
    Replicate(replicate::ReplicateArgs),
    /// Makes the cluster's authority, and its certificates.
    Ca {
        /// What to do.
        #[command(subcommand)]
        command: ca::CaCommand,
    },
    /// Says in words what is wrong with the agent of this host and with what it needs. Exits with 1 when
    /// something does not work.
    Doctor(doctor::DoctorArgs),
    /// Tells which bytes of a blob or an image came from whom, when and how fast, why an origin fetched it,
    /// and what clients were told.
    Explain(doctor::ExplainArgs),
    /// Shows what agents are doing, until Ctrl-C.
    Top(doctor::TopArgs),
    /// Shows what an agent or an origin keeps on its disks, verifies it, pins it, and makes room.
    Store {
        /// What to do.
        #[command(subcommand)]
        command: StoreCommand,
        /// The process: an agent's registry, or an origin such as https://origin-1:7605.
        #[arg(
            long,
            env = "KRAKEN_PROCESS",
            global = true,
            default_value = "http://127.0.0.1:7610"
        )]
        process: String,
        #[command(flatten)]
        tls: ProcessTls,
    },
}

/// What a person shows to processes that speak TLS.
#[derive(Debug, Clone, Args)]
pub(crate) struct TlsFiles {
    /// A certificate of the cluster, with its chain.
    #[arg(
        long,
        env = "KRAKEN_CERT",
        global = true,
        default_value = "kraken-dev/tls/operator.crt"
    )]
    pub(crate) cert: PathBuf,
    /// Its private key.
    #[arg(
        long,
        env = "KRAKEN_KEY",
        global = true,
        default_value = "kraken-dev/tls/operator.key"
    )]
    pub(crate) key: PathBuf,
    /// The certificates of the cluster's authority, or of another one's that an agent or a proxy shows its clients.
    #[arg(
        long,
        env = "KRAKEN_CA",
        global = true,
        default_value = "kraken-dev/tls/ca.crt"
    )]
    pub(crate) ca: PathBuf,
    /// A file whose first line opens the key, if that is encrypted.
    #[arg(
        long,
        env = "KRAKEN_KEY_PASSWORD_FILE",
        global = true,
        value_name = "FILE"
    )]
    pub(crate) key_password_file: Option<PathBuf>,
}

impl TlsFiles {
    /// As the configuration of a process has it.
    pub(crate) fn config(self) -> Tls {
        let mut tls = Tls::new(self.cert, self.key, self.ca);
        tls.key_password = self.key_password_file.map(|file| KeyPassword { file });
        tls
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Lists the blobs, by their digests.
    Ls {
        /// Prints one JSON object a line and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Lets blobs go that nobody needs: by default what is above the high mark of the limit. What is
    /// read, pinned or not yet in the backend stays.
    #[command(group(ArgGroup::new("how").required(true).args(["dry_run", "now"])))]
    Gc {
        /// Only says what would go.
        #[arg(long)]
        dry_run: bool,
        /// Does it.
        #[arg(long)]
        now: bool,
        /// Until no more than so many hundredths of the limit are used.
        #[arg(long, value_parser = clap::value_parser!(u8).range(0..=100))]
        percent: Option<u8>,
        /// What was not used for so long, such as 6h or 7d.
        #[arg(long, value_parser = age)]
        idle: Option<Age>,
        /// What came so long ago.
        #[arg(long, value_parser = age)]
        age: Option<Age>,
        /// Prints one JSON object and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Reads blobs back; what is damaged is set aside and fetched anew. Exits with 1 then.
    Verify {
        /// Which blob, as sha256:…; all when it is not given.
        digest: Option<Digest>,
    },
    /// Lets a blob stay whatever needs its room; also one that is not there yet.
    Pin {
        /// The blob, as sha256:….
        digest: Digest,
    },
    /// Lets a blob go again like all others.
    Unpin {
        /// The blob, as sha256:….
        digest: Digest,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Lists the tasks that wait: write-backs, and copies for other origins.
    Ls {
        /// Those that were given up instead.
        #[arg(long)]
        dead: bool,
        /// Prints one JSON object and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Tries what was given up again.
    Retry {
        /// Which task; all when it is not given.
        id: Option<u64>,
    },
    /// Drops a task that was given up. Its blob may then be evicted without being in the backend.
    Drop {
        /// Which task.
        id: u64,
    },
}

/// A process of a cluster.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Role {
    /// On every host.
    Agent,
    /// In front of the storage.
    Origin,
    /// Tells peers whom to connect to.
    Tracker,
    /// Takes pushes.
    Proxy,
    /// Keeps tags.
    BuildIndex,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BlobCommand {
    /// Pushes a file and prints its digest.
    Put {
        /// The file.
        file: PathBuf,
        /// The digest that it has, as sha256:…: hosts can then fetch the blob while it is being
        /// pushed.
        #[arg(long)]
        digest: Option<Digest>,
        /// What the blob belongs to.
        #[arg(long, default_value = "default")]
        namespace: RepoName,
        /// The proxy's address: host:port, or https://host:port.
        #[arg(long, default_value = "127.0.0.1:7602", env = "KRAKEN_PROXY")]
        proxy: String,
        #[command(flatten)]
        tls: RegistryTls,
    },
    /// Fetches a blob into a file.
    Get {
        /// The blob, as sha256:….
        digest: Digest,
        /// The file; named like the digest when it is not given.
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Shares the bytes with the agent's own file where the file system can do that: a reflink, or
        /// a hard link, which nobody may write to. The agent is on this host.
        #[arg(long)]
        link: bool,
        /// What the blob belongs to.
        #[arg(long, default_value = "default")]
        namespace: RepoName,
        /// The address of an agent's registry: host:port, or https://host:port.
        #[arg(long, default_value = "127.0.0.1:7610", env = "KRAKEN_AGENT")]
        agent: String,
        #[command(flatten)]
        tls: RegistryTls,
    },
}

fn age(text: &str) -> Result<Age, String> {
    Age::try_from(text.to_owned())
}

impl Command {
    /// How much is logged when `RUST_LOG` does not say.
    pub(crate) fn log_level(&self) -> &'static str {
        match self {
            Self::Dev { .. } => "warn",
            Self::Run { .. } => kraken_daemon::log::LEVEL,
            _ => "error",
        }
    }
}

/// A number of bytes: `256MiB`, `1GB`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<bytesize::ByteSize>()
            .map(|size| Self(size.as_u64()))
    }
}

/// Bytes per second: `300MB/s`, `300MB`, `1GiB/s`; not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AtMost(pub(crate) NonZeroU64);

impl FromStr for AtMost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Size(bytes) = text.strip_suffix("/s").unwrap_or(text).parse()?;
        let rate = NonZeroU64::new(bytes).map(Self);
        rate.ok_or_else(|| "at 0 nothing would be fetched: for no limit, leave it out".into())
    }
}

/// What to do with runtimes.
#[derive(Debug, Subcommand)]
pub(crate) enum RuntimeCommand {
    /// Writes what they need, and says what to restart.
    Install(RuntimeArgs),
    /// Says whether they have what was installed last, and whether the agent is there. Exits with 1 when
    /// something is amiss.
    Check {
        #[command(flatten)]
        choice: RuntimeChoice,
        #[command(flatten)]
        tls: RegistryTls,
    },
    /// Takes it out again.
    Remove(RuntimeChoice),
}

/// Which runtimes.
#[derive(Debug, Args)]
pub(crate) struct RuntimeChoice {
    /// containerd, podman, cri-o or docker, several with commas; those that are here when left out.
    #[arg(long, value_delimiter = ',')]
    pub(crate) runtime: Vec<Runtime>,
    /// Another root than /, such as that of an image.
    #[arg(long, default_value = "/")]
    pub(crate) root: PathBuf,
}

/// Which runtimes, and what they are told.
#[derive(Debug, Args)]
pub(crate) struct RuntimeArgs {
    #[command(flatten)]
    pub(crate) choice: RuntimeChoice,
    /// The address of the agent's registry: host:port, or https://host:port.
    #[arg(long, default_value = "127.0.0.1:7610", env = "KRAKEN_AGENT")]
    pub(crate) agent: Address,
    #[command(flatten)]
    pub(crate) tls: RegistryTls,
    /// Where the agent mirrors docker.io for dockerd: its docker_listen.
    #[arg(long)]
    pub(crate) docker: Option<Address>,
    /// The registries to mirror, several with commas: among the agent's upstreams or own_names.
    #[arg(long, value_delimiter = ',', default_value = "docker.io")]
    pub(crate) upstream: Vec<Host>,
}

/// A time such as `24h`, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grace(pub(crate) u64);

impl FromStr for Grace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no time such as 24h or 90s");
        let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 24 * 3600)];
        let known = units.iter().find_map(|(unit, seconds)| {
            let digits = text.strip_suffix(*unit)?;
            Some((digits.parse::<u64>().ok()?, *seconds))
        });
        let (number, seconds) = known.ok_or_else(wrong)?;
        number.checked_mul(seconds).map(Self).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["kraken", "demo", "--size", "3MiB", "--json"]).unwrap();
        assert!(matches!(
            cli.command,
            Command::Demo {
                size: Size(3_145_728),
                json: true,
                ..
            }
        ));
        assert!(Cli::try_parse_from(["kraken", "demo", "--size", "lots"]).is_err());
        assert!(Cli::try_parse_from(["kraken", "sim", "-", "--plot", "a.svg"]).is_ok());
        let plot = ["kraken", "sim", "-", "--plot", "a.jpg"];
        let told = Cli::try_parse_from(plot).unwrap_err().to_string();
        assert!(told.contains("end its name in .svg or .png"), "{told}");
        assert!(Cli::try_parse_from(["kraken", "blob", "get", "sha256:12"]).is_err());
        assert!(Cli::try_parse_from(["kraken", "queue", "ls", "--dead"]).is_ok());
        assert_eq!(
            "300MB/s".parse(),
            Ok(AtMost(NonZeroU64::new(300_000_000).unwrap()))
        );
        assert!("0MB/s".parse::<AtMost>().is_err() && "fast".parse::<AtMost>().is_err());
        assert!(Cli::try_parse_from(["kraken", "queue", "drop"]).is_err());
        let several = ["kraken", "gc", "--build-index", "https://a:1,https://b:1"];
        let several = Cli::try_parse_from(several).unwrap().command;
        assert!(
            matches!(several, Command::Gc(GcArgs { build_index, .. }) if build_index.len() == 2)
        );
        assert!(Cli::try_parse_from(["kraken", "store", "gc", "--now"]).is_ok());
        assert!(Cli::try_parse_from(["kraken", "store", "gc"]).is_err());
        assert!(Cli::try_parse_from(["kraken", "store", "gc", "--now", "--dry-run"]).is_err());
        for line in [
            "store gc --now --percent 101",
            "store gc --now --idle soon",
            "store gc --now --age 3s",
            "profile http://a --seconds 61",
            "profile http://a --frequency 0",
            "blob get --namespace Odd! sha256:00",
        ] {
            let words = ["kraken"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
