//! The API's own request headers: their values, and the plain 400 for invalid ones.

use axum::http::{HeaderMap, header};
use vipgate_api::request::BadRequest;

use crate::{jobs::HookUrl, store::new_uuid};

/// The session of `Authorization: OAuth <uuid>`. Any text passes here: the store is asked later whether it is valid.
pub(super) fn session(headers: &HeaderMap) -> Result<&str, BadRequest> {
    let value = headers.get(header::AUTHORIZATION).ok_or_else(|| {
        BadRequest("missing header 'Authorization': send 'Authorization: OAuth <session uuid>'".into())
    })?;
    let value = value.to_str().unwrap_or_default().trim();
    match value.split_at_checked("OAuth".len()) {
        Some((kind, rest)) if kind == "OAuth" && (rest.is_empty() || rest.starts_with(' ')) => Ok(rest.trim()),
        _ => Err(BadRequest("Authorization type must be 'OAuth': send 'Authorization: OAuth <session uuid>'".into())),
    }
}

/// The uuid that the caller chose for its job, or a random one.
pub(super) fn job_uuid(headers: &HeaderMap) -> Result<String, BadRequest> {
    let Some(value) = headers.get("x-job-uuid") else {
        return Ok(new_uuid());
    };
    let value = value.to_str().unwrap_or_default().trim();
    if is_random_uuid(value) {
        Ok(value.to_ascii_lowercase())
    } else {
        Err(BadRequest(format!("X-Job-UUID `{value}` is no version 4 UUID of 32 hexadecimal digits without dashes")))
    }
}

/// RFC 9562, section 5.4, without its dashes.
fn is_random_uuid(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 32
        && bytes.iter().all(u8::is_ascii_hexdigit)
        && bytes[12] == b'4'
        && matches!(bytes[16].to_ascii_lowercase(), b'8' | b'9' | b'a' | b'b')
}

pub(super) fn web_hook(headers: &HeaderMap) -> Result<Option<HookUrl>, BadRequest> {
    let Some(value) = headers.get("x-web-hook") else {
        return Ok(None);
    };
    let url = value.to_str().unwrap_or_default().trim().parse::<HookUrl>();
    url.map(Some).map_err(|error| BadRequest(error.to_string()))
}

/// Whether the caller wants a `schema` in the reply; the value of the header does not matter.
pub(super) fn wants_schema(headers: &HeaderMap) -> bool {
    headers.contains_key("x-json-schema")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn the_session_follows_oauth() {
        assert_eq!(session(&headers("authorization", "OAuth abc")).unwrap(), "abc");
        assert_eq!(session(&headers("authorization", "OAuth")).unwrap(), "");
        assert!(session(&HeaderMap::new()).unwrap_err().0.starts_with("missing header 'Authorization'"));
        for wrong in ["Bearer abc", "OAuthabc", "oauth abc", "abc", "é"] {
            let error = session(&headers("authorization", wrong)).unwrap_err();
            assert!(error.0.starts_with("Authorization type must be 'OAuth'"), "{wrong}");
        }
    }

    #[test]
    fn a_job_uuid_is_version_4_without_dashes() {
        let uuid = "d825b1a26f4e474b8c59306081920ff2";
        assert_eq!(job_uuid(&headers("x-job-uuid", uuid)).unwrap(), uuid);
        assert_eq!(job_uuid(&HeaderMap::new()).unwrap().len(), 32);
        for wrong in [
            "d825b1a2-6f4e-474b-8c59-306081920ff2",
            "d825b1a26f4e174b8c59306081920ff2",
            "d825b1a26f4e474b0c59306081920ff2",
            "d825b1a26f4e474b8c59306081920ff",
            "x825b1a26f4e474b8c59306081920ff2",
            "",
        ] {
            assert!(job_uuid(&headers("x-job-uuid", wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_web_hook_is_an_http_url() {
        assert!(web_hook(&HeaderMap::new()).unwrap().is_none());
        assert!(web_hook(&headers("x-web-hook", "http://127.0.0.1:8989/rest-webhook")).unwrap().is_some());
        for wrong in ["localhost:5000", "https://localhost/", "ftp://a", ""] {
            assert!(web_hook(&headers("x-web-hook", wrong)).is_err(), "{wrong}");
        }
    }
}
