//! S3, Google Cloud Storage and Azure Blob Storage, by servers that speak their protocols.

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use kraken_proto::{Digest, Namespace};
use kraken_storage::backend::{AzureOptions, GcsOptions, Layout, S3Options, Secret};
use kraken_storage::{Backend as _, BackendError, OpendalBackend, testkit};

use crate::servers::{Server, free, installed};
use crate::{MANY, TIMEOUT, client, stream, survives_faults};

/// A root of its own for each.
struct Roots(Cell<u32>);

impl Roots {
    fn new() -> Self {
        Self(Cell::new(0))
    }

    fn next(&self) -> String {
        self.0.set(self.0.get() + 1);
        format!("/root-{}", self.0.get())
    }
}

fn s3(server: SocketAddr, root: &str, key: &str) -> OpendalBackend {
    let secret = |text: &str| Some(Secret::Text(text.into()));
    let mut options = S3Options::new("blobs");
    options.region = Some("us-east-1".into());
    options.endpoint = Some(format!("http://{server}"));
    options.root = Some(root.into());
    options.access_key_id = secret("kraken");
    options.secret_access_key = secret(key);
    OpendalBackend::s3(&options, TIMEOUT).unwrap()
}

/// Moto, which knows all of S3 that is used here, and checks no signatures.
fn moto() -> Option<Server> {
    let program = installed("S3 (moto)", "python/bin/moto_server")?;
    let [addr] = free();
    let mut command = Command::new(program);
    let port = addr.port().to_string();
    command.args(["-H", "127.0.0.1", "-p", &port]);
    Some(Server::start(
        tempfile::tempdir().unwrap(),
        addr,
        &mut command,
    ))
}

/// Rclone's S3 server, which checks signatures, with a bucket on disk.
fn rclone() -> Option<Server> {
    let program = installed("S3 (rclone)", "python/bin/rclone")?;
    let (dir, [addr]) = (tempfile::tempdir().unwrap(), free());
    fs::create_dir_all(dir.path().join("data/blobs")).unwrap();
    let mut command = Command::new(program);
    command
        .args(["serve", "s3", "--auth-key", "kraken,hunter2"])
        .args(["--vfs-cache-mode", "off", "--addr", &addr.to_string()])
        .arg(dir.path().join("data"))
        .env("XDG_CONFIG_HOME", dir.path());
    Some(Server::start(dir, addr, &mut command))
}

async fn put(url: String) {
    let response = client().put(url).send().await.unwrap();
    assert!(response.status().is_success(), "{}", response.status());
}

#[tokio::test]
async fn s3_by_moto() {
    let Some(server) = moto() else { return };
    put(format!("http://{}/blobs", server.addr)).await;
    let roots = Roots::new();
    let make = async || s3(server.addr, &roots.next(), "any");
    testkit::backend_conforms(make).await;
    testkit::backend_lists(&make().await, MANY).await;
    let registry = make().await.layout(Layout::DockerRegistry);
    testkit::backend_lists(&registry, 40).await;
    let flat = make().await.layout(Layout::Identity);
    testkit::backend_lists(&flat, 40).await;
    make().await.ready().await.unwrap();
    survives_faults(server.addr, |addr| s3(addr, "/faults", "any")).await;
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_no_missing_blob() {
    let Some(server) = moto() else { return };
    let backend = s3(server.addr, "/", "any");
    let stat = backend.stat(&Namespace::default(), Digest::of(b"x")).await;
    let error = stat.expect_err("there is no bucket");
    assert!(!matches!(error, BackendError::NotFound(_)), "{error}");
    backend.ready().await.expect_err("there is no bucket");
    put(format!("http://{}/blobs", server.addr)).await;
    let stat = backend.stat(&Namespace::default(), Digest::of(b"x")).await;
    assert_eq!(stat.unwrap(), None);
}

#[tokio::test]
async fn s3_by_rclone_and_its_signatures() {
    let Some(server) = rclone() else { return };
    let roots = Roots::new();
    testkit::backend_conforms(async || s3(server.addr, &roots.next(), "hunter2")).await;
    let wrong = s3(server.addr, "/", "hunter3");
    let (name, digest) = (Namespace::default(), Digest::of(b"abc"));
    for error in [
        wrong.stat(&name, digest).await.map(drop).unwrap_err(),
        wrong
            .write(&name, digest, 3, stream(b"abc"))
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, BackendError::Denied(_)), "{error}");
        assert!(!error.to_string().contains("hunter"), "{error}");
    }
}

/// 5 GiB in parts, and back.
#[tokio::test]
#[ignore = "writes and reads 5 GiB: some minutes"]
async fn s3_by_rclone_with_5_gib() {
    use bytes::Bytes;
    use futures::{StreamExt as _, TryStreamExt as _};
    let Some(server) = rclone() else { return };
    let backend = s3(server.addr, "/huge", "hunter2");
    let (name, length) = (Namespace::default(), 5_u64 << 30);
    let chunk = Bytes::from(testkit::bytes(1 << 20, 5));
    let part = chunk.clone();
    let bytes = futures::stream::repeat_with(move || Ok(part.clone())).take(5 << 10);
    let digest = Digest::of(b"any name will do");
    backend
        .write(&name, digest, length, bytes.boxed())
        .await
        .unwrap();
    assert_eq!(backend.stat(&name, digest).await.unwrap(), Some(length));
    let mut read = backend.read(&name, digest, 0..u64::MAX).await.unwrap();
    let mut at = 0;
    while let Some(bytes) = read.try_next().await.unwrap() {
        for byte in bytes.chunks(4096) {
            let wanted = at % chunk.len();
            let wanted = &chunk[wanted..(wanted + byte.len()).min(chunk.len())];
            assert!(byte[..wanted.len()] == *wanted, "at {at}");
            at += byte.len();
        }
    }
    assert_eq!(at as u64, length);
}

#[tokio::test]
async fn google_cloud_storage() {
    let Some(program) = installed("Google Cloud Storage", "fake-gcs-server") else {
        return;
    };
    let (dir, [addr, front]) = (tempfile::tempdir().unwrap(), free());
    fs::create_dir_all(dir.path().join("data/blobs")).unwrap();
    let url = format!("http://{addr}");
    let mut command = Command::new(program);
    command
        .args(["-scheme", "http", "-host", "127.0.0.1"])
        .args(["-port", &addr.port().to_string()])
        .args(["-external-url", &url, "-public-host", &addr.to_string()])
        .args(["-backend", "filesystem", "-filesystem-root"])
        .arg(dir.path().join("data"));
    let mut server = Server::start(dir, addr, &mut command);
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/backends/gcs_multipart.py"
    );
    let ports = [front.port().to_string(), addr.port().to_string()];
    server.also(front, Command::new("python3").arg(script).args(ports));
    let make = |addr: SocketAddr, root: String| {
        let mut options = GcsOptions::new("blobs");
        options.root = Some(root);
        options.endpoint = Some(format!("http://{addr}"));
        options.anonymous = true;
        OpendalBackend::gcs(&options, TIMEOUT).unwrap()
    };
    let roots = Roots::new();
    testkit::backend_conforms(async || make(front, roots.next())).await;
    testkit::backend_lists(&make(front, roots.next()), MANY).await;
    survives_faults(front, |addr| make(addr, "/faults".into())).await;
}

#[tokio::test]
async fn azure_blob_storage() {
    // The account and the key that every Azurite has.
    const ACCOUNT: &str = "devstoreaccount1";
    const KEY: &str =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
    let Some(program) = installed("Azure Blob Storage", "node_modules/.bin/azurite-blob") else {
        return;
    };
    let (dir, [addr]) = (tempfile::tempdir().unwrap(), free());
    let mut command = Command::new(program);
    command
        .args(["--blobHost", "127.0.0.1"])
        .args(["--blobPort", &addr.port().to_string()])
        .args(["--silent", "--skipApiVersionCheck", "--disableTelemetry"])
        .arg("--location")
        .arg(dir.path());
    let server = Server::start(dir, addr, &mut command);
    let make = |addr: SocketAddr, root: String, key: &str| {
        let mut options = AzureOptions::new("blobs", format!("http://{addr}/{ACCOUNT}"));
        options.root = Some(root);
        options.account_name = Some(ACCOUNT.into());
        options.account_key = Some(Secret::Text(key.into()));
        OpendalBackend::azure(&options, TIMEOUT).unwrap()
    };
    create_container(&server, (ACCOUNT, KEY));
    let roots = Roots::new();
    testkit::backend_conforms(async || make(server.addr, roots.next(), KEY)).await;
    testkit::backend_lists(&make(server.addr, roots.next(), KEY), MANY).await;
    survives_faults(server.addr, |addr| make(addr, "/faults".into(), KEY)).await;
    let wrong = make(server.addr, "/".into(), &KEY.replace("Eby8", "Eby9"));
    let error = wrong.stat(&Namespace::default(), Digest::of(b"x")).await;
    assert!(matches!(error, Err(BackendError::Denied(_))), "{error:?}");
}

/// A container is made by a signed request, which is all that the script does.
fn create_container(server: &Server, (account, key): (&str, &str)) {
    let script = r"
import base64, hashlib, hmac, sys, urllib.request
from email.utils import formatdate
addr, account, key = sys.argv[1:]
date = formatdate(usegmt=True)
headers = f'x-ms-date:{date}\nx-ms-version:2021-08-06\n'
text = 'PUT' + '\n' * 12 + headers + f'/{account}/{account}/blobs\nrestype:container'
mac = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
request = urllib.request.Request(f'http://{addr}/{account}/blobs?restype=container', method='PUT', headers={
    'x-ms-date': date, 'x-ms-version': '2021-08-06',
    'Authorization': f'SharedKey {account}:{base64.b64encode(mac).decode()}'})
print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).status)
";
    let addr = server.addr.to_string();
    let made = Command::new("python3")
        .args(["-c", script, &addr, account, key])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success(), "{said}");
}
