//! Checkpoints with one thing changed.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// A copy of a checkpoint in which one file is another, or is new.
pub(crate) fn altered(checkpoint: &Path, file: &str, change: impl Fn(&[u8]) -> Vec<u8>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(checkpoint).unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() {
            fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
        }
    }
    let path = folder.path().join(file);
    fs::write(&path, change(&fs::read(&path).unwrap_or_default())).unwrap();
    folder
}
