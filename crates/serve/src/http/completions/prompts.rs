//! What texts go on from: texts or token ids, one or many.

use std::sync::Arc;

use serde_json::Value;

use super::fields::shown;
use crate::app::App;
use crate::generation::Generator;
use crate::http::error::ApiError;
use crate::http::tokenising::tokenising;
use crate::text::Tokenizer;

/// Prompts of one request are at most so many.
const MOST_PROMPTS: usize = 1024;

/// A prompt as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl Prompt {
    /// The prompts of a field: a text, a list of texts, token ids, or a list of those.
    pub(in crate::http) fn read(value: Option<Value>) -> Result<Vec<Self>, ApiError> {
        let wrong = || {
            ApiError::of_field(
                "prompt",
                "\"prompt\" has to be a text, a list of texts, token ids, or a list of token ids",
            )
        };
        let prompts = match value {
            None => return Err(ApiError::of_field("prompt", "\"prompt\" is missing")),
            Some(Value::String(text)) => vec![Self::Text(text)],
            Some(Value::Array(list)) => match list.first() {
                None => return Err(ApiError::of_field("prompt", "\"prompt\" is empty")),
                Some(Value::Number(_)) => vec![Self::Ids(ids(list)?)],
                Some(_) => list
                    .into_iter()
                    .map(|item| match item {
                        Value::String(text) => Ok(Self::Text(text)),
                        Value::Array(list) => Ok(Self::Ids(ids(list)?)),
                        _ => Err(wrong()),
                    })
                    .collect::<Result<_, _>>()?,
            },
            Some(_) => return Err(wrong()),
        };
        if prompts.len() > MOST_PROMPTS {
            let count = prompts.len();
            return Err(ApiError::of_field(
                "prompt",
                format!("{count} prompts; at most {MOST_PROMPTS} will do"),
            ));
        }
        Ok(prompts)
    }

    /// Its text, where it was sent as one.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Ids(_) => None,
        }
    }

    /// Bytes of text that have to become tokens.
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Ids(_) => 0,
        }
    }
}

/// The token ids of a request's prompts, in order, checked against the model. `special`: with what the tokenizer
/// puts around a text.
pub(in crate::http) async fn into_ids(
    prompts: Vec<Prompt>,
    app: &App,
    generator: &Generator,
    special: bool,
) -> Result<Vec<Vec<u32>>, ApiError> {
    // Megabytes take seconds to become tokens, and a hundred times their memory.
    if let Some(most) = generator.tokenizer.most_bytes(generator.context)
        && let Some(bytes) = prompts.iter().map(Prompt::bytes).find(|&bytes| bytes > most)
    {
        let context = generator.context;
        let message = format!(
            "the prompt has {bytes} bytes; the model's context is {context} tokens, which have {most} bytes at most"
        );
        return Err(ApiError::beyond_context("prompt", message));
    }
    let all = encode(app, &generator.tokenizer, prompts, special).await?;
    all.iter().try_for_each(|ids| check(ids, generator.vocabulary))?;
    Ok(all)
}

fn check(ids: &[u32], vocabulary: usize) -> Result<(), ApiError> {
    if ids.is_empty() {
        return Err(ApiError::of_field("prompt", "the prompt is empty"));
    }
    match ids.iter().position(|&id| id as usize >= vocabulary) {
        None => Ok(()),
        Some(at) => {
            let id = ids[at];
            let message = format!("token {at} of the prompt is {id}; the vocabulary has {vocabulary} tokens");
            Err(ApiError::of_field("prompt", message))
        }
    }
}

fn ids(list: Vec<Value>) -> Result<Vec<u32>, ApiError> {
    let id = |value: Value| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => Err(ApiError::of_field("prompt", format!("{} in \"prompt\" is no token id", shown(&value)))),
    };
    list.into_iter().map(id).collect()
}

/// The token ids of prompts, those of texts made where that holds up nobody.
pub(in crate::http) async fn encode(
    app: &App,
    tokenizer: &Arc<Tokenizer>,
    prompts: Vec<Prompt>,
    special: bool,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let bytes = prompts.iter().map(Prompt::bytes).sum();
    let tokenizer = Arc::clone(tokenizer);
    let encode = move |prompt| match prompt {
        Prompt::Text(text) => tokenizer.encode(&text, special),
        Prompt::Ids(ids) => Ok(ids),
    };
    let work = move || prompts.into_iter().map(encode).collect::<Result<_, _>>();
    tokenising(app, bytes, work).await?.map_err(|error| ApiError::of_field("prompt", error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Vec<Prompt>, String> {
        Prompt::read(Some(value)).map_err(|error| error.message)
    }

    #[test]
    fn prompts_are_texts_or_token_ids_one_or_many() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(read(json!("a")), Ok(vec![text("a")]));
        assert_eq!(read(json!(["a", "b"])), Ok(vec![text("a"), text("b")]));
        assert_eq!(read(json!([1, 2])), Ok(vec![Prompt::Ids(vec![1, 2])]));
        assert_eq!(read(json!([[1], [2, 3]])), Ok(vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]));
        assert_eq!(read(json!(["a", [2]])), Ok(vec![text("a"), Prompt::Ids(vec![2])]));
    }

    #[test]
    fn what_is_no_prompt_is_said_so() {
        assert_eq!(read(json!([])), Err("\"prompt\" is empty".to_owned()));
        assert_eq!(read(json!([1, -1])), Err("-1 in \"prompt\" is no token id".to_owned()));
        assert_eq!(
            read(json!([1, 5_000_000_000u64])),
            Err("5000000000 in \"prompt\" is no token id".to_owned())
        );
        assert!(read(json!({})).unwrap_err().contains("has to be a text"));
        assert_eq!(Prompt::read(None).unwrap_err().message, "\"prompt\" is missing");
        assert_eq!(read(json!(vec!["a"; 1025])), Err("1025 prompts; at most 1024 will do".to_owned()));
    }
}
