use super::*;
use crate::{
    contender::{Contender, Way},
    workload::{Metric, Sample},
};
use tproxy::config::Source;

const OURS: Contender = Contender::Proxy(Way::SkLookup, Source::Host);
const HAPROXY: Contender = Contender::Proxy(Way::Haproxy, Source::Host);
const NGINX: Contender = Contender::Proxy(Way::Nginx, Source::Host);

fn report() -> Report {
    let mut results = Results::default();
    let rounds = [
        // plain, ours, HAProxy, nginx: connections a second and seconds of CPU time for each.
        [(8_000.0, 100e-6), (6_000.0, 200e-6), (4_000.0, 300e-6), (5_000.0, 400e-6)],
        [(4_000.0, 200e-6), (3_600.0, 250e-6), (3_000.0, 400e-6), (2_000.0, 300e-6)],
        [(9_000.0, 100e-6), (7_200.0, 300e-6), (6_000.0, 500e-6), (5_000.0, 400e-6)],
    ];
    for (round, values) in rounds.into_iter().enumerate() {
        for (contender, (rate, cpu)) in [Contender::Plain, OURS, HAPROXY, NGINX].into_iter().zip(values) {
            let parts =
                [Metric::CpuUser, Metric::CpuSystem, Metric::CpuSoftirq].map(|part| (part, cpu / 3.0));
            let sample = [vec![(Metric::Rate, rate), (Metric::Cpu, cpu)], parts.to_vec()].concat();
            results.add(round, Workload::Connections, contender, &Sample(sample));
        }
    }
    results.warn("<odd>".into());
    results.judge_noise();
    let environment = Environment {
        kernel: "Linux 6.18".into(),
        cpu: "A & B".into(),
        cpus: 2,
        tproxy: "1",
        build: "release",
        tools: vec![("nginx".into(), "1.22".into())],
        rounds: 3,
        quick: true,
        only: "sk_lookup".into(),
    };
    Report::new(environment, results)
}

#[test]
fn numbers_have_three_digits_that_count() {
    let shown = [0.0, 0.123, 1.0, 12.34, 123.4, 1_234.5, 1_234_567.0, -4_321.0, -0.5].map(number);
    assert_eq!(shown, ["0.00", "0.12", "1.00", "12.3", "123", "1,234", "1,234,567", "-4,321", "-0.50"]);
}

#[test]
fn the_text_has_medians_spread_ratio_of_the_same_round_and_added_cpu() {
    let text = report().text();
    let row = text.lines().find(|line| line.trim_start().starts_with("sk_lookup/host")).unwrap();
    let words: Vec<_> = row.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "sk_lookup/host",
            "6,000",
            "3,600–7,200",
            // The middle of 0.75, 0.9 and 0.8; the ratio of the medians would be 0.75.
            "0.80",
            "250",
            "83.3",
            "+",
            "83.3",
            "+",
            "83.3",
            // The middle of 100, 50 and 200.
            "100",
        ]
    );
    assert!(text.contains("quick run, a first impression only"), "{text}");
    assert!(
        text.contains("tproxy bench --quick --rounds 3 --workload connections --only sk_lookup\n"),
        "{text}"
    );
    assert!(text.contains("connections: plain forwarding varied by 62 %"), "{text}");
}

#[test]
fn targets_compare_with_the_better_peer_of_each_round() {
    let Report { standings, .. } = report();
    let of = |what: &str| standings.iter().find(|standing| standing.what == what).unwrap();
    // 6000/5000, 3600/3000 and 7200/6000.
    let rate = of("rate / better peer");
    assert!((rate.median - 1.2).abs() < 1e-9 && rate.met && rate.target == "≥ 1.15 ×", "{rate:?}");
    // 100/200, 50/100 and 200/300.
    let added = of("added CPU / better peer");
    assert!((added.median - 0.5).abs() < 1e-9 && added.met, "{added:?}");
    assert!(standings.iter().all(|standing| standing.contender == OURS), "{standings:?}");
}

#[test]
fn json_has_every_sample() {
    let json: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
    assert_eq!(json["samples"].as_array().unwrap().len(), 3 * 4 * 5);
    assert_eq!(json["samples"][0]["contender"], "plain");
    assert_eq!(json["environment"]["kernel"], "Linux 6.18");
    assert_eq!(json["targets"][0]["met"], true);
}

#[test]
fn the_page_is_whole_escaped_and_needs_nothing_from_elsewhere() {
    let page = report().html();
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert_eq!(page.matches("<svg").count(), 2, "rate and CPU");
    assert!(page.contains("&lt;odd&gt;") && page.contains("A &amp; B"));
    for outside in ["http://", "https://", "<script", "src=", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
}
