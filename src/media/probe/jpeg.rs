//! JPEG: the segments before the first scan.

use crate::media::probe::orientation::Orientation;
use crate::media::probe::{STEPS_MAX, be16};
use crate::vision::ImageSize;

const XMP_MARK: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// The size of the last frame header before the first scan, orientation applied.
pub(super) fn size(bytes: &[u8]) -> Option<ImageSize> {
    let mut found = None;
    let mut orientation = Orientation::default();
    let mut at = 2;
    for _ in 0..STEPS_MAX {
        // Any number of fill bytes may stand before a marker, and real files have stray bytes.
        if *bytes.get(at)? != 0xff {
            at += 1;
            continue;
        }
        let marker = *bytes.get(at + 1)?;
        match marker {
            0xff => at += 1,
            // A stuffed byte, and markers without a segment.
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            // The first scan or the end of the image: nothing behind it is header.
            0xd9 | 0xda => return orientation.apply(found?),
            _ => {
                let length = usize::from(be16(bytes, at + 2)?);
                let segment = bytes.get(at + 4..at + 2 + length)?;
                match marker {
                    0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                        found = Some(ImageSize {
                            width: be16(segment, 3)?.into(),
                            height: be16(segment, 1)?.into(),
                        });
                    }
                    0xe1 => read_app1(segment, &mut orientation),
                    _ => {}
                }
                at += 2 + length;
            }
        }
    }
    None
}

fn read_app1(segment: &[u8], orientation: &mut Orientation) {
    if segment.starts_with(b"Exif\0\0") {
        orientation.read_exif(segment);
    } else if let Some(packet) = segment.strip_prefix(XMP_MARK) {
        orientation.read_xmp(packet);
    }
}
