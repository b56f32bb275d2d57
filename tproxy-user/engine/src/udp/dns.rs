//! Whether a datagram is DNS. What uses the port of DNS need not be: VPNs do, to get through.

/// A header (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// The longest name, and the longest of its labels, in bytes (RFC 1035, 3.1).
const LONGEST_NAME: usize = 255;
const LONGEST_LABEL: u8 = 63;

/// Whether it asks one question.
#[must_use]
pub fn is_query(datagram: &[u8]) -> bool {
    const QUESTIONS: [u8; 2] = [0, 1];
    !is_response(datagram) && datagram.get(4..6) == Some(&QUESTIONS) && has_a_question(datagram)
}

/// Whether it answers one. An answer to what cannot be read has no question (RFC 1035, 4.1.1: format error).
#[must_use]
pub fn is_answer(datagram: &[u8]) -> bool {
    match datagram.get(4..6) {
        Some([0, 0]) => is_response(datagram) && datagram.len() == HEADER,
        Some([0, 1]) => is_response(datagram) && has_a_question(datagram),
        _ => false,
    }
}

fn is_response(datagram: &[u8]) -> bool {
    datagram.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

/// A name of labels, a type and a class.
fn has_a_question(datagram: &[u8]) -> bool {
    let mut place = HEADER;
    while let Some(length) = datagram.get(place) {
        match *length {
            0 => return place - HEADER < LONGEST_NAME && datagram.len() >= place + 5,
            length @ 1..=LONGEST_LABEL => place += 1 + usize::from(length),
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// For the address of `NAME.example`.
    pub(in super::super) fn query(name: u8) -> Vec<u8> {
        let header = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00";
        [header.as_slice(), &[1, name], b"\x07example\x00\x00\x01\x00\x01"].concat()
    }

    /// There is none.
    pub(in super::super) fn answer(name: u8) -> Vec<u8> {
        let mut answer = query(name);
        answer[2] |= 0x80;
        answer
    }

    #[test]
    fn a_query_and_its_answer() {
        let (query, answer) = (query(b'x'), answer(b'x'));
        assert!(is_query(&query) && !is_answer(&query));
        assert!(is_answer(&answer) && !is_query(&answer));
        assert!(is_answer(b"\x12\x34\x80\x01\x00\x00\x00\x00\x00\x00\x00\x00"), "format error");
        let root = b"\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01";
        assert!(is_query(root));
    }

    #[test]
    fn what_is_none() {
        let wireguard = [[1, 0, 0, 0].as_slice(), &[0; 144]].concat();
        let mut cut_off = query(b'x');
        cut_off.pop();
        for datagram in [b"".as_slice(), b"request", &wireguard, &cut_off, &[0; 12], &[0xff; 99]] {
            assert!(!is_query(datagram) && !is_answer(datagram), "{datagram:?}");
        }
    }
}
