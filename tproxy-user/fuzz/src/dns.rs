//! What may be DNS on its port. What is a question is no answer; what follows it, such as EDNS, changes neither; and of a
//! question, no part is one.

use tproxy::udp::dns::{is_answer, is_query};

pub(crate) fn read(bytes: &[u8]) {
    let (query, answer) = (is_query(bytes), is_answer(bytes));
    assert!(!(query && answer));
    if query {
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(is_query(&longer));
        let mut turned = bytes.to_vec();
        turned[2] |= 0x80;
        assert!(is_answer(&turned) && !is_query(&turned));
    } else {
        (0..bytes.len()).for_each(|end| assert!(!is_query(&bytes[..end]), "only {end} bytes"));
    }
}
