//! Writing tensors: all of the file, or none.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;

use crate::error::{Error, Result};
use crate::floats::Floats;
use crate::inputs::Labels;

/// A file that is to be written.
pub struct Output {
    path: PathBuf,
    tensors: Vec<Named>,
}

/// A tensor of the file.
struct Named {
    name: String,
    shape: Vec<usize>,
    dtype: safetensors::Dtype,
    bytes: Vec<u8>,
}

impl Output {
    /// Finds out early what would be found out at the end. It must not be the input, if there is one.
    pub fn new(path: &Path, input: Option<&Path>) -> Result<Output> {
        let output = Output { path: path.to_owned(), tensors: Vec::new() };
        if let Ok(metadata) = fs::metadata(path) {
            if metadata.is_dir() {
                return Err(output.error("it is a folder; give the name of a file"));
            }
            if !metadata.is_file() {
                return Err(
                    output.error("it is not a regular file, and would be replaced by one; give another name")
                );
            }
        }
        if let (Ok(path), Some(Ok(input))) = (path.canonicalize(), input.map(Path::canonicalize))
            && path == input
        {
            return Err(output.error("it is the input file; give another name"));
        }
        if path.file_name().is_none() {
            return Err(output.error("it has no file name; give one"));
        }
        let folder = output.folder();
        if !folder.is_dir() {
            return Err(output.error(format!("there is no folder {}; make it first", folder.display())));
        }
        // A file that is gone again at once.
        builder().tempfile_in(folder).map_err(|error| output.error(error))?;
        Ok(output)
    }

    pub fn add(&mut self, name: String, shape: &[usize], numbers: &Floats) {
        let dtype = numbers.dtype().in_file();
        self.tensors.push(Named { name, shape: shape.to_vec(), dtype, bytes: numbers.bytes() });
    }

    pub fn add_labels(&mut self, name: String, shape: &[usize], labels: &Labels) {
        self.tensors.push(Named {
            name,
            shape: shape.to_vec(),
            dtype: labels.dtype(),
            bytes: labels.bytes(),
        });
    }

    /// Writes the tensors. `about` goes into the file's metadata.
    pub fn write(&self, about: &str) -> Result<()> {
        let mut views = Vec::new();
        for Named { name, shape, dtype, bytes } in &self.tensors {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            views.push((name, view.map_err(|error| self.error(error))?));
        }
        // One key: the crate writes the keys in no fixed order, and equal runs give equal bytes.
        let metadata = HashMap::from([("gfocal".to_owned(), about.to_owned())]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| self.error(error))?;
        self.write_bytes(&bytes)
    }

    /// Writes a file beside, and renames it when it is whole.
    pub fn write_bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut file = builder().tempfile_in(self.folder()).map_err(|error| self.error(error))?;
        file.write_all(bytes).map_err(|error| self.error(error))?;
        file.persist(&self.path).map_err(|error| self.error(error.error))?;
        Ok(())
    }

    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        }
    }

    fn error(&self, reason: impl ToString) -> Error {
        Error::Output { path: self.path.clone(), reason: reason.to_string() }
    }
}

#[cfg(unix)]
fn builder() -> tempfile::Builder<'static, 'static> {
    use std::os::unix::fs::PermissionsExt;

    // As any file that a program makes (the umask is taken away), and not for the owner alone.
    let mut builder = tempfile::Builder::new();
    builder.permissions(fs::Permissions::from_mode(0o666));
    builder
}

#[cfg(not(unix))]
fn builder() -> tempfile::Builder<'static, 'static> {
    tempfile::Builder::new()
}
