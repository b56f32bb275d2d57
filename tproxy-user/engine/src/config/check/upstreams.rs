//! What does not go together in a group of upstreams, and which one an action names.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{Checker, Form};
use crate::config::{
    Action, Upstream, UpstreamGroup,
    draft::{DraftAction, DraftUpstreams},
    path::Path,
    remedy::nearest,
};

/// Between two looks at a server.
const LEAST_EVERY: Duration = Duration::from_millis(100);

/// The groups that rules can name.
pub(super) type Groups = BTreeMap<String, Arc<UpstreamGroup>>;

/// Names of those that no rule holds by now.
pub(super) fn unused(groups: &Groups) -> Vec<Arc<str>> {
    let unused = groups.values().filter(|group| Arc::strong_count(group) == 1);
    unused.filter_map(|group| group.name.clone()).collect()
}

impl Checker {
    pub(super) fn groups(&mut self, drafts: BTreeMap<String, DraftUpstreams>) -> Groups {
        let mut groups = Groups::new();
        for (name, draft) in drafts {
            let at = Path::of("upstreams").named(&name);
            let DraftUpstreams { servers, pick, check, credentials, secret } = draft;
            if servers.is_empty() {
                let text = "servers is missing: list at least one URL, such as socks5://10.9.9.9:1080";
                self.complain([at.key("servers")], text);
            }
            let mut known = HashSet::new();
            for (index, server) in servers.iter().enumerate() {
                if !known.insert(server) {
                    let text = format!("{server} is listed twice: leave one out");
                    self.complain([at.key("servers").index(index)], text);
                }
            }
            if check.is_some_and(|check| check.every < LEAST_EVERY) {
                let text =
                    format!("check.every must be at least {LEAST_EVERY:?}: servers have other things to do");
                self.complain([at.key("check.every")], text);
            }
            if credentials.is_some() && !servers.iter().any(|server| server.scheme.has_login()) {
                let text =
                    "credentials are for socks5:// and http:// servers, and there is none: leave them out";
                self.complain([at.key("credentials"), at.key("servers")], text);
            }
            let group =
                UpstreamGroup { name: Some(name.as_str().into()), servers, pick, check, credentials: secret };
            groups.insert(name, Arc::new(group));
        }
        groups
    }

    /// The action that is written; nothing, if there is no group of its name.
    pub(super) fn action(&mut self, at: &Path, action: DraftAction, groups: &Groups) -> Option<Action> {
        let name = match action {
            DraftAction::Itself(action) => return Some(action),
            DraftAction::Upstreams(name) => name,
        };
        if let Some(group) = groups.get(&*name) {
            return Some(Action::Upstream(Upstream::Group(Arc::clone(group))));
        }
        let text = match nearest(&name, groups.keys().map(String::as_str)) {
            _ if self.form != Form::File => {
                format!("@{name} names upstreams, which only a file has: write a URL, or use --config")
            }
            Some(other) => format!("there is no [upstreams.{name}]; did you mean @{other}?"),
            None => format!(
                "there is no [upstreams.{name}]: write it, with servers = [\"socks5://10.9.9.9:1080\"]"
            ),
        };
        self.complain([at.key("action")], text);
        None
    }
}
