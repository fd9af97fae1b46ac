//! Shares records out among clients. Every record goes to exactly one client, and no client goes empty.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::held_out::{key_of, keys_of};
use crate::record::Record;
use crate::rng::Seeded;

/// How records are shared out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partition {
    /// At random and evenly.
    Iid,
    /// Skewed: for each label (each key, where records have no labels) the clients' proportions are drawn from
    /// a Dirichlet distribution. Small `alpha` gives each label to few clients, large `alpha` nears [`Partition::Iid`].
    Dirichlet {
        /// The concentration, above 0.
        alpha: f64,
    },
    /// By natural key. As many clients as keys: client `i` is the `i`-th key to appear. Fewer clients: each takes
    /// several whole keys, balanced by bytes of text.
    Key,
    /// At random, in uneven amounts.
    Quantity(Quantity),
}

/// How uneven the amounts are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// One weight for each client.
    Weights(Vec<f64>),
    /// Client `i` (from 0) weighs `(i + 1)^-power`: Zipf's law at 1, even at 0.
    Power(f64),
}

/// Shares `records` out among `clients`; each client's records keep the order they had.
pub fn partition(records: Vec<Record>, partition: &Partition, clients: usize, seed: u64) -> Result<Vec<Vec<Record>>, DataError> {
    if clients == 0 {
        return Err(DataError::BadSplit("cannot share data among no clients".to_owned()));
    }
    if records.len() < clients {
        return Err(DataError::TooFew { clients, have: records.len(), what: "records" });
    }
    let owners = match partition {
        Partition::Iid => even(records.len(), clients, seed),
        Partition::Quantity(quantity) => uneven(records.len(), &quantity.weights(clients)?, seed),
        Partition::Key => by_key(&records, clients)?,
        Partition::Dirichlet { alpha } => skewed(&records, *alpha, clients, seed)?,
    };
    let mut shares: Vec<Vec<Record>> = (0..clients).map(|_| Vec::new()).collect();
    for (record, owner) in records.into_iter().zip(owners) {
        shares[owner].push(record);
    }
    assert!(shares.iter().all(|share| !share.is_empty()), "no client goes empty");
    Ok(shares)
}

impl Quantity {
    fn weights(&self, clients: usize) -> Result<Vec<f64>, DataError> {
        let weights = match self {
            Self::Weights(weights) => weights.clone(),
            Self::Power(power) => (1..=clients).map(|rank| (rank as f64).powf(-power)).collect(),
        };
        if weights.len() != clients {
            return Err(DataError::BadSplit(format!("{} quantity weights for {clients} clients", weights.len())));
        }
        if !weights.iter().all(|weight| weight.is_finite() && *weight > 0.0) {
            return Err(DataError::BadSplit("quantity weights must be positive numbers".to_owned()));
        }
        Ok(weights)
    }
}

fn shuffled(count: usize, seed: u64, purpose: &str, index: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    Seeded::new(seed, purpose, index).shuffle(&mut order);
    order
}

fn even(records: usize, clients: usize, seed: u64) -> Vec<usize> {
    let mut owners = vec![0; records];
    for (place, record) in shuffled(records, seed, "partition iid", 0).into_iter().enumerate() {
        owners[record] = place % clients;
    }
    owners
}

fn uneven(records: usize, weights: &[f64], seed: u64) -> Vec<usize> {
    let order = shuffled(records, seed, "partition quantity", 0);
    let mut owners = vec![0; records];
    deal(&order, weights, &mut owners);
    leave_none_empty(&mut owners, weights.len());
    owners
}

/// Cuts `order` into consecutive runs in proportion to `weights`.
fn deal(order: &[usize], weights: &[f64], owners: &mut [usize]) {
    let total: f64 = weights.iter().sum();
    let (mut start, mut reached) = (0, 0.0);
    for (client, weight) in weights.iter().enumerate() {
        reached += weight;
        let last = client + 1 == weights.len();
        let end = if last { order.len() } else { (reached / total * order.len() as f64).round() as usize };
        for record in &order[start..end.max(start)] {
            owners[*record] = client;
        }
        start = end.max(start);
    }
}

/// Moves one record at a time from the client that has most to one that has none.
fn leave_none_empty(owners: &mut [usize], clients: usize) {
    let mut counts = vec![0usize; clients];
    owners.iter().for_each(|owner| counts[*owner] += 1);
    while let Some(empty) = counts.iter().position(|count| *count == 0) {
        let richest = (0..clients).max_by_key(|client| (counts[*client], Reverse(*client))).unwrap_or(0);
        let given = owners.iter().rposition(|owner| *owner == richest).expect("the richest client has records");
        owners[given] = empty;
        counts[richest] -= 1;
        counts[empty] += 1;
    }
}

fn by_key(records: &[Record], clients: usize) -> Result<Vec<usize>, DataError> {
    let keys = keys_of(records)?;
    if keys.len() < clients {
        return Err(DataError::TooFew { clients, have: keys.len(), what: "keys" });
    }
    let mut bytes: BTreeMap<&str, usize> = BTreeMap::new();
    for record in records {
        *bytes.entry(key_of(record)?).or_default() += record.text_bytes();
    }
    let mut owner_of: BTreeMap<&str, usize> = BTreeMap::new();
    if keys.len() == clients {
        owner_of.extend(keys.iter().enumerate().map(|(client, key)| (key.as_str(), client)));
    } else {
        // The largest key first, each to the client with least so far: no client ends far above the others.
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|index| (Reverse(bytes[keys[*index].as_str()]), *index));
        let mut loads = vec![(0usize, 0usize); clients];
        for index in order {
            let key = keys[index].as_str();
            let lightest = (0..clients).min_by_key(|client| (loads[*client], *client)).unwrap_or(0);
            // The count breaks ties between keys without any text, so that nobody goes empty.
            loads[lightest] = (loads[lightest].0 + bytes[key], loads[lightest].1 + 1);
            owner_of.insert(key, lightest);
        }
    }
    records.iter().map(|record| Ok(owner_of[key_of(record)?])).collect()
}

fn skewed(records: &[Record], alpha: f64, clients: usize, seed: u64) -> Result<Vec<usize>, DataError> {
    if !(alpha.is_finite() && alpha > 0.0) {
        return Err(DataError::BadSplit(format!("the Dirichlet alpha is {alpha}; it must be above 0")));
    }
    let labelled = records.iter().any(|record| record.label.is_some());
    let wanted = "the Dirichlet partition draws proportions for each label";
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        let name = if labelled { record.label.as_deref() } else { record.key.as_deref() };
        let name = name.ok_or_else(|| DataError::NoLabel { at: record.at.clone(), wanted })?;
        groups.entry(name).or_default().push(index);
    }
    let mut owners = vec![0; records.len()];
    for (index, members) in groups.values().enumerate() {
        let proportions = Seeded::new(seed, "partition dirichlet", index as u64).dirichlet(alpha, clients);
        let order = shuffled(members.len(), seed, "partition dirichlet order", index as u64);
        let order: Vec<usize> = order.into_iter().map(|place| members[place]).collect();
        deal(&order, &proportions, &mut owners);
    }
    leave_none_empty(&mut owners, clients);
    Ok(owners)
}

/// Deals held-out records so that every client can evaluate: a record whose key one client trains on goes to
/// that client, any other to whoever has least text so far. Nothing is lost, some clients may get nothing.
pub(crate) fn deal_held_out(held_out: Vec<Record>, train: &[Vec<Record>], by_key: bool) -> Vec<Vec<Record>> {
    let mut owner_of: BTreeMap<&str, usize> = BTreeMap::new();
    if by_key {
        for (client, share) in train.iter().enumerate() {
            let keys: BTreeSet<&str> = share.iter().filter_map(|record| record.key.as_deref()).collect();
            owner_of.extend(keys.into_iter().map(|key| (key, client)));
        }
    }
    let mut shares: Vec<Vec<Record>> = train.iter().map(|_| Vec::new()).collect();
    let mut loads = vec![0usize; train.len()];
    for record in held_out {
        let own = record.key.as_deref().and_then(|key| owner_of.get(key).copied());
        let client = own.or_else(|| (0..loads.len()).min_by_key(|client| (loads[*client], *client))).unwrap_or(0);
        loads[client] += record.text_bytes();
        shares[client].push(record);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(count: usize, labels: usize) -> Vec<Record> {
        (0..count)
            .map(|index| {
                let name = format!("{}", index % labels);
                Record::text(format!("text {index}")).with_label(name.clone()).with_key(name)
            })
            .collect()
    }

    fn any_partition(clients: usize) -> impl Strategy<Value = Partition> {
        prop_oneof![
            Just(Partition::Iid),
            Just(Partition::Key),
            (0.001f64..50.0).prop_map(|alpha| Partition::Dirichlet { alpha }),
            (0.0f64..4.0).prop_map(|power| Partition::Quantity(Quantity::Power(power))),
            proptest::collection::vec(0.001f64..10.0, clients).prop_map(|weights| Partition::Quantity(Quantity::Weights(weights))),
        ]
    }

    fn check_is_a_partition(before: &[Record], shares: &[Vec<Record>]) {
        assert!(shares.iter().all(|share| !share.is_empty()), "a client went empty");
        let mut after: Vec<&Record> = shares.iter().flatten().collect();
        assert_eq!(after.len(), before.len());
        let name = |record: &&Record| format!("{record:?}");
        after.sort_by_key(name);
        let mut before: Vec<&Record> = before.iter().collect();
        before.sort_by_key(name);
        assert_eq!(after, before);
    }

    proptest! {
        /// Goal: nothing is lost or given twice. Method: any way of sharing, sorted, is what went in.
        #[test]
        fn every_way_of_sharing_is_a_partition(
            (clients, way) in (1usize..9).prop_flat_map(|clients| (Just(clients), any_partition(clients))),
            count in 9usize..200,
            seed: u64,
        ) {
            let all = records(count, 9);
            let shares = partition(all.clone(), &way, clients, seed).expect("enough records");
            check_is_a_partition(&all, &shares);
            prop_assert_eq!(partition(all, &way, clients, seed).expect("again"), shares, "the seed decides");
        }
    }

    /// The mean over labels of the largest client's share of that label.
    fn concentration(alpha: f64) -> f64 {
        let shares = partition(records(4000, 20), &Partition::Dirichlet { alpha }, 10, 5).expect("shares");
        let share_of = |label: usize| {
            let label = label.to_string();
            let counts = shares.iter().map(|share| share.iter().filter(|record| record.label.as_ref() == Some(&label)).count());
            counts.max().unwrap_or(0) as f64 / 200.0
        };
        (0..20).map(share_of).sum::<f64>() / 20.0
    }

    #[test]
    fn labels_concentrate_as_alpha_falls() {
        let by_alpha: Vec<f64> = [100.0, 1.0, 0.1, 0.01].into_iter().map(concentration).collect();
        assert!(by_alpha.windows(2).all(|pair| pair[1] > pair[0] + 0.1), "{by_alpha:?}");
        assert!(by_alpha[0] < 0.2 && by_alpha[3] > 0.9, "{by_alpha:?}");
    }

    #[test]
    fn amounts_follow_the_weights() {
        let way = Partition::Quantity(Quantity::Weights(vec![1.0, 2.0, 7.0]));
        let shares = partition(records(100, 5), &way, 3, 1).expect("shares");
        assert_eq!(shares.iter().map(Vec::len).collect::<Vec<_>>(), [10, 20, 70]);
        let zipf = partition(records(110, 5), &Partition::Quantity(Quantity::Power(1.0)), 3, 1).expect("shares");
        assert_eq!(zipf.iter().map(Vec::len).collect::<Vec<_>>(), [60, 30, 20]);
    }

    #[test]
    fn a_client_per_key_is_in_order_of_appearance() {
        let shares = partition(records(50, 10), &Partition::Key, 10, 1).expect("shares");
        for (client, share) in shares.iter().enumerate() {
            assert!(share.iter().all(|record| record.key == Some(client.to_string())));
        }
    }

    #[test]
    fn fewer_clients_take_whole_keys_of_even_size() {
        let record = |key: usize, bytes: usize| Record::text("x".repeat(bytes)).with_key(key.to_string());
        let all = vec![record(0, 90), record(1, 50), record(2, 40), record(3, 10), record(4, 0)];
        let shares = partition(all, &Partition::Key, 2, 1).expect("shares");
        let bytes: Vec<usize> = shares.iter().map(|share| share.iter().map(Record::text_bytes).sum()).collect();
        assert_eq!(bytes, [100, 90]);
    }

    #[test]
    fn held_out_records_follow_their_keys() {
        let train = partition(records(30, 3), &Partition::Key, 3, 1).expect("shares");
        let mut held = records(6, 3);
        held.push(Record::text("x").with_key("unheard of"));
        let dealt = deal_held_out(held, &train, true);
        assert_eq!(dealt.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2, 2]);
        assert!(dealt[1].iter().all(|record| record.key.as_deref() == Some("1")));
    }

    #[test]
    fn what_cannot_be_shared_is_refused() {
        let message = |way, clients| partition(records(20, 4), &way, clients, 1).expect_err("refused").to_string();
        assert!(message(Partition::Iid, 21).contains("21 clients but only 20 records"));
        assert!(message(Partition::Iid, 0).contains("no clients"));
        assert!(message(Partition::Key, 5).contains("5 clients but only 4 keys"));
        assert!(message(Partition::Dirichlet { alpha: 0.0 }, 2).contains("above 0"));
        assert!(message(Partition::Quantity(Quantity::Weights(vec![1.0])), 2).contains("1 quantity weights for 2"));
        assert!(message(Partition::Quantity(Quantity::Weights(vec![1.0, f64::NAN])), 2).contains("positive"));
        let bare = vec![Record::text("a"), Record::text("b")];
        let refused = partition(bare, &Partition::Dirichlet { alpha: 1.0 }, 2, 1).expect_err("no labels");
        assert!(refused.to_string().contains("no label"));
    }
}
