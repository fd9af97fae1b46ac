//! Choosing a round's clients: the same seed and round choose the same ones on every machine.

use cutlayer_wire::RoundId;

/// The step of SplitMix64 (Steele et al. 2014): small, well mixed, and fixed for ever, which a library's
/// default generator is not.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// `count` of `items`, each as likely as any other, in their original order; all of them where there are
/// no more.
pub(crate) fn sample<T: Copy>(seed: u64, round: RoundId, items: &[T], count: usize) -> Vec<T> {
    if count >= items.len() {
        return items.to_vec();
    }
    let mut state = mix(seed).wrapping_add(mix(u64::from(round.0).wrapping_add(GOLDEN_GAMMA)));
    let mut places: Vec<usize> = (0..items.len()).collect();
    for chosen in 0..count {
        state = state.wrapping_add(GOLDEN_GAMMA);
        let rest = places.len() - chosen;
        // The high half of a product is below `rest`; its bias, of rest / 2^64, is beyond measuring.
        let offset = ((u128::from(mix(state)) * rest as u128) >> 64) as usize;
        places.swap(chosen, chosen + offset);
    }
    places.truncate(count);
    places.sort_unstable();
    places.into_iter().map(|place| items[place]).collect()
}

fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changing this choice changes every sampled run of every seed.
    #[test]
    fn the_choice_is_frozen() {
        let items: Vec<u32> = (0..10).collect();
        let rounds = (1..4).map(|round| sample(42, RoundId(round), &items, 3));
        assert_eq!(rounds.collect::<Vec<_>>(), [[0, 2, 4], [4, 5, 6], [0, 2, 3]]);
    }

    /// Goal: no client is favoured. Method: count choices over many rounds; 5 sigma around the mean.
    #[test]
    fn every_client_is_as_likely() {
        let items: Vec<usize> = (0..10).collect();
        let mut counts = [0_f64; 10];
        let rounds = 10_000;
        for round in 0..rounds {
            let chosen = sample(7, RoundId(round), &items, 3);
            assert!(chosen.is_sorted() && chosen.len() == 3);
            chosen.into_iter().for_each(|item| counts[item] += 1.0);
        }
        let (mean, sigma) = (3000.0, (f64::from(rounds) * 0.3 * 0.7).sqrt());
        assert!(counts.iter().all(|count| (count - mean).abs() < 5.0 * sigma), "{counts:?}");
    }

    /// Goal: a sample of everyone is everyone. Method: as many as there are, and more.
    #[test]
    fn a_large_sample_is_everyone() {
        for count in [3, 4, usize::MAX] {
            assert_eq!(sample(1, RoundId(1), &[1, 2, 3], count), [1, 2, 3]);
        }
        assert_eq!(sample(1, RoundId(1), &[1, 2, 3], 0), [0; 0]);
    }
}
