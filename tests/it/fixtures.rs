//! Models on disk: the built-in text model, files that scripts make once, and copies to break.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{builtin_models, quoted, root};

/// The text model's checkpoint.
pub(crate) fn minilm_folder() -> PathBuf {
    builtin_models().join("minilm")
}

/// Serves the text model as `minilm`.
pub(crate) fn minilm() -> String {
    format!("models.minilm.path = {}\n", quoted(&minilm_folder()))
}

/// A checkpoint folder of links to the text model's files, of which a test may replace some.
pub(crate) fn copy_minilm(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    for entry in fs::read_dir(minilm_folder()).expect("the built-in models are made") {
        let entry = entry.expect("an entry");
        symlink(entry.path(), folder.join(entry.file_name())).expect("a link");
    }
}

/// Puts a file of its own in the place of a link.
pub(crate) fn replace(path: &Path, content: &[u8]) {
    fs::remove_file(path).expect("it is there");
    fs::write(path, content).expect("it can be written");
}

/// A TorchScript file of `tests/models/make_torchscript.py`.
pub(crate) fn torchscript(name: &str) -> PathBuf {
    made("make_torchscript.py", "test-models").join(format!("{name}.pt"))
}

/// A checkpoint of `tests/models/make_language_model.py`.
pub(crate) fn language_model(name: &str) -> PathBuf {
    made("make_language_model.py", "test-language-models").join(name)
}

/// Serves a small language model with a chat template as `chatty`.
pub(crate) fn chatty() -> String {
    format!("models.chatty.path = {}\n", quoted(&language_model("chatty")))
}

/// The folder that a script of `tests/models` fills on first use, kept below target/.
fn made(script: &str, folder: &str) -> PathBuf {
    let script = root().join("tests/models").join(script);
    let test = std::env::current_exe().expect("this test is a file");
    let cache = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join(folder);
    fs::create_dir_all(&cache).expect("a folder");
    // Tests run in processes side by side: the first makes the files, the others wait for it.
    let lock = fs::File::create(cache.join("lock")).expect("a file");
    lock.lock().expect("a lock");
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let made = cache.join("made");
    if modified(&made) < modified(&script) {
        let status = Command::new("python").arg(&script).arg(&cache).status().expect("python is on the path");
        assert!(status.success(), "{}", script.display());
        fs::write(&made, "").expect("a file");
    }
    cache
}

/// A model with one input and one output of any length, in a TorchScript file.
pub(crate) fn script_model(name: &str, file: &str) -> String {
    format!(
        "models.{name}.path = {}\n\
         models.{name}.inputs = [{{ name = 'x', dtype = 'f32', shape = [-1] }}]\n\
         models.{name}.outputs = [{{ name = 'y', dtype = 'f32', shape = [-1] }}]\n",
        quoted(&torchscript(file))
    )
}

/// A model of token ids and their mask, items of any lengths padded together: the mean over what the mask
/// leaves, and each position's part of it.
pub(crate) fn masked_mean(name: &str) -> String {
    format!(
        "models.{name}.path = {}\n\
         models.{name}.inputs = [{{ name = 'ids', dtype = 'i64', shape = [-1], pad = 0 }}, \
         {{ name = 'mask', dtype = 'i64', shape = [-1], pad = 0 }}]\n\
         models.{name}.outputs = [{{ name = 'mean', dtype = 'f32', shape = [8] }}, \
         {{ name = 'parts', dtype = 'f32', shape = [-1, 8] }}]\n",
        quoted(&torchscript("masked_mean"))
    )
}
