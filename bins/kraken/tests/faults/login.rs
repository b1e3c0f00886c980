//! The tool at registries that want logins, tokens and TLS.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use axum::Router;
use axum::routing::any;
use http::StatusCode;
use kraken_core::Digest;
use kraken_core::net::CertAuthority;
use serde_json::{Value, json};

use crate::common::{Lab, Ran, free_addr, kraken_with, random, within};

/// "bc", as bcrypt hashes it.
const HASHED: &str = "$2y$05$3sTDZ4TOE/gfRf4x2nusB.Rj1Ow2e0/H7SM2DsLJ3.Qv0.HtBuwKG";
const CA: &str = "ca.crt";
const MIRRORED: &str = "registry.example.test";

/// A directory with what the tool and the registries need.
struct Place {
    dir: tempfile::TempDir,
    authority: CertAuthority,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
            authority: CertAuthority::create().unwrap(),
        };
        let (cert, key) = CertAuthority::create().unwrap().to_pem();
        let users = ["ann", "bob"].map(|name| format!("{name}:{HASHED}\n"));
        place.write("token.crt", &cert);
        place.write("token.key", &key);
        place.write("users", users.concat());
        place.write(CA, &place.authority.to_pem().0);
        place
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Runs the tool with `KRAKEN_LOGIN`, or at this home, which has no logins of its own.
    async fn run(&self, login: Option<&str>, arguments: &[&str]) -> Ran {
        let home = self.path("home");
        let mut variables = vec![("HOME", home.as_str()), ("XDG_RUNTIME_DIR", "")];
        variables.extend([("XDG_CONFIG_HOME", ""), ("DOCKER_CONFIG", "")]);
        variables.extend(login.map(|login| ("KRAKEN_LOGIN", login)));
        kraken_with(&variables, arguments).await
    }

    async fn ok(&self, login: Option<&str>, arguments: &[&str]) -> String {
        let ran = self.run(login, arguments).await;
        assert!(ran.status.success(), "{arguments:?}: {ran:?}");
        ran.stdout
    }

    /// What it says when it fails.
    async fn fails(&self, login: Option<&str>, arguments: &[&str]) -> String {
        let ran = self.run(login, arguments).await;
        assert!(!ran.status.success(), "{arguments:?}: {ran:?}");
        ran.stderr
    }

    /// An image in a layout.
    fn image(&self) -> String {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let blob = |kind: &str, bytes: &[u8]| {
            let digest = Digest::of(bytes);
            self.write(&format!("image/blobs/sha256/{}", digest.hex()), bytes);
            json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind,
            "config": blob("application/vnd.oci.image.config.v1+json", b"{}"),
            "layers": [blob("application/vnd.oci.image.layer.v1.tar", &random(3_000_000, 5))],
        });
        let manifest = blob(kind, manifest.to_string().as_bytes());
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        self.write("image/index.json", index.to_string());
        self.write("image/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        self.path("image")
    }
}

/// A proxy that gives tokens, and an agent where only these grant.
async fn with_tokens(place: &Place) -> Lab {
    let realm = Mutex::new(String::new());
    Lab::start_with(2, 1, |role, config| match role {
        "proxy" => {
            let listen = config["listen"].as_str().unwrap();
            *realm.lock().unwrap() = format!("http://{listen}/v2/token");
            config["access"] = json!({
                "users_file": place.path("users"),
                "tokens": {"realm": *realm.lock().unwrap(), "keys": [place.path("token.key")]},
                "rules": [
                    {"users": ["ann"], "repositories": "^team/", "may": ["pull", "push"]},
                    {"users": ["bob"], "may": ["pull"]},
                    {"repositories": "^public/", "may": ["pull"]},
                ],
            });
        }
        "agent" => {
            config["access"] = json!({"token_server": {
                "realm": *realm.lock().unwrap(), "service": "kraken", "issuer": "kraken",
                "keys": [place.path("token.crt")],
            }});
        }
        _ => {}
    })
    .await
}

async fn tokens() {
    let place = Place::new();
    let lab = with_tokens(&place).await;
    let (proxy, agent) = (&*lab.host("proxy"), &*lab.host("agent-1"));
    let (ann, bob) = (Some("ann:bc"), Some("bob:bc"));
    let image = place.image();
    let push = ["push", &image, "team/app:v1", "--proxy", proxy];
    let said = place.fails(None, &push).await;
    assert!(said.contains("set KRAKEN_LOGIN=name:password"), "{said}");
    let said = place.fails(Some("ann:wrong"), &push).await;
    assert!(said.contains("answers 401 Unauthorized to ann"), "{said}");
    assert!(
        said.contains("the login is what KRAKEN_LOGIN says"),
        "{said}"
    );
    let said = place.fails(Some("ann"), &push).await;
    assert!(said.contains("KRAKEN_LOGIN is not name:password"), "{said}");
    let said = place.fails(bob, &push).await;
    assert!(said.contains("bob may not do this"), "{said}");
    place.ok(ann, &push).await;

    let pulled = place.path("pulled");
    let pull = ["pull", "team/app:v1", &pulled, "--agent", agent];
    let said = place.fails(None, &pull).await;
    assert!(said.contains("set KRAKEN_LOGIN=name:password"), "{said}");
    place.ok(bob, &pull).await;
    let config = format!("blobs/sha256/{}", Digest::of(b"{}").hex());
    assert_eq!(fs::read(Path::new(&pulled).join(config)).unwrap(), b"{}");

    // A body that cannot be sent a second time.
    let file = place.write("file", random(2_000_000, 6));
    let digest = Digest::of(&random(2_000_000, 6)).to_string();
    let put = [
        "blob",
        "put",
        &file,
        "--namespace",
        "team/files",
        "--proxy",
        proxy,
    ];
    let known = [&put[..], &["--digest", &digest]].concat();
    let said = place.fails(bob, &known).await;
    assert!(said.contains("bob may not do this"), "{said}");
    assert_eq!(place.ok(ann, &known).await.trim(), digest);
    assert_eq!(place.ok(ann, &put).await.trim(), digest);
    let copy = place.path("copy");
    let get = [
        "blob",
        "get",
        &digest,
        "-o",
        &copy,
        "--namespace",
        "team/files",
        "--agent",
        agent,
    ];
    place.ok(bob, &get).await;
    assert_eq!(fs::read(copy).unwrap(), random(2_000_000, 6));

    // The origins by whoever may pull all, and a host by the proxy's tokens.
    let preheat = [
        "preheat",
        "team/app:v1",
        "--proxy",
        proxy,
        "--hosts",
        agent,
        "--json",
    ];
    let said = place.fails(ann, &preheat).await;
    assert!(said.contains("answers 40"), "{said}");
    let told = place.ok(bob, &preheat).await;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["ready"], 1, "{told}");
    logins_of_files(&place, (proxy, agent)).await;
}

/// Those that docker and podman keep.
async fn logins_of_files(place: &Place, (proxy, agent): (&str, &str)) {
    let to = place.path("by-file");
    let pull = ["pull", "team/app:v1", &to, "--agent", agent];
    // bob:bc
    let auths = json!({"auths": {agent: {"auth": "Ym9iOmJj"}}}).to_string();
    let file = place.write("home/.docker/config.json", &auths);
    place.ok(None, &pull).await;
    // What the variable says counts before it.
    let said = place.fails(Some("bob:wrong"), &pull).await;
    assert!(said.contains("401 Unauthorized to bob"), "{said}");
    // Another registry's login is not sent.
    let pull_there = ["pull", "team/app:v1", &to, "--agent", proxy];
    let said = place.fails(None, &pull_there).await;
    assert!(
        said.contains(&format!("a login was looked for in {file}")),
        "{said}"
    );
    let helped = json!({"auths": {agent: {}}, "credsStore": "none-such"}).to_string();
    place.write("home/.docker/config.json", helped);
    let said = place.fails(None, &pull).await;
    let helper = format!("the credential helper docker-credential-none-such in {file}");
    assert!(said.contains(&helper), "{said}");
    let named = place.write("auth.json", &auths);
    let variables = [("REGISTRY_AUTH_FILE", named.as_str())];
    let ran = kraken_with(&variables, &pull).await;
    assert!(ran.status.success(), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tool_gets_tokens_and_says_what_is_missing() {
    within(300, "tokens", tokens()).await;
}

#[tokio::test]
async fn a_password_goes_to_no_token_server_elsewhere_without_tls() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    // An address for documentation: nobody has it.
    let challenge = "Bearer realm=\"http://192.0.2.1/token\",service=\"x\"";
    let refuse = async move || {
        (
            StatusCode::UNAUTHORIZED,
            [("www-authenticate", challenge)],
            "no",
        )
    };
    let app = Router::new().route("/{*all}", any(refuse));
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let place = Place::new();
    let to = place.path("to");
    let pull = ["pull", "team/app:v1", &to, "--agent", &addr];
    let said = place.fails(Some("ann:bc"), &pull).await;
    assert!(said.contains("no TLS and is not on this host"), "{said}");
    serving.abort();
}

async fn tls() {
    let place = Place::new();
    let (cert, key) = place
        .authority
        .issue("server", &["127.0.0.1".into()])
        .unwrap();
    let tls = json!({
        "cert": place.write("server.crt", cert), "key": place.write("server.key", key),
    });
    let lab = Lab::start_under(&place.authority, free_addr(), (1, 1), |role, config| {
        if matches!(role, "proxy" | "agent") {
            config["client_tls"] = tls.clone();
        }
        if role == "agent" {
            config["own_names"] = json!([MIRRORED]);
        }
        if role == "proxy" {
            let rule = json!({"users": ["ci"], "may": ["pull", "push"]});
            config["access"] = json!({"rules": [rule]});
            config["client_tls"]["clients_ca"] = json!(place.path(CA));
        }
    })
    .await;
    let proxy = format!("https://{}", lab.host("proxy"));
    let agent = format!("https://{}", lab.host("agent-1"));
    let ca = ["--ca", &place.path(CA)];
    let ci = CertAuthority::issue(&place.authority, "ci", &["ci".into()]).unwrap();
    let (cert, key) = (place.write("ci.crt", ci.0), place.write("ci.key", ci.1));
    let image = place.image();
    let push = ["push", &image, "team/app:v1", "--proxy", &proxy];
    let said = place.fails(None, &push).await;
    assert!(said.contains("name its authority with --ca"), "{said}");
    let push = [&push[..], &ca].concat();
    place.fails(None, &push).await;
    let alone = [&push[..], &["--cert", &cert]].concat();
    assert!(place.fails(None, &alone).await.contains("--key"));
    place
        .ok(
            None,
            &[&push[..], &["--cert", &cert, "--key", &key]].concat(),
        )
        .await;
    let to = place.path("to");
    let pull = ["pull", "team/app:v1", &to, "--agent", &agent];
    place.ok(None, &[&pull[..], &ca].concat()).await;

    let plain = ["pull", "team/app:v1", &to, "--agent", &lab.host("agent-1")];
    let said = place.fails(None, &plain).await;
    assert!(said.contains("begin its address with https://"), "{said}");

    let store = ["store", "ls", "--process", &agent];
    let said = place.fails(None, &store).await;
    assert!(said.contains("name its authority with --ca"), "{said}");
    let origin = format!("https://{}", lab.host("origin-1"));
    let of_origin = [&["store", "ls", "--process", &origin], &ca[..]].concat();
    let said = place.fails(None, &of_origin).await;
    assert!(said.contains("a certificate of the cluster"), "{said}");
    let (cert, key) = (lab.path("operator.crt"), lab.path("operator.key"));
    let issued = lab.authority().issue("operator", &["127.0.0.1".into()]);
    let (certificate, its_key) = issued.unwrap();
    fs::write(&cert, certificate).unwrap();
    fs::write(&key, its_key).unwrap();
    let member = [
        "--cert",
        cert.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
    ];
    place.ok(None, &[&of_origin[..], &member].concat()).await;
    let said = place.ok(None, &[&store[..], &ca].concat()).await;
    assert!(said.contains(&Digest::of(b"{}").to_string()), "{said}");

    // The authority of an agent's clients, with no certificate or one of another: the agent wants none.
    let strange = CertAuthority::create().unwrap();
    let strange = strange.issue("operator", &["operator".into()]).unwrap();
    let cert = place.write("strange.crt", strange.0);
    let key = place.write("strange.key", strange.1);
    for shown in [&[][..], &["--cert", &cert, "--key", &key]] {
        let health = [&["health", &agent], &ca[..], shown].concat();
        assert!(place.ok(None, &health).await.contains("ready"));
        let digest = Digest::of(b"{}").to_string();
        let explain = [&["explain", &digest, "--agent", &agent], &ca[..], shown].concat();
        assert!(place.ok(None, &explain).await.contains(&digest));
    }

    let preload = ["preload", "team/app:v1", "--agent", &agent];
    let preload = [&preload[..], &ca].concat();
    let said = place.fails(None, &preload).await;
    assert!(said.contains("knows no runtime to preload into"), "{said}");
    let from_here = [&preload[..], &["--runtime", "podman"]].concat();
    let said = place.fails(None, &from_here).await;
    assert!(said.contains("by plain HTTP"), "{said}");

    let root = place.path("root");
    let runtime = |what| {
        [
            "runtime",
            what,
            "--runtime",
            "containerd,podman",
            "--root",
            root.as_str(),
        ]
    };
    let told = format!("the agent mirrors {MIRRORED}");
    let named = ["--agent", &agent, "--upstream", MIRRORED];
    let install = [&runtime("install")[..], &named, &ca].concat();
    let said = place.ok(None, &install).await;
    assert!(said.contains(&told), "{said}");
    // It knows the authority from there.
    let said = place.ok(None, &runtime("check")).await;
    assert!(said.contains(&told), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tool_speaks_tls_to_proxies_and_agents() {
    within(300, "TLS", tls()).await;
}
