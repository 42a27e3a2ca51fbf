//! Images inline in a request: `data:[<type>][;<parameter>]*;base64,<base64>`.
//!
//! One rule for all of them. The scheme, the type and `base64` are read in any case; the type must
//! be absent, `image/…` or `application/octet-stream` and says nothing more: the bytes decide what
//! the image is. Parameters are ignored, but the last one must be `base64` (percent-encoded data
//! is refused). The data is standard base64, `+` and `/`, with or without padding; ASCII
//! whitespace in it is skipped, as browsers do (WHATWG forgiving-base64), but counts against the
//! limit of an image. Whatever the spelling, the same bytes are the same image.

use bytes::Bytes;

use crate::media::MediaError;

/// What follows `data:` in `url`, or `None` when `url` has another scheme.
pub(crate) fn strip_scheme(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_at_checked(5)?;
    scheme.eq_ignore_ascii_case("data:").then_some(rest)
}

/// The bytes that `rest`, a data URI without its scheme, carries: at most `bytes_max`, checked
/// before anything is decoded.
///
/// # Errors
/// When the URI is malformed, names another type, or its data is no base64, empty or too long.
pub(crate) fn decode(rest: &str, bytes_max: usize) -> Result<Bytes, MediaError> {
    // A type with its parameters is short; a missing comma must not cost a scan of megabytes.
    let head_end = rest.len().min(HEAD_BYTES_MAX);
    let comma = rest.as_bytes()[..head_end]
        .iter()
        .position(|&byte| byte == b',')
        .ok_or(MediaError::MalformedDataUri)?;
    let (head, data) = (&rest[..comma], &rest[comma + 1..]);
    let (kind, encoding) = head.rsplit_once(';').ok_or(MediaError::MalformedDataUri)?;
    if !encoding.trim_ascii().eq_ignore_ascii_case("base64") {
        return Err(MediaError::MalformedDataUri);
    }
    if !may_be_image(kind) {
        return Err(MediaError::DeclaredType);
    }
    // Two characters of padding at most, so this is never more than two bytes too many.
    if (data.len() / 4 * 3).saturating_sub(2) > bytes_max {
        return Err(MediaError::TooManyBytes { max: bytes_max });
    }
    let bytes = decode_base64(data.as_bytes()).map_err(|_| MediaError::MalformedBase64)?;
    if bytes.len() > bytes_max {
        return Err(MediaError::TooManyBytes { max: bytes_max });
    }
    Ok(Bytes::from(bytes))
}

fn decode_base64(data: &[u8]) -> Result<Vec<u8>, base64_simd::Error> {
    let strict = if data.ends_with(b"=") {
        base64_simd::STANDARD
    } else {
        base64_simd::STANDARD_NO_PAD
    };
    // Nearly all data is strict, and the search for whitespace costs a third of decoding it.
    strict
        .decode_to_vec(data)
        .or_else(|_| base64_simd::forgiving_decode_to_vec(data))
}

/// Longest type with parameters that is looked at.
const HEAD_BYTES_MAX: usize = 1024;

fn may_be_image(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim_ascii();
    let image = kind
        .as_bytes()
        .get(..6)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"image/"));
    kind.is_empty() || image || kind.eq_ignore_ascii_case("application/octet-stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_in_rows() {
        use MediaError::{DeclaredType, MalformedBase64, MalformedDataUri};
        let ok = || Ok(Bytes::from_static(b"hello>?"));
        let rows = [
            ("data:image/png;base64,aGVsbG8+Pw==", ok()),
            ("data:image/png;base64,aGVsbG8+Pw", ok()),
            ("DATA:IMAGE/PNG;BASE64,aGVsbG8+Pw==", ok()),
            ("data:;base64,aGVsbG8+Pw==", ok()),
            ("data:application/octet-stream;base64,aGVsbG8+Pw==", ok()),
            ("data:image/png;charset=utf-8;base64,aGVsbG8+Pw==", ok()),
            ("data:image/png;base64;base64,aGVsbG8+Pw==", ok()),
            ("data:image/png;base64,aGVs\r\nbG8+ Pw==\n", ok()),
            ("data:image/png;base64,", Ok(Bytes::new())),
            ("data:", Err(MalformedDataUri)),
            ("data:image/png;base64", Err(MalformedDataUri)),
            ("data:image/png,aGVsbG8+Pw==", Err(MalformedDataUri)),
            ("data:,hello%3E", Err(MalformedDataUri)),
            ("data:image/png;base64=1,aGVs", Err(MalformedDataUri)),
            ("data:text/html;base64,aGVsbG8+Pw==", Err(DeclaredType)),
            ("data:video/mp4;base64,aGVsbG8+Pw==", Err(DeclaredType)),
            ("data:image;base64,aGVsbG8+Pw==", Err(DeclaredType)),
            ("data:image/png;base64,aGVsbG8-Pw==", Err(MalformedBase64)),
            ("data:image/png;base64,aGVsbG8%2BPw==", Err(MalformedBase64)),
            ("data:image/png;base64,aGVsbG8+Pw=", Err(MalformedBase64)),
            ("data:image/png;base64,aGVsb", Err(MalformedBase64)),
            ("data:image/png;base64,é", Err(MalformedBase64)),
        ];
        for (uri, expected) in rows {
            assert_eq!(decode(strip_scheme(uri).unwrap(), 16), expected, "{uri}");
        }
    }

    #[test]
    fn another_scheme_is_not_a_data_uri() {
        for url in ["", "dat", "http://a/", "datá:x", "file:data:"] {
            assert_eq!(strip_scheme(url), None, "{url:?}");
        }
    }

    #[test]
    fn the_limit_holds_to_the_byte() {
        for length in 0..64 {
            let bytes = vec![7_u8; length];
            let uri = format!(";base64,{}", base64_simd::STANDARD.encode_to_string(&bytes));
            assert_eq!(decode(&uri, length), Ok(bytes.into()));
            if length > 0 {
                let max = length - 1;
                assert_eq!(decode(&uri, max), Err(MediaError::TooManyBytes { max }));
            }
        }
    }

    #[test]
    fn too_long_data_is_refused_undecoded() {
        // Not base64 at all: the length is judged first.
        let uri = format!(";base64,{}", "!".repeat(40 << 20));
        let max = 20 << 20;
        assert_eq!(decode(&uri, max), Err(MediaError::TooManyBytes { max }));
    }
}
