//! `kvlens replay` as a shell sees it: traces in, figures out.

use std::fs;
use std::process::Output;

use serde_json::Value;

use crate::cli::{kvlens, text};

const NAMED: &str = "tests/golden/replay/named.jsonl";
const IMAGES: &str = "tests/golden/replay/images.jsonl";

fn replay(args: &[&str]) -> Output {
    kvlens(&[&["replay"], args].concat(), &[])
}

fn json(args: &[&str]) -> Value {
    let output = replay(&[args, &["--json"]].concat());
    assert_eq!(text(&output.stderr), "", "{args:?}");
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

fn hit_rate(answer: &Value, policy: usize) -> f64 {
    let rate = &answer["policies"][policy]["hit_rate"];
    rate.as_f64().expect("a hit rate is a number")
}

fn keys(value: &Value) -> Vec<&str> {
    let object = value.as_object().expect("it is an object");
    object.keys().map(String::as_str).collect()
}

#[test]
fn the_answer_has_these_fields_and_is_the_same_again() {
    for trace in [
        &[NAMED] as &[&str],
        &[IMAGES],
        &["--synthetic", "image", "--requests-max", "150"],
        &["--synthetic", "chat", "--requests-max", "60"],
    ] {
        let args = [trace, &["--seed", "7", "--workers", "3", "--json"]].concat();
        let first = replay(&args);
        assert_eq!(first.stdout, replay(&args).stdout, "{trace:?}");
        let answer: Value = serde_json::from_slice(&first.stdout).expect("it prints JSON");
        assert_eq!(keys(&answer), ["trace", "seed", "policies"]);
        assert_eq!(answer["seed"], 7);
        let policies = answer["policies"].as_array().expect("it is a list");
        let names: Vec<_> = policies.iter().map(|p| &p["policy"]).collect();
        assert_eq!(names, ["kv", "round-robin", "least-loaded", "oracle"]);
        for policy in policies {
            let fields = ["policy", "hit_rate", "ttft_ms", "imbalance"];
            assert_eq!(keys(policy), fields);
            assert_eq!(keys(&policy["ttft_ms"]), ["mean", "p50", "p99"]);
        }
    }
}

#[test]
fn known_traces_have_known_hit_rates() {
    for (trace, cached, tokens) in [
        // Three conversations find the 3, 5 and 7 names before their later turns, and all prompts
        // but the first one the name that they begin with.
        (NAMED, 512.0 * f64::from(3 * (3 + 5 + 7) + 6), 48_608.0),
        // Each tenant's first prompt finds nothing, its first about an image two blocks of its lead.
        (IMAGES, 6608.0, 14504.0),
    ] {
        let answer = json(&[trace, "--policy", "oracle,kv,round-robin"]);
        let [oracle, kv, in_turn] = [0, 1, 2].map(|policy| hit_rate(&answer, policy));
        assert!((oracle - cached / tokens).abs() < 1e-9, "{trace}: {oracle}");
        assert!(oracle >= kv && kv > in_turn, "{trace}: {kv}, {in_turn}");
    }
}

#[test]
fn a_sweep_adds_the_weights() {
    let answer = json(&[NAMED, "--policy", "oracle", "--sweep"]);
    let policies = answer["policies"].as_array().expect("it is a list");
    let names: Vec<_> = policies.iter().map(|p| &p["policy"]).collect();
    let weights = ["0", "0.25", "0.5", "1", "2", "4", "8", "16"];
    let expected: Vec<_> = weights.map(|weight| format!("kv:{weight}")).to_vec();
    assert_eq!(names[0], "oracle");
    assert_eq!(names[1..], expected.iter().collect::<Vec<_>>());
}

#[test]
fn a_picture_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("out.svg");
    let output = replay(&[NAMED, "--plot", path.to_str().expect("it is text")]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with("policy "));
    let picture = fs::read_to_string(path).expect("the picture is there");
    assert_eq!(picture.matches("<polyline").count(), 4);
}

fn refused(args: &[&str], code: i32, said: &str) {
    let output = replay(args);
    let told = text(&output.stderr);
    assert!(told.starts_with(said), "{args:?}: {told}");
    assert_eq!(output.status.code(), Some(code), "{args:?}");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn what_cannot_be_used_ends_with_a_line_that_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("a file can be written");
        path.to_str().expect("it is text").to_owned()
    };
    let good = r#"{"timestamp":0,"input_length":9,"output_length":1,"hash_ids":[1]}"#;
    let bad = file("bad", &format!("{good}\n\n{{\"timestamp\":0}}\n"));
    let empty = file("empty", "\n");
    let long = file("long", &" ".repeat((1 << 20) + 1));
    for (args, said) in [
        (
            &[bad.as_str()] as &[&str],
            format!("kvlens: replay: line 3 of trace {bad}: has no hash_ids or parts\n"),
        ),
        (
            &[&empty],
            format!("kvlens: replay: trace {empty} has no requests\n"),
        ),
        (
            &[&long],
            format!("kvlens: replay: line 1 of trace {long} is longer than 1048576 bytes\n"),
        ),
        (
            &["/nowhere"],
            "kvlens: replay: trace /nowhere cannot be opened".to_owned(),
        ),
        (
            &[NAMED, "--capacity-blocks", "90"],
            "kvlens: replay: request 1 needs 125 blocks at its end, and --capacity-blocks is 90\n"
                .to_owned(),
        ),
    ] {
        refused(args, 1, &said);
    }
    // Only what is read can be wrong.
    let output = replay(&[&bad, "--requests-max", "1"]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_wrong_command_line_or_configuration_has_a_code_of_its_own() {
    for (args, code, said) in [
        (&[] as &[&str], 2, "error: the following required arguments"),
        (&[NAMED, "--policy", "best"], 2, "error: invalid value"),
        (&[NAMED, "--speed", "0"], 2, "error: invalid value"),
        (&[NAMED, "--workers", "0"], 2, "error: invalid value"),
        (&[NAMED, "--synthetic", "chat"], 2, "error: the argument"),
        (&[NAMED, "--config", "/nowhere.toml"], 78, "kvlens: "),
    ] {
        refused(args, code, said);
    }
}
