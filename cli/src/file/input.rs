//! Reading tensors, with an answer to everything a file may hold.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype as FileDtype, SafeTensorError, SafeTensors};

use super::unread;
use crate::error::{Error, Result};
use crate::floats::Floats;
use crate::inputs::Labels;
use crate::words::count;

/// A file that has been read and is in order.
pub struct Input {
    path: PathBuf,
    bytes: Vec<u8>,
    /// The tensors that have been read.
    read: RefCell<BTreeSet<String>>,
}

impl Input {
    pub fn read(path: &Path) -> Result<Input> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let metadata = fs::metadata(path).map_err(read)?;
        if !metadata.is_file() {
            // Devices may have no end.
            let what = if metadata.is_dir() { "a folder" } else { "not a regular file" };
            return Err(Error::NotAFile { path: path.to_owned(), what });
        }
        let bytes = fs::read(path).map_err(read)?;
        if let Err(reason) = check(&bytes) {
            return Err(Error::Format { path: path.to_owned(), reason });
        }
        Ok(Input { path: path.to_owned(), bytes, read: RefCell::default() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text under a key of the metadata.
    pub fn metadata(&self, key: &str) -> Result<Option<String>> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes)
            .map_err(|error| Error::Format { path: self.path.clone(), reason: error.to_string() })?;
        Ok(header.metadata().as_ref().and_then(|metadata| metadata.get(key).cloned()))
    }

    /// The error for a file that is no head's.
    pub fn head(&self, reason: impl Into<String>) -> Error {
        Error::Head { path: self.path.clone(), reason: reason.into() }
    }

    /// The tensors. The header is parsed anew, which costs nothing beside the data.
    pub fn tensors(&self) -> Result<Tensors<'_>> {
        let tensors = SafeTensors::deserialize(&self.bytes);
        let reason =
            |error: SafeTensorError| Error::Format { path: self.path.clone(), reason: error.to_string() };
        Ok(Tensors { path: &self.path, tensors: tensors.map_err(reason)?, read: &self.read })
    }

    /// What to tell of the tensors that have not been read, if there are any.
    pub fn unread(&self) -> Result<Option<String>> {
        let (read, tensors) = (self.read.borrow(), self.tensors()?);
        let names = tensors.tensors.names().into_iter().filter(|&name| !read.contains(name));
        Ok(unread::note(names.collect()))
    }
}

fn check(bytes: &[u8]) -> Result<(), String> {
    if offsets_past_the_end(bytes) {
        return Err("its header tells of more data than the file has; it may be truncated".to_owned());
    }
    SafeTensors::deserialize(bytes).map(drop).map_err(|error| match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            "its header tells of other sizes than the file has; it may be truncated".to_owned()
        }
        SafeTensorError::HeaderTooSmall => format!("it has only {}", count(bytes.len(), "byte", "bytes")),
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            "it does not begin with the length of a header that it holds".to_owned()
        }
        other => other.to_string(),
    })
}

/// Offsets near the end of the address space overflow when safetensors 0.8 adds to them, and then
/// it panics.
fn offsets_past_the_end(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk() else { return false };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let Some((header, data)) = rest.split_at_checked(length) else { return false };
    let Ok(serde_json::Value::Object(entries)) = serde_json::from_slice(header) else { return false };
    let end = |entry: &serde_json::Value| entry["data_offsets"][1].as_u64().unwrap_or(0);
    entries.values().any(|entry| end(entry) > data.len() as u64)
}

/// The tensors of an [`Input`].
pub struct Tensors<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    read: &'a RefCell<BTreeSet<String>>,
}

impl<'a> Tensors<'a> {
    pub fn path(&self) -> &'a Path {
        self.path
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// The error for a tensor that is not there; `wanted` may say more than its name.
    pub fn missing(&self, wanted: impl Into<String>) -> Error {
        const SHOWN: usize = 8;
        let mut names = self.tensors.names();
        names.sort_unstable();
        let held = match names.len() {
            0 => "none at all".to_owned(),
            count if count > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), count - SHOWN),
            _ => names.join(", "),
        };
        Error::Missing { path: self.path.to_owned(), wanted: wanted.into(), held }
    }

    /// Shape and numbers of a tensor of any float type.
    pub fn floats(&self, name: &str) -> Result<(Vec<usize>, Floats)> {
        let tensor = self.tensor(name)?;
        let floats = Floats::read(tensor.dtype(), tensor.data())
            .ok_or_else(|| self.wrong_type(name, tensor.dtype(), "F32, F16, BF16 or F64"))?;
        Ok((tensor.shape().to_vec(), floats))
    }

    /// Shape and numbers of a tensor of integers.
    pub fn labels(&self, name: &str) -> Result<(Vec<usize>, Labels)> {
        let tensor = self.tensor(name)?;
        let data = tensor.data();
        let labels = match tensor.dtype() {
            FileDtype::I64 => {
                Labels::I64(data.as_chunks().0.iter().map(|&label| i64::from_le_bytes(label)).collect())
            }
            FileDtype::I32 => {
                Labels::I32(data.as_chunks().0.iter().map(|&label| i32::from_le_bytes(label)).collect())
            }
            found => return Err(self.wrong_type(name, found, "I64 or I32")),
        };
        Ok((tensor.shape().to_vec(), labels))
    }

    /// Shape of a tensor, if it is there, of which nothing else is needed.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensor(name).ok().map(|tensor| tensor.shape().to_vec())
    }

    /// Shape of a tensor, if it is there, that then does not count as read.
    pub fn shape_unread(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.tensor(name).ok().map(|tensor| tensor.shape().to_vec())
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'a>> {
        let tensor = self.tensors.tensor(name).map_err(|_| self.missing(name))?;
        self.read.borrow_mut().insert(name.to_owned());
        Ok(tensor)
    }

    fn wrong_type(&self, tensor: &str, found: FileDtype, allowed: &'static str) -> Error {
        Error::Type {
            path: self.path.to_owned(),
            tensor: tensor.to_owned(),
            found: found.to_string(),
            allowed,
        }
    }
}
