//! Who asks registries: whose login is shown, and which certificates are trusted.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kraken_core::net::http::{BaseUrl, HttpClient, OutsideTrust};
use kraken_core::storage::BackendError;
use kraken_core::storage::backend::Secret;
use kraken_core::storage::backend::web::{Credentials, RegistryLogin};

use crate::Failure;

/// The variable with a name and a password.
const LOGIN: &str = "KRAKEN_LOGIN";
/// How long a token server may take.
const TOKEN: Duration = Duration::from_secs(30);

/// Who asks. Clones share it.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    trust: OutsideTrust,
    plain: HttpClient,
    /// Made when first needed: it reads certificates.
    secure: Mutex<Option<HttpClient>>,
    credentials: Vec<Credentials>,
    /// Where the login is, or was looked for.
    found_in: String,
}

impl Caller {
    /// Whoever `KRAKEN_LOGIN=name:password` says; without it, whoever is logged in at a registry according
    /// to the files of podman and docker.
    ///
    /// # Errors
    /// `KRAKEN_LOGIN` holds no name and password, or the TLS library refuses its own defaults.
    pub fn from_env(trust: OutsideTrust) -> Result<Self, Failure> {
        // As with all variables, an empty one is none.
        let login = env::var_os(LOGIN).filter(|login| !login.is_empty());
        let (credentials, found_in) = match login.map(std::ffi::OsString::into_string) {
            Some(Ok(login)) => (vec![password(&login)?], LOGIN.to_owned()),
            Some(Err(_)) => return Err(no_login()),
            None => {
                let files = files(|name| env::var_os(name).map(PathBuf::from));
                let shown: Vec<_> = files.iter().map(|it| it.display().to_string()).collect();
                let configs = files.into_iter().map(Credentials::DockerConfig);
                (configs.collect(), shown.join(", "))
            }
        };
        let plain = HttpClient::new(None).map_err(|error| Failure::Registry(error.to_string()))?;
        Ok(Self(Arc::new(Inner {
            trust,
            plain,
            secure: Mutex::default(),
            credentials,
            found_in,
        })))
    }

    /// A client of what is at a base URL.
    ///
    /// # Errors
    /// The certificates that are trusted or shown cannot be used.
    pub fn http(&self, base: &BaseUrl) -> Result<HttpClient, Failure> {
        match is_secure(base) {
            true => self.secure(),
            false => Ok(self.0.plain.clone()),
        }
    }

    /// What proves to a registry who asks.
    pub(crate) fn login(&self, base: &BaseUrl) -> Result<RegistryLogin, Failure> {
        // A registry without TLS may have a token server with it.
        let client = match self.secure() {
            Err(error) if is_secure(base) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "token servers with TLS cannot be asked");
                self.0.plain.raw()
            }
            Ok(client) => client.raw(),
        };
        let credentials = self.0.credentials.clone();
        let login = RegistryLogin::new(base.as_str(), credentials, client, TOKEN);
        login.map_err(|error| self.refused(base, error))
    }

    fn secure(&self) -> Result<HttpClient, Failure> {
        let mut secure = self.0.secure.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*secure {
            return Ok(client.clone());
        }
        let client = HttpClient::outside(&self.0.trust);
        let client = client.map_err(|error| Failure::Other(error.to_string()))?;
        Ok(secure.insert(client).clone())
    }

    /// Why a registry's question could not be answered, and what to do about it.
    pub(crate) fn refused(&self, base: &BaseUrl, error: BackendError) -> Failure {
        match error {
            BackendError::Denied(why) => {
                Failure::Registry(format!("{base}: {why}; {}", self.advice()))
            }
            BackendError::Unavailable(why) | BackendError::Other(why) => {
                Failure::Registry(format!("{base}: no token: {why}"))
            }
            error => Failure::Registry(format!("{base}: no token: {error}")),
        }
    }

    /// What whoever was refused can do.
    pub(crate) fn advice(&self) -> String {
        let how = format!("set {LOGIN}=name:password, or log in by docker or podman");
        match self.0.found_in.as_str() {
            "" => format!("to say who you are, {how}"),
            LOGIN => format!("the login is what {LOGIN} says"),
            files => format!("a login was looked for in {files}: {how}"),
        }
    }
}

/// What to do about an error of TLS, as far as its words tell: to be put behind them.
pub(crate) fn tls_advice(error: &str) -> &'static str {
    let known = [
        ("UnknownIssuer", "; name its authority with --ca"),
        (
            "CertificateRequired",
            "; it wants a certificate of the cluster: --cert and --key",
        ),
        (
            "InvalidContentType",
            "; it speaks plain HTTP there, without https://",
        ),
        (
            "invalid HTTP version",
            "; if it is there by TLS, begin its address with https://",
        ),
    ];
    if let Some((_, advice)) = known.into_iter().find(|(word, _)| error.contains(word)) {
        return advice;
    }
    // In TLS 1.3 a client is done before the server has looked at its certificate: what that says of it may come behind
    // the end of the connection, and is lost.
    let ended = [
        "connection was not ready",
        "connection closed before message completed",
        "Connection reset by peer",
    ];
    match error.contains("https://") && ended.iter().any(|word| error.contains(word)) {
        true => "; it may want a certificate of the cluster, or another one: --cert and --key",
        false => "",
    }
}

/// What is said of a process that does not answer, without what the address in front of it says already, and with what
/// to do about it.
pub(crate) fn silence(error: &str) -> String {
    let advice = tls_advice(error);
    let told = match (
        error.split_once("error sending request for url ("),
        error.split_once("): "),
    ) {
        (Some((head, _)), Some((_, why))) => {
            format!(
                "{head}{}",
                why.trim_start_matches("client error (Connect): ")
            )
        }
        _ => error.to_owned(),
    };
    format!("{told}{advice}")
}

fn is_secure(base: &BaseUrl) -> bool {
    base.as_str().starts_with("https://")
}

/// The base URL of an address: `host:port` is plain HTTP.
///
/// # Errors
/// It is neither that nor a URL.
pub fn base_url(address: &str) -> Result<BaseUrl, Failure> {
    let url = match address.contains("://") {
        true => address.to_owned(),
        false => format!("http://{address}"),
    };
    url.parse().map_err(|_| {
        let what = format!("{address:?} is no address: write host:port or https://host:port");
        Failure::Argument(what)
    })
}

fn no_login() -> Failure {
    Failure::Argument(format!("{LOGIN} is not name:password"))
}

fn password(login: &str) -> Result<Credentials, Failure> {
    let (username, password) = login.split_once(':').ok_or_else(no_login)?;
    Ok(Credentials::Password {
        username: username.to_owned(),
        password: Secret::Text(password.to_owned()),
    })
}

/// The files in which podman and docker keep logins, in the order in which podman looks into them. One
/// that `REGISTRY_AUTH_FILE` names is the only one.
fn files(var: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let var = |name| var(name).filter(|path| !path.as_os_str().is_empty());
    if let Some(file) = var("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let at_home = |dir: &str| var("HOME").map(|home| home.join(dir));
    let podman = Path::new("containers/auth.json");
    let all = [
        var("XDG_RUNTIME_DIR").map(|dir| dir.join(podman)),
        var("XDG_CONFIG_HOME")
            .or_else(|| at_home(".config"))
            .map(|dir| dir.join(podman)),
        var("DOCKER_CONFIG")
            .or_else(|| at_home(".docker"))
            .map(|dir| dir.join("config.json")),
    ];
    all.into_iter()
        .flatten()
        .filter(|file| file.is_file())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn what_tls_says_is_told_with_what_to_do_also_when_its_words_are_lost() {
        let lost = "error sending request for url (https://o:1/x/store): client error (Canceled): operation was canceled: connection was not ready";
        assert!(tls_advice(lost).contains("a certificate of the cluster"));
        assert_eq!(tls_advice(&lost.replace("https", "http")), "");
        let said = "https://o:1: received fatal alert: CertificateRequired: connection closed before message completed";
        assert!(tls_advice(said).starts_with("; it wants a certificate"));
        assert_eq!(tls_advice("https://o:1: Connection refused"), "");
    }

    #[test]
    fn an_address_that_does_not_answer_is_named_once() {
        let said = "https://o:1 does not answer: error sending request for url (https://o:1/x/queue?state=a): client error (Connect): tcp connect error: Connection refused (os error 111)";
        assert_eq!(
            silence(said),
            "https://o:1 does not answer: tcp connect error: Connection refused (os error 111)"
        );
        let said = "https://o:1 does not answer: silence for 5 s";
        assert_eq!(silence(said), said);
        let said = "https://o:1 does not answer: error sending request for url (https://o:1/): invalid peer certificate: UnknownIssuer";
        assert_eq!(
            silence(said),
            "https://o:1 does not answer: invalid peer certificate: UnknownIssuer; name its authority with --ca"
        );
    }

    #[test]
    fn the_files_of_podman_come_before_dockers() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path();
        let file = |path: &str| {
            let path = home.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "{}").unwrap();
            path
        };
        let found = |vars: &[(&str, PathBuf)]| {
            let vars: HashMap<_, _> = vars.iter().cloned().collect();
            files(|name| vars.get(name).cloned())
        };
        let at_home = ("HOME", home.to_path_buf());
        let running = ("XDG_RUNTIME_DIR", home.join("run"));
        assert_eq!(found(&[]), Vec::<PathBuf>::new());
        assert_eq!(found(std::slice::from_ref(&at_home)), Vec::<PathBuf>::new());
        let docker = file(".docker/config.json");
        let podman = file(".config/containers/auth.json");
        let vars = [at_home.clone(), running.clone()];
        assert_eq!(found(&vars), [podman.clone(), docker.clone()]);
        let run = file("run/containers/auth.json");
        assert_eq!(found(&vars), [run, podman.clone(), docker]);
        let other = file("other/config.json");
        let moved = ("DOCKER_CONFIG", home.join("other"));
        let none = ("XDG_RUNTIME_DIR", PathBuf::new());
        assert_eq!(found(&[at_home.clone(), moved, none]), [podman, other]);
        // Also when it is not there: that is worth an error.
        let named = ("REGISTRY_AUTH_FILE", home.join("none"));
        assert_eq!(found(&[at_home, running, named]), [home.join("none")]);
    }

    #[test]
    fn addresses_are_plain_unless_they_say_otherwise() {
        let url = |text: &str| base_url(text).unwrap().to_string();
        assert_eq!(url("127.0.0.1:7602"), "http://127.0.0.1:7602");
        assert_eq!(url("https://proxy:7602/"), "https://proxy:7602");
        assert_eq!(url("[::1]:7602"), "http://[::1]:7602");
        for wrong in ["", "ftp://a", "a b", "https://"] {
            let told = base_url(wrong).unwrap_err().to_string();
            assert!(told.contains("write host:port"), "{told}");
        }
    }

    #[test]
    fn a_login_is_a_name_and_a_password() {
        let told = password("ann").unwrap_err().to_string();
        assert_eq!(told, "KRAKEN_LOGIN is not name:password");
        let Credentials::Password { username, password } = password("ann:b:c").unwrap() else {
            panic!("it is a password");
        };
        assert_eq!(
            (username.as_str(), password.reveal().unwrap().as_str()),
            ("ann", "b:c")
        );
    }
}
