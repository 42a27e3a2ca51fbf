//! Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: one merged patch is one token.

use serde_json::Value;

use crate::vision::{Expansion, ImageSize, Run, VisionError};

/// What the engine puts into a prompt for an image when the template did not.
pub const PLACEHOLDER_TEXT: &str = "<|vision_start|><|image_pad|><|vision_end|>";

/// Tokens that only a template may write: engines read their positions from the ids alone.
pub const MEDIA_TOKENS: &[&str] = &[
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
];

/// Above this ratio of the sides the processor refuses an image.
const SIDE_RATIO_MAX: u32 = 200;

/// The preprocessor's parameters and the id of `<|image_pad|>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qwen {
    image_token: u32,
    /// Pixels along a side of one merged patch.
    patch_pixels: u32,
    pixels_min: u64,
    pixels_max: u64,
}

impl Qwen {
    /// Accepts the `model_type` values whose images are counted by this file.
    pub fn handles(model_type: &str) -> bool {
        matches!(
            model_type,
            "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl" | "qwen3_vl_moe" | "qwen3_5" | "qwen3_5_moe"
        )
    }

    /// Reads the parameters; `min_pixels` and `max_pixels` win over `size`, as in the engine.
    ///
    /// # Errors
    /// When a key is missing, not a positive integer or contradicts another.
    pub fn from_config(config: &Value, preprocessor: &Value) -> Result<Self, VisionError> {
        // Not vision_token_id: that is <|vision_pad|>, which never reaches a prompt.
        let image_token = config["image_token_id"]
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or(unusable("config.json", "image_token_id"))?;
        let patch_size = side(preprocessor, "patch_size")?;
        let patch_pixels = patch_size
            .checked_mul(side(preprocessor, "merge_size")?)
            .ok_or(unusable(PREPROCESSOR, "merge_size"))?;
        let pixels_min = pixels(preprocessor, "min_pixels", "shortest_edge")?;
        let pixels_max = pixels(preprocessor, "max_pixels", "longest_edge")?;
        if pixels_min > pixels_max {
            return Err(unusable(PREPROCESSOR, "min_pixels"));
        }
        Ok(Self {
            image_token,
            patch_pixels,
            pixels_min,
            pixels_max,
        })
    }

    /// The id of `<|image_pad|>`.
    pub fn placeholder(&self) -> u32 {
        self.image_token
    }

    /// One run of `<|image_pad|>`; the template writes the tokens around it.
    ///
    /// # Errors
    /// When a side is zero or over 200 times the other.
    pub fn expand(&self, size: ImageSize) -> Result<Expansion, VisionError> {
        let ImageSize { width, height } = size;
        let (long, short) = (width.max(height), width.min(height));
        if short == 0 || f64::from(long) / f64::from(short) > f64::from(SIDE_RATIO_MAX) {
            return Err(VisionError::AspectRatio {
                width,
                height,
                max: SIDE_RATIO_MAX,
            });
        }
        let (columns, rows) = self.patches(f64::from(width), f64::from(height));
        // Float to integer saturates, so an absurd max_pixels ends in the error, not in a wrap.
        let count = u32::try_from((columns * rows) as u64)
            .map_err(|_| VisionError::TooManyTokens { width, height })?;
        Ok(Expansion {
            runs: vec![Run {
                token: self.image_token,
                count,
            }],
        })
    }

    /// Merged patches per row and column after the processor's resize, in the processor's own
    /// arithmetic: f64, and halves rounded to even as Python does.
    fn patches(&self, width: f64, height: f64) -> (f64, f64) {
        let patch = f64::from(self.patch_pixels);
        let (min, max) = (self.pixels_min as f64, self.pixels_max as f64);
        let columns = (width / patch).round_ties_even();
        let rows = (height / patch).round_ties_even();
        let pixels = columns * patch * (rows * patch);
        if pixels > max {
            let scale = (height * width / max).sqrt();
            let fit = |side: f64| (side / scale / patch).floor().max(1.0);
            (fit(width), fit(height))
        } else if pixels < min {
            let scale = (min / (height * width)).sqrt();
            let fit = |side: f64| (side * scale / patch).ceil();
            (fit(width), fit(height))
        } else {
            (columns, rows)
        }
    }
}

const PREPROCESSOR: &str = "preprocessor_config.json";

fn unusable(file: &'static str, key: &'static str) -> VisionError {
    VisionError::MissingKey { file, key }
}

/// A length in pixels or patches: positive, and small enough that no product of two overflows.
fn side(preprocessor: &Value, key: &'static str) -> Result<u32, VisionError> {
    preprocessor[key]
        .as_u64()
        .filter(|length| (1..=4096).contains(length))
        .and_then(|length| u32::try_from(length).ok())
        .ok_or(unusable(PREPROCESSOR, key))
}

/// A number of pixels under `key`, else under `edge` of `size`.
fn pixels(preprocessor: &Value, key: &'static str, edge: &'static str) -> Result<u64, VisionError> {
    let flat = &preprocessor[key];
    let value = if flat.is_null() {
        &preprocessor["size"][edge]
    } else {
        flat
    };
    value
        .as_u64()
        .filter(|pixels| *pixels > 0)
        .ok_or(unusable(PREPROCESSOR, key))
}
