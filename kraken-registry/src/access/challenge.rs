//! What a client that is refused is told, so that it can come again with more.

use http::HeaderValue;
use http::header::WWW_AUTHENTICATE;

use super::{AccessError, May, scope};
use crate::error::{Code, RegistryError};

/// 401 for a name and a password.
pub(super) fn basic_please(message: &str) -> RegistryError {
    let challenge = HeaderValue::from_static("Basic realm=\"kraken\", charset=\"UTF-8\"");
    RegistryError::new(Code::Unauthorized, message).with_header(WWW_AUTHENTICATE, challenge)
}

/// 401 for a token of the realm's, with what a request needs.
pub(super) fn bearer_please(
    message: &str,
    (realm, service): (&str, &str),
    hint: Option<&str>,
    needed: Option<(&str, May)>,
) -> RegistryError {
    let mut challenge = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
    if let Some((repository, what)) = needed {
        let scope = scope::needed(repository, what);
        challenge.push_str(&format!(",scope=\"{scope}\""));
    }
    if let Some(hint) = hint {
        challenge.push_str(&format!(",error=\"{hint}\""));
    }
    let challenge = HeaderValue::from_str(&challenge).expect("its parts are visible ASCII");
    RegistryError::new(Code::Unauthorized, message).with_header(WWW_AUTHENTICATE, challenge)
}

/// The token of `Bearer <token>`.
pub(super) fn bearer(login: &str) -> Option<&str> {
    let (scheme, token) = login.split_once(' ').unwrap_or((login, ""));
    let is_it = scheme.eq_ignore_ascii_case("bearer");
    is_it.then(|| token.trim())
}

/// What can stand in a challenge, between quotation marks.
pub(super) fn quotable(what: &str, text: &str) -> Result<(), AccessError> {
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    if text.is_empty() || text.len() > 256 || !text.bytes().all(fits) {
        let what = format!(
            "{what}: write 1 to 256 characters of ASCII, no blanks, quotation marks or backslashes"
        );
        return Err(AccessError::Text(what));
    }
    Ok(())
}

/// A realm is where clients send their passwords to.
pub(super) fn check_realm(realm: &str) -> Result<(), AccessError> {
    quotable("realm", realm)?;
    let url = reqwest::Url::parse(realm).ok();
    if !url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
        let what = format!("realm: {realm:?} is no URL, such as https://registry/v2/token");
        return Err(AccessError::Text(what));
    }
    Ok(())
}
