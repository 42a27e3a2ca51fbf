//! The tokens that stand for media, which only a chat template may write.

use serde_json::Value;

use crate::model::special::token_id;
use crate::model::tokenizer::Tokenizer;
use crate::vision::Family;

/// The media tokens of a model: the family's own list and whatever its configuration names, as far
/// as the tokenizer knows them.
#[derive(Debug, Default)]
pub(crate) struct MediaTokens {
    spellings: Vec<String>,
    /// In the order of the spellings.
    ids: Vec<Id>,
}

#[derive(Debug)]
struct Id {
    token: u32,
    /// How often the template writes it for each image.
    per_image: usize,
}

impl MediaTokens {
    /// The tokens of a model; none for one that takes no media.
    pub(crate) fn new(family: Option<&Family>, config: &Value, tokenizer: &Tokenizer) -> Self {
        const KEYS: [&str; 5] = [
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
            "vision_token_id",
        ];
        let Some(family) = family else {
            return Self::default();
        };
        let mut spellings: Vec<String> = family
            .media_tokens()
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        spellings.retain(|name| tokenizer.id(name).is_some());
        for id in KEYS.iter().filter_map(|key| token_id(&config[key])) {
            if let Some(name) = tokenizer.text(id)
                && !spellings.contains(&name)
            {
                spellings.push(name);
            }
        }
        let ids = spellings.iter().filter_map(|name| tokenizer.id(name));
        let per_image = |token| usize::from(token == family.placeholder());
        let ids = ids
            .map(|token| Id {
                token,
                per_image: per_image(token),
            })
            .collect();
        Self { spellings, ids }
    }

    /// Takes from the prompt of a lone image how often the template writes each token.
    pub(crate) fn learn(&mut self, one_image: &[u32]) {
        for id in &mut self.ids {
            id.per_image = count(one_image, id.token);
        }
    }

    /// How the tokens are spelled.
    pub(crate) fn spellings(&self) -> &[String] {
        &self.spellings
    }

    /// The first token that is there another number of times than `images` images make.
    pub(crate) fn stray(&self, tokens: &[u32], images: usize) -> Option<&str> {
        let wrong = |id: &Id| count(tokens, id.token) != id.per_image * images;
        let at = self.ids.iter().position(wrong)?;
        self.spellings.get(at).map(String::as_str)
    }
}

fn count(tokens: &[u32], wanted: u32) -> usize {
    tokens.iter().filter(|token| **token == wanted).count()
}

#[cfg(test)]
mod tests {
    use crate::model::Model;

    #[test]
    fn a_media_token_too_many_is_found() {
        let model = Model::demo().unwrap();
        let image = "<|vision_start|><|image_pad|><|vision_end|>";
        for (text, images, stray) in [
            ("plain", 0, None),
            (image, 1, None),
            (image, 0, Some("<|image_pad|>")),
            (&format!("{image}{image}"), 2, None),
            (&format!("{image}<|video_pad|>"), 1, Some("<|video_pad|>")),
            (
                &format!("{image}<|vision_start|>"),
                1,
                Some("<|vision_start|>"),
            ),
        ] {
            let tokens = model.encode(text, false).unwrap();
            assert_eq!(model.stray_media_token(&tokens, images), stray, "{text}");
        }
    }
}
