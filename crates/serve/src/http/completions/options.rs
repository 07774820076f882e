//! What requests for text have in common: how it is drawn, what ends it, how it is sent.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use serde::Deserialize;
use trustformers_batching::Priority;

use super::fields::Fields;
use crate::generation::Generator;
use crate::generation::choice::TextOptions;
use crate::generation::sampling::Sampling;
use crate::http::error::ApiError;
use crate::text::StopStrings;

/// Most stop strings of a request, and the most bytes of one.
const MOST_STOPS: usize = 64;
const LONGEST_STOP: usize = 1024;
/// Most stop tokens of a request.
const MOST_STOP_TOKENS: usize = 256;
/// Most texts of one prompt.
const MOST_CHOICES: u32 = 128;

/// Fields that do not depend on the model.
#[derive(Debug, Default)]
pub(in crate::http) struct Options {
    /// Sent token by token.
    pub(in crate::http) stream: bool,
    /// Whether a stream ends with its usage.
    pub(in crate::http) include_usage: bool,
    /// Texts of each prompt that are answered.
    pub(in crate::http) n: u32,
    /// Texts of each prompt that are generated.
    pub(in crate::http) best_of: u32,
    pub(in crate::http) max_tokens: Option<u32>,
    pub(in crate::http) priority: Option<Priority>,
    pub(in crate::http) timeout_ms: Option<u64>,
    pub(in crate::http) add_special_tokens: Option<bool>,
    pub(in crate::http) salt: Option<u64>,
    stops: Vec<String>,
    stop_token_ids: Vec<u32>,
    include_stop: bool,
    ignore_eos: bool,
    pub(in crate::http) min_tokens: u32,
    skip_special: bool,
    seed: Option<u64>,
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: Vec<(u32, f32)>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum Stops {
    One(String),
    Many(Vec<String>),
}

impl Options {
    /// Reads the fields that completions and chats share.
    pub(in crate::http) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let n = fields.or("n", 1)?;
        let mut options = Self {
            stream: fields.or("stream", false)?,
            include_usage: false,
            n,
            best_of: fields.or("best_of", n)?,
            max_tokens: max_tokens(fields, "max_tokens")?,
            priority: fields
                .optional::<String>("priority")?
                .map(|text| super::priority(&text))
                .transpose()?,
            timeout_ms: fields.optional("timeout_ms")?,
            add_special_tokens: fields.optional("add_special_tokens")?,
            salt: fields.optional::<String>("cache_salt")?.map(|salt| hashed(&salt)),
            stops: match fields.optional("stop")? {
                None => Vec::new(),
                Some(Stops::One(stop)) => vec![stop],
                Some(Stops::Many(stops)) => stops,
            },
            stop_token_ids: fields.or("stop_token_ids", Vec::new())?,
            include_stop: fields.or("include_stop_str_in_output", false)?,
            ignore_eos: fields.or("ignore_eos", false)?,
            min_tokens: fields.or("min_tokens", 0)?,
            skip_special: fields.or("skip_special_tokens", true)?,
            seed: fields.optional::<i64>("seed")?.map(i64::cast_unsigned),
            temperature: fields.optional("temperature")?,
            top_k: fields.optional("top_k")?,
            top_p: fields.optional("top_p")?,
            min_p: fields.optional("min_p")?,
            repetition_penalty: fields.optional("repetition_penalty")?,
            presence_penalty: fields.or("presence_penalty", 0.0)?,
            frequency_penalty: fields.or("frequency_penalty", 0.0)?,
            logit_bias: logit_bias(fields)?,
        };
        if let Some(value) = fields.value("stream_options") {
            let mut inner = Fields::of("stream_options", value)?;
            options.include_usage = inner.or("include_usage", false)?;
            inner.finish()?;
        }
        // An end user's name and what is kept where say nothing about the text.
        fields.ignore(&["user", "store", "metadata", "service_tier"]);
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<(), ApiError> {
        let refuse = |name, reason: String| Err(ApiError::of_field(name, reason));
        if self.n == 0 || self.n > MOST_CHOICES {
            return refuse("n", format!("\"n\" is {}; 1 to {MOST_CHOICES} will do", self.n));
        }
        if self.best_of < self.n || self.best_of > MOST_CHOICES {
            let (best_of, n) = (self.best_of, self.n);
            return refuse("best_of", format!("\"best_of\" is {best_of}; n = {n} to {MOST_CHOICES} will do"));
        }
        if self.stream && self.best_of > self.n {
            return refuse(
                "best_of",
                "what is best is known at the end: \"best_of\" cannot be streamed".into(),
            );
        }
        if self.stops.len() > MOST_STOPS {
            let count = self.stops.len();
            return refuse("stop", format!("\"stop\" has {count} texts; at most {MOST_STOPS} will do"));
        }
        if let Some(stop) = self.stops.iter().find(|stop| stop.is_empty() || stop.len() > LONGEST_STOP) {
            let length = stop.len();
            return refuse(
                "stop",
                format!("a text of \"stop\" has {length} bytes; 1 to {LONGEST_STOP} will do"),
            );
        }
        if self.stop_token_ids.len() > MOST_STOP_TOKENS {
            let count = self.stop_token_ids.len();
            let reason = format!("\"stop_token_ids\" has {count} ids; at most {MOST_STOP_TOKENS} will do");
            return refuse("stop_token_ids", reason);
        }
        if self.max_tokens.is_some_and(|most| self.min_tokens > most) {
            return refuse(
                "min_tokens",
                format!("\"min_tokens\" is {}, more than max_tokens", self.min_tokens),
            );
        }
        Ok(())
    }

    /// The field that says how many texts each prompt has.
    pub(in crate::http) fn field_of_texts(&self) -> &'static str {
        if self.best_of > self.n { "best_of" } else { "n" }
    }

    /// Refuses what asks for no token, where only texts are answered.
    pub(in crate::http) fn need_tokens(&self) -> Result<(), ApiError> {
        match self.max_tokens {
            Some(0) => Err(ApiError::of_field("max_tokens", "\"max_tokens\" is 0; at least 1 is needed")),
            _ => Ok(()),
        }
    }

    /// How tokens are drawn from a model, whose own settings stand for what the request leaves out.
    pub(in crate::http) fn sampling(
        &self,
        generator: &Generator,
        logprobs: Option<u32>,
    ) -> Result<Sampling, ApiError> {
        self.check_ids(generator.vocabulary)?;
        let own = &generator.defaults;
        let usual = if own.samples == Some(false) { 0.0 } else { own.temperature.map_or(1.0, |t| t as f32) };
        // 0 and -1 stand for all.
        let top_k = self.top_k.or(own.top_k).filter(|&k| k != 0 && k != -1);
        let top_k = top_k.map(|k| {
            u32::try_from(k).map_err(|_| {
                ApiError::of_field("top_k", format!("\"top_k\" is {k}; 1 or more, or -1 for all"))
            })
        });
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(usual),
            top_k: top_k.transpose()?,
            top_p: self.top_p.or(own.top_p.map(|p| p as f32)).unwrap_or(1.0),
            min_p: self.min_p.or(own.min_p.map(|p| p as f32)).unwrap_or(0.0),
            repetition_penalty: self
                .repetition_penalty
                .or(own.repetition_penalty.map(|penalty| penalty as f32))
                .unwrap_or(1.0),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            // A seed of its own, so that the same prompt gives another text.
            seed: self.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
            // What is best is told by the tokens' probabilities.
            logprobs: logprobs.or((self.best_of > self.n).then_some(0)),
            min_tokens: self.min_tokens,
            end_tokens: self.all_stop_tokens(generator),
        };
        sampling
            .check(generator.vocabulary)
            .map_err(|error| ApiError::of_field(error.parameter, error.to_string()))?;
        Ok(sampling)
    }

    /// The tokens that end a text: the model's own, unless they are to be ignored, and the request's.
    pub(in crate::http) fn all_stop_tokens(&self, generator: &Generator) -> Vec<u32> {
        let own = if self.ignore_eos { &[][..] } else { &generator.defaults.end_tokens };
        own.iter().chain(&self.stop_token_ids).copied().collect()
    }

    /// Those of them that the request names.
    pub(in crate::http) fn stop_token_ids(&self) -> &[u32] {
        &self.stop_token_ids
    }

    /// What ends texts, and how they are shown.
    pub(in crate::http) fn text(&self) -> TextOptions {
        TextOptions {
            stops: StopStrings::new(self.stops.clone().into(), self.include_stop),
            include_stop: self.include_stop,
            min_tokens: self.min_tokens,
            skip_special: self.skip_special,
        }
    }

    /// Refuses ids that the model does not have.
    fn check_ids(&self, vocabulary: usize) -> Result<(), ApiError> {
        match self.stop_token_ids.iter().find(|&&id| id as usize >= vocabulary) {
            None => Ok(()),
            Some(id) => Err(ApiError::of_field(
                "stop_token_ids",
                format!("\"stop_token_ids\" has {id}; the vocabulary has {vocabulary} tokens"),
            )),
        }
    }
}

/// A count of tokens, of which negative ones are refused in words of their own.
pub(in crate::http) fn max_tokens(fields: &mut Fields, name: &'static str) -> Result<Option<u32>, ApiError> {
    match fields.optional::<i64>(name)? {
        None => Ok(None),
        Some(asked) => u32::try_from(asked)
            .map(Some)
            .map_err(|_| ApiError::of_field(name, format!("\"{name}\" is {asked}; at least 1 is needed"))),
    }
}

/// JSON's keys are texts; these are token ids. Of keys that are written alike JSON's last one counts, and those that
/// are the same id written differently are refused.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let asked: BTreeMap<String, f32> = fields.or("logit_bias", BTreeMap::new())?;
    let refuse = |message: String| Err(ApiError::of_field("logit_bias", message));
    let mut biases = BTreeMap::new();
    for (key, bias) in asked {
        let Ok(id) = key.parse::<u32>() else {
            return refuse(format!("\"logit_bias\" has the key {key:?}, which is no token id"));
        };
        if biases.insert(id, bias).is_some() {
            return refuse(format!("\"logit_bias\" names token {id} twice"));
        }
    }
    Ok(biases.into_iter().collect())
}

/// Of a salt only whether it is the same matters.
fn hashed(salt: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    salt.hash(&mut hasher);
    hasher.finish()
}
