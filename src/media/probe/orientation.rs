//! Which way up an image is shown: EXIF's orientation, or XMP's where EXIF has none.

use crate::media::probe::find;
use crate::vision::ImageSize;

const ORIENTATION_TAG: u16 = 0x0112;

/// Longest XMP packet that is searched; a longer one is rare, and its orientation is near its
/// start.
const XMP_BYTES_MAX: usize = 64 << 10;

/// What a file's metadata says about its orientation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Orientation {
    exif: Option<u32>,
    xmp: Option<u32>,
    /// Metadata is there that we cannot read.
    hidden: bool,
}

impl Orientation {
    /// Reads an EXIF block, with or without its `Exif` mark. The first block that has an
    /// orientation counts.
    pub(super) fn read_exif(&mut self, block: &[u8]) {
        let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
        self.exif = self.exif.or_else(|| exif_value(block));
    }

    /// Reads an XMP packet.
    pub(super) fn read_xmp(&mut self, packet: &[u8]) {
        self.xmp = self.xmp.or_else(|| xmp_value(packet));
    }

    /// Notes metadata that may hold an orientation but is compressed.
    pub(super) fn hide(&mut self) {
        self.hidden = true;
    }

    /// `size` as shown: orientations 5 to 8 lie on their side. `None` when hidden metadata decides
    /// it.
    pub(super) fn apply(self, size: ImageSize) -> Option<ImageSize> {
        let value = self.exif.or(self.xmp);
        if value.is_none() && self.hidden && size.width != size.height {
            return None;
        }
        Some(match value {
            Some(5..=8) => ImageSize {
                width: size.height,
                height: size.width,
            },
            _ => size,
        })
    }
}

/// Reads numbers in the byte order of a TIFF header.
struct Tiff<'a> {
    bytes: &'a [u8],
    little: bool,
}

impl Tiff<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        let pair = super::array(self.bytes, at)?;
        Some(if self.little {
            u16::from_le_bytes(pair)
        } else {
            u16::from_be_bytes(pair)
        })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let four = super::array(self.bytes, at)?;
        Some(if self.little {
            u32::from_le_bytes(four)
        } else {
            u32::from_be_bytes(four)
        })
    }
}

/// The orientation of the first image directory.
fn exif_value(bytes: &[u8]) -> Option<u32> {
    let little = match bytes.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let tiff = Tiff { bytes, little };
    let directory = usize::try_from(tiff.u32(4)?).ok()?;
    let count = usize::from(tiff.u16(directory)?);
    let entry = (0..count)
        .map(|n| directory + 2 + 12 * n)
        .find(|&entry| tiff.u16(entry) == Some(ORIENTATION_TAG))?;
    if tiff.u32(entry + 4)? != 1 {
        return None;
    }
    match tiff.u16(entry + 2)? {
        1 => bytes.get(entry + 8).copied().map(u32::from),
        3 => tiff.u16(entry + 8).map(u32::from),
        4 => tiff.u32(entry + 8),
        _ => None,
    }
}

/// `tiff:Orientation="6"` or `<tiff:Orientation>6`.
fn xmp_value(packet: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    let packet = &packet[..packet.len().min(XMP_BYTES_MAX)];
    let rest = &packet[find(packet, NAME)? + NAME.len()..];
    let digit = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">"))?;
    char::from(*digit.first()?).to_digit(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exif(order: &[u8; 2], kind: u16, count: u32, value: u32) -> Vec<u8> {
        let little = order == b"II";
        let short = |n: u16| {
            if little {
                n.to_le_bytes()
            } else {
                n.to_be_bytes()
            }
        };
        let long = |n: u32| {
            if little {
                n.to_le_bytes()
            } else {
                n.to_be_bytes()
            }
        };
        let value = match (kind, little) {
            (3, false) => value << 16,
            (1, false) => value << 24,
            _ => value,
        };
        let mut block = order.to_vec();
        block.extend(short(42));
        block.extend(long(8));
        block.extend(short(1));
        block.extend(short(ORIENTATION_TAG));
        block.extend(short(kind));
        block.extend(long(count));
        block.extend(long(value));
        block
    }

    #[test]
    fn orientations_five_to_eight_lie_on_their_side() {
        let size = ImageSize {
            width: 3,
            height: 2,
        };
        for order in [b"II", b"MM"] {
            for kind in [1, 3, 4] {
                for value in 0..10 {
                    let mut orientation = Orientation::default();
                    orientation.read_exif(&exif(order, kind, 1, value));
                    let shown = orientation.apply(size).unwrap();
                    let turned = (5..=8).contains(&value);
                    assert_eq!(shown.width, if turned { 2 } else { 3 }, "{kind} {value}");
                }
            }
        }
        let mut odd = Orientation::default();
        odd.read_exif(&exif(b"II", 3, 2, 6));
        odd.read_exif(&exif(b"II", 12, 1, 6));
        assert_eq!(odd.apply(size), Some(size));
    }

    #[test]
    fn xmp_counts_only_where_exif_is_silent() {
        let size = ImageSize {
            width: 3,
            height: 2,
        };
        let rows: [(&[u8], Option<u32>, u32); 5] = [
            (b"<x tiff:Orientation=\"6\"/>", None, 2),
            (b"<tiff:Orientation>8</tiff:Orientation>", None, 2),
            (b"<x tiff:Orientation='6'/>", None, 3),
            (b"tiff:Orientation", None, 3),
            (b"<x tiff:Orientation=\"6\"/>", Some(1), 3),
        ];
        for (packet, exif_value, width) in rows {
            let mut orientation = Orientation::default();
            orientation.read_xmp(packet);
            if let Some(value) = exif_value {
                orientation.read_exif(&exif(b"MM", 3, 1, value));
            }
            assert_eq!(orientation.apply(size).unwrap().width, width, "{packet:?}");
        }
    }

    #[test]
    fn hidden_metadata_hides_the_size_unless_it_is_square_or_exif_speaks() {
        let size = |width, height| ImageSize { width, height };
        let mut hidden = Orientation::default();
        hidden.hide();
        assert_eq!(hidden.apply(size(3, 2)), None);
        assert_eq!(hidden.apply(size(3, 3)), Some(size(3, 3)));
        hidden.read_exif(&exif(b"II", 3, 1, 6));
        assert_eq!(hidden.apply(size(3, 2)), Some(size(2, 3)));
    }
}
