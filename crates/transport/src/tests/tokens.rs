//! Tokens enrol one key, once, in time.

use super::*;

/// Goal: a token enrols its bearer for good. Method: call with it, again with it, and without.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_enrols_its_bearer() {
    let mut house = House::open();
    let (client, token) = (identity(), house.operator().issue_token("alice").expect("a free name"));
    for token in [Some(token.as_str()), Some(&format!(" {token}\n")), None] {
        let link = house.call(&client, token).await.expect("it has a token, then a place");
        assert_eq!(soon(house.server.accept()).await.expect("the same connection").peer(), client.peer_id());
        link.close("done").await;
    }
    let entries = house.allow.entries();
    assert_eq!((entries.len(), entries[0].name.as_str(), entries[0].key.clone()), (1, "alice", client.peer_id().to_hex()));
    assert_eq!(house.allow.tokens(), 0);
}

/// Goal: a token enrols nobody twice. Method: another key with a spent token.
#[tokio::test(flavor = "multi_thread")]
async fn a_spent_token_is_refused() {
    let mut house = House::open();
    let token = house.allow.issue_token("alice").expect("a free name");
    house.call(&identity(), Some(&token)).await.expect("the first");
    soon(house.server.accept()).await.expect("the same connection");
    let (told, seen) = house.turned_away(&identity(), Some(&token)).await;
    assert!(matches!(told, LinkError::BadToken { .. }), "{told}");
    assert!(told.to_string().contains("ask its operator for a new one"), "{told}");
    assert!(seen.contains("`cutlayer keys token NAME` makes a new one"), "{seen}");
    assert_eq!(house.allow.entries().len(), 1);
}

/// Goal: no token outlives its time, and no guess works. Method: one that has expired, one that never was.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_or_invented_token_is_refused() {
    let mut house = House::open();
    let expired = house.allow.issue_token_for("alice", Duration::ZERO).expect("a free name");
    for token in [expired, "0123456789abcdef0123456789abcdef01234567".into()] {
        let (told, _) = house.turned_away(&identity(), Some(&token)).await;
        assert!(matches!(told, LinkError::BadToken { .. }), "{told}");
    }
    assert!(house.allow.entries().is_empty());
}

/// Goal: of two at the same moment one gets in. Method: eight keys race for one token.
#[tokio::test(flavor = "multi_thread")]
async fn a_race_for_a_token_has_one_winner() {
    let mut house = House::open();
    let token = house.allow.issue_token("alice").expect("a free name");
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (addr, id, token) = (house.addr, house.id(), token.clone());
            tokio::spawn(async move { connect(addr, &identity(), id, Some(&token), &config()).await })
        })
        .collect();
    let mut links = Vec::new();
    for call in calls {
        match soon(call).await.expect("no panic") {
            Ok(link) => links.push(link),
            Err(error) => assert!(matches!(error, LinkError::BadToken { .. }), "{error}"),
        }
    }
    assert_eq!((links.len(), house.allow.entries().len()), (1, 1));
    let mut winners = 0;
    for _ in 0..8 {
        winners += usize::from(soon(house.server.accept()).await.is_ok());
    }
    assert_eq!(winners, 1);
}

/// Goal: a token is shown to nobody but the pinned server. Method: a server with another key, which knows the same token.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_not_shown_to_another_server() {
    let mut impostor = House::open();
    let token = impostor.allow.issue_token("alice").expect("a free name");
    let error = connect(impostor.addr, &identity(), PeerId([9; 32]), Some(&token), &config()).await.expect_err("the wrong key");
    assert!(matches!(error, LinkError::WrongServer { .. }), "{error}");
    let seen = soon(impostor.server.accept()).await.expect_err("the client broke it off");
    assert!(matches!(seen, LinkError::Refused { key: None, .. }), "it saw neither key nor token: {seen}");
    assert_eq!(impostor.allow.tokens(), 1);
}
