//! Nested lists, and what stands packed in their place, to typed host buffers and back, in JSON and msgpack alike.

use std::fmt;

use bytes::Bytes;
use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeSeq, Serializer};

use super::packed::{Number, Packed};
use crate::tensor::{DType, HostTensor, TensorSpec};

/// Collects one declared input while its nested lists are parsed.
///
/// What does not fit is remembered, not raised: the parser goes on, so that one bad item of many is
/// reported beside its neighbours' results.
pub(super) struct TensorBuilder<'a> {
    spec: &'a TensorSpec,
    /// Sizes seen so far, one a declared dimension.
    shape: Vec<Option<usize>>,
    data: Vec<u8>,
    misfit: Option<String>,
}

impl<'a> TensorBuilder<'a> {
    /// An empty tensor for `spec`.
    pub(super) fn new(spec: &'a TensorSpec) -> Self {
        Self { spec, shape: vec![None; spec.shape.len()], data: Vec::new(), misfit: None }
    }

    /// The tensor, or why what came does not fit the declaration.
    pub(super) fn finish(mut self) -> Result<HostTensor, String> {
        let shape: Vec<usize> = self.shape.iter().map(|dim| dim.unwrap_or(0)).collect();
        if let Some(misfit) = self.misfit.take() {
            return Err(format!("input \"{}\": expected {}, got {misfit}", self.spec.name, self.expected()));
        }
        let fits = shape.iter().zip(&self.spec.shape).all(|(&got, &want)| match usize::try_from(want) {
            Ok(want) => got == want,
            Err(_) => got > 0,
        });
        if !fits {
            return Err(format!(
                "input \"{}\": expected {}, got shape {shape:?}",
                self.spec.name,
                self.expected()
            ));
        }
        Ok(HostTensor { dtype: self.spec.dtype, shape, data: Bytes::from(self.data) })
    }

    /// Room for the declared elements, once the first is there: an empty item must not cost a full one.
    fn reserve(&mut self) {
        if self.data.is_empty() {
            let elements: usize =
                self.spec.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(1)).product();
            // The cap keeps a huge declaration from costing every small request.
            self.data.reserve((elements * self.spec.dtype.size()).min(1 << 20));
        }
    }

    fn expected(&self) -> String {
        format!("{} of shape {:?}", self.spec.dtype, self.spec.shape)
    }

    fn misfit(&mut self, what: impl FnOnce() -> String) {
        if self.misfit.is_none() {
            self.misfit = Some(what());
        }
    }

    fn end_of_list(&mut self, depth: usize, length: usize) {
        match self.shape[depth] {
            None => self.shape[depth] = Some(length),
            Some(first) if first != length => self.misfit(|| {
                format!("a ragged list: rows of {first} and of {length} elements in dimension {depth}")
            }),
            Some(_) => {}
        }
    }

    fn float(&mut self, value: f64) {
        match self.spec.dtype {
            DType::F32 => {
                let narrow = value as f32;
                if narrow.is_infinite() && value.is_finite() {
                    self.misfit(|| format!("{value:e}, which is out of the range of f32"));
                }
                self.data.extend_from_slice(&narrow.to_ne_bytes());
            }
            DType::F64 => self.data.extend_from_slice(&value.to_ne_bytes()),
            DType::F16 => {
                let narrow = f16::from_f64(value);
                if narrow.is_infinite() && value.is_finite() {
                    self.misfit(|| format!("{value:e}, which is out of the range of f16"));
                }
                self.data.extend_from_slice(&narrow.to_ne_bytes());
            }
            DType::BF16 => {
                let narrow = bf16::from_f64(value);
                if narrow.is_infinite() && value.is_finite() {
                    self.misfit(|| format!("{value:e}, which is out of the range of bf16"));
                }
                self.data.extend_from_slice(&narrow.to_ne_bytes());
            }
            DType::I64 | DType::I32 | DType::Bool => self.misfit(|| format!("the number {value:?}")),
        }
    }

    fn integer(&mut self, value: i128) {
        match self.spec.dtype {
            DType::I64 => match i64::try_from(value) {
                Ok(value) => self.data.extend_from_slice(&value.to_ne_bytes()),
                Err(_) => self.misfit(|| format!("{value}, which is out of the range of i64")),
            },
            DType::I32 => match i32::try_from(value) {
                Ok(value) => self.data.extend_from_slice(&value.to_ne_bytes()),
                Err(_) => self.misfit(|| format!("{value}, which is out of the range of i32")),
            },
            DType::Bool => self.misfit(|| format!("the number {value}")),
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => self.float(value as f64),
        }
    }

    /// A tensor that stands, with a type of its own, where the lists of dimension `depth` might.
    pub(super) fn packed(&mut self, packed: Result<Packed, String>, depth: usize) {
        let packed = match packed {
            Ok(packed) => packed,
            Err(what) => return self.misfit(|| what),
        };
        if depth + packed.shape.len() != self.spec.shape.len() {
            return self.misfit(|| match depth {
                0 => format!("shape {:?}", packed.shape),
                _ => format!("shape {:?} in dimension {depth}", packed.shape),
            });
        }
        for (place, &length) in packed.shape.iter().enumerate() {
            self.end_of_list(depth + place, length);
        }
        if packed.is_memory_of(self.spec.dtype.name()) {
            self.data.extend_from_slice(&packed.data);
            return;
        }
        for number in packed.numbers() {
            match number {
                Number::Float(value) => self.float(value),
                Number::Integer(value) => self.integer(value),
                Number::Bool(value) => self.boolean(value),
            }
        }
    }

    fn boolean(&mut self, value: bool) {
        match self.spec.dtype {
            DType::Bool => self.data.push(u8::from(value)),
            _ => self.misfit(|| value.to_string()),
        }
    }

    /// Elements as they lie in memory, row-major: what numpy's `tobytes` gives. At most one dimension
    /// may be -1, for its size is what the others leave.
    fn raw(&mut self, bytes: &[u8]) {
        let fixed: usize = self.spec.shape.iter().filter_map(|&dim| usize::try_from(dim).ok()).product();
        let open = self.spec.shape.iter().filter(|&&dim| dim < 0).count();
        let unit = fixed * self.spec.dtype.size();
        let whole = open <= 1 && unit > 0 && bytes.len().is_multiple_of(unit);
        if !whole || (open == 0 && bytes.len() != unit) {
            return self.misfit(|| format!("{} raw bytes", bytes.len()));
        }
        if self.spec.dtype == DType::Bool && bytes.iter().any(|&byte| byte > 1) {
            return self.misfit(|| "raw bytes other than 0 and 1".to_owned());
        }
        for (size, &declared) in self.shape.iter_mut().zip(&self.spec.shape) {
            *size = Some(usize::try_from(declared).unwrap_or(bytes.len() / unit));
        }
        self.data.extend_from_slice(bytes);
    }
}

/// Parses what stands at one depth of nesting into a builder.
pub(super) struct Level<'b, 'a> {
    builder: &'b mut TensorBuilder<'a>,
    depth: usize,
}

impl<'b, 'a> Level<'b, 'a> {
    /// The whole tensor.
    pub(super) fn outermost(builder: &'b mut TensorBuilder<'a>) -> Self {
        Self { builder, depth: 0 }
    }

    /// Whether a number may stand here; a misfit is noted when not.
    fn innermost(&mut self) -> bool {
        let right = self.depth == self.builder.spec.shape.len();
        if right {
            self.builder.reserve();
        } else {
            let depth = self.depth;
            self.builder.misfit(|| match depth {
                0 => "a single value".to_owned(),
                _ => format!("{depth} dimensions"),
            });
        }
        right
    }
}

impl<'de> DeserializeSeed<'de> for Level<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nested lists of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let (builder, depth) = (self.builder, self.depth);
        if depth == builder.spec.shape.len() {
            builder.misfit(|| format!("more than {depth} dimensions"));
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        let mut length = 0;
        while seq.next_element_seed(Level { builder: &mut *builder, depth: depth + 1 })?.is_some() {
            length += 1;
        }
        builder.end_of_list(depth, length);
        Ok(())
    }

    fn visit_f64<E>(mut self, value: f64) -> Result<(), E> {
        if self.innermost() {
            self.builder.float(value);
        }
        Ok(())
    }

    fn visit_i64<E>(mut self, value: i64) -> Result<(), E> {
        if self.innermost() {
            self.builder.integer(i128::from(value));
        }
        Ok(())
    }

    fn visit_u64<E>(mut self, value: u64) -> Result<(), E> {
        if self.innermost() {
            self.builder.integer(i128::from(value));
        }
        Ok(())
    }

    fn visit_bool<E>(mut self, value: bool) -> Result<(), E> {
        if self.innermost() {
            self.builder.boolean(value);
        }
        Ok(())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<(), E> {
        match self.depth {
            0 => self.builder.raw(value),
            depth => self.builder.misfit(|| format!("raw bytes in dimension {depth}")),
        }
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        self.builder.misfit(|| "a string".to_owned());
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.builder.misfit(|| "null".to_owned());
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let packed = Packed::read(None, map)?;
        self.builder.packed(packed, self.depth);
        Ok(())
    }
}

/// Writes a tensor as nested lists; a scalar as its value. Not-a-number and infinities become `null` in
/// JSON, which has no word for them, and stay what they are in msgpack.
pub struct Nested<'a>(pub &'a HostTensor);

impl Serialize for Nested<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Slice { dtype: self.0.dtype, shape: &self.0.shape, data: &self.0.data }.serialize(serializer)
    }
}

struct Slice<'a> {
    dtype: DType,
    shape: &'a [usize],
    data: &'a [u8],
}

impl Serialize for Slice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.shape {
            [] => match self.dtype {
                DType::F32 => serializer.serialize_f32(f32::from_ne_bytes(element(self.data))),
                DType::F64 => serializer.serialize_f64(f64::from_ne_bytes(element(self.data))),
                DType::F16 => serializer.serialize_f32(f16::from_ne_bytes(element(self.data)).to_f32()),
                DType::BF16 => serializer.serialize_f32(bf16::from_ne_bytes(element(self.data)).to_f32()),
                DType::I64 => serializer.serialize_i64(i64::from_ne_bytes(element(self.data))),
                DType::I32 => serializer.serialize_i32(i32::from_ne_bytes(element(self.data))),
                DType::Bool => serializer.serialize_bool(element::<1>(self.data)[0] != 0),
            },
            &[length, ref inner @ ..] => {
                let stride = inner.iter().product::<usize>() * self.dtype.size();
                let mut seq = serializer.serialize_seq(Some(length))?;
                for index in 0..length {
                    let data = self.data.get(index * stride..(index + 1) * stride).unwrap_or_default();
                    seq.serialize_element(&Slice { dtype: self.dtype, shape: inner, data })?;
                }
                seq.end()
            }
        }
    }
}

fn element<const N: usize>(data: &[u8]) -> [u8; N] {
    data.first_chunk().copied().unwrap_or([0; N])
}
