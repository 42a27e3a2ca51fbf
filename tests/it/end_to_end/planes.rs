//! `kvlens up --planes cluster`: etcd and NATS of its own, and a box that runs as a rack does.

use crate::end_to_end::stack;

#[cfg(feature = "etcd")]
mod running {
    use rustix::process::{Signal, kill_process};

    use crate::cli::{kvlens, text};
    use crate::end_to_end::client::Told;
    use crate::end_to_end::stack::{FAST, Process, Stack, until};

    async fn start() -> Stack {
        Stack::start(&format!("--planes cluster -- {FAST}")).await
    }

    fn running(stack: &Stack, name: &str) -> Process {
        stack.program(name).expect("it runs")
    }

    /// A word that stands between two others.
    fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
        let rest = text.split_once(before).expect("it was said").1;
        rest.split_once(after).expect("it was said").0
    }

    /// Asks again for what was asked, until all of it that can be is cached.
    async fn assert_cached_again(stack: &Stack) -> Told {
        until("the router has followed", async || {
            let told = stack.ask(&stack.example).await;
            told.overlap_blocks == (told.prompt_tokens - 1) / 16
        })
        .await;
        let told = stack.ask(&stack.example).await;
        assert_eq!(told.cached_tokens, told.overlap_blocks * 16, "{told:?}");
        told
    }

    #[tokio::test]
    async fn a_box_runs_as_a_rack_does_and_leaves_nothing() {
        let stack = start().await;
        assert_cached_again(&stack).await;
        let said = stack.said();
        let folder = between(&said, "what it keeps is in ", " until");
        assert!(std::path::Path::new(folder).join("member").is_dir());
        let etcd = between(&said, "etcd at ", ",");
        let nats = between(&said, "NATS at ", "\n");
        let output = kvlens(&["doctor", "--json", "--etcd", etcd, "--nats", nats], &[]);
        let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        for (check, count) in [("etcd", 1), ("agent", 2), ("engine", 2), ("worker", 2)] {
            let ok = findings.as_array().unwrap().iter();
            let ok = ok.filter(|one| one["check"] == check && one["status"] == "ok");
            assert_eq!(ok.count(), count, "{check}: {}", text(&output.stdout));
        }
        stack.end().await;
    }

    #[tokio::test]
    async fn servers_that_die_are_started_again_and_requests_go_on() {
        let stack = start().await;
        assert_cached_again(&stack).await;
        for name in ["etcd", "nats-server"] {
            let first = running(&stack, name).pid;
            running(&stack, name).kill();
            until("another runs", async || {
                // Nobody who asks meanwhile is refused.
                stack.ask(&stack.example).await;
                stack.program(name).is_some_and(|now| now.pid != first)
            })
            .await;
        }
        let answers = |name: &str| stack.said().matches(&format!("  {name}  answers")).count();
        for name in ["etcd", "nats"] {
            until("it answers again", async || answers(name) == 2).await;
            let killed = format!("  {name}  it ended with signal: 9 (SIGKILL); starting it again");
            assert!(stack.said().contains(&killed), "{}", stack.said());
        }
        let back = async |plane: &str| {
            let metric = format!("kvlens_plane_up{{plane=\"{plane}\"}}");
            until("it is met again", async || {
                stack.metric(&metric).await == 1.0
            })
            .await;
        };
        back("etcd").await;
        back("nats").await;
        assert_cached_again(&stack).await;
        // Nor does one that hangs hold up the end.
        kill_process(running(&stack, "etcd").pid, Signal::STOP).unwrap();
        stack.end().await;
    }

    #[tokio::test]
    async fn what_a_killed_run_left_is_ended_by_the_next() {
        let stack = start().await;
        let left = [running(&stack, "etcd"), running(&stack, "nats-server")];
        stack.signal(Signal::KILL);
        let mut stack = stack;
        stack.ended().await;
        let next = Stack::start_in(stack.into_folder(), &format!("-- {FAST}"), "").await;
        for process in left {
            crate::engine_role::running::gone(&process.pid.as_raw_nonzero().to_string()).await;
        }
        next.end().await;
    }
}

#[tokio::test]
async fn what_planes_need_is_said_before_anything_is_started() {
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().display().to_string();
    let etcd = ("KVLENS_ETCD_ENDPOINTS", "http://127.0.0.1:1");
    let nats = ("KVLENS_NATS_SERVERS", "nats://127.0.0.1:1");
    let with = cfg!(feature = "etcd");
    for (variable, part) in [
        (
            ("PATH", path.as_str()),
            "program \"etcd\" is not found in PATH; --planes cluster",
        ),
        (
            etcd,
            "starts etcd and NATS itself, and etcd.endpoints is set",
        ),
        (nats, "starts etcd and NATS itself, and nats.servers is set"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = stack::command(&folder, "--planes cluster", "");
        let status = command.env(variable.0, variable.1).status().await.unwrap();
        assert_eq!(status.code(), Some(78));
        let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let part = match (with, variable.0) {
            (true, _) => part,
            (false, "KVLENS_ETCD_ENDPOINTS") => "built without etcd",
            (false, _) => "--planes cluster needs etcd, and this program was built without it",
        };
        assert!(read("err").contains(part), "{}", read("err"));
        assert_eq!(read("out"), "", "nothing was started");
    }
}
