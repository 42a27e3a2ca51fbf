//! The tokenizer against ids of the Python package (tests/golden/tokenizer/make.py).

use std::path::{Path, PathBuf};

use kvlens::model::Model;
use serde_json::Value;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(path)
}

fn rows<T: serde::de::DeserializeOwned>(name: &str) -> Vec<T> {
    let text = std::fs::read_to_string(golden(name)).expect("a golden file");
    serde_json::from_str(&text).expect("golden rows")
}

fn check(model: &Model, name: &str) {
    let texts: Vec<String> = rows("tokenizer/texts.json");
    let ids: Vec<Vec<u32>> = rows(name);
    assert!(texts.len() >= 60 && texts.len() == ids.len());
    for (text, want) in texts.iter().zip(&ids) {
        let got = model.encode(text, false).expect("ids");
        assert_eq!(&got, want, "{name}: {text:.60?}");
    }
}

#[test]
fn the_demo_tokenizer_gives_the_packages_ids() {
    check(&Model::demo().unwrap(), "tokenizer/demo.json");
}

#[test]
fn a_folders_tokenizer_gives_the_packages_ids() {
    let model = Model::load(&golden("models/qwen3_vl")).unwrap();
    check(&model, "tokenizer/qwen3_vl.json");
    assert_eq!(model.eos_tokens(), [410, 408]);
    assert_eq!(model.context_tokens_max(), Some(400_000));
    assert_eq!(model.family().unwrap().placeholder(), 420);
}

#[test]
fn tokens_that_only_the_configuration_names_are_known() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "config.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    ] {
        let from = golden("models/qwen3_vl").join(name);
        std::fs::copy(from, folder.path().join(name)).unwrap();
    }
    let text = std::fs::read_to_string(golden("models/qwen3_vl/tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    tokenizer["added_tokens"] = Value::Array(Vec::new());
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let model = Model::load(folder.path()).unwrap();
    check(&model, "tokenizer/qwen3_vl.json");
}

#[test]
fn threads_encode_at_the_same_time() {
    let model = Model::demo().unwrap();
    let want = model.encode("the same text for all", false).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    assert_eq!(model.encode("the same text for all", false).unwrap(), want);
                }
            });
        }
    });
}
