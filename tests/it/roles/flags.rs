//! What a role is not started with: exit code 78, and a line that says why.

use std::process::Command;

fn refused(words: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvlens"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVLENS_")) {
        command.env_remove(name);
    }
    let output = command.args(words.split_whitespace()).output();
    let output = output.expect("the program was built with the tests");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn what_a_file_or_variable_says_in_vain_is_refused_by_all() {
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "too-short\n").unwrap();
    let config = tempfile::NamedTempFile::new().unwrap();
    let file = config.path().display();
    for (text, why) in [
        (
            "[discovery]\nnetworks = [\"10.0.0.0/40\"]\n".to_owned(),
            "\"10.0.0.0/40\" is not a network as 10.0.0.0/8",
        ),
        (
            format!("[cluster]\nhash_key_file = {:?}\n", key.path()),
            "has 9 bytes and could be guessed",
        ),
    ] {
        std::fs::write(config.path(), text).unwrap();
        for words in [
            "check-config",
            "worker --worker w --engine-url http://127.0.0.1:1",
            "frontend --worker-url http://127.0.0.1:1",
        ] {
            let (code, said) = refused(&format!("{words} --config {file}"));
            assert_eq!(code, Some(78), "{words}: {said}");
            assert!(said.contains(why), "{said}");
        }
    }
}

#[test]
fn what_can_never_work_ends_with_78_and_why() {
    let engine = "worker --worker w --engine-url http://127.0.0.1:1";
    for (words, why) in [
        (
            "worker --worker GPU",
            "kvlens: worker: --worker cannot be \"GPU\": worker id",
        ),
        (
            "worker --worker w --listen 0.0.0.0:0",
            "kvlens: worker.listen is reachable from other",
        ),
        (
            "worker --worker w --key-file /no/such",
            "cannot read key file /no/such",
        ),
        ("worker --worker w --model /no/such", "/no/such"),
        (
            "worker --worker w --engine-url 127.0.0.1:1",
            "is neither http://host:port nor unix:",
        ),
        (
            &format!("{engine} --kv-events ipc:///a --kv-events ipc:///b --kv-replay ipc:///c"),
            "1 times --kv-replay for 2 times --kv-events",
        ),
        ("frontend --model demo", "no worker can be found"),
        (
            "worker --worker w --advertise 10.0.0.5:8200",
            "worker.advertise \"10.0.0.5:8200\" is not an address",
        ),
        (
            "frontend --model demo --worker-url 127.0.0.1:1",
            "is not the address of an agent",
        ),
        (
            "frontend --model /no/such --worker-url http://127.0.0.1:1",
            "/no/such",
        ),
        (
            "frontend --model demo --worker-url http://127.0.0.1:1 --worker-key-file /etc/passwd",
            "key file /etc/passwd has mode 644",
        ),
    ] {
        let (code, said) = refused(words);
        assert_eq!(code, Some(78), "{words}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("kvlens: ") && said.contains(why), "{said}");
    }
    let (code, said) = refused("frontend --name m --worker-url http://127.0.0.1:1");
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = refused("worker --worker w --kv-events ipc:///a");
    assert_eq!(code, Some(2), "{said}");
}
