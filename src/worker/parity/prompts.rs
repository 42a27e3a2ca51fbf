//! The prompts that an engine is asked to make, so that they can be held against ours.

use serde_json::{Map, Value, json};

use crate::discovery::ParityScope;
use crate::model::chat::{Chat, SizedImage};
use crate::model::{Model, ModelError};
use crate::vision::ImageSize;

/// Grey pictures whose sides no patch size divides, so that rounding shows; the second is so small
/// that some families enlarge it.
const PICTURES: [Picture; 2] = [
    Picture {
        url: "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAU0AAAEiCAAAAABYOd+XAAABeUlEQVR42u3QMQEAAAwCIHPaP4\
            gR9uyECKT8iQKbNm1i06ZNbNq0aRObNm1i06ZNbNq0aRObNm1i06ZNm9i0aRObNm1i06ZNm9i0aRObNm3axKZNm9i0aRObNm\
            3axKZNm9i0adMmNm3axKZNm9i0adMmNm3axKZNmzaxadMmNm3axKZNmzaxadMmNm3atIlNmzaxadMmNm3atIlNmzaxadOmTW\
            zatIlNmzaxadOmTWzatIlNmzZtKrBp0yY2bdrEpk2bNrFp0yY2bdrEpk2bNrFp0yY2bdq0iU2bNrFp0yY2bdq0iU2bNrFp06\
            ZNbNq0iU2bNrFp06ZNbNq0iU2bNm1i06ZNbNq0iU2bNm1i06ZNbNq0aRObNm1i06ZNbNq0aRObNm1i06ZNm9i0aRObNm1i06\
            ZNm9i0aRObNm3axKZNm9i0aRObNm3axKZNm9i0adOmAps2bWLTpk1s2rRpE5s2bWLTpk1s2rRpE5s2bWLTpk2b2LRpk9MAJh\
            CmISv46jsAAAAASUVORK5CYII=",
        size: ImageSize {
            width: 333,
            height: 290,
        },
    },
    Picture {
        url: "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAFoAAADICAAAAABNbamWAAAAWklEQVR42u3MMQEAAAwC\
            IHPaP4gZduyDAKRvolar1Wq1Wq1Wq9VqtVqtVqvVarVarVar1Wq1Wq1Wq9VqtVqtVqvVarVarVar1Wq1Wq1Wq9VqtVqtVqvV\
            avXVANf0uYn7N9nJAAAAAElFTkSuQmCC",
        size: ImageSize {
            width: 90,
            height: 200,
        },
    },
];

struct Picture {
    url: &'static str,
    size: ImageSize,
}

/// A chat to compare.
#[derive(Debug)]
pub(super) struct Sample {
    /// For a person, as `one image`.
    pub(super) what: &'static str,
    messages: Vec<Value>,
    tools: Option<Value>,
    images: Vec<SizedImage>,
}

/// The samples for a model: text first, so that a difference there is not blamed on images.
pub(super) fn samples(model: &Model) -> Vec<Sample> {
    let mut samples = vec![plain(), with_tools()];
    if model.family().is_some() {
        samples.push(with_images("one image", &PICTURES[..1]));
        samples.push(with_images("two images", &PICTURES));
    }
    samples
}

impl Sample {
    /// Which prompts differ if this one does.
    pub(super) fn scope(&self) -> ParityScope {
        match self.images.is_empty() {
            true => ParityScope::Text,
            false => ParityScope::Media,
        }
    }

    /// Whether any engine that renders chats must take it.
    pub(super) fn is_plain(&self) -> bool {
        self.images.is_empty() && self.tools.is_none()
    }

    /// The prompt as we make it.
    pub(super) fn ours(&self, model: &Model) -> Result<Vec<u32>, ModelError> {
        Ok(model.chat_prompt(&self.chat(), &self.images)?.tokens)
    }

    /// The same before its images are expanded.
    pub(super) fn unexpanded(&self, model: &Model) -> Result<Vec<u32>, ModelError> {
        model.chat_tokens(&self.chat())
    }

    /// What the engine, which knows its model as `name`, is asked.
    pub(super) fn body(&self, name: &str) -> Value {
        let mut fields = Map::new();
        fields.insert("model".to_owned(), name.into());
        fields.insert("messages".to_owned(), self.messages.clone().into());
        fields.extend(self.tools.clone().map(|tools| ("tools".to_owned(), tools)));
        fields.insert("add_generation_prompt".to_owned(), true.into());
        Value::Object(fields)
    }

    fn chat(&self) -> Chat<'_> {
        Chat {
            messages: &self.messages,
            tools: self.tools.as_ref(),
            variables: None,
            add_generation_prompt: true,
            continue_final_message: false,
            images: self.images.len(),
        }
    }
}

fn plain() -> Sample {
    Sample {
        what: "text alone",
        messages: vec![
            json!({"role": "system", "content": "You are brief. Antworte knapp: 答えは短く。"}),
            json!({"role": "user", "content": "Wie spät ist es in Łódź?\n\n  Два слова 🕰️, don't explain."}),
            json!({"role": "assistant", "content": "Fünf nach  12."}),
            json!({"role": "user", "content": "And in 東京 — 1234567890 minutes later?"}),
        ],
        tools: None,
        images: Vec::new(),
    }
}

fn with_tools() -> Sample {
    let parameters = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "As \"Zürich\""},
            "days": {"type": "integer"},
        },
        "required": ["city"],
    });
    let tool = json!({
        "type": "function",
        "function": {"name": "weather", "description": "Tomorrow's weather.", "parameters": parameters},
    });
    let call = json!({
        "id": "call-1",
        "type": "function",
        "function": {"name": "weather", "arguments": "{\"city\": \"Zürich\", \"days\": 2}"},
    });
    Sample {
        what: "tools",
        messages: vec![
            json!({"role": "user", "content": "Will it rain in Zürich?"}),
            json!({"role": "assistant", "content": "I will look.", "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": "call-1", "content": "{\"rain\": 0.75}"}),
        ],
        tools: Some(json!([tool])),
        images: Vec::new(),
    }
}

fn with_images(what: &'static str, pictures: &[Picture]) -> Sample {
    let mut parts = vec![json!({"type": "text", "text": "Look at this: "})];
    for picture in pictures {
        parts.push(json!({"type": "image_url", "image_url": {"url": picture.url}}));
        parts.push(json!({"type": "text", "text": "What is it?"}));
    }
    let sized = |picture: &Picture| SizedImage {
        id: picture.url.into(),
        size: picture.size,
    };
    Sample {
        what,
        messages: vec![json!({"role": "user", "content": parts})],
        tools: None,
        images: pictures.iter().map(sized).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_have_the_size_they_are_said_to_have() {
        for picture in &PICTURES {
            let data = picture.url.strip_prefix("data:image/png;base64,").unwrap();
            let png = base64_simd::STANDARD.decode_to_vec(data).unwrap();
            let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
            let size = picture.size;
            assert_eq!((side(16), side(20)), (size.width, size.height));
        }
    }

    #[test]
    fn samples_expand_as_long_as_the_family_says() {
        let model = Model::demo().unwrap();
        let samples = samples(&model);
        let lengths: Vec<_> = samples
            .iter()
            .map(|sample| {
                let short = sample.unexpanded(&model).unwrap().len();
                sample.ours(&model).unwrap().len() - short
            })
            .collect();
        let of = |picture: &Picture| {
            let expansion = model.family().unwrap().expand(picture.size).unwrap();
            expansion.token_count() as usize - 1
        };
        let [first, second] = PICTURES.each_ref().map(of);
        assert_eq!(lengths, [0, 0, first, first + second]);
        assert!(first > 4 && second > 4 && first != second);
    }
}
