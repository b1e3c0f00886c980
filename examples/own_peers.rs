//! Agents without a tracker: a program that knows its peers brings its own `Discovery`,
//! here `KnownPeer` in `lib.rs`.
//!
//! Two agents in one process, over real QUIC on loopback. The first has a blob in its store, the
//! second fetches it from the first: `cargo run -p kraken-examples --example own_peers`.
#![expect(clippy::print_stdout, reason = "an example that shows what it does")]

use kraken_core::net::{CertAuthority, Identity, Quic};
use kraken_core::storage::{MemStore, UploadStore as _};
use kraken_core::{Agent, Digest};
use kraken_examples::KnownPeer;
use tokio::io::AsyncReadExt as _;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let authority = CertAuthority::create()?;
    let identity = |name: &str| -> Result<Identity, Box<dyn std::error::Error>> {
        let (cert, key) = authority.issue("agent", &[name.to_string()])?;
        Ok(Identity::from_pem(&cert, &key, &authority.to_pem().0)?)
    };

    let bytes: Vec<u8> = (0..5_000_000_u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    let store = MemStore::new();
    let upload = store.upload_start().await?;
    store
        .upload_append(&upload, 0, bytes.clone().into())
        .await?;
    let meta = store.upload_commit(&upload, Digest::of(&bytes)).await?;

    let quic = Quic::bind("127.0.0.1:0".parse()?, &identity("seeder")?)?;
    let seeder = Agent::builder(store, quic)
        .discovery(KnownPeer {
            peer: None,
            meta: meta.clone(),
        })
        .spawn()?;
    seeder.seed_all().await?;

    let quic = Quic::bind("127.0.0.1:0".parse()?, &identity("leecher")?)?;
    let peer = Some(seeder.local().clone());
    let leecher = Agent::builder(MemStore::new(), quic)
        .discovery(KnownPeer {
            peer,
            meta: meta.clone(),
        })
        .spawn()?;
    let mut fetched = Vec::new();
    leecher
        .open(meta.digest())
        .await?
        .read_to_end(&mut fetched)
        .await?;
    assert_eq!(fetched, bytes);
    println!(
        "fetched {} bytes of {} from {:?}",
        fetched.len(),
        meta.digest(),
        seeder.local().id
    );

    leecher.shutdown().await;
    seeder.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_comes_to_its_end() {
        super::main().unwrap();
    }
}
