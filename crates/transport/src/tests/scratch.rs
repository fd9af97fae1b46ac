use super::*;
#[tokio::test(flavor = "multi_thread")]
async fn speed() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let tokens: u32 = std::env::var("TOKENS").ok().and_then(|t| t.parse().ok()).unwrap_or(16 << 10);
    let s2 = server.clone();
    let serving = tokio::spawn(async move {
        loop {
            let Ok(mut served) = s2.accept_step().await else { return };
            let f = served.recv(&limits(tokens)).await.expect("a frame");
            served.send(Frame::gradient(&f.header, Encoding::F32, EvalSums::default(), f.payload)).await.expect("x");
            served.finish().await.expect("x");
        }
    });
    let f = frame(tokens);
    let mb = f.payload.len() as f64 / 1e6;
    for i in 0..30 {
        let f2 = f.clone();
        let t = std::time::Instant::now();
        let mut stream = client.open_step().await.expect("a stream");
        stream.send(f2).await.expect("x");
        stream.recv(&limits(tokens)).await.expect("x");
        let dt = t.elapsed().as_secs_f64();
        if i % 3 == 0 || i == 29 {
            let p = client.raw().stats().path;
            let q = server.raw().stats().path;
            println!(
                "{i} {mb:.1}MB {:.1} ms {:.0} MB/s each way; C mtu {} lost {} bh {} cwnd {} ce {} sent {} probes {}/{} | S mtu {} lost {} bh {} cwnd {}",
                dt * 1e3,
                2.0 * mb / dt,
                p.current_mtu,
                p.lost_packets,
                p.black_holes_detected,
                p.cwnd,
                p.congestion_events,
                p.sent_packets,
                p.sent_plpmtud_probes,
                p.lost_plpmtud_probes,
                q.current_mtu,
                q.lost_packets,
                q.black_holes_detected,
                q.cwnd
            );
        }
    }
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn words() {
    if std::env::var_os("LOGS").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false).with_writer(std::io::stdout).init();
    }
    for _ in 0..20 {
        println!("=====");
        let mut house = House::open();
        let (client, server) = house.connected().await;
        let mut control = client.open_control().await.expect("a stream");
        let goodbye = Message::Goodbye { reason: "stopped by its user".into() };
        control.send(&goodbye).await.expect("the server reads");
        let leaving = tokio::spawn(async move {
            let t = std::time::Instant::now();
            control.finish().await;
            let f = t.elapsed();
            client.close("stopped by its user").await;
            (f, t.elapsed(), client.raw().stats().path, client.raw().stats().frame_tx.connection_close)
        });
        let t = std::time::Instant::now();
        let mut other = soon(server.accept_control()).await.expect("the control stream");
        assert_eq!(soon(other.recv()).await.expect("a message"), goodbye);
        let a = t.elapsed();
        let error = soon(other.recv()).await.expect_err("it left").to_string();
        let b = t.elapsed();
        let c = soon(server.closed()).await.to_string();
        let d = t.elapsed();
        let (f, g, path, cc) = leaving.await.unwrap();
        println!(
            "finish {f:?} close {g:?} cc {cc} lost {} rtt {:?} | msg {a:?} err {b:?} closed {d:?} rx cc {} {error} / {c}",
            path.lost_packets,
            path.rtt,
            server.raw().stats().frame_rx.connection_close
        );
    }
}
