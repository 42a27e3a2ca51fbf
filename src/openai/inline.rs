//! Takes long inline images out of a chat's body before it is read as JSON.
//!
//! A JSON parser looks at every byte of a text for what might be escaped. Of a body with images
//! nearly all is base64, which a search for the closing quote alone passes several times faster.

use std::io::Write;

use memchr::{memchr2, memmem};

use crate::openai::chat::ImagePart;

/// How an inline image begins, its opening quote included.
const OPENING: &[u8] = b"\"data:";

/// Stands for an image taken out, a number behind it.
const MARK: &str = "kvlens-inline:";

/// Shorter texts cost the parser next to nothing.
const URI_BYTES_MIN: usize = 4_096;

/// A body whose long `data:` texts are marks, and the texts.
#[derive(Debug)]
pub(crate) struct Lifted<'a> {
    pub(crate) json: Vec<u8>,
    uris: Vec<&'a str>,
}

impl<'a> Lifted<'a> {
    /// Takes the long `data:` texts out; `None` where there are none, and where some other text
    /// could be taken for a mark.
    pub(crate) fn new(body: &'a [u8]) -> Option<Self> {
        let mut json = Vec::new();
        let mut uris = Vec::new();
        let (mut copied, mut at) = (0, 0);
        while let Some(found) = memmem::find(&body[at..], OPENING) {
            let start = at + found + 1;
            at = start;
            // An escaped quote is inside a text, and so is what follows it.
            if body[..start - 1].ends_with(b"\\") {
                continue;
            }
            let length = memchr2(b'"', b'\\', &body[start..])?;
            at = start + length;
            if body[at] == b'\\' || length < URI_BYTES_MIN {
                continue;
            }
            json.extend_from_slice(&body[copied..start]);
            write!(json, "{MARK}{}", uris.len()).ok()?;
            uris.push(std::str::from_utf8(&body[start..at]).ok()?);
            copied = at;
        }
        json.extend_from_slice(&body[copied..]);
        let marks = memmem::find_iter(&json, MARK).count();
        let is_sure = !uris.is_empty() && marks == uris.len() && !spells_ascii(&json);
        is_sure.then_some(Self { json, uris })
    }

    /// Gives the images their texts back; false when a text was none of an image's.
    pub(crate) fn put_back(&self, images: &mut [ImagePart]) -> bool {
        let mut put_back = 0;
        for image in images {
            let number = image.url.strip_prefix(MARK).map(str::parse::<usize>);
            if let Some(uri) = number.and_then(|number| self.uris.get(number.ok()?)) {
                image.url = (*uri).to_owned();
                put_back += 1;
            }
        }
        put_back == self.uris.len()
    }
}

/// Whether a printable ASCII character may be spelled by its number, which could hide a mark.
fn spells_ascii(json: &[u8]) -> bool {
    let mut found = memmem::find_iter(json, b"\\u00");
    found.any(|at| matches!(json.get(at + 4), Some(b'2'..=b'7')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::chat::ChatRequest;
    use crate::openai::fields::UnknownFields;
    use crate::openai::request::RequestLimits;

    const LIMITS: RequestLimits = RequestLimits {
        messages_max: 9,
        images_max: 9,
        unknown_fields: UnknownFields::Drop,
    };

    fn body(parts: &str) -> String {
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":[{parts}]}}]}}"#)
    }

    fn image(url: &str) -> String {
        format!(r#"{{"type":"image_url","image_url":{{"url":"{url}"}}}}"#)
    }

    fn text(text: &str) -> String {
        format!(r#"{{"type":"text","text":"{text}"}}"#)
    }

    #[test]
    fn whatever_is_lifted_the_request_is_the_same() {
        let long = |fill: &str| format!("data:image/png;base64,{}", fill.repeat(URI_BYTES_MIN));
        let (a, b) = (long("A"), long("B"));
        let mark = format!("{MARK}0");
        let rows = [
            (vec![image(&a)], true),
            (
                vec![image(&a), text("x"), image("http://host/"), image(&b)],
                true,
            ),
            (vec![text(r#"\"data: é"#), image(&a)], true),
            (vec![image("data:image/png;base64,AAAA")], false),
            (vec![image(&a.replace("/png", r"\/png"))], false),
            // A text that is no image's goes back by reading the body as it came.
            (vec![text(&a), image(&b)], true),
            (vec![text(&mark), image(&a)], false),
            (vec![image(&mark), text(&a)], false),
            (vec![image(&mark.replace('k', r"\u006b")), text(&a)], false),
        ];
        for (parts, lifted) in rows {
            let body = body(&parts.join(","));
            assert_eq!(Lifted::new(body.as_bytes()).is_some(), lifted);
            let request = ChatRequest::parse(body.as_bytes(), LIMITS).unwrap();
            let plain = ChatRequest::parse_json(body.as_bytes(), LIMITS).unwrap();
            let urls = |request: &ChatRequest| -> Vec<String> {
                request
                    .images
                    .iter()
                    .map(|image| image.url.clone())
                    .collect()
            };
            assert_eq!(urls(&request), urls(&plain));
            assert_eq!(request.messages, plain.messages);
        }
    }

    #[test]
    fn what_is_not_json_is_refused_in_the_same_words() {
        let a = format!("data:,{}", "A".repeat(URI_BYTES_MIN));
        for body in [
            format!(r#"{{"model":"m" "{a}"}}"#),
            format!(r#"{{"model":"m"data:{a}"}}"#),
            format!(r#"{{"model":"{a}"#),
            body(&format!(r#"{{"type":"sound","url":"{a}"}}"#)),
        ] {
            let error = ChatRequest::parse(body.as_bytes(), LIMITS).unwrap_err();
            let plain = ChatRequest::parse_json(body.as_bytes(), LIMITS).unwrap_err();
            assert_eq!(error.message, plain.message);
        }
    }
}
