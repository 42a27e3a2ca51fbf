//! What a worker rank has in hand, counted from bookings.

/// The load of one worker rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Load {
    /// Uncached tokens of requests whose first token has not come.
    pub prefill_tokens: u64,
    /// Blocks of the prompts in flight.
    pub decode_blocks: u64,
    /// Requests in flight.
    pub requests: u32,
}

/// What one request adds to the load of the rank it is placed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Zero once the first token has come.
    pub prefill_tokens: u64,
    pub decode_blocks: u64,
}

impl Load {
    /// Adds a request's share.
    pub fn book(&mut self, share: Share) {
        self.prefill_tokens += share.prefill_tokens;
        self.decode_blocks += share.decode_blocks;
        self.requests += 1;
    }

    /// Takes the prefill out of a booked share: its first token has come.
    pub fn prefill_done(&mut self, share: &mut Share) {
        self.prefill_tokens = self.prefill_tokens.saturating_sub(share.prefill_tokens);
        share.prefill_tokens = 0;
    }

    /// Takes back what is left of a booked share.
    pub fn free(&mut self, share: Share) {
        self.prefill_tokens = self.prefill_tokens.saturating_sub(share.prefill_tokens);
        self.decode_blocks = self.decode_blocks.saturating_sub(share.decode_blocks);
        self.requests = self.requests.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_booked_is_given_back() {
        let mut load = Load::default();
        let mut first = Share {
            prefill_tokens: 100,
            decode_blocks: 7,
        };
        let second = Share {
            prefill_tokens: 50,
            decode_blocks: 4,
        };
        load.book(first);
        load.book(second);
        assert_eq!(
            load,
            Load {
                prefill_tokens: 150,
                decode_blocks: 11,
                requests: 2
            }
        );
        load.prefill_done(&mut first);
        assert_eq!(
            load,
            Load {
                prefill_tokens: 50,
                decode_blocks: 11,
                requests: 2
            }
        );
        load.prefill_done(&mut first); // once only
        load.free(first);
        assert_eq!(
            load,
            Load {
                prefill_tokens: 50,
                decode_blocks: 4,
                requests: 1
            }
        );
        load.free(second);
        assert_eq!(load, Load::default());
    }
}
