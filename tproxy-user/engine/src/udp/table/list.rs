//! A doubly linked list of sessions. A session is moved to the end of its orders for each batch of datagrams, so that has
//! to cost next to nothing.

use super::SessionId;

/// The neighbours of a session in one list.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Links {
    before: Option<SessionId>,
    after: Option<SessionId>,
}

/// The ends of a list.
#[derive(Debug, Default)]
pub(super) struct List {
    first: Option<SessionId>,
    last: Option<SessionId>,
}

impl List {
    pub(super) const fn first(&self) -> Option<SessionId> {
        self.first
    }
}

/// A list, with the links of all sessions that may be in it.
pub(super) struct Linked<'a> {
    pub(super) list: &'a mut List,
    pub(super) links: &'a mut [Links],
}

impl Linked<'_> {
    /// Appends a session that is not in the list.
    pub(super) fn push_back(&mut self, id: SessionId) {
        *self.links_of(id) = Links { before: self.list.last, after: None };
        match self.list.last {
            Some(last) => self.links_of(last).after = Some(id),
            None => self.list.first = Some(id),
        }
        self.list.last = Some(id);
    }

    /// Takes out a session that is in the list.
    pub(super) fn remove(&mut self, id: SessionId) {
        let Links { before, after } = *self.links_of(id);
        match before {
            Some(before) => self.links_of(before).after = after,
            None => self.list.first = after,
        }
        match after {
            Some(after) => self.links_of(after).before = before,
            None => self.list.last = before,
        }
    }

    fn links_of(&mut self, id: SessionId) -> &mut Links {
        &mut self.links[id.0 as usize]
    }
}
