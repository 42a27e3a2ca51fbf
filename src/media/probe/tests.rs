use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::{any, prop, proptest};
use serde_json::Value;

use super::{Format, check_size, probe};
use crate::config::media::MediaConfig;
use crate::media::MediaError;
use crate::vision::ImageSize;

fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images");
    std::fs::read(folder.join(name)).unwrap()
}

fn manifest() -> Vec<Value> {
    let manifest: Value = serde_json::from_slice(&golden("manifest.json")).unwrap();
    manifest["files"].as_array().unwrap().clone()
}

type Verdict = Result<(Format, Option<ImageSize>), MediaError>;

fn size(width: u32, height: u32) -> ImageSize {
    ImageSize { width, height }
}

/// Each golden image has the size that Pillow shows after applying the orientation.
#[test]
fn sizes_are_pillows() {
    let mut compared = 0;
    for row in manifest() {
        let name = row["file"].as_str().unwrap();
        let verdict = probe(&golden(name));
        let shown = [&row["size_after_exif_transpose"], &row["size"]]
            .into_iter()
            .find_map(|pair| serde_json::from_value::<(u32, u32)>(pair.clone()).ok());
        match (row["format"].as_str(), shown) {
            (Some("TIFF"), _) => assert_eq!(
                verdict,
                Err(MediaError::UnsupportedFormat { format: "TIFF" })
            ),
            (Some("AVIF"), _) => assert_eq!(
                verdict,
                Err(MediaError::UnsupportedFormat { format: "AVIF" })
            ),
            (Some(format), Some((width, height))) => {
                let (found, found_size) = verdict.unwrap();
                assert_eq!(found.mime(), format!("image/{}", format.to_lowercase()));
                assert_eq!(found_size, Some(size(width, height)), "{name}");
                compared += 1;
            }
            _ => {}
        }
    }
    assert_eq!(compared, 30, "images that Pillow opens");
}

#[test]
fn what_pillow_refuses_gets_a_plain_verdict() {
    let rows = [
        ("empty.png", Err(MediaError::Empty)),
        ("not_an_image.png", Err(MediaError::UnknownFormat)),
        (
            "vector.svg",
            Err(MediaError::UnsupportedFormat { format: "SVG" }),
        ),
        ("header_only.jpg", Ok((Format::Jpeg, None))),
        (
            "bomb_60000x60000.png",
            Ok((Format::Png, Some(size(60_000, 60_000)))),
        ),
    ];
    for (name, expected) in rows {
        assert_eq!(probe(&golden(name)), expected, "{name}");
    }
}

#[test]
fn odd_bytes_get_a_plain_verdict() {
    let unsupported = |format| Err(MediaError::UnsupportedFormat { format });
    let rows: [(&[u8], Verdict); 18] = [
        (b"<!doctype html><p>no", Err(MediaError::UnknownFormat)),
        (b"BMW is a maker of cars", Err(MediaError::UnknownFormat)),
        (b"RIFF\0\0\0\0WAVE", Err(MediaError::UnknownFormat)),
        (b"\xff\xd8\xff", Ok((Format::Jpeg, None))),
        (b"\xff\xd8\xff\xd9", Ok((Format::Jpeg, None))),
        (b"\x89PNG\r\n\x1a\n", Ok((Format::Png, None))),
        (b"GIF89a", Ok((Format::Gif, None))),
        (b"GIF89a\x05\0\x04\0\0\0\0;", Ok((Format::Gif, None))),
        (
            b"GIF89a\x05\0\x04\0\0\0\0!\xfe\x02hi\0,\x01\0\0\0\x06\0\x03\0",
            Ok((Format::Gif, Some(size(7, 4)))),
        ),
        (
            b"GIF89a\0\0\x04\0\0\0\0,\0\0\0\0\0\0\0\0\0",
            Err(MediaError::NoPixels {
                width: 0,
                height: 4,
            }),
        ),
        (b"RIFF\0\0\0\0WEBPVP8 ", Ok((Format::Webp, None))),
        (b"\0\0\0\x20ftypheic\0\0", unsupported("HEIC")),
        (b"\0\0\0\x20ftypisom\0\0", unsupported("ISO media")),
        (b"\0\0\0\x0cjP  \r\n\x87\n", unsupported("JPEG 2000")),
        (b"\0\0\x01\0\x01\0", unsupported("ICO")),
        (
            b"\n<?xml version='1.0'?><!-- a --><svg>",
            unsupported("SVG"),
        ),
        (b"%PDF-1.7", unsupported("PDF")),
        (b"8BPS", unsupported("PSD")),
    ];
    for (bytes, expected) in rows {
        assert_eq!(probe(bytes), expected, "{}", bytes.escape_ascii());
    }
}

/// A top-down BMP has a negative height, an OS/2 one sides of two bytes.
#[test]
fn bmp_headers_of_both_kinds() {
    let mut top_down = golden("rgb24.bmp");
    top_down[22..26].copy_from_slice(&(-40_i32).to_le_bytes());
    assert_eq!(probe(&top_down), Ok((Format::Bmp, Some(size(60, 40)))));
    let mut short = golden("rgb24.bmp");
    short[14..22].copy_from_slice(&[12, 0, 0, 0, 7, 0, 9, 0]);
    assert_eq!(probe(&short), Ok((Format::Bmp, Some(size(7, 9)))));
}

fn png_with(chunk: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut bytes = golden("rgb8.png");
    let mut extra = u32::try_from(content.len()).unwrap().to_be_bytes().to_vec();
    extra.extend(chunk);
    extra.extend(content);
    extra.extend([0; 4]);
    let end = bytes.len() - 12;
    bytes.splice(end..end, extra);
    bytes
}

/// Metadata counts behind the pixels too, and compressed metadata leaves the size open.
#[test]
fn png_metadata_in_every_form() {
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
    let xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation=\"6\"/>";
    let packed = b"XML:com.adobe.xmp\0\x01\0\0\0x";
    let rows: [(&[u8; 4], &[u8], Option<ImageSize>); 6] = [
        (b"eXIf", exif, Some(size(77, 123))),
        (b"iTXt", xmp, Some(size(77, 123))),
        (b"iTXt", packed, None),
        (b"zTXt", b"Raw profile type exif\0\0x", None),
        (b"tEXt", b"Raw profile type exif\0x", None),
        (b"tEXt", b"Comment\0eXIf", Some(size(123, 77))),
    ];
    for (chunk, content, expected) in rows {
        let verdict = probe(&png_with(chunk, content));
        assert_eq!(verdict, Ok((Format::Png, expected)), "{chunk:?}");
    }
}

#[test]
fn limits_hold_to_the_pixel() {
    let policy = MediaConfig::default();
    let rows = [
        (size(1, 1), None),
        (size(1, 200), None),
        (size(201, 1), Some("image_too_large")),
        (size(1, 300), Some("image_too_large")),
        (size(32_768, 164), None),
        (size(32_769, 200), Some("image_too_large")),
        (size(13_377, 13_377), None),
        (size(13_378, 13_377), Some("image_too_large")),
        (size(u32::MAX, u32::MAX), Some("image_too_large")),
    ];
    for (size, expected) in rows {
        let code = check_size(size, &policy).err().map(|error| error.code());
        assert_eq!(code, expected, "{size:?}");
    }
}

/// The least of several runs: the machine may be busy with something else.
fn fastest(bytes: &[u8]) -> Duration {
    let once = || {
        let start = Instant::now();
        let _ = std::hint::black_box(probe(std::hint::black_box(bytes)));
        start.elapsed()
    };
    (0..20).map(|_| once()).min().unwrap()
}

/// Files made to be slow: 20 MiB of the smallest steps of each format.
#[test]
fn no_header_takes_long() {
    let length = 20 << 20;
    let grow = |start: &[u8], fill: &[u8]| {
        let mut bytes = start.to_vec();
        bytes.extend(fill.iter().cycle().take(length));
        bytes
    };
    let rows = [
        ("bomb", golden("bomb_60000x60000.png")),
        ("jpeg junk", grow(b"\xff\xd8\xff", b"\0")),
        ("jpeg fill", grow(b"\xff\xd8\xff", b"\xff")),
        ("jpeg segments", grow(b"\xff\xd8", b"\xff\xfe\0\x02")),
        ("gif blocks", grow(b"GIF89a\x01\0\x01\0\0\0\0", b"!\xfe\0")),
        (
            "gif sub-blocks",
            grow(b"GIF89a\x01\0\x01\0\0\0\0!\xfe", b"\x01x"),
        ),
        (
            "png chunks",
            grow(&golden("bomb_60000x60000.png")[..33], b"\0\0\0\0aaaaxxxx"),
        ),
        (
            "webp chunks",
            grow(
                b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x0c\0\0\0\x01\0\0\x01\0\0",
                b"aaaa\0\0\0\0",
            ),
        ),
    ];
    for (name, bytes) in rows {
        let took = fastest(&bytes);
        assert!(took < Duration::from_millis(1), "{name} took {took:?}");
    }
}

#[test]
fn no_cut_image_panics() {
    for row in manifest() {
        let bytes = golden(row["file"].as_str().unwrap());
        for part in 0..=64 {
            let _ = probe(&bytes[..bytes.len() * part / 64]);
        }
        // Headers are short: cut them at every byte.
        for end in 0..bytes.len().min(512) {
            let _ = probe(&bytes[..end]);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(
        magic in prop::sample::select(vec![
            &b""[..], b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\0\x40Exif\0\0II*\0", b"GIF89a", b"BM",
            b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WEBPVP8L",
            b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x0c\0\0\0",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = probe(&[magic, &rest].concat());
    }

    #[test]
    fn no_flipped_byte_panics(
        name in prop::sample::select(vec![
            "exif_orientation_6.jpg", "exif_orientation_6.png", "exif_orientation_6.webp",
            "animated.gif", "animated.webp", "rgb24.bmp", "lossless.webp", "progressive.jpg",
        ]),
        flips in prop::collection::vec((0_usize..300, any::<u8>()), 1..8),
    ) {
        let mut bytes = golden(name);
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let _ = probe(&bytes);
    }
}
