use std::net::SocketAddr;

use tproxy_common::{flow::Protocol, rule::Scope};

use super::*;
use crate::flow::{ClientAddr, OriginalDst};

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn selection(protocol: Protocol, client: &str, dst: &str) -> Selection {
    let (client, dst) = (ClientAddr(addr(client)), OriginalDst(addr(dst)));
    Selection { protocol, scope: Scope::Forwarded, rule: "web".into(), client, dst }
}

fn query(text: &str) -> Filter {
    serde_urlencoded::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn numbers_of_workers_interlace_and_places_are_used_again() {
    let flows = Flows::of_workers(2);
    let tables = [flows.table(0), flows.table(1)];
    let enter = |worker: usize| tables[worker].enter(selection(Protocol::Tcp, "10.0.0.1:1", "8.8.8.8:80"));
    let mut all = vec![enter(0), enter(1), enter(0), enter(1)];
    let ids =
        |flows: &Flows| flows.select(&Filter::default()).iter().map(|flow| flow.id().0).collect::<Vec<_>>();
    assert_eq!(ids(&flows), [1, 2, 3, 4]);
    all.remove(0);
    all.push(enter(0));
    assert_eq!(ids(&flows), [2, 3, 4, 5]);
}

#[test]
fn more_flows_than_are_looked_at_in_one_go_are_all_seen() {
    let flows = Flows::of_workers(1);
    let table = flows.table(0);
    let enter = |_| table.enter(selection(Protocol::Udp, "10.0.0.1:1", "8.8.8.8:53"));
    let live: Vec<_> = (0..3 * AT_ONCE + 7).map(enter).collect();
    assert_eq!(flows.select(&Filter::default()).len(), live.len());
    drop(live);
    assert!(flows.select(&Filter::default()).is_empty());
}

#[test]
fn a_filter_wants_all_that_it_says() {
    let flows = Flows::of_workers(1);
    let table = flows.table(0);
    let one = table.enter(selection(Protocol::Tcp, "10.0.0.1:1000", "8.8.8.8:443"));
    one.leads_to(addr("192.0.2.1:8443"));
    one.set_state(FlowState::Relaying);
    let _other = table.enter(selection(Protocol::Udp, "[2001:db8::1]:1000", "[2001:db8::53]:53"));
    for (text, expected) in [
        ("", 2),
        ("id=1", 1),
        ("id=7", 0),
        ("proto=udp", 1),
        ("scope=forwarded", 2),
        ("scope=inbound", 0),
        ("rule=web", 2),
        ("rule=we", 0),
        ("client=10.0.0.0/8", 1),
        ("client=:1000", 2),
        ("client=10.0.0.1:1001", 0),
        ("dst=[2001:db8::53]:53", 1),
        ("dst=2001:db8::/32", 1),
        ("upstream=192.0.2.1", 1),
        ("state=relaying", 1),
        ("state=one_way", 1),
        ("proto=udp&client=10.0.0.0/8", 0),
        ("proto=tcp&client=10.0.0.0/8&dst=:443", 1),
    ] {
        assert_eq!(flows.select(&query(text)).len(), expected, "{text}");
    }
}

#[test]
fn a_filter_that_makes_no_sense_says_why() {
    for (text, words) in [
        ("client=nobody", "ADDR:PORT"),
        ("client=10.0.0.1:99999", "ADDR:PORT"),
        ("colour=red", "colour"),
        ("state=asleep", "asleep"),
        ("id=-1", "id"),
    ] {
        let error = serde_urlencoded::from_str::<Filter>(text).expect_err(text).to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn a_filter_survives_the_way_to_the_server() {
    let all = "id=3&proto=tcp&scope=inbound&rule=a+b%26c&client=10.0.0.0%2F8&dst=%3A443&upstream=%5B%3A%3A1%5D%3A53&state=two_way";
    assert_eq!(serde_urlencoded::to_string(query(all)).unwrap(), all);
}

#[tokio::test]
async fn who_follows_hears_of_beginnings_and_ends() {
    let flows = Flows::of_workers(1);
    let table = flows.table(0);
    drop(table.enter(selection(Protocol::Tcp, "10.0.0.1:1", "8.8.8.8:80")));
    let mut follower = flows.follow();
    let live = table.enter(selection(Protocol::Tcp, "10.0.0.1:2", "8.8.8.8:80"));
    live.set_bytes(3, 4);
    live.ended("eof");
    drop(live);
    let Some(Followed::Began(begun)) = follower.next().await else { panic!("it began") };
    assert_eq!(begun.id().0, 2, "the first was before");
    let Some(Followed::Ended(ended)) = follower.next().await else { panic!("it ended") };
    assert_eq!((ended.bytes(), ended.end()), ((3, 4), Some("eof")));
}

#[tokio::test]
async fn who_is_slow_is_told_how_much_was_missed() {
    let flows = Flows::of_workers(1);
    let mut follower = flows.follow();
    let table = flows.table(0);
    for _ in 0..10_000 {
        drop(table.enter(selection(Protocol::Tcp, "10.0.0.1:1", "8.8.8.8:80")));
    }
    let Some(Followed::Missed(missed)) = follower.next().await else { panic!("much was missed") };
    assert!(missed > 10_000, "{missed}");
}
