//! Images of a request: decoded for real, named, and remembered by name as vLLM's processor does.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use serde_json::Value;

use crate::mock::refusal::Refusal;
use crate::vision::ImageSize;

/// Most images remembered. vLLM bounds its cache in bytes; an entry here stands for a few MiB of
/// processed pixels of its 4 GiB.
const REMEMBERED_MAX: usize = 1024;

/// An image as the engine saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The client's uuid verbatim, else a digest.
    pub id: Arc<str>,
    /// After orientation.
    pub size: ImageSize,
    pub format: &'static str,
}

/// The engine's processor cache, by identity. A known identity is trusted, whatever pixels come
/// with it, so those are not even decoded.
#[derive(Debug)]
pub struct Images {
    model: String,
    /// Links followed; `None` where no file may be read.
    folder: Option<PathBuf>,
    remembered: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    images: HashMap<Arc<str>, (u64, Seen)>,
    by_use: BTreeMap<u64, Arc<str>>,
    uses: u64,
    queries: u64,
    hits: u64,
}

impl Images {
    /// An empty cache. `model` goes into the digests, as in vLLM; files are read below `folder`.
    pub fn new(model: &str, folder: Option<PathBuf>) -> Self {
        Self {
            model: model.to_owned(),
            folder,
            remembered: Mutex::default(),
        }
    }

    /// Looks at the image of an `image_url` part.
    ///
    /// # Errors
    /// When there is neither a known uuid nor an image that can be decoded.
    pub fn see(&self, part: &Value, index: usize) -> Result<Seen, Refusal> {
        let uuid = part["uuid"].as_str();
        let url = match &part["image_url"] {
            Value::String(url) => Some(url.as_str()),
            image => image["url"].as_str(),
        };
        // A file is read whether or not the uuid is known, as vLLM does: one that is gone shows.
        let file = url.and_then(|url| url.strip_prefix("file://"));
        let file = file.map(|path| self.file(path)).transpose()?;
        if let Some(seen) = uuid.and_then(|id| self.recall(id)) {
            return Ok(seen);
        }
        let bytes = match (file, url) {
            (Some(bytes), _) => bytes,
            (None, Some(url)) => data_uri(url, index)?,
            (None, None) => return Err(Refusal::MediaNotCached { index }),
        };
        let digest = uuid.is_none().then(|| self.digest(&bytes));
        if let Some(seen) = digest.as_deref().and_then(|id| self.recall(id)) {
            return Ok(seen);
        }
        let (size, format) = decode(&bytes).map_err(|error| Refusal::Undecodable {
            index,
            reason: error.to_string(),
        })?;
        let id = Arc::from(uuid.or(digest.as_deref()).unwrap_or_default());
        let seen = Seen { id, size, format };
        self.lock().insert(seen.clone());
        Ok(seen)
    }

    /// Look-ups and hits since the start.
    pub fn queries_and_hits(&self) -> (u64, u64) {
        let remembered = self.lock();
        (remembered.queries, remembered.hits)
    }

    /// The bytes of a file below the folder, in vLLM's words where there are none.
    fn file(&self, path: &str) -> Result<Vec<u8>, Refusal> {
        let Some(folder) = &self.folder else {
            let message = "Cannot load local files without `--allowed-local-media-path`.";
            return Err(Refusal::Broken(message.to_owned()));
        };
        let failed = |error: std::io::Error| Refusal::Broken(format!("{error}: '{path}'"));
        let resolved = Path::new(path).canonicalize().map_err(failed)?;
        if resolved == *folder || !resolved.starts_with(folder) {
            return Err(Refusal::invalid(format!(
                "The file path {path} must be a subpath of `--allowed-local-media-path {}`.",
                folder.display()
            )));
        }
        std::fs::read(&resolved).map_err(failed)
    }

    fn recall(&self, id: &str) -> Option<Seen> {
        self.lock().get(id)
    }

    /// A name for bytes without a uuid: covers the encoded bytes and the model's name.
    fn digest(&self, bytes: &[u8]) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut frame = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        frame(b"image");
        frame(bytes);
        frame(b"model_id");
        frame(self.model.as_bytes());
        hasher.finalize().to_hex().to_string()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn get(&mut self, id: &str) -> Option<Seen> {
        self.queries += 1;
        let (used, seen) = self.images.get_mut(id)?;
        self.hits += 1;
        self.uses += 1;
        self.by_use.remove(used);
        *used = self.uses;
        self.by_use.insert(self.uses, Arc::clone(&seen.id));
        Some(seen.clone())
    }

    fn insert(&mut self, seen: Seen) {
        self.uses += 1;
        self.by_use.insert(self.uses, Arc::clone(&seen.id));
        if let Some((used, _)) = self.images.insert(Arc::clone(&seen.id), (self.uses, seen)) {
            self.by_use.remove(&used);
        }
        if self.images.len() > REMEMBERED_MAX
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.images.remove(&oldest);
        }
    }
}

fn data_uri(url: &str, index: usize) -> Result<Vec<u8>, Refusal> {
    let refuse = |reason: &str| Refusal::invalid(format!("image at index {index}: {reason}"));
    let payload = url
        .strip_prefix("data:")
        .ok_or_else(|| refuse("only data: URIs are fetched here"))?;
    let (_, encoded) = payload
        .split_once(";base64,")
        .ok_or_else(|| refuse("only base64 data URIs are supported"))?;
    base64_simd::STANDARD
        .decode_to_vec(encoded)
        .map_err(|error| refuse(&error.to_string()))
}

/// Decodes the whole image, as an engine does, so that broken payloads are noticed.
fn decode(bytes: &[u8]) -> image::ImageResult<(ImageSize, &'static str)> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let format = reader.format().map_or("image", format_name);
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let image = DynamicImage::from_decoder(decoder)?;
    let (width, height) = (image.width(), image.height());
    let size = if is_turned(orientation) {
        ImageSize {
            width: height,
            height: width,
        }
    } else {
        ImageSize { width, height }
    };
    Ok((size, format))
}

fn is_turned(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

fn format_name(format: ImageFormat) -> &'static str {
    format.extensions_str().first().copied().unwrap_or("image")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn part(width: u32, height: u32, uuid: Option<&str>) -> Value {
        let mut png = Cursor::new(Vec::new());
        DynamicImage::new_rgb8(width, height)
            .write_to(&mut png, ImageFormat::Png)
            .unwrap();
        let data = base64_simd::STANDARD.encode_to_string(png.into_inner());
        let url = format!("data:image/png;base64,{data}");
        json!({ "type": "image_url", "image_url": { "url": url }, "uuid": uuid })
    }

    #[test]
    fn a_known_uuid_is_trusted() {
        let images = Images::new("demo", None);
        let first = images.see(&part(12, 8, Some("dup")), 0).unwrap();
        assert_eq!((first.size.width, first.size.height), (12, 8));
        assert_eq!(images.see(&part(40, 40, Some("dup")), 0).unwrap(), first);
        let bare = json!({ "image_url": null, "uuid": "dup" });
        assert_eq!(images.see(&bare, 0).unwrap(), first);
        assert_eq!(images.queries_and_hits(), (3, 2));
    }

    #[test]
    fn bytes_without_uuid_are_named_by_content() {
        let images = Images::new("demo", None);
        let first = images.see(&part(12, 8, None), 0).unwrap();
        assert_eq!(first.id.len(), 64);
        assert_eq!(images.see(&part(12, 8, None), 0).unwrap(), first);
        assert_ne!(images.see(&part(8, 12, None), 0).unwrap().id, first.id);
    }

    #[test]
    fn what_cannot_be_seen_is_refused() {
        let images = Images::new("demo", None);
        let rows = [
            (
                json!({ "image_url": null, "uuid": "new" }),
                "Cache miss for image at index 3",
            ),
            (
                json!({ "image_url": { "url": "http://127.0.0.1/a.png" } }),
                "only data: URIs",
            ),
            (
                json!({ "image_url": { "url": "data:image/png;base64,????" } }),
                "image at index 3",
            ),
            (
                json!({ "image_url": { "url": "data:image/png;base64,AAAA" } }),
                "cannot identify",
            ),
        ];
        for (part, expected) in rows {
            let refusal = images.see(&part, 3).unwrap_err().to_string();
            assert!(refusal.contains(expected), "{refusal}");
        }
    }

    #[test]
    fn files_are_read_below_the_folder_alone() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        std::fs::create_dir(at("in")).unwrap();
        let mut png = Cursor::new(Vec::new());
        let image = DynamicImage::new_rgb8(12, 8);
        image.write_to(&mut png, ImageFormat::Png).unwrap();
        for name in ["in/a.png", "b.png"] {
            std::fs::write(at(name), png.get_ref()).unwrap();
        }
        std::os::unix::fs::symlink(at("b.png"), at("in/link.png")).unwrap();
        let images = Images::new("demo", Some(at("in").canonicalize().unwrap()));
        let see = |images: &Images, name: &str, uuid: Option<&str>| {
            let url = format!("file://{}", at(name).display());
            let part = json!({ "image_url": { "url": url }, "uuid": uuid });
            images.see(&part, 0)
        };
        let seen = see(&images, "in/a.png", None).unwrap();
        assert_eq!((seen.size.width, seen.format), (12, "png"));
        see(&images, "in/a.png", Some("known")).unwrap();
        let refused = |images: &Images, name| {
            let refusal = see(images, name, Some("known")).unwrap_err();
            (refusal.reply().status.as_u16(), refusal.to_string())
        };
        for (name, status, words) in [
            (
                "b.png",
                400,
                "must be a subpath of `--allowed-local-media-path",
            ),
            ("in/../b.png", 400, "must be a subpath"),
            ("in/link.png", 400, "must be a subpath"),
            ("in/gone.png", 500, "gone.png'"),
        ] {
            let (answered, text) = refused(&images, name);
            assert_eq!(answered, status, "{name}");
            assert!(text.contains(words), "{text}");
        }
        let (answered, text) = refused(&Images::new("demo", None), "in/a.png");
        assert_eq!(answered, 500);
        assert!(
            text.starts_with("Cannot load local files without"),
            "{text}"
        );
    }

    #[test]
    fn the_least_recently_seen_image_is_forgotten_first() {
        let mut remembered = Remembered::default();
        let seen = |id: usize| Seen {
            id: Arc::from(id.to_string()),
            size: ImageSize {
                width: 1,
                height: 1,
            },
            format: "png",
        };
        (0..REMEMBERED_MAX).for_each(|id| remembered.insert(seen(id)));
        assert!(remembered.get("0").is_some());
        remembered.insert(seen(REMEMBERED_MAX));
        assert!(remembered.get("0").is_some() && remembered.get("1").is_none());
    }
}
