//! A model's files as they travel between hosts: one body, named by its digest.

use std::collections::BTreeMap;
use std::fmt;
use std::str;

use bytes::Bytes;

/// First bytes of the body: its form and version, so that nothing else ever has its digest.
const DOMAIN: &[u8] = b"kvlens model files 1\n";

/// Largest body that is read: some times the largest tokenizer of a public model (33 MB).
pub const ARCHIVE_BYTES_MAX: usize = 256 << 20;

/// Hex digits of a digest that are shown to people.
const SHOWN_DIGITS: usize = 12;

/// Names the files that a model's prompts are rendered and tokenised with: BLAKE3 of all their names
/// and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModelDigest(blake3::Hash);

/// A model's files in one body: after a tag of its domain, for each by name, its name and its bytes, each
/// behind its length as u64 LE.
#[derive(Clone, PartialEq, Eq)]
pub struct Archive {
    body: Bytes,
    digest: ModelDigest,
}

/// Why a body is not the files that were wanted.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("the files have digest {}, and {} was wanted", found.short(), wanted.short())]
    OtherBytes {
        wanted: ModelDigest,
        found: ModelDigest,
    },
    #[error("the body is not a model's files: it breaks off or goes wrong at byte {at}")]
    Malformed { at: usize },
}

impl ModelDigest {
    /// Reads the 64 hex digits of a digest; `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(Self)
    }

    /// Its first digits, for people.
    pub fn short(&self) -> String {
        let mut hex = self.to_string();
        hex.truncate(SHOWN_DIGITS);
        hex
    }
}

impl fmt::Display for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}

impl Archive {
    /// Packs files by name.
    pub(super) fn pack(files: &BTreeMap<&str, String>) -> Self {
        let bytes = |(name, text): (&&str, &String)| 16 + name.len() + text.len();
        let size: usize = files.iter().map(bytes).sum();
        let mut body = Vec::with_capacity(DOMAIN.len() + size);
        body.extend_from_slice(DOMAIN);
        for (name, text) in files {
            for field in [name.as_bytes(), text.as_bytes()] {
                body.extend_from_slice(&(field.len() as u64).to_le_bytes());
                body.extend_from_slice(field);
            }
        }
        Self {
            digest: ModelDigest(blake3::hash(&body)),
            body: body.into(),
        }
    }

    /// Takes a body that came from elsewhere.
    ///
    /// # Errors
    /// When it is not the one of digest `wanted`.
    pub fn receive(body: Bytes, wanted: ModelDigest) -> Result<Self, ArchiveError> {
        let found = ModelDigest(blake3::hash(&body));
        match found == wanted {
            true => Ok(Self {
                body,
                digest: found,
            }),
            false => Err(ArchiveError::OtherBytes { wanted, found }),
        }
    }

    /// What names the files.
    pub fn digest(&self) -> ModelDigest {
        self.digest
    }

    /// The body to send.
    pub fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// The files by name.
    ///
    /// # Errors
    /// When the body has another form.
    pub fn files(&self) -> Result<BTreeMap<&str, &str>, ArchiveError> {
        let malformed = |rest: &[u8]| ArchiveError::Malformed {
            at: self.body.len() - rest.len(),
        };
        let mut files = BTreeMap::new();
        let mut rest = self
            .body
            .strip_prefix(DOMAIN)
            .ok_or(ArchiveError::Malformed { at: 0 })?;
        while !rest.is_empty() {
            let name = field(&mut rest).ok_or_else(|| malformed(rest))?;
            let text = field(&mut rest).ok_or_else(|| malformed(rest))?;
            files.insert(name, text);
        }
        Ok(files)
    }
}

/// The first field of `rest`, which is then what follows it.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let (length, behind) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (field, behind) = behind.split_at_checked(length)?;
    *rest = behind;
    str::from_utf8(field).ok()
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Archive({}, {} bytes)", self.digest, self.body.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(files: &[(&'static str, &str)]) -> Archive {
        let files = files.iter().map(|(name, text)| (*name, (*text).to_owned()));
        Archive::pack(&files.collect())
    }

    #[test]
    fn what_is_packed_is_read_and_nothing_else_has_its_digest() {
        let files = [("b.json", "{}"), ("a.jinja", "ä")];
        let archive = packed(&files);
        let received = Archive::receive(archive.body(), archive.digest()).unwrap();
        assert_eq!(
            received.files().unwrap(),
            BTreeMap::from([("a.jinja", "ä"), ("b.json", "{}")])
        );
        let hex = archive.digest().to_string();
        assert_eq!(ModelDigest::from_hex(&hex), Some(archive.digest()));
        assert_eq!(archive.digest().short(), hex[..12]);
        for other in [
            &[("a.jinja", "ä")] as &[_],
            &[("b.json", "{} "), ("a.jinja", "ä")],
            &[("b.jso", "n{}"), ("a.jinja", "ä")],
        ] {
            let other = packed(other);
            assert_ne!(other.digest(), archive.digest());
            let error = Archive::receive(other.body(), archive.digest()).unwrap_err();
            let both = [other.digest().short(), archive.digest().short()];
            let error = error.to_string();
            assert!(both.iter().all(|digest| error.contains(digest)), "{error}");
        }
    }

    #[test]
    fn a_body_of_another_form_is_refused_where_it_goes_wrong() {
        let whole = packed(&[("a", "text")]).body();
        let cut = whole.slice(..whole.len() - 1);
        let mut long = whole.to_vec();
        long[DOMAIN.len()..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
        for (body, at) in [
            (Bytes::from_static(b"no"), 0),
            (cut, DOMAIN.len() + 9),
            (Bytes::from(long), DOMAIN.len()),
        ] {
            let digest = ModelDigest(blake3::hash(&body));
            let archive = Archive::receive(body, digest).unwrap();
            match archive.files() {
                Err(ArchiveError::Malformed { at: found }) => assert_eq!(found, at),
                other => panic!("{other:?}"),
            }
        }
    }
}
