//! Arguments of vLLM that would make its events or its images mean something else than we believe.

use crate::engine::EngineError;

/// Flags that are refused, and why. Options inside a flag (`--flag.option`) are refused with it.
const REFUSED: [(&str, &str); 3] = [
    (
        "--kv-events-config",
        "kvlens sets it, so that the events reach its agent",
    ),
    (
        "--no-enable-prefix-caching",
        "without its cache there is nothing to route by",
    ),
    (
        "--trust-request-mm-kwargs",
        "requests could change what an image becomes behind its digest",
    ),
];

/// The flag that changes how media are read, refused where it names images.
const MEDIA: (&str, &str) = (
    "--media-io-kwargs",
    "it changes how images are read, and with that how many tokens they become",
);

/// Lets the arguments pass that go to vLLM with ours.
///
/// # Errors
/// Names the first that may not.
pub(crate) fn check(args: &[String]) -> Result<(), EngineError> {
    let next = args.iter().skip(1).map(String::as_str);
    let pairs = args.iter().zip(next.chain([""]));
    for (arg, next) in pairs {
        let (flag, value) = arg.split_once('=').unwrap_or((arg, next));
        // vLLM takes underscores for dashes in a flag's name.
        let flag = flag.replace('_', "-");
        let refused = REFUSED.iter().find(|(name, _)| names(&flag, name));
        let media = names(&flag, MEDIA.0) && (flag.contains("image") || value.contains("image"));
        let reason = refused.map(|(_, reason)| *reason);
        if let Some(reason) = reason.or(media.then_some(MEDIA.1)) {
            return Err(EngineError::Argument {
                argument: arg.clone(),
                reason,
            });
        }
    }
    Ok(())
}

/// Whether `flag` is `name`, or an option inside it.
fn names(flag: &str, name: &str) -> bool {
    let rest = flag.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_blind_us_is_refused() {
        for (line, refused) in [
            ("--kv-events-config {}", Some("--kv-events-config")),
            (
                "--max-model-len 5 --kv_events_config={}",
                Some("--kv_events_config={}"),
            ),
            (
                "--kv-events-config.topic x",
                Some("--kv-events-config.topic"),
            ),
            (
                "--no-enable-prefix-caching",
                Some("--no-enable-prefix-caching"),
            ),
            (
                "--trust-request-mm-kwargs",
                Some("--trust-request-mm-kwargs"),
            ),
            (
                r#"--media-io-kwargs {"image":{"x":1}}"#,
                Some("--media-io-kwargs"),
            ),
            (
                "--media-io-kwargs.image.x 1",
                Some("--media-io-kwargs.image.x"),
            ),
            (r#"--media-io-kwargs {"video":{"num_frames":3}}"#, None),
            (
                "--kv-events-configure x --enable-prefix-caching image",
                None,
            ),
            ("", None),
        ] {
            let args: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
            match (check(&args), refused) {
                (Ok(()), None) => {}
                (Err(EngineError::Argument { argument, .. }), Some(flag)) => {
                    assert_eq!(argument, flag);
                }
                (found, _) => panic!("{line}: {found:?}"),
            }
        }
    }
}
