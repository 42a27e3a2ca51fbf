//! A model as a command line names it: by folder or by id.

use std::path::{Path, PathBuf};

use crate::model::archive::Archive;
use crate::model::{Model, ModelError};

/// The name that the demo model is served under, and by which it may be asked for.
pub const DEMO: &str = "demo";

/// Of each of these a model that an engine can serve has one: how it is built, and how texts become its
/// tokens.
const WHOLE: [&[&str]; 2] = [
    &["config.json", "params.json"],
    &[
        "tokenizer.json",
        "tokenizer.model",
        "tekken.json",
        "vocab.json",
    ],
];

/// A model and the name it is served under.
#[derive(Debug)]
pub struct Named {
    /// A folder's own name, or the id.
    pub name: String,
    /// `None` for the demo model.
    pub folder: Option<PathBuf>,
    pub model: Model,
    /// The files that it was read from.
    pub archive: Archive,
}

impl Named {
    /// Reads the model of a folder or of an id.
    ///
    /// # Errors
    /// When there is none, or its files cannot be used.
    pub fn read(text: &str) -> Result<Self, ModelError> {
        let (name, folder) = locate(text)?;
        let (model, archive) = Model::load_packed(&folder)?;
        Ok(Self {
            name,
            folder: Some(folder),
            model,
            archive,
        })
    }

    /// The demo model inside the binary.
    ///
    /// # Errors
    /// Never in a tested build.
    pub fn demo() -> Result<Self, ModelError> {
        let (model, archive) = Model::demo_packed()?;
        Ok(Self {
            name: DEMO.to_owned(),
            folder: None,
            model,
            archive,
        })
    }

    /// As [`Named::read`]; `demo` that is no folder is the demo model.
    ///
    /// # Errors
    /// As [`Named::read`].
    pub fn read_or_demo(text: &str) -> Result<Self, ModelError> {
        match text == DEMO && !Path::new(text).is_dir() {
            true => Self::demo(),
            false => Self::read(text),
        }
    }
}

/// As [`locate`], of a model that an engine is to read: one that lacks a part is told of here, rather
/// than by each of the engine's lives.
///
/// # Errors
/// As [`locate`], and where the folder lacks its configuration or its tokenizer.
pub fn locate_whole(text: &str) -> Result<(String, PathBuf), ModelError> {
    let (name, folder) = locate(text)?;
    for names in WHOLE {
        if !names.iter().any(|name| folder.join(name).is_file()) {
            let path = folder.join(names[0]).display().to_string();
            return Err(ModelError::Missing { path });
        }
    }
    Ok((name, folder))
}

/// The name that a model is served under unless told, and its folder.
///
/// # Errors
/// When there is no such folder, and no such model in the Hugging Face cache.
pub fn locate(text: &str) -> Result<(String, PathBuf), ModelError> {
    let folder = Model::resolve(text, |name| std::env::var_os(name))?;
    let name = match folder.file_name().filter(|_| Path::new(text).is_dir()) {
        Some(last) => last.to_string_lossy().into_owned(),
        None => text.to_owned(),
    };
    Ok((name, folder))
}
