//! What a storage needs and is not there, and what contradicts itself in what is said about it. Nothing is dialled.

use std::env;
use std::path::Path;

use kraken_core::storage::backend::Secret;
use kraken_core::storage::backend::web::{
    Credentials, HttpOptions, RegistryOptions, WebHdfsOptions,
};
use kraken_core::storage::backend::{AzureOptions, GcsOptions, S3Options};

use super::{BackendConfig, RouteConfig, ShadowConfig, words};
use crate::problems::Problems;
use crate::units::url;

/// Storages whose namespaces go to another one before them.
pub(super) fn reached(found: &mut Problems, routes: &[RouteConfig]) {
    let key = |index: usize| format!("backends[{index}].namespace");
    let all = routes.iter().position(|it| it.namespace.is_everything());
    for (index, route) in routes.iter().enumerate() {
        let same = |other: &RouteConfig| other.namespace == route.namespace;
        if let Some(first) = routes[..index].iter().position(same) {
            let what = format!("that is what backends[{first}] matches: one of them is never used");
            found.add(key(index), what);
        } else if let Some(all) = all.filter(|all| *all < index) {
            let what =
                format!("never used, as backends[{all}] matches everything: put that one last");
            found.add(key(index), what);
        }
    }
}

impl BackendConfig {
    /// Whether it makes sense, and has the files that it needs.
    ///
    /// # Errors
    /// With the keys inside it.
    pub(crate) fn check(&self) -> Result<(), Problems> {
        let (key, checked) = match self {
            Self::LocalDisk(dir) => ("local_disk", disk(dir)),
            Self::S3(options) => ("s3", s3(options)),
            Self::Gcs(options) => ("gcs", gcs(options)),
            Self::Azure(options) => ("azure", azure(options)),
            Self::Webhdfs(options) => ("webhdfs", webhdfs(options)),
            Self::Http(options) => ("http", http(options)),
            Self::Registry(options) => ("registry", registry(options)),
            Self::Shadow(pair) => ("shadow", shadow(pair)),
            Self::Noop {} | Self::Memory {} => return Ok(()),
        };
        checked.map_err(|wrong| wrong.under(key))
    }

    /// The directories that it keeps blobs in, with the keys inside it.
    pub(crate) fn directories(&self) -> Vec<(String, &Path)> {
        match self {
            Self::LocalDisk(dir) => vec![("local_disk".into(), dir)],
            Self::Shadow(pair) => [("active", &pair.active), ("shadow", &pair.shadow)]
                .into_iter()
                .flat_map(|(of, backend)| {
                    let inner = backend.directories().into_iter();
                    inner.map(move |(key, dir)| (format!("shadow.{of}.{key}"), dir))
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

type Checked = Result<(), Problems>;

fn disk(dir: &Path) -> Checked {
    let mut found = Problems::default();
    found.of_dir("", dir);
    found.done(())
}

fn s3(options: &S3Options) -> Checked {
    let mut found = Problems::default();
    found.of_name("bucket", &options.bucket);
    found.of_endpoint(options.endpoint.as_deref(), "https://s3.example.com");
    let (id, key) = (&options.access_key_id, &options.secret_access_key);
    for (key, near, is_missing) in [
        (
            "access_key_id",
            "secret_access_key",
            id.is_none() && key.is_some(),
        ),
        (
            "secret_access_key",
            "access_key_id",
            key.is_none() && id.is_some(),
        ),
    ] {
        if is_missing {
            found.missing(
                key,
                near,
                format!("it goes together with {near}: give both"),
            );
        }
    }
    if id.is_none() && options.session_token.is_some() {
        let what = "a token of a temporary access key, which is not given: write access_key_id too";
        found.add("session_token", what);
    }
    if id.is_some() && options.profile.is_some() {
        let what = "credentials are either an access key or in a profile: leave one of them";
        found.add("profile", what);
    }
    let encryption = options.server_side_encryption.as_deref();
    if encryption.is_some_and(|it| !["AES256", "aws:kms"].contains(&it)) {
        found.add(
            "server_side_encryption",
            "AES256 or aws:kms is expected here",
        );
    }
    found.of_secret("access_key_id", id.as_ref());
    found.of_secret("secret_access_key", key.as_ref());
    found.of_secret("session_token", options.session_token.as_ref());
    found.done(())
}

fn gcs(options: &GcsOptions) -> Checked {
    let mut found = Problems::default();
    found.of_name("bucket", &options.bucket);
    found.of_endpoint(
        options.endpoint.as_deref(),
        "https://storage.googleapis.com",
    );
    if let Some(file) = &options.credential_file {
        found.of_file("credential_file", Path::new(file), json);
        if options.anonymous {
            let what =
                "requests are not signed, so credential_file means nothing: leave one of them";
            found.add("anonymous", what);
        }
    }
    found.done(())
}

fn azure(options: &AzureOptions) -> Checked {
    let mut found = Problems::default();
    found.of_name("container", &options.container);
    let endpoint = Some(options.endpoint.as_str());
    found.of_endpoint(endpoint, "https://ACCOUNT.blob.core.windows.net");
    if options.account_key.is_some() && options.sas_token.is_some() {
        let what = "this stands instead of account_key: leave one of them";
        found.add("sas_token", what);
    }
    found.of_secret("account_key", options.account_key.as_ref());
    found.of_secret("sas_token", options.sas_token.as_ref());
    found.done(())
}

fn webhdfs(options: &WebHdfsOptions) -> Checked {
    let mut found = Problems::default();
    if options.namenodes.is_empty() {
        found.add(
            "namenodes",
            "name at least one, such as http://namenode-1:9870",
        );
    }
    for (index, node) in options.namenodes.iter().enumerate() {
        found.at(
            &format!("namenodes[{index}]"),
            url(node, "http://namenode-1:9870"),
        );
    }
    let nodes = options.namenodes.iter().enumerate();
    found.twice(nodes.map(|(index, node)| {
        let node = node.trim_end_matches('/').to_owned();
        (format!("namenodes[{index}]"), node)
    }));
    if !options.root.starts_with('/') {
        let what = format!("{:?} does not begin with a slash", options.root);
        found.add("root", what);
    }
    found.done(())
}

fn http(options: &HttpOptions) -> Checked {
    let mut found = Problems::default();
    let (user, password) = (&options.username, &options.password);
    if options.token.is_some() && (user.is_some() || password.is_some()) {
        let what = "this stands instead of username and password: leave one of both";
        found.add("token", what);
    }
    if user.is_some() != password.is_some() {
        let (key, near) = match user {
            Some(_) => ("password", "username"),
            None => ("username", "password"),
        };
        found.missing(
            key,
            near,
            format!("it goes together with {near}: give both"),
        );
    }
    found.of_secret("password", password.as_ref());
    found.of_secret("token", options.token.as_ref());
    found.of_authorities(options.ca.as_deref(), &options.url);
    found.done(())
}

/// Another registry, as a storage or as a place that images go to.
///
/// # Errors
/// With the keys inside it.
pub(crate) fn registry(options: &RegistryOptions) -> Checked {
    let mut found = Problems::default();
    found.at("url", url(&options.url, "https://registry-1.docker.io"));
    found.of_authorities(options.ca.as_deref(), &options.url);
    let credentials = match &options.credentials {
        None => Ok(()),
        Some(Credentials::Password { username, password }) => {
            let mut found = Problems::default();
            found.of_name("username", username);
            found.of_secret("password", Some(password));
            found.done(()).map_err(|it| it.under("password"))
        }
        Some(Credentials::Helper(name)) => helper(name),
        Some(Credentials::DockerConfig(file)) => {
            let mut found = Problems::default();
            found.of_file("docker_config", file, json);
            found.done(())
        }
    };
    found.of(credentials.map_err(|it| it.under("credentials")));
    found.done(())
}

fn shadow(pair: &ShadowConfig) -> Checked {
    let mut found = Problems::default();
    if pair.active == pair.shadow {
        let what = "this is the storage that is `active`: name another one, or it alone";
        found.add("shadow", what);
    }
    found.of(pair.active.check().map_err(|it| it.under("active")));
    found.of(pair.shadow.check().map_err(|it| it.under("shadow")));
    found.done(())
}

/// The program that says who reads.
fn helper(name: &str) -> Checked {
    let program = format!("docker-credential-{name}");
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = env::split_paths(&path).any(|dir| dir.join(&program).is_file());
    match is_there {
        true => Ok(()),
        false => Err(Problems::one(
            "helper",
            format!("there is no program {program} on the path: install it"),
        )),
    }
}

/// Whether a file that tools of others write is what they write.
fn json(bytes: &[u8]) -> Result<(), String> {
    match serde_json::from_slice(bytes) {
        Ok(serde_json::Value::Object(_)) => Ok(()),
        // What a parser says may quote it.
        _ => Err("this is no object in JSON".into()),
    }
}

fn certificates(bytes: &[u8]) -> Result<(), String> {
    let begin = b"-----BEGIN CERTIFICATE-----";
    let has_one = bytes.windows(begin.len()).any(|it| it == begin);
    has_one
        .then_some(())
        .ok_or_else(|| "there is no certificate in PEM".into())
}

impl Problems {
    fn of_name(&mut self, key: &str, name: &str) {
        if name.is_empty() {
            self.add(key, "a name is expected here, and it is empty");
        }
    }

    fn of_endpoint(&mut self, endpoint: Option<&str>, example: &str) {
        if let Some(endpoint) = endpoint {
            self.at("endpoint", url(endpoint, example));
        }
    }

    fn of_secret(&mut self, key: &str, secret: Option<&Secret>) {
        if let Some(secret) = secret {
            self.at(key, secret.reveal().map_err(words));
        }
    }

    /// The authorities of a server with this URL.
    fn of_authorities(&mut self, ca: Option<&Path>, url: &str) {
        let Some(ca) = ca else { return };
        self.of_file("ca", ca, certificates);
        if url.starts_with("http://") {
            self.add(
                "ca",
                format!("authorities are for https://, and the URL is {url}: leave this out"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn told(text: &str) -> Vec<String> {
        let config: BackendConfig = parse(text).unwrap();
        let found = config.check().err().unwrap_or_default();
        found.all().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_a_storage_needs_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (key, other) = (
            file("key.json", "{\"type\": \"x\"}"),
            file("other", "hunter2"),
        );
        for fine in [
            format!("{{gcs: {{bucket: b, credential_file: {key}}}}}"),
            format!("{{registry: {{url: 'https://r', credentials: {{docker_config: {key}}}}}}}"),
            format!(
                "{{s3: {{bucket: b, access_key_id: {{text: a}}, secret_access_key: {{file: {other}}}}}}}"
            ),
            format!("{{local_disk: {}/not/there/yet}}", dir.path().display()),
        ] {
            assert_eq!(told(&fine), [""; 0], "{fine}");
        }
        for (text, says) in [
            ("{gcs: {bucket: b, credential_file: /none}}".to_owned(), "gcs.credential_file: cannot read /none"),
            (format!("{{gcs: {{bucket: b, credential_file: {other}}}}}"), "no object in JSON"),
            (
                "{registry: {url: 'https://r', credentials: {docker_config: /none}}}".into(),
                "registry.credentials.docker_config: cannot read /none",
            ),
            (
                "{registry: {url: 'https://r', credentials: {helper: no-such-helper}}}".into(),
                "registry.credentials.helper: there is no program docker-credential-no-such-helper",
            ),
            (
                "{registry: {url: 'https://r', credentials: {password: {username: a, password: {file: /none}}}}}"
                    .into(),
                "registry.credentials.password.password: the secret in /none",
            ),
            ("{registry: {url: 'https://r', ca: /none}}".into(), "registry.ca: cannot read /none"),
            (format!("{{http: {{url: 'https://a/{{hex}}', ca: {other}}}}}"), "http.ca: "),
            (
                "{s3: {bucket: b, access_key_id: {env: KRAKEN_TEST_NONE}, secret_access_key: {text: a}}}".into(),
                "s3.access_key_id: the variable KRAKEN_TEST_NONE",
            ),
            (format!("{{local_disk: {other}}}"), "is no directory"),
        ] {
            let told = told(&text).concat();
            assert!(told.contains(says) && !told.contains("hunter"), "{text}: {told}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_told_with_its_key() {
        for (text, says) in [
            (
                "{gcs: {bucket: b, credential_file: /none, anonymous: true}}",
                "gcs.anonymous: ",
            ),
            ("{gcs: {bucket: ''}}", "gcs.bucket: a name is expected here"),
            (
                "{s3: {bucket: b, endpoint: s3.example.com}}",
                "s3.endpoint: \"s3.example.com\" is no URL such as",
            ),
            (
                "{s3: {bucket: b, access_key_id: {text: a}}}",
                "s3.secret_access_key: it goes together",
            ),
            (
                "{s3: {bucket: b, session_token: {text: a}}}",
                "s3.session_token: ",
            ),
            (
                "{s3: {bucket: b, server_side_encryption: x}}",
                "s3.server_side_encryption: AES256",
            ),
            (
                "{s3: {bucket: b, profile: p, access_key_id: {text: a}, secret_access_key: {text: b}}}",
                "s3.profile: ",
            ),
            (
                "{azure: {container: c, endpoint: 'https://a', account_key: {text: a}, sas_token: {text: b}}}",
                "azure.sas_token: this stands instead of account_key",
            ),
            (
                "{webhdfs: {namenodes: ['http://a', 'http://a/'], root: /}}",
                "webhdfs.namenodes[1]: http://a is there",
            ),
            (
                "{webhdfs: {namenodes: [a], root: kraken}}",
                "webhdfs.root: \"kraken\" does not begin",
            ),
            (
                "{http: {url: 'https://a/{hex}', username: a}}",
                "http.password: it goes together with username",
            ),
            (
                "{http: {url: 'https://a/{hex}', token: {text: a}, username: a, password: {text: b}}}",
                "http.token: ",
            ),
            (
                "{registry: {url: r}}",
                "registry.url: \"r\" is no URL such as https://",
            ),
            (
                "{shadow: {active: {local_disk: /a}, shadow: {local_disk: /a}}}",
                "shadow.shadow: this is the storage",
            ),
        ] {
            let told = told(text);
            assert!(told.iter().any(|it| it.contains(says)), "{text}: {told:?}");
        }
    }

    #[test]
    fn a_storage_that_is_never_used_is_told() {
        let told = |namespaces: [&str; 3]| {
            let route = |it: &str| format!("- {{namespace: '{it}', backend: {{noop: {{}}}}}}\n");
            let routes: Vec<RouteConfig> = parse(&namespaces.map(route).concat()).unwrap();
            let mut found = Problems::default();
            reached(&mut found, &routes);
            found
                .all()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(told(["^a", "^b", ""]), [""; 0]);
        let twice = told(["^a", "^b", "^a"]).concat();
        assert!(
            twice.starts_with("backends[2].namespace: that is what backends[0] matches"),
            "{twice}"
        );
        let behind = told(["^a", ".*", "^b"]).concat();
        assert!(
            behind.starts_with("backends[2].namespace: never used, as backends[1]"),
            "{behind}"
        );
    }

    #[test]
    fn directories_are_found_in_pairs_as_well() {
        let config: BackendConfig =
            parse("{shadow: {active: {noop: {}}, shadow: {local_disk: /a}}}").unwrap();
        let found: Vec<(String, &Path)> = config.directories();
        assert_eq!(
            found,
            [("shadow.shadow.local_disk".to_owned(), Path::new("/a"))]
        );
    }
}
