//! What an image is and how large, from its first bytes. Pixels are never decoded.
//!
//! Each format is read as the engines' decoder (Pillow) reads it, down to which of two sizes wins,
//! because a size that differs from the engine's gives other tokens.

mod jpeg;
mod orientation;
mod png;
mod webp;

use std::ops::Range;

use crate::config::media::MediaConfig;
use crate::media::MediaError;
use crate::vision::ImageSize;

/// A format that the engines decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Bmp,
    Gif,
    Jpeg,
    Png,
    Webp,
}

impl Format {
    /// The MIME type.
    pub(crate) fn mime(self) -> &'static str {
        match self {
            Self::Bmp => "image/bmp",
            Self::Gif => "image/gif",
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Webp => "image/webp",
        }
    }
}

/// Most steps (segments, chunks, blocks, bytes of junk) taken through one header. Real files need
/// tens, a PNG in small chunks thousands; a file made to be slow ends here, with no size.
const STEPS_MAX: usize = 16_384;

/// The format that `bytes` begin as, and the size that they declare, orientation applied; no size
/// when the header is cut short, odd or too long to read.
///
/// # Errors
/// When the bytes are empty, no image, an image of another format, or declare an empty picture.
pub(crate) fn probe(bytes: &[u8]) -> Result<(Format, Option<ImageSize>), MediaError> {
    let format = sniff(bytes)?;
    let size = match format {
        Format::Bmp => bmp_size(bytes),
        Format::Gif => gif_size(bytes),
        Format::Jpeg => jpeg::size(bytes),
        Format::Png => png::size(bytes),
        Format::Webp => webp::size(bytes),
    };
    match size {
        Some(ImageSize { width, height }) if width == 0 || height == 0 => {
            Err(MediaError::NoPixels { width, height })
        }
        size => Ok((format, size)),
    }
}

/// Checks `size` against the limits of `policy`.
///
/// # Errors
/// When there are too many pixels, a side is too long or the sides too unequal.
pub(crate) fn check_size(size: ImageSize, policy: &MediaConfig) -> Result<(), MediaError> {
    let ImageSize { width, height } = size;
    let (short, long) = (width.min(height), width.max(height));
    if long > policy.side_max {
        let max = policy.side_max;
        return Err(MediaError::SideTooLong { width, height, max });
    }
    if u64::from(width) * u64::from(height) > policy.pixels_max {
        let max = policy.pixels_max;
        return Err(MediaError::TooManyPixels { width, height, max });
    }
    if u64::from(long) > u64::from(short) * u64::from(policy.ratio_max) {
        let max = policy.ratio_max;
        return Err(MediaError::RatioTooLarge { width, height, max });
    }
    Ok(())
}

/// First bytes of what is an image but none that we take.
const OTHER_FORMATS: &[(&[u8], &str)] = &[
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\x01\0", "ICO"),
    (b"\0\0\x02\0", "CUR"),
    (b"8BPS", "PSD"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"%PDF-", "PDF"),
    (b"%!PS", "PostScript"),
];

fn sniff(bytes: &[u8]) -> Result<Format, MediaError> {
    if bytes.is_empty() {
        return Err(MediaError::Empty);
    }
    if bytes.starts_with(b"\xff\xd8\xff") {
        Ok(Format::Jpeg)
    } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        Ok(Format::Png)
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        Ok(Format::Webp)
    } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
        Ok(Format::Gif)
    } else if bytes.starts_with(b"BM") && bmp_header_bytes(bytes).is_some() {
        Ok(Format::Bmp)
    } else if let Some(format) = other_format(bytes) {
        Err(MediaError::UnsupportedFormat { format })
    } else {
        Err(MediaError::UnknownFormat)
    }
}

fn other_format(bytes: &[u8]) -> Option<&'static str> {
    if let Some((_, name)) = OTHER_FORMATS.iter().find(|row| bytes.starts_with(row.0)) {
        return Some(name);
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return Some(match bytes.get(8..12) {
            Some(b"avif" | b"avis") => "AVIF",
            Some(b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1") => "HEIC",
            _ => "ISO media",
        });
    }
    let start = &bytes[..bytes.len().min(SVG_LOOKED_AT_BYTES)];
    let is_markup =
        start.trim_ascii_start().starts_with(b"<") || start.starts_with(b"\xef\xbb\xbf");
    (is_markup && find(start, b"<svg").is_some()).then_some("SVG")
}

/// How far an `<svg` may stand behind a declaration and comments.
const SVG_LOOKED_AT_BYTES: usize = 1024;

/// The length that a BMP's second header gives for itself, when it is one of the known ones; `BM`
/// alone is how a text may begin.
fn bmp_header_bytes(bytes: &[u8]) -> Option<u32> {
    let length = le32(bytes, 14)?;
    matches!(length, 12 | 16 | 40 | 52 | 56 | 64 | 108 | 124).then_some(length)
}

fn bmp_size(bytes: &[u8]) -> Option<ImageSize> {
    if bmp_header_bytes(bytes)? == 12 {
        return Some(ImageSize {
            width: le16(bytes, 18)?.into(),
            height: le16(bytes, 20)?.into(),
        });
    }
    // A negative height means that rows go from the top down.
    let height = le32(bytes, 22)?.cast_signed().unsigned_abs();
    let width = le32(bytes, 18)?;
    Some(ImageSize { width, height })
}

/// The screen's size, grown to the first frame where that reaches beyond it, as Pillow does.
fn gif_size(bytes: &[u8]) -> Option<ImageSize> {
    let (screen_width, screen_height) = (le16(bytes, 6)?, le16(bytes, 8)?);
    let flags = *bytes.get(10)?;
    let mut at = 13 + colour_table_bytes(flags);
    let mut steps = 0..STEPS_MAX;
    while steps.next().is_some() {
        match *bytes.get(at)? {
            0x2c => {
                let right = u32::from(le16(bytes, at + 1)?) + u32::from(le16(bytes, at + 5)?);
                let bottom = u32::from(le16(bytes, at + 3)?) + u32::from(le16(bytes, at + 7)?);
                return Some(ImageSize {
                    width: right.max(screen_width.into()),
                    height: bottom.max(screen_height.into()),
                });
            }
            0x21 => at = after_sub_blocks(bytes, at + 2, &mut steps)?,
            0x3b => return None,
            _ => at += 1,
        }
    }
    None
}

fn colour_table_bytes(flags: u8) -> usize {
    if flags & 0x80 == 0 {
        0
    } else {
        3 << ((flags & 7) + 1)
    }
}

/// Where the blocks that start at `at` end, each counted against `steps`.
fn after_sub_blocks(bytes: &[u8], mut at: usize, steps: &mut Range<usize>) -> Option<usize> {
    while steps.next().is_some() {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    }
    None
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|part| part == text)
}

/// The `N` bytes at `at`, when they are there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests;
