//! What is in a directory: an OCI image layout, or the files of an unpacked image.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const NAME: &str = "org.opencontainers.image.ref.name";

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The digest that a descriptor names.
pub(crate) fn digest_of(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap().to_string()
}

/// The digest of what a tag stands for.
pub(crate) fn digest(layout: &str, tag: &str) -> String {
    digest_of(&descriptor(layout, tag))
}

/// The layers of a tagged image, from the lowest.
pub(crate) fn layers(layout: &str, tag: &str) -> Vec<String> {
    let manifest = document(layout, &digest(layout, tag));
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(digest_of).collect()
}

/// The digest of a tagged image's configuration.
pub(crate) fn config(layout: &str, tag: &str) -> String {
    digest_of(&document(layout, &digest(layout, tag))["config"])
}

/// The digests of the layers of a tagged image, unpacked, as its configuration has them.
pub(crate) fn diff_ids(layout: &str, tag: &str) -> Vec<String> {
    let config = document(layout, &config(layout, tag));
    let ids = config["rootfs"]["diff_ids"].as_array().unwrap().iter();
    ids.map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// Digests of all that belongs to a tag, in the order in which it is named. Every blob must be
/// there and be what its digest says.
pub(crate) fn tree(layout: &str, tag: &str) -> Vec<String> {
    let mut digests = Vec::new();
    visit(layout, &descriptor(layout, tag), &mut digests);
    digests
}

fn visit(layout: &str, descriptor: &Value, digests: &mut Vec<String>) {
    let digest = digest_of(descriptor);
    let bytes = blob(layout, &digest);
    assert_eq!(sha256(&bytes), digest, "in {layout}");
    assert_eq!(json!(bytes.len()), descriptor["size"], "{digest}");
    digests.push(digest);
    let kind = descriptor["mediaType"].as_str().unwrap();
    if !kind.contains("manifest") && !kind.contains("image.index") {
        return;
    }
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    let lists = ["manifests", "layers"].map(|name| document[name].as_array());
    let lists = lists.into_iter().flatten().flatten();
    for child in document.get("config").into_iter().chain(lists) {
        visit(layout, child, digests);
    }
}

/// Writes an index over tagged images, each with its architecture, and tags it; gives its digest.
pub(crate) fn write_index(layout: &str, tag: &str, images: &[(&str, &str)]) -> String {
    let mut manifests = Vec::new();
    for (image, architecture) in images {
        let from = descriptor(layout, image);
        manifests.push(json!({
            "mediaType": from["mediaType"],
            "digest": from["digest"],
            "size": from["size"],
            "platform": {"os": "linux", "architecture": architecture},
        }));
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).to_string();
    let digest = sha256(index.as_bytes());
    fs::write(blob_path(layout, &digest), &index).unwrap();
    let file = format!("{layout}/index.json");
    let mut top: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    top["manifests"].as_array_mut().unwrap().push(json!({
        "mediaType": kind,
        "digest": digest,
        "size": index.len(),
        "annotations": {NAME: tag},
    }));
    fs::write(file, top.to_string()).unwrap();
    digest
}

/// All files under a directory, with what they are and what is in them.
pub(crate) fn files(dir: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![Path::new(dir).to_path_buf()];
    while let Some(dir_left) = left.pop() {
        for entry in fs::read_dir(dir_left).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let what = if meta.is_dir() {
                left.push(path.clone());
                "directory".to_string()
            } else if meta.is_symlink() {
                format!("to {}", path.read_link().unwrap().display())
            } else {
                assert!(meta.is_file(), "{}", path.display());
                let (mode, uid, gid) = (meta.permissions().mode(), meta.uid(), meta.gid());
                let digest = sha256(&fs::read(&path).unwrap());
                format!("{mode:o} {uid}:{gid} {} {digest}", meta.len())
            };
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap();
            found.insert(name.to_string(), what);
        }
    }
    assert!(!found.is_empty(), "nothing in {dir}");
    found
}

fn descriptor(layout: &str, tag: &str) -> Value {
    let index = fs::read(format!("{layout}/index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let mut manifests = index["manifests"].as_array().unwrap().iter();
    let found = manifests.find(|entry| entry["annotations"][NAME] == tag);
    found
        .unwrap_or_else(|| panic!("no {tag} in {layout}: {index}"))
        .clone()
}

fn document(layout: &str, digest: &str) -> Value {
    serde_json::from_slice(&blob(layout, digest)).unwrap()
}

fn blob(layout: &str, digest: &str) -> Vec<u8> {
    let path = blob_path(layout, digest);
    fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn blob_path(layout: &str, digest: &str) -> String {
    format!("{layout}/blobs/{}", digest.replace(':', "/"))
}
