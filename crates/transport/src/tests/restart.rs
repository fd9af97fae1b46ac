//! A server that dies without a word and comes back.

use super::*;

/// Goal: a client learns at once that its server was started again. Method: a server whose whole runtime is torn down, so that not one
/// packet says goodbye, and another process's server, as it were, at its port with its key; a link that would wait for minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_from_a_restarted_server() {
    let patient = LinkConfig { idle_timeout: Duration::from_secs(600), ..config() };
    let (folder, identity) = (tempfile::tempdir().expect("a temporary folder"), identity());
    identity.save(folder.path()).expect("a folder of ours");
    let allow = Arc::new(AllowList::open(folder.path()).expect("an empty list"));
    let client = self::identity();
    allow.allow("client", client.peer_id()).expect("a free name");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut server = {
        let _inside = runtime.enter();
        Server::bind(LOOPBACK, &identity, allow.clone(), &patient).expect("a free port")
    };
    let addr = server.local_addr();
    let link = connect(addr, &client, identity.peer_id(), None, &patient).await.expect("it is enrolled");
    let there = soon(server.accept()).await.expect("the same connection");
    // First the threads that could still say something, then what would make them.
    let died = move || {
        runtime.shutdown_timeout(SOON);
        drop((there, server));
    };
    tokio::task::spawn_blocking(died).await.expect("no panic");

    let again = Identity::load(folder.path()).expect("the same key");
    let restarted = async {
        loop {
            match Server::bind(addr, &again, allow.clone(), &patient) {
                // The last thread of the runtime that is gone may still hold the socket.
                Err(LinkError::AddressInUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
                bound => return bound.expect("the port is free again"),
            }
        }
    };
    let _server = soon(restarted).await;
    // Any packet of its own tells it, also one that QUIC sends by itself before the step.
    let asked = async {
        let mut step = link.open_step().await?;
        step.send(frame(64)).await?;
        step.recv(&limits(64)).await
    };
    let told = soon(asked).await.expect_err("nobody serves it");
    assert!(told.is_lost() && told.to_string().contains("as after a restart"), "{told}");
    soon(connect(addr, &client, identity.peer_id(), None, &patient)).await.expect("the new one lets it in");
}

/// Goal: of two connections with one key the newer counts, and the older knows why it ended. Method: replace one.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_connection_knows_it() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    server.replace();
    let told = soon(client.closed()).await;
    assert!(matches!(told, LinkError::Replaced { .. }) && !told.is_lost(), "{told}");
}
