//! Whether an engine advances, as far as its metrics tell.

use std::time::Duration;

use tokio::time::Instant;

use crate::health::judge::Progress;

/// After this nobody knows how far an engine is: five times of those at which its metrics are read.
const KNOWN_MAX: Duration = Duration::from_secs(10);

/// How far an engine is.
#[derive(Debug, Default)]
pub(crate) struct Advance {
    last: Option<(Progress, Instant)>,
    /// Whether it was seen to generate. Of one that only encodes, as for embeddings, nothing can be said.
    has_generated: bool,
}

impl Advance {
    /// Takes in what a page of metrics says.
    pub(crate) fn note(&mut self, progress: Option<Progress>) {
        let Some(progress) = progress else { return };
        let now = progress.generated_tokens;
        if let Some((last, _)) = self.last {
            // One that counts from the start again is another life.
            self.has_generated =
                now >= last.generated_tokens && (self.has_generated || now > last.generated_tokens);
        }
        self.last = Some((progress, Instant::now()));
    }

    /// How far it is; `None` where nobody knows.
    pub(crate) fn progress(&self) -> Option<Progress> {
        let (progress, at) = self.last.filter(|_| self.has_generated)?;
        (at.elapsed() <= KNOWN_MAX).then_some(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_an_engine_that_has_generated_can_be_stuck() {
        let mut advance = Advance::default();
        let told = |generated_tokens| {
            Some(Progress {
                running: 1,
                generated_tokens,
            })
        };
        for (progress, known) in [
            (told(0), None),
            (told(0), None),
            (told(5), told(5)),
            (None, told(5)),
            (told(5), told(5)),
            (told(1), None),
            (told(2), told(2)),
        ] {
            advance.note(progress);
            assert_eq!(advance.progress(), known, "{progress:?}");
        }
        tokio::time::advance(KNOWN_MAX + Duration::from_millis(1)).await;
        assert_eq!(advance.progress(), None, "it was not told for long");
    }
}
