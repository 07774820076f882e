//! Modules written by Python, loaded and run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::backend::builtin;
use crate::tensor::DType;

const IDENTITY: &str = "def forward(self, x):\n        return x";

/// Runs a Python script that knows torch, `save(name, source of a module's methods)` and `folder`.
fn python(script: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let prelude = "
import importlib.util, os, sys, torch, zipfile
from typing import Dict, List, Tuple
folder = sys.argv[1]
def save(name, source):
    path = os.path.join(folder, name + '_source.py')
    with open(path, 'w') as f:
        f.write('import torch\\nfrom typing import Dict, List, Tuple\\nfrom torch import Tensor\\n'
                'class M(torch.nn.Module):\\n    ' + source + '\\n')
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.jit.script(module.M()).save(os.path.join(folder, name + '.pt'))
";
    let done = Command::new("python3")
        .args(["-W", "ignore", "-c", &format!("{prelude}\n{script}")])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    folder
}

fn saved(source: &str) -> (TempDir, PathBuf) {
    let folder = python(&format!("save('m', '''{source}''')"));
    let path = folder.path().join("m.pt");
    (folder, path)
}

fn spec(name: &str, dtype: DType, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec(), pad: None }
}

fn options(path: &Path, inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> TorchScriptOptions {
    TorchScriptOptions {
        path: path.to_owned(),
        inputs,
        outputs,
        device: Device::Cpu,
        instances: 1,
        threads: 1,
        warmup: 1,
        max_batch_size: 4,
        static_batch: false,
        max_length: None,
        truncation: false,
    }
}

fn floats(shape: &[usize], values: &[f32]) -> HostTensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    HostTensor { dtype: DType::F32, shape: shape.to_vec(), data: data.into() }
}

fn values(tensor: &HostTensor) -> Vec<f32> {
    tensor.data.chunks_exact(4).map(|bytes| f32::from_ne_bytes(bytes.try_into().unwrap())).collect()
}

fn run(model: &mut DynModel, items: &[Vec<HostTensor>]) -> Result<Vec<Output>, ModelError> {
    let inputs: Vec<_> = items.iter().map(|item| Arc::new(Input::Tensors(item.clone()))).collect();
    model.run(&inputs).map_err(|error| ModelError(error.to_string()))?.into_iter().collect()
}

fn load_one(options: &TorchScriptOptions) -> (DynModel, Vec<TensorSpec>) {
    let mut loaded = load(options).unwrap();
    let Signature::Tensors { outputs, .. } = loaded.signature else { panic!("a text model") };
    (loaded.instances.pop().unwrap(), outputs)
}

fn reason(options: &TorchScriptOptions) -> String {
    load(options).err().unwrap().to_string()
}

#[test]
fn a_batch_answers_each_item_its_own_row_of_every_output() {
    let (_folder, path) = saved(
        "def forward(self, x, n):\n        return x * 2, (n + 1, x.sum(1, dtype=torch.float64))[0], x > 0",
    );
    let inputs = vec![spec("x", DType::F32, &[2]), spec("n", DType::I64, &[])];
    let (mut model, outputs) = load_one(&options(&path, inputs, Vec::new()));
    assert_eq!(
        outputs,
        [
            spec("output_0", DType::F32, &[2]),
            spec("output_1", DType::I64, &[]),
            spec("output_2", DType::Bool, &[2])
        ]
    );
    let number =
        |n: i64| HostTensor { dtype: DType::I64, shape: vec![], data: n.to_ne_bytes().to_vec().into() };
    let items = [vec![floats(&[2], &[1.0, -2.0]), number(7)], vec![floats(&[2], &[-0.5, 3.0]), number(-9)]];
    let rows = run(&mut model, &items).unwrap();
    assert_eq!(values(&rows[0][0]), [2.0, -4.0]);
    assert_eq!(values(&rows[1][0]), [-1.0, 6.0]);
    assert_eq!((&rows[0][1], &rows[1][1]), (&number(8), &number(-8)));
    assert_eq!((&rows[0][2].data[..], &rows[1][2].data[..]), (&[1, 0][..], &[0, 1][..]));
}

#[test]
fn every_declared_type_passes_through_the_identity() {
    let (_folder, path) = saved(IDENTITY);
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16, DType::I64, DType::I32, DType::Bool] {
        let (mut model, outputs) = load_one(&options(&path, vec![spec("x", dtype, &[3])], Vec::new()));
        assert_eq!(outputs, [spec("output", dtype, &[3])]);
        let item = |seed: usize| HostTensor {
            dtype,
            shape: vec![3],
            data: (0..3 * dtype.size())
                .map(|byte| u8::from((byte + seed).is_multiple_of(2)))
                .collect::<Vec<_>>()
                .into(),
        };
        let items = [vec![item(0)], vec![item(1)]];
        assert_eq!(run(&mut model, &items).unwrap(), items);
    }
}

#[test]
fn an_answer_that_is_the_input_survives_the_next_batch() {
    let (_folder, path) = saved(IDENTITY);
    let (mut model, _) = load_one(&options(&path, vec![spec("x", DType::F32, &[1])], Vec::new()));
    let first = run(&mut model, &[vec![floats(&[1], &[1.0])]]).unwrap();
    run(&mut model, &[vec![floats(&[1], &[2.0])]]).unwrap();
    assert_eq!(values(&first[0][0]), [1.0]);
}

#[test]
fn a_dictionary_and_a_list_are_outputs_too() {
    let folder = python(
        "save('dict', 'def forward(self, x):\\n        return {\"b\": x, \"a\": x + 1}')\n\
         save('list', 'def forward(self, x):\\n        return [x, x + 1]')",
    );
    let inputs = vec![spec("x", DType::F32, &[1])];
    let item = [vec![floats(&[1], &[1.0])]];
    let both = vec![spec("a", DType::F32, &[1]), spec("b", DType::F32, &[1])];
    let (mut model, _) = load_one(&options(&folder.path().join("dict.pt"), inputs.clone(), both));
    let rows = run(&mut model, &item).unwrap();
    assert_eq!((values(&rows[0][0]), values(&rows[0][1])), (vec![2.0], vec![1.0]));
    let (_, found) = load_one(&options(&folder.path().join("dict.pt"), inputs.clone(), Vec::new()));
    assert_eq!(found.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    let (_, found) = load_one(&options(&folder.path().join("list.pt"), inputs, Vec::new()));
    assert_eq!(found.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["output_0", "output_1"]);
}

#[test]
fn an_output_dimension_that_follows_the_input_is_found() {
    let (_folder, path) = saved("def forward(self, x):\n        return x[:, :, 0], x.mean(1)");
    let (mut model, outputs) = load_one(&options(&path, vec![spec("x", DType::F32, &[-1, 3])], Vec::new()));
    assert_eq!(outputs, [spec("output_0", DType::F32, &[-1]), spec("output_1", DType::F32, &[3])]);
    let rows = run(&mut model, &[vec![floats(&[1, 3], &[1.0, 2.0, 3.0])]]).unwrap();
    assert_eq!(values(&rows[0][0]), [1.0]);
}

#[test]
fn a_file_that_is_no_module_says_why() {
    let folder = python(
        "save('good', 'def forward(self, x):\\n        return x')
good = os.path.join(folder, 'good.pt')
def rewritten(name, change):
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(os.path.join(folder, name), 'w') as new:
        for entry in old.namelist():
            new.writestr(entry, change(entry, old.read(entry)))
rewritten('operator.pt', lambda name, data: data.replace(b'return x', b'return ops.nobody.knows(x)') if name.endswith('.py') else data)
rewritten('version.pt', lambda name, data: b'999\\n' if name.endswith('version') else data)
torch.save({'weight': torch.zeros(2)}, os.path.join(folder, 'weights.pt'))",
    );
    let good = fs::read(folder.path().join("good.pt")).unwrap();
    fs::write(folder.path().join("cut.pt"), &good[..good.len() / 2]).unwrap();
    fs::write(folder.path().join("text.pt"), "not a module").unwrap();
    fs::write(folder.path().join("empty.pt"), "").unwrap();
    for (file, expected) in [
        ("missing.pt", "No such file or directory"),
        ("empty.pt", "it is empty"),
        ("text.pt", "it is not a zip archive"),
        ("cut.pt", "it is truncated or damaged"),
        ("weights.pt", "it is an archive, but not one of torch.jit.save"),
        ("operator.pt", "nobody::knows"),
        ("version.pt", "999"),
    ] {
        let path = folder.path().join(file);
        let reason = reason(&options(&path, vec![spec("x", DType::F32, &[1])], Vec::new()));
        assert!(reason.contains(expected) && reason.contains(file), "{file}: {reason}");
        assert!(!reason.contains('\n') && !reason.contains("frame #"), "{file}: {reason}");
    }
}

#[test]
fn declarations_that_do_not_fit_the_module_are_refused_at_load() {
    let (_folder, path) = saved("def forward(self, x, mask):\n        return x * mask");
    let x = || spec("x", DType::F32, &[2]);
    let pair = || vec![x(), spec("mask", DType::F32, &[2])];
    for (inputs, outputs, expected) in [
        (vec![], vec![], "inputs are not declared"),
        (vec![x()], vec![], "1 inputs are declared, but its arguments are forward(x, mask)"),
        (
            vec![x(), spec("mask", DType::F32, &[3])],
            vec![],
            "it fails on zeros at batch size 1: The size of tensor",
        ),
        (pair(), vec![x(), x()], "2 outputs are declared, but it answers 1"),
        (
            pair(),
            vec![spec("y", DType::I64, &[2])],
            "output \"y\": i64 is declared, but its elements are f32",
        ),
        (pair(), vec![spec("y", DType::F32, &[5])], "output \"y\": shape [5] is declared"),
        (pair(), vec![spec("y", DType::F32, &[-1, -1])], "output \"y\": shape [-1, -1] is declared"),
    ] {
        let reason = reason(&options(&path, inputs, outputs));
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn outputs_that_cannot_be_answered_are_refused_at_load() {
    let folder = python(
        "for name, answer in {'bytes': 'x.to(torch.uint8)', 'sum': 'x.sum(0)', 'text': '\"a\"',
                     'nested': '(x, [x])', 'scalar': 'x.sum()'}.items():
    save(name, f'def forward(self, x):\\n        return {answer}')",
    );
    for (file, expected) in [
        ("bytes", "output \"output\" has elements of type Uint8"),
        ("sum", "output \"output\" is [2], whose first dimension is not the batch"),
        ("scalar", "output \"output\" is [], whose first dimension is not the batch"),
        ("text", "forward returns a String"),
        ("nested", "output 1 is a GenericList, not a tensor"),
    ] {
        let path = folder.path().join(file).with_extension("pt");
        let reason = reason(&options(&path, vec![spec("x", DType::F32, &[2])], Vec::new()));
        assert!(reason.contains(expected), "{file}: {reason}");
    }
}

#[test]
fn a_module_that_mixes_up_the_batch_is_refused_at_the_largest_batch() {
    let (_folder, path) = saved("def forward(self, x):\n        return x[:1]");
    let reason = reason(&options(&path, vec![spec("x", DType::F32, &[2])], Vec::new()));
    assert!(reason.contains("at batch size 4") && reason.contains("not the batch of 4"), "{reason}");
}

#[test]
fn a_run_that_fails_says_why_in_one_line_and_the_next_one_works() {
    let (_folder, path) = saved(
        "def forward(self, x):\n        if bool((x > 9).any()):\n            raise ValueError('too large')\n        \
         if bool((x < 0).any()):\n            return x.view(-1, 3)\n        return x",
    );
    let (mut model, _) = load_one(&options(&path, vec![spec("x", DType::F32, &[2])], Vec::new()));
    let mut with = |value: f32| run(&mut model, &[vec![floats(&[2], &[value, 1.0])]]);
    assert_eq!(with(10.0).unwrap_err().0, "ValueError: too large");
    assert_eq!(with(-1.0).unwrap_err().0, "shape '[-1, 3]' is invalid for input of size 2");
    assert_eq!(values(&with(1.0).unwrap()[0][0]), [1.0, 1.0]);
}

#[test]
fn items_of_two_shapes_are_no_batch() {
    let (_folder, path) = saved(IDENTITY);
    let (mut model, _) = load_one(&options(&path, vec![spec("x", DType::F32, &[-1])], Vec::new()));
    let error = run(&mut model, &[vec![floats(&[1], &[1.0])], vec![floats(&[2], &[1.0, 2.0])]]).unwrap_err();
    assert!(error.0.contains("item 1 is f32 [2]"), "{error}");
}

#[test]
fn dropout_and_batch_norm_run_as_in_evaluation() {
    let (_folder, path) = saved(
        "def __init__(self):\n        super().__init__()\n        self.d = torch.nn.Dropout(0.9)\n    \
         def forward(self, x):\n        return self.d(x)",
    );
    let (mut model, _) = load_one(&options(&path, vec![spec("x", DType::F32, &[4])], Vec::new()));
    let rows = run(&mut model, &[vec![floats(&[4], &[1.0; 4])]]).unwrap();
    assert_eq!(values(&rows[0][0]), [1.0; 4]);
}

#[test]
fn instances_of_a_module_that_counts_its_runs_count_apart() {
    let (_folder, path) = saved(
        "def __init__(self):\n        super().__init__()\n        self.register_buffer('n', torch.zeros(1))\n    \
         def forward(self, x):\n        self.n += 1\n        return x + self.n",
    );
    let options = TorchScriptOptions {
        instances: 2,
        warmup: 0,
        ..options(&path, vec![spec("x", DType::F32, &[1])], vec![spec("y", DType::F32, &[1])])
    };
    let mut instances = load(&options).unwrap().instances;
    let item = [vec![floats(&[1], &[0.0])]];
    let counts: Vec<f32> =
        instances.iter_mut().map(|model| values(&run(model, &item).unwrap()[0][0])[0]).collect();
    assert_eq!(counts, [1.0, 1.0]);
}

#[test]
fn without_warm_up_runs_declared_outputs_are_taken_at_their_word() {
    let (_folder, path) = saved(IDENTITY);
    let wrong = vec![spec("y", DType::I64, &[9])];
    let options =
        TorchScriptOptions { warmup: 0, ..options(&path, vec![spec("x", DType::F32, &[1])], wrong) };
    let (mut model, _) = load_one(&options);
    let error = run(&mut model, &[vec![floats(&[1], &[1.0])]]).unwrap_err();
    assert_eq!(error.0, "output \"y\": i64 is declared, but its elements are f32");
}

#[test]
fn the_built_in_files_are_as_declared_and_two_threads_agree_with_python() {
    let script =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../python/client/src/trustformers_serve/builtin.py");
    let folder = python(&format!(
        "sys.path.insert(0, os.path.dirname({script:?}))
import builtin
for name in ('mlp', 'resnet18'):
    assert builtin.ensure(builtin.Path(folder), name)
    assert not builtin.ensure(builtin.Path(folder), name)
x = torch.arange(64.).div(64).repeat(8, 1).add(torch.arange(8.)[:, None])
y = torch.jit.load(os.path.join(folder, 'mlp.pt'))(x)
open(os.path.join(folder, 'y'), 'wb').write(y.detach().numpy().tobytes())"
    ));
    let builtin = builtin::find("resnet18").unwrap();
    load(&options(&folder.path().join(builtin.file), builtin.inputs, builtin.outputs)).map(drop).unwrap();

    let builtin = builtin::find("mlp").unwrap();
    let instances = load(&TorchScriptOptions {
        instances: 2,
        ..options(&folder.path().join(builtin.file), builtin.inputs, builtin.outputs)
    })
    .unwrap()
    .instances;
    let expected = floats(&[80], &[]);
    let expected =
        values(&HostTensor { data: fs::read(folder.path().join("y")).unwrap().into(), ..expected });
    let items: Vec<Vec<HostTensor>> = (0..8u8)
        .map(|row| (0..64u8).map(|column| f32::from(column) / 64.0 + f32::from(row)).collect::<Vec<_>>())
        .map(|row| vec![floats(&[64], &row)])
        .collect();
    let threads = instances.into_iter().map(|mut model| {
        let items = items.clone();
        thread::spawn(move || (0..200).map(|_| run(&mut model, &items).unwrap()).collect::<Vec<_>>())
    });
    for thread in threads.collect::<Vec<_>>() {
        for rows in thread.join().unwrap() {
            let got: Vec<f32> = rows.iter().flat_map(|row| values(&row[0])).collect();
            assert_eq!(got.len(), expected.len());
            assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} {expected:?}");
        }
    }
}

/// Adds each row's own number of elements that are not padding, and passes the input through.
const COUNTS: &str = "def forward(self, x):\n        return (x >= 0).sum(1, dtype=torch.int64), x * 2";

fn padded(shape: &[i64], pad: f64) -> TensorSpec {
    TensorSpec { pad: Some(pad), ..spec("x", DType::F32, shape) }
}

#[test]
fn padded_items_share_a_batch_and_outputs_are_cut_to_their_length() {
    let (_folder, path) = saved(COUNTS);
    let (mut model, outputs) = load_one(&options(&path, vec![padded(&[-1], -1.0)], Vec::new()));
    assert_eq!(outputs[1].shape, [-1]);
    let items = [vec![floats(&[1], &[5.0])], vec![floats(&[3], &[1.0, 2.0, 3.0])]];
    let rows = run(&mut model, &items).unwrap();
    let count = |row: &Output| i64::from_ne_bytes(row[0].data[..].try_into().unwrap());
    assert_eq!((count(&rows[0]), count(&rows[1])), (1, 3), "padding is -1 and not counted");
    assert_eq!((values(&rows[0][1]), values(&rows[1][1])), (vec![10.0], vec![2.0, 4.0, 6.0]));
    let inputs: Vec<_> = items.into_iter().map(|item| Arc::new(Input::Tensors(item))).collect();
    let wide = model.run_padded(&inputs, 7).unwrap();
    assert_eq!(wide, rows.into_iter().map(Ok).collect::<Vec<_>>(), "a longer padding changes nothing");
}

#[test]
fn an_output_that_does_not_follow_the_padding_is_refused_at_load() {
    let (_folder, path) = saved("def forward(self, x):\n        return x[:, ::2]");
    let reason = reason(&options(&path, vec![padded(&[-1], 0.0)], Vec::new()));
    assert!(reason.contains("dimension 0 is 4 for inputs padded to 8"), "{reason}");
}

#[test]
fn a_pad_that_does_not_fit_its_input_is_refused_at_load() {
    let (_folder, path) = saved(IDENTITY);
    let reason = reason(&options(&path, vec![padded(&[-1, -1], 0.0)], Vec::new()));
    assert!(reason.starts_with("`pad` of input \"x\" is for inputs with exactly one -1"), "{reason}");
}

#[test]
fn first_runs_are_no_longer_than_the_model_takes() {
    let (_folder, path) =
        saved("def forward(self, x):\n        assert x.size(1) <= 3, 'too long'\n        return x");
    let with = |max_length| TorchScriptOptions {
        max_length,
        ..options(&path, vec![padded(&[-1], 0.0)], Vec::new())
    };
    let (mut model, outputs) = load_one(&with(Some(3)));
    assert_eq!(outputs[0].shape, [-1]);
    let inputs = [Arc::new(Input::Tensors(vec![floats(&[2], &[1.0, 2.0])]))];
    assert!(model.run_padded(&inputs, 64).is_ok(), "a bucket reaches beyond it");
    assert!(reason(&with(None)).contains("too long"));
}

#[test]
fn a_static_batch_always_has_all_its_rows() {
    let (_folder, path) = saved(
        "def forward(self, x):\n        assert x.size(0) == 4, 'four rows'\n        return x + x.sum(0)",
    );
    let options = TorchScriptOptions {
        static_batch: true,
        ..options(&path, vec![spec("x", DType::F32, &[1])], Vec::new())
    };
    let (mut model, outputs) = load_one(&options);
    assert_eq!(outputs[0].shape, [1]);
    let mut run = |items: &[f32]| {
        let items: Vec<_> = items.iter().map(|value| vec![floats(&[1], &[*value])]).collect();
        run(&mut model, &items).unwrap().iter().map(|row| values(&row[0])[0]).collect::<Vec<_>>()
    };
    assert_eq!(run(&[1.0, 2.0, 3.0, 4.0]), [11.0, 12.0, 13.0, 14.0]);
    assert_eq!(run(&[1.0, 2.0]), [4.0, 5.0], "what filled the rows before is gone");
}
