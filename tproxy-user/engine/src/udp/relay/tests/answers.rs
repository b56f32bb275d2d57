//! Answers in place of an upstream.

use std::num::NonZeroUsize;

use super::rig::*;
use crate::{
    config::{Action, RuleLimits, Treatment},
    udp::{batch::Run, relay::Up},
};

fn answered(rig: &mut Rig, client: u8, question: &[u8]) -> bool {
    let flow = flow(client, 1, 1, 7);
    let id = rig.relay.find(&flow).unwrap_or_else(|| rig.session(flow));
    assert_eq!(rig.relay.up(id), Some(Up::Answer));
    let text = rig.relay.asked(id, &Run::one(flow.client.0, question), rig.now).unwrap();
    rig.relay.may_answer(id, question, text.as_bytes(), rig.now)
}

#[test]
fn an_answer_is_not_much_longer_than_its_question() {
    // With headers of 28 bytes.
    for (amplification, answer, question, expected) in [
        (None, 3 * 30 - 28, 2, true),
        (None, 3 * 30 - 28 + 1, 2, false),
        (Some(1), 2, 2, true),
        (Some(1), 3, 2, false),
        (Some(100), 2772, 0, true),
        (Some(100), 2773, 0, false),
    ] {
        let limits =
            RuleLimits { amplification: amplification.and_then(NonZeroUsize::new), ..RuleLimits::default() };
        let text = "a".repeat(answer);
        let mut rig = Rig::new(rule(Treatment { limits, ..Action::Respond(text.into()).into() }));
        assert_eq!(answered(&mut rig, 1, &vec![0; question]), expected, "{amplification:?} {answer}");
        assert_eq!(rig.counted().unanswered, u64::from(!expected));
        assert_eq!(rig.counted().datagrams_up, 1);
    }
}

#[test]
fn what_we_said_ourselves_is_not_answered() {
    let mut rig = Rig::new(rule(Action::Respond("hello".into())));
    assert!(answered(&mut rig, 1, b"hell"));
    assert!(!answered(&mut rig, 1, b"hello"));
    assert!(!answered(&mut rig, 1, b"> hello <"));
    let mut empty = Rig::new(rule(Action::Respond("".into())));
    assert!(answered(&mut empty, 1, b"anything"));
}

#[test]
fn each_client_is_answered_so_many_times_a_second() {
    let mut rig = Rig::new(rule(Action::Respond("hello".into())));
    let burst = |rig: &mut Rig, client| (0..500).filter(|_| answered(rig, client, b"what?")).count();
    assert_eq!([1, 1, 2].map(|client| burst(&mut rig, client)), [100, 0, 100]);
    rig.wait(std::time::Duration::from_millis(500));
    assert_eq!(burst(&mut rig, 1), 50);
}
