//! Values as they are written, in flags and file alike; every error says what would be right.

use std::{
    fmt,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Action;
use crate::{
    host::{BadInstanceName, InstanceName},
    mark::{Bits, Mark},
};

/// Longest time that may be written, which no clock overflows by.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A value that is written as text.
pub(crate) trait Text: Sized {
    /// What to write; it follows the word "write".
    const WRITE: &'static str;
    /// The same as a regular expression, for the JSON schema.
    const PATTERN: &'static str;
    /// Whether a file may also have it as a number.
    const NUMBER: bool = false;

    /// # Errors
    /// Says what would be right.
    fn parse(text: &str) -> Result<Self, String>;

    /// What [`Self::parse`] makes this value of.
    fn written(&self) -> String;
}

impl Text for IpNet {
    const WRITE: &'static str = "an address or a prefix, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32";
    const PATTERN: &'static str = "[0-9a-fA-F.:]+(/[0-9]+)?";

    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(addr.into());
        }
        let net: Self = text.parse().map_err(|_| write::<Self>())?;
        if net != net.trunc() {
            return Err(format!("the address has bits beyond its prefix; did you mean {}?", net.trunc()));
        }
        Ok(net)
    }

    fn written(&self) -> String {
        self.to_string()
    }
}

impl Text for RangeInclusive<u16> {
    const WRITE: &'static str = "a port from 1 to 65535 or a range, such as 443 or 8000-8999";
    const PATTERN: &'static str = "[0-9]+(-[0-9]+)?";
    const NUMBER: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        let port = |text: &str| match text.trim().parse() {
            Ok(0) | Err(_) => Err(write::<Self>()),
            Ok(port) => Ok(port),
        };
        let Some((first, last)) = text.split_once('-') else { return port(text).map(|port| port..=port) };
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!("the range is empty; did you mean {last}-{first}?"));
        }
        Ok(first..=last)
    }

    fn written(&self) -> String {
        if self.start() == self.end() {
            self.start().to_string()
        } else {
            format!("{}-{}", self.start(), self.end())
        }
    }
}

impl Text for Duration {
    const WRITE: &'static str = "a time with its unit, such as 500ms, 10s or 2h, of at most 365d";
    const PATTERN: &'static str = "([0-9]+ *[a-zA-Z]+ *)+";

    fn parse(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(time) if !time.is_zero() && time <= LONGEST => Ok(time),
            _ => Err(write::<Self>()),
        }
    }

    fn written(&self) -> String {
        humantime::format_duration(*self).to_string().replace(' ', "")
    }
}

impl Text for Mark {
    const WRITE: &'static str = "VALUE/MASK, such as 0x20000000/0x30000000";
    const PATTERN: &'static str = "(0x[0-9a-fA-F]+|[0-9]+)/(0x[0-9a-fA-F]+|[0-9]+)";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn written(&self) -> String {
        self.to_string()
    }
}

impl Text for InstanceName {
    const WRITE: &'static str = "a name, such as gateway";
    const PATTERN: &'static str = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: BadInstanceName| error.to_string())
    }

    fn written(&self) -> String {
        self.to_string()
    }
}

impl Text for SocketAddr {
    const WRITE: &'static str = "ADDR:PORT, such as 127.0.0.1:9464 or [::1]:9464";
    const PATTERN: &'static str = "[0-9a-fA-F.:]+:[0-9]+|\\[[0-9a-fA-F.:]+\\]:[0-9]+";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| write::<Self>())
    }

    fn written(&self) -> String {
        self.to_string()
    }
}

impl Text for Bits {
    const WRITE: &'static str = "VALUE/MASK, such as 0x1/0xff";
    const PATTERN: &'static str = "(0x[0-9a-fA-F]+|[0-9]+)/(0x[0-9a-fA-F]+|[0-9]+)";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn written(&self) -> String {
        self.to_string()
    }
}

impl Text for IpAddr {
    const WRITE: &'static str = "an address, such as 192.0.2.7 or 2001:db8::7";
    const PATTERN: &'static str = "[0-9a-fA-F.:]+";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| write::<Self>())
    }

    fn written(&self) -> String {
        self.to_string()
    }
}

impl Text for Action {
    const WRITE: &'static str =
        "direct, upstream=ADDR:PORT, upstream=URL, upstream=@NAME, respond=TEXT, reject, drop or pass";
    const PATTERN: &'static str = "direct|reject|drop|pass|upstream=.+:[0-9]+/?|respond=[\\s\\S]*";

    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("upstream", upstream)) => upstream.parse().map(Self::Upstream),
            Some(("respond", answer)) => Ok(Self::Respond(answer.into())),
            _ => match text {
                "direct" => Ok(Self::Direct),
                "reject" => Ok(Self::Reject),
                "drop" => Ok(Self::Drop),
                "pass" => Ok(Self::Pass),
                _ => Err(write::<Self>()),
            },
        }
    }

    fn written(&self) -> String {
        match self {
            Self::Respond(answer) => format!("respond={answer}"),
            other => other.to_string(),
        }
    }
}

fn write<T: Text>() -> String {
    format!("write {}", T::WRITE)
}

/// One entry of a list: a value, or all members of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item<T> {
    /// This value.
    One(T),
    /// `@NAME`
    Set(Arc<str>),
}

impl<T: Text> Text for Item<T> {
    const WRITE: &'static str = T::WRITE;
    const PATTERN: &'static str = T::PATTERN;
    const NUMBER: bool = T::NUMBER;

    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@') {
            Some(name) => Ok(Self::Set(name.into())),
            None => T::parse(text).map(Self::One),
        }
    }

    fn written(&self) -> String {
        match self {
            Self::One(value) => value.written(),
            Self::Set(name) => format!("@{name}"),
        }
    }
}

impl<T: Text> Serialize for Item<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        text::serialize(self, serializer)
    }
}

impl<'de, T: Text> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer)
    }
}

impl<T: Text> JsonSchema for Item<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Item".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let pattern = format!("^(@.+|{})$", T::PATTERN);
        if T::NUMBER {
            json_schema!({ "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": 65535 },
                { "type": "string", "pattern": pattern },
            ] })
        } else {
            json_schema!({ "type": "string", "pattern": pattern })
        }
    }
}

/// The JSON schema of a value that is written as text.
pub(super) fn schema<T: Text>(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": format!("^({})$", T::PATTERN) })
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: Text> de::Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WRITE)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::parse(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        if T::NUMBER {
            self.visit_str(&number.to_string())
        } else {
            Err(E::invalid_type(de::Unexpected::Signed(number), &self))
        }
    }
}

/// For serde: a list that says something. That nothing is listed means any value, which `[]` does not look like.
pub(super) fn some<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.is_empty() {
        return Err(de::Error::custom(
            "the list is empty, but the key given: leave the key out for any, or list some",
        ));
    }
    Ok(list)
}

/// For serde: a number that is not zero.
pub(super) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroUsize>, D::Error> {
    struct Positive;

    impl de::Visitor<'_> for Positive {
        type Value = NonZeroUsize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number, from 1 on")
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<NonZeroUsize, E> {
            let positive = usize::try_from(number).ok().and_then(NonZeroUsize::new);
            positive.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
        }
    }

    deserializer.deserialize_any(Positive).map(Some)
}

/// For serde: a value as its text.
pub(super) mod text {
    use super::{Deserializer, PhantomData, Serializer, Text, TextVisitor};

    pub(in crate::config) fn serialize<T: Text, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = value.written();
        match text.parse() {
            Ok(number) if T::NUMBER => serializer.serialize_u16(number),
            _ => serializer.serialize_str(&text),
        }
    }

    pub(in crate::config) fn deserialize<'de, T: Text, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        deserializer.deserialize_any(TextVisitor(PhantomData))
    }
}

/// For serde: the same for a value that may be absent.
pub(super) mod optional_text {
    use super::{Deserializer, Serializer, Text, text};

    pub(in crate::config) fn serialize<T: Text, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => text::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(in crate::config) fn deserialize<'de, T: Text, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        text::deserialize(deserializer).map(Some)
    }
}
