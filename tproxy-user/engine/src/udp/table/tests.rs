use proptest::prelude::*;

use std::net::IpAddr;

use super::*;

const ONE_WAY: Duration = Duration::from_secs(30);
const TWO_WAY: Duration = Duration::from_secs(120);

struct Clock(Instant);

impl Clock {
    fn at(&self, seconds: u64) -> Instant {
        self.0 + Duration::from_secs(seconds)
    }
}

fn table(total: usize, per_client: usize) -> (Table<&'static str>, Clock) {
    let sessions = SessionLimits { total, per_client };
    (Table::new(TableLimits { sessions, one_way: ONE_WAY, two_way: TWO_WAY }), Clock(Instant::now()))
}

fn flow(client: u8, client_port: u16, dst_port: u16) -> Flow {
    Flow {
        client: ClientAddr(([10, 0, 0, client], client_port).into()),
        dst: OriginalDst(([8, 8, 8, 8], dst_port).into()),
    }
}

#[test]
fn a_session_is_found_by_its_flow_until_it_is_removed() {
    let (mut table, clock) = table(10, 10);
    let id = table.insert(flow(1, 1, 1), "a", clock.at(0));
    assert_eq!(table.find(&flow(1, 1, 1)), Some(id));
    assert_eq!(table.find(&flow(1, 1, 2)), None);
    assert_eq!(table.get_mut(id), Some((&flow(1, 1, 1), &mut "a")));
    assert_eq!(table.remove(id), Some((flow(1, 1, 1), "a")));
    assert_eq!((table.find(&flow(1, 1, 1)), table.remove(id), table.any()), (None, None, None));
    assert!(table.clients.is_empty());
}

#[test]
fn the_least_recently_used_one_way_session_makes_room() {
    let (mut table, clock) = table(3, 3);
    let ids = [1, 2, 3].map(|client| table.insert(flow(client, 1, 1), "", clock.at(u64::from(client))));
    let newcomer = flow(9, 1, 1).client;
    assert_eq!(table.in_the_way(newcomer), Some(ids[0]));
    table.used(ids[0], Sender::Client, 1, clock.at(4));
    assert_eq!(table.in_the_way(newcomer), Some(ids[1]));
    // Answered ones are kept as long as there are others.
    table.used(ids[1], Sender::Upstream, 1, clock.at(5));
    assert_eq!(table.in_the_way(newcomer), Some(ids[2]));
    table.remove(ids[2]);
    assert_eq!(table.in_the_way(newcomer), None);
}

#[test]
fn who_has_most_makes_room_used_or_not() {
    let (mut table, clock) = table(5, 5);
    let most = [1, 2, 3].map(|port| table.insert(flow(1, port, 1), "", clock.at(5)));
    let others = [2, 3].map(|client| table.insert(flow(client, 1, 1), "", clock.at(0)));
    let newcomer = flow(9, 1, 1).client;
    for id in most {
        table.used(id, Sender::Upstream, 1, clock.at(6));
    }
    assert_eq!(table.in_the_way(newcomer), Some(most[0]), "not the one-way ones of those who have one");
    table.remove(most[0]);
    table.insert(flow(9, 1, 1), "", clock.at(7));
    assert_eq!(table.in_the_way(flow(8, 1, 1).client), Some(most[1]));
    table.remove(most[1]);
    table.insert(flow(8, 1, 1), "", clock.at(8));
    assert_eq!(table.in_the_way(flow(7, 1, 1).client), Some(others[0]), "of equals, a one-way one");
}

#[test]
fn all_of_a_64_are_one_client() {
    let (mut table, clock) = table(10, 2);
    let flow = |address: &str| Flow {
        client: ClientAddr((address.parse::<std::net::Ipv6Addr>().unwrap(), 1).into()),
        dst: OriginalDst(([8, 8, 8, 8], 1).into()),
    };
    let ids = ["2001:db8::1", "2001:db8::ffff:2"].map(|client| table.insert(flow(client), "", clock.at(0)));
    assert_eq!(table.in_the_way(flow("2001:db8::3").client), Some(ids[0]));
    assert_eq!(table.in_the_way(flow("2001:db8:0:1::3").client), None);
}

#[test]
fn a_client_at_its_limit_pays_with_its_own_sessions() {
    let (mut table, clock) = table(10, 2);
    let other = table.insert(flow(1, 1, 1), "", clock.at(0));
    let own = [1, 2].map(|port| table.insert(flow(2, port, 1), "", clock.at(1)));
    assert_eq!(table.in_the_way(flow(2, 9, 1).client), Some(own[0]));
    assert_eq!(table.in_the_way(flow(1, 9, 1).client), None);
    for id in own {
        table.used(id, Sender::Upstream, 1, clock.at(2));
    }
    assert_eq!(table.in_the_way(flow(2, 9, 1).client), Some(own[0]));
    table.remove(own[1]);
    assert_eq!(table.in_the_way(flow(2, 9, 1).client), None);
    assert_eq!(table.dispensable(), Some(other), "one-way, as everybody has one");
}

#[test]
fn silence_ends_a_session_sooner_while_only_one_side_has_sent() {
    let (mut table, clock) = table(10, 10);
    let one_way = table.insert(flow(1, 1, 1), "", clock.at(0));
    let two_way = table.insert(flow(2, 1, 1), "", clock.at(0));
    table.used(two_way, Sender::Upstream, 1, clock.at(0));
    assert_eq!(table.idle(clock.at(29)), None);
    assert_eq!(table.idle(clock.at(30)), Some(one_way));
    table.used(one_way, Sender::Client, 1, clock.at(30));
    assert_eq!(table.idle(clock.at(59)), None);
    assert_eq!(table.silent(Duration::from_secs(10), clock.at(39)), Some(two_way));
    assert_eq!(table.idle(clock.at(60)), Some(one_way));
    table.remove(one_way);
    assert_eq!(table.idle(clock.at(119)), None);
    assert_eq!(table.idle(clock.at(120)), Some(two_way));
}

#[test]
fn dns_is_over_when_all_is_answered() {
    let (mut table, clock) = table(10, 10);
    let dns = table.insert(flow(1, 1, DNS), "", clock.at(0));
    let other = table.insert(flow(1, 1, 443), "", clock.at(0));
    let mut is_over_after = |id, sender, count| {
        table.used(id, sender, count, clock.at(1));
        table.is_answered(id)
    };
    assert!(!is_over_after(dns, Sender::Client, 2));
    assert!(!is_over_after(dns, Sender::Upstream, 1));
    assert!(!is_over_after(dns, Sender::Client, 1));
    assert!(is_over_after(dns, Sender::Upstream, 2));
    // More answers than queries, too.
    assert!(!is_over_after(dns, Sender::Client, 1));
    assert!(is_over_after(dns, Sender::Ourselves, 5));
    assert!(!is_over_after(other, Sender::Client, 1));
    assert!(!is_over_after(other, Sender::Upstream, 1));
    assert!(table.may_be_dns(dns) && !table.may_be_dns(other));
    table.is_no_dns(dns);
    assert!(!table.is_answered(dns));
}

#[test]
fn answers_of_our_own_make_no_session_two_way() {
    let (mut table, clock) = table(1, 1);
    let id = table.insert(flow(1, 1, 1), "", clock.at(0));
    table.used(id, Sender::Client, 1, clock.at(0));
    table.used(id, Sender::Ourselves, 1, clock.at(0));
    assert_eq!(table.in_the_way(flow(9, 1, 1).client), Some(id));
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u8, u16),
    Used(usize, bool),
    Remove(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_u8, 0..6_u16).prop_map(|(client, port)| Step::Insert(client, port)),
        (0..20_usize, any::<bool>()).prop_map(|(which, down)| Step::Used(which, down)),
        (0..20_usize).prop_map(Step::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a list that is kept in order by moving everything.
    #[test]
    fn orders_are_those_of_use(steps in prop::collection::vec(step(), 1..120)) {
        let (mut table, clock) = table(1000, 1000);
        // In the order of use: id, flow, two-way.
        let mut reference: Vec<(SessionId, Flow, bool)> = Vec::new();
        for (now, step) in steps.into_iter().enumerate() {
            let now = clock.at(now as u64);
            match step {
                Step::Insert(client, port) => {
                    let flow = flow(client, port, 1);
                    if table.find(&flow).is_none() {
                        reference.push((table.insert(flow, "", now), flow, false));
                    }
                }
                Step::Used(which, down) if which < reference.len() => {
                    let (id, flow, two_way) = reference.remove(which);
                    table.used(id, if down { Sender::Upstream } else { Sender::Client }, 1, now);
                    reference.push((id, flow, two_way || down));
                }
                Step::Remove(which) if which < reference.len() => {
                    let (id, flow, _) = reference.remove(which);
                    prop_assert_eq!(table.remove(id), Some((flow, "")));
                }
                Step::Used(..) | Step::Remove(_) => {}
            }
            let first = |two_way, client: Option<u8>| {
                let mut of = reference.iter().filter(|(_, flow, both)| {
                    *both == two_way && client.is_none_or(|client| flow.client.0.ip() == IpAddr::from([10, 0, 0, client]))
                });
                of.next().map(|(id, ..)| *id)
            };
            prop_assert_eq!(table.all.one_way.first(), first(false, None));
            prop_assert_eq!(table.all.two_way.first(), first(true, None));
            for client in 0..4 {
                let known = table.by_network.get(&flow(client, 0, 0).client.network()).map(|client| &table.clients[*client]);
                let count = reference.iter().filter(|(_, flow, _)| flow.client.0.ip() == IpAddr::from([10, 0, 0, client]));
                prop_assert_eq!(known.map_or(0, |known| known.sessions), count.count());
                prop_assert_eq!(known.and_then(|known| known.orders.one_way.first()), first(false, Some(client)));
                prop_assert_eq!(known.and_then(|known| known.orders.two_way.first()), first(true, Some(client)));
            }
        }
    }
}
