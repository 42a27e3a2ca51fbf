//! Special tokens and the context's length, as a model's configuration says them.

use serde_json::Value;

use crate::model::tokenizer::{Tokenizer, token_text};

/// `bos_token` and its like as text, for the template.
pub(super) fn special_tokens(tokenizer_config: &Value) -> Value {
    let mut map = serde_json::Map::new();
    for (key, value) in tokenizer_config.as_object().into_iter().flatten() {
        if key.ends_with("_token")
            && let Some(text) = token_text(value)
        {
            map.insert(key.clone(), text.into());
        }
    }
    Value::Object(map)
}

/// The longest prompt and answer together that a model's configuration names.
pub(super) fn context_tokens_max(config: &Value) -> Option<u32> {
    [&config["text_config"], config]
        .into_iter()
        .find_map(|config| token_id(&config["max_position_embeddings"]))
}

/// The tokenizer's end token, then those of the first configuration that names any.
pub(super) fn eos_tokens(special: &Value, tokenizer: &Tokenizer, configs: [&Value; 2]) -> Vec<u32> {
    let own = special["eos_token"].as_str();
    let mut ids: Vec<u32> = own
        .and_then(|text| tokenizer.id(text))
        .into_iter()
        .collect();
    let [generation, config] = configs;
    let keys = [generation, &config["text_config"], config].map(|config| &config["eos_token_id"]);
    let listed = keys.into_iter().find(|key| !key.is_null());
    let listed = match listed {
        Some(Value::Array(listed)) => listed.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    for id in listed.iter().filter_map(token_id) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

pub(super) fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
