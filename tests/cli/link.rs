//! `cutlayer link` between real sockets, and runs behind emulated links.

use crate::harness::{Desk, Process};
use serde_json::Value;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Where a link that was just started is found.
fn address(link: &mut Process) -> SocketAddr {
    let said = link.until_said("listening on ");
    let word = said.split("listening on ").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
    word.parse().unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    socket
}

/// Goal: a link delays, drops what is too large, changes its address, and tells all of it. Method: an echo behind one that ends by itself.
#[test]
fn a_link_is_as_bad_as_it_says() {
    let (desk, server, client) = (Desk::new(), socket(), socket());
    let to = server.local_addr().expect("it is bound").to_string();
    let how = ["--profile", "fibre", "--delay", "40ms", "--mtu", "1400", "--rebind", "@1s", "--seed", "7", "--for", "3s"];
    let mut link = desk.starts(&[&["link", "--to", &to, "--format", "json"], &how[..]].concat());
    let at = address(&mut link);
    let mut seen = Vec::new();
    for wait in [Duration::ZERO, Duration::from_millis(1500)] {
        std::thread::sleep(wait);
        let sent = Instant::now();
        client.send_to(&[7; 1373], at).expect("too large for this link");
        client.send_to(b"hello", at).expect("sent");
        let mut bytes = [0; 2000];
        let (count, from) = server.recv_from(&mut bytes).expect("a datagram");
        assert_eq!(&bytes[..count], b"hello");
        server.send_to(b"and back", from).expect("sent");
        let (count, _) = client.recv_from(&mut bytes).expect("an answer");
        assert_eq!(&bytes[..count], b"and back");
        assert!(sent.elapsed() >= Duration::from_millis(80), "{:?}", sent.elapsed());
        seen.push(from);
    }
    assert_ne!(seen[0], seen[1], "the address changed in between");
    let link = link.ends();
    link.check(0, &["fibre: up 1gbit, down 1gbit, round trip 80 ms", "rebind @1s; seed 7", "up 0.00 Mbit/s", "1 clients"]);
    link.check(0, &["up: 2 packets", "2 over the MTU", "1 address changes"]);
    let report = link.json();
    assert_eq!((&report["profile"], &report["up"]["delay"], &report["up"]["mtu"]), (&"fibre".into(), &"40ms".into(), &1400.into()));
    let passed = &report["passed"];
    assert_eq!((&passed["up"]["bytes_out"], &passed["down"]["bytes_out"]), (&10.into(), &16.into()), "{report}");
    assert_eq!((&passed["up"]["dropped_mtu"], &passed["rebinds"]), (&2.into(), &1.into()), "{report}");
}

/// Goal: what no link is, is refused with what one could be. Method: a name, a quantity, a number, an address without a port.
#[test]
fn links_that_cannot_be_are_refused() {
    let desk = Desk::new();
    let check = |arguments: &[&str], words: &str| desk.ends(&[&["link", "--to", "127.0.0.1:9"], arguments].concat()).check(2, &[words]);
    check(&["--profile", "dsl"], "the profiles are loopback, fibre, wifi, 5g, lte, satellite, train");
    check(&["--rate", "50"], "`50` is not a rate: write 50mbit");
    check(&["--partition", "5s"], "5s@30s/60s for one each minute");
    check(&["--mtu", "900"], "the MTU is 900: give at least 1228");
    check(&["--mtu", "small"], "1280@30s");
    desk.ends(&["link", "--to", "127.0.0.1"]).check(2, &["--to 127.0.0.1: the port is missing"]);
    let run = ["run", &desk.run_file("dsl"), "--set", "link.profile=dsl"];
    desk.ends(&run).check(2, &["no link profile is called `dsl`; the profiles are loopback, fibre"]);
}

/// Goal: a run behind emulated links leaves what it leaves without them, and says which they were. Method: one profile for all, another for
/// one client with loss and a new address beside it; the adapters are compared byte by byte.
#[test]
fn a_run_behind_links_is_the_same_run() {
    let desk = Desk::new();
    let file = desk.run_file("plain");
    desk.ends(&["run", &file]).check(0, &[]);
    let changes = ["link.profile=wifi", "link.emulate.loss=1%", "link.emulate.rebind=['2s']", "client=[{name='phone', profile='5g'}]"];
    let set: Vec<&str> = changes.iter().flat_map(|change| ["--set", change]).collect();
    let run = desk.ends(&[&["run", &file, "--name", "linked"], &set[..]].concat());
    run.check(
        0,
        &["phone is behind an emulated link, 5g: up 40mbit, down 200mbit", "client-1 is behind an emulated link, wifi: up 100mbit"],
    );
    let read = |name: &str, file: &str| fs::read(desk.path("runs").join(name).join(file)).expect("a file of the run");
    let weights = "adapter/adapter_model.safetensors";
    assert!(read("plain", weights) == read("linked", weights), "a link changed the maths");

    let manifest: Value = serde_json::from_slice(&read("linked", "manifest.json")).expect("JSON");
    let profiles: Vec<&Value> = manifest["links"].as_array().expect("links").iter().map(|link| &link["profile"]).collect();
    assert_eq!(profiles, ["5g", "wifi"], "{manifest}");
    let metrics = String::from_utf8(read("linked", "metrics.jsonl")).expect("text");
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).cloned().collect::<Vec<_>>();
    assert_eq!(of("link").iter().map(|line| line["profile"].clone()).collect::<Vec<_>>(), ["5g", "wifi"]);
    let ended = of("link_ended");
    assert!(ended.len() == 2 && ended[1]["up"]["lost"].as_u64() > Some(0), "{ended:?}");
    let plain: Value = serde_json::from_slice(&read("plain", "manifest.json")).expect("JSON");
    assert_eq!(plain["links"], Value::Array(vec![]));
}
