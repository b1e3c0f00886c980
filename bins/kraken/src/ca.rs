//! `kraken ca`: the certificates of a cluster that has no authority elsewhere.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kraken_core::Zone;
use kraken_core::net::roles::RoleNames;
use kraken_core::net::{CertAuthority, CertInfo, CertRequest, IdentityError, RevocationList, Role};

use crate::Failure;

/// Whom others may read.
const PUBLIC: u32 = 0o644;
/// Whom its owner alone may read.
const SECRET: u32 = 0o600;
const DAY: u64 = 24 * 3600;

/// A number of days, 1 to 36500.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days(u32);

impl std::str::FromStr for Days {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let days = text.parse().ok().filter(|days| (1..=36_500).contains(days));
        let wrong = || format!("{text:?} is no number of days between 1 and 36500");
        days.map(Self).ok_or_else(wrong)
    }
}

impl Days {
    fn duration(self) -> Duration {
        Duration::from_secs(u64::from(self.0) * DAY)
    }
}

/// An authority in a directory: `ca.crt`, `ca.key`, and `ca.crl` once something is revoked.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    ca: CertAuthority,
}

/// What a certificate is to say.
#[derive(Debug)]
pub struct Wanted {
    /// The role.
    pub role: Role,
    /// The name, which names the files as well.
    pub name: String,
    /// The DNS names and addresses; the name alone when there is none.
    pub hosts: Vec<String>,
    /// Where it stands.
    pub zone: Option<Zone>,
    /// How long it is valid.
    pub days: Days,
    /// A file with the passphrase that encrypts its key; plain when there is none.
    pub key_passphrase: Option<PathBuf>,
}

impl Authority {
    /// Makes a new one in a directory, with its key encrypted by the passphrase in a file, if one is
    /// given.
    ///
    /// # Errors
    /// There is one already, or a file cannot be written.
    pub fn init(
        dir: &Path,
        cluster: &str,
        (days, passphrase): (Days, Option<&Path>),
    ) -> Result<Self, Failure> {
        let (cert_file, key_file) = (dir.join("ca.crt"), dir.join("ca.key"));
        absent(&[&cert_file, &key_file])?;
        let ca = CertAuthority::create_named(cluster, days.duration()).map_err(failed)?;
        let (cert, key) = match passphrase {
            Some(file) => ca.to_sealed_pem(&secret(file)?).map_err(failed)?,
            None => ca.to_pem(),
        };
        make_dir(dir)?;
        write_new(&key_file, &key, SECRET)?;
        write_new(&cert_file, &cert, PUBLIC)?;
        let dir = dir.to_path_buf();
        Ok(Self { dir, ca })
    }

    /// The one in a directory.
    ///
    /// # Errors
    /// There is none, or its key needs another passphrase.
    pub fn open(dir: &Path, passphrase: Option<&Path>) -> Result<Self, Failure> {
        if !dir.join("ca.crt").exists() {
            let dir = dir.display();
            return Err(Failure::Other(format!(
                "there is no authority in {dir}: name its directory by --dir, or make one with kraken ca init --dir {dir}"
            )));
        }
        let (cert, key) = (read(&dir.join("ca.crt"))?, read(&dir.join("ca.key"))?);
        let passphrase = passphrase.map(secret).transpose()?;
        let ca = CertAuthority::open(&cert, &key, passphrase.as_deref());
        let wrong = |error| Failure::Other(format!("{}: {error}", dir.join("ca.key").display()));
        Ok(Self {
            dir: dir.to_path_buf(),
            ca: ca.map_err(wrong)?,
        })
    }

    /// Writes `NAME.crt`, `NAME.key` and the authority's certificate into a directory, and gives the path
    /// of the first.
    ///
    /// # Errors
    /// One of them is there already, or the names make no sense.
    pub fn issue(&self, wanted: &Wanted, out: &Path) -> Result<PathBuf, Failure> {
        let name = &wanted.name;
        let (cert_file, key_file) = (
            out.join(format!("{name}.crt")),
            out.join(format!("{name}.key")),
        );
        let ca_file = out.join("ca.crt");
        absent(&[&cert_file, &key_file])?;
        let ca_pem = self.ca.to_pem().0;
        let has_ca = ca_file.exists();
        // It may have others besides, while authorities change.
        if has_ca && !read(&ca_file)?.contains(ca_pem.trim()) {
            let what = format!("{} is of another authority", ca_file.display());
            return Err(Failure::Other(what));
        }
        let own = [name.clone()];
        let hosts = if wanted.hosts.is_empty() {
            &own[..]
        } else {
            &wanted.hosts
        };
        let (cert, mut key) = self
            .ca
            .issue_as(&CertRequest {
                role: wanted.role.as_str(),
                name,
                hosts,
                zone: wanted.zone.as_ref(),
                validity: wanted.days.duration(),
            })
            .map_err(failed)?;
        if let Some(file) = &wanted.key_passphrase {
            key = kraken_core::net::authority::encrypt_key(&key, &secret(file)?).map_err(failed)?;
        }
        make_dir(out)?;
        write_new(&key_file, &key, SECRET)?;
        write_new(&cert_file, &cert, PUBLIC)?;
        if !has_ca {
            write_new(&ca_file, &ca_pem, PUBLIC)?;
        }
        Ok(cert_file)
    }

    /// Puts in the place of a certificate one that is valid for so long from now, with its key and names;
    /// one of another authority when that one's certificate is given.
    ///
    /// # Errors
    /// It is revoked, not of that authority, or cannot be written.
    pub fn renew(&self, cert: &Path, (former, days): (Option<&Path>, Days)) -> Result<(), Failure> {
        let (old, validity) = (read(cert)?, days.duration());
        // A former authority keeps its list beside its certificate, as this one does.
        let authority = former.map(|former| former.with_file_name("ca.crl"));
        not_revoked((cert, &old), &authority.unwrap_or_else(|| self.list()))?;
        let renewed = match former {
            None => self.ca.renew(&old, validity),
            Some(former) => self.ca.adopt(&old, &read(former)?, validity),
        };
        let renewed = renewed.map_err(|error| at(cert, error))?;
        let own = former.is_none().then_some(&old).into_iter();
        self.remember(own.chain([&renewed]))?;
        replace(cert, &renewed)
    }

    /// Keeps certificates that others of the same key follow, or that follow them, as long as they are valid.
    fn remember<'a>(&self, certs: impl Iterator<Item = &'a String>) -> Result<(), Failure> {
        let mut kept = self.remembered()?;
        for cert in certs.filter_map(|text| blocks(text).next()) {
            if !kept.contains(&cert) {
                kept.push(cert);
            }
        }
        let now = SystemTime::now();
        let is_valid = |cert: &String| {
            let told = CertInfo::from_pem(cert).unwrap_or_default();
            told.first().is_some_and(|it| it.not_after > now)
        };
        kept.retain(is_valid);
        replace(&self.dir.join(RENEWED), &kept.concat())
    }

    fn remembered(&self) -> Result<Vec<String>, Failure> {
        let file = self.dir.join(RENEWED);
        match file.exists() {
            true => Ok(blocks(&read(&file)?).collect()),
            false => Ok(Vec::new()),
        }
    }

    /// Puts a certificate on `ca.crl`, with those of the same key that it was renewed from or to, and gives the path of
    /// that.
    ///
    /// # Errors
    /// It is not of this authority, or the list cannot be written.
    pub fn revoke(&self, cert: &Path) -> Result<PathBuf, Failure> {
        let file = self.list();
        let list = if file.exists() {
            Some(read(&file)?)
        } else {
            None
        };
        let text = read(cert)?;
        let wrong = |error| at(cert, error);
        let mut list = self.ca.revoke(&text, list.as_deref()).map_err(wrong)?;
        let key = |text: &str| CertInfo::from_pem(text).ok()?.first().map(|it| it.peer_id);
        for other in self.remembered()? {
            if key(&other) == key(&text) {
                list = self.ca.revoke(&other, Some(&list)).map_err(wrong)?;
            }
        }
        replace(&file, &list)?;
        Ok(file)
    }

    /// The file of revoked certificates, if there are any.
    fn list(&self) -> PathBuf {
        self.dir.join("ca.crl")
    }
}

/// Certificates that were renewed, and what they were renewed to: a key is not revoked with one of them only.
const RENEWED: &str = "renewed.pem";

/// The certificates of a PEM file, each as it is there.
fn blocks(text: &str) -> impl Iterator<Item = String> {
    const END: &str = "-----END CERTIFICATE-----";
    let blocks = text.split_inclusive(END).filter(|it| it.ends_with(END));
    blocks.map(|it| format!("{}\n", it.trim_start()))
}

/// Refuses a certificate, a file and its text, that a list names.
fn not_revoked((cert, text): (&Path, &str), list: &Path) -> Result<(), Failure> {
    if !list.exists() {
        return Ok(());
    }
    let is_revoked = kraken_core::net::revocation::is_revoked(text, &read(list)?);
    if !is_revoked.map_err(|error| at(cert, error))? {
        return Ok(());
    }
    let what = format!(
        "{} names it: a revoked certificate is not renewed, as its key stays what it was; issue another one",
        list.display()
    );
    Err(at(cert, what))
}

/// What the certificates in a file say, or the list of those that are revoked, in words.
///
/// # Errors
/// It holds neither.
pub fn told(file: &Path) -> Result<String, Failure> {
    let text = read(file)?;
    if text.contains(LIST) {
        let list = RevocationList::from_pem(&text).map_err(|error| at(file, error))?;
        return Ok(revoked(&list));
    }
    if !text.contains(CERTIFICATE) {
        return Err(at(
            file,
            "it holds neither a certificate nor a list of revoked ones",
        ));
    }
    let certs = CertInfo::from_pem(&text).map_err(|error| at(file, error))?;
    let told: Vec<_> = certs.iter().map(lines).collect();
    Ok(told.join("\n\n"))
}

/// How a list of revoked certificates begins, and a certificate.
const LIST: &str = "-----BEGIN X509 CRL-----";
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

fn revoked(list: &RevocationList) -> String {
    let issuer = list.issuer.as_deref().unwrap_or("nobody by name");
    let next = list.next.map_or_else(|| "never".to_owned(), date);
    let count = list.revoked.len();
    let mut text = format!(
        "{:<12} {issuer}\n{:<12} {}\n{:<12} {next}\n{:<12} {count}",
        "revoked by",
        "made",
        date(list.updated),
        "next due",
        "certificates",
    );
    for (serial, since) in &list.revoked {
        text.push_str(&format!(
            "\n{:<12} {serial}, since {}",
            "serial",
            date(*since)
        ));
    }
    text
}

fn date(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "unknown".to_owned(), |it| it.to_string())
}

fn lines(cert: &CertInfo) -> String {
    let none = || "none".to_owned();
    let bearer = cert.bearer(&RoleNames::Written);
    let role = match (cert.is_authority, bearer.role) {
        (true, _) => "an authority, which issues certificates".to_owned(),
        (false, Some(role)) => role.to_string(),
        (false, None) => {
            "none that Kraken knows: refused unless tls.roles says otherwise".to_owned()
        }
    };
    let left = match cert.not_after.duration_since(SystemTime::now()) {
        Ok(left) => format!("{} days from now", left.as_secs() / DAY),
        Err(_) => "which is over".to_owned(),
    };
    let hosts = match &cert.hosts[..] {
        [] => none(),
        hosts => hosts.join(", "),
    };
    let pairs = [
        ("role", role),
        ("name", bearer.name.unwrap_or_else(none)),
        (
            "zone",
            bearer.zone.map_or_else(none, |zone| zone.to_string()),
        ),
        ("hosts", hosts),
        ("cluster", cert.organization.clone().unwrap_or_else(none)),
        ("issuer", cert.issuer.clone().unwrap_or_else(none)),
        ("serial", cert.serial.clone()),
        ("identity", cert.peer_id.to_string()),
        ("valid from", date(cert.not_before)),
        ("valid until", format!("{}, {left}", date(cert.not_after))),
    ];
    let pairs = pairs
        .iter()
        .map(|(what, said)| format!("{what:<12} {said}"));
    pairs.collect::<Vec<_>>().join("\n")
}

/// The passphrase in a file: its first line.
fn secret(file: &Path) -> Result<String, Failure> {
    let text = read(file)?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        let what = format!(
            "{}: its first line, the passphrase, is empty",
            file.display()
        );
        return Err(Failure::Other(what));
    }
    Ok(line.to_owned())
}

fn absent(files: &[&Path]) -> Result<(), Failure> {
    match files.iter().find(|file| file.exists()) {
        None => Ok(()),
        Some(file) => Err(there(file)),
    }
}

fn there(file: &Path) -> Failure {
    Failure::Other(format!("{} is there already, and stays", file.display()))
}

fn read(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(Failure::io(format!("read {}", file.display())))
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(Failure::io(format!("make {}", dir.display())))
}

/// Writes a file that is not there yet.
fn write_new(file: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(mode).open(file);
    let written = opened.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => there(file),
        _ => Failure::io(format!("write {}", file.display()))(error),
    })
}

/// Puts a file in the place of another, or where there is none, at once or not at all.
fn replace(file: &Path, text: &str) -> Result<(), Failure> {
    let doing = || Failure::io(format!("write {}", file.display()));
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
    let new = tempfile::NamedTempFile::new_in(dir.unwrap_or_else(|| Path::new(".")));
    let mut new = new.map_err(doing())?;
    let mode = fs::metadata(file).map_or(PUBLIC, |about| about.permissions().mode());
    let written = new.write_all(text.as_bytes()).and_then(|()| {
        new.as_file()
            .set_permissions(fs::Permissions::from_mode(mode))?;
        new.as_file().sync_all()
    });
    written.map_err(doing())?;
    new.persist(file).map_err(|error| doing()(error.error))?;
    Ok(())
}

fn at(file: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Other(format!("{}: {error}", file.display()))
}

fn failed(error: IdentityError) -> Failure {
    match error {
        IdentityError::Name(what) => Failure::Argument(what),
        error => Failure::Other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use kraken_core::net::Identity;

    use super::*;

    fn wanted(name: &str) -> Wanted {
        Wanted {
            role: Role::Origin,
            name: name.into(),
            hosts: vec!["localhost".into(), "127.0.0.1".into()],
            zone: Some("rack-17".parse().unwrap()),
            days: Days(30),
            key_passphrase: None,
        }
    }

    fn authority(dir: &Path) -> Authority {
        Authority::init(dir, "east", (Days(100), None)).unwrap()
    }

    #[test]
    fn what_is_issued_works_and_is_told_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let (ca_dir, out) = (dir.path().join("ca"), dir.path().join("out"));
        authority(&ca_dir);
        let authority = Authority::open(&ca_dir, None).unwrap();
        let cert = authority.issue(&wanted("origin-1"), &out).unwrap();
        let files = [cert.clone(), out.join("origin-1.key"), out.join("ca.crt")];
        let before = Identity::from_files(&files[0], &files[1], &files[2]).unwrap();
        let told_of = told(&cert).unwrap();
        for said in [
            "origin",
            "origin-1",
            "rack-17",
            "localhost, 127.0.0.1",
            "east",
            "29 days from now",
        ] {
            assert!(told_of.contains(said), "{said}: {told_of}");
        }
        assert!(told(&files[2]).unwrap().contains("an authority"));
        for key in [&files[1], &ca_dir.join("ca.key")] {
            let mode = fs::metadata(key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, SECRET);
        }

        authority.renew(&cert, (None, Days(90))).unwrap();
        let after = Identity::from_files(&files[0], &files[1], &files[2]).unwrap();
        assert_eq!(before.peer_id(), after.peer_id());
        assert!(told(&cert).unwrap().contains("89 days from now"));

        // Another one beside it, of the same authority.
        authority.issue(&wanted("origin-2"), &out).unwrap();
        let list = authority.revoke(&cert).unwrap();
        let one = fs::read_to_string(&list).unwrap();
        authority.revoke(&out.join("origin-2.crt")).unwrap();
        let two = fs::read_to_string(&list).unwrap();
        assert!(one.starts_with(LIST) && two.len() > one.len());
        let said = told(&list).unwrap();
        let issuer = told(&cert).unwrap();
        let issuer = issuer.lines().find_map(|it| it.strip_prefix("issuer"));
        assert!(said.contains(issuer.unwrap().trim()), "{said}");
        for name in ["origin-1.crt", "origin-2.crt"] {
            let cert = fs::read_to_string(out.join(name)).unwrap();
            let serial = &CertInfo::from_pem(&cert).unwrap()[0].serial;
            let line = format!("{:<12} {serial}, since 2", "serial");
            assert!(said.contains(&line), "{line}: {said}");
        }
        let error = told(&files[1]).unwrap_err().to_string();
        assert!(
            error.contains("neither a certificate nor a list"),
            "{error}"
        );
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_half_done_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (ca_dir, out) = (dir.path().join("ca"), dir.path().join("out"));
        let own = authority(&ca_dir);
        let key = fs::read(ca_dir.join("ca.key")).unwrap();
        let again = Authority::init(&ca_dir, "east", (Days(1), None)).unwrap_err();
        assert!(again.to_string().contains("there already"), "{again}");
        assert_eq!(fs::read(ca_dir.join("ca.key")).unwrap(), key);

        own.issue(&wanted("a"), &out).unwrap();
        let again = own.issue(&wanted("a"), &out).unwrap_err().to_string();
        assert!(again.contains("a.crt is there already"), "{again}");
        let other = authority(&dir.path().join("other"));
        let mixed = other.issue(&wanted("b"), &out).unwrap_err().to_string();
        assert!(
            mixed.contains("another authority") && !out.join("b.key").exists(),
            "{mixed}"
        );
        let foreign = other
            .renew(&out.join("a.crt"), (None, Days(1)))
            .unwrap_err()
            .to_string();
        assert!(
            foreign.contains("not issued by this authority"),
            "{foreign}"
        );
        let foreign = other.revoke(&out.join("a.crt")).unwrap_err().to_string();
        assert!(
            foreign.contains("a.crt: the certificate of a was not issued by this authority"),
            "{foreign}"
        );
        let former = ca_dir.join("ca.crt");
        other
            .renew(&out.join("a.crt"), (Some(&former), Days(1)))
            .unwrap();
        assert!(own.renew(&out.join("a.crt"), (None, Days(1))).is_err());
        for name in ["../a", "", "a b", ".hidden"] {
            assert!(own.issue(&wanted(name), &out).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_revoked_is_not_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let (ca_dir, out) = (dir.path().join("ca"), dir.path().join("out"));
        let own = authority(&ca_dir);
        let revoked = own.issue(&wanted("a"), &out).unwrap();
        let other = own.issue(&wanted("b"), &out).unwrap();
        own.revoke(&revoked).unwrap();
        let text = fs::read(&revoked).unwrap();
        let next = authority(&dir.path().join("next"));
        let former = ca_dir.join("ca.crt");
        for (by, former) in [(&own, None), (&next, Some(&*former))] {
            let error = by.renew(&revoked, (former, Days(1))).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("ca.crl names it"), "{error}");
            assert_eq!(fs::read(&revoked).unwrap(), text);
            by.renew(&other, (former, Days(1))).unwrap();
        }
    }

    #[test]
    fn a_key_is_revoked_with_all_its_certificates() {
        for take_first in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (ca_dir, out) = (dir.path().join("ca"), dir.path().join("out"));
            let own = authority(&ca_dir);
            let last = own.issue(&wanted("a"), &out).unwrap();
            let other = own.issue(&wanted("b"), &out).unwrap();
            let first = out.join("first.crt");
            fs::copy(&last, &first).unwrap();
            own.renew(&last, (None, Days(9))).unwrap();
            own.renew(&last, (None, Days(9))).unwrap();
            own.renew(&other, (None, Days(9))).unwrap();
            own.revoke(if take_first { &first } else { &last }).unwrap();
            for cert in [&first, &last] {
                let error = own.renew(cert, (None, Days(9))).unwrap_err().to_string();
                assert!(error.contains("ca.crl names it"), "{take_first}: {error}");
            }
            own.renew(&other, (None, Days(9))).unwrap();
        }
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let own = authority(&dir.path().join("ca"));
        let issue = |host: &str, name: &str| {
            let mut wanted = wanted(name);
            wanted.hosts = vec![host.to_owned()];
            own.issue(&wanted, &dir.path().join("out"))
        };
        for (number, host) in [
            "origin-9",
            "a.example.com",
            "*.example.com",
            "10.0.0.9",
            "::1",
        ]
        .iter()
        .enumerate()
        {
            let cert = issue(host, &format!("fine-{number}")).unwrap();
            assert!(told(&cert).unwrap().contains(host), "{host}");
        }
        for host in [
            "bad host",
            "https://origin-9:7605",
            "origin-9:7605",
            "10.0.0.9/8",
            "300.0.0.1",
            "a.*.example.com",
            "*",
            "a..b",
            "a.example.com.",
            "",
        ] {
            let error = issue(host, "wrong").unwrap_err().to_string();
            assert!(error.contains("neither a DNS name"), "{host:?}: {error}");
            assert!(!dir.path().join("out/wrong.key").exists(), "{host:?}");
        }
    }

    #[test]
    fn keys_are_encrypted_by_the_first_line_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let (right, wrong, empty) = (
            dir.path().join("p"),
            dir.path().join("q"),
            dir.path().join("e"),
        );
        fs::write(&right, "secret\nnot this\n").unwrap();
        fs::write(&wrong, "guess\n").unwrap();
        fs::write(&empty, "\n").unwrap();
        let ca_dir = dir.path().join("ca");
        let sealed = |file| Authority::init(&ca_dir, "east", (Days(9), Some(file)));
        assert!(sealed(&empty).unwrap_err().to_string().contains("empty"));
        sealed(&right).unwrap();
        assert!(
            Authority::open(&ca_dir, None)
                .unwrap_err()
                .to_string()
                .contains("ca.key")
        );
        assert!(Authority::open(&ca_dir, Some(&wrong)).is_err());
        let authority = Authority::open(&ca_dir, Some(&right)).unwrap();
        let mut wanted = wanted("a");
        wanted.key_passphrase = Some(right);
        authority.issue(&wanted, dir.path()).unwrap();
        let key = fs::read_to_string(dir.path().join("a.key")).unwrap();
        assert!(key.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    }

    #[test]
    fn days_have_bounds() {
        assert!("0".parse::<Days>().is_err() && "36501".parse::<Days>().is_err());
        assert!("-1".parse::<Days>().is_err() && "1d".parse::<Days>().is_err());
        assert_eq!("365".parse(), Ok(Days(365)));
    }
}
