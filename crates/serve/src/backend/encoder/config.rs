//! What the files beside the weights say: architecture, pooling, limits.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::TruncationDirection;

use super::pooling::Pooling;
use crate::backend::checkpoint::{CheckpointError, read_json, read_optional};
use crate::torch::linear::Activation;

/// BERT's family: they differ in how positions are numbered and in their weights' prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    Bert,
    /// RoBERTa, XLM-RoBERTa and CamemBERT.
    Roberta,
}

impl Architecture {
    /// What weights' names start with when the checkpoint holds more than the encoder.
    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert.",
            Self::Roberta => "roberta.",
        }
    }
}

/// config.json, checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelConfig {
    pub(super) architecture: Architecture,
    pub(super) vocabulary: usize,
    pub(super) hidden: i64,
    pub(super) layers: usize,
    pub(super) heads: i64,
    pub(super) intermediate: i64,
    pub(super) activation: Activation,
    pub(super) norm_eps: f64,
    /// Rows of the position table; RoBERTa wastes the first `padding + 1` of them.
    pub(super) position_rows: i64,
    pub(super) token_types: i64,
    /// The padding token, which RoBERTa gives a position of its own wherever it stands.
    pub(super) padding: u32,
}

impl ModelConfig {
    /// Tokens of the longest sequence that has a position for each of them.
    pub(super) fn longest(&self) -> usize {
        let rows = usize::try_from(self.position_rows).unwrap_or(0);
        match self.architecture {
            Architecture::Bert => rows,
            Architecture::Roberta => rows.saturating_sub(self.padding as usize + 1),
        }
    }
}

/// Everything known of a checkpoint before its weights are read.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) model: ModelConfig,
    pub(super) pooling: Pooling,
    /// Whether embeddings are scaled to length 1.
    pub(super) normalize: bool,
    /// Tokens a text is truncated to, by the checkpoint.
    pub(super) max_length: usize,
    /// Which end of a long text is cut.
    pub(super) truncation: TruncationDirection,
    /// Whether texts are lowercased before anything else.
    pub(super) lowercase: bool,
    /// Folder of config.json, tokenizer.json and model.safetensors.
    pub(super) directory: PathBuf,
}

/// Read first: a config.json of another architecture lacks the fields below, and saying so misleads.
#[derive(Deserialize)]
struct RawType {
    model_type: String,
}

#[derive(Deserialize)]
struct RawModel {
    vocab_size: usize,
    hidden_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    intermediate_size: i64,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    max_position_embeddings: i64,
    type_vocab_size: Option<i64>,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
}

#[derive(Deserialize)]
struct RawModule {
    path: String,
    #[serde(rename = "type")]
    class: String,
}

#[derive(Deserialize, Default)]
struct RawSentence {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

#[derive(Deserialize, Default)]
struct RawTokenizer {
    // Written as 1e30 where there is no limit.
    model_max_length: Option<f64>,
    truncation_side: Option<String>,
}

/// The names sentence-transformers has given the file of its Transformer module.
const SENTENCE_FILES: [&str; 4] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_camembert_config.json",
];

/// Above this, tokenizer_config.json's limit means "none".
const NO_LIMIT: f64 = 1e9;

/// Reads the settings of the checkpoint in `path`.
///
/// A folder with a modules.json is a sentence-transformers model and pools as that says; without one
/// embeddings are the mean over all tokens, not normalised.
pub(super) fn read(path: &Path) -> Result<Settings, CheckpointError> {
    let modules = read_modules(path)?;
    let directory = path.join(&modules.transformer);
    let model = read_model(&directory.join("config.json"))?;
    let mut sentence = RawSentence::default();
    for name in SENTENCE_FILES {
        if let Some(found) = read_optional(&directory.join(name))? {
            sentence = found;
            break;
        }
    }
    let tokenizer: RawTokenizer =
        read_optional(&directory.join("tokenizer_config.json"))?.unwrap_or_default();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 1 and NO_LIMIT
    let tokenizer_limit = tokenizer
        .model_max_length
        .filter(|limit| (1.0..NO_LIMIT).contains(limit))
        .map(|limit| limit as usize);
    let max_length = sentence.max_seq_length.or(tokenizer_limit).unwrap_or(usize::MAX).min(model.longest());
    Ok(Settings {
        pooling: modules.pooling,
        normalize: modules.normalize,
        max_length,
        truncation: match tokenizer.truncation_side.as_deref() {
            Some("left") => TruncationDirection::Left,
            _ => TruncationDirection::Right,
        },
        lowercase: sentence.do_lower_case.unwrap_or(false),
        model,
        directory,
    })
}

struct Modules {
    /// Folder of the Transformer module, relative to the model's.
    transformer: String,
    pooling: Pooling,
    normalize: bool,
}

fn read_modules(path: &Path) -> Result<Modules, CheckpointError> {
    let file = path.join("modules.json");
    let mut modules = Modules { transformer: String::new(), pooling: Pooling::Mean, normalize: false };
    let Some(list): Option<Vec<RawModule>> = read_optional(&file)? else {
        return Ok(modules);
    };
    let mut pooled = false;
    for (index, module) in list.into_iter().enumerate() {
        // The package path has changed between releases, the class's name has not.
        let class = module.class.rsplit('.').next().unwrap_or_default();
        match (index, class) {
            (0, "Transformer") => modules.transformer = module.path,
            (1, "Pooling") => {
                modules.pooling = Pooling::read(&path.join(module.path).join("config.json"))?;
                pooled = true;
            }
            (2, "Normalize") => modules.normalize = true,
            _ => {
                return Err(CheckpointError::Unsupported {
                    path: file,
                    what: format!("module {class} at place {index}"),
                    supported: "Transformer, Pooling, and perhaps Normalize, in this order".to_owned(),
                });
            }
        }
    }
    if pooled {
        Ok(modules)
    } else {
        Err(CheckpointError::Invalid { path: file, message: "it names no Pooling module".into() })
    }
}

fn read_model(path: &Path) -> Result<ModelConfig, CheckpointError> {
    let RawType { model_type } = read_json(path)?;
    let unsupported = |what: String, supported: &str| {
        let (path, supported) = (path.to_owned(), supported.to_owned());
        Err(CheckpointError::Unsupported { path, what, supported })
    };
    let architecture = match model_type.as_str() {
        "bert" => Architecture::Bert,
        "roberta" | "xlm-roberta" | "camembert" => Architecture::Roberta,
        other => {
            return unsupported(format!("model_type {other:?}"), "bert, roberta, xlm-roberta, camembert");
        }
    };
    let raw: RawModel = read_json(path)?;
    let activation = match raw.hidden_act.as_deref().unwrap_or("gelu") {
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => return unsupported(format!("hidden_act {other:?}"), "gelu, gelu_new, relu"),
    };
    if let Some(kind) = raw.position_embedding_type.filter(|kind| kind != "absolute") {
        return unsupported(format!("position_embedding_type {kind:?}"), "absolute");
    }
    if raw.is_decoder.unwrap_or(false) {
        return unsupported("is_decoder".into(), "encoders");
    }
    let config = ModelConfig {
        architecture,
        vocabulary: raw.vocab_size,
        hidden: raw.hidden_size,
        layers: raw.num_hidden_layers,
        heads: raw.num_attention_heads,
        intermediate: raw.intermediate_size,
        activation,
        norm_eps: raw.layer_norm_eps.unwrap_or(1e-12),
        position_rows: raw.max_position_embeddings,
        token_types: raw.type_vocab_size.unwrap_or(2),
        padding: raw.pad_token_id.unwrap_or(match architecture {
            Architecture::Bert => 0,
            Architecture::Roberta => 1,
        }),
    };
    check(&config).map_err(|message| CheckpointError::Invalid { path: path.to_owned(), message })?;
    Ok(config)
}

fn check(config: &ModelConfig) -> Result<(), String> {
    let sizes = [
        ("hidden_size", config.hidden),
        ("num_attention_heads", config.heads),
        ("intermediate_size", config.intermediate),
        ("type_vocab_size", config.token_types),
    ];
    for (key, size) in sizes {
        if !(1..=1 << 24).contains(&size) {
            return Err(format!("{key} is {size}"));
        }
    }
    if config.hidden % config.heads != 0 {
        return Err(format!(
            "hidden_size {} does not divide into num_attention_heads {}",
            config.hidden, config.heads
        ));
    }
    if config.vocabulary == 0 || config.longest() == 0 {
        return Err("vocab_size or max_position_embeddings leaves no token or no position".into());
    }
    Ok(())
}
