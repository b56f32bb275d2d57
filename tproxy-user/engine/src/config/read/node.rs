//! A document as serde reads it.

use std::collections::HashSet;

use serde::{
    Deserializer,
    de::{
        DeserializeSeed, Error as _, IntoDeserializer as _, MapAccess, SeqAccess, Unexpected, Visitor,
        value::StrDeserializer,
    },
    forward_to_deserialize_any,
};
use toml::{
    Spanned,
    de::{DeInteger, DeString, DeValue},
};

use super::{
    document::Value,
    wrong::{EntryId, Wrong},
};
use crate::config::{
    path::PathStep,
    remedy::{Fault, Instead},
};

/// A value in it, without the entries that are left out.
#[derive(Clone, Copy)]
pub(super) struct Node<'a, 'i> {
    pub(super) value: &'a Value<'i>,
    pub(super) left_out: &'a HashSet<EntryId>,
}

impl<'a, 'i> Node<'a, 'i> {
    fn reads<'de, V: Visitor<'de>>(self, visitor: V, wanted: Instead) -> Result<V::Value, Wrong> {
        self.deserialize_any(visitor).map_err(|wrong| wrong.wanting(wanted))
    }

    /// An entry, unless it is left out.
    fn entry(self, value: &'a Value<'i>) -> Option<Self> {
        (!self.left_out.contains(&EntryId::of(value))).then_some(Self { value, ..self })
    }

    fn read_entry<'de, T: DeserializeSeed<'de>>(self, step: PathStep, seed: T) -> Result<T::Value, Wrong> {
        seed.deserialize(self).map_err(|wrong| wrong.within(step, self.value))
    }
}

impl<'de> Deserializer<'de> for Node<'_, '_> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let read = match self.value.get_ref() {
            DeValue::String(text) => visitor.visit_str(text),
            DeValue::Integer(number) => integer(number, visitor),
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => visitor.visit_f64(number),
                Err(_) => Err(Wrong::invalid_type(Unexpected::Other("a number"), &visitor)),
            },
            DeValue::Boolean(truth) => visitor.visit_bool(*truth),
            DeValue::Datetime(_) => Err(Wrong::invalid_type(Unexpected::Other("a date"), &visitor)),
            DeValue::Array(array) => {
                let entries = array.iter().enumerate();
                let entries = entries.filter_map(|(index, value)| Some((index, self.entry(value)?)));
                visitor.visit_seq(Entries(entries))
            }
            DeValue::Table(table) => {
                let entries = table.iter().filter_map(|(key, value)| Some((key, self.entry(value)?)));
                visitor.visit_map(Pairs { entries, begun: None })
            }
        };
        read.map_err(|wrong| wrong.at(self.value.span()))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    /// Those that a file has are words.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let read = match self.value.get_ref() {
            DeValue::String(word) => {
                let word: StrDeserializer<'_, Wrong> = (**word).into_deserializer();
                visitor.visit_enum(word)
            }
            _ => Err(Wrong::new(Fault::Unlike(Instead::Text))),
        };
        read.map_err(|wrong| wrong.at(self.value.span()))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.reads(visitor, Instead::Truth)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.reads(visitor, Instead::Number { most: Some(u32::MAX) })
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.reads(visitor, Instead::Number { most: None })
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.reads(visitor, Instead::Text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.reads(visitor, Instead::Text)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.reads(visitor, Instead::List)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.reads(visitor, Instead::Table)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.reads(visitor, Instead::Table)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
        ignored_any
    }
}

fn integer<'de, V: Visitor<'de>>(number: &DeInteger<'_>, visitor: V) -> Result<V::Value, Wrong> {
    match i64::from_str_radix(number.as_str(), number.radix()) {
        Ok(number) => visitor.visit_i64(number),
        // Nothing is as large.
        Err(_) => Err(Wrong::invalid_type(Unexpected::Other("a number"), &visitor)),
    }
}

struct Entries<I>(I);

impl<'de, 'a, 'i: 'a, I: Iterator<Item = (usize, Node<'a, 'i>)>> SeqAccess<'de> for Entries<I> {
    type Error = Wrong;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Wrong> {
        let Some((index, entry)) = self.0.next() else { return Ok(None) };
        entry.read_entry(PathStep::Index(index), seed).map(Some)
    }
}

struct Pairs<'a, 'i, I> {
    entries: I,
    /// The entry whose key was read.
    begun: Option<(&'a Spanned<DeString<'i>>, Node<'a, 'i>)>,
}

fn step(key: &Spanned<DeString<'_>>) -> PathStep {
    PathStep::Key((**key.get_ref()).to_owned())
}

impl<'de, 'a, 'i, I: Iterator<Item = (&'a Spanned<DeString<'i>>, Node<'a, 'i>)>> MapAccess<'de>
    for Pairs<'a, 'i, I>
{
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Wrong> {
        let Some((key, entry)) = self.entries.next() else { return Ok(None) };
        self.begun = Some((key, entry));
        let name: StrDeserializer<'_, Wrong> = (**key.get_ref()).into_deserializer();
        let read = seed.deserialize(name);
        read.map(Some).map_err(|wrong| wrong.at(key.span()).within(step(key), entry.value))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Wrong> {
        let (key, entry) =
            self.begun.take().ok_or_else(|| Wrong::custom("there is no key before the value"))?;
        entry.read_entry(step(key), seed)
    }
}
