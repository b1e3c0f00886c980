//! Plain HTTP servers, another registry, and HDFS.

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use kraken_proto::{Digest, Namespace};
use kraken_storage::backend::web::{
    Credentials, HttpBackend, HttpOptions, RegistryBackend, RegistryOptions, WebHdfsBackend,
    WebHdfsOptions,
};
use kraken_storage::backend::{Layout, Secret};
use kraken_storage::testkit::{self, FaultyProxy};
use kraken_storage::{Backend as _, BackendError};

use crate::servers::{Server, free, installed, program};
use crate::{MANY, TIMEOUT, client, large, survives_faults};

fn http(url: String) -> HttpBackend {
    HttpBackend::new(HttpOptions::new(url), TIMEOUT).unwrap()
}

fn put_file(dir: &Path, digest: Digest, bytes: &[u8]) {
    let path = dir.join(&digest.hex()[..2]);
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join(digest.hex()), bytes).unwrap();
}

/// Python's server answers a request for a range with everything.
#[tokio::test]
async fn http_without_ranges() {
    let Some(python) = program("HTTP (Python)", "python3") else {
        return;
    };
    let (dir, [addr]) = (tempfile::tempdir().unwrap(), free());
    let mut command = Command::new(python);
    command
        .args(["-m", "http.server", "--bind", "127.0.0.1"])
        .arg(addr.port().to_string())
        .arg("--directory")
        .arg(dir.path());
    let server = Server::start(dir, addr, &mut command);
    let backend = http(format!("http://{addr}/{{shard}}/{{hex}}"));
    let put = async |digest, bytes: Vec<u8>| put_file(server.dir.path(), digest, &bytes);
    testkit::read_only_backend_conforms(&backend, &Namespace::default(), put).await;
}

#[tokio::test]
async fn http_with_ranges_a_password_and_faults() {
    let Some(nginx) = program("HTTP (nginx)", "nginx") else {
        return;
    };
    let (dir, [addr]) = (tempfile::tempdir().unwrap(), free());
    let root = dir.path().display().to_string();
    // The user nobody, whom nginx changes to, has to get there.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(
        "daemon off; pid {root}/pid; error_log {root}/errors;
         events {{}}
         http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p;
         fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
         server {{ listen {addr}; root {root};
         location /closed/ {{ alias {root}/; if ($http_authorization != 'Basic YTpiYw==') {{ return 401; }} }} }} }}"
    );
    let path = dir.path().join("nginx.conf");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(nginx);
    let server = Server::start(dir, addr, command.arg("-c").arg(path));
    let put = async |digest, bytes: Vec<u8>| put_file(server.dir.path(), digest, &bytes);
    let backend = http(format!("http://{addr}/{{shard}}/{{hex}}"));
    testkit::read_only_backend_conforms(&backend, &Namespace::default(), put).await;

    let (digest, bytes) = large();
    put_file(server.dir.path(), digest, &bytes);
    let proxy = FaultyProxy::before(addr).await.unwrap();
    let spoilt = http(format!("http://{}/{{shard}}/{{hex}}", proxy.addr()));
    let name = Namespace::default();
    testkit::backend_survives_faults(&spoilt, &name, &proxy, (digest, &bytes)).await;

    let with_password = |password: &str| {
        let mut options = HttpOptions::new(format!("http://{addr}/closed/{{shard}}/{{hex}}"));
        options.username = Some("a".into());
        options.password = Some(Secret::Text(password.into()));
        HttpBackend::new(options, TIMEOUT).unwrap()
    };
    let stat = with_password("bc").stat(&name, digest).await;
    assert_eq!(stat.unwrap(), Some(bytes.len() as u64));
    let stat = with_password("bd").stat(&name, digest).await;
    assert!(matches!(stat, Err(BackendError::Denied(_))), "{stat:?}");
}

/// The registry of the Docker project, which wants a password.
#[tokio::test]
async fn another_registry() {
    // "bc", as bcrypt hashes it.
    const HASHED: &str = "a:$2y$05$3sTDZ4TOE/gfRf4x2nusB.Rj1Ow2e0/H7SM2DsLJ3.Qv0.HtBuwKG";
    let Some(registry) = program("another registry", "docker-registry") else {
        return;
    };
    let (dir, [addr]) = (tempfile::tempdir().unwrap(), free());
    let root = dir.path().display().to_string();
    fs::write(dir.path().join("users"), HASHED).unwrap();
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n\
         http: {{addr: \"{addr}\"}}\nauth: {{htpasswd: {{realm: r, path: {root}/users}}}}\n"
    );
    let path = dir.path().join("registry.yml");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(registry);
    let _server = Server::start(dir, addr, command.arg("serve").arg(path));
    let make = |addr: SocketAddr, credentials| {
        let mut options = RegistryOptions::new(format!("http://{addr}"));
        options.repository = "mirror/{namespace}".into();
        options.credentials = credentials;
        RegistryBackend::new(options, TIMEOUT).unwrap()
    };
    let password = |text: &str| {
        Some(Credentials::Password {
            username: "a".into(),
            password: Secret::Text(text.into()),
        })
    };
    let name: Namespace = "library/app".parse().unwrap();
    let put = async |digest, bytes| push(addr, &name, digest, bytes).await;
    let backend = make(addr, password("bc"));
    testkit::read_only_backend_conforms(&backend, &name, put).await;

    let (digest, bytes) = large();
    push(addr, &name, digest, bytes.clone()).await;
    let proxy = FaultyProxy::before(addr).await.unwrap();
    let spoilt = make(proxy.addr(), password("bc"));
    testkit::backend_survives_faults(&spoilt, &name, &proxy, (digest, &bytes)).await;
    for wrong in [password("bd"), None] {
        let stat = make(addr, wrong).stat(&name, digest).await;
        assert!(matches!(stat, Err(BackendError::Denied(_))), "{stat:?}");
    }
}

/// Pushes a blob as a client of the registry does.
async fn push(addr: SocketAddr, name: &Namespace, digest: Digest, bytes: Vec<u8>) {
    let client = client();
    let url = format!("http://{addr}/v2/mirror/{name}/blobs/uploads/");
    let begun = client.post(url).basic_auth("a", Some("bc")).send();
    let begun = begun.await.unwrap();
    assert_eq!(begun.status(), 202);
    let place = begun.headers()["location"].to_str().unwrap();
    let put = client.put(format!("{place}&digest={digest}"));
    let put = put.basic_auth("a", Some("bc")).body(bytes).send();
    assert_eq!(put.await.unwrap().status(), 201);
}

/// A real HDFS: a name node and a data node.
#[tokio::test]
async fn hdfs() {
    let Some(home) = installed("HDFS", "hadoop") else {
        return;
    };
    let (dir, ports) = (tempfile::tempdir().unwrap(), free::<6>());
    let [name_http, name_ipc, data, data_http, data_ipc, nobody] = ports;
    configure(dir.path(), [name_http, name_ipc, data, data_http, data_ipc]);
    let java = |class: &str| {
        let mut command = Command::new(home.join("run"));
        command
            .env("HADOOP_CONFIG", dir.path())
            .arg(format!("org.apache.hadoop.hdfs.server.{class}"));
        command
    };
    let formatted = java("namenode.NameNode")
        .args(["-format", "-nonInteractive"])
        .output();
    let formatted = formatted.unwrap();
    assert!(formatted.status.success(), "{formatted:?}");
    let (mut name_node, mut data_node) = (java("namenode.NameNode"), java("datanode.DataNode"));
    let mut server = Server::start(dir, name_http, &mut name_node);
    server.also(data_http, &mut data_node);
    let make = |namenodes: &[SocketAddr], root: String| {
        let namenodes = namenodes.iter().map(|addr| format!("http://{addr}"));
        let mut options = WebHdfsOptions::new(namenodes.collect(), root);
        options.user = Some("kraken".into());
        WebHdfsBackend::new(options, Layout::DockerRegistry, TIMEOUT).unwrap()
    };
    // The data node has to report before it takes bytes.
    let first = make(&[name_http], "/first".into());
    let (name, digest) = (Namespace::default(), Digest::of(b"abc"));
    let mut tries = 0;
    while let Err(error) = first.write(&name, digest, 3, crate::stream(b"abc")).await {
        tries += 1;
        assert!(tries < 120, "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    let next = Cell::new(0);
    let root = || {
        next.set(next.get() + 1);
        format!("/roots/{}", next.get())
    };
    // The first name node is away: the other is asked.
    let both = [nobody, name_http];
    testkit::backend_conforms(async || make(&both, root())).await;
    testkit::backend_lists(&make(&both, root()), MANY).await;
    first.ready().await.unwrap();
    survives_faults(name_http, |addr| make(&[addr], "/faults".into())).await;
}

fn configure(dir: &Path, [name_http, name_ipc, data, data_http, data_ipc]: [SocketAddr; 5]) {
    let write = |file: &str, pairs: &[(&str, String)]| {
        let properties: String = pairs
            .iter()
            .map(|(name, value)| {
                format!("<property><name>{name}</name><value>{value}</value></property>\n")
            })
            .collect();
        let text = format!("<configuration>\n{properties}</configuration>\n");
        fs::write(dir.join(file), text).unwrap();
    };
    write(
        "core-site.xml",
        &[
            ("fs.defaultFS", format!("hdfs://{name_ipc}")),
            ("hadoop.tmp.dir", dir.join("data").display().to_string()),
        ],
    );
    let (yes, no) = ("true".to_string(), "false".to_string());
    write(
        "hdfs-site.xml",
        &[
            ("dfs.replication", "1".into()),
            ("dfs.permissions.enabled", no.clone()),
            ("dfs.webhdfs.enabled", yes),
            ("dfs.namenode.http-address", name_http.to_string()),
            ("dfs.datanode.address", data.to_string()),
            ("dfs.datanode.http.address", data_http.to_string()),
            ("dfs.datanode.ipc.address", data_ipc.to_string()),
            ("dfs.datanode.hostname", "127.0.0.1".into()),
            ("dfs.namenode.datanode.registration.ip-hostname-check", no),
        ],
    );
}
