//! Replaces each image placeholder by its expansion.

use std::sync::Arc;

use memchr::memmem;

use crate::prompt::{ExpandedPrompt, MediaSpan, PromptError};
use crate::vision::Expansion;

/// One media item of a prompt: the id the engine sees and what replaces its placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    pub id: Arc<str>,
    pub expansion: Expansion,
}

/// Puts the expansion of the n-th media item in the place of the n-th `placeholder`.
///
/// # Errors
/// When placeholders and media items differ in number, or the prompt is longer than u32 counts.
pub fn expand(
    tokens: &[u32],
    placeholder: u32,
    media: &[Media],
) -> Result<ExpandedPrompt, PromptError> {
    let placeholders = tokens.iter().filter(|token| **token == placeholder).count();
    if placeholders != media.len() {
        return Err(PromptError::PlaceholderCount {
            placeholders,
            media: media.len(),
        });
    }
    let length = expanded_length(tokens.len() - placeholders, media);
    // The length is known before anything is allocated, so a hostile one costs no memory.
    let capacity = u32::try_from(length).map_err(|_| PromptError::TooLong { tokens: length })?;
    let mut prompt = ExpandedPrompt {
        tokens: Vec::with_capacity(capacity as usize),
        spans: Vec::with_capacity(media.len()),
    };
    let mut items = media.iter();
    let mut rest = tokens;
    for item in items.by_ref() {
        let at = rest.iter().position(|token| *token == placeholder);
        let (before, after) = rest.split_at(at.unwrap_or(rest.len()));
        prompt.tokens.extend_from_slice(before);
        prompt.spans.push(span(item, prompt.tokens.len()));
        for run in &item.expansion.runs {
            let end = prompt.tokens.len() + run.count as usize;
            prompt.tokens.resize(end, run.token);
        }
        rest = after.get(1..).unwrap_or_default();
    }
    prompt.tokens.extend_from_slice(rest);
    Ok(prompt)
}

/// Finds the first of `names` that `text` spells out; a request with such a text is refused,
/// because the engine tokenises it into a media token.
pub fn spelled_media<'a, S: AsRef<str>>(text: &str, names: &'a [S]) -> Option<&'a str> {
    names
        .iter()
        .map(AsRef::as_ref)
        .find(|name| !name.is_empty() && memmem::find(text.as_bytes(), name.as_bytes()).is_some())
}

fn expanded_length(text_tokens: usize, media: &[Media]) -> u64 {
    let runs = media.iter().flat_map(|item| &item.expansion.runs);
    let media_tokens: u64 = runs.map(|run| u64::from(run.count)).sum();
    media_tokens.saturating_add(text_tokens as u64)
}

fn span(item: &Media, start: usize) -> MediaSpan {
    MediaSpan {
        // Lossless: the caller checked that the whole prompt fits u32.
        start: start as u32,
        token_count: item.expansion.token_count(),
        id: Arc::clone(&item.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::Run;

    const PAD: u32 = 9;

    fn media(id: &str, runs: &[(u32, u32)]) -> Media {
        let runs = runs.iter().map(|&(token, count)| Run { token, count });
        Media {
            id: id.into(),
            expansion: Expansion {
                runs: runs.collect(),
            },
        }
    }

    fn check(tokens: &[u32], media: &[Media], want: &[u32], spans: &[(u32, u32)]) {
        let prompt = expand(tokens, PAD, media).unwrap();
        assert_eq!(prompt.tokens, want);
        let got = prompt
            .spans
            .iter()
            .map(|span| (span.start, span.token_count));
        assert_eq!(got.collect::<Vec<_>>(), spans);
        let ids: Vec<_> = prompt.spans.iter().map(|span| &*span.id).collect();
        let want_ids: Vec<_> = media.iter().map(|item| &*item.id).collect();
        assert_eq!(ids, want_ids);
    }

    #[test]
    fn expansions_take_the_placeholders_places() {
        let two = media("a", &[(PAD, 2)]);
        let framed = media("b", &[(7, 1), (PAD, 3), (8, 1)]);
        let none = media("c", &[]);
        check(&[1, 2], &[], &[1, 2], &[]);
        check(&[], &[], &[], &[]);
        check(
            &[1, PAD, 2],
            std::slice::from_ref(&two),
            &[1, PAD, PAD, 2],
            &[(1, 2)],
        );
        check(
            &[PAD, PAD],
            &[framed.clone(), two.clone()],
            &[7, PAD, PAD, PAD, 8, PAD, PAD],
            &[(0, 5), (5, 2)],
        );
        check(
            &[PAD, 1, PAD],
            &[none, two],
            &[1, PAD, PAD],
            &[(0, 0), (1, 2)],
        );
    }

    #[test]
    fn a_wrong_number_of_media_names_both_numbers() {
        let one = media("a", &[(PAD, 1)]);
        for (tokens, media, text) in [
            (
                &[PAD, PAD][..],
                std::slice::from_ref(&one),
                "prompt has 2 image placeholders for 1 images",
            ),
            (
                &[1],
                std::slice::from_ref(&one),
                "prompt has 0 image placeholders for 1 images",
            ),
            (&[PAD], &[], "prompt has 1 image placeholders for 0 images"),
        ] {
            assert_eq!(expand(tokens, PAD, media).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn a_prompt_beyond_u32_is_refused_before_it_is_built() {
        let huge = media("a", &[(PAD, u32::MAX), (PAD, u32::MAX)]);
        let error = expand(&[PAD, 1], PAD, &[huge]).unwrap_err();
        let tokens = 2 * u64::from(u32::MAX) + 1;
        assert_eq!(error, PromptError::TooLong { tokens });
    }

    #[test]
    fn spelled_media_tokens_are_found() {
        let names = ["<|image_pad|>", "<|vision_end|>"];
        for (text, want) in [
            ("plain <|im_end|> text", None),
            ("a <|image_pad|> b", Some("<|image_pad|>")),
            ("<|vision_end|>", Some("<|vision_end|>")),
            ("<|image_pad |>", None),
        ] {
            assert_eq!(spelled_media(text, &names), want, "{text}");
        }
        assert_eq!(spelled_media("x", &[""]), None);
    }
}
