//! What `auto` promises: within the budget, no slower than f32, coarser only where that pays, and only what both sides can do.

#![allow(clippy::unwrap_used)]

use cutlayer_wire::{Choice, Encoding, EncodingPart, LinkFacts, StepFacts, choose};
use proptest::prelude::*;

fn link() -> impl Strategy<Value = LinkFacts> {
    (0.1..10_000.0_f64, 0.1..10_000.0_f64, 0.0..600.0_f64).prop_map(|(up_mbit, down_mbit, rtt_ms)| LinkFacts { up_mbit, down_mbit, rtt_ms })
}

fn step() -> impl Strategy<Value = StepFacts> {
    (1..20_000_u32, 1..9000_u32, any::<bool>(), 0.0..5000.0_f64, 0.1..20.0_f64)
        .prop_map(|(tokens, hidden, u_shaped, compute_ms, slower)| StepFacts { tokens, hidden, u_shaped, compute_ms, slower })
}

fn check(choice: &Choice, step: StepFacts, budget: f64, parts: &[EncodingPart]) {
    assert!(choice.quality_cost <= budget);
    assert!(choice.step_ms <= choice.f32_ms * 1.05 + 1e-9, "{choice}");
    for encoding in [choice.activations, choice.gradients, choice.adapters] {
        assert!(encoding == Encoding::F32 || encoding.parts().iter().all(|part| parts.contains(part)), "{choice}");
    }
    assert!(choice.activations.check_columns(step.hidden).is_ok() && choice.gradients.check_columns(step.hidden).is_ok(), "{choice}");
    let values = u64::from(step.tokens) * u64::from(step.hidden) * if step.u_shaped { 4 } else { 2 };
    assert!(choice.bytes <= values as f64 * 4.0, "{choice}");
}

proptest! {
    /// Goal: a choice is always one that can be had. Method: any link, step, budget and peer.
    #[test]
    fn every_choice_can_be_had(
        link in link(),
        step in step(),
        budget in 0.0..0.1_f64,
        parts in proptest::sample::subsequence(EncodingPart::ALL.to_vec(), 0..=EncodingPart::ALL.len()),
    ) {
        check(&choose(link, step, budget, &parts), step, budget, &parts);
    }

    /// Goal: a slower link never makes the payload larger, and a larger budget never the step slower. Method: pairs, as fast up as
    /// down, with room for what counts as equally fast.
    #[test]
    fn choices_follow_link_and_budget(link in link(), step in step(), budget in 0.0..0.05_f64, slower in 1.0..100.0_f64) {
        let (all, link) = (EncodingPart::ALL, LinkFacts { down_mbit: link.up_mbit, ..link });
        let choice = choose(link, step, budget, &all);
        let slow = LinkFacts { up_mbit: link.up_mbit / slower, down_mbit: link.down_mbit / slower, ..link };
        prop_assert!(choose(slow, step, budget, &all).bytes <= choice.bytes);
        prop_assert!(choose(link, step, budget * 2.0, &all).step_ms <= choice.step_ms * 1.05 + 1e-9);
    }
}

/// Goal: the links that people have get what they need. Method: a step of 8 x 128 tokens of 576 features that computes for 600 ms.
#[test]
fn known_links_get_known_encodings() {
    let step = StepFacts { tokens: 1024, hidden: 576, u_shaped: false, compute_ms: 600.0, slower: 1.0 };
    let chosen = |mbit: f64, rtt_ms: f64, budget: f64| {
        choose(LinkFacts { up_mbit: mbit, down_mbit: mbit, rtt_ms }, step, budget, &EncodingPart::ALL)
    };
    let loopback = chosen(10_000.0, 0.1, 0.005);
    assert_eq!((loopback.activations, loopback.adapters), (Encoding::F32, Encoding::F32));
    let phone = chosen(50.0, 50.0, 0.005);
    assert_eq!(phone.activations.to_string(), "int5/64+hadamard+zstd");
    assert!(phone.step_ms < phone.f32_ms / 1.5, "{phone}");
    assert_eq!(chosen(50.0, 50.0, 0.0).activations, Encoding::F32);
    assert!(chosen(1.0, 50.0, 0.05).activations.to_string().starts_with("int3"));
    assert!(phone.to_string().contains("over 50/50 Mbit/s and 50 ms about"), "{phone}");
}
