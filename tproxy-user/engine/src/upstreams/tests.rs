use std::collections::HashSet;

use super::*;
use crate::config::{Check, Scheme, Scope};

fn pool(pick: Pick, check: Option<Check>) -> Pool {
    let server =
        |last| UpstreamServer { scheme: Scheme::Tcp, host: Host::Address([10, 0, 0, last].into()), port: 80 };
    let servers = vec![server(1), server(2), server(3)];
    Pool::of(&UpstreamGroup { name: None, servers, pick, check, credentials: None }.into())
}

/// Last bytes of the addresses.
fn order(pool: &Pool, client: u8) -> Vec<u8> {
    let last = |server: &&Arc<Server>| match server.url().host.address() {
        Some(IpAddr::V4(address)) => address.octets()[3],
        other => panic!("{other:?}"),
    };
    pool.in_order([192, 0, 2, client].into()).iter().map(last).collect()
}

#[test]
fn who_is_first_is_as_the_group_has_it() {
    let first = pool(Pick::First, None);
    assert_eq!([order(&first, 1), order(&first, 1)], [[1, 2, 3], [1, 2, 3]]);
    let robin = pool(Pick::RoundRobin, None);
    let turns: Vec<_> = (0..4).map(|_| order(&robin, 1)).collect();
    assert_eq!(turns, [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]);
    let least = pool(Pick::Least, None);
    let used = [least.servers[0].used(), least.servers[0].used(), least.servers[2].used()];
    assert_eq!(order(&least, 1), [2, 3, 1]);
    drop(used);
    assert_eq!((order(&least, 1), least.servers[0].flows()), (vec![1, 2, 3], [2, 0]));
    let hash = pool(Pick::Hash, None);
    let firsts: HashSet<_> = (0..=255).map(|client| order(&hash, client)[0]).collect();
    assert_eq!(firsts, HashSet::from([1, 2, 3]));
    let before: Vec<_> = (0..=255).map(|client| order(&hash, client)).collect();
    hash.servers[1].failed("gone");
    for (client, before) in (0..=255).zip(before) {
        let others: Vec<_> = before.into_iter().filter(|server| *server != 2).collect();
        assert_eq!(order(&hash, client), [others, vec![2]].concat(), "only its own clients go elsewhere");
    }
}

#[test]
fn one_that_failed_comes_last_until_it_is_there_again() {
    for check in [None, Some(Check { every: Duration::from_secs(5) })] {
        let pool = pool(Pick::First, check);
        pool.servers[0].lost("refused");
        assert_eq!((order(&pool, 1), pool.servers[0].flows()), (vec![2, 3, 1], [0, 1]));
        assert_eq!(pool.servers[0].health().failing.map(|(_, error)| error).as_deref(), Some("refused"));
        pool.servers[0].succeeded(Duration::from_millis(8));
        assert_eq!(order(&pool, 1), [1, 2, 3]);
        pool.servers[0].succeeded(Duration::from_millis(16));
        assert_eq!(pool.servers[0].health().latency, Some(Duration::from_millis(9)));
        assert!(!pool.servers[0].is_out(Some(Duration::ZERO)));
        pool.servers[0].failed("refused");
        assert!(!pool.servers[0].is_out(Some(Duration::ZERO)), "it is tried again");
        assert!(pool.servers[0].is_out(None), "nobody has seen it again");
    }
}

#[test]
fn what_is_known_of_a_group_outlives_a_reload_that_leaves_it() {
    let rule = |name: &str, upstream: &str| {
        Rule::new(name, Scope::Inbound, Action::Upstream(upstream.parse().unwrap()))
    };
    let rules = [rule("a", "tcp://10.0.0.1:80"), rule("b", "10.0.0.1:80"), rule("c", "tcp://10.0.0.1:80")];
    let pools = Pools::of(&rules, None);
    assert!(Arc::ptr_eq(pools.of_rule(0).unwrap(), pools.of_rule(2).unwrap()) && pools.of_rule(1).is_none());
    assert_eq!(pools.all().len(), 1);
    let next = Pools::of(&[rule("d", "tcp://10.0.0.2:80"), rule("a", "tcp://10.0.0.1:80")], Some(&pools));
    assert!(Arc::ptr_eq(pools.of_rule(0).unwrap(), next.of_rule(1).unwrap()));
    assert_eq!(next.all().len(), 2);
}
