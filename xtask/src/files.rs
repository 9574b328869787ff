//! Files and folders, with errors that name them.

use std::path::{Path, PathBuf};
use std::{fs, io};

pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<(), String> {
    fs::write(path, content).map_err(|error| cannot_write(path, &error))
}

pub fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| cannot_read(path, &error))
}

/// Makes a folder, and those that it is in, unless they are there.
pub fn create_folder(path: &Path) -> Result<(), String> {
    fs::create_dir_all(path).map_err(|error| cannot_write(path, &error))
}

/// A folder that is there and empty.
pub fn empty_folder(path: &Path) -> Result<(), String> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(|error| format!("{} cannot be emptied: {error}", path.display()))?;
    }
    create_folder(path)
}

/// What is in a folder.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| cannot_read(folder, &error))?;
    entries.map(|entry| Ok(entry.map_err(|error| cannot_read(folder, &error))?.path())).collect()
}

pub fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension == wanted)
}

pub fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be written: {error}", path.display())
}

fn cannot_read(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}
