//! What the longer commands do.

pub(crate) mod blob;
pub(crate) mod ca;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod health;
pub(crate) mod preload;
pub(crate) mod profile;
pub(crate) mod replicate;
pub(crate) mod runtime;
pub(crate) mod tag;

use kraken::Failure;
use kraken::client::Registry;
use kraken::operator::{Operator, failed};
use kraken::preheat::{Hosts, Progress};
use kraken::{drain, gc};
use kraken_registry::garbage::GarbageOptions;

use crate::args::TlsFiles;
use crate::args::gc::GcArgs;
use crate::args::preheat::PreheatArgs;
use crate::{named, operator, say};

/// Lets an origin hand its share over, or take it back.
pub(crate) async fn drain_origin(origin: &Operator, undo: bool) -> Result<(), Failure> {
    if undo {
        drain::ask(origin, "DELETE").await?;
        return say("it has its share again");
    }
    drain::drain(origin, say).await?;
    say("nothing is left there that others own: take it off the lists, then stop it")
}

/// Lets a build-index collect garbage, and says what came of it.
pub(crate) async fn collect_garbage(args: GcArgs) -> Result<(), Failure> {
    let options = GarbageOptions {
        grace_seconds: args.grace.0,
        stored: args.stored,
        dry_run: args.dry_run,
    };
    let index = first_that_answers(&args.build_index, args.tls).await?;
    let collected = gc::collect(&index, options).await?;
    say(&if args.json {
        serde_json::json!(collected).to_string()
    } else {
        gc::told(&collected, args.dry_run)
    })
}

/// One of several processes of which any will do.
async fn first_that_answers(urls: &[String], tls: TlsFiles) -> Result<Operator, Failure> {
    let mut silent = None;
    for url in urls {
        let process = operator(url, tls.clone())?;
        match process.send("GET", "/health").await {
            Ok(_) => return Ok(process),
            Err(error) => drop(silent.get_or_insert_with(|| failed(error))),
        }
    }
    Err(silent.unwrap_or_else(|| Failure::Argument("name a build-index".into())))
}

/// Lets the origins fetch an image, and then hosts.
pub(crate) async fn preheat(args: PreheatArgs) -> Result<(), Failure> {
    let PreheatArgs {
        image,
        proxy,
        mut hosts,
        hosts_file,
        percent,
        wait,
        at_once,
        at_most,
        tls,
        json,
    } = args;
    let at_most = at_most.map(|rate| rate.0);
    if let Some(file) = hosts_file {
        let text = std::fs::read_to_string(&file)
            .map_err(Failure::io(format!("read {}", file.display())))?;
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        hosts.extend(lines.map(str::to_owned));
    }
    let (repository, reference) = named(&image)?;
    let caller = tls.caller()?;
    let proxy = Registry::of(&proxy, &caller)?;
    let (told, left_out) = proxy.prefetch(&image, at_most).await?;
    if !json {
        say(&told)?;
    }
    let hosts = Hosts {
        agents: hosts,
        left_out,
        percent,
        wait,
        at_once,
        at_most,
    };
    let image = (&repository, &reference);
    let progress = kraken::preheat::to_hosts(image, (&hosts, &caller), |progress| {
        let Progress {
            ready,
            failed,
            hosts,
            seconds_left,
            ..
        } = progress;
        if json || *hosts == 0 {
            return Ok(());
        }
        let left = seconds_left.map_or_else(String::new, |left| format!(", about {left} s left"));
        say(&format!(
            "{ready} of {hosts} hosts have it, {failed} failed{left}"
        ))
    });
    let progress = progress.await?;
    match json {
        true => say(&serde_json::json!(progress).to_string())?,
        false => progress.told().iter().try_for_each(|line| say(line))?,
    }
    match progress.is_enough {
        true => Ok(()),
        false => Err(Failure::Registry(format!(
            "{} of {} hosts have it, which are fewer than are wanted: see what is said of each",
            progress.ready, progress.hosts
        ))),
    }
}
