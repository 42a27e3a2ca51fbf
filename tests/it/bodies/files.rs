//! Images by file: named instead of carried, and carried where an engine cannot read them.

use std::fs;

use kvlens::config::media::{MediaConfig, Transfer};
use kvlens::media::digest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bodies::{Answering, CHAT, Pair, answered};
use crate::end_to_end::pictures::{chat, data_uri, image, png, text};

fn shm(shm_bytes_max: usize) -> MediaConfig {
    MediaConfig {
        transfer: Transfer::Shm,
        shm_bytes_max,
        ..MediaConfig::default()
    }
}

async fn start(shm_bytes_max: usize, answering: Answering) -> (Pair, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let pair = Pair::start(shm(shm_bytes_max), answering).await;
    let dir = folder.path().display().to_string();
    pair.up(|record| record.media_dir = Some(dir.clone()));
    (pair, folder)
}

fn two_pictures() -> (Value, [Vec<u8>; 2]) {
    let pictures = [png(48, 32, 1), png(32, 48, 2)];
    let [a, b] = pictures.each_ref().map(|bytes| image(&data_uri(bytes)));
    (chat(&[a, text("Which one?"), b]), pictures)
}

fn url(body: &Value, part: usize) -> &str {
    let url = &body["messages"][0]["content"][part]["image_url"]["url"];
    url.as_str().expect("a URL")
}

/// Answers as an engine that reads its files while it computes.
fn reads(body: &Value) -> (u16, Value) {
    for part in [0, 2] {
        let file = url(body, part).strip_prefix("file://").expect("a file");
        let bytes = fs::read(file).expect("it is there");
        let part = &body["messages"][0]["content"][part];
        assert_eq!(part["uuid"], digest("", &bytes).to_string());
    }
    answered(body)
}

#[tokio::test]
async fn files_are_named_and_hold_what_was_hashed() {
    let (pair, folder) = start(1 << 20, reads).await;
    let (body, pictures) = two_pictures();
    let sent = pair.sent(CHAT, &body).await;
    assert!(!sent.to_string().contains("base64"), "{sent}");
    for (part, bytes) in [0, 2].into_iter().zip(&pictures) {
        let file = url(&sent, part).strip_prefix("file://").unwrap();
        assert!(file.starts_with(folder.path().to_str().unwrap()));
        assert_eq!(&fs::read(file).unwrap(), bytes);
    }
    assert_eq!(pair.sent(CHAT, &body).await, sent, "the same files again");
    assert!(pair.counts("kvlens_media_transfers_total{way=\"shm\"} 4"));
    // A report is asked for in front of files as well.
    let dir = folder.path().display().to_string();
    pair.up(|record| {
        record.media_dir = Some(dir.clone());
        record.ledger.report_session = Some("s".to_owned());
    });
    let reported = pair.sent(CHAT, &body).await;
    assert_eq!(reported["session_id"], "s");
    assert_eq!(reported["messages"], sent["messages"]);
}

#[tokio::test]
async fn where_there_is_no_folder_or_no_room_images_go_inside() {
    let (body, pictures) = two_pictures();
    let pair = Pair::start(shm(1 << 20), answered).await;
    let sent = pair.sent(CHAT, &body).await;
    assert_eq!(url(&sent, 0), data_uri(&pictures[0]));
    assert_eq!(url(&sent, 2), data_uri(&pictures[1]));
    assert!(pair.counts("kvlens_media_transfers_total{way=\"inline\"} 2"));

    // A page: room for one of the two.
    let (pair, _folder) = start(4_096, answered).await;
    let sent = pair.sent(CHAT, &body).await;
    assert!(url(&sent, 0).starts_with("file://"), "{sent}");
    assert_eq!(url(&sent, 2), data_uri(&pictures[1]));
    assert!(pair.counts("kvlens_media_transfers_total{way=\"shm_full\"} 1"));

    pair.up(|record| record.media_dir = Some("/nonexistent".to_owned()));
    let sent = pair.sent(CHAT, &body).await;
    assert_eq!(url(&sent, 0), data_uri(&pictures[0]));
    assert!(pair.counts("kvlens_media_transfers_total{way=\"shm_unusable\"} 2"));
}

fn refuses_files(body: &Value) -> (u16, Value) {
    let (status, message) = match body.to_string().contains("file://") {
        false => return answered(body),
        true if body["max_tokens"] == 1 => (
            500,
            "[Errno 13] Permission denied: '".to_owned() + &url(body, 0)[7..],
        ),
        true if body["max_tokens"] == 2 => (400, "cannot identify image file".to_owned()),
        true => (
            400,
            "The file path must be a subpath of `--allowed-local-media-path /x`.".to_owned(),
        ),
    };
    (status, json!({"error": {"message": message}}))
}

#[tokio::test]
async fn an_engine_that_cannot_read_a_file_gets_the_bytes() {
    for (max_tokens, unread) in [(1, true), (3, true), (2, false)] {
        let (pair, _folder) = start(1 << 20, refuses_files).await;
        let (mut body, pictures) = two_pictures();
        body["max_tokens"] = json!(max_tokens);
        let answer = pair.post(CHAT, &body).await;
        let sent = pair.taken();
        assert!(url(&sent[0], 0).starts_with("file://"));
        assert_eq!(answer.status == 200, unread, "{answer:?}");
        if !unread {
            assert_eq!(answer.json()["error"]["code"], "invalid_image");
            assert_eq!(sent.len(), 1, "the image is at fault, not its file");
            continue;
        }
        assert_eq!(url(&sent[1], 0), data_uri(&pictures[0]));
        assert!(pair.counts("kvlens_media_transfers_total{way=\"shm_unread\"} 2"));
        // The next one does not try.
        let sent = pair.sent(CHAT, &body).await;
        assert_eq!(url(&sent, 0), data_uri(&pictures[0]));
    }
}
