//! What many tags cost: time and memory of a build-index that keeps them alone, over HTTP as a proxy asks.
//!
//! `cargo run --release -p kraken-benches --bin tags -- --dir DIR --repositories 1000 --tags 1000 [--json]`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measuring tool"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kraken_benches::memory::resident;
use kraken_core::net::http::{HttpClient, serve};
use kraken_core::proto::Digest;
use kraken_core::proto::rng::Rng;
use kraken_registry::RepoName;
use kraken_registry::memory::MemoryBlobs;
use kraken_registry::name::Tag;
use kraken_registry::pull::{self, PullState};
use kraken_registry::tags::TagService as _;
use kraken_registry::tags::client::TagClient;
use kraken_registry::tags::ring::TagRing;
use kraken_registry::tags::server::{TagPolicy, unchecked_router};
use kraken_registry::tags::store::TagStore;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Many tags.
#[derive(Debug, Parser)]
struct Options {
    /// Where they are kept; what is there is removed first.
    #[arg(long)]
    dir: PathBuf,
    /// How many repositories.
    #[arg(long, default_value_t = 1000)]
    repositories: usize,
    /// How many tags in each.
    #[arg(long, default_value_t = 1000)]
    tags: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Times in milliseconds: the median, and what 99 of 100 take at most.
#[derive(Debug, Serialize)]
struct Took {
    median_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    tags: usize,
    fill_s: f64,
    file_mib: f64,
    resident_mib: f64,
    /// One after the other, each durable.
    put: Took,
    get: Took,
    /// Pages of 100 and of 1,000 tags of one repository, through a registry.
    tags_100: Took,
    tags_1000: Took,
    /// Pages of 100 and of 1,000 repositories.
    catalog_100: Took,
    catalog_1000: Took,
    restart_s: f64,
}

/// How often each is asked.
const SOME: usize = 500;
/// Puts at once while the file is filled.
const FILLING: usize = 512;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let measured = runtime
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(measure(&options)));
    match measured {
        Ok(report) if options.json => match serde_json::to_string(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("tags: {error}"),
        },
        Ok(report) => println!("{report:#?}"),
        Err(error) => {
            eprintln!("tags: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn measure(options: &Options) -> Outcome<Report> {
    std::fs::create_dir_all(&options.dir)?;
    let path = options.dir.join("tags.redb");
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    let plain = HttpClient::new(None)?.raw();
    let ring = TagRing::new(
        TagStore::open(&path)?,
        ("east", "index"),
        &[],
        1,
        plain.clone(),
    )?;
    let taking_part = ring.clone();
    let taking_part = tokio::spawn(async move { taking_part.take_part().await });
    while !ring.is_ready() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    let all =
        (0..options.repositories).flat_map(|repo| (0..options.tags).map(move |tag| (repo, tag)));
    let puts = stream::iter(all).map(|(repo, tag)| put(&ring, repo, tag));
    puts.buffer_unordered(FILLING)
        .try_collect::<Vec<_>>()
        .await?;
    let fill_s = began.elapsed().as_secs_f64();
    let until = CancellationToken::new();
    let any = "127.0.0.1:0".parse()?;
    let index = unchecked_router(ring.clone(), TagPolicy::default());
    let index = serve(any, index, None, until.clone())?;
    let client = TagClient::new(plain.clone(), [format!("http://{}", index.local_addr())]);
    let registry = pull::router(PullState::new(MemoryBlobs::default(), client.clone()));
    let registry = serve(any, registry, None, until.clone())?;
    let base = format!("http://{}", registry.local_addr());
    let mut rng = Rng::seeded(1);
    let some: Vec<_> = (0..SOME)
        .map(|_| (rng.below(options.repositories), rng.below(options.tags)))
        .collect();
    let page = async |path: String| -> Outcome<()> {
        let answer = plain.get(format!("{base}{path}")).send().await?;
        answer.error_for_status()?.bytes().await?;
        Ok(())
    };
    let tags = |n: usize| {
        let page = &page;
        move |(repo, tag): (usize, usize)| async move {
            let (repo, tag) = (repository(repo)?, tag_of(tag)?);
            page(format!("/v2/{repo}/tags/list?n={n}&last={tag}")).await
        }
    };
    let catalog = |n: usize| {
        let page = &page;
        move |(repo, _): (usize, usize)| async move {
            let last = repository(repo)?.to_string().replace('/', "%2F");
            page(format!("/v2/_catalog?n={n}&last={last}")).await
        }
    };
    let report = Report {
        tags: options.repositories * options.tags,
        fill_s,
        file_mib: mib(std::fs::metadata(&path)?.len()),
        resident_mib: mib(resident()?),
        put: timed(&some, async |(repo, tag)| {
            let (repo, tag) = (repository(repo)?, tag_of(tag)?);
            Ok(client.put(&repo, &tag, Digest::of(b"another")).await?)
        })
        .await?,
        get: timed(&some, async |(repo, tag)| {
            let (repo, tag) = (repository(repo)?, tag_of(tag)?);
            client.get(&repo, &tag).await?.ok_or("a tag is not there")?;
            Ok(())
        })
        .await?,
        tags_100: timed(&some, tags(100)).await?,
        tags_1000: timed(&some, tags(1000)).await?,
        catalog_100: timed(&some, catalog(100)).await?,
        catalog_1000: timed(&some, catalog(1000)).await?,
        restart_s: 0.0,
    };
    until.cancel();
    taking_part.abort();
    let _ = (
        taking_part.await,
        index.stopped().await,
        registry.stopped().await,
    );
    drop((ring, client));
    let restart_s = restarted(&path).await?;
    Ok(Report {
        restart_s,
        ..report
    })
}

/// How long it takes until the file can be opened and read again.
async fn restarted(path: &PathBuf) -> Outcome<f64> {
    loop {
        let began = Instant::now();
        match TagStore::open(path) {
            Ok(store) => {
                store.page("", 1, None).await?;
                return Ok(began.elapsed().as_secs_f64());
            }
            // What still runs of the first one has it open.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn put(ring: &TagRing, repo: usize, tag: usize) -> Outcome<()> {
    let (repo, tag) = (repository(repo)?, tag_of(tag)?);
    let digest = Digest::of(format!("{repo}:{tag}").as_bytes());
    Ok(ring.put(&repo, &tag, digest).await?)
}

fn repository(number: usize) -> Outcome<RepoName> {
    Ok(format!("team-{:02}/app-{number:06}", number % 20).parse()?)
}

fn tag_of(number: usize) -> Outcome<Tag> {
    Ok(format!("v1.{number}.0").parse()?)
}

/// Asks one after the other.
async fn timed(
    some: &[(usize, usize)],
    ask: impl AsyncFn((usize, usize)) -> Outcome<()>,
) -> Outcome<Took> {
    let mut took = Vec::new();
    for which in some {
        let began = Instant::now();
        ask(*which).await?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)];
    Ok(Took {
        median_ms: at(50),
        p99_ms: at(99),
    })
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
