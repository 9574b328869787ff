//! Runs the command, and makes and reads its files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

/// A tensor for a file.
#[derive(Clone)]
pub struct Tensor(Dtype, Vec<usize>, Vec<u8>);

impl Tensor {
    /// What was [`read`], in a type.
    pub fn of(dtype: Dtype, shape: &[usize], numbers: &[f64]) -> Tensor {
        match dtype {
            Dtype::F64 => f64s(shape, numbers),
            Dtype::F32 => f32s(shape, numbers),
            Dtype::F16 => f16s(shape, numbers),
            Dtype::BF16 => bf16s(shape, numbers),
            Dtype::I64 => {
                let labels: Vec<i64> = numbers.iter().map(|&label| label as i64).collect();
                i64s(&labels).with_shape(shape)
            }
            other => panic!("{other}"),
        }
    }

    pub fn with_shape(self, shape: &[usize]) -> Tensor {
        Tensor(self.0, shape.to_vec(), self.2)
    }
}

/// `bytes`: those of a number.
fn tensor<T: Copy, const N: usize>(
    dtype: Dtype,
    shape: &[usize],
    numbers: &[T],
    bytes: fn(T) -> [u8; N],
) -> Tensor {
    Tensor(dtype, shape.to_vec(), numbers.iter().flat_map(|&number| bytes(number)).collect())
}

pub fn f32s(shape: &[usize], numbers: &[f64]) -> Tensor {
    tensor(Dtype::F32, shape, numbers, |x| (x as f32).to_le_bytes())
}

pub fn f64s(shape: &[usize], numbers: &[f64]) -> Tensor {
    tensor(Dtype::F64, shape, numbers, f64::to_le_bytes)
}

pub fn f16s(shape: &[usize], numbers: &[f64]) -> Tensor {
    tensor(Dtype::F16, shape, numbers, |x| f16::from_f64(x).to_le_bytes())
}

pub fn bf16s(shape: &[usize], numbers: &[f64]) -> Tensor {
    tensor(Dtype::BF16, shape, numbers, |x| bf16::from_f64(x).to_le_bytes())
}

pub fn i64s(labels: &[i64]) -> Tensor {
    tensor(Dtype::I64, &[labels.len()], labels, i64::to_le_bytes)
}

pub fn i32s(labels: &[i32]) -> Tensor {
    tensor(Dtype::I32, &[labels.len()], labels, i32::to_le_bytes)
}

/// A file of the checkout.
pub fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// As in head_small.
pub fn golden(case: &str) -> PathBuf {
    checkout(&format!("tests/golden/{case}.safetensors"))
}

/// A folder for one test.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn file(&self, name: &str, tensors: &[(&str, Tensor)]) -> PathBuf {
        let views = tensors.iter().map(|(name, Tensor(dtype, shape, bytes))| {
            (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let path = self.path(name);
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    /// The names of the files in it.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// What a run of the command gave.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Run {
        Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Run {
    pub fn ok(self) -> Run {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// The report of a run that says nothing on standard error but of tensors that it does not read.
    pub fn json(self) -> Value {
        let run = self.ok();
        assert!(run.stderr.lines().all(|line| line.starts_with("gfocal: note: ")), "{}", run.stderr);
        assert_eq!(run.stdout.lines().count(), 1);
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// The one line that a mistake gives.
    pub fn mistake(self) -> String {
        assert_eq!(self.code, Some(2), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        let line = self.stderr.strip_suffix('\n').expect("an end of the line");
        assert!(!line.contains('\n'), "{line}");
        line.strip_prefix("gfocal: ").expect(line).to_owned()
    }
}

pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_gfocal"))
}

/// `gfocal OP FILE ARGS…`
pub fn run(op: &str, file: &Path, args: &[impl AsRef<OsStr>]) -> Run {
    command().arg(op).arg(file).args(args).output().unwrap().into()
}

/// `gfocal OP FILE --device cpu ARGS…`, with ARGS in one string.
pub fn cpu(op: &str, file: &Path, args: &str) -> Run {
    command()
        .arg(op)
        .arg(file)
        .args(["--device", "cpu"])
        .args(args.split_whitespace())
        .output()
        .unwrap()
        .into()
}

/// The JSON of a run on the CPU, which says nothing on standard error but of tensors that it does not read.
pub fn json(op: &str, file: &Path, args: &str) -> Value {
    cpu(op, file, &format!("{args} --json")).json()
}

/// The JSON under a key of a file's metadata.
pub fn metadata(path: &Path, key: &str) -> Value {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()[key]).unwrap()
}

/// Tensors by their names, as f64, with their types and shapes.
pub type Tensors = HashMap<String, (Dtype, Vec<usize>, Vec<f64>)>;

/// The tensors of a file.
pub fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |tensor: &TensorView| -> Vec<f64> {
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F64 => data.as_chunks().0.iter().map(|&x| f64::from_le_bytes(x)).collect(),
            Dtype::F32 => data.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x).into()).collect(),
            Dtype::F16 => data.as_chunks().0.iter().map(|&x| f16::from_le_bytes(x).to_f64()).collect(),
            Dtype::BF16 => data.as_chunks().0.iter().map(|&x| bf16::from_le_bytes(x).to_f64()).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|&x| i64::from_le_bytes(x) as f64).collect(),
            other => panic!("{other}"),
        }
    };
    let tensor = |(name, tensor): (String, TensorView)| {
        (name, (tensor.dtype(), tensor.shape().to_vec(), numbers(&tensor)))
    };
    tensors.tensors().into_iter().map(tensor).collect()
}

/// A file of tensors that were [`read`], perhaps changed.
pub fn rewritten(folder: &Folder, tensors: &Tensors) -> PathBuf {
    folder.file("rewritten.safetensors", &chosen(tensors, |_| true))
}

/// Those of a file, for another one, with names that are wanted.
pub fn chosen(tensors: &Tensors, is_wanted: impl Fn(&str) -> bool) -> Vec<(&str, Tensor)> {
    (tensors.iter().filter(|(name, _)| is_wanted(name)))
        .map(|(name, (dtype, shape, numbers))| (&**name, Tensor::of(*dtype, shape, numbers)))
        .collect()
}

pub fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[track_caller]
pub fn assert_close(actual: &[f64], expected: &[f64], relative: f64) {
    assert_near(actual, expected, relative, 1e-7, "");
}

/// NaN is never near. `what`: the name of the numbers.
#[track_caller]
pub fn assert_near(actual: &[f64], expected: &[f64], relative: f64, absolute: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let near = (actual - expected).abs() <= relative * expected.abs() + absolute;
        assert!(near, "{what} at {i}: {actual} and not {expected}");
    }
}

/// Two rows of two classes, class 0 of quality 0.75 and background.
pub const LOGITS: [f64; 4] = [0.0, -2.0, 1.0, -1.0];

pub fn qfl_file(folder: &Folder) -> PathBuf {
    let tensors = [
        ("logits", f32s(&[2, 2], &LOGITS)),
        ("labels", i64s(&[0, 2])),
        ("quality", f32s(&[2], &[0.75, 0.0])),
        ("loss_none", f64s(&[2], &[9.0, 9.0])), // nothing that is read
    ];
    folder.file("qfl.safetensors", &tensors)
}

/// Two sides of four bins.
pub const BOXES: [f64; 8] = [0.0, 0.0, 0.0, 0.0, 1.0, -1.0, 0.5, 2.0];

pub fn dfl_file(folder: &Folder) -> PathBuf {
    let tensors = [("logits", f32s(&[2, 4], &BOXES)), ("target", f32s(&[2], &[1.25, 3.0]))];
    folder.file("dfl.safetensors", &tensors)
}
