//! PNG: the header chunk, and metadata chunks wherever they stand.

use crate::media::probe::orientation::Orientation;
use crate::media::probe::{STEPS_MAX, be32, find};
use crate::vision::ImageSize;

/// The size that the header chunk declares, orientation applied. Chunks are walked to the end,
/// because EXIF may stand behind the pixels and the engines read it there too.
pub(super) fn size(bytes: &[u8]) -> Option<ImageSize> {
    if bytes.get(12..16)? != b"IHDR" {
        return None;
    }
    let declared = ImageSize {
        width: be32(bytes, 16)?,
        height: be32(bytes, 20)?,
    };
    let mut orientation = Orientation::default();
    let mut at = 8;
    for _ in 0..STEPS_MAX {
        let Some(length) = be32(bytes, at).and_then(|length| usize::try_from(length).ok()) else {
            // Cut short behind the header: the engine decides what becomes of it.
            return orientation.apply(declared);
        };
        let kind = bytes.get(at + 4..at + 8);
        let end = (at + 8).saturating_add(length);
        let chunk = bytes.get(at + 8..end);
        match (kind, chunk) {
            (Some(b"IEND"), _) | (_, None) => return orientation.apply(declared),
            (Some(b"eXIf"), Some(chunk)) => orientation.read_exif(chunk),
            (Some(b"tEXt"), Some(chunk)) => read_text(chunk, &mut orientation),
            (Some(b"zTXt"), Some(chunk)) if is_raw_exif(chunk) => orientation.hide(),
            (Some(b"iTXt"), Some(chunk)) => read_international(chunk, &mut orientation),
            _ => {}
        }
        // Each chunk ends in a checksum of four bytes.
        at = end.saturating_add(4);
    }
    None
}

/// Older tools keep EXIF as a text of hex digits, mostly compressed.
const RAW_EXIF: &[u8] = b"Raw profile type exif\0";
const XMP: &[u8] = b"XML:com.adobe.xmp\0";

fn is_raw_exif(chunk: &[u8]) -> bool {
    chunk.starts_with(RAW_EXIF)
}

fn read_text(chunk: &[u8], orientation: &mut Orientation) {
    if is_raw_exif(chunk) {
        orientation.hide();
    }
}

/// Keyword, compression flag and method, language, translated keyword, text.
fn read_international(chunk: &[u8], orientation: &mut Orientation) {
    if is_raw_exif(chunk) {
        return orientation.hide();
    }
    let Some(rest) = chunk.strip_prefix(XMP) else {
        return;
    };
    match rest {
        [0, _, rest @ ..] => {
            let text = find(rest, b"\0").map(|end| &rest[end + 1..]);
            let text = text.and_then(|rest| find(rest, b"\0").map(|end| &rest[end + 1..]));
            orientation.read_xmp(text.unwrap_or_default());
        }
        _ => orientation.hide(),
    }
}
