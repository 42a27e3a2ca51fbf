//! The mock engine's KV events on ZMQ, as an agent meets them.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use crate::mock_client::{EVENTS, FAST, Mock, ask};

async fn replay(mock: &Mock, rank: usize, start: u64) -> Vec<Vec<Bytes>> {
    let endpoint = mock.endpoints[rank]
        .1
        .as_deref()
        .expect("a replay endpoint");
    let mut dealer = DealerSocket::new();
    dealer.connect(endpoint).await.expect("connected");
    let mut request = ZmqMessage::from(Bytes::new());
    request.push_back(Bytes::copy_from_slice(&start.to_be_bytes()));
    dealer.send(request).await.expect("sent");
    let mut batches = Vec::new();
    loop {
        let frames = dealer.recv().await.expect("a batch").into_vec();
        assert_eq!(frames.len(), 4);
        if frames[2][..] == [0xff; 8] {
            assert!(frames[1].is_empty() && frames[3].is_empty());
            return batches;
        }
        batches.push(frames[1..].to_vec());
    }
}

fn events(payload: &[u8]) -> Vec<Value> {
    let batch = as_json(&decode(payload));
    batch[1].as_array().cloned().unwrap_or_default()
}

fn as_json(value: &rmpv::Value) -> Value {
    match value {
        rmpv::Value::Array(items) => items.iter().map(as_json).collect(),
        rmpv::Value::Map(fields) => {
            let field = |(key, value): &(rmpv::Value, rmpv::Value)| {
                let key = key.as_str().expect("a named field");
                (key.to_owned(), as_json(value))
            };
            Value::Object(fields.iter().map(field).collect())
        }
        rmpv::Value::String(text) => json!(text.as_str()),
        rmpv::Value::Integer(number) => number.as_u64().map_or(json!(number.as_i64()), Value::from),
        rmpv::Value::F64(number) => json!(number),
        _ => Value::Null,
    }
}

fn decode(payload: &[u8]) -> rmpv::Value {
    rmpv::decode::read_value(&mut &payload[..]).expect("MessagePack")
}

#[tokio::test]
async fn events_are_published_and_replayed() {
    let mock = Mock::start(&format!("{FAST} {EVENTS} --kv-events-topic kv --dev")).await;
    let mut subscriber = SubSocket::new();
    let endpoint = mock.endpoints[0].0.as_deref().expect("an endpoint");
    subscriber.connect(endpoint).await.expect("connected");
    subscriber.subscribe("kv").await.expect("subscribed");
    // The subscription is on its way; requests of their own show when it has arrived.
    let mut live = None;
    for index in 0.. {
        mock.chat(ask(&format!("{index} {}", "subscribed? ".repeat(20)), 1))
            .await;
        let frames = tokio::time::timeout(Duration::from_millis(50), subscriber.recv()).await;
        if let Ok(frames) = frames {
            live = frames.ok();
            break;
        }
        assert!(index < 100, "no event arrived");
    }
    let live = live.expect("a batch").into_vec();
    assert_eq!((live.len(), &live[0][..]), (3, &b"kv"[..]));
    let sequence = u64::from_be_bytes(live[1][..].try_into().expect("eight bytes"));
    let answer = mock.chat(ask(&"What do events say? ".repeat(20), 1)).await;
    let (status, reset) = mock.post("/reset_prefix_cache", &json!({})).await;
    assert_eq!(
        (status, reset),
        (StatusCode::OK, json!({ "success": true }))
    );
    let mut salted = ask(&"What do events say? ".repeat(20), 1);
    salted["cache_salt"] = json!("s");
    mock.chat(salted).await;
    let batches = replay(&mock, 0, sequence).await;
    assert_eq!(batches.len(), 3);
    assert_eq!(batches[0], live, "the same batch comes back");
    let stored = &events(&batches[1][2])[0];
    let ids = answer["prompt_token_ids"].as_array().expect("ids");
    // Every prompt starts alike, so the first blocks may have been cached before.
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let from = cached.expect("a count") as usize;
    assert_eq!(stored["token_ids"], json!(ids[from..ids.len() / 16 * 16]));
    let last = events(&batches[2][2]);
    assert_eq!(last[0], json!({ "type": "AllBlocksCleared" }));
    assert_eq!(
        (&last[1]["parent_block_hash"], &last[1]["extra_keys"][0]),
        (&Value::Null, &json!(["s"]))
    );
    assert_eq!(
        replay(&mock, 0, sequence + 3).await,
        Vec::<Vec<Bytes>>::new()
    );
    mock.end().await;
}

#[tokio::test]
async fn reused_blocks_are_reported_when_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let [events_at, replay_at] = ["kv.sock", "replay.sock"].map(|name| folder.path().join(name));
    // What a killed engine leaves behind does not keep the next one from starting.
    std::fs::write(&events_at, "").expect("written");
    let ipc = format!(
        "--kv-events-endpoint ipc://{} --kv-events-replay ipc://{}",
        events_at.display(),
        replay_at.display()
    );
    let mock = Mock::start(&format!("{FAST} {ipc} --lora poet")).await;
    let mut body = ask(&"Repeat after me. ".repeat(20), 1);
    body["model"] = json!("poet");
    mock.chat(body.clone()).await;
    mock.chat(body.clone()).await;
    body["vllm_xargs"] = json!({ "kv_cache_report_mode": "full" });
    body["session_id"] = json!("learn");
    mock.chat(body).await;
    let batches = replay(&mock, 0, 0).await;
    assert_eq!(batches.len(), 2, "a mere hit publishes nothing");
    let [first, full] = [0, 1].map(|index| events(&batches[index][2])[0].clone());
    for key in [
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "extra_keys",
        "lora_id",
    ] {
        assert_eq!(first[key], full[key], "{key}");
    }
    assert_eq!(
        (&first["lora_name"], &first["extra_keys"][0]),
        (&json!("poet"), &json!(["poet"]))
    );
    assert_eq!(
        (&first["session_id"], &full["session_id"]),
        (&Value::Null, &json!("learn"))
    );
    mock.end().await;
}

#[tokio::test]
async fn ranks_have_caches_and_streams_of_their_own() {
    let mock = Mock::start(&format!("{FAST} {EVENTS} --data-parallel-size 2")).await;
    let body = ask(&"Which rank is this? ".repeat(10), 1);
    let mut cached = Vec::new();
    for rank in ["0", "1", "1", "0"] {
        let headers = [("x-data-parallel-rank", rank)];
        let request = mock.request("/v1/chat/completions", &body, &headers);
        let (_, bytes) = mock.call(request).await;
        let answer: Value = serde_json::from_slice(&bytes).expect("JSON");
        cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"] != 0);
    }
    assert_eq!(cached, [false, false, true, true]);
    for rank in 0..2 {
        let batches = replay(&mock, rank, 0).await;
        assert_eq!(batches.len(), 1);
        let rmpv::Value::Array(parts) = decode(&batches[0][2]) else {
            panic!("an array")
        };
        assert_eq!(parts[2].as_u64(), Some(rank as u64));
    }
    mock.end().await;
}
