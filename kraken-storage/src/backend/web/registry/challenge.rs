//! What a registry answers to who may not read: RFC 9110, section 11.6.1, as registries write it.

use std::collections::HashMap;

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// How to prove who one is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With name and password.
    Basic,
    /// With a token, that a token server gives out.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge of an answer; a token is preferred to a password.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        let mut challenges: Vec<_> = values
            .filter_map(|value| Self::parse(value.to_str().ok()?))
            .collect();
        let bearer = challenges.iter().position(|it| *it != Self::Basic);
        match challenges.is_empty() {
            true => None,
            false => Some(challenges.swap_remove(bearer.unwrap_or(0))),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = match text.trim().split_once(' ') {
            Some(parts) => parts,
            None => (text.trim(), ""),
        };
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest)?;
        Some(Self::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

/// `name="value", name=value`; none when a quote is not closed.
fn parameters(mut text: &str) -> Option<HashMap<String, String>> {
    let mut found = HashMap::new();
    loop {
        text = text.trim_start_matches([' ', ',']);
        let Some((name, rest)) = text.split_once('=') else {
            return Some(found);
        };
        let value;
        (value, text) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => rest.split_at(rest.find(',').unwrap_or(rest.len())),
        };
        found.insert(name.trim().to_ascii_lowercase(), value.trim().to_string());
    }
}

/// Takes the lines of a text for what a registry answers.
///
/// # Panics
/// A challenge says what is in none of them.
#[cfg(feature = "fuzzing")]
pub fn fuzz(text: &str) {
    let values = text.lines().filter_map(|line| line.parse().ok());
    let headers = values.map(|value| (WWW_AUTHENTICATE, value)).collect();
    if let Some(Challenge::Bearer {
        realm,
        service,
        scope,
    }) = Challenge::of(&headers)
    {
        let mut said = [Some(realm), service, scope].into_iter().flatten();
        assert!(said.all(|it| text.contains(&it)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_of_real_registries_are_read() {
        let text = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                    scope=\"repository:library/a:pull,push\"";
        let wanted = Challenge::Bearer {
            realm: "https://auth.docker.io/token".into(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:library/a:pull,push".into()),
        };
        assert_eq!(Challenge::parse(text), Some(wanted));
        let basic = Challenge::parse("Basic realm=\"https://1.dkr.ecr.us-east-1.amazonaws.com/\"");
        assert_eq!(basic, Some(Challenge::Basic));
        let bare = Challenge::parse("bearer Realm=https://a/t , service=b");
        let wanted = Challenge::Bearer {
            realm: "https://a/t".into(),
            service: Some("b".into()),
            scope: None,
        };
        assert_eq!(bare, Some(wanted));
        for wrong in [
            "",
            "Digest realm=\"a\"",
            "Bearer",
            "Bearer realm=\"a",
            "Bearer service=\"a\"",
        ] {
            assert_eq!(Challenge::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_token_is_preferred() {
        let mut headers = HeaderMap::new();
        assert_eq!(Challenge::of(&headers), None);
        headers.append(WWW_AUTHENTICATE, "Basic realm=x".parse().unwrap());
        assert_eq!(Challenge::of(&headers), Some(Challenge::Basic));
        headers.append(
            WWW_AUTHENTICATE,
            "Bearer realm=\"https://a\"".parse().unwrap(),
        );
        assert!(matches!(
            Challenge::of(&headers),
            Some(Challenge::Bearer { .. })
        ));
    }
}
