//! `kraken`: the tool of people.
#![expect(clippy::print_stderr, reason = "a command-line tool")]

mod args;
mod commands;

use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::{CommandFactory as _, FromArgMatches as _};
use kraken::Failure;
use kraken::client::Registry;
use kraken::cluster::{Cluster, ClusterOptions};
use kraken::crowd::Crowd;
use kraken::demo::{self, Bars, DemoOptions};
use kraken::layout;
use kraken::layout::Source;
use kraken::operator::Operator;
use kraken::queue::{self, Queue};
use kraken::simulate::Simulation;
use kraken::store::{self, Collect, Store};
use kraken_core::Digest;
use kraken_daemon::store::http::VerdictInfo;
use kraken_daemon::traces::{CollectorUrl, Traces, TracingConfig};
use kraken_daemon::{ConfigArgs, process};
use kraken_registry::name::{Reference, RepoName, split_tag};
use kraken_sim::PlotFile;

use args::{Cli, Command, QueueCommand, Role, StoreCommand, TlsFiles};

fn main() -> ExitCode {
    let command = args::given::without_empty_variables(Cli::command());
    let matches = command.get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    process::init_log(cli.command.log_level());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli.command)),
        Err(error) => Err(Failure::Other(format!("no threads to run on: {error}"))),
    };
    result.unwrap_or_else(|error| {
        for line in args::given::told(&error, &matches) {
            eprintln!("kraken: {line}");
        }
        ExitCode::from(error.exit_code())
    })
}

/// Prints a line for whoever reads along; nobody has to until the end.
fn say(line: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        said => said.map_err(Failure::io("write to the standard output")),
    }
}

async fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Dev {
            agents,
            origins,
            dir,
            base_port,
            traces,
        } => {
            let options = ClusterOptions {
                agents,
                origins,
                dir,
                base_port: Some(base_port),
            };
            dev(options, traces).await?;
        }
        Command::Console { simulate, listen } => show_crowd(simulate, listen).await?,
        Command::Demo {
            agents,
            origins,
            size,
            json,
        } => {
            let options = DemoOptions {
                agents,
                origins,
                size: size.0,
                bars: !json,
            };
            return show_demo(&options, json).await;
        }
        Command::Sim {
            plan,
            json,
            seed,
            plot,
        } => {
            let simulation = Simulation::read(&plan, seed)?;
            return simulate(&simulation, json, plot.as_ref());
        }
        Command::Push {
            layout,
            image,
            proxy,
            target,
            tls,
        } => {
            let (repository, tag) = named(&target)?;
            let registry = Registry::of(&proxy, &tls.caller()?)?;
            let bars = Bars::new(true);
            let digest = layout::push(
                &registry,
                &layout,
                image.as_deref(),
                repository.as_str(),
                &tag.to_string(),
                &bars,
            )
            .await?;
            say(&format!("{repository}:{tag} is {digest}"))?;
        }
        Command::Pull {
            source,
            layout,
            agent,
            link,
            tls,
        } => {
            let (repository, reference) = named(&source)?;
            let source_of = Source::of(&agent, link, &tls.caller()?)?;
            let reference = reference.to_string();
            let image = (repository.as_str(), reference.as_str());
            let bars = Bars::new(true);
            let digest = or_stopped(layout::pull(&source_of, image, &layout, &bars)).await?;
            say(&format!("{source} is {digest}, in {}", layout.display()))?;
        }
        Command::Queue {
            command,
            origin,
            tls,
        } => {
            let queue = Queue::new(operator(&origin, tls)?);
            work_on_queue(&queue, command).await?;
        }
        Command::Drain { origin, undo, tls } => {
            commands::drain_origin(&operator(&origin, tls)?, undo).await?;
        }
        Command::Doctor(args) => return commands::doctor::examine(args).await,
        Command::Explain(args) => commands::explain::explain(args).await?,
        Command::Top(args) => commands::explain::top(args).await?,
        Command::Preheat(args) => commands::preheat(args).await?,
        Command::Preload(args) => commands::preload::preload(args).await?,
        Command::Runtime { command } => return commands::runtime::runtimes(command).await,
        Command::Gc(args) => commands::collect_garbage(args).await?,
        Command::Health(args) => commands::health::look(args).await?,
        Command::Profile(args) => commands::profile::take(args).await?,
        Command::Tag(args) => commands::tag::work_on_tags(args).await?,
        Command::Ca { command } => commands::ca::work_on_certificates(command)?,
        Command::Replicate(args) => commands::replicate::work_on_replication(args).await?,
        Command::Store {
            command,
            process,
            tls,
        } => {
            let store = Store::new(tls.operator(&process)?);
            return look_at_store(&store, command).await;
        }
        Command::Run { role, config } => return run_role(role, config).await,
        Command::Blob(command) => commands::blob::put_or_get(command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_role(role: Role, config: ConfigArgs) -> Result<ExitCode, Failure> {
    use kraken_daemon::{agent, build_index, origin, proxy, tracker};
    Ok(match role {
        Role::Agent => process::run_with(config, agent::start).await?,
        Role::Origin => process::run_with(config, origin::start).await?,
        Role::Tracker => process::run_with(config, tracker::start).await?,
        Role::Proxy => process::run_with(config, proxy::start).await?,
        Role::BuildIndex => process::run_with(config, build_index::start).await?,
    })
}

async fn work_on_queue(queue: &Queue, command: QueueCommand) -> Result<(), Failure> {
    match command {
        QueueCommand::Ls { dead, json } => {
            let list = queue.list(dead, None).await?;
            if json {
                let text = serde_json::to_string(&list);
                return say(&text.map_err(|error| Failure::Other(error.to_string()))?);
            }
            say(&queue::table(&list.tasks, unix_ms()).to_string())?;
            let shown = list.tasks.len() as u64;
            if shown < if dead { list.dead } else { list.waiting } {
                say(&format!("the first {shown}"))?;
            }
            say(&format!("{} waiting, {} given up", list.waiting, list.dead))
        }
        QueueCommand::Retry { id } => {
            let tasks = queue.retry(id).await?;
            say(&format!("{tasks} will be tried again"))
        }
        QueueCommand::Drop { id } => {
            queue.drop(id).await?;
            say(&format!("{id} is dropped"))
        }
    }
}

fn operator(url: &str, tls: TlsFiles) -> Result<Operator, Failure> {
    Operator::with(url, &tls.config())
}

async fn look_at_store(store: &Store, command: StoreCommand) -> Result<ExitCode, Failure> {
    match command {
        StoreCommand::Ls { json } => list_blobs(store, json).await?,
        StoreCommand::Gc {
            dry_run,
            now: _,
            percent,
            idle,
            age,
            json,
        } => {
            let collect = Collect {
                percent,
                idle,
                age,
                dry_run,
            };
            let report = store.collect(&collect).await?;
            if json {
                let text = serde_json::to_string(&report);
                say(&text.map_err(|error| Failure::Other(error.to_string()))?)?;
            } else {
                say(&store::table(&report.blobs, unix_ms()).to_string())?;
                let (count, bytes) = (report.deleted, ByteSize(report.bytes));
                let done = if dry_run { "would go" } else { "went" };
                say(&format!("{count} blobs with {bytes} {done}"))?;
            }
            if report.errors > 0 {
                let errors = report.errors;
                return Err(Failure::Other(format!(
                    "{errors} blobs cannot be removed: see the log"
                )));
            }
        }
        StoreCommand::Verify { digest } => return verify_blobs(store, digest).await,
        StoreCommand::Pin { digest } => {
            store.pin(digest, true).await?;
            say(&format!("{digest} stays"))?;
        }
        StoreCommand::Unpin { digest } => {
            store.pin(digest, false).await?;
            say(&format!("{digest} may go"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list_blobs(store: &Store, json: bool) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let list = store.list(after).await?;
        after = list.blobs.last().map(|blob| blob.digest);
        if json {
            for blob in &list.blobs {
                let text = serde_json::to_string(blob);
                say(&text.map_err(|error| Failure::Other(error.to_string()))?)?;
            }
        } else if after.is_some() {
            say(&store::table(&list.blobs, unix_ms()).to_string())?;
        }
        if after.is_none() {
            if !json {
                let (count, bytes) = (list.count, ByteSize(list.bytes));
                let limit = list.limit.map(|limit| format!(" of {}", ByteSize(limit)));
                say(&format!(
                    "{count} blobs, {bytes}{} used",
                    limit.unwrap_or_default()
                ))?;
            }
            return Ok(());
        }
    }
}

async fn verify_blobs(store: &Store, digest: Option<Digest>) -> Result<ExitCode, Failure> {
    let (mut right, mut damaged, mut after) = (0, 0, None);
    loop {
        let digests = match digest {
            Some(digest) => vec![digest],
            None => {
                let list = store.list(after).await?;
                list.blobs.into_iter().map(|blob| blob.digest).collect()
            }
        };
        after = digests.last().copied();
        for it in digests {
            match store.verify(it).await? {
                VerdictInfo::Right => right += 1,
                VerdictInfo::Damaged => {
                    damaged += 1;
                    say(&format!("{it} is damaged"))?;
                }
                VerdictInfo::Absent if digest.is_some() => {
                    return Err(Failure::Other(format!(
                        "the store does not have all of {it}"
                    )));
                }
                VerdictInfo::Absent => {}
            }
        }
        if after.is_none() || digest.is_some() {
            break;
        }
    }
    say(&format!("{right} blobs are right, {damaged} damaged"))?;
    Ok(if damaged == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn unix_ms() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn dev(options: ClusterOptions, collector: Option<CollectorUrl>) -> Result<(), Failure> {
    options.check()?;
    std::fs::create_dir_all(&options.dir)
        .map_err(Failure::io(format!("make {}", options.dir.display())))?;
    let traces = collector.map(|collector| {
        let all = TracingConfig::of_all(collector);
        Traces::start(&all, ("kraken-dev", None))
    });
    let traces = traces.transpose()?;
    let cluster = Cluster::start(&options).await?;
    say(&welcome(&cluster, &options.dir))?;
    process::stop_signal().await;
    say(&format!(
        "stopping; the data stays in {}",
        options.dir.display()
    ))?;
    cluster.stop().await;
    if let Some(traces) = traces {
        traces.stop().await;
    }
    Ok(())
}

async fn show_crowd(hosts: u32, listen: SocketAddr) -> Result<(), Failure> {
    let crowd = Crowd::start(hosts, listen)?;
    let console = crowd.console();
    say(&format!(
        "{hosts} hosts that are not there: http://{console}/console/\nCtrl-C stops it."
    ))?;
    process::stop_signal().await;
    crowd.stop().await;
    Ok(())
}

/// Where everything is, and lines to copy.
fn welcome(cluster: &Cluster, dir: &Path) -> String {
    let mut text = String::from("Kraken is up.\n\n");
    let mut line = |name: &str, what: &str| text.push_str(&format!("  {name:<14} {what}\n"));
    line(
        "proxy",
        &format!("http://{}   push here", cluster.proxy.addr),
    );
    for (index, agent) in cluster.agents.iter().enumerate() {
        line(
            &format!("agent-{}", index + 1),
            &format!("http://{}   pull here", agent.registry),
        );
    }
    line(
        "build-index",
        &format!("https://{}", cluster.build_index.addr),
    );
    line("tracker", &format!("https://{}", cluster.tracker.addr));
    if let Some(console) = cluster.tracker.console {
        line("console", &format!("http://{console}/console/   look here"));
    }
    for (index, origin) in cluster.origins.iter().enumerate() {
        line(
            &format!("origin-{}", index + 1),
            &format!("https://{}", origin.addr),
        );
    }
    let (proxy, agent) = (cluster.proxy.addr, cluster.agents[0].registry);
    text.push_str(&format!(
        "
The https addresses want a client certificate: see {tls}.

  skopeo      skopeo copy --dest-tls-verify=false oci:DIR:TAG docker://{proxy}/library/app:v1
              skopeo copy --src-tls-verify=false docker://{agent}/library/app:v1 oci:DIR:TAG
  docker      docker push {proxy}/library/app:v1
              docker pull {agent}/library/app:v1
  podman      podman pull --tls-verify=false {agent}/library/app:v1
  containerd  /etc/containerd/certs.d/registry.example.test/hosts.toml:
                [host.\"http://{agent}\"]
                  capabilities = [\"pull\", \"resolve\"]
              ctr images pull --hosts-dir /etc/containerd/certs.d registry.example.test/library/app:v1
  curl        curl http://{agent}/v2/library/app/manifests/v1

Ctrl-C stops it; the data stays in {dir}.",
        tls = dir.join("tls").display(),
        dir = dir.display(),
    ));
    text
}

async fn show_demo(options: &DemoOptions, json: bool) -> Result<ExitCode, Failure> {
    let report = demo::run(options).await?;
    if json {
        let text =
            serde_json::to_string(&report).map_err(|error| Failure::Other(error.to_string()))?;
        say(&text)?;
    } else {
        say(&demo::table(&report))?;
    }
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Nothing else runs meanwhile, so that it may keep its thread.
fn simulate(
    simulation: &Simulation,
    json: bool,
    plot: Option<&PlotFile>,
) -> Result<ExitCode, Failure> {
    let outcome = simulation.run();
    say(&if json { outcome.json() } else { outcome.text() })?;
    if let Some(plot) = plot {
        simulation.draw(&outcome, plot)?;
    }
    Ok(if outcome.ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Does it unless a signal comes first: what is half done is then put away before the end.
async fn or_stopped<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::select! {
        done = work => done,
        () = process::stop_signal() => {
            Err(Failure::Other("stopped by a signal before all was there".into()))
        }
    }
}

/// Repository and tag or digest of `repo:tag` or `repo@sha256:…`.
fn named(text: &str) -> Result<(RepoName, Reference), Failure> {
    let named = match text.split_once('@') {
        Some((repository, digest)) => repository.parse().and_then(|repository| {
            let digest = digest.parse::<Digest>()?;
            Ok((repository, Reference::Digest(digest)))
        }),
        None => split_tag(text).map(|(repository, tag)| (repository, Reference::Tag(tag))),
    };
    named.map_err(|error| Failure::Argument(format!("{text:?}: {error}")))
}
