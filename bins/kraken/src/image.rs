//! An image of random layers, for the demo: valid for any runtime, and of no use to it.

use bytes::Bytes;
use futures::Stream;
use kraken_core::Digest;
use rand::Rng as _;
use rand::SeedableRng as _;
use rand_pcg::Pcg64Mcg;
use serde_json::json;

use crate::Failure;
use crate::client::Registry;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The media type of the manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Bytes that a chunk of a layer holds.
const CHUNK: usize = 1 << 20;
/// A tar header, and the unit that tar pads to.
const BLOCK: usize = 512;

/// Pushes an image of `layers` layers of `size` random bytes together, tells how many bytes went,
/// and gives the number of bytes of its blobs.
///
/// # Errors
/// The registry refuses.
pub async fn push_random(
    registry: &Registry,
    repository: &str,
    tag: &str,
    size: u64,
    layers: u32,
    seed: u64,
    progress: impl Fn(u64) + Clone + Send + Sync + 'static,
) -> Result<u64, Failure> {
    let mut pushed = Vec::new();
    for layer in 0..u64::from(layers) {
        let share = size / u64::from(layers) + u64::from(layer < size % u64::from(layers));
        let told = progress.clone();
        let bytes = futures::StreamExt::inspect(
            random_layer(share, seed.wrapping_add(layer)),
            move |chunk| {
                told(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
            },
        );
        pushed.push(registry.push_blob(repository, bytes).await?);
    }
    let diff_ids: Vec<_> = pushed
        .iter()
        .map(|(digest, _)| digest.to_string())
        .collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = Bytes::from(config.to_string());
    let (config_digest, config_len) = registry.push_blob(repository, once(config)).await?;
    let descriptor = |media_type: &str, digest: Digest, size: u64| json!({"mediaType": media_type, "digest": digest.to_string(), "size": size});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(CONFIG, config_digest, config_len),
        "layers": pushed.iter().map(|(digest, len)| descriptor(LAYER, *digest, *len)).collect::<Vec<_>>(),
    });
    let manifest = Bytes::from(manifest.to_string());
    registry
        .push_manifest(repository, tag, MANIFEST, manifest)
        .await?;
    Ok(config_len + pushed.iter().map(|(_, len)| len).sum::<u64>())
}

fn once(bytes: Bytes) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    futures::stream::iter([Ok(bytes)])
}

/// A tar archive with one file of `size` random bytes, chunk by chunk.
fn random_layer(size: u64, seed: u64) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let header = tar_header(&format!("random-{seed:016x}"), size);
    let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).expect("below BLOCK");
    let chunks = size.div_ceil(CHUNK as u64);
    let body = (0..chunks).map(move |index| {
        let left = size - index * CHUNK as u64;
        let mut chunk = vec![0; usize::try_from(left.min(CHUNK as u64)).expect("at most CHUNK")];
        rng.fill_bytes(&mut chunk);
        Bytes::from(chunk)
    });
    // Two empty blocks end an archive.
    let end = Bytes::from(vec![0; padding + 2 * BLOCK]);
    futures::stream::iter(std::iter::once(header).chain(body).chain([end]).map(Ok))
}

/// A header of the POSIX ustar format.
fn tar_header(name: &str, size: u64) -> Bytes {
    let mut header = vec![0_u8; BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.into()
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_layer_is_a_tar_archive_and_the_seed_decides_it() {
        async fn whole(seed: u64) -> Vec<u8> {
            let chunks: Vec<_> = random_layer(1_500_000, seed).collect().await;
            chunks
                .into_iter()
                .flat_map(|chunk| chunk.unwrap())
                .collect()
        }
        let layer = whole(1).await;
        assert_eq!(layer.len() % BLOCK, 0);
        assert_eq!(&layer[257..262], b"ustar");
        assert_eq!(&layer[124..135], format!("{:011o}", 1_500_000).as_bytes());
        let mut header = layer[..BLOCK].to_vec();
        let sum = u32::from_str_radix(std::str::from_utf8(&header[148..154]).unwrap(), 8).unwrap();
        header[148..156].fill(b' ');
        assert_eq!(header.iter().map(|byte| u32::from(*byte)).sum::<u32>(), sum);
        assert_eq!(layer, whole(1).await);
        assert_ne!(layer, whole(2).await);
    }
}
