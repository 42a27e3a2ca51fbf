//! An engine out of an image: the words that have podman run it.

use std::path::Path;

use crate::engine::command::Plan;

/// What an engine in a container is told by our environment, and no more of it.
const PASSED: [&str; 2] = ["VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"];

impl Plan {
    /// The arguments of podman that run `program` with `args` out of `image`. The container has the
    /// host's network and memory, and sees of its files the folder of the engine's sockets, the model and
    /// the images, each where the host has it.
    pub(crate) fn podman_args(
        &self,
        image: &str,
        run_dir: &Path,
        (program, args): (&str, Vec<String>),
    ) -> Vec<String> {
        let mut words = vec!["run".to_owned()];
        // One that was killed left its container, which the next replaces.
        words.extend(["--rm", "--replace"].map(str::to_owned));
        words.push(format!("--name=kvlens-{}", self.worker));
        // The container stays among the processes of the unit, and its end is the unit's affair: so do
        // its limits, its output and what is told to systemd.
        words.extend(
            [
                "--cgroups=disabled",
                "--ulimit=host",
                "--log-driver=none",
                "--sdnotify=ignore",
            ]
            .map(str::to_owned),
        );
        // Ranks share memory with each other and with frontends; labels would close the folders below.
        words.extend(
            [
                "--network=host",
                "--ipc=host",
                "--security-opt=label=disable",
            ]
            .map(str::to_owned),
        );
        // Root in there is our own user out here, to whom alone the folder of the sockets is open.
        words.push("--user=0:0".to_owned());
        let all = vec!["all".to_owned()];
        let gpus = self.gpus.as_ref().unwrap_or(&all).iter();
        words.extend(gpus.map(|gpu| format!("--device=nvidia.com/gpu={gpu}")));
        let run_dir = run_dir.display();
        words.push(format!("--volume={run_dir}:{run_dir}"));
        let media = self.media_dir.as_ref();
        let media = media.map(|folder| folder.display().to_string());
        let read = self.model.iter().chain(&media);
        words.extend(read.map(|folder| format!("--volume={folder}:{folder}:ro")));
        words.extend(PASSED.map(|name| format!("--env={name}")));
        words.push(format!("--entrypoint={program}"));
        words.push(image.to_owned());
        words.extend(args);
        words
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::engine::command::tests::plan;

    #[test]
    fn podman_is_told_what_an_engine_needs_of_its_host() {
        let plan = Plan {
            gpus: Some(vec!["GPU-1f".to_owned(), "GPU-2e".to_owned()]),
            media_dir: Some(PathBuf::from("/dev/shm/media")),
            ..plan(Some("/srv/models/x"))
        };
        let args = vec!["serve".to_owned(), "/srv/models/x".to_owned()];
        let run_dir = Path::new("/run/kvlens/kvlens-9/engine-gpu-0");
        let words = plan.podman_args("docker.io/a/b@sha256:1", run_dir, ("vllm", args));
        assert_eq!(
            words,
            [
                "run",
                "--rm",
                "--replace",
                "--name=kvlens-gpu-0",
                "--cgroups=disabled",
                "--ulimit=host",
                "--log-driver=none",
                "--sdnotify=ignore",
                "--network=host",
                "--ipc=host",
                "--security-opt=label=disable",
                "--user=0:0",
                "--device=nvidia.com/gpu=GPU-1f",
                "--device=nvidia.com/gpu=GPU-2e",
                "--volume=/run/kvlens/kvlens-9/engine-gpu-0:/run/kvlens/kvlens-9/engine-gpu-0",
                "--volume=/srv/models/x:/srv/models/x:ro",
                "--volume=/dev/shm/media:/dev/shm/media:ro",
                "--env=VLLM_NO_USAGE_STATS",
                "--env=DO_NOT_TRACK",
                "--entrypoint=vllm",
                "docker.io/a/b@sha256:1",
                "serve",
                "/srv/models/x",
            ]
        );
    }

    #[test]
    fn an_engine_without_gpus_of_its_own_may_choose_among_all() {
        let plan = Plan {
            gpus: None,
            ..plan(None)
        };
        let words = plan.podman_args("image", Path::new("/run/e"), ("vllm", Vec::new()));
        assert!(words.contains(&"--device=nvidia.com/gpu=all".to_owned()));
        let volumes = words.iter().filter(|word| word.starts_with("--volume"));
        assert_eq!(volumes.count(), 1, "{words:?}");
    }
}
