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
    let mut all = vec![];
    for i in 0..200 {
        let f2 = f.clone();
        let t = std::time::Instant::now();
        let mut stream = client.open_step().await.expect("a stream");
        stream.send(f2).await.expect("x");
        stream.recv(&limits(tokens)).await.expect("x");
        let dt = t.elapsed().as_secs_f64();
        if i >= 20 { all.push(dt * 1e3); }
    }
    all.sort_by(f64::total_cmp);
    println!("RES {mb:.1} MB median {:.2} p10 {:.2} p90 {:.2} ms mtu {} lost {} size {}", all[90], all[18], all[162], client.raw().stats().path.current_mtu, client.raw().stats().path.lost_packets, std::mem::size_of::<LinkError>());
    serving.abort();
}

