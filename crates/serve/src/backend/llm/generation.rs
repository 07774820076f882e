//! generation_config.json: which tokens end a text, and how its makers want the model sampled.

use std::path::Path;

use super::error::LlmError;
use super::json::Json;

/// Defaults for requests that do not say otherwise; `None` where the file says nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generation {
    /// Any of these ends a text.
    pub end_tokens: Vec<u32>,
    /// What a text starts with, where the tokenizer does not put it there.
    pub start_token: Option<u32>,
    /// Whether tokens are drawn at all; otherwise the likeliest is taken.
    pub samples: Option<bool>,
    /// Divides logits.
    pub temperature: Option<f64>,
    /// How many of the likeliest are drawn from.
    pub top_k: Option<i64>,
    /// Which share of the likeliest is drawn from.
    pub top_p: Option<f64>,
    /// Those below this share of the likeliest are not drawn.
    pub min_p: Option<f64>,
    /// Divides what has been said already.
    pub repetition_penalty: Option<f64>,
}

impl Generation {
    /// Reads the file in `path`; config.json says what the file does not.
    pub(super) fn read(path: &Path, config: &Json) -> Result<Self, LlmError> {
        let file = Json::read_optional(&path.join("generation_config.json"))?;
        let json = file.as_ref().unwrap_or(config);
        let ids = |key: &str| match json.ids(key)? {
            none if none.is_empty() => config.ids(key),
            ids => Ok(ids),
        };
        Ok(Self {
            end_tokens: ids("eos_token_id")?,
            start_token: ids("bos_token_id")?.first().copied(),
            samples: json.mentions("do_sample").then(|| json.flag("do_sample", false)).transpose()?,
            temperature: json.optional_number("temperature")?,
            // 0 stands for no limit.
            top_k: json.optional_number("top_k")?.map(|k| k as i64).filter(|&k| k > 0),
            top_p: json.optional_number("top_p")?,
            min_p: json.optional_number("min_p")?,
            repetition_penalty: json.optional_number("repetition_penalty")?,
        })
    }
}
