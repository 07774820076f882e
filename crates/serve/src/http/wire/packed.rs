//! Tensors as they lie in memory: `{"dtype": "f32", "shape": [2, 3], "data": <bytes>}` in msgpack, where nested lists
//! of numbers might stand. The bytes are row-major and little-endian, and of any type that arrays usually have: they
//! are converted to the declared one as numbers are.

use std::fmt;

use half::{bf16, f16};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A number of a packed tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Float(f64),
    Integer(i128),
    Bool(bool),
}

/// A tensor that came as bytes.
#[derive(Debug, PartialEq)]
pub(super) struct Packed {
    kind: Kind,
    pub(super) shape: Vec<usize>,
    /// As many bytes as the shape says.
    pub(super) data: Vec<u8>,
}

/// How the bytes of one element are read.
type Read = fn(&[u8]) -> Number;

#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    size: usize,
    read: Read,
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// The first bytes, of which there are enough.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

const KINDS: [Kind; 13] = [
    Kind { name: "f32", size: 4, read: |x| Number::Float(f64::from(f32::from_le_bytes(first(x)))) },
    Kind { name: "f64", size: 8, read: |x| Number::Float(f64::from_le_bytes(first(x))) },
    Kind { name: "f16", size: 2, read: |x| Number::Float(f16::from_le_bytes(first(x)).to_f64()) },
    Kind { name: "bf16", size: 2, read: |x| Number::Float(bf16::from_le_bytes(first(x)).to_f64()) },
    Kind { name: "i64", size: 8, read: |x| Number::Integer(i64::from_le_bytes(first(x)).into()) },
    Kind { name: "i32", size: 4, read: |x| Number::Integer(i32::from_le_bytes(first(x)).into()) },
    Kind { name: "i16", size: 2, read: |x| Number::Integer(i16::from_le_bytes(first(x)).into()) },
    Kind { name: "i8", size: 1, read: |x| Number::Integer(i8::from_le_bytes(first(x)).into()) },
    Kind { name: "u64", size: 8, read: |x| Number::Integer(u64::from_le_bytes(first(x)).into()) },
    Kind { name: "u32", size: 4, read: |x| Number::Integer(u32::from_le_bytes(first(x)).into()) },
    Kind { name: "u16", size: 2, read: |x| Number::Integer(u16::from_le_bytes(first(x)).into()) },
    Kind { name: "u8", size: 1, read: |x| Number::Integer(first::<1>(x)[0].into()) },
    Kind { name: "bool", size: 1, read: |x| Number::Bool(first::<1>(x)[0] != 0) },
];

impl Packed {
    /// The names of its fields.
    pub(super) const FIELDS: [&str; 3] = ["dtype", "shape", "data"];

    /// Reads one to its end, of which the first key may have been read already; in words what it is where it is
    /// none.
    pub(super) fn read<'de, A: MapAccess<'de>>(
        first: Option<String>,
        mut map: A,
    ) -> Result<Result<Self, String>, A::Error> {
        let (mut kind, mut shape, mut data, mut none) = (None, None, None, None);
        let mut key = match first {
            Some(first) => Some(first),
            None => map.next_key::<String>()?,
        };
        while let Some(name) = key {
            match name.as_str() {
                "dtype" => kind = Some(map.next_value::<Part>()?),
                "shape" => shape = Some(map.next_value::<Part>()?),
                "data" => data = Some(map.next_value::<Part>()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    none = Some("an object".to_owned());
                }
            }
            key = map.next_key()?;
        }
        Ok(none.map_or_else(|| Self::of(kind, shape, data), Err))
    }

    fn of(kind: Option<Part>, shape: Option<Part>, data: Option<Part>) -> Result<Self, String> {
        let (Some(kind), Some(shape), Some(data)) = (kind, shape, data) else {
            return Err("an object".to_owned());
        };
        let Part::Text(name) = kind else { return Err("a tensor whose dtype is no text".to_owned()) };
        let Some(kind) = KINDS.into_iter().find(|kind| kind.name == name) else {
            return Err(format!("a tensor of dtype {:?}", name.chars().take(20).collect::<String>()));
        };
        let Part::Sizes(shape) = shape else {
            return Err("a tensor whose shape is no list of sizes".to_owned());
        };
        let Part::Bytes(data) = data else { return Err("a tensor whose data is no bytes".to_owned()) };
        let length = shape.iter().try_fold(kind.size, |length, &size| length.checked_mul(size));
        if length != Some(data.len()) {
            return Err(format!("{} bytes for {} of shape {shape:?}", data.len(), kind.name));
        }
        if kind.name == "bool" && data.iter().any(|&byte| byte > 1) {
            return Err("bytes other than 0 and 1 for bool".to_owned());
        }
        Ok(Self { kind, shape, data })
    }

    /// Whether its bytes are what memory holds of elements of this type.
    pub(super) fn is_memory_of(&self, dtype: &str) -> bool {
        self.kind.name == dtype && (cfg!(target_endian = "little") || self.kind.size == 1)
    }

    /// Its elements, row-major.
    pub(super) fn numbers(&self) -> impl Iterator<Item = Number> {
        self.data.chunks_exact(self.kind.size).map(self.kind.read)
    }
}

/// What a field of it holds, whatever that is.
enum Part {
    Text(String),
    Size(usize),
    Sizes(Vec<usize>),
    Bytes(Vec<u8>),
    Other,
}

struct PartVisitor;

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PartVisitor)
    }
}

impl<'de> Visitor<'de> for PartVisitor {
    type Value = Part;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a part of a tensor")
    }

    fn visit_str<E>(self, value: &str) -> Result<Part, E> {
        Ok(Part::Text(value.to_owned()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Part, E> {
        Ok(Part::Bytes(value.to_vec()))
    }

    fn visit_byte_buf<E>(self, value: Vec<u8>) -> Result<Part, E> {
        Ok(Part::Bytes(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Part, E> {
        Ok(usize::try_from(value).map_or(Part::Other, Part::Size))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Part, E> {
        Ok(usize::try_from(value).map_or(Part::Other, Part::Size))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Part, E> {
        Ok(Part::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Part, E> {
        Ok(Part::Other)
    }

    fn visit_unit<E>(self) -> Result<Part, E> {
        Ok(Part::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Part, A::Error> {
        let mut sizes = Some(Vec::new());
        while let Some(part) = seq.next_element::<Part>()? {
            match (part, &mut sizes) {
                (Part::Size(size), Some(sizes)) => sizes.push(size),
                _ => sizes = None,
            }
        }
        Ok(sizes.map_or(Part::Other, Part::Sizes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Part, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Part::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(kind: &str, shape: &[usize], data: &[u8]) -> Result<Packed, String> {
        let parts = (Part::Text(kind.to_owned()), Part::Sizes(shape.to_vec()), Part::Bytes(data.to_vec()));
        Packed::of(Some(parts.0), Some(parts.1), Some(parts.2))
    }

    #[test]
    fn each_type_is_read_as_its_numbers() {
        let read = |kind: &str, data: &[u8]| -> Vec<Number> {
            let shape = [data.len() / KINDS.iter().find(|known| known.name == kind).unwrap().size];
            packed(kind, &shape, data).unwrap().numbers().collect()
        };
        assert_eq!(read("f32", &1.5f32.to_le_bytes()), [Number::Float(1.5)]);
        assert_eq!(
            read("f64", &[1.5f64.to_le_bytes(), (-2.0f64).to_le_bytes()].concat()),
            [Number::Float(1.5), Number::Float(-2.0)]
        );
        assert_eq!(read("f16", &f16::from_f32(1.5).to_le_bytes()), [Number::Float(1.5)]);
        assert_eq!(read("bf16", &bf16::from_f32(1.5).to_le_bytes()), [Number::Float(1.5)]);
        for kind in ["i64", "i32", "i16", "i8"] {
            let size = KINDS.iter().find(|known| known.name == kind).unwrap().size;
            assert_eq!(read(kind, &(-3i64).to_le_bytes()[..size]), [Number::Integer(-3)], "{kind}");
        }
        for kind in ["u64", "u32", "u16", "u8"] {
            let size = KINDS.iter().find(|known| known.name == kind).unwrap().size;
            let most = (1i128 << (8 * size)) - 1;
            assert_eq!(read(kind, &u64::MAX.to_le_bytes()[..size]), [Number::Integer(most)], "{kind}");
        }
        assert_eq!(read("bool", &[0, 1]), [Number::Bool(false), Number::Bool(true)]);
    }

    #[test]
    fn what_is_no_tensor_says_why() {
        assert_eq!(packed("f32", &[2], &[0; 7]).unwrap_err(), "7 bytes for f32 of shape [2]");
        assert_eq!(packed("f8", &[2], &[0; 2]).unwrap_err(), "a tensor of dtype \"f8\"");
        assert_eq!(packed("bool", &[2], &[0, 2]).unwrap_err(), "bytes other than 0 and 1 for bool");
        assert!(packed("f64", &[usize::MAX, 2], &[]).is_err(), "and so many bytes there cannot be");
        assert_eq!(Packed::of(None, None, None).unwrap_err(), "an object");
    }
}
