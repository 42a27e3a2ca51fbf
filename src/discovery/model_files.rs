//! Where an agent serves the files of its model.

use crate::model::archive::ModelDigest;

/// What the files are: their digest, names and sizes.
pub const MODEL_PATH: &str = "/kvlens/v1/model";

/// The files themselves, asked for by their digest.
pub const MODEL_FILES_PATH: &str = "/kvlens/v1/model/files";

const DIGEST: &str = "digest=";

/// The path and query by which the files of one digest are asked for.
pub fn files_of(digest: ModelDigest) -> String {
    format!("{MODEL_FILES_PATH}?{DIGEST}{digest}")
}

/// The digest that a query asks for; `None` where it names none.
pub fn asked_digest(query: &str) -> Option<ModelDigest> {
    let value = query
        .split('&')
        .find_map(|pair| pair.strip_prefix(DIGEST))?;
    ModelDigest::from_hex(value)
}
