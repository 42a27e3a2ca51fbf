//! Fields that would change what an engine computes behind the hashes never reach it.

use kvlens::config::media::MediaConfig;
use kvlens::media::digest;
use serde_json::{Value, json};

use crate::bodies::{CHAT, COMPLETION, EMBEDDINGS, Pair, answered};
use crate::end_to_end::pictures::{chat, data_uri, image, png, text};

/// Refused beside the messages, in a message and in a part of one.
const REFUSED: [&str; 12] = [
    "chat_template",
    "documents",
    "ec_transfer_params",
    "image_embeds",
    "kv_transfer_params",
    "media_io_kwargs",
    "mm_hashes",
    "mm_processor_kwargs",
    "multi_modal_uuids",
    "prompt_embeds",
    "truncate_prompt_tokens",
    "vllm_xargs",
];

/// Refused in a part: beside a `uuid` vLLM would load them itself.
const MEDIA: [&str; 4] = ["video_url", "audio_url", "input_audio", "video_embeds"];

/// A value by which a leak shows.
const SECRET: &str = "a client's own";

fn good() -> Value {
    chat(&[image(&data_uri(&png(32, 32, 1))), text("What is it?")])
}

#[tokio::test]
async fn what_an_engine_must_not_see_is_refused_wherever_it_stands() {
    let pair = Pair::start(MediaConfig::default(), answered).await;
    let places = [
        ("", ""),
        ("/messages/0", "messages[0]."),
        ("/messages/0/content/0", "messages[0].content[0]."),
        ("/messages/0/content/1", "messages[0].content[1]."),
    ];
    for (place, param) in places {
        let in_part = place.contains("content");
        let names = REFUSED
            .iter()
            .chain(in_part.then_some(&MEDIA).into_iter().flatten());
        for name in names {
            let mut body = good();
            body.pointer_mut(place).unwrap()[*name] = json!({"a": SECRET});
            let answer = pair.post(CHAT, &body).await;
            let error = &answer.json()["error"];
            assert_eq!(error["code"], "field_not_accepted", "{place} {name}");
            assert_eq!(error["param"], format!("{param}{name}"));
        }
    }
    // A text that vLLM would take for an image.
    let mut body = good();
    body["messages"][0]["content"][1]["image_url"] = json!({"url": "http://169.254.169.254/"});
    let answer = pair.post(CHAT, &body).await;
    assert_eq!(answer.json()["error"]["code"], "field_not_accepted");
    for name in REFUSED {
        let body = json!({"model": "demo", "prompt": "a", name: [SECRET]});
        let answer = pair.post(COMPLETION, &body).await;
        assert_eq!(answer.json()["error"]["param"], name);
    }
    assert_eq!(pair.taken(), [Value::Null; 0], "nothing reached the engine");
}

fn wants_a_key(_body: &Value) -> (u16, Value) {
    (401, json!({"error": {"message": "who are you?"}}))
}

#[tokio::test]
async fn a_key_that_we_lack_is_no_fault_of_the_clients() {
    let pair = Pair::start(MediaConfig::default(), wants_a_key).await;
    let answer = pair.post(CHAT, &good()).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(pair.taken().len(), 1, "the engine was asked");
}

#[tokio::test]
async fn identities_and_sessions_of_clients_are_left_out() {
    let pair = Pair::start(MediaConfig::default(), answered).await;
    let mut body = good();
    body["session_id"] = json!(SECRET);
    body["cache_salt"] = json!(SECRET);
    let content = &mut body["messages"][0]["content"];
    for part in [0, 1] {
        content[part]["uuid"] = json!(SECRET);
    }
    content[0]["image_url"]["max_dynamic_patch"] = json!(SECRET);
    // Null is as good as absent.
    content[1]["image_url"] = Value::Null;
    let sent = pair.sent(CHAT, &body).await;
    assert!(!sent.to_string().contains(SECRET), "{sent}");
    let part = &sent["messages"][0]["content"][0];
    assert_eq!(part["uuid"], digest("", &png(32, 32, 1)).to_string());
    assert_eq!(sent["messages"][0]["content"][1].get("uuid"), None);

    let body = json!({"model": "demo", "prompt": "a", "session_id": SECRET});
    let sent = pair.sent(COMPLETION, &body).await;
    assert_eq!(sent, json!({"model": "demo", "prompt": "a"}));

    let mut body = json!({"model": "demo", "input": "a", "messages": [SECRET]});
    for name in REFUSED {
        body[name] = json!(SECRET);
    }
    let sent = pair.sent(EMBEDDINGS, &body).await;
    assert_eq!(sent, json!({"model": "demo", "input": "a"}));
}
