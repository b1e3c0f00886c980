//! Tokens that must be refused, and keys as others write them.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::issue::{TokenConfig, Tokens};
use super::keys::{self, PublicKey};
use super::server::{TokenServer, TokenServerConfig};
use super::token::{self, Said, TokenError};
use super::{Access, AccessError, Caller, signing};

/// Signed by openssl with the key below (RS256): `ann` of `auth` may pull `team/app` of `registry` until
/// the year 2100.
const RSA_TOKEN: &str = "\
    eyJ0eXAiOiAiSldUIiwgImFsZyI6ICJSUzI1NiJ9.eyJpc3MiOiAiYXV0aCIsICJhdWQiOiAicmVnaXN0cnkiLCAic\
    3ViIjogImFubiIsICJleHAiOiA0MTAyNDQ0ODAwLCAiYWNjZXNzIjogW3sidHlwZSI6ICJyZXBvc2l0b3J5IiwgIm5\
    hbWUiOiAidGVhbS9hcHAiLCAiYWN0aW9ucyI6IFsicHVsbCJdfV19.tPSN9sXzbuvfzt44YMqR9E1lxdmevnNv_T_H\
    4_H-MTHVJZEJ-nEFrkDs7n4FiZeHszNDt_LLyjNfn2RgzvIxASb58__BXpMqS6Jb1Whxg2Jy4faO3odeBr4wSh5u_k\
    4rFGH9OARO9Ff_Tc4p2sApdIcV6RYcZDZtUsZQR0PrjcD_0T4Mnyw9HcL6XVKJNz3xKo4VeCzBGanosaPGidWC-FRx\
    1LnEkInfZgLLSa1ZqzjNpRAlhZTeSraT0gLgtwPBnDTdg1ZKy5O4r24sdSVezexuuuIQDq_suS595BcMeUG08324PS\
    mWGYqyFZQS6nqTOykOLhY6Vcsn9z8tL9x0HQ";
const RSA_KEY: &str = "\
    -----BEGIN PUBLIC KEY-----\n\
    MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA03HpzuOxmA0CXZhTNLMW\n\
    Cz8CDGLj3BxYgs13XjQv8C9nbCYMo4jcV/m7lTCDpjHoaNn2wEjShwyTOR55+oZg\n\
    nDeEvqgpypUoRK2P40X05u2kFyymBwAVxsAAo00NyQ44UEoeQ5+xxnwvAV02vi3T\n\
    1N/WmpF1eEaZPAZQWr28OIRgJenQQeGUYwiAPT+A7GhrIXNT/N2QXRV8YLqJHN9f\n\
    n91XTX5EM1+qXadHgCSGw2Hhb02pV7GcHppmt1/f0yK7QS4Jxn3y0VN9FliAKou7\n\
    3jb+uz1VlVFP8I8q6JNPrxOMEpqYOB7Egy5+iI6f45CFH09W5TZgzjDF9iICnJPy\n\
    XQIDAQAB\n\
    -----END PUBLIC KEY-----\n";
/// The same key's modulus, and its name according to the Docker project's libtrust, by Python.
const RSA_N: &str = "\
    03HpzuOxmA0CXZhTNLMWCz8CDGLj3BxYgs13XjQv8C9nbCYMo4jcV_m7lTCDpjHoaNn2wEjShwyTOR55-oZgnDeEvq\
    gpypUoRK2P40X05u2kFyymBwAVxsAAo00NyQ44UEoeQ5-xxnwvAV02vi3T1N_WmpF1eEaZPAZQWr28OIRgJenQQeGU\
    YwiAPT-A7GhrIXNT_N2QXRV8YLqJHN9fn91XTX5EM1-qXadHgCSGw2Hhb02pV7GcHppmt1_f0yK7QS4Jxn3y0VN9Fl\
    iAKou73jb-uz1VlVFP8I8q6JNPrxOMEpqYOB7Egy5-iI6f45CFH09W5TZgzjDF9iICnJPyXQ";
const RSA_ID: &str = "CZXV:36FW:54AX:UBGM:S4MO:HD72:QD3M:RTFP:REQ6:KWBA:RE23:OSCG";

/// A key pair, as PKCS #8.
struct Pair(Vec<u8>);

impl Pair {
    fn new() -> Self {
        let chance = SystemRandom::new();
        let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &chance);
        Self(pair.unwrap().as_ref().to_vec())
    }

    fn pair(&self) -> EcdsaKeyPair {
        signing::key_pair(&self.0).unwrap()
    }

    fn private_pem(&self) -> String {
        pem("PRIVATE KEY", &self.0)
    }

    /// x and y.
    fn point(&self) -> Vec<u8> {
        self.pair().public_key().as_ref()[1..].to_vec()
    }

    fn jwk(&self, id: &str) -> Value {
        let point = self.point();
        let (x, y) = point.split_at(32);
        json!({"kty": "EC", "crv": "P-256", "kid": id, "x": url(x), "y": url(y)})
    }

    /// A token of this header and these claims, signed.
    fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", part(header), part(claims));
        let signature = self.pair().sign(&SystemRandom::new(), message.as_bytes());
        format!("{message}.{}", url(signature.unwrap().as_ref()))
    }
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
}

fn url(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn part(value: &Value) -> String {
    url(value.to_string())
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

fn header() -> Value {
    json!({"typ": "JWT", "alg": "ES256"})
}

fn claims() -> Value {
    let access = [json!({"type": "repository", "name": "a", "actions": ["pull"]})];
    json!({"iss": "auth", "aud": "registry", "sub": "ann", "exp": now() + 300, "access": access})
}

/// The same with other values; null takes one out.
fn but(mut value: Value, changes: &Value) -> Value {
    let object = value.as_object_mut().unwrap();
    for (key, change) in changes.as_object().unwrap() {
        match change {
            Value::Null => object.remove(key),
            change => object.insert(key.clone(), change.clone()),
        };
    }
    value
}

fn known(dir: &TempDir, text: impl AsRef<[u8]>) -> Result<Vec<PublicKey>, AccessError> {
    let file = dir.path().join("keys");
    fs::write(&file, text).unwrap();
    keys::public(&[file])
}

fn verify(token: &str, keys: &[PublicKey]) -> Result<Said, TokenError> {
    token::verify(token, keys, ("auth", "registry"))
}

#[test]
fn a_token_that_is_right_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new();
    let keys = known(&dir, pair.jwk("one").to_string()).unwrap();
    for (header, claims) in [
        (header(), claims()),
        (but(header(), &json!({"kid": "one"})), claims()),
        // A name that no key has says nothing.
        (
            but(header(), &json!({"kid": "other", "typ": null})),
            claims(),
        ),
        (header(), but(claims(), &json!({"aud": ["x", "registry"]}))),
        (header(), but(claims(), &json!({"nbf": now() + 30}))),
        (header(), but(claims(), &json!({"exp": now() - 30}))),
        (header(), but(claims(), &json!({"exp": 4_102_444_800.5}))),
    ] {
        let said = verify(&pair.sign(&header, &claims), &keys).unwrap();
        assert_eq!(said.access.unwrap().len(), 1, "{header} {claims}");
    }
    let nothing = but(claims(), &json!({"access": null, "sub": null}));
    let said = verify(&pair.sign(&header(), &nothing), &keys).unwrap();
    assert!(said.access.is_none() && said.sub.is_none());
}

#[test]
fn claims_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new();
    let keys = known(&dir, pair.jwk("one").to_string()).unwrap();
    for (changes, why) in [
        (json!({"exp": now() - 120}), "run out"),
        (json!({"exp": null}), "must"),
        (json!({"exp": "tomorrow"}), "must"),
        (json!({"exp": -1}), "must"),
        (json!({"nbf": now() + 120}), "not valid yet"),
        (json!({"nbf": "yesterday"}), "must"),
        (json!({"aud": "other"}), "another service"),
        (json!({"aud": ["other"]}), "another service"),
        (json!({"aud": null}), "must"),
        (json!({"aud": 1}), "must"),
        (json!({"iss": "other"}), "another issuer"),
        (json!({"iss": null}), "must"),
        (json!({"access": "all"}), "no sense"),
        (
            json!({"access": [{"type": "repository", "actions": ["*"]}]}),
            "no sense",
        ),
        (json!({"sub": 7}), "no sense"),
    ] {
        let token = pair.sign(&header(), &but(claims(), &changes));
        let refused = verify(&token, &keys).unwrap_err().to_string();
        assert!(refused.contains(why), "{changes}: {refused}");
    }
}

#[test]
fn a_signature_is_by_the_algorithm_of_the_key_and_by_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (pair, other) = (Pair::new(), Pair::new());
    let set = json!({"keys": [pair.jwk("one"), other.jwk("two")]});
    let keys = known(&dir, set.to_string()).unwrap();
    let with = |changes: &Value| pair.sign(&but(header(), changes), &claims());
    let refused = |token: &str| verify(token, &keys).unwrap_err().to_string();
    // No signature at all, under several names.
    for none in ["none", "None", "NONE", ""] {
        let token = with(&json!({"alg": none}));
        assert!(refused(&token).contains("no sense"), "{none}");
        let (message, _) = token.rsplit_once('.').unwrap();
        assert!(
            refused(&format!("{message}.")).contains("no sense"),
            "{none}"
        );
    }
    // What everybody knows, as a secret.
    let file = fs::read(dir.path().join("keys")).unwrap();
    let point = pair.pair().public_key().as_ref().to_vec();
    for secret in [file, point, b"one".to_vec(), Vec::new()] {
        let head = part(&but(header(), &json!({"alg": "HS256", "kid": "one"})));
        let message = format!("{head}.{}", part(&claims()));
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
        let tag = ring::hmac::sign(&secret, message.as_bytes());
        let token = format!("{message}.{}", url(tag.as_ref()));
        assert!(refused(&token).contains("none of the keys"));
    }
    for alg in ["RS256", "ES384", "PS256", "EdDSA", "HS512"] {
        assert!(refused(&with(&json!({"alg": alg}))).contains("none of the keys"));
    }
    // A key that the token brings along, or names at some address, or by another's name.
    let stranger = Pair::new();
    for brought in [
        json!({"jwk": stranger.jwk("one")}),
        json!({"kid": "one", "jwk": stranger.jwk("one")}),
        json!({"jku": "https://example.com/keys"}),
        json!({"kid": "one"}),
        json!({"kid": "../../dev/null"}),
    ] {
        let token = stranger.sign(&but(header(), &brought), &claims());
        assert!(refused(&token).contains("none of the keys"), "{brought}");
    }
    assert!(refused(&with(&json!({"kid": "two"}))).contains("none of the keys"));
    let critical = with(&json!({"crit": ["exp"], "exp": 1}));
    assert!(refused(&critical).contains("not known here"));
}

#[test]
fn what_is_no_token_is_refused_and_so_is_one_that_was_changed() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new();
    let keys = known(&dir, pair.jwk("one").to_string()).unwrap();
    let token = pair.sign(&header(), &claims());
    let parts: Vec<_> = token.split('.').collect();
    let more = but(claims(), &json!({"sub": "root"}));
    for wrong in [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        "é.é.é".into(),
        format!("{token}."),
        format!("{}.{}", parts[0], parts[1]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}.{}", parts[0], part(&more), parts[2]),
        format!("{}.{}.{}", parts[0], parts[1], &parts[2][1..]),
        format!("{}.{}.{}", part(&json!([])), parts[1], parts[2]),
        pair.sign(&header(), &json!("claims")),
        pair.sign(&header(), &json!([])),
    ] {
        assert!(verify(&wrong, &keys).is_err(), "{wrong}");
    }
    let long = but(claims(), &json!({"more": "x".repeat(16 << 10)}));
    let refused = verify(&pair.sign(&header(), &long), &keys).unwrap_err();
    assert!(refused.to_string().contains("too long"));
    assert!(verify(&token, &[]).is_err(), "no key knows nothing");
}

#[test]
fn keys_are_read_as_others_write_them() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new();
    let rsa = json!({"kty": "RSA", "alg": "RS256", "use": "sig", "n": RSA_N, "e": "AQAB"});
    let sealed = but(rsa.clone(), &json!({"use": "enc"}));
    let set = json!({"keys": [pair.jwk("one"), rsa, sealed]});
    for (text, count) in [(RSA_KEY.to_owned(), 1), (set.to_string(), 2)] {
        let keys = known(&dir, text).unwrap();
        assert_eq!(keys.len(), count);
        let said = verify(RSA_TOKEN, &keys).unwrap();
        assert_eq!(said.sub.as_deref(), Some("ann"));
        // An RSA key checks no signature of the other kind.
        let head = url(json!({"alg": "ES256"}).to_string());
        let (_, rest) = RSA_TOKEN.split_once('.').unwrap();
        assert!(verify(&format!("{head}.{rest}"), &keys).is_err());
    }
    // The public half of a key of our own, as openssl writes it.
    let own = dir.path().join("own");
    fs::write(&own, pair.private_pem()).unwrap();
    let own = keys::own(&[own]).unwrap();
    let info = [keys::P256, pair.pair().public_key().as_ref()].concat();
    let half = known(&dir, pem("PUBLIC KEY", &info)).unwrap();
    assert_eq!(half[0].id.as_ref(), Some(&own.id));
    verify(&pair.sign(&header(), &claims()), &half).unwrap();
    let keys = known(&dir, RSA_KEY).unwrap();
    assert_eq!(keys[0].id.as_deref(), Some(RSA_ID));
    let only = json!({"kty": "RSA", "alg": "RS512", "n": RSA_N, "e": "AQAB"});
    assert!(verify(RSA_TOKEN, &known(&dir, only.to_string()).unwrap()).is_err());
}

#[test]
fn keys_that_are_of_no_use_are_refused_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new();
    let secret = json!({"kty": "oct", "k": "c2VjcmV0", "kid": "s"});
    let many: Vec<_> = (0..17).map(|it| pair.jwk(&it.to_string())).collect();
    for (text, why) in [
        (String::new(), "no public key"),
        ("nonsense".into(), "no public key"),
        ("{".into(), "EOF"),
        (json!({"keys": []}).to_string(), "no public key"),
        (json!({"keys": 7}).to_string(), "invalid type"),
        (secret.to_string(), "a secret is no public key"),
        (pair.private_pem(), "private key has no place"),
        (pem("PUBLIC KEY", b"nonsense"), "key is broken"),
        (json!({"keys": many}).to_string(), "16 at most"),
    ] {
        let error = known(&dir, &text).unwrap_err().to_string();
        assert!(
            error.contains("keys") && error.contains(why),
            "{text}: {error}"
        );
    }
    let own = |text: &str| {
        let file = dir.path().join("own");
        fs::write(&file, text).unwrap();
        keys::own(&[file]).map(|_| ())
    };
    own(&pair.private_pem()).unwrap();
    for wrong in ["", "nonsense", RSA_KEY, &pem("PRIVATE KEY", b"nonsense")] {
        let error = own(wrong).unwrap_err().to_string();
        assert!(error.contains("openssl genpkey"), "{error}");
    }
    assert!(matches!(keys::own(&[]), Err(AccessError::NoKeys)));
}

fn config(dir: &TempDir, keys: &[&str]) -> TokenConfig {
    TokenConfig {
        realm: "https://registry.example.com/v2/token".into(),
        service: "registry".into(),
        keys: keys.iter().map(|name| dir.path().join(name)).collect(),
        lifetime: Duration::from_secs(300),
        refresh: Some(Duration::from_secs(3600)),
    }
}

#[test]
fn several_keys_are_known_while_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str| fs::write(dir.path().join(name), Pair::new().private_pem()).unwrap();
    write("old");
    write("new");
    let of = |names: &[&str]| Tokens::new(config(&dir, names)).unwrap();
    let sign = |tokens: &Tokens| {
        let claims = token::Claims::new(
            ("registry", "registry"),
            Some("ann"),
            Duration::from_secs(9),
        );
        token::sign(&claims, &keys::own(&config_keys(tokens)).unwrap()).unwrap()
    };
    let (old, both, new) = (of(&["old"]), of(&["new", "old"]), of(&["new"]));
    let is_ann = |caller| matches!(caller, Ok(Caller::Token(Some(user), _)) if user == "ann");
    assert!(is_ann(both.caller(&sign(&old))) && is_ann(both.caller(&sign(&both))));
    assert!(is_ann(new.caller(&sign(&both))), "the first one signs");
    assert!(new.caller(&sign(&old)).is_err());
}

fn config_keys(tokens: &Tokens) -> Vec<PathBuf> {
    tokens.config().keys.clone()
}

#[test]
fn what_cannot_stand_in_a_challenge_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), Pair::new().private_pem()).unwrap();
    let good = config(&dir, &["key"]);
    for (realm, service) in [
        ("registry", "registry"),
        ("ftp://registry/token", "registry"),
        ("https://registry/\"token", "registry"),
        ("https://registry/token", ""),
        ("https://registry/token", "a\"b"),
        ("https://registry/token", "a\r\nb"),
        ("https://registry/token", "é"),
    ] {
        let wrong = TokenConfig {
            realm: realm.into(),
            service: service.into(),
            ..good.clone()
        };
        assert!(Tokens::new(wrong).is_err(), "{realm} {service}");
    }
    fs::write(dir.path().join("public"), RSA_KEY).unwrap();
    let server = TokenServerConfig {
        realm: good.realm.clone(),
        service: "registry".into(),
        issuer: "auth".into(),
        keys: vec![dir.path().join("public")],
    };
    assert!(TokenServer::new(server.clone()).is_ok());
    let none = TokenServerConfig {
        keys: Vec::new(),
        ..server.clone()
    };
    assert!(TokenServer::new(none).is_err());
    let both = Access::everybody().tokens(good).unwrap();
    let both = both.token_server(server).unwrap_err().to_string();
    assert!(both.contains("not both"), "{both}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_panics_and_none_is_a_token(text in ".{0,200}", dotted in "([A-Za-z0-9_-]{0,40}\\.){2}[A-Za-z0-9_-]{0,90}") {
        let dir = tempfile::tempdir().unwrap();
        let keys = known(&dir, RSA_KEY).unwrap();
        prop_assert!(verify(&text, &keys).is_err());
        prop_assert!(verify(&dotted, &keys).is_err());
    }

    #[test]
    fn a_token_of_which_one_character_changed_is_never_taken(
        at in any::<prop::sample::Index>(),
        to in prop::sample::select("AQgw0-_.=~ %".chars().collect::<Vec<_>>()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let keys = known(&dir, RSA_KEY).unwrap();
        let mut token: Vec<char> = RSA_TOKEN.chars().collect();
        let at = at.index(token.len());
        prop_assume!(token[at] != to);
        token[at] = to;
        prop_assert!(verify(&String::from_iter(token), &keys).is_err());
    }
}
