//! What a user writes, in flags or in a file, before it is checked: the one structure from which the flags, what the
//! file may hold, the JSON schema and the printed configuration are derived.

use std::{
    borrow::Cow, collections::BTreeMap, net::SocketAddr, ops::RangeInclusive, path::PathBuf, sync::Arc,
};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use tproxy_common::defaults;

use super::{
    Accept, Action, Check, Credentials, Nat, OnExit, Pick, Protocols, RuleEgress, RuleLimits, RuleTimeouts,
    Scope, Source, Steer, Timeouts, UpstreamServer,
    path::{Path, PathStep},
    values::{self, Item, Text},
};
use crate::{host::InstanceName, mark::Mark};

/// Everything one instance of `tproxy run` is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "tproxy.toml")]
pub(crate) struct Draft {
    /// What this instance is called; its control socket is /run/tproxy/NAME.sock (default: "default", or what `ip netns`
    /// calls the network namespace; with another mark, the mark is added)
    #[cfg_attr(feature = "flags", arg(long, value_parser = InstanceName::parse))]
    #[serde(with = "values::optional_text", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "values::schema::<InstanceName>")]
    pub(crate) name: Option<InstanceName>,
    /// Serve metrics for Prometheus at http://ADDR:PORT/metrics (default: at the control socket only)
    #[cfg_attr(feature = "flags", arg(long, value_name = "ADDR:PORT", value_parser = <SocketAddr as Text>::parse))]
    #[serde(with = "values::optional_text", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "values::schema::<SocketAddr>")]
    pub(crate) metrics: Option<SocketAddr>,
    /// The bits of the packet mark this instance uses: VALUE marks what it steers, VALUE and one more bit of MASK what
    /// its own sockets send
    #[cfg_attr(feature = "flags", arg(long, value_name = "VALUE/MASK", default_value_t = Mark::DEFAULT))]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Mark>")]
    pub(crate) mark: Mark,
    /// Number of the routing table this instance uses; it must be empty
    #[cfg_attr(feature = "flags", arg(long, default_value_t = defaults::TABLE))]
    pub(crate) table: u32,
    /// Preference of this instance's routing rules (ip rule); instances may share one
    #[cfg_attr(feature = "flags", arg(long, default_value_t = defaults::PRIORITY))]
    pub(crate) priority: u32,
    /// Who picks the socket of a steered packet
    #[cfg_attr(feature = "flags", arg(long, default_value = "sk_lookup"))]
    pub(crate) steer: Steer,
    /// What flows that a rule selects meet while this instance stops, and when it is gone
    #[cfg_attr(feature = "flags", arg(long, default_value = "pass"))]
    pub(crate) on_exit: OnExit,
    /// Add rules to this host's firewalls (iptables, nft) that accept what is steered, where they would discard it
    #[cfg_attr(feature = "flags", arg(long))]
    pub(crate) admit: bool,
    /// Worker threads (default: one per CPU)
    #[cfg_attr(feature = "flags", arg(long, value_name = "N"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize")]
    pub(crate) workers: Option<usize>,
    /// Time limits
    #[cfg_attr(feature = "flags", command(flatten))]
    pub(crate) timeouts: Timeouts,
    /// How much there may be at once
    #[cfg_attr(feature = "flags", command(flatten))]
    pub(crate) limits: DraftLimits,
    /// Prefixes and ports by name
    #[cfg_attr(feature = "flags", arg(skip))]
    #[serde(skip_serializing_if = "DraftSets::is_empty")]
    pub(crate) sets: DraftSets,
    /// Groups of servers by name
    #[cfg_attr(feature = "flags", arg(skip))]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) upstreams: BTreeMap<String, DraftUpstreams>,
    /// In the order in which they are tried; the first match wins
    #[cfg_attr(feature = "flags", arg(skip))]
    pub(crate) rules: Vec<DraftRule>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            name: None,
            metrics: None,
            mark: Mark::DEFAULT,
            table: defaults::TABLE,
            priority: defaults::PRIORITY,
            steer: Steer::default(),
            on_exit: OnExit::default(),
            admit: false,
            workers: None,
            timeouts: Timeouts::default(),
            limits: DraftLimits::default(),
            sets: DraftSets::default(),
            upstreams: BTreeMap::new(),
            rules: Vec::new(),
        }
    }
}

/// How much there may be at once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Limits")]
pub(crate) struct DraftLimits {
    /// Most UDP sessions at once; each takes two descriptors (default: as many as a quarter of the descriptors allows)
    #[cfg_attr(feature = "flags", arg(long, value_name = "N"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize")]
    pub(crate) udp_sessions: Option<usize>,
    /// Most UDP sessions at once of one client address, or /64 of IPv6 (default: a quarter of all)
    #[cfg_attr(feature = "flags", arg(long, value_name = "N"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize")]
    pub(crate) udp_sessions_per_client: Option<usize>,
    /// Most TCP connections at once; each takes two descriptors (default: as many as the descriptors allow)
    #[cfg_attr(feature = "flags", arg(long, value_name = "N"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize")]
    pub(crate) connections: Option<usize>,
    /// Most TCP connections at once of one client address, or /64 of IPv6; not in scope outbound (default: a quarter of what
    /// the descriptors allow)
    #[cfg_attr(feature = "flags", arg(long, value_name = "N"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize")]
    pub(crate) connections_per_client: Option<usize>,
}

/// Sets that rules name as `@NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Sets")]
pub(crate) struct DraftSets {
    /// For from, to and except
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) prefixes: BTreeMap<String, Members<IpNet>>,
    /// For ports
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) ports: BTreeMap<String, Members<RangeInclusive<u16>>>,
}

/// Servers that rules name as `upstream=@NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Upstreams", extend("required" = ["servers"]))]
pub(crate) struct DraftUpstreams {
    /// Their URLs: socks5://, http:// (CONNECT), proxy-v1://, proxy-v2:// or tcp://HOST:PORT
    /// upstream=@NAME      the same, by one of the servers of [upstreams.NAME] in a file
    #[schemars(schema_with = "servers_schema")]
    pub(crate) servers: Vec<UpstreamServer>,
    /// Which of them is tried first
    pub(crate) pick: Pick,
    /// Look whether they are there, by connecting; one that is not is left out until it is
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Check")]
    pub(crate) check: Option<Check>,
    /// What socks5:// and http:// servers are to know us by
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "CredentialsFile")]
    pub(crate) credentials: Option<CredentialsFile>,
    /// What is in that file.
    #[serde(skip)]
    pub(crate) secret: Option<Credentials>,
}

/// A file that nobody but its owner can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CredentialsFile {
    /// A file with USER:PASSWORD on its only line, which only its owner can read; relative to the directory of the
    /// configuration file
    pub(crate) file: PathBuf,
}

fn servers_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": values::schema::<UpstreamServer>(generator), "minItems": 1 })
}

/// For serde: a value that is there where its key is.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// What becomes of a flow, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DraftAction {
    /// As it says by itself.
    Itself(Action),
    /// `upstream=@NAME`
    Upstreams(Arc<str>),
}

impl Text for DraftAction {
    const WRITE: &'static str = Action::WRITE;
    const PATTERN: &'static str = "direct|reject|drop|pass|upstream=(@.+|.+:[0-9]+/?)|respond=[\\s\\S]*";

    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("upstream=@") {
            Some(name) => Ok(Self::Upstreams(name.into())),
            None => Action::parse(text).map(Self::Itself),
        }
    }

    fn written(&self) -> String {
        match self {
            Self::Itself(action) => action.written(),
            Self::Upstreams(name) => format!("upstream=@{name}"),
        }
    }
}

impl DraftSets {
    pub(super) fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.ports.is_empty()
    }

    /// Makes sure that the set that `path` is in exists.
    pub(super) fn add_empty(&mut self, path: &Path) {
        let [PathStep::Key(sets), PathStep::Key(kind), PathStep::Key(name), ..] = path.steps() else {
            return;
        };
        match (&**sets, &**kind) {
            ("sets", "prefixes") => _ = self.prefixes.entry(name.clone()).or_insert_with(|| vec![].into()),
            ("sets", "ports") => _ = self.ports.entry(name.clone()).or_insert_with(|| vec![].into()),
            _ => {}
        }
    }
}

/// The members of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged, bound = "T: Text")]
pub(crate) enum Members<T: Text> {
    /// One by one.
    Listed(Vec<Item<T>>),
    /// In a file.
    Elsewhere(MembersFile),
}

/// A file with a member a line; what follows a `#` is a comment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MembersFile {
    /// A file with a member a line, comments after #; relative to the directory of the configuration file
    pub(crate) file: PathBuf,
}

/// By hand, since what serde derives for `untagged` forgets where in the document an error is.
impl<'de, T: Text> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Text> de::Visitor<'de> for Visitor<T> {
            type Value = Members<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list in brackets, or { file = \"PATH\" }")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(Members::Listed)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, table: A) -> Result<Self::Value, A::Error> {
                let file = MembersFile::deserialize(de::value::MapAccessDeserializer::new(table));
                file.map(Members::Elsewhere)
            }
        }

        deserializer.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

impl<T: Text> JsonSchema for Members<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Members".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (list, file) =
            (generator.subschema_for::<Vec<Item<T>>>(), generator.subschema_for::<MembersFile>());
        json_schema!({ "anyOf": [list, file] })
    }
}

/// One rule: which flows, and what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["scope", "action"]))]
pub(crate) struct DraftRule {
    /// Shown in logs and counters (default: rule-N, counted from 0)
    #[cfg_attr(feature = "flags", arg(skip))]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(crate) name: Option<String>,
    /// Which traffic the rule looks at; required
    #[cfg_attr(feature = "flags", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DraftScope")]
    pub(crate) scope: Option<DraftScope>,
    /// Which protocols the rule looks at
    #[cfg_attr(feature = "flags", arg(long = "proto", value_name = "PROTOCOL", default_value = "both"))]
    pub(crate) protocol: Protocols,
    /// Interfaces that packets arrive by (forwarded: required) or leave by (outbound; default: all with a default or
    /// connected route)
    #[cfg_attr(feature = "flags", arg(long = "interface", value_name = "NAME"))]
    #[serde(deserialize_with = "values::some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("minItems" = 1))]
    pub(crate) interfaces: Vec<String>,
    /// Destination prefixes and addresses (default: any; 0.0.0.0/0 is all of IPv4, ::/0 all of IPv6)
    #[cfg_attr(feature = "flags", arg(long, value_name = "PREFIX", value_parser = Item::<IpNet>::parse))]
    #[serde(deserialize_with = "values::some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("minItems" = 1))]
    pub(crate) to: Vec<Item<IpNet>>,
    /// Source prefixes and addresses (default: any)
    #[cfg_attr(feature = "flags", arg(long, value_name = "PREFIX", value_parser = Item::<IpNet>::parse))]
    #[serde(deserialize_with = "values::some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("minItems" = 1))]
    pub(crate) from: Vec<Item<IpNet>>,
    /// Destination prefixes and addresses to leave out
    #[cfg_attr(feature = "flags", arg(long, value_name = "PREFIX", value_parser = Item::<IpNet>::parse))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) except: Vec<Item<IpNet>>,
    /// Destination ports and ranges, such as 80,443,8000-8999 (default: any)
    #[cfg_attr(
        feature = "flags",
        arg(long = "port", value_name = "PORTS", value_delimiter = ',', value_parser = Item::<RangeInclusive<u16>>::parse)
    )]
    #[serde(deserialize_with = "values::some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("minItems" = 1))]
    pub(crate) ports: Vec<Item<RangeInclusive<u16>>>,
    /// User ids of the sending process, as numbers (outbound)
    #[cfg_attr(feature = "flags", arg(long))]
    #[serde(deserialize_with = "values::some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("minItems" = 1))]
    pub(crate) uid: Vec<u32>,
    /// cgroup v2 directories of the sending process, or ones above it (outbound)
    #[cfg_attr(feature = "flags", arg(long, value_name = "PATH"))]
    #[serde(deserialize_with = "values::some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("minItems" = 1))]
    pub(crate) cgroup: Vec<PathBuf>,
    /// What becomes of a flow: direct, upstream=ADDR:PORT, upstream=URL, upstream=@NAME, respond=TEXT, reject,
    /// drop or pass; required
    ///
    /// direct              relay it to its original destination
    /// upstream=ADDR:PORT  relay it to this address
    /// upstream=URL        relay it by way of a proxy (TCP): socks5://, http:// (CONNECT), proxy-v1://, proxy-v2:// or tcp://HOST:PORT
    /// respond=TEXT        answer it: an HTTP request with HTTP, a datagram with TEXT, anything else with TEXT on a line
    /// reject              refuse it (RST, or ICMP port unreachable)
    /// drop                discard its packets without an answer
    /// pass                leave it alone
    #[cfg_attr(feature = "flags", arg(long, value_parser = DraftAction::parse, verbatim_doc_comment))]
    #[serde(with = "values::optional_text", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "values::schema::<DraftAction>")]
    pub(crate) action: Option<DraftAction>,
    /// Whose address the upstream sees (direct and upstream=)
    #[cfg_attr(feature = "flags", arg(long, default_value = "host"))]
    pub(crate) source: Source,
    /// By which way what is relayed leaves
    #[cfg_attr(feature = "flags", command(flatten))]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) egress: RuleEgress,
    /// Which upstream socket a client's UDP datagrams leave by (direct; with upstream= always per destination)
    #[cfg_attr(feature = "flags", arg(long, default_value = "endpoint-independent"))]
    pub(crate) nat: Nat,
    /// When a TCP client's connection is accepted (direct and upstream=)
    #[cfg_attr(feature = "flags", arg(long, default_value = "auto"))]
    pub(crate) accept: Accept,
    /// Time limits of its TCP connections, in place of the general ones
    #[cfg_attr(feature = "flags", arg(skip))]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) timeouts: RuleTimeouts,
    /// How much of it there may be at once
    #[cfg_attr(feature = "flags", arg(skip))]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) limits: RuleLimits,
}

impl DraftRule {
    /// Its name, or the one that it gets for its place.
    pub(super) fn name_at(&self, index: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("rule-{index}"))
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// [`Scope`] as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DraftScope {
    /// Flows that arrive by the named interfaces for addresses that are not this host's
    Forwarded,
    /// Flows that processes of this host open
    Outbound,
    /// Flows to this host's own addresses, before the application's socket sees them
    Inbound,
}

impl From<DraftScope> for Scope {
    fn from(scope: DraftScope) -> Self {
        match scope {
            DraftScope::Forwarded => Self::Forwarded,
            DraftScope::Outbound => Self::Outbound,
            DraftScope::Inbound => Self::Inbound,
        }
    }
}

impl From<Scope> for DraftScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Forwarded => Self::Forwarded,
            Scope::Outbound => Self::Outbound,
            Scope::Inbound => Self::Inbound,
        }
    }
}

impl<T: Text> From<Vec<Item<T>>> for Members<T> {
    fn from(list: Vec<Item<T>>) -> Self {
        Self::Listed(list)
    }
}

/// A set's name as rules write it.
pub(super) fn by_name<T>(name: &Arc<str>) -> Item<T> {
    Item::Set(Arc::clone(name))
}
