//! Images as directories: the OCI image layout, pushed and pulled.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use indicatif::ProgressBar;
use kraken_core::Digest;
use kraken_core::storage::link::Linked;
use kraken_registry::Manifest;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::Failure;
use crate::caller::Caller;
use crate::client::{Checked, Registry};
use crate::demo::Bars;
use crate::link::link_blob;
use crate::operator::Operator;
use crate::place;
use crate::store::Store;

/// Bytes read from a file at once.
const CHUNK: usize = 1 << 20;
/// How deep indexes may nest.
const MAX_DEPTH: usize = 4;
/// How often a file is pushed from its first byte when the registry was away meanwhile.
const ATTEMPTS: u32 = 5;
/// How long a registry that was away gets before it is asked again.
const PAUSE: Duration = Duration::from_secs(2);
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Pushes an image out of a layout: `image` names it when the layout holds several.
///
/// # Errors
/// The layout is damaged or does not hold that image, or the registry refuses.
pub async fn push(
    registry: &Registry,
    dir: &Path,
    image: Option<&str>,
    repository: &str,
    tag: &str,
    bars: &Bars,
) -> Result<Digest, Failure> {
    let index = dir.join("index.json");
    if !index.is_file() {
        return Err(Failure::Argument(format!(
            "{} is no directory in the OCI image layout: there is no {}",
            dir.display(),
            index.display()
        )));
    }
    let text = std::fs::read(&index).map_err(Failure::io(format!("read {}", index.display())))?;
    let index: Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::Other(format!("{}: {error}", index.display())))?;
    let digest = choose(&index, image)?;
    push_manifest(
        registry,
        dir,
        repository,
        digest,
        Some(tag),
        bars,
        MAX_DEPTH,
    )
    .await?;
    Ok(digest)
}

/// Pulls an image into a layout, which is made when it is not there.
///
/// # Errors
/// The image is not there, a digest is wrong, or the directory cannot be written. Blobs that came whole stay, so that
/// another try goes on with them; the layout does not list the image then.
pub async fn pull(
    source: &Source,
    (repository, reference): (&str, &str),
    dir: &Path,
    bars: &Bars,
) -> Result<Digest, Failure> {
    place::for_directory(dir)?;
    let (media_type, bytes) = source.registry.manifest(repository, reference).await?;
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(Failure::io(format!("make {}", blobs.display())))?;
    let digest = Digest::of(&bytes);
    let size = bytes.len();
    pull_manifest(source, repository, bytes, dir, bars, MAX_DEPTH).await?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": media_type, "digest": digest.to_string(), "size": size,
            "annotations": {REF_NAME: reference},
        }],
    });
    place::write(&dir.join("index.json"), index.to_string().as_bytes())?;
    place::write(
        &dir.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(digest)
}

/// An agent that blobs are saved from.
#[derive(Debug)]
pub struct Source {
    registry: Registry,
    /// The agent's store, to link to.
    store: Option<Store>,
}

/// A blob that was saved.
#[derive(Debug, Clone, Copy)]
pub struct Saved {
    /// Its length.
    pub bytes: u64,
    /// How its file got its bytes, when that was to be a link.
    pub linked: Option<Linked>,
}

impl Source {
    /// The agent whose registry is at an address. With `link` it is on this host, and files share
    /// their bytes with its own.
    ///
    /// # Errors
    /// The address makes no sense, or the caller's files cannot be used.
    pub fn of(agent: &str, link: bool, caller: &Caller) -> Result<Self, Failure> {
        let store = link.then(|| Operator::of(agent, caller));
        Ok(Self {
            registry: Registry::of(agent, caller)?,
            store: store.transpose()?.map(Store::new),
        })
    }

    /// Writes a blob to a file: under another name until its digest is known to be right.
    ///
    /// # Errors
    /// The blob is not there, its bytes are wrong, or the file cannot be written.
    pub async fn save_blob(
        &self,
        repository: &str,
        digest: Digest,
        path: &Path,
        bars: &Bars,
    ) -> Result<Saved, Failure> {
        let registry = &self.registry;
        if let Some(store) = &self.store {
            let linked = link_blob((registry, store), repository, digest, path).await?;
            return Ok(Saved {
                bytes: linked.1,
                linked: Some(linked.0),
            });
        }
        let (length, stream) = registry.blob(repository, digest).await?;
        let bar = bars.add(&digest.hex()[..10], length);
        let saved = save(stream, digest, path, &bar).await;
        bar.finish();
        let bytes = saved?;
        Ok(Saved {
            bytes,
            linked: None,
        })
    }
}

/// Pushes a file as a blob, and gives its digest. With the digest that it is `known` to have, hosts can
/// pull it meanwhile.
///
/// # Errors
/// The file cannot be read, or the registry refuses: it has another digest.
pub async fn push_file(
    registry: &Registry,
    repository: &str,
    (path, known, is_kept): (&Path, Option<Digest>, bool),
    bars: &Bars,
) -> Result<Digest, Failure> {
    let mut attempts = 1;
    loop {
        match push_file_once(registry, repository, (path, known, is_kept), bars).await {
            // The origin that took it may have been restarted, and the bytes are still here. One that
            // never took any may as well not be there.
            Err((Failure::Away(why) | Failure::Later(why), sent))
                if attempts < ATTEMPTS && sent > 0 =>
            {
                attempts += 1;
                bars.say(&format!(
                    "{why}\n{} is pushed again in {} s, from its beginning (attempt {attempts} of {ATTEMPTS})",
                    path.display(),
                    PAUSE.as_secs()
                ));
                tokio::time::sleep(PAUSE).await;
            }
            pushed => return pushed.map_err(|(error, _)| error),
        }
    }
}

/// An error comes with how many bytes had been sent.
async fn push_file_once(
    registry: &Registry,
    repository: &str,
    (path, known, is_kept): (&Path, Option<Digest>, bool),
    bars: &Bars,
) -> Result<Digest, (Failure, u64)> {
    let unread = |error| (Failure::io(format!("read {}", path.display()))(error), 0);
    let file = tokio::fs::File::open(path).await.map_err(unread)?;
    let length = file.metadata().await.map_err(unread)?.len();
    let name = path.file_name().map_or_else(String::new, |name| {
        name.to_string_lossy().chars().take(10).collect()
    });
    let bar = bars.add(&name, length);
    let told = bar.clone();
    let bytes = ReaderStream::with_capacity(file, CHUNK).inspect(move |chunk| {
        told.inc(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
    });
    let pushed = match known {
        Some(digest) => {
            let wanted = (digest, length, is_kept);
            let pushed = registry.push_known_blob(repository, wanted, bytes);
            pushed.await.map(|()| digest)
        }
        None if is_kept => registry
            .push_kept_blob(repository, bytes)
            .await
            .map(|it| it.0),
        None => registry.push_blob(repository, bytes).await.map(|it| it.0),
    };
    let sent = bar.position();
    bar.finish();
    pushed.map_err(|error| (error, sent))
}

fn choose(index: &Value, image: Option<&str>) -> Result<Digest, Failure> {
    let empty = Vec::new();
    let manifests = index["manifests"].as_array().unwrap_or(&empty);
    let name = |manifest: &Value| {
        manifest["annotations"][REF_NAME]
            .as_str()
            .map(str::to_string)
    };
    let names = || {
        manifests
            .iter()
            .filter_map(name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let found: Vec<_> = manifests
        .iter()
        .filter(|it| image.is_none() || name(it).as_deref() == image)
        .collect();
    let [manifest] = found[..] else {
        let what = if found.is_empty() {
            "does not hold that image"
        } else {
            "holds several images: say which with --image"
        };
        return Err(Failure::Argument(format!(
            "the layout {what} (it has: {})",
            names()
        )));
    };
    let digest = manifest["digest"].as_str().unwrap_or_default();
    digest
        .parse()
        .map_err(|error| Failure::Other(format!("the layout's index: {error}")))
}

async fn push_manifest(
    registry: &Registry,
    dir: &Path,
    repository: &str,
    digest: Digest,
    tag: Option<&str>,
    bars: &Bars,
    depth: usize,
) -> Result<(), Failure> {
    let path = blob_path(dir, digest);
    let bytes = std::fs::read(&path).map_err(Failure::io(format!("read {}", path.display())))?;
    let manifest = parse(&bytes, digest)?;
    for child in manifest.manifests() {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| Failure::Other("the image's indexes nest too deep".into()))?;
        Box::pin(push_manifest(
            registry,
            dir,
            repository,
            child.digest,
            None,
            bars,
            depth,
        ))
        .await?;
    }
    for blob in manifest.blobs().filter(|blob| !blob.is_foreign()) {
        if registry.has_blob(repository, blob.digest).await? {
            continue;
        }
        let path = blob_path(dir, blob.digest);
        let known = Some(blob.digest);
        push_file(registry, repository, (&path, known, false), bars).await?;
    }
    let reference = tag.map_or_else(|| digest.to_string(), str::to_string);
    registry
        .push_manifest(
            repository,
            &reference,
            manifest.media_type().as_str(),
            bytes.into(),
        )
        .await
}

async fn pull_manifest(
    source: &Source,
    repository: &str,
    bytes: Bytes,
    dir: &Path,
    bars: &Bars,
    depth: usize,
) -> Result<(), Failure> {
    let digest = Digest::of(&bytes);
    let manifest = parse(&bytes, digest)?;
    for child in manifest.manifests() {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| Failure::Registry("the image's indexes nest too deep".into()))?;
        let (_, bytes) = source
            .registry
            .manifest(repository, &child.digest.to_string())
            .await?;
        Box::pin(pull_manifest(source, repository, bytes, dir, bars, depth)).await?;
    }
    // An image may list one layer twice.
    let wanted: BTreeSet<_> = manifest
        .blobs()
        .filter(|blob| !blob.is_foreign())
        .map(|blob| blob.digest)
        .collect();
    let saves = wanted.into_iter().map(|blob| async move {
        let path = blob_path(dir, blob);
        if path.exists() {
            return Ok(());
        }
        source
            .save_blob(repository, blob, &path, bars)
            .await
            .map(drop)
    });
    futures::future::try_join_all(saves).await?;
    place::write(&blob_path(dir, digest), &bytes)
}

async fn save(
    mut stream: kraken_core::net::http::ByteStream,
    digest: Digest,
    path: &Path,
    bar: &ProgressBar,
) -> Result<u64, Failure> {
    let doing = || Failure::io(format!("write {}", path.display()));
    let part = place::beside(path)?;
    let file = part.as_file().try_clone().map_err(doing())?;
    let mut file = tokio::fs::File::from_std(file);
    let mut checked = Checked::new(digest);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| Failure::Registry(format!("{digest}: {error}")))?;
        checked.update(&chunk);
        file.write_all(&chunk).await.map_err(doing())?;
        bar.inc(chunk.len() as u64);
    }
    file.sync_all().await.map_err(doing())?;
    let bytes = checked.finish()?;
    place::put(part, path)?;
    Ok(bytes)
}

fn parse(bytes: &[u8], digest: Digest) -> Result<Manifest, Failure> {
    let found = Digest::of(bytes);
    if found != digest {
        return Err(Failure::WrongBytes {
            what: "a manifest".into(),
            expected: digest,
            found,
        });
    }
    Manifest::parse(bytes).map_err(|error| Failure::Other(format!("{digest}: {error}")))
}

fn blob_path(dir: &Path, digest: Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}
