//! How many tokens to draft: as many as pay, given how often drafts are accepted and what the round trip costs.
//!
//! Of k tokens that are each accepted with probability a, (1 - a^(k+1)) / (1 - a) come of a round (Leviathan et al. 2023, their equation
//! 1); what that round takes is measured by the caller. It must not read a clock.

/// What a round costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundCosts {
    /// There and back, in milliseconds.
    pub rtt_ms: f64,
    /// Verifying one row, on both sides of the cut, in milliseconds.
    pub verify_base_ms: f64,
    /// Drafting one token, in milliseconds.
    pub draft_ms: f64,
    /// Verifying one row more, in milliseconds.
    pub verify_row_ms: f64,
}

/// What an observation is worth after the next one: the last twenty rounds or so count.
const KEPT: f64 = 0.95;
/// What is believed before anything was observed, and how many trials that weighs.
const ACCEPTED_FIRST: f64 = 0.6;
const TRIALS_FIRST: f64 = 2.0;
/// Nothing is as sure as it looks: a drafted token may always be wrong, and always right.
const ACCEPTED_MIN: f64 = 0.01;
const ACCEPTED_MAX: f64 = 0.99;
/// Rounds without a draft, after which one is drafted to see whether the text has become easier.
const PROBE_ROUNDS: u32 = 16;
/// Tokens of such a draft.
const PROBE_DEPTH: u32 = 2;

/// Chooses how many tokens to draft, round by round.
#[derive(Clone, Debug)]
pub struct Depth {
    most: u32,
    /// Drafted tokens that were accepted, older ones for less.
    accepted: f64,
    /// Drafted tokens that were tried: those accepted, and the first that was not. What came after that one says nothing.
    tried: f64,
    /// Rounds in a row without a draft.
    idle_rounds: u32,
}

impl Depth {
    /// Never more than `most` tokens.
    pub fn new(most: u32) -> Self {
        Self { most, accepted: ACCEPTED_FIRST * TRIALS_FIRST, tried: TRIALS_FIRST, idle_rounds: 0 }
    }

    /// How many tokens to draft for the next round.
    pub fn choose(&mut self, costs: RoundCosts) -> u32 {
        let accepted = self.acceptance();
        let speed = |depth: u32| tokens_of_round(accepted, depth) / round_ms(costs, depth);
        let best = (1..=self.most).fold(0, |best, depth| if speed(depth) > speed(best) { depth } else { best });
        if best > 0 || self.most == 0 {
            self.idle_rounds = 0;
            return best;
        }
        self.idle_rounds += 1;
        if self.idle_rounds < PROBE_ROUNDS {
            return 0;
        }
        self.idle_rounds = 0;
        PROBE_DEPTH.min(self.most)
    }

    /// Of `proposed` tokens the first `accepted` were right.
    pub fn observe(&mut self, proposed: u32, accepted: u32) {
        assert!(accepted <= proposed, "only proposed tokens are accepted");
        if proposed == 0 {
            return;
        }
        let accepted_count = f64::from(accepted);
        self.accepted = self.accepted * KEPT + accepted_count;
        self.tried = self.tried * KEPT + accepted_count + if accepted < proposed { 1.0 } else { 0.0 };
    }

    /// The probability that a drafted token is right, given that those before it are: the maximum of the likelihood of runs that end at
    /// their first failure or at the end of the draft.
    pub fn acceptance(&self) -> f64 {
        (self.accepted / self.tried).clamp(ACCEPTED_MIN, ACCEPTED_MAX)
    }
}

/// Tokens that a round is expected to give.
fn tokens_of_round(accepted: f64, depth: u32) -> f64 {
    (1.0 - accepted.powf(f64::from(depth) + 1.0)) / (1.0 - accepted)
}

fn round_ms(costs: RoundCosts, depth: u32) -> f64 {
    // A round of no time at all would make every depth as good as any.
    (costs.rtt_ms + costs.verify_base_ms).max(1e-3) + f64::from(depth) * (costs.draft_ms + costs.verify_row_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    const FAR: RoundCosts = RoundCosts { rtt_ms: 50.0, verify_base_ms: 10.0, draft_ms: 1.0, verify_row_ms: 1.0 };
    const NEAR: RoundCosts = RoundCosts { rtt_ms: 0.1, verify_base_ms: 10.0, draft_ms: 5.0, verify_row_ms: 5.0 };

    /// How many of `proposed` are right where each is with probability `right`.
    fn accepted(rng: &mut ChaCha8Rng, right: f64, proposed: u32) -> u32 {
        (0..proposed).take_while(|_| (rng.next_u32() as f64 / 2_f64.powi(32)) < right).count() as u32
    }

    fn observed(right: f64, rounds: u32) -> Depth {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut depth = Depth::new(16);
        for _ in 0..rounds {
            let count = accepted(&mut rng, right, 6);
            depth.observe(6, count);
        }
        depth
    }

    /// Goal: drafts that end at their first failure are read right. Method: known probabilities, estimated from cut runs of six.
    #[test]
    fn the_estimate_is_the_probability() {
        for right in [0.1, 0.5, 0.8, 0.95] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let (mut depth, mut sum) = (Depth::new(16), 0.0);
            for _ in 0..4000 {
                let count = accepted(&mut rng, right, 6);
                depth.observe(6, count);
                sum += depth.acceptance() / 4000.0;
            }
            assert!((sum - right).abs() < 0.03, "{sum}, not {right}");
        }
    }

    #[test]
    fn deeper_where_drafts_are_good_and_the_link_is_long() {
        let [poor, fair, good] = [0.2, 0.6, 0.95].map(|right| observed(right, 200).choose(FAR));
        assert!(poor < fair && fair < good && good <= 16, "{poor} {fair} {good}");
        assert!(observed(0.8, 200).choose(NEAR) < observed(0.8, 200).choose(FAR));
        assert_eq!(observed(0.0, 200).choose(NEAR), 0);
        assert_eq!(Depth::new(0).choose(FAR), 0);
    }

    /// Goal: the choice is the best one. Method: the expected speed at every depth, by the sum that the formula is of.
    #[test]
    fn the_depth_is_the_fastest() {
        for right in [0.1, 0.4, 0.7, 0.9] {
            for costs in [FAR, NEAR, RoundCosts { rtt_ms: 10.0, ..NEAR }] {
                let mut depth = observed(right, 100);
                let accepted = depth.acceptance();
                let speed = |k: u32| {
                    let tokens: f64 = (0..=k as i32).map(|power| accepted.powi(power)).sum();
                    tokens / (costs.rtt_ms + costs.verify_base_ms + f64::from(k) * (costs.draft_ms + costs.verify_row_ms))
                };
                let chosen = depth.choose(costs);
                assert!((0..=16).all(|other| speed(other) <= speed(chosen) + 1e-12), "{right} {costs:?}: {chosen}");
            }
        }
    }

    /// Goal: a hard passage does not end drafting for ever. Method: nothing is accepted, then everything.
    #[test]
    fn it_recovers_after_a_hard_passage() {
        let mut depth = Depth::new(8);
        let mut drafted = 0;
        for _ in 0..200 {
            let count = depth.choose(NEAR);
            depth.observe(count, 0);
            drafted += count;
        }
        assert!(drafted > 0 && drafted <= 10 + 200 / PROBE_ROUNDS * PROBE_DEPTH, "{drafted}");
        let easy = RoundCosts { draft_ms: 0.1, verify_row_ms: 0.1, ..NEAR };
        (0..PROBE_ROUNDS * 20).for_each(|_| {
            let count = depth.choose(easy);
            depth.observe(count, count);
        });
        assert!(depth.acceptance() > 0.8 && depth.choose(easy) == 8, "{depth:?}");
    }

    #[test]
    fn costs_of_nothing_are_no_trouble() {
        let nothing = RoundCosts { rtt_ms: 0.0, verify_base_ms: 0.0, draft_ms: 0.0, verify_row_ms: 0.0 };
        assert_eq!(Depth::new(5).choose(nothing), 5);
    }
}
