//! Batches: nothing lost or given twice in an epoch, labels in their places, resuming exactly.

use std::collections::BTreeMap;

use cutlayer_data::{Batch, BatchShape, Batcher, BatcherState, Example, IGNORED, Layout, Target, evaluation_batches};
use proptest::prelude::*;

/// Examples told apart by their first token.
fn examples(lengths: &[usize]) -> Vec<Example> {
    let example = |(index, length): (usize, &usize)| Example {
        tokens: std::iter::once(1000 + index as u32).chain((1..*length).map(|place| place as u32)).collect(),
        target: Target::Next { from: 1 + index % (length - 1) },
    };
    lengths.iter().enumerate().map(example).collect()
}

fn shapes() -> impl Strategy<Value = BatchShape> {
    let layouts = prop_oneof![Just(Layout::Padded), Just(Layout::Packed)];
    (1u32..9, layouts, any::<bool>()).prop_map(|(sequences, layout, group_by_length)| BatchShape {
        sequences,
        tokens_max: 24,
        layout,
        group_by_length,
    })
}

/// How often each example is in the batches, each checked to be whole.
fn counted(batches: &[Batch], examples: &[Example]) -> BTreeMap<u32, usize> {
    let mut seen = BTreeMap::new();
    for batch in batches {
        let mut start = 0;
        for length in &batch.lengths {
            let ids = &batch.ids[start..start + *length as usize];
            assert_eq!(ids, examples[(ids[0] - 1000) as usize].tokens);
            *seen.entry(ids[0]).or_default() += 1;
            start += *length as usize;
        }
        assert_eq!(start, batch.ids.len());
        assert_eq!(batch.samples as usize, batch.lengths.len());
    }
    seen
}

fn check_size(batch: &Batch, shape: &BatchShape) {
    match shape.layout {
        Layout::Padded => assert!(batch.samples <= shape.sequences),
        Layout::Packed => assert!(batch.tokens() <= (shape.sequences * shape.tokens_max) as usize),
    }
    assert!(batch.samples > 0);
}

proptest! {
    #[test]
    fn an_epoch_gives_every_example_once(
        lengths in proptest::collection::vec(2usize..25, 1..80),
        shape in shapes(),
        seed: u64,
    ) {
        let examples = examples(&lengths);
        let mut batcher = Batcher::new(examples.clone(), shape, seed).expect("a batcher");
        let mut orders = Vec::new();
        for epoch in 0..3 {
            let mut batches = vec![batcher.next_batch()];
            while batches.len() < batcher.batches_in_epoch() {
                batches.push(batcher.next_batch());
            }
            prop_assert_eq!(batcher.epoch(), epoch);
            batches.iter().for_each(|batch| check_size(batch, &shape));
            let seen = counted(&batches, &examples);
            prop_assert!(seen.len() == examples.len() && seen.values().all(|times| *times == 1));
            orders.push(batches);
        }
        if examples.len() > 20 {
            prop_assert_ne!(&orders[0], &orders[1], "epochs are shuffled anew");
        }
        let evaluated = evaluation_batches(&examples, &shape).expect("batches");
        prop_assert_eq!(counted(&evaluated, &examples).len(), examples.len());
        prop_assert_eq!(evaluated.iter().map(|batch| batch.samples as usize).sum::<usize>(), examples.len());
    }

    #[test]
    fn labels_are_the_tokens_that_follow(lengths in proptest::collection::vec(2usize..25, 1..20)) {
        let examples = examples(&lengths);
        let batch = Batch::of(&examples);
        prop_assert_eq!(batch.labels.len(), batch.ids.len());
        let mut start = 0;
        for example in &examples {
            let Target::Next { from } = example.target else { panic!("next tokens") };
            for (place, label) in batch.labels[start..start + example.tokens.len()].iter().enumerate() {
                let next = example.tokens.get(place + 1).filter(|_| place + 1 >= from);
                prop_assert_eq!(*label, next.map_or(IGNORED, |id| *id as i32));
            }
            start += example.tokens.len();
        }
        prop_assert_eq!(batch.scored() as usize, examples.iter().map(Example::scored).sum::<usize>());
    }

    /// Goal: an interrupted run trains on what it would have trained on. Method: the state goes through JSON.
    #[test]
    fn a_resumed_batcher_goes_on_exactly(
        lengths in proptest::collection::vec(2usize..25, 1..40),
        shape in shapes(),
        seed: u64,
        taken in 0usize..60,
    ) {
        let mut first = Batcher::new(examples(&lengths), shape, seed).expect("a batcher");
        (0..taken).for_each(|_| drop(first.next_batch()));
        let saved = serde_json::to_string(&first.state()).expect("serialises");
        let mut second = Batcher::new(examples(&lengths), shape, seed).expect("a batcher");
        let state: BatcherState = serde_json::from_str(&saved).expect("parses");
        second.restore(&state).expect("restores");
        for _ in 0..30 {
            prop_assert_eq!(first.next_batch(), second.next_batch());
        }
    }
}

fn padded(sequences: u32) -> BatchShape {
    BatchShape { sequences, tokens_max: 24, layout: Layout::Padded, group_by_length: false }
}

#[test]
fn classes_are_one_label_a_sequence() {
    let example = |class| Example { tokens: vec![5, 6, 7], target: Target::Class(class) };
    let batch = Batch::of(&[example(4), example(2)]);
    assert_eq!((batch.labels.as_slice(), batch.scored()), ([4, 2].as_slice(), 2));
}

#[test]
fn grouping_pads_less() {
    let lengths: Vec<usize> = (0..400).map(|index| 2 + (index * 7) % 23).collect();
    let padding = |group_by_length| {
        let shape = BatchShape { group_by_length, ..padded(8) };
        let mut batcher = Batcher::new(examples(&lengths), shape, 1).expect("a batcher");
        let waste = |batch: Batch| {
            let longest = batch.lengths.iter().max().copied().unwrap_or(0);
            batch.lengths.iter().map(|length| longest - length).sum::<u32>()
        };
        (0..batcher.batches_in_epoch()).map(|_| waste(batcher.next_batch())).sum::<u32>()
    };
    assert!(padding(true) * 4 < padding(false), "{} against {}", padding(true), padding(false));
}

#[test]
fn packed_batches_are_nearly_full() {
    let lengths: Vec<usize> = (0..400).map(|index| 2 + (index * 7) % 23).collect();
    let shape = BatchShape { layout: Layout::Packed, ..padded(8) };
    let mut batcher = Batcher::new(examples(&lengths), shape, 1).expect("a batcher");
    let count = batcher.batches_in_epoch();
    let tokens: usize = (0..count).map(|_| batcher.next_batch().tokens()).sum();
    assert!(tokens as f64 / (count * 8 * 24) as f64 > 0.9);
}

#[test]
fn what_cannot_be_batched_is_refused() {
    let message = |examples, shape| Batcher::new(examples, shape, 1).err().expect("refused").to_string();
    assert!(message(Vec::new(), padded(2)).contains("no examples"));
    assert!(message(examples(&[3]), padded(0)).contains("0 sequences"));
    assert!(message(examples(&[25]), padded(2)).contains("example 0 has 25 tokens; 1 to 24"));
    let class = Example { tokens: vec![1], target: Target::Class(0) };
    assert!(message([examples(&[3]), vec![class]].concat(), padded(2)).contains("use one task"));
    let nothing = Example { tokens: vec![1, 2], target: Target::Next { from: 2 } };
    assert!(message(vec![nothing], padded(2)).contains("outside 1..2"));
    let state = Batcher::new(examples(&[3, 4]), padded(2), 1).expect("a batcher").state();
    for (lengths, sequences, seed) in [(vec![3, 5], 2, 1), (vec![3, 4], 3, 1), (vec![3, 4], 2, 2)] {
        let mut other = Batcher::new(examples(&lengths), padded(sequences), seed).expect("a batcher");
        assert!(other.restore(&state).expect_err("refused").to_string().contains("other examples"));
    }
    let mut same = Batcher::new(examples(&[3, 4]), padded(2), 1).expect("a batcher");
    let beyond = BatcherState { given: 9, ..state };
    assert!(same.restore(&beyond).expect_err("refused").to_string().contains("batch 9 of an epoch of 1"));
}
