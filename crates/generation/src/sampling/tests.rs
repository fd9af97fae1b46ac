//! Goal: a draw is what the words of its spec say. Method: a naive sampler beside it, known numbers, and the distribution over many seeds.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;
use rand_chacha::rand_core::RngCore;

fn spec() -> SamplingSpec {
    SamplingSpec { temperature: 1.0, ..SamplingSpec::GREEDY }
}

fn draw_id(spec: &SamplingSpec, logits: &[f32], position: u32, history: &History) -> u32 {
    draw(spec, &mut logits.to_vec(), position, history).id
}

fn greedy(logits: &[f32], changed: SamplingSpec, history: &History) -> u32 {
    draw_id(&SamplingSpec { temperature: 0.0, ..changed }, logits, 0, history)
}

/// How often each token comes, over so many seeds.
fn shares(spec: &SamplingSpec, logits: &[f32], draws: u64) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for seed in 0..draws {
        counts[draw_id(&SamplingSpec { seed, ..spec.clone() }, logits, 3, &History::default()) as usize] += 1.0 / draws as f64;
    }
    counts
}

/// Changing these numbers changes what every seed generates.
#[test]
fn the_random_numbers_are_frozen() {
    let drawn = [(0, 0), (0, 1), (1, 0), (7, 100_000)].map(|(seed, position)| (uniform(seed, position) * 1e6) as u32);
    assert_eq!(drawn, [249_278, 186_396, 669_945, 711_201]);
}

/// Goal: positions may be drawn in any order. Method: words of the stream against the stream read from its start.
#[test]
fn a_position_is_a_place_in_one_stream() {
    let mut key = *b"........cutlayer draws of tokens";
    key[..8].copy_from_slice(&9_u64.to_le_bytes());
    let mut stream = ChaCha8Rng::from_seed(key);
    for position in 0..100 {
        assert_eq!(uniform(9, position), (stream.next_u64() >> 11) as f64 / (1_u64 << 53) as f64);
    }
}

#[test]
fn zero_temperature_takes_the_lowest_of_the_likeliest() {
    for (logits, id) in [(vec![0.0, 2.0, 2.0], 1), (vec![5.0], 0), (vec![-1.0, -3.0], 0), (vec![-0.0, 0.0], 0)] {
        assert_eq!(greedy(&logits, spec(), &History::default()), id, "{logits:?}");
    }
    let mut wide = vec![0.0; 50_257];
    for id in [0, 15, 16, 31_337, 50_255, 50_256] {
        wide[id] = id as f32;
        assert_eq!(greedy(&wide, spec(), &History::default()), id as u32);
    }
}

#[test]
fn what_is_no_number_is_not_drawn() {
    let nan = f32::NAN;
    for temperature in [0.0, 1.0] {
        let spec = SamplingSpec { temperature, top_p: 0.9, top_k: 2, logprobs: Some(2), ..spec() };
        let drawn = |logits: &[f32]| draw(&spec, &mut logits.to_vec(), 0, &History::default());
        assert_eq!(drawn(&[nan, 1.0, nan]).id, 1);
        assert_eq!(drawn(&[nan, nan]).id, 0);
        assert_eq!(drawn(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]).id, 1);
        assert_eq!(drawn(&[0.0, f32::INFINITY, 3.0]).id, 1);
        for logits in [[nan; 3], [f32::NEG_INFINITY; 3], [f32::INFINITY, 0.0, nan]] {
            let drawn = drawn(&logits);
            assert!(drawn.logprob.is_some_and(|value| (LOGPROB_MIN..=0.0).contains(&value)), "{drawn:?}");
        }
    }
}

/// Goal: the distribution is softmax of logits over temperature. Method: shares of 20,000 seeds, within 5 sigma.
#[test]
fn draws_have_the_distribution_of_the_softmax() {
    let (logits, draws) = ([1.0_f32, 0.0, 2.0, -1.0], 20_000_u64);
    for temperature in [0.5, 1.0, 2.0] {
        let shares = shares(&SamplingSpec { temperature, ..spec() }, &logits, draws);
        let weights = logits.map(|logit| f64::from(logit / temperature).exp());
        for (share, weight) in shares.iter().zip(weights) {
            let expected = weight / weights.iter().sum::<f64>();
            let sigma = (expected * (1.0 - expected) / draws as f64).sqrt();
            assert!((share - expected).abs() < 5.0 * sigma, "{share}, not {expected}, at {temperature}");
        }
    }
}

/// Goal: positions are as good as seeds. Method: as above, over positions of one seed.
#[test]
fn positions_are_independent_draws() {
    let draws = 20_000;
    let ones = (0..draws).filter(|position| draw_id(&spec(), &[0.0, 0.0], *position, &History::default()) == 1).count();
    assert!((ones as f64 / f64::from(draws) - 0.5).abs() < 5.0 * 0.5 / f64::from(draws).sqrt(), "{ones}");
}

/// Goal: filters keep what they say. Method: with two tokens out of the tail kept, nothing else is ever drawn, and both are.
#[test]
fn filters_keep_the_likeliest() {
    let logits = [0.0, 3.0, 1.0, 2.5];
    let drawn = |spec: SamplingSpec| -> Vec<usize> {
        let shares = shares(&spec, &logits, 2000);
        (0..4).filter(|id| shares[*id] > 0.0).collect()
    };
    assert_eq!(drawn(SamplingSpec { top_k: 2, ..spec() }), [1, 3]);
    assert_eq!(drawn(SamplingSpec { top_k: 1, ..spec() }), [1]);
    // Shares are 0.028, 0.560, 0.076, 0.340.
    assert_eq!(drawn(SamplingSpec { top_p: 0.5, ..spec() }), [1]);
    assert_eq!(drawn(SamplingSpec { top_p: 0.6, ..spec() }), [1, 3]);
    assert_eq!(drawn(SamplingSpec { top_p: 0.95, ..spec() }), [1, 2, 3]);
    assert_eq!(drawn(SamplingSpec { min_p: 0.2, ..spec() }), [1, 3]);
    assert_eq!(drawn(SamplingSpec { min_p: 1.0, ..spec() }), [1]);
    assert_eq!(drawn(spec()), [0, 1, 2, 3]);
    // top_p is of what top_k left: 0.560 is 0.62 of it.
    assert_eq!(drawn(SamplingSpec { top_k: 2, top_p: 0.61, ..spec() }), [1]);
}

#[test]
fn keys_order_as_logits_do_and_ties_by_id() {
    let falling = [f32::INFINITY, f32::MAX, 2.0, 1.0, f32::MIN_POSITIVE, 0.0, -1e-40, -1.0, -2.0, f32::MIN, f32::NEG_INFINITY];
    let keys: Vec<u64> = falling.iter().enumerate().map(|(place, logit)| Candidate::new(99 - place as u32, *logit, 0.0).key).collect();
    assert!(keys.is_sorted_by(|one, other| one < other), "{keys:x?}");
    assert!(Candidate::new(3, -0.0, 0.0).key < Candidate::new(4, 0.0, 0.0).key);
    assert_eq!(Candidate::new(u32::MAX, -1.5, 0.0).id(), u32::MAX);
}

/// Transformers' processors one after the other, each over the whole vocabulary.
fn naive_candidates(spec: &SamplingSpec, logits: &[f32]) -> Vec<u32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sorted: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, logit)| (id as u32, (logit - most) / spec.temperature)).collect();
    sorted.sort_by(|one, other| other.1.total_cmp(&one.1));
    if spec.top_k > 0 {
        sorted.truncate(spec.top_k as usize);
    }
    let mut weights: Vec<f64> = sorted.iter().map(|(_, log)| f64::from(log.exp())).collect();
    if spec.top_p < 1.0 {
        let wanted = f64::from(spec.top_p) * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let count = 1 + weights
            .iter()
            .take_while(|weight| {
                sum += **weight;
                sum < wanted
            })
            .count();
        weights.truncate(count);
    }
    let kept = sorted.iter().zip(&weights).filter(|(_, weight)| **weight >= f64::from(spec.min_p));
    let mut ids: Vec<u32> = kept.map(|((id, _), _)| *id).collect();
    ids.sort_unstable();
    ids
}

/// Goal: the partial sorts find what whole ones do. Method: random logits with many ties, up to several times the first guess.
#[test]
fn candidates_are_those_of_the_naive_sampler() {
    let logits = proptest::collection::vec((-40_i32..40).prop_map(|eighths| eighths as f32 / 8.0), 1..1500);
    let spec = (0.1_f32..3.0, 0_u32..200, 0.01_f32..=1.0, prop_oneof![Just(0.0), 0.0_f32..0.5]);
    proptest!(|(logits in logits, (temperature, top_k, top_p, min_p) in spec)| {
        let spec = SamplingSpec { temperature, top_k, top_p, min_p, ..SamplingSpec::GREEDY };
        let kept: Vec<u32> = candidates(&spec, &logits).iter().map(Candidate::id).collect();
        // Sums in another order may disagree about a token on the very edge.
        let naive = naive_candidates(&spec, &logits);
        let differ = kept.iter().filter(|id| !naive.contains(id)).count() + naive.iter().filter(|id| !kept.contains(id)).count();
        prop_assert!(differ <= 1, "{kept:?} {naive:?}");
        prop_assert!(kept.is_sorted() && !kept.is_empty());
    });
}

/// Goal: a draw never fails and is one of the candidates; top-k 1 is greedy. Method: any logits at all, NaN and infinities among them.
#[test]
fn any_logits_are_drawn_from() {
    let logit = prop_oneof![8 => -50.0_f32..50.0, 1 => Just(f32::NAN), 1 => Just(f32::INFINITY), 1 => Just(f32::NEG_INFINITY)];
    proptest!(|(logits in proptest::collection::vec(logit, 1..60), seed: u64, position: u32, temperature in 1e-30_f32..100.0, top_p in 0.01_f32..=1.0)| {
        let spec = SamplingSpec { temperature, top_p, seed, logprobs: Some(3), ..SamplingSpec::GREEDY };
        let drawn = draw(&spec, &mut logits.clone(), position, &History::default());
        prop_assert!(!logits[drawn.id as usize].is_nan() || logits.iter().all(|logit| logit.is_nan()));
        prop_assert!(drawn.top.iter().chain([&(drawn.id, drawn.logprob.unwrap())]).all(|(_, value)| (LOGPROB_MIN..=0.0).contains(value)));
        let one = SamplingSpec { top_k: 1, ..spec.clone() };
        prop_assert_eq!(draw_id(&one, &logits, position, &History::default()), greedy(&logits, spec, &History::default()));
    });
}

/// Goal: the numbers of the penalties. Method: what is left of the logits after a draw, in powers of two.
#[test]
fn penalties_count_what_they_say() {
    let mut history = History::new(&[0, 1, 1, 99]);
    [2, 2, 3].iter().for_each(|id| history.push(*id));
    let left = |spec: SamplingSpec| {
        let mut logits = [4.0, -4.0, 4.0, -4.0, 4.0];
        draw(&spec, &mut logits, 7, &history);
        logits
    };
    assert_eq!(left(SamplingSpec { repetition_penalty: 2.0, ..spec() }), [2.0, -8.0, 2.0, -8.0, 4.0]);
    assert_eq!(left(SamplingSpec { presence_penalty: 0.5, ..spec() }), [4.0, -4.0, 3.5, -4.5, 4.0]);
    assert_eq!(left(SamplingSpec { frequency_penalty: 0.5, ..spec() }), [4.0, -4.0, 3.0, -4.5, 4.0]);
    assert_eq!(left(SamplingSpec { logit_bias: vec![(4, -2.0), (77, 1.0)], ..spec() }), [4.0, -4.0, 4.0, -4.0, 2.0]);
    // The bias comes first, and is penalised.
    assert_eq!(left(SamplingSpec { logit_bias: vec![(1, 12.0)], repetition_penalty: 2.0, ..spec() })[1], 4.0);
}

#[test]
fn a_bias_and_a_penalty_change_what_is_greedy() {
    let logits = [1.0, 2.0, 3.0];
    assert_eq!(greedy(&logits, SamplingSpec { logit_bias: vec![(0, 5.0)], ..spec() }, &History::default()), 0);
    assert_eq!(greedy(&logits, SamplingSpec { repetition_penalty: 4.0, ..spec() }, &History::new(&[2])), 1);
}

/// Goal: log-probabilities are the model's own. Method: penalties, biases and temperature beside the softmax of the raw logits.
#[test]
fn logprobs_are_of_the_raw_logits() {
    let logits = [1.0_f32, 3.0, 2.0, 3.0];
    let total = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
    let logprob = |id: usize| (f64::from(logits[id]) - total) as f32;
    for temperature in [0.0, 5.0] {
        let spec = SamplingSpec { temperature, logit_bias: vec![(0, 100.0)], repetition_penalty: 3.0, logprobs: Some(3), ..spec() };
        let drawn = draw(&spec, &mut logits.clone(), 2, &History::new(&[1]));
        assert_eq!(drawn.id, 0);
        let expected = [(1, logprob(1)), (3, logprob(3)), (2, logprob(2))];
        assert!((drawn.logprob.unwrap() - logprob(0)).abs() < 1e-5);
        assert_eq!(drawn.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
        assert!(drawn.top.iter().zip(expected).all(|(got, expected)| (got.1 - expected.1).abs() < 1e-5), "{drawn:?}");
    }
    let few = draw(&SamplingSpec { logprobs: Some(20), ..spec() }, &mut [0.0, 0.0], 0, &History::default());
    assert_eq!(few.top.len(), 2);
    let none = draw(&SamplingSpec { logprobs: Some(0), ..spec() }, &mut [0.0, 0.0], 0, &History::default());
    assert!(none.top.is_empty() && none.logprob.is_some());
    assert_eq!(draw(&spec(), &mut [0.0, 0.0], 0, &History::default()).logprob, None);
}

#[test]
fn good_specs_pass() {
    let full = SamplingSpec { temperature: 100.0, top_k: u32::MAX, top_p: 1e-3, min_p: 1.0, logprobs: Some(TOP_LOGPROBS_MAX), ..spec() };
    let biased = SamplingSpec { logit_bias: vec![(9, -100.0), (9, 100.0)], presence_penalty: -2.0, frequency_penalty: 2.0, ..spec() };
    for spec in [SamplingSpec::GREEDY, spec(), full, biased] {
        assert_eq!(check(&spec, 10), Ok(()));
    }
}

#[test]
fn bad_specs_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -3.0, 101.0] {
        let range = |spec: SamplingSpec, field| match check(&spec, 10) {
            Err(SamplingError::Range { name, value, .. }) => assert!(name == field && (value == bad || bad.is_nan()), "{name} {value}"),
            other => panic!("{field} {bad}: {other:?}"),
        };
        range(SamplingSpec { temperature: bad, ..spec() }, "temperature");
        range(SamplingSpec { top_p: bad, ..spec() }, "top_p");
        range(SamplingSpec { min_p: bad, ..spec() }, "min_p");
        range(SamplingSpec { presence_penalty: bad, ..spec() }, "presence_penalty");
        range(SamplingSpec { frequency_penalty: bad, ..spec() }, "frequency_penalty");
        if bad != 101.0 {
            range(SamplingSpec { repetition_penalty: bad, ..spec() }, "repetition_penalty");
        }
        if bad != -3.0 {
            range(SamplingSpec { logit_bias: vec![(0, bad)], ..spec() }, "logit_bias");
        }
    }
    assert!(check(&SamplingSpec { top_p: 0.0, ..spec() }, 10).is_err());
    assert!(check(&SamplingSpec { repetition_penalty: 0.0, ..spec() }, 10).is_err());
    let biased = SamplingSpec { logit_bias: vec![(10, 1.0)], ..spec() };
    assert_eq!(check(&biased, 10), Err(SamplingError::BiasToken { id: 10, last: 9 }));
    let many = SamplingSpec { logit_bias: vec![(0, 1.0); BIASES_MAX + 1], ..spec() };
    assert_eq!(check(&many, 10), Err(SamplingError::Biases { count: BIASES_MAX + 1 }));
    assert_eq!(check(&SamplingSpec { logprobs: Some(21), ..spec() }, 10), Err(SamplingError::Logprobs { count: 21 }));
}
