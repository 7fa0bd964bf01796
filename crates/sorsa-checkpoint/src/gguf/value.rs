//! Metadata of a GGUF file: typed values and arrays of them, little-endian.
//!
//! Source: the [specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), version 3.

/// One value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// 8 bits, unsigned.
    U8(u8),
    /// 8 bits, signed.
    I8(i8),
    /// 16 bits, unsigned.
    U16(u16),
    /// 16 bits, signed.
    I16(i16),
    /// 32 bits, unsigned: what llama.cpp reads sizes and token ids as.
    U32(u32),
    /// 32 bits, signed.
    I32(i32),
    /// 32 bits, floating point.
    F32(f32),
    /// One byte, 0 or 1.
    Bool(bool),
    /// UTF-8 with its length before it.
    String(String),
    /// Values of one type.
    Array(Array),
    /// 64 bits, unsigned.
    U64(u64),
    /// 64 bits, signed.
    I64(i64),
    /// 64 bits, floating point.
    F64(f64),
}

/// Values of one type, unboxed: the arrays of a vocabulary are long.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// 8 bits, unsigned.
    U8(Vec<u8>),
    /// 8 bits, signed.
    I8(Vec<i8>),
    /// 16 bits, unsigned.
    U16(Vec<u16>),
    /// 16 bits, signed.
    I16(Vec<i16>),
    /// 32 bits, unsigned.
    U32(Vec<u32>),
    /// 32 bits, signed.
    I32(Vec<i32>),
    /// 32 bits, floating point.
    F32(Vec<f32>),
    /// One byte each, 0 or 1.
    Bool(Vec<bool>),
    /// UTF-8, each with its length before it.
    String(Vec<String>),
    /// Arrays, each with its own type and length.
    Array(Vec<Array>),
    /// 64 bits, unsigned.
    U64(Vec<u64>),
    /// 64 bits, signed.
    I64(Vec<i64>),
    /// 64 bits, floating point.
    F64(Vec<f64>),
}

/// The number of an array's type, which stands for that type alone too.
pub(super) const ARRAY: u32 = 9;

macro_rules! numbers {
    ($($variant:ident = $id:literal, $type:ty);*) => {
        impl Value {
            /// The number of the type in the file.
            pub(super) fn id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Bool(_) => 7,
                    Self::String(_) => 8,
                    Self::Array(_) => ARRAY,
                }
            }

            /// Appends the value, without its type.
            pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(value) => bytes.extend_from_slice(&value.to_le_bytes()),)*
                    Self::Bool(value) => bytes.push(u8::from(*value)),
                    Self::String(text) => encode_string(text, bytes),
                    Self::Array(array) => array.encode(bytes),
                }
            }
        }

        impl Array {
            /// The number of the type of its elements in the file.
            fn id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Bool(_) => 7,
                    Self::String(_) => 8,
                    Self::Array(_) => ARRAY,
                }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(values) => values.len(),)*
                    Self::Bool(values) => values.len(),
                    Self::String(values) => values.len(),
                    Self::Array(values) => values.len(),
                }
            }

            /// Whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            fn encode(&self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.id().to_le_bytes());
                bytes.extend_from_slice(&(self.len() as u64).to_le_bytes());
                match self {
                    $(Self::$variant(values) => values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes())),)*
                    Self::Bool(values) => bytes.extend(values.iter().map(|value| u8::from(*value))),
                    Self::String(values) => values.iter().for_each(|text| encode_string(text, bytes)),
                    Self::Array(values) => values.iter().for_each(|array| array.encode(bytes)),
                }
            }
        }

        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        }

        impl From<Vec<$type>> for Value {
            fn from(values: Vec<$type>) -> Self {
                Self::Array(Array::$variant(values))
            }
        })*
    };
}

numbers! {
    U8 = 0, u8; I8 = 1, i8; U16 = 2, u16; I16 = 3, i16; U32 = 4, u32; I32 = 5, i32; F32 = 6, f32;
    U64 = 10, u64; I64 = 11, i64; F64 = 12, f64
}

/// Appends the length and the bytes of a text.
pub(super) fn encode_string(text: &str, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<Vec<String>> for Value {
    fn from(texts: Vec<String>) -> Self {
        Self::Array(Array::String(texts))
    }
}

impl Value {
    /// The text, if the value is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if the value is an unsigned one.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            _ => None,
        }
    }
}
