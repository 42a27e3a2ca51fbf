//! `kvlens explain` beside a running `up`.

use std::process::Output;

use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::end_to_end::stack::{FAST, Stack};

async fn explain(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvlens"));
    let output = command.arg("explain").args(words).output().await;
    output.expect("the program was built")
}

fn file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("a file");
    file
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn a_chats_placement_is_printed() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let example = file(&stack.example.to_string());
    let path = example.path().to_str().unwrap();
    let served = stack.ask_settled(&stack.example).await.worker;
    stack.settle().await;

    let output = explain(&[path, "--url", &stack.admin]).await;
    let page = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        page.starts_with("model demo, mode kv, prompt of "),
        "{page}"
    );
    assert!(page.contains("(exact), 1 image\n"), "{page}");
    let chosen = page.lines().find(|line| line.starts_with(" * "));
    let cells: Vec<_> = chosen.expect("one").split_whitespace().collect();
    assert_eq!(cells[1], served, "it holds the blocks: {page}");
    let (overlap, blocks) = cells[3].split_once('/').expect("an overlap");
    assert_eq!(overlap, blocks, "{page}");
    for worker in ["mock-0", "mock-1"] {
        assert_eq!(page.matches(worker).count(), 1, "{page}");
    }
    assert!(
        page.lines().all(|line| line.chars().count() <= 100),
        "{page}"
    );

    let output = explain(&[path, "--url", &format!("{}/", stack.admin), "--json"]).await;
    let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(explained["candidates"].as_array().map(Vec::len), Some(2));

    let other_model = file(r#"{"model": "other", "messages": [{"role": "user", "content": "a"}]}"#);
    let other_model = other_model.path().to_str().unwrap();
    for (words, code, part) in [
        (
            vec![other_model, "--url", &stack.admin],
            1,
            "(404 Not Found, model_not_found)",
        ),
        (
            vec![path, "--url", &stack.public],
            1,
            "is it the admin listener",
        ),
        (
            vec!["/no/such/file", "--url", &stack.admin],
            1,
            "cannot read /no/such/file",
        ),
        (vec![], 2, "Usage"),
    ] {
        let output = explain(&words).await;
        assert_eq!(output.status.code(), Some(code), "{words:?} {output:?}");
        assert!(text(&output.stderr).contains(part), "{words:?} {output:?}");
        assert_eq!(text(&output.stdout), "");
    }
    stack.end().await;
}

#[tokio::test]
async fn what_is_no_request_or_no_frontend_is_named() {
    let broken = file("{\"model\": ");
    let broken = broken.path().to_str().unwrap();
    let whole = file("{}");
    let whole = whole.path().to_str().unwrap();
    // A port that was just free.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for (words, part) in [
        ([broken, "--url", &url], "is not JSON"),
        (
            [whole, "--url", &url],
            "start `kvlens up` or `kvlens frontend`",
        ),
        ([whole, "--url", "ht tp:"], "does not answer"),
    ] {
        let output = explain(&words).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains(part), "{output:?}");
    }
}
