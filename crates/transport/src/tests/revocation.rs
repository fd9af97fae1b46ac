//! A revoked key is out: at the door, and in the middle of a run.

use super::*;

/// Goal: a revoked key does not get in, and is told why. Method: revoke, call.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_client_is_refused() {
    let mut house = House::open();
    let client = house.enrol("alice");
    house.operator().revoke("alice").expect("it is there");
    let (told, seen) = house.turned_away(&client, None).await;
    assert!(matches!(told, LinkError::Revoked { .. }), "{told}");
    let expected = format!("the server at {} has revoked this key {}: ask its operator why", house.addr, client.peer_id());
    assert!(told.to_string().starts_with(&expected), "{told}");
    assert!(seen.contains("was revoked"), "{seen}");
}

/// Goal: a token does not bring a revoked key back. Method: revoke, call with a good token; another key uses it then.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_client_cannot_use_a_token() {
    let mut house = House::open();
    let client = house.enrol("alice");
    house.allow.revoke("alice").expect("it is there");
    let token = house.allow.issue_token("bob").expect("a free name");
    let (told, _) = house.turned_away(&client, Some(&token)).await;
    assert!(matches!(told, LinkError::Revoked { .. }), "{told}");
    house.call(&identity(), Some(&token)).await.expect("the token is good still");
}

/// Goal: revoking ends a session that is under way, that one alone. Method: two clients, one revoked by another process while
/// both wait for an answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_revoked_while_connected_is_thrown_out() {
    let mut house = House::open();
    let (alice, alice_there) = house.connected().await;
    let (bob, bob_there) = house.connected().await;
    let mut step = alice.open_step().await.expect("a stream");
    step.send(frame(64)).await.expect("the server reads");
    let mut served = soon(alice_there.accept_step()).await.expect("a step");
    soon(served.recv(&limits(64))).await.expect("a frame");
    house.operator().revoke(&alice_there.peer().to_hex()).expect("it is there");
    let told = soon(step.recv(&limits(64))).await.expect_err("it is out");
    assert!(matches!(told, LinkError::Revoked { .. }), "{told}");
    soon(alice_there.closed()).await;

    let mut step = bob.open_step().await.expect("a stream");
    step.send(frame(64)).await.expect("the server reads");
    let mut served = soon(bob_there.accept_step()).await.expect("a step");
    assert_eq!(soon(served.recv(&limits(64))).await.expect("he may stay"), frame(64));
}
