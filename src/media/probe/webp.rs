//! WebP: the first chunk, and in the extended format the metadata behind it.

use crate::media::probe::orientation::Orientation;
use crate::media::probe::{STEPS_MAX, array, le16, le32};
use crate::vision::ImageSize;

const EXIF_FLAG: u8 = 0x08;
const XMP_FLAG: u8 = 0x04;

/// The canvas' size, orientation applied.
pub(super) fn size(bytes: &[u8]) -> Option<ImageSize> {
    match bytes.get(12..16)? {
        b"VP8 " => lossy_size(bytes),
        b"VP8L" => lossless_size(bytes),
        b"VP8X" => extended_size(bytes),
        _ => None,
    }
}

fn lossy_size(bytes: &[u8]) -> Option<ImageSize> {
    let is_key_frame = bytes.get(20)? & 1 == 0;
    if !is_key_frame || bytes.get(23..26)? != b"\x9d\x01\x2a" {
        return None;
    }
    // The two bits above each side ask for scaling, which decoders ignore.
    Some(ImageSize {
        width: u32::from(le16(bytes, 26)? & 0x3fff),
        height: u32::from(le16(bytes, 28)? & 0x3fff),
    })
}

fn lossless_size(bytes: &[u8]) -> Option<ImageSize> {
    if *bytes.get(20)? != 0x2f {
        return None;
    }
    let bits = le32(bytes, 21)?;
    Some(ImageSize {
        width: (bits & 0x3fff) + 1,
        height: (bits >> 14 & 0x3fff) + 1,
    })
}

fn extended_size(bytes: &[u8]) -> Option<ImageSize> {
    let flags = *bytes.get(20)?;
    let [w0, w1, w2, h0, h1, h2] = array(bytes, 24)?;
    let canvas = ImageSize {
        width: u32::from_le_bytes([w0, w1, w2, 0]) + 1,
        height: u32::from_le_bytes([h0, h1, h2, 0]) + 1,
    };
    // Decoders read metadata only when the header announces it.
    if flags & (EXIF_FLAG | XMP_FLAG) == 0 {
        return Some(canvas);
    }
    let mut orientation = Orientation::default();
    let mut at = 12;
    for _ in 0..STEPS_MAX {
        let Some(length) = le32(bytes, at + 4).and_then(|length| usize::try_from(length).ok())
        else {
            return orientation.apply(canvas);
        };
        let end = (at + 8).saturating_add(length);
        match (&bytes[at..at + 4], bytes.get(at + 8..end)) {
            (b"EXIF", Some(chunk)) if flags & EXIF_FLAG != 0 => orientation.read_exif(chunk),
            (b"XMP ", Some(chunk)) if flags & XMP_FLAG != 0 => orientation.read_xmp(chunk),
            (_, None) => return orientation.apply(canvas),
            _ => {}
        }
        // A chunk of odd length is followed by one byte of padding.
        at = end.saturating_add(length & 1);
    }
    None
}
