//! What other programs make of models, as the scripts `tests/python/make_*_oracles.py` write it.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::process::Command;

use serde::de::DeserializeOwned;

/// The oracles of one kind of model by name, made by its script when that has changed.
pub(crate) fn cases<Case: DeserializeOwned>(kind: &str) -> BTreeMap<String, Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python");
    let script = folder.join(format!("make_{kind}_oracles.py"));
    let mut hasher = DefaultHasher::new();
    fs::read(&script).unwrap().hash(&mut hasher);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = target.join(format!("{kind}-oracles-{:x}", hasher.finish()));
    // Each test is a process of its own: the first one makes the oracles, the others wait for it.
    let lock = File::create(target.join(format!("{kind}-oracles.lock"))).unwrap();
    lock.lock().unwrap();
    let list = folder.join("cases.json");
    if !list.exists() {
        drop(fs::remove_dir_all(&folder));
        let made = Command::new("python3").arg(&script).arg(&folder).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    serde_json::from_slice(&fs::read(list).unwrap()).unwrap()
}
