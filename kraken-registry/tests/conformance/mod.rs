//! The rules of the OCI distribution specification, row by row of `cases.txt`, against any registry.

use std::collections::BTreeMap;

use kraken_proto::Digest;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

const CASES: &str = include_str!("cases.txt");
const MEDIA: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const BLOB: &str = "0123456789";
/// What the blob's name is by the other algorithm of the specification.
const SHA512: &str = "sha512:bb96c2fc40d2d54617d6f276febe571f623a8dadf0b734855299b0e107fda32c\
    f6b69f2da32b36445d73690b93cbd0f7bfc20e0f7f28553d2a4428f23b716e90";

/// Where the registries are: one that takes pushes, one that serves the same without them.
pub(crate) struct Registries {
    pub(crate) push: String,
    pub(crate) read: String,
}

impl Registries {
    /// Asks all rows, and gives those whose answers are not as they must be; and how many were asked.
    pub(crate) async fn check(&self) -> (Vec<String>, usize) {
        // The second test of a process finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (mut wrong, mut asked) = (Vec::new(), 0);
        for (number, line) in CASES.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fields: Vec<_> = line.split('|').map(str::trim).collect();
            let [who, given, request, headers, body, status, answer] = fields[..] else {
                panic!("line {}: seven fields, not {}", number + 1, fields.len());
            };
            for (letter, base) in [('P', &self.push), ('A', &self.read)] {
                if !who.contains(letter) {
                    continue;
                }
                let repo = format!("c{}-{}/rules", number + 1, letter.to_lowercase());
                let mut world = World::new(&self.push, repo);
                world.prepare(given).await;
                let response = world.ask(base, request, headers, body).await;
                asked += 1;
                if let Err(what) = world.judge(response, status, answer).await {
                    wrong.push(format!(
                        "line {} at {letter}: {line}\n    {what}",
                        number + 1
                    ));
                }
            }
        }
        (wrong, asked)
    }
}

/// One row's repositories.
struct World {
    http: Client,
    base: String,
    repo: String,
    upload: String,
}

impl World {
    fn new(base: &str, repo: String) -> Self {
        Self {
            http: Client::builder().no_proxy().build().unwrap(),
            base: base.to_owned(),
            repo,
            upload: String::new(),
        }
    }

    fn other(&self) -> String {
        format!("{}-other", self.repo)
    }

    /// What is called by a name.
    fn document(name: &str) -> Vec<u8> {
        if let Some(count) = name.strip_prefix("zeros:") {
            return vec![b'0'; count.parse().unwrap()];
        }
        let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
        let config = describe("application/x.config", b"{}");
        let layer = describe("application/x.layer", BLOB.as_bytes());
        let image =
            json!({"schemaVersion": 2, "mediaType": MEDIA, "config": config, "layers": [layer]});
        let manifest = image.to_string();
        let subject = describe(MEDIA, manifest.as_bytes());
        let with = |more: Value| {
            let mut image = image.clone();
            let more = more.as_object().unwrap().clone();
            image.as_object_mut().unwrap().extend(more);
            image.to_string()
        };
        let absent = describe("application/x.layer", b"missing");
        let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar";
        let foreign = json!({"mediaType": foreign, "digest": Digest::of(b"foreign"), "size": 7});
        let described512 =
            json!({"mediaType": "application/x.layer", "digest": SHA512, "size": 10});
        match name {
            "blob" => BLOB.into(),
            "config" => "{}".into(),
            "empty" => String::new(),
            "half" => BLOB[..5].into(),
            "missing" => "missing".into(),
            "manifest" => manifest.clone(),
            "docker" => with(json!({"mediaType": DOCKER})),
            "index" => {
                json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [subject]}).to_string()
            }
            "referrer" => with(json!({
                "subject": subject, "artifactType": "application/x.test", "annotations": {"k": "v"},
            })),
            // Its kind is that of its config.
            "referrer2" => with(json!({"subject": subject, "annotations": {"n": "2"}})),
            "indexreferrer" => json!({
                "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": subject,
            })
            .to_string(),
            "fallback" => {
                let referrer = Self::document("referrer");
                let mut descriptor = describe(MEDIA, &referrer);
                descriptor["artifactType"] = "application/x.test".into();
                json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]})
                    .to_string()
            }
            "lonely" => with(json!({"layers": [absent]})),
            "lonelyindex" => {
                json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [absent]}).to_string()
            }
            "large" => with(json!({"annotations": {"filler": "x".repeat(4_000_000)}})),
            "foreign" => with(json!({"layers": [foreign]})),
            "layer512" => with(json!({"layers": [described512]})),
            "subject512" => with(json!({"subject": described512})),
            "index512" => {
                json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described512]})
                    .to_string()
            }
            "extra" => with(json!({"custom": {"anything": [1, 2, 3]}})),
            _ => panic!("no document {name}"),
        }
        .into_bytes()
    }

    fn digest(name: &str) -> String {
        let name = if name == "zeros" {
            "zeros:1000000"
        } else {
            name
        };
        Digest::of(&Self::document(name)).to_string()
    }

    /// A text with what its braces stand for.
    fn fill(&self, text: &str) -> String {
        let mut filled = text
            .replace("{repo}", &self.repo)
            .replace("{other}", &self.other())
            .replace("{upload}", &self.upload)
            .replace("{sha512}", SHA512)
            .replace("{media}", MEDIA)
            .replace("{indexmedia}", INDEX);
        for name in [
            "blob",
            "config",
            "empty",
            "half",
            "missing",
            "manifest",
            "index",
            "referrer2",
            "referrer",
            "zeros",
        ] {
            let braced = format!("{{{name}}}");
            if filled.contains(&braced) {
                filled = filled.replace(&braced, &Self::digest(name));
            }
        }
        filled
    }

    async fn send(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Response {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let request = request.header("content-type", kind).body(body);
        request.send().await.unwrap()
    }

    /// Does something that must succeed.
    async fn make(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) {
        let response = self.send(method.clone(), path, kind, body).await;
        let status = response.status();
        let said = response.text().await.unwrap();
        assert!(status.is_success(), "{method} {path}: {status} {said}");
    }

    async fn blob(&self, repo: &str, name: &str) {
        let digest = Self::digest(name);
        let path = format!("/v2/{repo}/blobs/uploads/?digest={digest}");
        let kind = "application/octet-stream";
        self.make(Method::POST, &path, kind, Self::document(name))
            .await;
    }

    async fn manifest(&self, repo: &str, name: &str, reference: &str) {
        let kind = match name {
            "index" | "indexreferrer" | "fallback" => INDEX,
            "docker" => DOCKER,
            _ => MEDIA,
        };
        let path = format!("/v2/{repo}/manifests/{reference}");
        self.make(Method::PUT, &path, kind, Self::document(name))
            .await;
    }

    async fn delete(&self, path: &str) {
        let path = self.fill(path);
        self.make(Method::DELETE, &path, "", Vec::new()).await;
    }

    async fn parts(&self, repo: &str) {
        self.blob(repo, "config").await;
        self.blob(repo, "blob").await;
    }

    async fn image(&self, repo: &str) {
        self.parts(repo).await;
        self.manifest(repo, "manifest", "v1").await;
    }

    async fn referrer(&self, repo: &str, name: &str) {
        self.manifest(repo, name, &Self::digest(name)).await;
    }

    async fn begin(&mut self, first: &str) {
        let path = format!("/v2/{}/blobs/uploads/", self.repo);
        let response = self.send(Method::POST, &path, "", Vec::new()).await;
        self.upload = Self::location(&response);
        if !first.is_empty() {
            let kind = "application/octet-stream";
            let body = first.as_bytes().to_vec();
            let response = self.send(Method::PATCH, &self.upload, kind, body).await;
            self.upload = Self::location(&response);
        }
    }

    fn location(response: &Response) -> String {
        let location = response.headers()["location"].to_str().unwrap();
        match location.split_once("/v2/") {
            Some((_, path)) => format!("/v2/{path}"),
            None => location.to_owned(),
        }
    }

    /// Makes what a row says is there before.
    async fn prepare(&mut self, given: &str) {
        let (repo, other) = (self.repo.clone(), self.other());
        let blob = "/v2/{repo}/blobs/{blob}";
        let manifest = "/v2/{repo}/manifests/{manifest}";
        match given {
            "" => {}
            "blob" => self.blob(&repo, "blob").await,
            "empty" => self.blob(&repo, "empty").await,
            "parts" => self.parts(&repo).await,
            "image" => self.image(&repo).await,
            "docker" => {
                self.parts(&repo).await;
                self.manifest(&repo, "docker", "v1").await;
            }
            "untagged" => {
                self.parts(&repo).await;
                self.referrer(&repo, "manifest").await;
            }
            "tags3" => {
                self.image(&repo).await;
                self.delete("/v2/{repo}/manifests/v1").await;
                for tag in ["b", "c", "a"] {
                    self.manifest(&repo, "manifest", tag).await;
                }
            }
            "index" => {
                self.image(&repo).await;
                self.manifest(&repo, "index", "multi").await;
            }
            "upload" => self.begin("").await,
            "upload5" => self.begin(&BLOB[..5]).await,
            "cancelled" => {
                self.begin(&BLOB[..5]).await;
                self.delete("{upload}").await;
            }
            "finished" => {
                self.begin(BLOB).await;
                let finish = self.fill("{upload}?digest={blob}");
                self.make(Method::PUT, &finish, "", Vec::new()).await;
            }
            "other-blob" => self.blob(&other, "blob").await,
            "mounted" => {
                self.blob(&other, "blob").await;
                let mount = self.fill("/v2/{repo}/blobs/uploads/?mount={blob}&from={other}");
                self.make(Method::POST, &mount, "", Vec::new()).await;
            }
            "referrer" | "referrers2" => {
                self.image(&repo).await;
                self.referrer(&repo, "referrer").await;
                if given == "referrers2" {
                    self.referrer(&repo, "referrer2").await;
                }
            }
            "referrer-first" => {
                self.parts(&repo).await;
                self.referrer(&repo, "referrer").await;
                self.manifest(&repo, "manifest", "v1").await;
            }
            "index-referrer" => {
                self.image(&repo).await;
                self.referrer(&repo, "indexreferrer").await;
            }
            "fallback" => {
                // As a client did that knew of no list: the referrer is not in this repository's.
                self.image(&other).await;
                self.referrer(&other, "referrer").await;
                self.image(&repo).await;
                let tag = Self::digest("manifest").replace(':', "-");
                self.manifest(&repo, "fallback", &tag).await;
            }
            "gone-tag" => {
                self.image(&repo).await;
                self.delete("/v2/{repo}/manifests/v1").await;
            }
            "gone-manifest" | "came-back" => {
                self.image(&repo).await;
                self.delete(manifest).await;
                if given == "came-back" {
                    self.manifest(&repo, "manifest", "v1").await;
                }
            }
            "gone-both-tags" => {
                self.image(&repo).await;
                self.manifest(&repo, "manifest", "v2").await;
                self.delete(manifest).await;
            }
            "gone-in-other" => {
                self.image(&repo).await;
                self.image(&other).await;
                self.delete("/v2/{other}/manifests/{manifest}").await;
            }
            "gone-blob" | "blob-came-back" | "blob-mounted-back" => {
                self.parts(&repo).await;
                self.parts(&other).await;
                self.delete(blob).await;
                match given {
                    "blob-came-back" => self.blob(&repo, "blob").await,
                    "blob-mounted-back" => {
                        let mount =
                            self.fill("/v2/{repo}/blobs/uploads/?mount={blob}&from={other}");
                        self.make(Method::POST, &mount, "", Vec::new()).await;
                    }
                    _ => {}
                }
            }
            "gone-referrer" => {
                self.image(&repo).await;
                self.referrer(&repo, "referrer").await;
                self.delete("/v2/{repo}/manifests/{referrer}").await;
            }
            "gone-subject" => {
                self.image(&repo).await;
                self.referrer(&repo, "referrer").await;
                self.delete(manifest).await;
            }
            _ => panic!("nothing is called {given}"),
        }
    }

    async fn ask(&self, base: &str, request: &str, headers: &str, body: &str) -> Response {
        let (method, path) = request.split_once(' ').unwrap();
        let url = format!("{base}{}", self.fill(path));
        let mut asked = self.http.request(method.parse().unwrap(), url);
        for header in headers.split("; ").filter(|it| !it.is_empty()) {
            let (name, value) = header.split_once('=').unwrap();
            asked = asked.header(name, self.fill(value));
        }
        if !["GET", "HEAD"].contains(&method) {
            asked = asked.body(match body.strip_prefix('@') {
                Some(name) => Self::document(name),
                None => body.as_bytes().to_vec(),
            });
        }
        asked.send().await.unwrap()
    }

    async fn judge(&self, response: Response, status: &str, answer: &str) -> Result<(), String> {
        let (status, code) = status.split_once(' ').unwrap_or((status, ""));
        let found = response.status();
        let mut headers = BTreeMap::<String, String>::new();
        for (name, value) in response.headers() {
            let values = headers.entry(name.to_string()).or_default();
            *values = format!("{values}{}", String::from_utf8_lossy(value.as_bytes()));
        }
        let body = response.bytes().await.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&body);
        let short: String = text.chars().take(300).collect();
        if found.as_str() != status {
            return Err(format!("{found}: {short}"));
        }
        if !code.is_empty() {
            let error: Value = serde_json::from_slice(&body).map_err(|_| short.clone())?;
            if error["errors"][0]["code"] != code || !error["errors"][0]["message"].is_string() {
                return Err(format!("not {code}: {short}"));
            }
        }
        for want in answer.split("; ").filter(|it| !it.is_empty()) {
            let holds = self.holds(want, &headers, &body, &text);
            if !holds {
                return Err(format!("not {want}: {headers:?} {short}"));
            }
        }
        Ok(())
    }

    fn holds(
        &self,
        want: &str,
        headers: &BTreeMap<String, String>,
        body: &[u8],
        text: &str,
    ) -> bool {
        if let Some(absent) = want.strip_prefix('!') {
            return !headers.contains_key(absent);
        }
        let end = want.find(['=', '~', '!']).unwrap();
        let (name, rest) = want.split_at(end);
        let (operator, value) = match rest.strip_prefix("!~") {
            Some(value) => ("!~", value),
            None => rest.split_at(1),
        };
        let value = self.fill(value);
        match (name, operator) {
            ("len", _) => body.len().to_string() == value,
            ("body", "=") => match value.strip_prefix('@') {
                Some(document) => body == Self::document(document),
                None => text == value,
            },
            ("body", "~") => text.contains(&value),
            ("body", _) => !text.contains(&value),
            (name, "=") => headers.get(name) == Some(&value),
            (name, "!~") => !headers.get(name).is_some_and(|it| it.contains(&value)),
            (name, _) => headers.get(name).is_some_and(|it| it.contains(&value)),
        }
    }
}
