//! What `kvlens up` prints when it serves: where, and a request to copy.

use crate::frontend::listeners::Addresses;

/// A small picture for the request to copy: a house, 32 by 32 pixels.
const PICTURE: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgBAMAAACBVGfHAAAAElBMVEWHzutMmQCyIiL13rNlQyH/1wAO\
    nZAMAAAASUlEQVR42mNgIA0EoPFDQwPwC7CGhoaSoEVJCdUWJiUlBRTFSkoQJUgKUJUoKaEqYYIIKKAp\
    QFLCbAwGBhQKuLhQU0AQDQyQAADaKh/qPWXfTQAAAABJRU5ErkJggg==";

/// What is asked without a picture: words enough for whole blocks, so that the second answer
/// overlaps. No apostrophe, because a shell's quotes stand around it.
const QUESTION: &str = "How is a house built? Begin with the ground and the walls, go on with the \
    beams, the roof and the chimney, and end with the doors, the windows and the garden. Answer in \
    a few short sentences that a child can follow.";

/// What is printed when the first worker is ready.
#[derive(Debug)]
pub(crate) struct Banner {
    /// Workers that there are to be.
    pub(crate) workers: usize,
    pub(crate) name: String,
    pub(crate) addresses: Addresses,
    /// Whether the request to copy has a picture.
    pub(crate) shows_image: bool,
    /// Whether it has to show a key.
    pub(crate) needs_key: bool,
}

impl Banner {
    /// One line for an operator.
    pub(crate) fn status(&self, ready: usize) -> String {
        format!(
            "serving {} on {ready} of {} workers",
            self.name, self.workers
        )
    }

    /// The text.
    pub(crate) fn text(&self) -> String {
        let Addresses { public, admin } = self.addresses;
        let content = match self.shows_image {
            true => serde_json::json!([
                {"type": "text", "text": "What stands in this picture?"},
                {"type": "image_url", "image_url": {"url": PICTURE}},
            ]),
            false => QUESTION.into(),
        };
        let key = match self.needs_key {
            true => " -H 'authorization: Bearer KEY'",
            false => "",
        };
        let body = serde_json::json!({
            "model": self.name,
            "max_tokens": 64,
            "messages": [{"role": "user", "content": content}],
        });
        format!(
            "ready: model {name:?} at http://{public}/v1, metrics and workers at http://{admin}\n\
             send this twice, and see the second answer's x-kvlens-overlap and cached_tokens:\n\n\
             curl -si http://{public}/v1/chat/completions -H 'content-type: application/json'{key} \
             -d '{body}'\n\n\
             Ctrl-C stops everything",
            name = self.name,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_a_request_that_is_json() {
        let address = "127.0.0.1:8000".parse().unwrap();
        for shows_image in [true, false] {
            let banner = Banner {
                workers: 2,
                name: "demo".to_owned(),
                addresses: Addresses {
                    public: address,
                    admin: address,
                },
                shows_image,
                needs_key: !shows_image,
            };
            let text = banner.text();
            assert_eq!(text.contains("authorization: Bearer KEY"), !shows_image);
            let body = text.split('\'').find(|part| part.starts_with("{"));
            let body: serde_json::Value = serde_json::from_str(body.unwrap()).unwrap();
            assert_eq!(body["model"], "demo");
            let content = &body["messages"][0]["content"];
            assert_eq!(content[1]["type"] == "image_url", shows_image, "{content}");
            assert_eq!(content.is_string(), !shows_image, "{content}");
        }
    }
}
