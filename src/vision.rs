//! From an image's width and height to the tokens an engine puts in its place: one file per model
//! family.

pub mod qwen;

use serde_json::Value;

/// Width and height in pixels, orientation applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageSize {
    pub width: u32,
    pub height: u32,
}

/// `count` times the same token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub token: u32,
    pub count: u32,
}

/// What replaces one placeholder token in the prompt: runs of tokens in order, the structural ones
/// included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expansion {
    pub runs: Vec<Run>,
}

impl Expansion {
    /// Length in tokens.
    pub fn token_count(&self) -> u32 {
        self.runs.iter().map(|run| run.count).sum()
    }
}

/// Why an image has no expansion, or a model's configuration none for any image.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum VisionError {
    #[error("image of {width}x{height} pixels: the longer side is over {max} times the shorter")]
    AspectRatio { width: u32, height: u32, max: u32 },
    #[error("image of {width}x{height} pixels expands to more tokens than a prompt can count")]
    TooManyTokens { width: u32, height: u32 },
    #[error("{file} has no usable {key:?}")]
    MissingKey {
        file: &'static str,
        key: &'static str,
    },
}

/// A model family whose expansions we know.
#[derive(Clone, Debug)]
pub enum Family {
    Qwen(qwen::Qwen),
}

impl Family {
    /// Reads the family from a model's `config.json` and `preprocessor_config.json`; `None` for a
    /// model that takes no images or whose family is not known.
    ///
    /// # Errors
    /// When the family is known but a key it needs is missing.
    pub fn from_config(config: &Value, preprocessor: &Value) -> Result<Option<Self>, VisionError> {
        match config["model_type"].as_str() {
            Some(name) if qwen::Qwen::handles(name) => {
                let qwen = qwen::Qwen::from_config(config, preprocessor)?;
                Ok(Some(Self::Qwen(qwen)))
            }
            _ => Ok(None),
        }
    }

    /// Its name, for a person.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Qwen(_) => "qwen",
        }
    }

    /// The token that stands for one image before expansion.
    pub fn placeholder(&self) -> u32 {
        match self {
            Self::Qwen(qwen) => qwen.placeholder(),
        }
    }

    /// The text the engine writes for an image where the template cannot: wrappers and placeholder.
    pub fn placeholder_text(&self) -> &'static str {
        match self {
            Self::Qwen(_) => qwen::PLACEHOLDER_TEXT,
        }
    }

    /// Spellings of the placeholder and structural media tokens, which no user's text may contain.
    pub fn media_tokens(&self) -> &'static [&'static str] {
        match self {
            Self::Qwen(_) => qwen::MEDIA_TOKENS,
        }
    }

    /// What replaces the placeholder of an image of this size.
    ///
    /// # Errors
    /// When the family's own processor refuses the size.
    pub fn expand(&self, size: ImageSize) -> Result<Expansion, VisionError> {
        match self {
            Self::Qwen(qwen) => qwen.expand(size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const IMAGE_PAD: u32 = 151_655;

    fn config(model_type: &str) -> Value {
        json!({"model_type": model_type, "image_token_id": IMAGE_PAD, "vision_token_id": 151_654})
    }

    fn golden(name: &str) -> Value {
        let path = format!(
            "{}/tests/golden/tokens/{name}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn check(family: &Family, case: &Value) {
        let side = |key: &str| u32::try_from(case[key].as_u64().unwrap()).unwrap();
        let (width, height) = (side("width"), side("height"));
        let got = family.expand(ImageSize { width, height });
        if case["error"].is_string() {
            let max = 200;
            assert_eq!(got, Err(VisionError::AspectRatio { width, height, max }));
        } else {
            let count = side("num_tokens");
            let runs = vec![Run {
                token: IMAGE_PAD,
                count,
            }];
            assert_eq!(got, Ok(Expansion { runs }), "{width}x{height}");
        }
    }

    #[test]
    fn counts_equal_the_processors_own() {
        for (file, model_type) in [
            ("qwen2_vl", "qwen2_vl"),
            ("qwen2_5_vl", "qwen2_5_vl"),
            ("qwen2_5_vl_maxpx_1003520", "qwen2_5_vl"),
            ("qwen3_vl", "qwen3_vl"),
            ("qwen3_vl", "qwen3_vl_moe"),
            ("qwen3_5", "qwen3_5"),
        ] {
            let golden = golden(file);
            let family = Family::from_config(&config(model_type), &golden["config"]);
            let family = family.unwrap().unwrap();
            assert_eq!(family.placeholder(), IMAGE_PAD);
            let cases = golden["cases"].as_array().unwrap();
            assert!(cases.len() >= 72, "{file} lost rows");
            cases.iter().for_each(|case| check(&family, case));
        }
    }

    #[test]
    fn min_and_max_pixels_win_over_size() {
        let size = json!({"shortest_edge": 3136, "longest_edge": 12_845_056});
        let only_size = json!({"patch_size": 14, "merge_size": 2, "size": size});
        let mut both = only_size.clone();
        both["max_pixels"] = json!(1_003_520);
        for (preprocessor, want) in [(only_size, 5476), (both, 1225)] {
            let family = Family::from_config(&config("qwen2_vl"), &preprocessor);
            let expansion = family.unwrap().unwrap().expand(ImageSize {
                width: 2072,
                height: 2072,
            });
            assert_eq!(expansion.unwrap().token_count(), want);
        }
    }

    #[test]
    fn a_malformed_configuration_names_file_and_key() {
        let good = json!({"patch_size": 14, "merge_size": 2, "min_pixels": 1, "max_pixels": 9});
        let broken = |key: &str, value: Value| {
            let mut preprocessor = good.clone();
            preprocessor[key] = value;
            Family::from_config(&config("qwen2_vl"), &preprocessor)
        };
        for (key, value) in [
            ("patch_size", json!(0)),
            ("patch_size", json!("14")),
            ("merge_size", Value::Null),
            ("min_pixels", json!(10)),
            ("max_pixels", json!(-1)),
            ("max_pixels", Value::Null),
        ] {
            let error = broken(key, value.clone()).unwrap_err().to_string();
            let want = format!("preprocessor_config.json has no usable {key:?}");
            assert_eq!(error, want, "{value}");
        }
        let no_id = json!({"model_type": "qwen3_vl", "vision_token_id": 1});
        let error = Family::from_config(&no_id, &good).unwrap_err().to_string();
        assert_eq!(error, "config.json has no usable \"image_token_id\"");
    }

    #[test]
    fn other_models_have_no_family() {
        for config in [json!({}), json!({"model_type": "llama"}), Value::Null] {
            assert!(matches!(
                Family::from_config(&config, &Value::Null),
                Ok(None)
            ));
        }
    }

    #[test]
    fn a_side_of_zero_is_refused() {
        let golden = golden("qwen3_vl");
        let family = Family::from_config(&config("qwen3_vl"), &golden["config"]);
        let family = family.unwrap().unwrap();
        for (width, height) in [(0, 0), (0, 9), (9, 0)] {
            assert!(family.expand(ImageSize { width, height }).is_err());
        }
    }
}
