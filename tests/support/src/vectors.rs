//! Files of vectors: safetensors, with a JSON object under the metadata's key `case`.

use std::path::Path;

use gfocal::f16;
use safetensors::SafeTensors;

pub struct Vectors {
    bytes: Vec<u8>,
    /// The JSON object.
    pub case: serde_json::Value,
    /// That under the key `expect`; null without one.
    pub expect: serde_json::Value,
}

impl Vectors {
    /// A file of the checkout, as in `tests/golden/qfl_tiny.safetensors`.
    pub fn open(path: impl AsRef<Path>) -> Vectors {
        let bytes = std::fs::read(super::root().join(path)).expect("a readable file");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let metadata = header.metadata().as_ref().expect("metadata");
        let of = |key: &str| metadata.get(key).map(|json| serde_json::from_str(json).expect("JSON"));
        let (case, expect) = (of("case").expect("a case"), of("expect").unwrap_or_default());
        Vectors { bytes, case, expect }
    }

    pub fn has(&self, name: &str) -> bool {
        self.file().tensor(name).is_ok()
    }

    pub fn f16s(&self, name: &str) -> Vec<f64> {
        self.decode(name, |bytes| f16::from_le_bytes(bytes).to_f64())
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        self.decode(name, f32::from_le_bytes)
    }

    pub fn f64s(&self, name: &str) -> Vec<f64> {
        self.decode(name, f64::from_le_bytes)
    }

    pub fn i64s(&self, name: &str) -> Vec<i64> {
        self.decode(name, i64::from_le_bytes)
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file().tensor(name).expect("a tensor").shape().to_vec()
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("a safetensors file")
    }

    fn decode<const N: usize, T>(&self, name: &str, decode: fn([u8; N]) -> T) -> Vec<T> {
        let file = self.file();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().chunks_exact(N).map(|bytes| decode(bytes.try_into().expect("N bytes"))).collect()
    }
}
